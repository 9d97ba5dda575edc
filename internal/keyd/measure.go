package keyd

import (
	"errors"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	claviger "claviger.dev"
	"claviger.dev/internal/hazmat"
)

// Rate is what this machine does without processes, frames and records: the
// limit that measurements of a server compare with.
type Rate struct {
	Protected time.Duration `json:"protected_ns"`         // CPU time of one operation, as the key process does it, all cores busy
	Plain     time.Duration `json:"plain_ns"`             // the same by the standard library alone, the key on the heap
	AllCores  float64       `json:"all_cores_per_second"` // protected operations on all cores at once, by the clock
}

// Measure runs the protecting operation of an algorithm, on a fresh key that
// dies with the call, in batches of items of size bytes, for about d each way.
func Measure(a claviger.Algorithm, size, batch int, d time.Duration) (rate Rate, err error) {
	if size < 0 || size > 1<<16 || batch < 1 || batch > 1000 {
		return rate, errors.New("an item has at most 64 KiB, a batch 1 to 1000 items")
	}
	arena, err := hazmat.NewArena(hazmat.Config{Size: 1 << 20, Relaxed: true})
	if err != nil {
		return rate, err
	}
	defer arena.Wipe()
	raw, err := NewRaw(arena, a)
	if err != nil {
		return rate, err
	}
	inputs := make([][]byte, batch)
	for i := range inputs {
		inputs[i] = make([]byte, size)
	}
	cores := runtime.GOMAXPROCS(0)
	var clock time.Duration
	if rate.Protected, clock, err = loop(cores, batch, d, func() error { return raw.Do(inputs) }); err != nil {
		return rate, err
	}
	rate.AllCores = float64(time.Second) / float64(max(clock, 1))
	heap, err := raw.Unprotected()
	if err != nil {
		return rate, err
	}
	rate.Plain, _, err = loop(cores, 1, d, func() error { return heap(inputs[0]) })
	return rate, err
}

// loop calls f, which does batch items, on all cores for about d. It returns
// the CPU time of this process and the time by the clock for one item. All
// cores work because they do under load, too: where two share what computes,
// each is slower than one alone.
func loop(cores, batch int, d time.Duration, f func() error) (cpu, clock time.Duration, err error) {
	counts, failures := make([]int, cores), make([]error, cores)
	var wg sync.WaitGroup
	before, began := spent(), time.Now()
	for core := range cores {
		wg.Go(func() {
			for counts[core] == 0 || time.Since(began) < d {
				if failures[core] = f(); failures[core] != nil {
					return
				}
				counts[core] += batch
			}
		})
	}
	wg.Wait()
	total := time.Duration(1)
	for _, n := range counts {
		total += time.Duration(n)
	}
	return (spent() - before) / total, time.Since(began) / total, errors.Join(failures...)
}

// spent is the CPU time of this process so far.
func spent() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
