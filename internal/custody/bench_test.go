package custody_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/hazmat"
	"claviger.dev/internal/keyd"
	"claviger.dev/internal/recipe"
)

// concurrently runs f b.N times from so many goroutines and reports the CPU
// time that this process and the key process spend on each.
func concurrently(b *testing.B, pid, goroutines, each int, f func() error) {
	var next atomic.Int64
	var group sync.WaitGroup
	cpu := spent(b, pid)
	b.ResetTimer()
	for range goroutines {
		group.Go(func() {
			for next.Add(int64(each)) <= int64(b.N+each-1) {
				if err := f(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	b.StopTimer()
	b.ReportMetric(float64((spent(b, pid)-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// spent is the CPU time of this process and of the other so far.
func spent(b *testing.B, pid int) time.Duration {
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		b.Fatal(err)
	}
	total := time.Duration(own.Utime.Nano() + own.Stime.Nano())
	if pid == 0 {
		return total
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	for _, f := range fields[11:13] { // utime and stime, in ticks of 10 ms
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		total += time.Duration(n) * 10 * time.Millisecond
	}
	return total
}

// BenchmarkFrames measures the way to the key process and back with next to
// no work at its end: one HMAC of 32 bytes.
func BenchmarkFrames(b *testing.B) {
	c, s := start(b)
	k := custodytest.Generate(b, c, claviger.HMACSHA256)
	for _, shape := range []struct{ goroutines, batch int }{{1, 1}, {8, 1}, {64, 1}, {4, 100}} {
		b.Run(fmt.Sprintf("at=%d/batch=%d", shape.goroutines, shape.batch), func(b *testing.B) {
			inputs := inputs(shape.batch)
			concurrently(b, s.PID(), shape.goroutines, shape.batch, func() error {
				_, err := c.MAC(b.Context(), k.Material, inputs)
				return err
			})
		})
	}
}

func inputs(n int) [][]byte {
	in := make([][]byte, n)
	for i := range in {
		in[i] = bytes.Repeat([]byte{byte(i)}, 32)
	}
	return in
}

// BenchmarkSign measures protecting through the real process: one at a time
// at 64 at once, and batches of 100.
func BenchmarkSign(b *testing.B) {
	c, s := start(b)
	for _, a := range custodytest.Algorithms() {
		k := custodytest.Generate(b, c, a)
		for _, shape := range []struct{ goroutines, batch int }{{64, 1}, {4, 100}} {
			b.Run(fmt.Sprintf("%s/at=%d/batch=%d", a, shape.goroutines, shape.batch), func(b *testing.B) {
				in, plain := inputs(shape.batch), []custody.Plain{}
				for _, text := range in {
					plain = append(plain, custody.Plain{Plaintext: text})
				}
				concurrently(b, s.PID(), shape.goroutines, shape.batch, func() (err error) {
					switch a.Protects() {
					case claviger.Sign:
						_, err = c.Sign(b.Context(), k.Material, in, false)
					case claviger.MAC:
						_, err = c.MAC(b.Context(), k.Material, in)
					default:
						_, err = c.Seal(b.Context(), k.Material, plain)
					}
					return err
				})
			})
		}
	}
}

// BenchmarkRaw is the same primitive with the same care for memory, without a
// process between, and the standard library's without that care. Build with
// GOEXPERIMENT=runtimesecret for the former to mean anything.
func BenchmarkRaw(b *testing.B) {
	arena, err := hazmat.NewArena(hazmat.Config{Relaxed: true})
	if err != nil {
		b.Fatal(err)
	}
	for _, a := range custodytest.Algorithms() {
		raw, err := keyd.NewRaw(arena, a)
		if err != nil {
			b.Fatal(err)
		}
		plain, err := raw.Unprotected()
		if err != nil {
			b.Fatal(err)
		}
		for _, batch := range []int{1, 100} {
			in := inputs(batch)
			b.Run(fmt.Sprintf("%s/batch=%d", a, batch), func(b *testing.B) {
				concurrently(b, 0, 2, batch, func() error { return raw.Do(in) })
			})
		}
		one := inputs(1)[0]
		b.Run(string(a)+"/unprotected", func(b *testing.B) {
			concurrently(b, 0, 2, 1, func() error { return plain(one) })
		})
	}
}

// BenchmarkRecipe measures checks of framework tokens: what derives by PBKDF2
// beside what derives by one hash, and nothing derived at all.
func BenchmarkRecipe(b *testing.B) {
	c, s := start(b)
	for name, test := range map[string]struct {
		set recipe.Set
		r   recipe.Recipe
	}{
		"verbatim": {recipe.CookieSignature, recipe.Recipe{Scheme: recipe.Tag, MAC: recipe.SHA256}},
		"concat":   {recipe.Django, recipe.Recipe{Scheme: recipe.Tag, Derivation: recipe.Concat, Hash: recipe.SHA256, MAC: recipe.SHA256, Salt: "s"}},
		"pbkdf2":   {recipe.Rails, custodytest.RailsCookie()},
		"cbc":      {recipe.Laravel, recipe.Recipe{Scheme: recipe.LaravelCBC}},
		"iron":     {recipe.Iron, recipe.Recipe{Scheme: recipe.IronSeal}},
		"ring":     {recipe.DataProtection, recipe.Recipe{Scheme: recipe.RingCBC, Derivation: recipe.Counter, MAC: recipe.SHA256, Size: 32}},
	} {
		k, err := custodytest.MachineKey(b, c, test.set, bytes.Repeat([]byte("k"), 32))
		if err != nil {
			b.Fatal(err)
		}
		message := bytes.Repeat([]byte("m"), 200)
		item := recipe.Item{Data: message}
		if test.set == recipe.Iron {
			item.Aside = []byte("*")
		}
		made, err := c.Recipe(b.Context(), k.Material, test.r, true, []recipe.Item{item})
		if err != nil || !made[0].OK {
			b.Fatal(err)
		}
		check := recipe.Item{Data: made[0].Output, Aside: item.Aside}
		if test.r.Tags() {
			check = recipe.Item{Data: message, Aside: made[0].Output}
		}
		for _, shape := range []struct{ goroutines, batch int }{{1, 1}, {32, 1}, {4, 100}} {
			items := make([]recipe.Item, shape.batch)
			for i := range items {
				items[i] = check
			}
			b.Run(fmt.Sprintf("%s/at=%d/batch=%d", name, shape.goroutines, shape.batch), func(b *testing.B) {
				concurrently(b, s.PID(), shape.goroutines, shape.batch, func() error {
					results, err := c.Recipe(b.Context(), k.Material, test.r, false, items)
					if err == nil && !results[0].OK {
						return fmt.Errorf("refused")
					}
					return err
				})
			})
		}
	}
}
