package oauth_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker"
	"claviger.dev/internal/broker/upstream"
	"claviger.dev/internal/server"
	"claviger.dev/internal/server/servertest"
)

func TestMain(m *testing.M) { os.Exit(servertest.Main(m)) }

const api, stock = "https://api.example/", "https://stock.example/"

// site is a server with an authorization server, an OpenID provider where
// people log in, and a clock that a test puts forward.
type site struct {
	*servertest.Server
	issuer   string
	op       *provider
	ahead    atomic.Int64
	operator claviger.Principal
	page     *party // a public client, registered as prod/shop/page
	service  *party // a confidential one, prod/shop/service
}

func (s *site) now() time.Time        { return time.Now().Add(time.Duration(s.ahead.Load())) }
func (s *site) pass(by time.Duration) { s.ahead.Add(int64(by)) }

// newSite starts one, with a page and a service as clients.
func newSite(t testing.TB) *site {
	t.Helper()
	return newSiteAt(t, "")
}

// newSiteAt starts one that has an issuer as it is known behind a proxy.
func newSiteAt(t testing.TB, issuer string) *site {
	t.Helper()
	s := &site{op: newProvider(t), issuer: issuer}
	s.op.now = s.now
	port := freePort(t)
	if issuer == "" {
		s.issuer = fmt.Sprintf("https://localhost:%d", port)
	}
	s.Server = servertest.Start(t, servertest.Options{Now: s.now, Change: func(c *server.Config) {
		c.Listen = fmt.Sprintf("127.0.0.1:%d", port)
		c.Broker = broker.Config{Issuer: s.issuer, Issuers: []upstream.Config{{Issuer: s.op.URL, CA: s.op.ca, ClientID: "claviger"}}}
		if err := c.Broker.Validate(); err != nil {
			t.Fatal(err)
		}
	}})
	var err error
	if s.operator, err = s.Keeper.ByUID(t.Context(), claviger.Facts{UID: os.Geteuid()}); err != nil {
		t.Fatal(err)
	}
	s.page = s.register(t, "page", claviger.Client{Kind: claviger.Public, GrantTypes: []string{"authorization_code", "refresh_token"},
		RedirectURIs: []string{"https://shop.example/back"}, PostLogoutURIs: []string{"https://shop.example/bye"}})
	s.service = s.register(t, "service", claviger.Client{Kind: claviger.Confidential,
		GrantTypes: []string{"client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"}})
	return s
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// party is a client, with its keys.
type party struct {
	site      *site
	client    claviger.Client
	cert      *tls.Certificate
	key       *ecdsa.PrivateKey // of client assertions
	proof     *dpop.Signer
	http      *http.Client
	nonce     string
	principal *clavigerv1.Principal
}

// register makes a principal and a client of it, that may get tokens for the
// two resource servers.
func (s *site) register(t testing.TB, name string, c claviger.Client) *party {
	t.Helper()
	p := &party{site: s, key: newKey(t), proof: newProof(t)}
	p.cert, p.principal = s.Enrol(t, name)
	s.Allow(t, name, "prod/shop/"+name, nil, claviger.OpenSession)
	c.Name, c.Principal = claviger.Name("prod/shop/"+name), claviger.ID(p.principal.Id)
	c.Audiences, c.Scopes = []string{api, stock}, []string{"read", "write"}
	if c.Kind == claviger.Confidential {
		var err error
		if c.JWKS, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: "k", Use: "sig"}}}); err != nil {
			t.Fatal(err)
		}
	}
	made, err := s.Keeper.CreateClient(t.Context(), s.operator, c)
	if err != nil {
		t.Fatal(err)
	}
	p.client = made
	p.http = s.Remote(t, nil).HTTP
	p.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", s.Address)
	}
	p.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return p
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newProof(t testing.TB) *dpop.Signer {
	t.Helper()
	s, err := dpop.NewSigner(newKey(t), "")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sign makes a JWT.
func sign(t testing.TB, key crypto.Signer, typ string, claims map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithHeader("kid", "k")
	if typ != "" {
		options = options.WithType(jose.ContentType(typ))
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign(doc)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// assertion are the claims of a client assertion as they should be.
func (p *party) assertion() map[string]any {
	now := p.site.now()
	return map[string]any{"iss": p.client.ID, "sub": p.client.ID, "aud": p.site.issuer, "jti": claviger.NewID(now), "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}
}

// authenticated adds the client's authentication to a form, or its name alone.
func (p *party) authenticated(t testing.TB, form url.Values) url.Values {
	t.Helper()
	if form.Set("client_id", string(p.client.ID)); p.client.Kind == claviger.Confidential {
		form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		form.Set("client_assertion", sign(t, p.key, "", p.assertion()))
	}
	return form
}

// answer is what an endpoint says.
type answer struct {
	status int
	header http.Header
	body   map[string]any
}

func (a answer) text(name string) string { s, _ := a.body[name].(string); return s }

// send posts a form with these header fields.
func (p *party) send(t testing.TB, path string, form url.Values, header http.Header) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.site.issuer+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for name, all := range header {
		r.Header[name] = all
	}
	return do(t, p.http, r)
}

func do(t testing.TB, client *http.Client, r *http.Request) answer {
	t.Helper()
	res, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: res.StatusCode, header: res.Header}
	_ = json.Unmarshal(body, &a.body) // what is no JSON is nothing here
	return a
}

// prove makes a proof for a request to an endpoint.
func (p *party) prove(t testing.TB, by *dpop.Signer, path, token string) string {
	t.Helper()
	by.Now = p.site.now
	proof, err := by.Proof(dpop.Claims{Method: http.MethodPost, URL: p.site.issuer + path, Nonce: p.nonce, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

// bound posts a form with a proof by a key, and once more with a nonce where
// the server asks for one.
func (p *party) bound(t testing.TB, by *dpop.Signer, path string, form url.Values) answer {
	t.Helper()
	for range 2 {
		a := p.send(t, path, p.authenticated(t, form), http.Header{"Dpop": {p.prove(t, by, path, "")}})
		if n := a.header.Get("DPoP-Nonce"); n != "" {
			p.nonce = n
		}
		if a.text("error") != "use_dpop_nonce" {
			return a
		}
	}
	t.Fatal("the server asks for a nonce again and again")
	return answer{}
}

func (p *party) token(t testing.TB, form url.Values) answer {
	t.Helper()
	return p.bound(t, p.proof, broker.TokenPath, form)
}

// want fails the test where an answer is not the error that is expected; ""
// stands for success.
func want(t testing.TB, what string, a answer, code string) {
	t.Helper()
	if got := a.text("error"); got != code || (code == "") != (a.status < 400) {
		t.Errorf("%s: %d %v, want error %q", what, a.status, a.body, code)
	}
}

// claims reads a token that was issued, and checks its signature.
func (s *site) claims(t testing.TB, token string) map[string]any {
	t.Helper()
	set, err := s.Keeper.TokenKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(set, &keys); err != nil {
		t.Fatal(err)
	}
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	if err != nil {
		t.Fatalf("%q: %v", token, err)
	}
	body, err := signed.Verify(&keys)
	if err != nil {
		t.Fatal(err)
	}
	if typ := signed.Signatures[0].Header.ExtraHeaders[jose.HeaderType]; typ != "at+jwt" {
		t.Errorf("the token's typ is %v", typ)
	}
	var claims map[string]any
	if err := json.Unmarshal(body, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

// provider is an OpenID provider at which everybody is logged in already.
type provider struct {
	*httptest.Server
	key *ecdsa.PrivateKey
	ca  string
	now func() time.Time

	mu     sync.Mutex // guards all below
	person string
	refuse string
	codes  map[string]url.Values // by code: the authorization request
}

func newProvider(t testing.TB) *provider {
	t.Helper()
	o := &provider{key: newKey(t), person: "alice", codes: map[string]url.Values{}, now: time.Now}
	mux := http.NewServeMux()
	o.Server = httptest.NewTLSServer(mux)
	t.Cleanup(o.Close)
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": o.URL, "jwks_uri": o.URL + "/keys", "authorization_endpoint": o.URL + "/authorize",
			"token_endpoint": o.URL + "/token", "authorization_response_iss_parameter_supported": true})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: o.key.Public(), KeyID: "k"}}})
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		asked := o.codes[r.PostFormValue("code")]
		if delete(o.codes, r.PostFormValue("code")); asked == nil || s256(r.PostFormValue("code_verifier")) != asked.Get("code_challenge") || r.PostFormValue("client_assertion") == "" {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":"invalid_grant"}`)
			return
		}
		now := o.now()
		id := sign(t, o.key, "", map[string]any{"iss": o.URL, "sub": o.person, "aud": "claviger", "nonce": asked.Get("nonce"), "sid": "sid-" + o.person, "iat": now.Unix(), "exp": now.Unix() + 60})
		_ = json.NewEncoder(w).Encode(map[string]any{"id_token": id, "access_token": "opaque", "token_type": "Bearer"})
	})
	o.ca = filepath.Join(t.TempDir(), "op.pem")
	if err := os.WriteFile(o.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return o
}

// consent answers an authorization request: where the browser goes back.
func (o *provider) consent(t testing.TB, to string) string {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil || !strings.HasPrefix(to, o.URL+"/authorize?") {
		t.Fatalf("the browser is sent to %q", to)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	q := url.Values{"state": {u.Query().Get("state")}, "iss": {o.URL}}
	if o.refuse != "" {
		q.Set("error", o.refuse)
	} else {
		code := string(claviger.NewID(time.Now()))
		o.codes[code] = u.Query()
		q.Set("code", code)
	}
	return u.Query().Get("redirect_uri") + "?" + q.Encode()
}
