package servertest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"claviger.dev"
	"claviger.dev/client"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker"
	"claviger.dev/internal/broker/forward"
	"claviger.dev/internal/broker/status"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/server"
	"claviger.dev/internal/server/servertest"
)

const shopBase, loginURL = "https://shop.example.com", "https://login.example.com"

// shop is a server with an application behind a proxy, and a session of it
// whose key the client has.
type shop struct {
	*servertest.Server
	t       testing.TB
	client  claviger.Client
	by      claviger.Principal // of the client
	proxy   *http.Client
	signer  *dpop.Signer
	session claviger.Session
	token   string
	nonce   string
}

func newShop(t testing.TB) *shop {
	t.Helper()
	s := &shop{t: t, Server: servertest.Start(t, servertest.Options{Change: func(c *server.Config) {
		c.Broker = broker.Config{Issuer: loginURL}
		if err := c.Broker.Validate(); err != nil {
			t.Fatal(err)
		}
		c.ForwardAuth = []forward.App{{Name: "shop", Base: shopBase, Proxy: forward.Nginx, Principals: []string{"front"}}}
	}})}
	front, _ := s.Enrol(t, "front")
	s.proxy = s.Remote(t, front).HTTP
	_, p := s.Enrol(t, "shop")
	s.Allow(t, "shop", "prod/shop/web", nil, claviger.OpenSession)
	s.by = claviger.Principal{ID: claviger.ID(p.Id), Name: p.Name, Kind: claviger.Workload, Environments: p.Environments, Facts: claviger.Facts{UID: -1, GID: -1}}
	operator, err := s.Keeper.ByUID(t.Context(), claviger.Facts{UID: unix.Geteuid()})
	if err != nil {
		t.Fatal(err)
	}
	s.client, err = s.Keeper.CreateClient(t.Context(), operator, claviger.Client{Name: "prod/shop/web", Principal: s.by.ID, Kind: claviger.Public,
		Audiences: []string{shopBase}, Scopes: []string{"orders"}})
	if err != nil {
		t.Fatal(err)
	}
	s.login()
	return s
}

