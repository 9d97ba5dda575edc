package dpop_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"claviger.dev/dpop"
	"golang.org/x/sys/unix"
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

// BenchmarkGuard is a whole request through the handler of a resource server, by
// as many callers as there are cores: a token by ES256 that its issuer's key set
// tells to be good, a proof by ES256 with a nonce, a record in memory, and the
// status of the session. "cpu-us/op" is what the process takes of all cores, and
// the two of them have 200 for each of 10 000 requests a second.
func BenchmarkGuard(b *testing.B) {
	for name, clients := range map[string]int{"one client": 1, "1000 clients": 1000} {
		b.Run(name, func(b *testing.B) { benchGuard(b, clients) })
	}
}

func benchGuard(b *testing.B, clients int) {
	i := newIssuer(b)
	rs := resource(b, "", at(start))
	rs.Token = i.tokens().Access
	rs.Status = func(_ context.Context, access dpop.Access) error {
		if access.Claims.(*dpop.Token).Session == "" {
			return errors.New("no session")
		}
		return nil
	}
	rs.Verifier.Replays = forgetful{&dpop.Memory{Limit: 1 << 30, PerKey: 1 << 30, Now: at(start)}}
	nonce, err := rs.Verifier.Nonces.Current(b.Context(), start)
	if err != nil {
		b.Fatal(err)
	}
	type sent struct{ token, proof string }
	requests := make([]sent, clients)
	for n := range requests {
		signer := newSigner(b, newKey(b), "")
		token := i.Issue(i.claims(signer.Thumbprint()))
		requests[n] = sent{token, prove(b, signer, dpop.Claims{Method: "GET", URL: apiURL, Token: token, Nonce: nonce})}
	}
	h := rs.Guard(func(http.ResponseWriter, *http.Request, dpop.Caller) {})
	var next atomic.Int64
	b.ReportAllocs()
	before := cpuTime(b)
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			s := requests[int(next.Add(1))%clients]
			r := httptest.NewRequest("GET", "http://10.0.0.7/orders", nil)
			r.Header.Set("Authorization", "DPoP "+s.token)
			r.Header.Set("DPoP", s.proof)
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code != 200 {
				b.Fatal(w.Code, w.Body)
			}
		}
	})
	b.ReportMetric(float64(b.N)/max(b.Elapsed(), time.Nanosecond).Seconds(), "requests/s")
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
}

// cpuTime is what this process has taken of all cores.
func cpuTime(tb testing.TB) time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// forgetful makes the work of a record, and lets one proof through again and
// again: making a new one for each turn would be most of the time.
type forgetful struct{ *dpop.Memory }

func (f forgetful) Burn(ctx context.Context, thumbprint, _ string, until time.Time) (bool, error) {
	return f.Memory.Burn(ctx, thumbprint, rand.Text(), until)
}
