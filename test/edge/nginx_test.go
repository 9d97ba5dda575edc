package edge_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/dpop/dpoptest"
	"claviger.dev/internal/broker/forward"
)

const issuerID = "https://login.example.com"

// shop is an application that says what reached it, and how often.
type shop struct {
	*httptest.Server
	came atomic.Int64
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.came.Add(1)
		body, _ := io.ReadAll(r.Body)
		_ = json.NewEncoder(w).Encode(map[string]any{"method": r.Method, "uri": r.RequestURI, "body": string(body), "header": r.Header})
	}))
	t.Cleanup(s.Close)
	return s
}

// freePort is a port of loopback that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// guideBlock is the configuration that the guide shows.
func guideBlock(t *testing.T, file, language string) string {
	t.Helper()
	guide, err := os.ReadFile(filepath.Join("../../docs/guide", file))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(guide), "```"+language+"\n")
	block, _, ok := strings.Cut(rest, "```\n")
	if !ok {
		t.Fatalf("the guide %s shows no configuration in %s", file, language)
	}
	return block
}

// replace changes what a test has elsewhere than the guide; each has to be there.
func replace(t *testing.T, s string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(s, pairs[i]) {
			t.Fatalf("the guide does not say %q", pairs[i])
		}
		s = strings.ReplaceAll(s, pairs[i], pairs[i+1])
	}
	return s
}

// startNginx runs nginx as the guide configures it, as a user without rights,
// until the test ends. It returns the address that clients reach.
func startNginx(t *testing.T, claviger, application string) string {
	t.Helper()
	listen := freePort(t)
	prefix, err := os.MkdirTemp("", "nginx") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(prefix) })
	site := replace(t, guideBlock(t, "nginx.md", "nginx"),
		"unix:/run/claviger/claviger.sock;", claviger+";", "listen 443 ssl;", "listen "+listen+";",
		"    ssl_certificate     /etc/nginx/shop.pem;\n    ssl_certificate_key /etc/nginx/shop.key;\n", "",
		"http://application;", application+";")
	var temp strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "%s_temp_path %s/%s;\n", kind, prefix, kind)
	}
	conf := "daemon off;\nworker_processes 2;\npid " + prefix + "/pid;\nerror_log stderr warn;\nevents { worker_connections 512; }\nhttp {\naccess_log off;\n" +
		temp.String() + site + "}\n"
	file := filepath.Join(prefix, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/usr/sbin/nginx", "-p", prefix, "-c", file)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if os.Geteuid() == 0 {
		const nobody = 65534
		if err := os.Chown(prefix, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	said := &buffer{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatalf("start nginx: %v (run make setup)", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-ended
		if t.Failed() {
			t.Logf("nginx: %s", said)
		}
	})
	waitFor(t, listen, said)
	return listen
}

// waitFor returns when an address takes connections.
func waitFor(t *testing.T, address string, said fmt.Stringer) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		<-tick.C
	}
	t.Fatalf("nothing listens on %s:\n%s", address, said)
}

// buffer is a strings.Builder that two may use.
type buffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// front is nginx with the endpoint behind it, an application and a client.
type front struct {
	issuer *dpoptest.Issuer
	signer *dpop.Signer
	shop   *shop
	token  string
	nonces *dpop.Nonces
	ended  atomic.Bool // the session
	dark   atomic.Bool // whether it lives cannot be known
	asked  atomic.Int64
	base   string // https://shop.example.com, as clients know it
	addr   string // of nginx
}

func newFront(t *testing.T) *front {
	t.Helper()
	f := &front{issuer: dpoptest.New(t, issuerID, time.Now), signer: dpoptest.Signer(t), shop: newShop(t), base: "https://shop.example.com",
		nonces: &dpop.Nonces{MAC: dpop.NonceKey([]byte(rand.Text() + rand.Text()))}}
	f.token = f.issuer.Issue(f.issuer.Claims(f.base, f.signer.Thumbprint()))
	endpoints, err := forward.New(forward.Parts{Issuer: issuerID, Keys: f.issuer.Keys, Verifier: &dpop.Verifier{Nonces: f.nonces, Replays: &dpop.Memory{}},
		Status: func(context.Context, forward.Request) error {
			switch {
			case f.dark.Load():
				return claviger.Errorf(claviger.Stale, "stale", "")
			case f.ended.Load():
				return claviger.Errorf(claviger.Denied, "ended", "")
			}
			return nil
		}}, []forward.App{{Name: "shop", Base: f.base, Proxy: forward.Nginx, Principals: []string{"front"}}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.asked.Add(1)
		if r.ContentLength != 0 {
			t.Error("nginx sent a body")
		}
		endpoints.Serve(w, r, forward.Caller{Principal: claviger.Principal{ID: "01", Name: "front"}})
	}))
	t.Cleanup(server.Close)
	f.addr = startNginx(t, strings.TrimPrefix(server.URL, "http://"), f.shop.URL)
	return f
}