// login opens a session with a key of its own and gets a token of it.
func (s *shop) login() {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.signer, err = dpop.NewSigner(key, ""); err != nil {
		s.t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	s.session, err = s.Keeper.OpenSession(s.t.Context(), s.by, keeper.NewSession{Client: string(s.client.ID), Subject: claviger.Subject{Issuer: "https://people.example", ID: "ada"},
		KeyKind: claviger.BrowserKey, Public: public, Scopes: []string{"orders"}})
	if err != nil {
		s.t.Fatal(err)
	}
	now := time.Now()
	claims, err := json.Marshal(map[string]any{"iss": loginURL, "sub": "ada", "aud": shopBase, "client_id": s.client.ID, "scope": "orders", "sid": s.session.ID,
		"jti": claviger.NewID(now), "iat": now.Unix(), "exp": now.Add(4 * time.Minute).Unix(), "cnf": map[string]string{"jkt": s.session.JKT}})
	if err != nil {
		s.t.Fatal(err)
	}
	issued, err := s.Keeper.IssueToken(s.t.Context(), s.by, keeper.TokenRequest{Client: string(s.client.ID), Session: s.session.ID, Subject: s.session.Subject,
		Audiences: []string{shopBase}, Scopes: []string{"orders"}, Claims: claims})
	if err != nil {
		s.t.Fatal(err)
	}
	s.token = issued.Token
}

// ask is a question of a proxy, with a proof of its own.
func (s *shop) ask(c *http.Client) *http.Response {
	s.t.Helper()
	proof, err := s.signer.Proof(dpop.Claims{Method: "POST", URL: shopBase + "/orders", Token: s.token, Nonce: s.nonce})
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "https://"+s.Address+"/forward-auth/shop", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header = http.Header{"Authorization": {"DPoP " + s.token}, "Dpop": {proof}, "X-Original-Method": {"POST"}, "X-Original-Uri": {"/orders?page=1"}}
	resp, err := c.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp
}

// TestForwardAuth goes through the server's own door: its keys, its sessions,
// its nonces, and who the proxy is.
func TestForwardAuth(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	stranger, _ := s.Enrol(t, "other")
	for name, c := range map[string]*http.Client{"no certificate": s.Remote(t, nil).HTTP, "another's certificate": s.Remote(t, stranger).HTTP} {
		if got := s.ask(c); got.StatusCode != http.StatusForbidden {
			t.Errorf("%s: status %d", name, got.StatusCode)
		}
	}
	first := s.ask(s.proxy)
	if s.nonce = first.Header.Get("DPoP-Nonce"); first.StatusCode != http.StatusUnauthorized || s.nonce == "" {
		t.Fatalf("without a nonce: status %d, %v", first.StatusCode, first.Header)
	}
	good := s.ask(s.proxy)
	if good.StatusCode != http.StatusOK || good.Header.Get("X-Claviger-Subject") != "ada" || good.Header.Get("X-Claviger-Session") != string(s.session.ID) {
		t.Fatalf("status %d, %v", good.StatusCode, good.Header)
	}
	if err := s.Keeper.EndSession(t.Context(), s.by, s.session.ID, keeper.End{Reason: keeper.EndClosed}); err != nil {
		t.Fatal(err)
	}
	if got := s.ask(s.proxy); got.StatusCode != http.StatusUnauthorized {
		t.Errorf("right after the logout: status %d", got.StatusCode)
	}
	numbers, err := http.Get("http://" + s.Metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer numbers.Body.Close()
	text, _ := io.ReadAll(numbers.Body)
	for _, line := range []string{`claviger_forward_auth_total{application="shop",status="200"} 1`, `claviger_forward_auth_total{application="shop",status="403"} 2`} {
		if !strings.Contains(string(text), line) {
			t.Errorf("the metrics lack %s", line)
		}
	}
}

// TestTokenStatus asks as a resource server does.
func TestTokenStatus(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	c, err := client.New(client.Config{Address: "unix://" + s.Socket})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	st := &client.Status{Client: c, Now: func() time.Time { return now }}
	access := dpop.Access{Claims: &dpop.Token{ID: "jti-1", Session: string(s.session.ID), Ends: now.Add(time.Minute)}}
	if err := st.Check(t.Context(), access); err != nil {
		t.Fatal(err)
	}
	if err := st.Check(t.Context(), dpop.Access{Claims: &dpop.Token{ID: "jti-1", Session: string(claviger.NewID(now)), Ends: now}}); err == nil || dpop.CodeOf(err) != "" {
		t.Errorf("a session that there is not: %v", err)
	}
	if err := s.Keeper.EndSession(t.Context(), s.by, s.session.ID, keeper.End{Reason: keeper.EndClosed}); err != nil {
		t.Fatal(err)
	}
	now = now.Add(client.StatusAge)
	if err := st.Check(t.Context(), access); err == nil || dpop.CodeOf(err) != "" {
		t.Errorf("after the logout: %v", err)
	}
	resp, err := s.Remote(t, nil).HTTP.Post("https://"+s.Address+status.Path, "application/json", strings.NewReader(`{"tokens":[{"jti":"a"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a stranger: status %d", resp.StatusCode)
	}
}

// TestReportedUses tells the rules against abuse what a resource server saw, and
// the proxy in front of an application.
func TestReportedUses(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	report := func(c *http.Client) (a status.Answer) {
		t.Helper()
		resp, err := c.Post("https://"+s.Address+status.Path, "application/json", strings.NewReader(
			`{"tokens":[{"jti":"a","sid":"`+string(s.session.ID)+`"}],"uses":[{"sid":"`+string(s.session.ID)+`","aud":"`+shopBase+`","method":"GET","count":50,"stale":true}]}`))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	other, _ := s.Enrol(t, "other")
	if a := report(s.Remote(t, other).HTTP); a.Taken != 0 || !a.Live[0] || len(s.Keeper.SessionEvents()) > 0 {
		t.Errorf("without a grant: %+v, %v", a, s.Keeper.SessionEvents())
	}
	api, _ := s.Enrol(t, "api")
	s.Allow(t, "api", "prod/shop/*", nil, claviger.ReportUses)
	if a := report(s.Remote(t, api).HTTP); a.Taken != 1 || s.Keeper.SessionEvents()["stale-nonce"] != 1 {
		t.Errorf("with a grant: %+v, %v", a, s.Keeper.SessionEvents())
	}
	s.nonce = "of-another-time-of-another"
	s.ask(s.proxy)
	if got := s.Keeper.SessionEvents(); got["foreign-audience"]+got["foreign-method"] > 0 {
		t.Errorf("a request for the application itself is an event: %v", got)
	}
}

// BenchmarkForwardAuth asks over TLS, 64 at once, with a proof each: "cpu-us/op"
// is what the server and this client take of all cores, of which the client's
// share is a signature by ES256 and its half of the connection.
func BenchmarkForwardAuth(b *testing.B) {
	s := newShop(b)
	s.nonce = s.ask(s.proxy).Header.Get("DPoP-Nonce")
	var mu sync.Mutex
	took := make([]time.Duration, 0, b.N)
	work := make(chan struct{})
	var wg sync.WaitGroup
	before := cpuTime(b)
	b.ResetTimer()
	for range 64 {
		wg.Go(func() {
			for range work {
				begin := time.Now()
				if got := s.ask(s.proxy); got.StatusCode != http.StatusOK {
					b.Error(got.StatusCode)
				}
				mu.Lock()
				took = append(took, time.Since(begin))
				mu.Unlock()
			}
		})
	}
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
}

func cpuTime(tb testing.TB) time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
