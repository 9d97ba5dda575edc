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
	Protected time.Duration `json:"protected_ns"`         // CPU time of one operation, as the key process does it
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
	protected := func() error { return raw.Do(inputs) }
	if rate.Protected, _, err = each(protected, batch, d); err != nil {
		return rate, err
	}
	heap, err := raw.Unprotected()
	if err != nil {
		return rate, err
	}
	if rate.Plain, _, err = each(func() error { return heap(inputs[0]) }, 1, d); err != nil {
		return rate, err
	}
	cores := runtime.GOMAXPROCS(0)
	spans, failures := make([]time.Duration, cores), make([]error, cores)
	var wg sync.WaitGroup
	for core := range cores {
		wg.Go(func() { _, spans[core], failures[core] = each(protected, batch, d) })
	}
	wg.Wait()
	for _, span := range spans {
		rate.AllCores += float64(time.Second) / float64(max(span, 1))
	}
	return rate, errors.Join(failures...)
}

// each returns the CPU time of this process and the time by the clock for one
// item, over calls of f with batch items for about d.
func each(f func() error, batch int, d time.Duration) (cpu, clock time.Duration, err error) {
	before, began := spent(), time.Now()
	for n := 0; ; n += batch {
		if passed := time.Since(began); passed >= d && n > 0 {
			return (spent() - before) / time.Duration(n), passed / time.Duration(n), nil
		}
		if err := f(); err != nil {
			return 0, 0, err
		}
	}
}

// spent is the CPU time of this process so far.
func spent() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