// request is one of a client's, sent as it stands.
type request struct {
	method, path string
	header       http.Header
	body         string
}

func (f *front) send(t *testing.T, r request) (*http.Response, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), r.method, "http://"+f.addr+r.path, strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "shop.example.com"
	req.Header = r.header
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var seen map[string]any
	if resp.StatusCode == 200 && json.Unmarshal(body, &seen) != nil {
		t.Fatalf("the application says %q", body)
	}
	return resp, seen
}

func (f *front) proof(t *testing.T, method, target string) string {
	t.Helper()
	nonce, err := f.nonces.Current(t.Context(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	proof, err := f.signer.Proof(dpop.Claims{Method: method, URL: target, Token: f.token, Nonce: nonce})
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

// TestNginx attacks an application behind nginx, configured as the guide says.
func TestNginx(t *testing.T) {
	f := newFront(t)
	good := func(method, target string, more ...string) http.Header {
		h := http.Header{"Authorization": {"DPoP " + f.token}, "Dpop": {f.proof(t, method, target)}}
		for i := 0; i < len(more); i += 2 {
			h[more[i]] = append(h[more[i]], more[i+1]) // as it is written here
		}
		return h
	}
	replayed := good("GET", f.base+"/orders")
	noNonce, err := f.signer.Proof(dpop.Claims{Method: "GET", URL: f.base + "/orders", Token: f.token})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		request
		want int
		says string // of the challenge
	}{
		{"good", request{"GET", "/orders", replayed, ""}, 200, ""},
		{"replay", request{"GET", "/orders", replayed, ""}, 401, "used before"},
		{"with a body", request{"POST", "/orders", good("POST", f.base+"/orders"), "an order"}, 200, ""},
		{"with a query", request{"GET", "/orders?page=1", good("GET", f.base+"/orders"), ""}, 200, ""},
		{"query in the proof", request{"GET", "/orders?page=1", good("GET", f.base+"/orders?page=2#top"), ""}, 200, ""},
		{"upper-case host and default port", request{"GET", "/orders", good("GET", "HTTPS://SHOP.example.com:443/orders"), ""}, 200, ""},
		{"escapes", request{"GET", "/a%2Fb/%7Eada", good("GET", f.base+"/a%2fb/~ada"), ""}, 200, ""},
		{"other method", request{"PUT", "/orders", good("GET", f.base+"/orders"), ""}, 401, "htm"},
		{"the method of the question", request{"POST", "/orders", good("GET", f.base+"/orders"), "x"}, 401, "htm"},
		{"other path", request{"GET", "/orders/1", good("GET", f.base+"/orders"), ""}, 401, "htu"},
		{"the URL of the question", request{"GET", "/orders", good("GET", "http://claviger/forward-auth/shop"), ""}, 401, "htu"},
		{"the proxy's own address", request{"GET", "/orders", good("GET", "http://"+f.addr+"/orders"), ""}, 401, "htu"},
		{"the question from outside", request{"GET", "/claviger-check", good("GET", f.base+"/claviger-check"), ""}, 404, ""},
		{"spoofed original", request{"GET", "/admin", good("GET", f.base+"/orders", "X-Original-Uri", "/orders", "X-Original-URI", "/orders", "X_Original_URI", "/orders"), ""}, 401, "htu"},
		{"spoofed method", request{"DELETE", "/orders", good("GET", f.base+"/orders", "X-Original-Method", "GET", "X-Http-Method-Override", "GET"), ""}, 401, "htm"},
		{"spoofed forwarding", request{"GET", "/orders", good("GET", "https://evil.example/orders", "X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "https",
			"X-Forwarded-Uri", "/orders", "Forwarded", "host=evil.example"), ""}, 401, "htu"},
		{"nothing", request{"GET", "/orders", http.Header{}, ""}, 401, `DPoP algs="ES256`},
		{"no proof", request{"GET", "/orders", http.Header{"Authorization": {"DPoP " + f.token}}, ""}, 401, "invalid_dpop_proof"},
		{"two proofs", request{"GET", "/orders", good("GET", f.base+"/orders", "Dpop", f.proof(t, "GET", f.base+"/orders")), ""}, 401, "invalid_dpop_proof"},
		{"bearer", request{"GET", "/orders", http.Header{"Authorization": {"Bearer " + f.token}}, ""}, 401, "invalid_token"},
		{"bearer with a proof", request{"GET", "/orders", http.Header{"Authorization": {"Bearer " + f.token}, "Dpop": {f.proof(t, "GET", f.base+"/orders")}}, ""}, 401, "invalid_token"},
		{"no nonce", request{"GET", "/orders", http.Header{"Authorization": {"DPoP " + f.token}, "Dpop": {noNonce}}, ""}, 401, "use_dpop_nonce"},
	} {
		before := f.shop.came.Load()
		resp, seen := f.send(t, c.request)
		challenge := resp.Header.Get("WWW-Authenticate")
		if resp.StatusCode != c.want || !strings.Contains(challenge, c.says) {
			t.Errorf("%s: status %d, want %d; challenge %q", c.name, resp.StatusCode, c.want, challenge)
		}
		if passed := f.shop.came.Load() - before; (passed == 1) != (c.want == 200) {
			t.Errorf("%s: %d requests reached the application", c.name, passed)
		}
		if c.want == 200 && (seen["method"] != c.method || seen["uri"] != c.path || seen["body"] != c.body) {
			t.Errorf("%s: the application got %v", c.name, seen)
		}
		if nonce, _ := f.nonces.Current(t.Context(), time.Now()); c.name == "no nonce" && resp.Header.Get("DPoP-Nonce") != nonce {
			t.Errorf("the nonce did not come through nginx: %v", resp.Header)
		}
	}
}

// TestNginxIdentity checks what the application is told, and that a client
// cannot say it.
func TestNginxIdentity(t *testing.T) {
	f := newFront(t)
	claims := f.issuer.Claims(f.base, f.signer.Thumbprint())
	delete(claims, "sid")
	f.token = f.issuer.Issue(claims)
	h := http.Header{"Authorization": {"DPoP " + f.token}, "Dpop": {f.proof(t, "GET", f.base+"/")},
		"X-Claviger-Subject": {"root", "root"}, "X-Claviger-Session": {"s9"}, "x-claviger-scope": {"admin"}, "X_Claviger_Subject": {"root"}, "X-Claviger_Session": {"s9"}}
	resp, seen := f.send(t, request{"GET", "/", h, ""})
	if resp.StatusCode != 200 {
		t.Fatal(resp.StatusCode)
	}
	got := seen["header"].(map[string]any)
	for name, want := range map[string]any{"X-Claviger-Subject": []any{"ada"}, "X-Claviger-Client": []any{"shop"}, "X-Claviger-Scope": []any{"orders read"},
		"X-Claviger-Session": nil, "Authorization": nil, "Dpop": nil, "X_claviger_subject": nil, "X-Claviger_session": nil} {
		if fmt.Sprint(got[name]) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", name, got[name], want)
		}
	}
}

// TestNginxLogout checks that a session that has ended is refused at the next
// request, and that nobody passes while that cannot be known.
func TestNginxLogout(t *testing.T) {
	f := newFront(t)
	try := func(want int) {
		t.Helper()
		h := http.Header{"Authorization": {"DPoP " + f.token}, "Dpop": {f.proof(t, "GET", f.base+"/")}}
		if resp, _ := f.send(t, request{"GET", "/", h, ""}); resp.StatusCode != want {
			t.Errorf("status %d, want %d", resp.StatusCode, want)
		}
	}
	try(200)
	f.dark.Store(true)
	try(500) // nginx makes it of 503
	f.dark.Store(false)
	try(200)
	f.ended.Store(true)
	try(401)
	if f.shop.came.Load() != 2 {
		t.Errorf("%d requests reached the application", f.shop.came.Load())
	}
}

// TestNginxMany has 64 clients ask at once, each with the round tripper of the
// library, and counts how long the answers take through nginx, which is more
// than the check alone.
func TestNginxMany(t *testing.T) {
	f := newFront(t)
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	base := &http.Transport{MaxIdleConnsPerHost: 64, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", f.addr)
	}}
	defer base.CloseIdleConnections()
	for range 64 {
		signer := dpoptest.Signer(t)
		token := f.issuer.Issue(f.issuer.Claims(f.base, signer.Thumbprint()))
		client := &http.Client{Transport: &dpop.Transport{Signer: signer, Origins: []string{f.base}, Base: plain{base},
			Token: func(context.Context) (string, error) { return token, nil }}}
		wg.Go(func() {
			for range 8 {
				begin := time.Now()
				resp, err := client.Get(f.base + "/orders")
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Errorf("status %d", resp.StatusCode)
				}
				mu.Lock()
				took = append(took, time.Since(begin))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(took) != 64*8 {
		t.Fatal(errors.New("some requests failed"))
	}
	slices.Sort(took)
	t.Logf("64 at once, through nginx, with the client's own signatures: median %s, p99 %s", took[len(took)/2], took[len(took)*99/100])
}

// plain sends over HTTP what is said to be for HTTPS: the test has no
// certificate for the application's name.
type plain struct{ next http.RoundTripper }

func (p plain) RoundTrip(r *http.Request) (*http.Response, error) {
	r.URL.Scheme = "http"
	return p.next.RoundTrip(r)
}
