package follow

import (
	"context"
	"errors"
	"sync"
	"time"

	"claviger.dev/internal/store"
)

// Run follows until ctx ends: it asks whenever a change is heard of, and else
// each Every.
func (f *Follower) Run(ctx context.Context) {
	var listening sync.WaitGroup
	again := make(chan struct{}, 1)
	listening.Go(func() { f.listen(ctx, again) })
	defer listening.Wait()
	var told store.Position // the last position that the store knows this server has reached
	var trimmed time.Duration
	for ctx.Err() == nil {
		had := f.state.Load().trouble != nil
		err := f.Poll(ctx)
		if now := f.cfg.Now(); err == nil && now-trimmed > trimEvery {
			trimmed = now
			if err := f.trim(ctx); err != nil {
				f.cfg.Log.Warn("trim what is followed", "error", err)
			}
		}
		if err != nil != had {
			poke(again) // a connection that was lost or is back: what listens may be deaf
		}
		if at := f.state.Load().at; err == nil && at != told {
			told = at
			wait(ctx, gather, nil)
			continue
		}
		if wait(ctx, Every, f.wake) {
			wait(ctx, gather, nil)
		}
	}
}

// listen has the loop woken at each change, until ctx ends; on a new connection
// when the old one was lost, and at request.
func (f *Follower) listen(ctx context.Context, again <-chan struct{}) {
	for ctx.Err() == nil {
		one, cancel := context.WithCancel(ctx)
		var watching sync.WaitGroup
		watching.Go(func() {
			select {
			case <-again:
				cancel()
			case <-one.Done():
			}
		})
		err := f.cfg.Store.Listen(one, func() { poke(f.wake) })
		cancel()
		watching.Wait()
		if ctx.Err() == nil {
			f.cfg.Log.Debug("the connection that hears of changes was lost", "error", err)
		}
		wait(ctx, Every, nil)
	}
}

// poke wakes who waits on a channel that holds one.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// wait waits for at most d, and reports whether it was woken.
func wait(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-wake:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// trim forgets changes of long ago, and servers that said nothing since it was
// called last. No clock is compared with another host's: one that is set
// forward must not make a living server vanish from the list.
func (f *Follower) trim(ctx context.Context) error {
	var seen map[string]uint64
	err := f.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		list, err := tx.Replicas()
		if err != nil {
			return err
		}
		seen = map[string]uint64{}
		for _, r := range list {
			if beat, known := f.silent[r.Node]; known && beat == r.Beat && r.Node != f.cfg.Node {
				if err := tx.DropReplica(r); err != nil {
					return err
				}
			}
			seen[r.Node] = r.Beat
		}
		return tx.TrimChanges(keepChanges)
	})
	if err == nil {
		f.silent = seen
	}
	return err
}

// Close stops confirming, and takes this server off the list.
func (f *Follower) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pollDeadline)
	defer cancel()
	f.polling <- struct{}{}
	defer func() { <-f.polling }()
	if f.closed {
		return nil
	}
	f.closed = true
	f.state.Store(&state{at: f.state.Load().at, trouble: errClosed})
	if f.feed == nil {
		return nil // the store is away; who waits for this server waits for its lease
	}
	err := f.feed.Close(ctx)
	f.feed = nil
	return errors.Join(err, f.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		list, err := tx.Replicas()
		if err != nil {
			return err
		}
		for _, r := range list {
			if r.Node == f.cfg.Node {
				return tx.DropReplica(r)
			}
		}
		return nil
	}))
}
