package upstream_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/broker/upstream"
)

const audience = "https://auth.example.org"

// party is an issuer: a web server with metadata and keys.
type party struct {
	*httptest.Server
	key     *ecdsa.PrivateKey
	id      string
	asked   atomic.Int64 // for keys
	keys    func(w http.ResponseWriter)
	meta    map[string]any
	tokens  http.HandlerFunc
	ca      string
	private string // directory
}

func newParty(t *testing.T) *party {
	t.Helper()
	p := &party{id: "1", private: t.TempDir()}
	p.newKey(t, "1")
	p.keys = func(w http.ResponseWriter) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: p.id}}})
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) { _ = json.NewEncoder(w).Encode(p.meta) })
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) { p.asked.Add(1); p.keys(w) })
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) { p.tokens(w, r) })
	p.Server = httptest.NewTLSServer(mux)
	t.Cleanup(p.Close)
	p.meta = map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/keys", "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token"}
	p.ca = filepath.Join(p.private, "ca.pem")
	if err := os.WriteFile(p.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *party) newKey(t *testing.T, id string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.key, p.id = key, id
}

func (p *party) sign(t *testing.T, typ string, claims map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithHeader("kid", p.id)
	if typ != "" {
		options = options.WithType(jose.ContentType(typ))
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: p.key}, options)
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

// clock is set by a test.
type clock struct{ at atomic.Int64 }

func newClock() *clock { c := &clock{}; c.at.Store(1_800_000_000); return c }

func (c *clock) now() time.Time        { return time.Unix(c.at.Load(), 0) }
func (c *clock) pass(by time.Duration) { c.at.Add(int64(by / time.Second)) }

