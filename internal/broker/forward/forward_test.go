package forward_test

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/dpop/dpoptest"
	"claviger.dev/internal/broker/forward"
	"github.com/google/go-cmp/cmp"
)

const (
	base     = "https://shop.example.com"
	issuerID = "https://login.example.com"
)

var start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func at() time.Time { return start }

// world is an issuer, a client with a token, and the endpoints.
type world struct {
	issuer *dpoptest.Issuer
	signer *dpop.Signer
	token  string
	nonce  string
	past   string // a nonce that has ended
	status error
	seen   []string
	asked  forward.Request // the last of Status
	stale  forward.Request
	f      *forward.Forward
}

func newWorld(t testing.TB, replays dpop.Replays) *world {
	t.Helper()
	w := &world{issuer: dpoptest.New(t, issuerID, at), signer: dpoptest.Signer(t)}
	w.signer.Now = at
	w.token = w.issuer.Issue(w.issuer.Claims(base, w.signer.Thumbprint()))
	nonces := &dpop.Nonces{MAC: dpop.NonceKey(make([]byte, 32))}
	var err error
	if w.nonce, err = nonces.Current(t.Context(), start); err != nil {
		t.Fatal(err)
	}
	if w.past, err = nonces.Current(t.Context(), start.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}
	w.f, err = forward.New(forward.Parts{Issuer: issuerID, Keys: w.issuer.Keys,
		Status: func(_ context.Context, r forward.Request) error {
			w.asked = r
			return w.status
		},
		Stale:    func(_ context.Context, r forward.Request) { w.stale = r },
		Verifier: &dpop.Verifier{Nonces: nonces, Replays: replays, Now: at},
		Outcome: func(app string, status int) {
			if len(w.seen) < 100 {
				w.seen = append(w.seen, app+" "+http.StatusText(status))
			}
		},
	}, []forward.App{
		{Name: "shop", Base: base, Proxy: forward.Nginx, Principals: []string{"front"}, Addresses: proxies, Source: "X-Real-IP"},
		{Name: "admin", Base: base, Proxy: forward.Nginx, Addresses: proxies, Scopes: []string{"orders", "admin"}},
		{Name: "traefik", Base: base, Proxy: forward.Traefik, Addresses: proxies},
		{Name: "envoy", Base: base, Proxy: forward.Envoy, Addresses: proxies},
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) proof(t testing.TB, method, url string) string {
	t.Helper()
	proof, err := w.signer.Proof(dpop.Claims{Method: method, URL: url, Token: w.token, Nonce: w.nonce})
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

var proxy = forward.Caller{Address: netip.MustParseAddr("10.0.0.9")}

// ask is what a proxy sends. fields are pairs; a name may come twice.
func (w *world) ask(method, path string, by forward.Caller, fields ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(fields); i += 2 {
		r.Header.Add(fields[i], fields[i+1])
	}
	out := httptest.NewRecorder()
	w.f.Serve(out, r, by)
	return out
}

// TestRequestsAreTold checks what the rules against abuse hear of a request: what
// its proxy says, and of the address nothing that the client could have written.
func TestRequestsAreTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &dpop.Memory{Now: at})
	for _, c := range []struct {
		name, app string
		fields    []string
		want      string
	}{
		{"nginx", "shop", []string{"X-Real-IP", "192.0.2.1"}, "192.0.2.1"},
		{"a list, of which the proxy wrote the last", "shop", []string{"X-Real-IP", "198.51.100.7, ::ffff:192.0.2.1"}, "192.0.2.1"},
		{"a field of the client's, and one of the proxy's", "shop", []string{"X-Real-IP", "198.51.100.7", "X-Real-IP", "192.0.2.1"}, "192.0.2.1"},
		{"no address", "shop", []string{"X-Real-IP", "unknown"}, "invalid IP"},
		{"none", "shop", nil, "invalid IP"},
		{"a field that is not configured", "admin", []string{"X-Real-IP", "192.0.2.1", "X-Forwarded-For", "192.0.2.1"}, "invalid IP"},
	} {
		fields := append(c.fields, "X-Original-Method", "POST", "X-Original-URI", "/orders", "Authorization", "DPoP "+w.token)
		w.asked, w.stale = forward.Request{}, forward.Request{}
		w.ask("GET", "/forward-auth/"+c.app, proxy, append(fields, "DPoP", w.proof(t, "POST", base+"/orders"))...)
		if r := w.asked; r.Token == nil || r.Method != "POST" || r.Audience != base || r.Source.String() != c.want || w.stale.Token != nil {
			t.Errorf("%s: %+v", c.name, r)
		}
		good := w.nonce
		w.nonce = w.past
		w.asked = forward.Request{}
		w.ask("GET", "/forward-auth/"+c.app, proxy, append(fields, "DPoP", w.proof(t, "POST", base+"/orders"))...)
		if r := w.stale; r.Token == nil || r.Method != "POST" || r.Source.String() != c.want || w.asked.Token != nil {
			t.Errorf("%s: of a stale proof %+v", c.name, r)
		}
		w.nonce = good
	}
}

// TestShapes sends what the documentation of each proxy says that it sends.
func TestShapes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &dpop.Memory{Now: at})
	traefik := func(more ...string) []string {
		return append([]string{"X-Forwarded-Method", "POST", "X-Forwarded-Uri", "/orders/a%2Fb?page=1", "X-Forwarded-For", "192.0.2.1"}, more...)
	}
	for _, c := range []struct {
		name, method, path string
		fields             []string
		status             int
	}{
		{"nginx", "GET", "/forward-auth/shop", []string{"X-Original-Method", "POST", "X-Original-URI", "/orders/a%2Fb?page=1"}, 200},
		{"nginx, other method", "POST", "/forward-auth/shop", []string{"X-Original-Method", "PUT", "X-Original-URI", "/orders/a%2Fb"}, 401},
		{"nginx, other path", "POST", "/forward-auth/shop", []string{"X-Original-Method", "POST", "X-Original-URI", "/orders/a/b"}, 401},
		{"nginx, of the question itself", "POST", "/forward-auth/shop", nil, 403},
		{"nginx, twice", "POST", "/forward-auth/shop", []string{"X-Original-Method", "POST", "X-Original-URI", "/orders/a%2Fb", "X-Original-URI", "/other"}, 403},
		{"nginx, another host", "POST", "/forward-auth/shop", []string{"X-Original-Method", "POST", "X-Original-URI", "https://evil.example/orders/a%2Fb"}, 403},
		{"nginx, two slashes", "POST", "/forward-auth/shop", []string{"X-Original-Method", "POST", "X-Original-URI", "//evil.example/orders/a%2Fb"}, 401},
		{"nginx, dots that it and RFC 3986 resolve differently", "POST", "/forward-auth/shop", []string{"X-Original-Method", "POST", "X-Original-URI", "/orders//../a%2Fb"}, 403},
		{"nginx, encoded dots", "POST", "/forward-auth/shop", []string{"X-Original-Method", "POST", "X-Original-URI", "/orders/x/%2e%2e/a%2Fb"}, 403},
		{"nginx, dots and an encoded slash", "POST", "/forward-auth/shop", []string{"X-Original-Method", "POST", "X-Original-URI", "/orders/x%2F../a%2Fb"}, 403},
		{"nginx, no URL", "POST", "/forward-auth/shop", []string{"X-Original-Method", "POST", "X-Original-URI", "/%zz"}, 403},
		{"nginx, fields of another proxy", "POST", "/forward-auth/shop", traefik("X-Forwarded-Proto", "https", "X-Forwarded-Host", "shop.example.com"), 403},
		{"traefik", "GET", "/forward-auth/traefik", traefik("X-Forwarded-Proto", "https", "X-Forwarded-Host", "Shop.example.com:443"), 200},
		{"traefik, other host", "GET", "/forward-auth/traefik", traefik("X-Forwarded-Proto", "https", "X-Forwarded-Host", "admin.example.com"), 403},
		{"traefik, other scheme", "GET", "/forward-auth/traefik", traefik("X-Forwarded-Proto", "http", "X-Forwarded-Host", "shop.example.com"), 403},
		{"traefik, no host", "GET", "/forward-auth/traefik", traefik("X-Forwarded-Proto", "https"), 403},
		{"envoy", "POST", "/forward-auth/envoy/orders/a%2Fb?page=1", nil, 200},
		{"envoy, other method", "GET", "/forward-auth/envoy/orders/a%2Fb", nil, 401},
		{"envoy, other path", "POST", "/forward-auth/envoy/orders", nil, 401},
		{"envoy, fields of others", "GET", "/forward-auth/envoy/", []string{"X-Original-Method", "POST", "X-Original-URI", "/orders/a%2Fb"}, 401},
		{"no application", "POST", "/forward-auth/other/orders", nil, 403},
		{"no name", "POST", "/forward-auth/", nil, 403},
	} {
		fields := append(c.fields, "Authorization", "DPoP "+w.token, "DPoP", w.proof(t, "POST", base+"/orders/a%2Fb"))
		out := w.ask(c.method, c.path, proxy, fields...)
		if out.Code != c.status {
			t.Errorf("%s: status %d, want %d: %s", c.name, out.Code, c.status, out.Body)
		}
		if cache := out.Header().Get("Cache-Control"); cache != "no-store" {
			t.Errorf("%s: Cache-Control is %q", c.name, cache)
		}
		if c.status == 200 {
			got := []string{out.Header().Get("X-Claviger-Subject"), out.Header().Get("X-Claviger-Client"), out.Header().Get("X-Claviger-Session"), out.Header().Get("X-Claviger-Scope")}
			if diff := cmp.Diff([]string{"ada", "shop", "s1", "orders read"}, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.name, diff)
			}
		} else if out.Header().Get("X-Claviger-Subject") != "" {
			t.Errorf("%s: a refusal names a subject", c.name)
		}
	}
	if w.seen[0] != "shop OK" || w.seen[len(w.seen)-1] != " Forbidden" {
		t.Errorf("told of %q", w.seen)
	}
}

