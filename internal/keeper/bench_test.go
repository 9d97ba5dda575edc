package keeper_test

import (
	"testing"

	"claviger.dev"
	"claviger.dev/internal/keeper"
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
