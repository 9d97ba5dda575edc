package keeper

import (
	"context"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/store"
)

// largestBlock is the most operations that are taken from the store at once.
const largestBlock = 1 << 16

// budgets holds what this server has taken of counts, in blocks, and the token
// buckets of rates. Counts are exact over all servers and restarts: what a
// block has left is given back at Close, and lost in a crash, which errs on
// the safe side. Rates hold for each server.
type budgets struct {
	store *store.DB

	mu      sync.Mutex // guards the maps
	blocks  map[subject]*block
	buckets map[claviger.ID]*bucket
}

// block is what is left of the operations taken for one subject.
type block struct {
	turn  // held to look at the rest, and while more is taken
	left  uint64
	limit uint64 // under which it was taken
}

// bucket is a token bucket.
type bucket struct {
	tokens float64
	at     time.Time
	rate   claviger.Rate
}

func newBudgets(db *store.DB) *budgets {
	return &budgets{store: db, blocks: map[subject]*block{}, buckets: map[claviger.ID]*bucket{}}
}

// take takes n operations from a subject's budget, all or none. A limit of 0
// is none.
func (b *budgets) take(ctx context.Context, of subject, n, limit uint64) (bool, error) {
	if limit == 0 {
		return true, nil
	}
	bl := b.block(of)
	if err := bl.take(ctx); err != nil {
		return false, err
	}
	defer bl.give()
	if bl.limit != limit && bl.left > 0 { // it was tightened: what is left may be over the new limit
		if err := b.giveBack(ctx, of, bl); err != nil {
			return false, err
		}
	}
	bl.limit = limit
	if bl.left < n {
		granted, err := b.fetch(ctx, of, max(n-bl.left, blockSize(limit)), limit)
		if err != nil {
			return false, err
		}
		bl.left += granted
	}
	if bl.left < n {
		return false, nil
	}
	bl.left -= n
	return true, nil
}

// put gives operations back that were taken and not done.
func (b *budgets) put(ctx context.Context, of subject, n uint64) {
	bl := b.block(of)
	if bl.take(ctx) != nil {
		return // they are lost, which errs on the safe side
	}
	defer bl.give()
	if bl.limit > 0 {
		bl.left += n
	}
}

// giveBackAll gives back what every block has left.
func (b *budgets) giveBackAll(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for of, bl := range b.blocks {
		err := bl.take(ctx)
		if err == nil {
			err = b.giveBack(ctx, of, bl)
			bl.give()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *budgets) giveBack(ctx context.Context, of subject, bl *block) error {
	if bl.left == 0 {
		return nil
	}
	if err := b.store.Update(ctx, func(tx *store.Tx) error { return tx.ReturnBudget(of.String(), bl.left) }); err != nil {
		return err
	}
	bl.left = 0
	return nil
}

func (b *budgets) fetch(ctx context.Context, of subject, want, limit uint64) (granted uint64, err error) {
	err = b.store.Update(ctx, func(tx *store.Tx) error {
		var err error
		granted, err = tx.TakeBudget(of.String(), want, limit)
		return err
	})
	failpoint.Hit(failpoint.BudgetTaken)
	return granted, err
}

func (b *budgets) block(of subject) *block {
	b.mu.Lock()
	defer b.mu.Unlock()
	bl, ok := b.blocks[of]
	if !ok {
		bl = &block{turn: newTurn()}
		b.blocks[of] = bl
	}
	return bl
}

// blockSize is small beside the limit, so that servers do not starve one
// another and a crash loses little.
func blockSize(limit uint64) uint64 { return min(max(limit/256, 1), largestBlock) }

// takeRate takes n tokens of a grant's bucket, all or none.
func (b *budgets) takeRate(g *claviger.Grant, n uint64, now time.Time) bool {
	return b.takeTokens(g.ID, g.Conditions.Rate, n, now)
}

// takeTokens takes n tokens of the bucket of a grant or a session, all or none.
func (b *budgets) takeTokens(of claviger.ID, rate *claviger.Rate, n uint64, now time.Time) bool {
	if rate == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	bu, ok := b.buckets[of]
	if !ok {
		bu = &bucket{tokens: float64(rate.Burst), at: now}
		b.buckets[of] = bu
	}
	// A clock that was set back adds nothing, and one that was set forward no
	// more than one burst.
	if passed := now.Sub(bu.at); passed > 0 {
		bu.tokens += passed.Seconds() * rate.PerSecond
	}
	bu.at, bu.rate = now, *rate
	bu.tokens = min(bu.tokens, float64(rate.Burst))
	if bu.tokens < float64(n) {
		return false
	}
	bu.tokens -= float64(n)
	return true
}

// forget drops what is held of a session that has ended.
func (b *budgets) forget(session claviger.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.buckets, session)
	delete(b.blocks, sessionSubject(session))
}

// prune drops what is worth no more than nothing: buckets that are full again,
// and blocks that have nothing left. Of a session that ended through another
// server nothing else tells.
func (b *budgets) prune(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, bu := range b.buckets {
		if bu.tokens+now.Sub(bu.at).Seconds()*bu.rate.PerSecond >= float64(bu.rate.Burst) {
			delete(b.buckets, id)
		}
	}
	for of, bl := range b.blocks {
		select {
		case bl.turn <- struct{}{}:
			if bl.left == 0 {
				delete(b.blocks, of)
			}
			bl.give()
		default: // in use
		}
	}
}

// returnRate gives tokens back that were taken and not used.
func (b *budgets) returnRate(g *claviger.Grant, n uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if bu, ok := b.buckets[g.ID]; ok {
		bu.tokens += float64(n)
	}
}
