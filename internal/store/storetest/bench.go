package storetest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// Seed puts n keys into a store: ten applications in each of n/1000
// environments, with labels and two owners.
func Seed(b *testing.B, db *store.DB, n int) {
	b.Helper()
	for from := 0; from < n; from += 5000 {
		if err := db.Update(b.Context(), func(tx *store.Tx) error {
			for i := from; i < min(from+5000, n); i++ {
				k := NewKey(claviger.Name(fmt.Sprintf("env-%d/app-%d/key-%d", i%max(1, n/1000), i%10, i)))
				k.Owner = fmt.Sprintf("Team %d", i%2)
				k.Labels = map[string]string{"half": fmt.Sprint(i % 2), "thousandth": fmt.Sprint(i % 1000)}
				if err := tx.InsertKey(k); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchList measures one page of 100 keys, chosen in each of the ways.
func BenchList(b *testing.B, db *store.DB) {
	for _, list := range []struct {
		name  string
		query store.KeyQuery
		least int
	}{
		{"first", store.KeyQuery{}, 100},
		{"middle", store.KeyQuery{After: "env-5"}, 100},
		{"environment", store.KeyQuery{Selector: "env-7/*/*"}, 100},
		{"application", store.KeyQuery{Selector: "*/app-3/*"}, 100},
		{"purpose", store.KeyQuery{Selector: "*/*/key-777"}, 1},
		{"substring-often", store.KeyQuery{Search: "key-9"}, 100},
		{"substring-once", store.KeyQuery{Search: "/key-99999"}, 1},
		{"substring-never", store.KeyQuery{Search: "nothing"}, 0},
		{"label-half", store.KeyQuery{Labels: map[string]string{"half": "1"}}, 100},
		{"label-few", store.KeyQuery{Labels: map[string]string{"thousandth": "7"}}, 100},
		{"labels-two", store.KeyQuery{Labels: map[string]string{"half": "1", "thousandth": "7"}}, 100},
		{"labels-none", store.KeyQuery{Labels: map[string]string{"half": "0", "thousandth": "7"}}, 0},
		{"state-all", store.KeyQuery{State: claviger.Active}, 100},
		{"state-none", store.KeyQuery{State: claviger.Compromised}, 0},
		{"owner", store.KeyQuery{Owner: "Team 1"}, 100},
		{"together", store.KeyQuery{Selector: "*/app-3/*", Search: "99", Labels: map[string]string{"half": "1"}, State: claviger.Active}, 100},
	} {
		b.Run(list.name, func(b *testing.B) {
			for b.Loop() {
				if err := db.View(b.Context(), func(tx *store.Tx) error {
					keys, _, err := tx.Keys(list.query)
					if len(keys) < list.least {
						b.Fatalf("%d keys, want %d", len(keys), list.least)
					}
					return err
				}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchUpdate measures one change of a key with its outbox row.
func BenchUpdate(b *testing.B, db *store.DB) {
	k := NewKey("prod/a/b")
	if err := db.Update(b.Context(), func(tx *store.Tx) error { return tx.InsertKey(k) }); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := db.Update(b.Context(), func(tx *store.Tx) error {
			if err := tx.UpdateKey(k); err != nil {
				return err
			}
			_, err := tx.PushOutbox([]byte(`{"action":"key.update"}`))
			return err
		}); err != nil {
			b.Fatal(err)
		}
		k.Revision++
	}
}

// BenchFsync measures one append and sync of 32 KiB, about what one change
// writes.
func BenchFsync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	block := make([]byte, 32<<10)
	for b.Loop() {
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchEvidence measures what a refresh of 10 000 levels writes, in one change.
func BenchEvidence(b *testing.B, db *store.DB) {
	Seed(b, db, 10_000)
	var list []store.Evidence
	for after, more := "", true; more; more = after != "" {
		if err := db.View(b.Context(), func(tx *store.Tx) error {
			page, next, err := tx.Keys(store.KeyQuery{After: after, Limit: store.MaxLimit})
			for _, k := range page {
				list = append(list, store.Evidence{Key: k.ID, Version: 1, Level: claviger.Isolated, Shown: now(), Run: k.ID})
			}
			after = next
			return err
		}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if err := db.Update(b.Context(), func(tx *store.Tx) error { _, err := tx.PutEvidence(list); return err }); err != nil {
			b.Fatal(err)
		}
	}
}
