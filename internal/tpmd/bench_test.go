package tpmd_test

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/tpm"
	"claviger.dev/internal/tpm/tpmtest"
)

// BenchmarkSign signs through custody and claviger-tpmd, and in the same run
// directly on a TPM of the same kind; "of-direct" is the former's rate as a
// part of the latter's.
func BenchmarkSign(b *testing.B) {
	for _, shape := range []struct{ callers, batch int }{{1, 1}, {4, 1}, {1, 50}} {
		b.Run(fmt.Sprintf("at=%d/batch=%d", shape.callers, shape.batch), func(b *testing.B) {
			s := tpmtest.Start(b)
			c, _ := start(b, s)
			k := custodytest.Generate(b, c, claviger.ECDSAP256)
			digest := sha256.Sum256([]byte("message"))
			inputs := make([][]byte, shape.batch)
			for i := range inputs {
				inputs[i] = digest[:]
			}
			direct := 0.0
			var through time.Duration
			const rounds = 5
			for range rounds {
				d, err := tpm.Open(s.Device())
				if err != nil {
					b.Fatal(err)
				}
				rate, err := d.Measure(shape.batch, 600*time.Millisecond)
				if err != nil {
					b.Fatal(err)
				}
				direct += rate.Direct / rounds
				d.Close()
				if _, err := c.Sign(b.Context(), k.Material, inputs, true); err != nil { // takes the TPM back
					b.Fatal(err)
				}
				var next atomic.Int64
				var group sync.WaitGroup
				part := int64((b.N + rounds - 1) / rounds)
				began := time.Now()
				b.StartTimer()
				for range shape.callers {
					group.Go(func() {
						for next.Add(int64(shape.batch)) <= part+int64(shape.batch)-1 {
							if _, err := c.Sign(b.Context(), k.Material, inputs, true); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				group.Wait()
				b.StopTimer()
				through += time.Since(began)
			}
			done := float64((b.N+rounds-1)/rounds+shape.batch-1) / float64(shape.batch)
			rate := rounds * float64(int(done)*shape.batch) / through.Seconds()
			b.ReportMetric(rate, "sigs/s")
			b.ReportMetric(direct, "direct/s")
			b.ReportMetric(rate/direct, "of-direct")
		})
	}
}
