package oauth_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"claviger.dev/dpop"
	"claviger.dev/internal/broker"
)

// BenchmarkToken issues tokens to a service, 64 at once, over TLS, with what the
// clients do in the same process: proofs and assertions are made before.
func BenchmarkToken(b *testing.B) {
	s := newSite(b)
	p := s.service
	p.token(b, credentials())
	type prepared struct{ body, proof string }
	all := make([]prepared, b.N)
	p.proof.Now = s.now
	for i := range all {
		proof, err := p.proof.Proof(dpop.Claims{Method: http.MethodPost, URL: s.issuer + broker.TokenPath, Nonce: p.nonce})
		if err != nil {
			b.Fatal(err)
		}
		all[i] = prepared{p.authenticated(b, credentials()).Encode(), proof}
	}
	var next, bad atomic.Int64
	b.ReportAllocs()
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			request := all[next.Add(1)-1]
			r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, s.issuer+broker.TokenPath, strings.NewReader(request.body))
			if err != nil {
				bad.Add(1)
				continue
			}
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("DPoP", request.proof)
			if a := do(b, p.http, r); a.text("access_token") == "" {
				bad.Add(1)
			}
		}
	})
	b.StopTimer()
	if bad.Load() > 0 {
		b.Errorf("%d of %d requests are refused", bad.Load(), b.N)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}