// TestCallers checks that nobody but the application's proxy is believed.
func TestCallers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &dpop.Memory{Now: at})
	for _, c := range []struct {
		name string
		by   forward.Caller
		app  string
		want int
	}{
		{"its address", proxy, "shop", 200},
		{"its address in IPv6", forward.Caller{Address: netip.MustParseAddr("::ffff:10.0.0.9")}, "shop", 200},
		{"another address", forward.Caller{Address: netip.MustParseAddr("10.0.1.9")}, "shop", 403},
		{"its principal", forward.Caller{Principal: claviger.Principal{ID: "01", Name: "front"}}, "shop", 200},
		{"another principal", forward.Caller{Principal: claviger.Principal{ID: "02", Name: "back"}}, "shop", 403},
		{"its principal, elsewhere", forward.Caller{Principal: claviger.Principal{ID: "01", Name: "front"}}, "traefik", 403},
		{"a name without a proof", forward.Caller{Principal: claviger.Principal{Name: "front"}}, "shop", 403},
		{"nobody", forward.Caller{}, "shop", 403},
	} {
		out := w.ask("GET", "/forward-auth/"+c.app, c.by, "X-Original-Method", "GET", "X-Original-URI", "/", "Authorization", "DPoP "+w.token, "DPoP", w.proof(t, "GET", base+"/"))
		if out.Code != c.want {
			t.Errorf("%s: status %d, want %d: %s", c.name, out.Code, c.want, out.Body)
		}
	}
}

