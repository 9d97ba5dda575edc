package keeper_test

import (
	"fmt"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/state"
	"claviger.dev/internal/store/postgres/pgtest"
)

func benchmarkSign(b *testing.B, alg claviger.Algorithm, batch int) {
	w := newWorld(b)
	by := w.caller(7)
	w.grant(by, "prod/app/key", claviger.Conditions{}, claviger.Sign)
	w.key("prod/app/key", alg)
	req := keeper.SignRequest{Key: "prod/app/key", Inputs: make([][]byte, batch)}
	for i := range req.Inputs {
		req.Inputs[i] = make([]byte, 64)
	}
	b.SetParallelism(32) // 64 at once on two cores
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := w.Sign(b.Context(), by, req); err != nil {
				b.Error(err)
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "signatures/s")
}

func BenchmarkDoorSign(b *testing.B) {
	for _, alg := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256} {
		b.Run(string(alg), func(b *testing.B) { benchmarkSign(b, alg, 1) })
		b.Run(string(alg)+"-batch-100", func(b *testing.B) { benchmarkSign(b, alg, 100) })
	}
}

func BenchmarkDoorVerify(b *testing.B) {
	w := newWorld(b)
	by := w.caller(7)
	w.grant(by, "prod/app/key", claviger.Conditions{}, claviger.Sign, claviger.Verify)
	w.key("prod/app/key", claviger.Ed25519)
	signed, err := w.Sign(b.Context(), by, keeper.SignRequest{Key: "prod/app/key", Inputs: [][]byte{[]byte("m")}})
	if err != nil {
		b.Fatal(err)
	}
	req := keeper.VerifyRequest{Key: "prod/app/key", Items: []keeper.Item{{Input: []byte("m"), Signature: signed.Signatures[0]}}}
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := w.Verify(b.Context(), by, req); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkDoorUnprotect checks session cookies, 32 at once: of a format that
// derives by one hash, and of one that derives by PBKDF2.
func BenchmarkDoorUnprotect(b *testing.B) {
	for set, format := range map[string]state.Format{"django": state.DjangoSession, "rails": state.RailsEncryptedCookie} {
		for _, batch := range []int{1, 100} {
			b.Run(fmt.Sprintf("%s/batch=%d", set, batch), func(b *testing.B) {
				w := newWorld(b)
				by := w.caller(7)
				w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.Protect, claviger.Unprotect)
				if _, err := w.CreateKey(b.Context(), w.op, keeper.CreateKey{Name: "prod/app/key", Algorithm: "machine-key", Recipe: set, Owner: "tests"}); err != nil {
					b.Fatal(err)
				}
				params := state.Params{Name: "session"}
				if set == "django" {
					params = state.Params{}
				}
				made, err := w.Protect(b.Context(), by, keeper.ProtectRequest{Key: "prod/app/key", Format: format, Params: params, Payloads: [][]byte{make([]byte, 100)}})
				if err != nil {
					b.Fatal(err)
				}
				req := keeper.UnprotectRequest{Key: "prod/app/key", Format: format, Params: params}
				for range batch {
					req.Tokens = append(req.Tokens, made.Tokens[0])
				}
				b.SetParallelism(16)
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						out, err := w.Unprotect(b.Context(), by, req)
						if err != nil || !out[0].OK {
							b.Errorf("%+v, %v", out, err)
							return
						}
					}
				})
				b.StopTimer()
				b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "checks/s")
			})
		}
	}
}

// BenchmarkDoorSignShared is a use on a PostgreSQL that servers share; "asking"
// adds the two questions for the revision that a use without a lease asks.
func BenchmarkDoorSignShared(b *testing.B) {
	s := newBoundServer(b, pgtest.Start(b), "a")
	list, err := s.handles("h", 1)
	if err != nil {
		b.Fatal(err)
	}
	s.key(boundKey, claviger.Ed25519)
	for name, questions := range map[string]int{"lease": 0, "asking": 2} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				for range questions {
					if _, err := s.db.Revision(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
				if code := s.use(list[0]); code != "" {
					b.Fatal(code)
				}
			}
		})
	}
}
