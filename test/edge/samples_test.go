package edge_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"claviger.dev"

	"claviger.dev/dpop/dpoptest"
	"claviger.dev/internal/broker/status"
)

const apiBase = "https://api.example.com"

// sessions are what the status check knows.
type sessions struct{ ended, dark atomic.Bool }

func (s *sessions) SessionLive(_ context.Context, id claviger.ID) (claviger.Session, error) {
	switch {
	case s.dark.Load():
		return claviger.Session{}, claviger.Errorf(claviger.Stale, "stale", "")
	case s.ended.Load():
		return claviger.Session{}, claviger.Errorf(claviger.Denied, "ended", "")
	}
	return claviger.Session{ID: id}, nil
}

func (s *sessions) ClientLive(context.Context, string) (claviger.Client, error) {
	return claviger.Client{}, nil
}

func (s *sessions) TokenRevoked(context.Context, string) (bool, error) { return false, nil }

// api is a sample that runs, with the parties around it.
type api struct {
	*sessions
	issuer  *dpoptest.Issuer
	client  *dpoptest.Issuer // a key that signs proofs of any form
	token   string
	address string
	nonce   string
}

// startSample runs a program that says where it listens, and ends it with the test.
func startSample(t *testing.T, dir, name string, args ...string) *api {
	t.Helper()
	a := &api{sessions: &sessions{}, issuer: dpoptest.New(t, issuerID, time.Now), client: dpoptest.New(t, "", time.Now)}
	a.token = a.issuer.Issue(a.issuer.Claims(apiBase, a.client.Kid))
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		set, _ := a.issuer.Keys(r.Context())
		_, _ = w.Write(set)
	}))
	t.Cleanup(keys.Close)
	socket := filepath.Join(t.TempDir(), "claviger.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(status.Path, &status.Handler{Door: a.sessions})
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	cmd := exec.CommandContext(t.Context(), name, append(args, "--base", apiBase, "--issuer", issuerID, "--keys", keys.URL)...)
	cmd.Args = append(cmd.Args, "--claviger", map[bool]string{true: "unix://"}[name != "node"]+socket)
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 5 * time.Second
	said := &buffer{}
	cmd.Stderr = said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT) // it may have ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, said)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%s did not start: %v\n%s", name, err, said)
	}
	a.address = strings.TrimSpace(strings.TrimPrefix(line, "listening on "))
	resp, _ := a.send(t, "GET", "/orders", a.good("GET", "/orders"))
	if a.nonce = resp.Header.Get("DPoP-Nonce"); resp.StatusCode != 401 || a.nonce == "" {
		t.Fatalf("without a nonce: status %d, %v", resp.StatusCode, resp.Header)
	}
	return a
}

// good are the fields of a request that passes.
func (a *api) good(method, path string) http.Header {
	return a.with(a.client.Sign(a.header(), a.claims(method, apiBase+path)))
}

func (a *api) with(proofs ...string) http.Header {
	return http.Header{"Authorization": {"DPoP " + a.token}, "Dpop": proofs}
}

func (a *api) header() map[string]any {
	return map[string]any{"typ": "dpop+jwt", "alg": "ES256", "jwk": a.jwk(a.client)}
}

// jwk has the members that a proof needs, and no others.
func (a *api) jwk(key *dpoptest.Issuer) map[string]any {
	var all map[string]any
	_ = json.Unmarshal([]byte(key.JWK), &all) // the library's own
	return map[string]any{"kty": all["kty"], "crv": all["crv"], "x": all["x"], "y": all["y"]}
}

var lastProof atomic.Int64

func (a *api) claims(method, target string) map[string]any {
	return map[string]any{"jti": time.Now().Format(time.RFC3339Nano) + string(rune('a'+lastProof.Add(1)%26)), "htm": method, "htu": target, "iat": time.Now().Unix(),
		"ath": athOf(a.token), "nonce": a.nonce}
}

func (a *api) send(t *testing.T, method, path string, h http.Header) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+a.address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = h
	resp, err := http.DefaultTransport.RoundTrip(r)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return &http.Response{StatusCode: http.StatusRequestHeaderFieldsTooLarge}, "it hung up" // which Node does on a long header
	}
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil && resp.StatusCode < 400 {
		t.Fatal(err)
	}
	return resp, string(body)
}

// sent is a request, and whether it is to pass.
type sent struct {
	name   string
	header http.Header
	passes bool
	path   string // "" for /orders
	method string // "" for GET
}

// changed is a copy with one member set, or left out for nil.
func changed(m map[string]any, name string, value any) map[string]any {
	m = maps.Clone(m)
	if m[name] = value; value == nil {
		delete(m, name)
	}
	return m
}

