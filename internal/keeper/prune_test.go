package keeper

import (
	"testing"
	"time"

	"claviger.dev"
)

// TestPrune has a server drop what it holds for budgets that nobody uses any
// more, and nothing that still bounds anything.
func TestPrune(t *testing.T) {
	t.Parallel()
	b, now := newBudgets(nil), time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	rate := &claviger.Rate{PerSecond: 1, Burst: 10}
	b.takeTokens("full", rate, 1, now)
	b.takeTokens("empty", rate, 10, now)
	b.block(sessionSubject("none"))
	b.block(sessionSubject("some")).left = 1
	used := b.block(sessionSubject("used"))
	if err := used.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.prune(now.Add(5 * time.Second))
	for id, want := range map[claviger.ID]bool{"full": false, "empty": true} {
		if _, ok := b.buckets[id]; ok != want {
			t.Errorf("the bucket %s is there: %t", id, ok)
		}
	}
	for id, want := range map[claviger.ID]bool{"none": false, "some": true, "used": true} {
		if _, ok := b.blocks[sessionSubject(id)]; ok != want {
			t.Errorf("the block %s is there: %t", id, ok)
		}
	}
	if b.takeTokens("empty", rate, 6, now.Add(5*time.Second)) {
		t.Error("a bucket gave more than it had")
	}
}
