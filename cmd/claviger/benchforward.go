package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/dpop"
)

// The parties of the load: who issues tokens, and the application behind the
// proxy, which the benchmark's workload is.
const (
	benchIssuer  = "https://login.bench.example"
	benchApp     = "https://app.bench.example"
	frontsTables = "\n[broker]\nissuer = \"" + benchIssuer + "\"\n\n[[forward_auth]]\nname = \"bench\"\nbase = \"" + benchApp +
		"\"\nproxy = \"nginx\"\nprincipals = [\"bench\"]\n"
)

// frontRate is the pace of the open loop where --rate does not say another,
// requests a second, and checks is how many proofs a resource server checks.
const (
	frontRate = 500
	checks    = 20_000
)

// front is a client with a token that is bound to its key, and the ways to who
// looks at it.
type front struct {
	address string // https://host:port of the server
	http    *http.Client
	signer  *dpop.Signer
	token   string
	nonce   string
}

// benchForward measures what a proxy asks of each request, through the server,
// and what the middleware of a resource server takes beside it.
func (a *app) benchForward(ctx context.Context, s *suite) error {
	return a.onRig(ctx, frontsTables, func(ctx context.Context, r *rig) error {
		f, err := r.front(ctx)
		if err != nil {
			return err
		}
		b := s.b
		b.batch = 1
		if b.concurrency < 1 {
			return usagef("--concurrency is at least 1")
		}
		s.line("## Each request of an application, %d at once\n", b.concurrency)
		s.line("Every request has a proof of its own by ES256, with a nonce, and a token by ES256 without a session, whose revocation is")
		s.line("looked up. Forward-auth is asked over TLS, as by a proxy; making the proofs, and the other end of the connections, is")
		s.line("on the same cores. The resource server is a handler in this process, and asks the server for the status once a second;")
		s.line("its proofs were made before.\n")
		s.line("| what | arrivals/s | requests/s | p50 µs | p99 µs | failed |")
		s.line("| --- | --- | --- | --- | --- | --- |")
		open := b
		if b.rate = 0; open.rate == 0 {
			open.rate = frontRate
		}
		for _, b := range []benchFlags{b, open} {
			a.say("bench: forward-auth, rate %.0f", b.rate)
			m, err := r.account(ctx, b, func(ctx context.Context, duration time.Duration) outcome {
				return load{concurrency: b.concurrency, rate: b.rate, duration: duration, call: f.pass}.run(ctx)
			})
			if err != nil {
				return err
			}
			arrivals := "as many as go"
			if b.rate > 0 {
				arrivals = fmt.Sprintf("%.0f", b.rate)
			}
			s.row("forward-auth", arrivals, m.outcome)
		}
		a.say("bench: a resource server, %d requests", checks)
		out, err := f.resource(ctx, r.tls, b.concurrency)
		if err != nil {
			return err
		}
		s.row("resource server", "as many as go", out)
		s.line("")
		return nil
	})
}

func (s *suite) row(what, arrivals string, o outcome) {
	s.line("| %s | %s | %.0f | %s | %s | %d |", what, arrivals, o.perSecond(), micros(o.quantile(.5)), micros(o.quantile(.99)), o.failures)
}

// front registers the workload as a client, and gets it a token.
func (r *rig) front(ctx context.Context) (*front, error) {
	p, err := client.LoadProfile(filepath.Join(r.dir, "workload"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, root := range p.Roots {
		roots.AddCert(root)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{p.Certificate}, RootCAs: roots}, MaxIdleConnsPerHost: 1024}
	f := &front{address: p.Address, http: &http.Client{Transport: transport, Timeout: 10 * time.Second}}
	_, err = r.socket.CreateClient(ctx, &pb.CreateClientRequest{Client: &pb.Client{Name: "dev/bench/front", Principal: "bench", Kind: string(claviger.Confidential),
		Audiences: []string{benchApp}, GrantTypes: []string{"client_credentials"}}})
	if err != nil {
		return nil, err
	}
	_, err = r.socket.CreateGrant(ctx, &pb.CreateGrantRequest{Principal: "bench", Selector: "dev/bench/front", Operations: []string{string(claviger.OpenSession)}})
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if f.signer, err = dpop.NewSigner(key, ""); err != nil {
		return nil, err
	}
	if err := f.get(ctx); err != nil {
		return nil, err
	}
	resp, err := f.ask(ctx)
	if err != nil {
		return nil, err
	}
	if f.nonce = resp.Header.Get("DPoP-Nonce"); f.nonce == "" {
		return nil, fmt.Errorf("forward-auth gave no nonce: %s", resp.Status)
	}
	return f, f.pass(ctx, 0)
}

// get gets a token of the token endpoint, which knows itself by the issuer's
// name and not by where it is here: the proof says the name.
func (f *front) get(ctx context.Context) error {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"dev/bench/front"}, "resource": {benchApp}}.Encode()
	for range 2 { // the first one gets the nonce
		proof, err := f.signer.Proof(dpop.Claims{Method: http.MethodPost, URL: benchIssuer + "/oauth/token", Nonce: f.nonce})
		if err != nil {
			return err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.address+"/oauth/token", strings.NewReader(form))
		if err != nil {
			return err
		}
		r.Header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Dpop": {proof}}
		resp, err := f.http.Do(r)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		resp.Body.Close()
		if err != nil {
			return err
		}
		var got struct {
			Token string `json:"access_token"`
			Error string
		}
		if err := json.Unmarshal(text, &got); err != nil {
			return err
		}
		if f.token = got.Token; f.token != "" {
			return nil
		}
		if f.nonce = resp.Header.Get("DPoP-Nonce"); got.Error != dpop.UseNonce {
			return fmt.Errorf("get a token: %s: %.500s", resp.Status, text)
		}
	}
	return fmt.Errorf("get a token: the nonce that came is refused")
}

