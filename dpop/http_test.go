package dpop_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
)

// resource is a server whose only good token is bound to the given key.
func resource(t testing.TB, thumbprint string, now func() time.Time) *dpop.Resource {
	t.Helper()
	base, err := url.Parse("https://api.example.com")
	if err != nil {
		t.Fatal(err)
	}
	return &dpop.Resource{
		Verifier: &dpop.Verifier{Replays: &dpop.Memory{Now: now}, Now: now, Nonces: &dpop.Nonces{MAC: dpop.NonceKey(make([]byte, 32))}},
		Base:     base,
		Token: func(_ context.Context, given string) (dpop.Access, error) {
			switch given {
			case token:
				return dpop.Access{Thumbprint: thumbprint, Claims: "orders"}, nil
			case "unbound":
				return dpop.Access{}, nil
			case "unknown":
				return dpop.Access{}, &dpop.Error{Code: dpop.Unavailable, Msg: "introspection does not answer"}
			}
			return dpop.Access{}, errors.New("signature")
		},
		MetadataURL: "https://api.example.com/.well-known/oauth-protected-resource",
	}
}

// through sends requests for the public URL to a server on this machine.
type through struct {
	server *httptest.Server
	n      atomic.Int64
}

func (f *through) RoundTrip(r *http.Request) (*http.Response, error) {
	f.n.Add(1)
	r.URL.Scheme, r.URL.Host = "http", strings.TrimPrefix(f.server.URL, "http://")
	return http.DefaultTransport.RoundTrip(r)
}

func TestClientAndResource(t *testing.T) {
	t.Parallel()
	signer := newSigner(t, newKey(t), "")
	signer.Now = nil
	rs := resource(t, signer.Thumbprint(), time.Now)
	server := httptest.NewServer(rs.Guard(func(w http.ResponseWriter, r *http.Request, caller dpop.Caller) {
		body, _ := io.ReadAll(r.Body)
		if caller.Claims != "orders" || caller.Thumbprint != caller.Proof.Thumbprint {
			t.Errorf("caller %+v", caller)
		}
		w.Write(append([]byte("got "), body...))
	}))
	defer server.Close()
	wire := &through{server: server}
	transport := &dpop.Transport{
		Signer: signer, Base: wire, Origins: []string{"https://API.example.com:443"},
		Token: func(context.Context) (string, error) { return token, nil },
	}
	client := &http.Client{Transport: transport}
	for i, want := range []int64{2, 3, 4} { // the first asks for the nonce; it is known then
		resp, err := client.Post(apiURL+"?page=1", "text/plain", strings.NewReader("an order"))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(body) != "got an order" || wire.n.Load() != want {
			t.Errorf("request %d: status %d, %q, %d sent, want %d", i, resp.StatusCode, body, wire.n.Load(), want)
		}
	}
	if resp, err := client.Get("https://api.example.com.evil.example/"); err == nil || claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("the token went elsewhere: %v, %v", resp, err)
	}
	// A body that cannot be read again: the answer comes back, and the next request goes through.
	fresh := &http.Client{Transport: &dpop.Transport{Signer: signer, Base: wire, Origins: transport.Origins, Token: transport.Token}}
	for i, want := range []int{401, 200} {
		resp, err := fresh.Post(apiURL, "text/plain", io.MultiReader(strings.NewReader("an order")))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("try %d: status %d, want %d", i, resp.StatusCode, want)
		}
	}
}

// TestOneRetry is a server that is never content with its nonces.
func TestOneRetry(t *testing.T) {
	t.Parallel()
	var seen atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := seen.Add(1)
		w.Header().Set("DPoP-Nonce", strings.Repeat("n", int(n)))
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `{"error":"use_dpop_nonce"}`)
	}))
	defer server.Close()
	client := &http.Client{Transport: &dpop.Transport{Signer: newSigner(t, newKey(t), "")}}
	resp, err := client.Post(server.URL+"/token", "application/x-www-form-urlencoded", strings.NewReader("grant_type=x"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if seen.Load() != 2 || string(body) != `{"error":"use_dpop_nonce"}` {
		t.Errorf("%d requests; the body is %q", seen.Load(), body)
	}
}

// TestNonceOfSuccess checks that the nonce of an answer with status 200 is the
// next one: otherwise every request would be refused first.
func TestNonceOfSuccess(t *testing.T) {
	t.Parallel()
	var refused, n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want := string(rune('a' + n.Load()))
		parts := strings.Split(r.Header.Get("DPoP"), ".")
		if len(parts) != 3 || !strings.Contains(decoded(parts[1]), `"nonce":"`+want+`"`) {
			refused.Add(1)
			w.Header().Set("DPoP-Nonce", want)
			w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		n.Add(1)
		w.Header().Set("DPoP-Nonce", string(rune('a'+n.Load())))
	}))
	defer server.Close()
	client := &http.Client{Transport: &dpop.Transport{Signer: newSigner(t, newKey(t), "")}}
	for range 5 {
		resp, err := client.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
	if refused.Load() != 1 {
		t.Errorf("%d refused, want the first alone", refused.Load())
	}
}

func decoded(part string) string {
	b, _ := b64.DecodeString(part)
	return string(b)
}

