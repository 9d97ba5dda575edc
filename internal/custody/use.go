package custody

import (
	"context"
	"errors"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
)

var (
	errMismatch  = claviger.Errorf(claviger.Internal, "the key process used other material than was authorised", "the result was dropped; report this with the request id")
	errNoInput   = claviger.Errorf(claviger.Invalid, "an operation needs at least one input", "send 1 to 1000 inputs")
	errPairs     = claviger.Errorf(claviger.Invalid, "each input has one code", "send as many codes as inputs")
	errThrashing = claviger.Errorf(claviger.Unavailable, "the key process evicts keys faster than it uses them", "give it a larger arena")
)

// slow runs a verb that may take seconds. It cannot be told from a hang by
// waiting, so while it lasts the process is asked who it is.
func slow[R frames.Response](ctx context.Context, c *Client, req frames.Request) (R, error) {
	return attempt[R](ctx, c, slowLimit, func(k *conn, until time.Time) (frames.Response, error) {
		done := make(chan struct{})
		defer close(done)
		go k.pester(done)
		return k.roundTrip(ctx, req, until, true)
	})
}

// pester asks who the process is, now and then; the watch sees it when no
// answer comes.
func (k *conn) pester(done <-chan struct{}) {
	tick := time.NewTicker(k.timeout / 2)
	defer tick.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for {
		select {
		case <-done:
			return
		case <-k.dead:
			return
		case <-tick.C:
			if _, err := k.call(ctx, &frames.IdentityRequest{}, time.Now().Add(2*k.timeout)); err != nil {
				return
			}
		}
	}
}

// use runs a verb on loaded material and compares what was used with what was
// asked for. items is the count of results that are due, or -1.
func use[R used](ctx context.Context, c *Client, m Material, items int, request func(frames.Use) frames.Request) (r R, err error) {
	if items == 0 {
		return r, errNoInput
	}
	r, err = attempt[R](ctx, c, c.timeout, func(k *conn, until time.Time) (frames.Response, error) {
		for range 8 {
			slot, err := k.slot(ctx, m, until)
			if err != nil {
				return nil, err
			}
			resp, err := k.call(ctx, request(frames.Use{Slot: slot, Fingerprint: m.Fingerprint}), until)
			if !errors.Is(err, frames.ErrNotLoaded) {
				return resp, err
			}
			k.drop(m, slot)
		}
		return nil, errThrashing
	})
	if err != nil {
		return r, err
	}
	if f, n := outcome(r); f != m.Fingerprint || items > 0 && n != items {
		var none R
		return none, errMismatch
	}
	return r, nil
}

// used are the responses to a use.
type used interface {
	*frames.SignResponse | *frames.MACResponse | *frames.VerifyMACResponse |
		*frames.SealResponse | *frames.OpenResponse | *frames.FindResponse | *frames.RecipeResponse
	frames.Response
}

// outcome returns what material a response says was used, and its number of
// results.
func outcome(r frames.Response) (claviger.Fingerprint, int) {
	switch r := r.(type) {
	case *frames.SignResponse:
		return r.Fingerprint, len(r.Signatures)
	case *frames.MACResponse:
		return r.Fingerprint, len(r.MACs)
	case *frames.VerifyMACResponse:
		return r.Fingerprint, len(r.Valid)
	case *frames.SealResponse:
		return r.Fingerprint, len(r.Sealed)
	case *frames.OpenResponse:
		return r.Fingerprint, len(r.Opened)
	case *frames.RecipeResponse:
		return r.Fingerprint, len(r.Results)
	case *frames.FindResponse:
		return r.Fingerprint, -1
	}
	return claviger.Fingerprint{}, -1
}

// slot returns the slot of the material, loading the blob if nobody has. One
// caller loads; the others wait for it.
func (k *conn) slot(ctx context.Context, m Material, until time.Time) (frames.Slot, error) {
	key := loadable{m.Binding, m.Fingerprint}
	k.mu.Lock()
	l := k.slots[key]
	if l != nil {
		k.mu.Unlock()
		select {
		case <-l.ready:
			if l.err == nil {
				return l.slot, nil
			}
		default:
			if err := wait(ctx, l.ready, until); err != nil {
				return frames.Slot{}, err
			}
			if l.err == nil {
				return l.slot, nil
			}
		}
		return k.load(ctx, m, until) // that caller's trouble need not be ours
	}
	if len(k.slots) >= maxSlots {
		clear(k.slots)
	}
	l = &loading{ready: make(chan struct{})}
	k.slots[key] = l
	k.mu.Unlock()
	l.slot, l.err = k.load(ctx, m, until)
	close(l.ready)
	if l.err != nil {
		k.mu.Lock()
		if k.slots[key] == l {
			delete(k.slots, key)
		}
		k.mu.Unlock()
	}
	return l.slot, l.err
}

func (k *conn) load(ctx context.Context, m Material, until time.Time) (frames.Slot, error) {
	resp, err := k.call(ctx, &frames.LoadRequest{Binding: m.Binding, Blob: m.Blob}, until)
	if err != nil {
		return frames.Slot{}, err
	}
	r, ok := resp.(*frames.LoadResponse)
	if !ok || r.Fingerprint != m.Fingerprint {
		return frames.Slot{}, errMismatch
	}
	return r.Slot, nil
}

// drop forgets a slot that the process no longer has.
func (k *conn) drop(m Material, slot frames.Slot) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key := loadable{m.Binding, m.Fingerprint}
	if l := k.slots[key]; l != nil {
		select {
		case <-l.ready:
			if l.slot == slot {
				delete(k.slots, key)
			}
		default:
		}
	}
}

func (c *Client) unload(ctx context.Context, m Material) error {
	_, err := attempt[*frames.UnloadResponse](ctx, c, c.timeout, func(k *conn, until time.Time) (frames.Response, error) {
		k.mu.Lock()
		l := k.slots[loadable{m.Binding, m.Fingerprint}]
		k.mu.Unlock()
		if l == nil {
			return &frames.UnloadResponse{}, nil
		}
		if err := wait(ctx, l.ready, until); err != nil {
			return nil, err
		}
		k.drop(m, l.slot)
		return k.call(ctx, &frames.UnloadRequest{Slot: l.slot}, until)
	})
	return err
}
