package servertest_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker"
	"claviger.dev/internal/server"
	"claviger.dev/internal/server/servertest"
)

// TestSessionTransport is a service whose key is in custody: a session's key
// proves the request for a token and those to a resource server, which knows
// the key set alone. With the end of the session nothing is proved any more.
func TestSessionTransport(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := servertest.Start(t, servertest.Options{Change: func(c *server.Config) {
		c.Broker = broker.Config{Issuer: loginURL}
		if err := c.Broker.Validate(); err != nil {
			t.Fatal(err)
		}
	}})
	guard := &dpop.Resource{Verifier: &dpop.Verifier{Nonces: &dpop.Nonces{MAC: s.Keeper.NonceMAC}, Replays: &dpop.Memory{}}}
	api := httptest.NewTLSServer(guard.Guard(func(w http.ResponseWriter, _ *http.Request, caller dpop.Caller) {
		_, _ = io.WriteString(w, caller.Thumbprint)
	}))
	t.Cleanup(api.Close)
	guard.Base, _ = url.Parse(api.URL)

	cert, _ := s.Enrol(t, "service")
	s.Allow(t, "service", "prod/shop/service", nil, claviger.OpenSession)
	_, err := s.Local(t).CreateClient(ctx, connect.NewRequest(&clavigerv1.CreateClientRequest{Client: &clavigerv1.Client{
		Name: "prod/shop/service", Principal: "service", Kind: string(claviger.Confidential), GrantTypes: []string{"client_credentials"},
		Audiences: []string{api.URL, api.URL + "/*", loginURL + "/*"},
	}}))
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Config{Address: "https://" + s.Address, Roots: s.Roots, Certificate: cert})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	opened, err := c.OpenSession(ctx, &clavigerv1.OpenSessionRequest{Client: "prod/shop/service"})
	if err != nil {
		t.Fatal(err)
	}
	session := c.Session(opened.Id)

	base := routed(t, s, api, cert)
	guard.Token = (&dpop.Tokens{Issuer: loginURL, Audience: api.URL, Keys: dpop.FetchKeys(&http.Client{Transport: base}, loginURL+broker.KeysPath)}).Access

	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"prod/shop/service"}, "resource": {api.URL}}
	resp, err := (&http.Client{Transport: session.Transport(base, nil)}).PostForm(loginURL+broker.TokenPath, form)
	if err != nil {
		t.Fatal(err)
	}
	var issued struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err := json.Unmarshal(text, &issued); err != nil || issued.TokenType != "DPoP" {
		t.Fatalf("the token endpoint says %d %s", resp.StatusCode, text)
	}
	token := func(context.Context) (string, error) { return issued.AccessToken, nil }
	h := &http.Client{Transport: session.Transport(base, token, api.URL)}
	for range 2 { // the second with the nonce of the first
		if status, text, err := orders(h, api.URL); err != nil || status != http.StatusOK || text != opened.Jkt {
			t.Fatalf("the resource server says %d %q, %v; want the session's thumbprint", status, text, err)
		}
	}
	another, err := c.OpenSession(ctx, &clavigerv1.OpenSessionRequest{Client: "prod/shop/service"})
	if err != nil {
		t.Fatal(err)
	}
	if status, _, err := orders(&http.Client{Transport: c.Session(another.Id).Transport(base, token, api.URL)}, api.URL); err != nil || status != http.StatusUnauthorized {
		t.Errorf("with the key of another session: %d, %v", status, err)
	}
	if err := session.End(ctx, "done"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := orders(h, api.URL); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("after the end of the session: %v, want denied", err)
	}
}

// routed leads the issuer's name to the server, and the resource server's to
// itself.
func routed(t *testing.T, s *servertest.Server, api *httptest.Server, cert *tls.Certificate) *http.Transport {
	t.Helper()
	roots := s.Roots.Clone()
	roots.AddCert(api.Certificate())
	base := &http.Transport{DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		cfg := &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
		if strings.HasPrefix(address, "login.example.com:") {
			address, cfg.Certificates = s.Address, []tls.Certificate{*cert}
		}
		return (&tls.Dialer{Config: cfg}).DialContext(ctx, network, address)
	}}
	t.Cleanup(base.CloseIdleConnections)
	return base
}

// orders asks the resource server.
func orders(h *http.Client, api string) (status int, text string, err error) {
	resp, err := h.Get(api + "/orders?page=1")
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}