// TestAnswers are the refusals that a client can do something about.
func TestAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &dpop.Memory{Now: at})
	stranger := newWorld(t, &dpop.Memory{Now: at})
	good := w.proof(t, "GET", base+"/")
	stale, _ := w.signer.Proof(dpop.Claims{Method: "GET", URL: base + "/", Token: w.token})
	elsewhere := w.issuer.Issue(w.issuer.Claims("https://other.example.org", w.signer.Thumbprint()))
	unbound := w.issuer.Issue(w.issuer.Claims(base, ""))
	for _, c := range []struct {
		name          string
		app           string
		authorization string
		proofs        []string
		status        error
		want          int
		says          string
		nonce         bool
	}{
		{name: "nothing", want: 401, says: `DPoP algs="ES256`},
		{name: "no nonce", authorization: "DPoP " + w.token, proofs: []string{stale}, want: 401, says: `error="use_dpop_nonce"`, nonce: true},
		{name: "no scope", app: "admin", authorization: "DPoP " + w.token, proofs: []string{w.proof(t, "GET", base+"/")}, want: 403, says: `error="insufficient_scope", scope="orders admin"`},
		{name: "good", authorization: "DPoP " + w.token, proofs: []string{good}, want: 200},
		{name: "replay", authorization: "DPoP " + w.token, proofs: []string{good}, want: 401, says: "used before"},
		{name: "bearer", authorization: "Bearer " + w.token, proofs: []string{w.proof(t, "GET", base+"/")}, want: 401, says: `error="invalid_token"`},
		{name: "basic", authorization: "Basic YTpi", want: 401, says: `error="invalid_request"`},
		{name: "two proofs", authorization: "DPoP " + w.token, proofs: []string{w.proof(t, "GET", base+"/"), w.proof(t, "GET", base+"/")}, want: 401, says: "invalid_dpop_proof"},
		{name: "another key", authorization: "DPoP " + w.token, proofs: []string{stranger.proof(t, "GET", base+"/")}, want: 401, says: "invalid_dpop_proof"},
		{name: "another issuer's token", authorization: "DPoP " + stranger.token, proofs: []string{stranger.proof(t, "GET", base+"/")}, want: 401, says: "invalid_token"},
		{name: "another audience", authorization: "DPoP " + elsewhere, proofs: []string{w.proof(t, "GET", base+"/")}, want: 401, says: "invalid_token"},
		{name: "unbound", authorization: "DPoP " + unbound, proofs: []string{w.proof(t, "GET", base+"/")}, want: 401, says: "invalid_token"},
		{name: "logged out", authorization: "DPoP " + w.token, proofs: []string{w.proof(t, "GET", base+"/")}, status: claviger.Errorf(claviger.Denied, "ended", ""), want: 401, says: "invalid_token"},
		{name: "no such session", authorization: "DPoP " + w.token, proofs: []string{w.proof(t, "GET", base+"/")}, status: claviger.Errorf(claviger.NotFound, "none", ""), want: 401, says: "invalid_token"},
		{name: "not to be known", authorization: "DPoP " + w.token, proofs: []string{w.proof(t, "GET", base+"/")}, status: claviger.Errorf(claviger.Stale, "stale", ""), want: 503, says: "temporarily_unavailable"},
	} {
		w.status = c.status
		app := c.app
		if app == "" {
			app = "shop"
		}
		fields := []string{"X-Original-Method", "GET", "X-Original-URI", "/"}
		if c.authorization != "" {
			fields = append(fields, "Authorization", c.authorization)
		}
		for _, p := range c.proofs {
			fields = append(fields, "DPoP", p)
		}
		out := w.ask("GET", "/forward-auth/"+app, proxy, fields...)
		if challenge := out.Header().Get("WWW-Authenticate"); out.Code != c.want || !strings.Contains(challenge, c.says) || c.want == 200 && challenge != "" {
			t.Errorf("%s: status %d, want %d; %q", c.name, out.Code, c.want, challenge)
		}
		if got := out.Header().Get("DPoP-Nonce"); (got == w.nonce) != c.nonce {
			t.Errorf("%s: nonce %q", c.name, got)
		}
		if out.Code != 200 && out.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: may be cached", c.name)
		}
	}
}