// ask asks as a proxy does, for a request with a proof of its own.
func (f *front) ask(ctx context.Context) (*http.Response, error) {
	proof, err := f.proof()
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.address+"/forward-auth/bench", nil)
	if err != nil {
		return nil, err
	}
	r.Header = http.Header{"Authorization": {"DPoP " + f.token}, "Dpop": {proof}, "X-Original-Method": {"GET"}, "X-Original-Uri": {"/orders"}}
	resp, err := f.http.Do(r)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	resp.Body.Close()
	return resp, err
}

func (f *front) proof() (string, error) {
	return f.signer.Proof(dpop.Claims{Method: http.MethodGet, URL: benchApp + "/orders", Token: f.token, Nonce: f.nonce})
}

// pass asks, and fails where the request may not pass.
func (f *front) pass(ctx context.Context, _ int) error {
	resp, err := f.ask(ctx)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("forward-auth: %s: %s", resp.Status, resp.Header.Get("WWW-Authenticate"))
	}
	return err
}

// resource has the middleware of a resource server check requests whose proofs
// were made before, each once.
func (f *front) resource(ctx context.Context, c *client.Client, workers int) (outcome, error) {
	app, err := url.Parse(benchApp)
	if err != nil {
		return outcome{}, err
	}
	guard := &dpop.Resource{
		Base:     app,
		Token:    (&dpop.Tokens{Issuer: benchIssuer, Audience: benchApp, Keys: dpop.FetchKeys(f.http, f.address+"/oauth/jwks")}).Access,
		Verifier: &dpop.Verifier{Replays: &dpop.Memory{PerKey: checks}, Nonces: &dpop.Nonces{MAC: dpop.NonceKey([]byte(rand.Text() + rand.Text()))}},
		Status:   (&client.Status{Client: c}).Check,
	}
	if f.nonce, err = guard.Verifier.Nonces.Current(ctx, time.Now()); err != nil {
		return outcome{}, err
	}
	proofs := make([]string, checks)
	for i := range proofs {
		if proofs[i], err = f.proof(); err != nil {
			return outcome{}, err
		}
	}
	h := guard.Guard(func(http.ResponseWriter, *http.Request, dpop.Caller) {})
	check := func(proof string) error {
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/orders", nil)
		r.Header = http.Header{"Authorization": {"DPoP " + f.token}, "Dpop": {proof}}
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != http.StatusOK {
			return fmt.Errorf("a resource server: status %d: %s", w.Code, w.Body)
		}
		return nil
	}
	if err := check(proofs[0]); err != nil { // and it has the key set
		return outcome{}, err
	}
	return eachOnce(proofs[1:], workers, check)
}

// eachOnce has workers check proofs, each once, and stops at the first error.
func eachOnce(proofs []string, workers int, check func(string) error) (outcome, error) {
	var next atomic.Int64
	var group errgroup.Group
	out := outcome{calls: uint64(len(proofs)), latencies: make([]time.Duration, len(proofs))}
	began := time.Now()
	for range workers {
		group.Go(func() error {
			for {
				i := int(next.Add(1) - 1)
				if i >= len(proofs) {
					return nil
				}
				start := time.Now()
				if err := check(proofs[i]); err != nil {
					return err
				}
				out.latencies[i] = time.Since(start)
			}
		})
	}
	err := group.Wait()
	out.elapsed = time.Since(began)
	slices.Sort(out.latencies)
	return out, err
}
