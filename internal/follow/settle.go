package follow

import (
	"context"
	"time"

	"claviger.dev/internal/store"
)

// look is the pause between two looks at how far the others have come.
const look = 10 * time.Millisecond

// Standing is how one server stands to a change.
type Standing struct {
	Node      string
	Confirmed bool // it has applied the change; otherwise its lease is over
}

// Settled is what Settle has found.
type Settled struct {
	Number  uint64 // of the change
	Servers []Standing
	Took    time.Duration
}

// Settle returns when every server of the store has applied every change that
// was committed before the call, or confirms nothing any more. It takes Bound at
// most, and what two questions to the store take: a lease on an older state was
// taken before the change was committed, so it is over by then, whoever holds
// it. A server appears in the list before it first holds one.
func (f *Follower) Settle(ctx context.Context) (Settled, error) {
	began := f.cfg.Now()
	if err := f.Poll(ctx); err != nil {
		return Settled{}, stale(err)
	}
	out := Settled{Number: f.state.Load().at.Number}
	for since := f.cfg.Now(); ; wait(ctx, look, nil) {
		var list []store.Replica
		err := f.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
			list, err = tx.Replicas()
			return err
		})
		over := f.cfg.Now()-since >= Bound
		if err != nil && (!over || ctx.Err() != nil) {
			if ctx.Err() != nil {
				return Settled{}, err
			}
			continue
		}
		out.Servers = nil
		for _, r := range list {
			out.Servers = append(out.Servers, Standing{Node: r.Node, Confirmed: r.Holds && r.Number >= out.Number || r.Node == f.cfg.Node})
		}
		if over || !behind(out.Servers) {
			out.Took = f.cfg.Now() - began
			return out, nil
		}
	}
}

func behind(list []Standing) bool {
	for _, s := range list {
		if !s.Confirmed {
			return true
		}
	}
	return false
}

// Status is how this server follows.
type Status struct {
	Number    uint64        // of the last change that is applied here
	Confirmed time.Duration // since the question was sent that confirmed it
	Refused   uint64        // calls of Confirmed that were answered with claviger.Stale
	Trouble   error         // why the last poll confirmed nothing; nil when it did
}

// Status returns how this server follows.
func (f *Follower) Status() Status {
	s := f.state.Load()
	return Status{Number: s.at.Number, Confirmed: f.cfg.Now() - s.sent, Refused: f.refused.Load(), Trouble: s.trouble}
}