// TestVisible is a subject that would be more than one field.
func TestVisible(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &dpop.Memory{Now: at})
	claims := w.issuer.Claims(base, w.signer.Thumbprint())
	claims["sub"] = "a%b\r\nX-Claviger-Scope: admin \u00e4"
	delete(claims, "sid")
	w.token = w.issuer.Issue(claims)
	out := w.ask("GET", "/forward-auth/envoy/", proxy, "Authorization", "DPoP "+w.token, "DPoP", w.proof(t, "GET", base+"/"))
	if got := out.Header().Get("X-Claviger-Subject"); out.Code != 200 || got != "a%25b%0D%0AX-Claviger-Scope: admin %C3%A4" || out.Header().Get("X-Claviger-Session") != "" {
		t.Errorf("status %d, %q", out.Code, got)
	}
}

func TestConfiguration(t *testing.T) {
	t.Parallel()
	anybody := []string{"front"}
	for name, app := range map[string]forward.App{
		"no name":           {Base: base, Proxy: forward.Nginx, Principals: anybody},
		"a name in a path":  {Name: "a/b", Base: base, Proxy: forward.Nginx, Principals: anybody},
		"no base":           {Name: "shop", Proxy: forward.Nginx, Principals: anybody},
		"base with a path":  {Name: "shop", Base: base + "/a", Proxy: forward.Nginx, Principals: anybody},
		"base with a user":  {Name: "shop", Base: "https://a@b", Proxy: forward.Nginx, Principals: anybody},
		"base without host": {Name: "shop", Base: "https:///", Proxy: forward.Nginx, Principals: anybody},
		"no proxy":          {Name: "shop", Base: base, Principals: anybody},
		"open to anybody":   {Name: "shop", Base: base, Proxy: forward.Nginx},
	} {
		if _, err := forward.New(forward.Parts{Verifier: &dpop.Verifier{}}, []forward.App{app}); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	app := forward.App{Name: "shop", Base: base + "/", Proxy: forward.Nginx, Principals: anybody}
	if _, err := forward.New(forward.Parts{Verifier: &dpop.Verifier{}}, []forward.App{app, app}); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("two of one name: %v", err)
	}
	if _, err := forward.New(forward.Parts{Verifier: &dpop.Verifier{}}, []forward.App{app}); err != nil {
		t.Error(err)
	}
}

// BenchmarkServe is one question: a proof by ES256 with a nonce, and a token
// that was seen before.
func BenchmarkServe(b *testing.B) {
	w := newWorld(b, forgetful{&dpop.Memory{Limit: 1 << 30, PerKey: 1 << 30, Now: at}})
	proof := w.proof(b, "GET", base+"/orders")
	b.ReportAllocs()
	for b.Loop() {
		out := w.ask("GET", "/forward-auth/shop", proxy, "X-Original-Method", "GET", "X-Original-URI", "/orders?page=1", "Authorization", "DPoP "+w.token, "DPoP", proof)
		if out.Code != 200 {
			b.Fatal(out.Code, out.Body)
		}
	}
}

// forgetful makes the work of a record, and lets one proof through again.
type forgetful struct{ *dpop.Memory }

func (f forgetful) Burn(ctx context.Context, thumbprint, _ string, until time.Time) (bool, error) {
	return f.Memory.Burn(ctx, thumbprint, rand.Text(), until)
}
