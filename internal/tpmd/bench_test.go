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
// directly by go-tpm; "of-direct" is the former's rate as a part of the
// latter's with the authorisation in clear, "of-authorised" with the same
// salted session.
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
			direct, authorised, through := 0.0, 0.0, 0.0
			const rounds = 10 // in turns, so that a busy machine slows all
			for range rounds {
				d, err := tpm.Open(s.Device())
				if err != nil {
					b.Fatal(err)
				}
				rate, err := d.Measure(shape.batch, 400*time.Millisecond)
				if err != nil {
					b.Fatal(err)
				}
				direct, authorised = direct+rate.Direct/rounds, authorised+rate.Authorised/rounds
				d.Close()
				if _, err := c.Sign(b.Context(), k.Material, inputs, true); err != nil { // takes the TPM back
					b.Fatal(err)
				}
				var next atomic.Int64
				var group sync.WaitGroup
				calls := int64((b.N/rounds + shape.batch - 1) / shape.batch)
				began := time.Now()
				b.StartTimer()
				for range shape.callers {
					group.Go(func() {
						for next.Add(1) <= calls {
							if _, err := c.Sign(b.Context(), k.Material, inputs, true); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				group.Wait()
				b.StopTimer()
				through += float64(int(calls)*shape.batch) / time.Since(began).Seconds() / rounds
			}
			b.ReportMetric(through, "sigs/s")
			b.ReportMetric(direct, "direct/s")
			b.ReportMetric(authorised, "authorised/s")
			b.ReportMetric(through/direct, "of-direct")
			b.ReportMetric(through/authorised, "of-authorised")
		})
	}
}
