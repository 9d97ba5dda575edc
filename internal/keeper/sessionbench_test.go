package keeper_test

import (
	"encoding/json"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/keeper"
)

// sixtyFour runs do 64 at once on two cores and reports how many were done a second.
func sixtyFour(b *testing.B, unit string, do func() error) {
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := do(); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), unit)
}

func BenchmarkOpenSession(b *testing.B) {
	for _, alg := range []claviger.Algorithm{claviger.ECDSAP256, claviger.Ed25519} {
		b.Run(string(alg), func(b *testing.B) {
			w := newWorld(b)
			by := w.caller(7)
			w.client(by, "prod/shop/web", claviger.ClientLimits{})
			sixtyFour(b, "sessions/s", func() error {
				_, err := w.OpenSession(b.Context(), by, keeper.NewSession{Client: "prod/shop/web", KeyKind: claviger.CustodyKey, Algorithm: alg,
					Subject: claviger.Subject{Issuer: "https://login.example", ID: "ann"}})
				return err
			})
		})
	}
}

func BenchmarkIssueToken(b *testing.B) {
	w := newWorld(b)
	by := w.caller(7)
	c := w.client(by, "prod/shop/web", claviger.ClientLimits{})
	sixtyFour(b, "tokens/s", func() error {
		text, err := json.Marshal(claims(w, c, claviger.Session{JKT: "x"}))
		if err == nil {
			_, err = w.IssueToken(b.Context(), by, keeper.TokenRequest{Client: string(c.ID), Audiences: []string{api}, Scopes: []string{"read"}, Claims: text})
		}
		return err
	})
}

func BenchmarkSignForSession(b *testing.B) {
	w := newWorld(b)
	by := w.caller(7)
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	s := w.session(by, keeper.NewSession{Client: "prod/shop/web"})
	sixtyFour(b, "statements/s", func() error { return w.use(by, s.ID) })
}