func TestChallenges(t *testing.T) {
	t.Parallel()
	signer := newSigner(t, newKey(t), "")
	rs := resource(t, signer.Thumbprint(), at(start))
	nonce, err := rs.Verifier.Nonces.Current(t.Context(), start)
	if err != nil {
		t.Fatal(err)
	}
	ended := false
	rs.Status = func(context.Context, dpop.Access) error {
		if ended {
			return errors.New("logged out")
		}
		return nil
	}
	proof := func(nonce string) string {
		return prove(t, signer, dpop.Claims{Method: "GET", URL: apiURL, Token: token, Nonce: nonce})
	}
	for _, c := range []struct {
		name   string
		auth   []string
		proofs []string
		ended  bool
		status int
		says   string // of the challenge
		not    string
		nonce  bool
	}{
		{name: "nothing", status: 401, says: `DPoP algs="ES256`, not: "error"},
		{name: "bearer", auth: []string{"Bearer " + token}, status: 401, says: `error="invalid_token"`},
		{name: "bearer with a proof", auth: []string{"bearer " + token}, proofs: []string{proof(nonce)}, status: 401, says: `error="invalid_token"`},
		{name: "basic", auth: []string{"Basic YTpi"}, status: 400, says: `error="invalid_request"`},
		{name: "two", auth: []string{"DPoP " + token, "Bearer " + token}, proofs: []string{proof(nonce)}, status: 400, says: `error="invalid_request"`},
		{name: "no token68", auth: []string{"DPoP a b"}, status: 400, says: `error="invalid_request"`},
		{name: "unknown token", auth: []string{"DPoP abc"}, proofs: []string{proof(nonce)}, status: 401, says: `error="invalid_token"`},
		{name: "unbound token", auth: []string{"DPoP unbound"}, proofs: []string{proof(nonce)}, status: 401, says: `error="invalid_token"`},
		{name: "not to be known", auth: []string{"DPoP unknown"}, proofs: []string{proof(nonce)}, status: 503, says: `error="temporarily_unavailable"`},
		{name: "no proof", auth: []string{"DPoP " + token}, status: 401, says: `error="invalid_dpop_proof"`},
		{name: "no nonce", auth: []string{"DPoP " + token}, proofs: []string{proof("")}, status: 401, says: `error="use_dpop_nonce"`, nonce: true},
		{name: "logged out", auth: []string{"DPoP " + token}, proofs: []string{proof(nonce)}, ended: true, status: 401, says: `error="invalid_token"`},
		{name: "good", auth: []string{"dpop " + token}, proofs: []string{proof(nonce)}, status: 200},
	} {
		ended = c.ended
		r := httptest.NewRequest("GET", "http://10.0.0.7:8080/orders?a=b", nil) // as it looks behind a proxy
		r.Header["Authorization"], r.Header["Dpop"] = c.auth, c.proofs
		w := httptest.NewRecorder()
		rs.Guard(func(w http.ResponseWriter, r *http.Request, _ dpop.Caller) {}).ServeHTTP(w, r)
		challenge := w.Header().Get("WWW-Authenticate")
		if w.Code != c.status || !strings.Contains(challenge, c.says) || c.not != "" && strings.Contains(challenge, c.not) {
			t.Errorf("%s: status %d, %q", c.name, w.Code, challenge)
		}
		if got := w.Header().Get("DPoP-Nonce"); (got == nonce) != c.nonce {
			t.Errorf("%s: nonce %q", c.name, got)
		}
		if c.status != 200 && (w.Header().Get("Cache-Control") != "no-store" || !strings.Contains(challenge, "resource_metadata=")) {
			t.Errorf("%s: header %v", c.name, w.Header())
		}
		if strings.ContainsAny(challenge, "\r\n") || bytes.Contains(w.Body.Bytes(), []byte(token)) {
			t.Errorf("%s: the answer shows what came", c.name)
		}
	}
}

// TestBehindProxy is a proxy that takes a part of the path away.
func TestBehindProxy(t *testing.T) {
	t.Parallel()
	signer := newSigner(t, newKey(t), "")
	rs := resource(t, signer.Thumbprint(), at(start))
	rs.Verifier.Nonces = nil
	rs.Base, _ = url.Parse("https://example.com/shop/")
	for proven, want := range map[string]int{"https://example.com/shop/orders/a%2Fb": 200, "https://example.com/orders/a%2Fb": 401, "https://example.com/shop/orders/a/b": 401} {
		r := httptest.NewRequest("GET", "http://127.0.0.1/orders/a%2Fb", nil)
		r.Header.Set("Authorization", "DPoP "+token)
		r.Header.Set("DPoP", prove(t, signer, dpop.Claims{Method: "GET", URL: proven, Token: token}))
		w := httptest.NewRecorder()
		rs.Guard(func(http.ResponseWriter, *http.Request, dpop.Caller) {}).ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s: status %d, want %d", proven, w.Code, want)
		}
	}
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	rs := resource(t, "", at(start))
	rs.Verifier.Algorithms = []string{"ES256", "EdDSA"}
	h := rs.Metadata("https://api.example.com", "https://login.example.com")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", rs.MetadataURL, nil))
	const want = `{"resource":"https://api.example.com","authorization_servers":["https://login.example.com"],"bearer_methods_supported":["header"],` +
		`"dpop_signing_alg_values_supported":["ES256","EdDSA"],"dpop_bound_access_tokens_required":true}`
	if w.Code != 200 || w.Body.String() != want || w.Header().Get("Content-Type") != "application/json" || w.Header().Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("status %d, %v\n%s\nwant %s", w.Code, w.Header(), w.Body, want)
	}
	w = httptest.NewRecorder()
	if h.ServeHTTP(w, httptest.NewRequest("POST", rs.MetadataURL, nil)); w.Code != 405 || w.Body.Len() != 0 {
		t.Errorf("POST: status %d, %s", w.Code, w.Body)
	}
}