func issuers(t *testing.T, c *clock, configs ...upstream.Config) *upstream.Issuers {
	t.Helper()
	for i := range configs {
		if err := configs[i].Validate(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := upstream.New(configs, audience, c.now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// with is a copy of claims with some changed; nil takes one out.
func with(claims map[string]any, changes map[string]any) map[string]any {
	out := maps.Clone(claims)
	for name, value := range changes {
		if out[name] = value; value == nil {
			delete(out, name)
		}
	}
	return out
}

func TestIdentify(t *testing.T) {
	t.Parallel()
	c := newClock()
	oidc, cluster, domain := newParty(t), newParty(t), newParty(t)
	file := filepath.Join(domain.private, "bundle.json")
	doc, err := json.Marshal(map[string]any{"keys": []any{map[string]any{"kty": "EC", "crv": "P-256", "use": "jwt-svid", "kid": "1",
		"x": jwkMember(t, domain, "x"), "y": jwkMember(t, domain, "y")}}, "spiffe_refresh_hint": 300})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	s := issuers(t, c,
		upstream.Config{Issuer: oidc.URL, CA: oidc.ca},
		upstream.Config{Issuer: cluster.URL, Kind: upstream.Kubernetes, Audience: "claviger", Keys: cluster.URL + "/keys", CA: cluster.ca},
		upstream.Config{Issuer: "spiffe://prod.example", Kind: upstream.SPIFFE, Keys: file})
	exp := c.now().Add(time.Minute).Unix()
	person := map[string]any{"iss": oidc.URL, "sub": "alice", "aud": audience, "exp": exp, "preferred_username": "alice@example.org"}
	account := map[string]any{"iss": cluster.URL, "sub": "system:serviceaccount:shop:orders", "aud": []string{"claviger"}, "exp": exp}
	svid := map[string]any{"sub": "spiffe://prod.example/ns/shop/sa/orders", "aud": []string{audience}, "exp": exp}
	for _, test := range []struct {
		name  string
		token string
		kind  string
		want  claviger.Subject // zero: refused
	}{
		{"a person", oidc.sign(t, "", person), upstream.TypeJWT, claviger.Subject{Issuer: oidc.URL, ID: "alice", Name: "alice@example.org"}},
		{"a person's ID token", oidc.sign(t, "JWT", person), upstream.TypeID, claviger.Subject{Issuer: oidc.URL, ID: "alice", Name: "alice@example.org"}},
		{"a service account", cluster.sign(t, "", account), upstream.TypeJWT, claviger.Subject{Issuer: cluster.URL, ID: "system:serviceaccount:shop:orders"}},
		{"a workload", domain.sign(t, "JWT", svid), upstream.TypeJWT, claviger.Subject{Issuer: "spiffe://prod.example", ID: "spiffe://prod.example/ns/shop/sa/orders"}},
		{"a service account as a person", cluster.sign(t, "", account), upstream.TypeID, claviger.Subject{}},
		{"an unknown type", oidc.sign(t, "", person), "urn:ietf:params:oauth:token-type:saml2", claviger.Subject{}},
		{"a logout token", oidc.sign(t, "logout+jwt", person), upstream.TypeJWT, claviger.Subject{}},
		{"a proof", oidc.sign(t, "dpop+jwt", person), upstream.TypeJWT, claviger.Subject{}},
		{"for somebody else", oidc.sign(t, "", with(person, map[string]any{"aud": "https://other.example"})), upstream.TypeJWT, claviger.Subject{}},
		{"for nobody", oidc.sign(t, "", with(person, map[string]any{"aud": nil})), upstream.TypeJWT, claviger.Subject{}},
		{"of another issuer", oidc.sign(t, "", with(person, map[string]any{"iss": "https://other.example"})), upstream.TypeJWT, claviger.Subject{}},
		{"in another issuer's name", cluster.sign(t, "", person), upstream.TypeJWT, claviger.Subject{}},
		{"ended", oidc.sign(t, "", with(person, map[string]any{"exp": exp - 3600})), upstream.TypeJWT, claviger.Subject{}},
		{"endless", oidc.sign(t, "", with(person, map[string]any{"exp": nil})), upstream.TypeJWT, claviger.Subject{}},
		{"of nobody", oidc.sign(t, "", with(person, map[string]any{"sub": nil})), upstream.TypeJWT, claviger.Subject{}},
		{"of a long name", oidc.sign(t, "", with(person, map[string]any{"sub": strings.Repeat("a", 300)})), upstream.TypeJWT, claviger.Subject{}},
		{"of another trust domain", domain.sign(t, "", with(svid, map[string]any{"sub": "spiffe://prod.example.evil/x"})), upstream.TypeJWT, claviger.Subject{}},
		{"a workload by a person's issuer", oidc.sign(t, "", svid), upstream.TypeJWT, claviger.Subject{}},
	} {
		got, err := s.Identify(t.Context(), test.token, test.kind)
		if (err != nil) != (test.want == claviger.Subject{}) {
			t.Errorf("%s: %v", test.name, err)
		}
		if diff := cmp.Diff(test.want, got.Subject); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func jwkMember(t *testing.T, p *party, name string) string {
	t.Helper()
	doc, err := json.Marshal(jose.JSONWebKey{Key: p.key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]string
	if err := json.Unmarshal(doc, &members); err != nil {
		t.Fatal(err)
	}
	return members[name]
}

// TestKeysTurnOver follows an issuer's new key, without asking for keys as
// often as tokens with unknown ones come.
func TestKeysTurnOver(t *testing.T) {
	t.Parallel()
	c, p := newClock(), newParty(t)
	s := issuers(t, c, upstream.Config{Issuer: p.URL, CA: p.ca})
	identify := func() error {
		_, err := s.Identify(t.Context(), p.sign(t, "", map[string]any{"iss": p.URL, "sub": "a", "aud": audience, "exp": c.now().Unix() + 60}), upstream.TypeJWT)
		return err
	}
	for range 3 {
		if err := identify(); err != nil {
			t.Fatal(err)
		}
	}
	if n := p.asked.Load(); n != 1 {
		t.Errorf("the keys were fetched %d times, want once", n)
	}
	c.pass(20 * time.Second)
	p.newKey(t, "2")
	if err := identify(); err != nil {
		t.Errorf("with the new key: %v", err)
	}
	p.id = "unknown"
	keys := p.keys
	p.keys = func(w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) }
	for range 20 {
		if err := identify(); err == nil {
			t.Fatal("a token with an unknown key is accepted")
		}
	}
	if n := p.asked.Load(); n != 2 {
		t.Errorf("the keys were fetched %d times, want twice", n)
	}
	p.id = "2"
	c.pass(2 * time.Hour)
	if err := identify(); err != nil {
		t.Errorf("while the keys cannot be had, with those of before: %v", err)
	}
	c.pass(24 * time.Hour)
	if err := identify(); !upstream.Unfetched(err) {
		t.Errorf("a day later: %v, want that they cannot be had", err)
	}
	p.keys = keys
	c.pass(time.Minute)
	if err := identify(); err != nil {
		t.Errorf("when they can be had again: %v", err)
	}
}

// TestCallerGone has who makes the keys be fetched hang up: the others get them.
func TestCallerGone(t *testing.T) {
	t.Parallel()
	c, p := newClock(), newParty(t)
	s := issuers(t, c, upstream.Config{Issuer: p.URL, CA: p.ca})
	token := p.sign(t, "", map[string]any{"iss": p.URL, "sub": "a", "aud": audience, "exp": c.now().Unix() + 60})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = s.Identify(gone, token, upstream.TypeJWT) // whatever it is told, it does not hear it
	if _, err := s.Identify(t.Context(), token, upstream.TypeJWT); err != nil {
		t.Errorf("after a caller who went away: %v", err)
	}
}

// TestBoundedFetch has an issuer answer what is not taken.
func TestBoundedFetch(t *testing.T) {
	t.Parallel()
	elsewhere := newParty(t)
	for name, change := range map[string]func(p *party){
		"another issuer's metadata": func(p *party) { p.meta["issuer"] = "https://other.example" },
		"keys by http":              func(p *party) { p.meta["jwks_uri"] = "http://127.0.0.1/keys" },
		"keys in a file":            func(p *party) { p.meta["jwks_uri"] = "file:///etc/passwd" },
		"a redirect": func(p *party) {
			p.keys = func(w http.ResponseWriter) {
				w.Header().Set("Location", elsewhere.URL+"/keys")
				w.WriteHeader(http.StatusFound)
			}
		},
		"too long": func(p *party) { p.keys = func(w http.ResponseWriter) { _, _ = w.Write(make([]byte, 1<<20)) } },
		"not JSON": func(p *party) { p.keys = func(w http.ResponseWriter) { _, _ = w.Write([]byte("<html>")) } },
		"refused":  func(p *party) { p.keys = func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) } },
		"a long head": func(p *party) {
			p.keys = func(w http.ResponseWriter) { w.Header().Set("X", strings.Repeat("x", 64<<10)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, p := newClock(), newParty(t)
			change(p)
			s := issuers(t, c, upstream.Config{Issuer: p.URL, CA: p.ca})
			_, err := s.Identify(t.Context(), p.sign(t, "", map[string]any{"iss": p.URL, "sub": "a", "aud": audience, "exp": c.now().Unix() + 60}), upstream.TypeJWT)
			if !upstream.Unfetched(err) {
				t.Errorf("got %v, want that the documents cannot be had", err)
			}
		})
	}
	if elsewhere.asked.Load() != 0 {
		t.Error("a redirect was followed")
	}
	c, p := newClock(), newParty(t)
	s := issuers(t, c, upstream.Config{Issuer: p.URL}) // its CA is not trusted
	if _, err := s.Identify(t.Context(), p.sign(t, "", map[string]any{"iss": p.URL, "sub": "a", "aud": audience, "exp": c.now().Unix() + 60}), upstream.TypeJWT); !upstream.Unfetched(err) {
		t.Errorf("by an unknown CA: %v", err)
	}
	slow := newParty(t)
	s = issuers(t, c, upstream.Config{Issuer: slow.URL, CA: slow.ca})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	slow.keys = func(http.ResponseWriter) { <-ctx.Done() }
	if _, err := s.Identify(ctx, slow.sign(t, "", map[string]any{"iss": slow.URL, "sub": "a", "aud": audience, "exp": c.now().Unix() + 60}), upstream.TypeJWT); !upstream.Unfetched(err) {
		t.Errorf("past the deadline: %v", err)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]upstream.Config{
		"no issuer":               {},
		"http":                    {Issuer: "http://login.example.org"},
		"http elsewhere":          {Issuer: "http://login.example.org", PlainLoopback: true},
		"a user":                  {Issuer: "https://a:b@login.example.org"},
		"a fragment":              {Issuer: "https://login.example.org#x"},
		"an unknown kind":         {Issuer: "https://login.example.org", Kind: "saml"},
		"a domain without keys":   {Issuer: "spiffe://example.org", Kind: upstream.SPIFFE},
		"a domain with a path":    {Issuer: "spiffe://example.org/x", Kind: upstream.SPIFFE, Keys: "/k"},
		"a domain to log in at":   {Issuer: "spiffe://example.org", Kind: upstream.SPIFFE, Keys: "/k", ClientID: "c"},
		"keys by http":            {Issuer: "https://login.example.org", Keys: "http://login.example.org/keys"},
		"a relative CA":           {Issuer: "https://login.example.org", CA: "ca.pem"},
		"a secret without client": {Issuer: "https://login.example.org", SecretFile: "/secret"},
	} {
		if err := c.Validate(); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	for name, c := range map[string]upstream.Config{
		"a provider":       {Issuer: "https://login.example.org/realms/x", ClientID: "claviger"},
		"one on this host": {Issuer: "http://localhost:3000", PlainLoopback: true},
		"a domain":         {Issuer: "spiffe://example.org", Kind: upstream.SPIFFE, Keys: "https://spire.example.org/keys"},
	} {
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
