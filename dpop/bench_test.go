package dpop_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"claviger.dev/dpop"
)

// BenchmarkES256 is what a check stands on: one verification by the library.
func BenchmarkES256(b *testing.B) {
	key := newKey(b)
	digest := sha256.Sum256([]byte("message"))
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], sig) {
			b.Fatal("refused")
		}
	}
}

// BenchmarkCheck is a whole check, with the token's hash, a nonce and a record
// in memory.
func BenchmarkCheck(b *testing.B) {
	signer := newSigner(b, newKey(b), "")
	nonces := &dpop.Nonces{MAC: dpop.NonceKey(make([]byte, 32))}
	nonce, err := nonces.Current(b.Context(), start)
	if err != nil {
		b.Fatal(err)
	}
	v := &dpop.Verifier{Now: at(start), Nonces: nonces, Replays: forgetful{&dpop.Memory{Limit: 1 << 30, PerKey: 1 << 30, Now: at(start)}}}
	req := dpop.Request{Proofs: []string{prove(b, signer, dpop.Claims{Method: "GET", URL: apiURL, Token: token, Nonce: nonce})},
		Method: "GET", URL: apiURL, Token: token, Thumbprint: signer.Thumbprint()}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Check(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkGuard is a request through the handler, made by as many as there are cores.
func BenchmarkGuard(b *testing.B) {
	signer := newSigner(b, newKey(b), "")
	rs := resource(b, signer.Thumbprint(), at(start))
	rs.Verifier.Nonces = nil
	rs.Verifier.Replays = forgetful{&dpop.Memory{Limit: 1 << 30, PerKey: 1 << 30, Now: at(start)}}
	h := rs.Guard(func(http.ResponseWriter, *http.Request, dpop.Caller) {})
	proof := prove(b, signer, dpop.Claims{Method: "GET", URL: apiURL, Token: token})
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			r := httptest.NewRequest("GET", "http://10.0.0.7/orders", nil)
			r.Header.Set("Authorization", "DPoP "+token)
			r.Header.Set("DPoP", proof)
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code != 200 {
				b.Fatal(w.Code)
			}
		}
	})
	b.ReportMetric(float64(b.N)/max(b.Elapsed(), time.Nanosecond).Seconds(), "requests/s")
}

// forgetful makes the work of a record, and lets one proof through again and
// again: making a new one for each turn would be most of the time.
type forgetful struct{ *dpop.Memory }

func (f forgetful) Burn(ctx context.Context, thumbprint, _ string, until time.Time) (bool, error) {
	return f.Memory.Burn(ctx, thumbprint, rand.Text(), until)
}
