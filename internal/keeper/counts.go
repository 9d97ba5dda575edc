package keeper

import (
	"context"
	"strconv"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/store"
)

// counts gathers how often keys, versions and grants were used. Run writes
// them each second and Close at the end; a crash loses at most what was
// gathered since. What was used stands in the audit log in any case.
type counts struct {
	store *store.DB

	flushing turn // held across a flush, so that a reader sees each use once

	mu      sync.Mutex // guards pending
	pending map[string]Count
}

func newCounts(db *store.DB) *counts { return &counts{store: db, flushing: newTurn()} }

func keySubject(id claviger.ID) string   { return "key:" + string(id) }
func grantSubject(id claviger.ID) string { return "grant:" + string(id) }
func versionSubject(id claviger.ID, number uint32) string {
	return "version:" + string(id) + "/" + strconv.FormatUint(uint64(number), 10)
}

// addUse counts a use that is released.
func (c *counts) addUse(p permit, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := uint64(p.ask.count)
	c.add(keySubject(p.state.key.ID), n, now)
	c.add(grantSubject(p.allowed.Grant.ID), n, now)
	for number, n := range p.tally.versions {
		c.add(versionSubject(p.state.key.ID, number), n, now)
	}
}

// addSystem counts a use of a system key.
func (c *counts) addSystem(key claviger.ID, number uint32, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(keySubject(key), 1, now)
	c.add(versionSubject(key, number), 1, now)
}

func (c *counts) add(subject string, n uint64, now time.Time) {
	if c.pending == nil {
		c.pending = map[string]Count{}
	}
	have := c.pending[subject]
	have.Count += n
	if now.After(have.Last) {
		have.Last = now
	}
	c.pending[subject] = have
}

// flush writes what was gathered. What cannot be written is kept.
func (c *counts) flush(ctx context.Context) error {
	if err := c.flushing.take(ctx); err != nil {
		return err
	}
	defer c.flushing.give()
	c.mu.Lock()
	batch := c.pending
	c.pending = nil
	c.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	failpoint.Hit(failpoint.CountsFlush)
	uses := make([]store.Use, 0, len(batch))
	for subject, n := range batch {
		uses = append(uses, store.Use{Subject: subject, Count: n.Count, Last: n.Last})
	}
	err := c.store.Update(ctx, func(tx *store.Tx) error { return tx.AddUses(uses) })
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		for subject, n := range batch {
			c.add(subject, n.Count, n.Last)
		}
	}
	return err
}

// of returns the counts of subjects: what is stored, and what is not yet.
func (c *counts) of(ctx context.Context, subjects ...string) (map[string]Count, error) {
	// No flush may move counts from one side to the other meanwhile.
	if err := c.flushing.take(ctx); err != nil {
		return nil, err
	}
	defer c.flushing.give()
	all := map[string]Count{}
	err := c.store.View(ctx, func(tx *store.Tx) error {
		stored, err := tx.UsesOf(subjects...)
		for subject, use := range stored {
			all[subject] = Count{Count: use.Count, Last: use.Last}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, subject := range subjects {
		if n, ok := c.pending[subject]; ok {
			have := all[subject]
			have.Count += n.Count
			if n.Last.After(have.Last) {
				have.Last = n.Last
			}
			all[subject] = have
		}
	}
	return all, nil
}
