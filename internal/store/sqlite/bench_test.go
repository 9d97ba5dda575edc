package sqlite_test

import (
	"path/filepath"
	"testing"

	"claviger.dev/internal/store"
	"claviger.dev/internal/store/storetest"
)

// seed puts n keys into a new store.
func seed(b *testing.B, n int) (path string) {
	b.Helper()
	path = filepath.Join(b.TempDir(), "store.db")
	db := open(b, path)
	storetest.Seed(b, db, n)
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	return path
}

func BenchmarkOpen10000(b *testing.B) {
	path := seed(b, 10_000)
	for b.Loop() {
		if err := open(b, path).Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkList100000(b *testing.B) {
	db := open(b, seed(b, 100_000))
	b.Cleanup(func() { _ = db.Close() })
	storetest.BenchList(b, db)
}

func BenchmarkUpdate(b *testing.B) {
	db := open(b, filepath.Join(b.TempDir(), "store.db"))
	b.Cleanup(func() { _ = db.Close() })
	storetest.BenchUpdate(b, db)
}

// BenchmarkFsync is what BenchmarkUpdate cannot be faster than.
func BenchmarkFsync(b *testing.B) { storetest.BenchFsync(b) }

func BenchmarkViewKeyAndGrants(b *testing.B) {
	db := open(b, filepath.Join(b.TempDir(), "store.db"))
	b.Cleanup(func() { _ = db.Close() })
	p := storetest.NewPrincipal("web")
	if err := db.Update(b.Context(), func(tx *store.Tx) error {
		if err := tx.InsertPrincipal(p); err != nil {
			return err
		}
		for range 5 {
			if err := tx.InsertGrant(storetest.NewGrant(p.ID, "prod/*/*")); err != nil {
				return err
			}
		}
		return tx.InsertKey(storetest.NewKey("prod/a/b"))
	}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := db.View(b.Context(), func(tx *store.Tx) error {
			if _, err := tx.Key("prod/a/b"); err != nil {
				return err
			}
			_, err := tx.GrantsOf(p.ID)
			return err
		}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEvidence10000(b *testing.B) {
	db := open(b, filepath.Join(b.TempDir(), "store.db"))
	b.Cleanup(func() { _ = db.Close() })
	storetest.BenchEvidence(b, db)
}