// attack sends what must not pass, and what must.
func (a *api) attack(t *testing.T) {
	t.Helper()
	for _, c := range append(a.proofs(t), a.credentials(t)...) {
		path, method := c.path, c.method
		if path == "" {
			path = "/orders"
		}
		if method == "" {
			method = "GET"
		}
		resp, body := a.send(t, method, path, c.header)
		if (resp.StatusCode == 200) != c.passes || !c.passes && (resp.StatusCode < 400 || resp.StatusCode >= 500) {
			t.Errorf("%s: status %d, %s", c.name, resp.StatusCode, body)
		}
		if c.passes && !strings.Contains(body, `"sub":"ada"`) {
			t.Errorf("%s: the application says %s", c.name, body)
		}
	}
}

// proofs are requests with a good token.
func (a *api) proofs(t *testing.T) []sent {
	sign := func(header, claims any) http.Header { return a.with(a.client.Sign(header, claims)) }
	claim := func(name string, value any) http.Header {
		return sign(a.header(), changed(a.claims("GET", apiBase+"/orders"), name, value))
	}
	head := func(name string, value any) http.Header {
		return sign(changed(a.header(), name, value), a.claims("GET", apiBase+"/orders"))
	}
	other := dpoptest.New(t, issuerID, time.Now)
	used := a.good("GET", "/orders")
	good := a.good("GET", "/orders").Get("Dpop")
	private := a.jwk(a.client)
	private["d"] = strings.Repeat("A", 43)
	doc, err := json.Marshal(a.claims("GET", apiBase+"/orders"))
	if err != nil {
		t.Fatal(err)
	}
	return []sent{
		{name: "good", header: used, passes: true},
		{name: "reuse", header: used},
		{name: "query", header: claim("htu", apiBase+"/orders?a=1#b"), path: "/orders?page=2", passes: true},
		{name: "upper-case host and default port", header: claim("htu", "HTTPS://API.example.com:443/orders"), passes: true},
		{name: "escaped letter", header: claim("htu", apiBase+"/%6frders"), passes: true},
		{name: "ten seconds off", header: claim("iat", time.Now().Add(-30*time.Second).Unix()), passes: true},
		{name: "nothing", header: http.Header{}},
		{name: "no proof", header: a.with()},
		{name: "two proofs", header: a.with(good, a.good("GET", "/orders").Get("Dpop"))},
		{name: "two proofs in one field", header: a.with(good + ", " + a.good("GET", "/orders").Get("Dpop"))},
		{name: "not a JWT", header: a.with("a.b.c")},
		{name: "four parts", header: a.with(good + ".a")},
		{name: "no jti", header: claim("jti", nil)},
		{name: "no htm", header: claim("htm", nil)},
		{name: "no htu", header: claim("htu", nil)},
		{name: "no iat", header: claim("iat", nil)},
		{name: "no ath", header: claim("ath", nil)},
		{name: "no nonce", header: claim("nonce", nil)},
		{name: "another's nonce", header: claim("nonce", strings.Repeat("A", 22))},
		{name: "no typ", header: head("typ", nil)},
		{name: "wrong typ", header: head("typ", "JWT")},
		{name: "no alg", header: head("alg", nil)},
		{name: "none", header: head("alg", "none")},
		{name: "a MAC", header: head("alg", "HS256")},
		{name: "another algorithm", header: head("alg", "RS256")},
		{name: "no jwk", header: head("jwk", nil)},
		{name: "a private jwk", header: head("jwk", private)},
		{name: "another's jwk", header: head("jwk", a.jwk(other))},
		{name: "bad signature", header: a.with(good[:len(good)-8] + "AAAAAAAA")},
		{name: "no signature", header: a.with(good[:strings.LastIndex(good, ".")+1])},
		{name: "another key", header: a.with(other.Sign(changed(a.header(), "jwk", a.jwk(other)), a.claims("GET", apiBase+"/orders")))},
		{name: "wrong htm", header: claim("htm", "POST")},
		{name: "lower-case htm", header: claim("htm", "get")},
		{name: "another method", header: a.good("GET", "/orders"), method: "DELETE"},
		{name: "wrong htu", header: claim("htu", apiBase+"/orders/1")},
		{name: "the inner address", header: claim("htu", "http://"+a.address+"/orders")},
		{name: "another host", header: claim("htu", "https://evil.example/orders")},
		{name: "an hour ago", header: claim("iat", time.Now().Add(-time.Hour).Unix())},
		{name: "in an hour", header: claim("iat", time.Now().Add(time.Hour).Unix())},
		{name: "iat in words", header: claim("iat", "now")},
		{name: "ath of another token", header: claim("ath", athOf("other"))},
		{name: "a jti of 300 bytes", header: claim("jti", strings.Repeat("j", 300))},
		{name: "a jti of 1 MB", header: claim("jti", strings.Repeat("j", 1<<20))},
		{name: "a member twice", header: sign(a.header(), `{"htm":"POST",`+string(doc[1:]))},
	}
}

