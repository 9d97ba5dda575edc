package keeper

import (
	"context"
	"sync"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// group gathers what several callers write at once into one transaction, so
// that they share its commit.
type group struct {
	store *store.DB

	turn turn // held by who writes

	mu      sync.Mutex // guards waiting, and the writes of the batch that waits
	waiting *groupBatch
}

type groupBatch struct {
	writes []*groupWrite
	done   chan struct{}
	err    error // of the transaction; read after done
}

type groupWrite struct {
	do  func(*store.Tx) error
	err error // its own answer; read after done
}

// write runs do in a transaction that others may share, and returns when that
// is durable. do may run more than once. What it answers of its own row
// (conflict, not found, exhausted) is its caller's alone; any other error ends
// the transaction for all.
func (g *group) write(ctx context.Context, do func(*store.Tx) error) error {
	w := &groupWrite{do: do}
	g.mu.Lock()
	first := g.waiting == nil
	if first {
		g.waiting = &groupBatch{done: make(chan struct{})}
	}
	b := g.waiting
	b.writes = append(b.writes, w)
	g.mu.Unlock()
	if first {
		g.commit(ctx, b)
	}
	<-b.done // by then it is written or it never will be, whoever went away
	if b.err != nil {
		return b.err
	}
	return w.err
}

// commit writes a batch when the one before is written; who comes meanwhile
// joins it.
func (g *group) commit(ctx context.Context, b *groupBatch) {
	defer close(b.done)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordDeadline)
	defer cancel()
	b.err = g.turn.take(ctx)
	g.mu.Lock()
	g.waiting = nil
	g.mu.Unlock()
	if b.err != nil {
		return
	}
	defer g.turn.give()
	b.err = g.store.Update(ctx, func(tx *store.Tx) error {
		for _, w := range b.writes {
			w.err = w.do(tx)
			switch claviger.CodeOf(w.err) {
			case "", claviger.Conflict, claviger.NotFound, claviger.Exhausted:
			default:
				return w.err
			}
		}
		return nil
	})
}
