package keeper

import (
	"context"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
)

// exports carries periodic checkpoints out of this host, through Config.Export
// and beside everything else, so that a slow receiver holds nothing up. What
// was not delivered is tried again until the next one, which covers it.
type exports struct {
	to   func(ctx context.Context, line []byte) error // nil: there is nowhere to carry them to
	next chan []audit.Checkpoint                      // holds the newest ones that wait

	mu   sync.Mutex // guards the rest
	at   time.Time  // of the newest checkpoint that was tried
	fail error      // nil when it was delivered
}

// exportAgain is the pause before what failed is tried again.
const exportAgain = 30 * time.Second

// offer hands over new checkpoints, in place of any that still wait.
func (e *exports) offer(list []audit.Checkpoint) {
	if e.to == nil {
		return
	}
	select {
	case <-e.next:
	default:
	}
	e.next <- list // has room: only Run's loop offers
}

// run delivers until ctx ends.
func (e *exports) run(ctx context.Context, k *Keeper) {
	var list []audit.Checkpoint
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case list = <-e.next:
		case <-again:
		}
		err := e.deliver(ctx, list)
		k.attempt("export the checkpoint", err)
		e.mu.Lock()
		e.at, e.fail = list[0].Time, err
		e.mu.Unlock()
		if again = nil; err != nil {
			again = time.After(exportAgain)
		}
	}
}

func (e *exports) deliver(ctx context.Context, list []audit.Checkpoint) error {
	ctx, cancel := context.WithTimeout(ctx, tickDeadline)
	defer cancel()
	for _, c := range list {
		if err := e.to(ctx, c.JSON()); err != nil {
			return err
		}
	}
	return nil
}

// measure says whether checkpoints leave this host.
func (e *exports) measure() Measure {
	m := Measure{Part: "audit", Name: "checkpoints are kept elsewhere",
		Gain: "who holds this host cuts the tail of the record, or rolls it back, and nobody notices"}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.to == nil:
		m.State, m.Detail = unavailable, "no place is configured"
		m.Hint = "set checkpoint.file or checkpoint.webhook to a place that this host cannot change"
	case e.fail != nil:
		m.State, m.Detail = off, "the one of "+e.at.UTC().Format(time.RFC3339)+" could not be delivered: "+safeText(e.fail)
		m.Hint = "look at checkpoint.file and checkpoint.webhook; it is tried again"
	default:
		m.State, m.Gain = on, ""
		if !e.at.IsZero() {
			m.Detail = "last at " + e.at.UTC().Format(time.RFC3339)
		}
	}
	return m
}

// newest returns the checkpoint of the longest chain, which is the only one
// beside an embedded store.
func newest(list []audit.Checkpoint) (audit.Checkpoint, error) {
	var longest audit.Checkpoint
	for _, c := range list {
		if c.Seq > longest.Seq {
			longest = c
		}
	}
	if longest.Seq == 0 {
		return longest, claviger.Errorf(claviger.Unavailable, "the audit log is empty", "try again after the first record")
	}
	return longest, nil
}
