package storetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/store"
)

func uses(t *testing.T, db *store.DB) {
	many := []store.Use{{Subject: "key:a", Count: 2, Last: now()}, {Subject: "key:a", Count: 3, Last: now().Add(-time.Hour)}, {Subject: "key:b"}}
	subjects := []string{"key:a", "key:b", "key:never"}
	for i := range 1200 {
		many = append(many, store.Use{Subject: fmt.Sprint("version:", i), Count: 1, Last: now()})
		subjects = append(subjects, fmt.Sprint("version:", i))
	}
	update(t, db, func(tx *store.Tx) error { return tx.AddUses(nil) })
	update(t, db, func(tx *store.Tx) error { return tx.AddUses(many) })
	update(t, db, func(tx *store.Tx) error {
		return tx.AddUses([]store.Use{{Subject: "key:a", Count: 1, Last: now().Add(-time.Minute)}})
	})
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.UsesOf(subjects...)
		diff(t, "subjects", 1202, len(got))
		diff(t, "key:a", store.Use{Subject: "key:a", Count: 6, Last: now()}, got["key:a"])
		diff(t, "key:b", store.Use{Subject: "key:b"}, got["key:b"])
		return err
	})
	if err := together(16, func(int) error {
		return db.Update(context.Background(), func(tx *store.Tx) error {
			return tx.AddUses([]store.Use{{Subject: "key:b", Count: 5}, {Subject: "key:c", Count: 1}})
		})
	}); err != nil {
		t.Fatal(err)
	}
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.UsesOf("key:b", "key:c")
		diff(t, "added at once", map[string]store.Use{"key:b": {Subject: "key:b", Count: 80}, "key:c": {Subject: "key:c", Count: 16}}, got)
		return err
	})
}

func budgetIsExact(t *testing.T, db *store.DB) {
	for _, step := range []struct{ want, limit, granted uint64 }{
		{0, 10, 0}, {4, 10, 4}, {4, 10, 4}, {4, 10, 2}, {4, 10, 0},
		{1, 12, 1}, // a limit that was raised
		{1, 5, 0},  // and one that was lowered below what is used
		{5, 12, 1},
	} {
		update(t, db, func(tx *store.Tx) error {
			granted, err := tx.TakeBudget("grant:a", step.want, step.limit)
			diff(t, fmt.Sprintf("%d of %d", step.want, step.limit), step.granted, granted)
			return err
		})
	}
	for _, back := range []struct{ unused, granted uint64 }{{3, 3}, {1 << 60, 12}} {
		update(t, db, func(tx *store.Tx) error {
			if err := tx.ReturnBudget("grant:a", back.unused); err != nil {
				return err
			}
			granted, err := tx.TakeBudget("grant:a", 99, 12)
			diff(t, fmt.Sprintf("after %d came back", back.unused), back.granted, granted)
			return err
		})
	}
	for range 2 {
		update(t, db, func(tx *store.Tx) error {
			_, err := tx.TakeBudget("grant:huge", math.MaxUint64, math.MaxUint64)
			return err
		})
	}
	update(t, db, func(tx *store.Tx) error {
		granted, err := tx.TakeBudget("grant:none", 3, 0)
		diff(t, "of nothing", uint64(0), granted)
		return err
	})
}

func budgetContention(t *testing.T, db *store.DB) {
	const limit = 1000
	var total atomic.Uint64
	if err := together(64, func(i int) error {
		for range 4 {
			var granted uint64
			if err := db.Update(context.Background(), func(tx *store.Tx) (err error) {
				granted, err = tx.TakeBudget("grant:a", uint64(1+i%9), limit)
				return err
			}); err != nil {
				return err
			}
			total.Add(granted)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := total.Load(); got != limit {
		t.Errorf("%d were granted of %d", got, limit)
	}
}

func outbox(t *testing.T, db *store.DB) {
	var seqs []uint64
	var want []store.Outgoing
	for i := range 5 {
		line := []byte(fmt.Sprintf("{\"n\":%d}\x00\xff", i))
		update(t, db, func(tx *store.Tx) error {
			seq, err := tx.PushOutbox(line)
			seqs, want = append(seqs, seq), append(want, store.Outgoing{Seq: seq, Line: line})
			return err
		})
	}
	check := func(limit int, want []store.Outgoing) {
		t.Helper()
		view(t, db, func(tx *store.Tx) error {
			got, err := tx.Outbox(limit)
			diff(t, "in a view", want, got)
			return err
		})
		update(t, db, func(tx *store.Tx) error {
			got, err := tx.Outbox(limit)
			diff(t, "in an update", want, got)
			return err
		})
	}
	check(0, want)
	check(2, want[:2])
	update(t, db, func(tx *store.Tx) error { return tx.DropOutbox(seqs[1], seqs[3]) })
	update(t, db, func(tx *store.Tx) error { return tx.DropOutbox(seqs[1]) })
	check(0, []store.Outgoing{want[0], want[2], want[4]})
	// A number is never given twice, even when the last row is gone.
	update(t, db, func(tx *store.Tx) error { return tx.DropOutbox(seqs...) })
	update(t, db, func(tx *store.Tx) error {
		seq, err := tx.PushOutbox([]byte("{}"))
		if seq <= seqs[4] {
			t.Errorf("number %d again", seq)
		}
		return err
	})
}

func meta(t *testing.T, db *store.DB) {
	update(t, db, func(tx *store.Tx) error {
		if _, err := tx.Meta("a"); !errors.Is(err, claviger.NotFound) {
			t.Errorf("meta: %v, want not found", err)
		}
		return errors.Join(tx.PutMeta("a", []byte{0, 255}), tx.PutMeta("b", nil))
	})
	update(t, db, func(tx *store.Tx) error { return tx.PutMeta("a", []byte("again")) })
	view(t, db, func(tx *store.Tx) error {
		for name, want := range map[string][]byte{"a": []byte("again"), "b": nil} {
			got, err := tx.Meta(name)
			if err != nil {
				return err
			}
			diff(t, name, want, got)
		}
		return nil
	})
}
