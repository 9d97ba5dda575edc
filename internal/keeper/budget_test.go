package keeper_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/keeper"
)

// atOnce calls f from 64 goroutines, n times in all, and returns how often it
// was allowed. Anything but allowed and exhausted is an error.
func atOnce(t *testing.T, n int, f func() error) int {
	t.Helper()
	var left, allowed atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				switch err := f(); {
				case err == nil:
					allowed.Add(1)
				case !errors.Is(err, claviger.Exhausted):
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	return int(allowed.Load())
}

func TestCountBudgetIsExact(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := openWorld(t, dir)
	by := w.caller(7)
	w.grant(by, "prod/app/key", claviger.Conditions{Count: 1000}, claviger.Sign)
	w.key("prod/app/key", claviger.Ed25519)
	first := atOnce(t, 700, func() error { return sign(w, by, "prod/app/key") })
	if first != 700 {
		t.Errorf("%d of the first 700 were allowed", first)
	}
	w.close()
	w = openWorld(t, dir)
	if n := atOnce(t, 700, func() error { return sign(w, by, "prod/app/key") }); n != 300 {
		t.Errorf("%d were allowed after a restart, want the 300 that were left", n)
	}
}

// After a crash no more than the budget is given out, and at most a block less.
func TestCountBudgetAfterACrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := openWorld(t, dir)
	by := w.caller(7)
	w.grant(by, "prod/app/key", claviger.Conditions{Count: 1000}, claviger.Sign)
	w.key("prod/app/key", claviger.Ed25519)
	if n := atOnce(t, 100, func() error { return sign(w, by, "prod/app/key") }); n != 100 {
		t.Fatalf("%d of 100 were allowed", n)
	}
	w.closed.Do(w.shut)
	w = openWorld(t, dir)
	if n := atOnce(t, 1200, func() error { return sign(w, by, "prod/app/key") }); n > 900 || n < 890 {
		t.Errorf("%d were allowed after a crash, want 890 to 900", n)
	}
}

func TestSeveralGrantsAreSpentInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/app/key", claviger.Conditions{Count: 10}, claviger.Sign)
	w.grant(by, "prod/*/*", claviger.Conditions{Count: 5}, claviger.Sign)
	w.key("prod/app/key", claviger.Ed25519)
	if n := atOnce(t, 100, func() error { return sign(w, by, "prod/app/key") }); n != 15 {
		t.Errorf("%d were allowed by grants of 10 and 5", n)
	}
}

func TestInvocationLimit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := openWorld(t, dir)
	by := w.caller(7)
	w.grant(by, "prod/app/box", claviger.Conditions{}, claviger.Seal, claviger.Open)
	if _, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: "prod/app/box", Algorithm: "aes-256-gcm", Settings: claviger.Settings{MaxInvocations: 60}}); err != nil {
		t.Fatal(err)
	}
	seal := func(w *world) func() error {
		return func() error {
			_, err := w.Seal(t.Context(), by, keeper.SealRequest{Key: "prod/app/box", Items: make([]keeper.Plain, 2)})
			return err
		}
	}
	if n := atOnce(t, 10, seal(w)); n != 10 {
		t.Errorf("%d of 10 were allowed", n)
	}
	tighter := claviger.Settings{MaxInvocations: 50}
	if _, err := w.UpdateKey(t.Context(), w.op, "prod/app/box", keeper.KeyChange{Settings: &tighter}); err != nil {
		t.Fatal(err)
	}
	w.close()
	w = openWorld(t, dir)
	if n := atOnce(t, 100, seal(w)); n != 15 {
		t.Errorf("%d batches of 2 were allowed after 20 of 50 invocations, want 15", n)
	}
	if _, err := w.Rotate(t.Context(), w.op, "prod/app/box", "", 0); err != nil {
		t.Fatal(err)
	}
	if err := seal(w)(); err != nil {
		t.Errorf("the new version: %v", err)
	}
}

func TestRate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/app/key", claviger.Conditions{Rate: &claviger.Rate{PerSecond: 0.001, Burst: 5}}, claviger.Sign)
	w.key("prod/app/key", claviger.Ed25519)
	try := func() error { return sign(w, by, "prod/app/key") }
	const decade = 10 * 365 * 24 * time.Hour
	for _, step := range []struct {
		name string
		by   time.Duration
		want int
	}{
		{"at first", 0, 5}, {"at once", 0, 0}, {"a little later", 1001 * time.Second, 1},
		{"ten years forward", decade, 5}, {"ten years back", -decade, 0}, {"and on from there", 2001 * time.Second, 2},
	} {
		w.later(step.by)
		if n := atOnce(t, 20, try); n != step.want {
			t.Errorf("%s: %d were allowed, want %d", step.name, n, step.want)
		}
	}
}
