package main

import (
	"context"
	"sync"
	"time"

	"claviger.dev"
)

// How a run makes room for others.
const (
	listenEach = 2 * time.Second        // calls stop as often, to see what others ask of the server
	listenFor  = 150 * time.Millisecond // and for as long
	quiet      = listenFor / 5          // of the processor's time, at most: nobody asks for much
	restFor    = 16                     // beside others each call rests as many times as long as it took
)

// pace is at what pace the calls of a run follow each other: without a pause
// while nobody else uses the server, and far apart while somebody does. What
// others use is what the server's process uses while the run is silent. A
// server that is not on this machine is taken for one that is used.
type pace struct {
	server int          // its process; 0 where it is not on this machine
	calls  sync.RWMutex // held shared by each call, and alone to listen

	mu   sync.Mutex // guards the others
	next time.Time  // when to listen again
	busy bool
}

// patiently calls until the server does not say that there are too many calls,
// and rests. A refusal is what hostile calls are for: only a server that does
// not answer ends the run.
func (p *pace) patiently(ctx context.Context, call func() error) error {
	for {
		busy, err := p.listen(ctx)
		if err != nil {
			return err
		}
		p.calls.RLock()
		began := time.Now()
		err = call()
		took := time.Since(began)
		p.calls.RUnlock()
		switch code := claviger.CodeOf(err); {
		case ctx.Err() != nil:
			return ctx.Err()
		case code == claviger.Unavailable || code == claviger.Deadline:
			return err
		case code == claviger.Exhausted:
			err = rest(ctx, 50*time.Millisecond)
		case busy:
			return rest(ctx, restFor*took)
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// listen reports whether others use the server. From time to time it waits for
// the calls that are under way, and holds back those to come, to find out.
func (p *pace) listen(ctx context.Context) (busy bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().Before(p.next) {
		return p.busy, nil
	}
	p.calls.Lock()
	defer p.calls.Unlock()
	before, errBefore := usageOf(p.server)
	if err := rest(ctx, listenFor); err != nil {
		return false, err
	}
	after, errAfter := usageOf(p.server)
	p.busy = errBefore != nil || errAfter != nil || after.cpu-before.cpu > quiet
	p.next = time.Now().Add(listenEach)
	return p.busy, nil
}
