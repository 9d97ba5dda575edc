package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker"
)

// The client of the benchmark, and whom its tokens are for.
const benchClient, benchAudience = "dev/bench/app", "https://api.example/"

// benchBroker measures the opening of sessions with a key of their own, and
// tokens of the token endpoint.
func (a *app) benchBroker(ctx context.Context, b benchFlags) error {
	if b.batch != 1 || b.concurrency < 1 {
		return usagef("--sessions and --tokens are measured without --batch, and with --concurrency of at least 1")
	}
	return a.onRig(ctx, "\n[broker]\nissuer = \""+benchIssuer+"\"\nrequests_per_second = 1000000\n", func(ctx context.Context, r *rig) error {
		if _, err := r.socket.CreateGrant(ctx, &pb.CreateGrantRequest{Principal: "bench", Selector: benchClient, Operations: []string{string(claviger.OpenSession)}}); err != nil {
			return err
		}
		if _, err := r.socket.CreateClient(ctx, &pb.CreateClientRequest{Client: &pb.Client{Name: benchClient, Principal: "bench",
			Kind: string(claviger.Confidential), GrantTypes: []string{"client_credentials"}, Audiences: []string{benchAudience}}}); err != nil {
			return err
		}
		if b.sessions {
			for _, alg := range []claviger.Algorithm{claviger.ECDSAP256, claviger.Ed25519} {
				open := func(ctx context.Context, _ int) error {
					_, err := r.tls.OpenSession(ctx, &pb.OpenSessionRequest{Client: benchClient, Algorithm: string(alg)})
					return err
				}
				if err := r.row(ctx, b, "sessions opened, key by custody: "+string(alg), open); err != nil {
					return err
				}
			}
		}
		if !b.tokens {
			return nil
		}
		token, err := r.tokenCall(b.concurrency)
		if err != nil {
			return err
		}
		return r.row(ctx, b, "tokens of client_credentials, by certificate, bound by DPoP", token)
	})
}

// row measures one call and prints it.
func (r *rig) row(ctx context.Context, b benchFlags, what string, call func(context.Context, int) error) error {
	m, err := r.account(ctx, b, func(ctx context.Context, duration time.Duration) outcome {
		return load{concurrency: b.concurrency, rate: b.rate, duration: duration, call: call}.run(ctx)
	})
	if err != nil {
		return err
	}
	w := r.a.stdout
	fmt.Fprintf(w, "%s, %d at once\n", what, b.concurrency)
	fmt.Fprintf(w, "throughput      %.0f/s (%d calls failed)\n", m.items, m.failures)
	fmt.Fprintf(w, "latency         p50 %v  p99 %v  p99.9 %v\n", m.quantile(.5), m.quantile(.99), m.quantile(.999))
	fmt.Fprintf(w, "CPU/call        server %v  key process %v  together %v\n", m.serverCPU, m.keydCPU, m.total)
	return nil
}

// tokenCall returns a call of the token endpoint: a proof and a token each.
func (r *rig) tokenCall(concurrency int) (func(context.Context, int) error, error) {
	p, err := client.LoadProfile(filepath.Join(r.dir, "workload"))
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	signer, err := dpop.NewSigner(key, "")
	if err != nil {
		return nil, err
	}
	h := &http.Client{Transport: &dpop.Transport{Signer: signer, Base: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: p.Config().Roots, Certificates: []tls.Certificate{p.Certificate}, MinVersion: tls.VersionTLS13, ServerName: "127.0.0.1"},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, strings.TrimPrefix(p.Address, "https://"))
		},
		MaxIdleConnsPerHost: concurrency, MaxConnsPerHost: concurrency,
	}}}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {benchClient}, "resource": {benchAudience}}
	return func(ctx context.Context, _ int) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, benchIssuer+broker.TokenPath, strings.NewReader(form.Encode()))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := h.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxInput))
		if err != nil {
			return err
		}
		var issued struct {
			Token string `json:"access_token"`
		}
		if err := json.Unmarshal(text, &issued); err != nil || issued.Token == "" {
			return fmt.Errorf("the token endpoint answers %d: %.200s", resp.StatusCode, text)
		}
		return nil
	}, nil
}