// credentials are requests with a good proof.
func (a *api) credentials(t *testing.T) []sent {
	other := dpoptest.New(t, issuerID, time.Now)
	good := a.good("GET", "/orders").Get("Dpop")
	tokenOf := func(token string) http.Header {
		c := changed(a.claims("GET", apiBase+"/orders"), "ath", athOf(token))
		return http.Header{"Authorization": {"DPoP " + token}, "Dpop": {a.client.Sign(a.header(), c)}}
	}
	tokenClaim := func(name string, value any) http.Header {
		return tokenOf(a.issuer.Issue(changed(a.issuer.Claims(apiBase, a.client.Kid), name, value)))
	}
	return []sent{
		{name: "bearer", header: http.Header{"Authorization": {"Bearer " + a.token}}},
		{name: "bearer with a proof", header: http.Header{"Authorization": {"Bearer " + a.token}, "Dpop": {good}}},
		{name: "two credentials", header: http.Header{"Authorization": {"DPoP " + a.token, "Bearer " + a.token}, "Dpop": {good}}},
		{name: "token of another issuer's key", header: tokenOf(other.Sign(map[string]any{"typ": "at+jwt", "alg": "ES256", "kid": a.issuer.Kid}, a.issuer.Claims(apiBase, a.client.Kid)))},
		{name: "token without algorithm", header: tokenOf(a.issuer.Sign(map[string]any{"typ": "at+jwt", "alg": "none", "kid": a.issuer.Kid}, a.issuer.Claims(apiBase, a.client.Kid)))},
		{name: "an ID token", header: tokenOf(a.issuer.Sign(map[string]any{"typ": "JWT", "alg": "ES256", "kid": a.issuer.Kid}, a.issuer.Claims(apiBase, a.client.Kid)))},
		{name: "token of another issuer", header: tokenClaim("iss", "https://evil.example")},
		{name: "token for another audience", header: tokenClaim("aud", "https://other.example.com")},
		{name: "token that ended", header: tokenClaim("exp", time.Now().Add(-time.Minute).Unix())},
		{name: "token without end", header: tokenClaim("exp", nil)},
		{name: "unbound token", header: tokenClaim("cnf", nil)},
		{name: "token of another's key", header: tokenClaim("cnf", map[string]any{"jkt": other.Kid})},
		{name: "good to the end", header: a.with(good), passes: true},
	}
}

// logout checks that a session that has ended does not pass a second later, and
// that nobody passes while that cannot be known.
func (a *api) logout(t *testing.T) {
	t.Helper()
	status := func() int {
		resp, _ := a.send(t, "GET", "/orders", a.good("GET", "/orders"))
		return resp.StatusCode
	}
	if got := status(); got != 200 {
		t.Errorf("before: status %d", got)
	}
	a.ended.Store(true)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now(); ; <-tick.C {
		if got := status(); got == 401 {
			t.Logf("refused %s after the logout", time.Since(end).Round(time.Millisecond))
			break
		}
		if time.Since(end) > 2*time.Second {
			t.Fatal("the session still passes two seconds after its end")
		}
	}
	a.ended.Store(false)
	a.dark.Store(true)
	a.token = a.issuer.Issue(a.issuer.Claims(apiBase, a.client.Kid))
	if got := status(); got != 503 {
		t.Errorf("while nothing is known: status %d", got)
	}
}

func athOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func TestGoResource(t *testing.T) {
	program := filepath.Join(t.TempDir(), "go-resource")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../samples/go-resource").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	a := startSample(t, ".", program, "--listen", "127.0.0.1:0")
	resp, body := a.send(t, "GET", "/.well-known/oauth-protected-resource", http.Header{})
	var said struct {
		Resource string
		Issuers  []string `json:"authorization_servers"`
		Required bool     `json:"dpop_bound_access_tokens_required"`
	}
	if err := json.Unmarshal([]byte(body), &said); err != nil || resp.StatusCode != 200 || said.Resource != apiBase || !slices.Equal(said.Issuers, []string{issuerID}) || !said.Required {
		t.Errorf("metadata: status %d, %s", resp.StatusCode, body)
	}
	if resp, _ = a.send(t, "GET", "/orders", http.Header{}); !strings.Contains(resp.Header.Get("WWW-Authenticate"), `resource_metadata="`+apiBase+`/.well-known/oauth-protected-resource"`) {
		t.Errorf("challenge %q does not tell the metadata", resp.Header.Get("WWW-Authenticate"))
	}
	a.attack(t)
	a.logout(t)
}

func TestNodeResource(t *testing.T) {
	a := startSample(t, "../../samples/node-resource", "node", "server.mjs", "--listen", "0")
	a.attack(t)
	a.logout(t)
}
