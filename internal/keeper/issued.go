package keeper

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/state"
	"claviger.dev/internal/store"
)

const (
	// maxIssued bounds the tokens of one key that are kept.
	maxIssued = 1 << 20
	// keepIssuedFor is how long a token is kept that does not say when it ends,
	// and at most.
	keepIssuedFor = 400 * 24 * time.Hour
	trimEvery     = time.Minute
)

// issued is the record of issued tokens, of keys that ask for one: an HMAC of
// each by a system key, so that whoever reads the store cannot tell which
// tokens there are. It is durable before a token is released.
type issued struct {
	k *Keeper

	turn turn // held while what waits is written

	mu      sync.Mutex // guards what follows
	key     *systemKey // made at first use
	waiting *issuedBatch
}

// issuedBatch is written in one transaction: what several callers made at once.
type issuedBatch struct {
	rows []store.Issued
	done bool
	err  error
}

// systemKey returns the key of the digests.
func (s *issued) systemKey(ctx context.Context) (*systemKey, error) {
	s.mu.Lock()
	key := s.key
	s.mu.Unlock()
	if key != nil {
		return key, nil
	}
	key, err := s.k.systemKey(ctx, issuedKey, claviger.HMACSHA256, nil)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = key
	return key, nil
}

// digests returns a keyed digest of each token with what it is bound to.
func (s *issued) digests(ctx context.Context, key claviger.ID, version uint32, f state.Format, over []byte, tokens [][]byte) ([][32]byte, error) {
	by, err := s.systemKey(ctx)
	if err != nil {
		return nil, err
	}
	inputs := make([][]byte, len(tokens))
	for i, token := range tokens {
		var in []byte
		for _, part := range [][]byte{[]byte(key), binary.BigEndian.AppendUint32(nil, version), []byte(f), over, token} {
			in = append(binary.BigEndian.AppendUint32(in, uint32(len(part))), part...)
		}
		inputs[i] = in
	}
	macs, err := by.mac(ctx, inputs)
	if err != nil {
		return nil, err
	}
	out := make([][32]byte, len(macs))
	for i, mac := range macs {
		if len(mac) != 32 {
			return nil, checkAnswers(0, 1)
		}
		out[i] = [32]byte(mac)
	}
	return out, nil
}

// put makes rows durable. Callers that come while one writes are written
// together by the next.
func (s *issued) put(ctx context.Context, rows []store.Issued) error {
	s.mu.Lock()
	if s.waiting == nil {
		s.waiting = &issuedBatch{}
	}
	mine := s.waiting
	mine.rows = append(mine.rows, rows...)
	s.mu.Unlock()
	if err := s.turn.take(ctx); err != nil {
		return err
	}
	defer s.turn.give()
	if mine.done {
		return mine.err
	}
	s.mu.Lock()
	s.waiting = nil
	s.mu.Unlock()
	// It does not end with the caller whose turn it is: others wait for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordDeadline)
	defer cancel()
	mine.err = s.k.cfg.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutIssued(mine.rows) })
	mine.done = true
	return mine.err
}

// keepIssued puts tokens that were just made into the record.
func (k *Keeper) keepIssued(ctx context.Context, p permit, req ProtectRequest, tokens [][]byte) error {
	key, version := p.state.key, p.version().Number
	digests, err := k.issued.digests(ctx, key.ID, version, req.Format, req.Params.Over, tokens)
	if err != nil {
		return err
	}
	now := k.cfg.Now()
	last := now.Add(keepIssuedFor)
	expires := req.Params.Expires
	if expires.IsZero() || expires.After(last) {
		expires = last
	}
	if expires.Before(now) {
		expires = now.Add(trimEvery)
	}
	rows := make([]store.Issued, len(digests))
	for i, d := range digests {
		rows[i] = store.Issued{Key: key.ID, Version: version, Digest: d, Expires: expires}
	}
	return k.issued.put(ctx, rows)
}

// passing takes back what was opened by a version that was exposed and does
// not pass. It looks like any other token that is wrong.
func (k *Keeper) passing(ctx context.Context, p permit, v *claviger.Version, req UnprotectRequest, tokens [][]byte, opened []state.Opened) error {
	recorded := make([]bool, len(tokens))
	if v.Exposure.Recorded {
		digests, err := k.issued.digests(ctx, p.state.key.ID, v.Number, req.Format, req.Params.Over, tokens)
		if err != nil {
			return err
		}
		err = k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
			recorded, err = tx.IsIssued(p.state.key.ID, v.Number, digests)
			return err
		})
		if err != nil {
			return err
		}
	}
	for i, o := range opened {
		// What the caller says that it is for is no part of the token.
		if o.OK && !v.Exposure.Passes(k.cfg.Now(), string(req.Format), o.Facts.Purpose, o.Facts.Issued, recorded[i]) {
			opened[i] = state.Opened{}
		}
	}
	return nil
}

// trimIssued forgets what has ended, and what a key has too many of.
func (k *Keeper) trimIssued(ctx context.Context, now time.Time) error {
	var over int64
	err := k.cfg.Store.Update(ctx, func(tx *store.Tx) (err error) {
		over, err = tx.TrimIssued(now, maxIssued)
		return err
	})
	if over > 0 {
		k.cfg.Log.Warn("the record of issued tokens is full; the ones that end first are forgotten", "tokens", over)
	}
	return err
}
