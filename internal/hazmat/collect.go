package hazmat

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"
)

// touch notes a use for Collect: an atomic addition, and a channel operation
// that does nothing while one is pending.
func (a *Arena) touch() {
	a.uses.Add(1)
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Collect collects garbage once after each time that secrets were in use and
// then not for a quiet period, until ctx is done: it is the collector that
// erases heap memory which Do tracked. A process at rest is left alone, and so
// is a busy one.
func (a *Arena) Collect(ctx context.Context, quiet time.Duration) {
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	for collected := uint64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		}
		seen := collected
		for now := a.uses.Load(); now != seen; now = a.uses.Load() {
			seen = now
			timer.Reset(quiet)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		}
		if seen != collected { // the wake-up may be of a use that was counted already
			collected = seen
			collectNow()
		}
	}
}

// collectNow runs the collector until unreachable memory is erased, and gives
// the pages back: the first cycle finds what is unreachable, the second
// finishes the sweep of the first.
func collectNow() {
	runtime.GC()
	runtime.GC()
	debug.FreeOSMemory()
}
