package sqlite_test

import (
	"path/filepath"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/sqlite"
	"claviger.dev/internal/store/storetest"
)

func open(t testing.TB, path string) *store.DB {
	t.Helper()
	db, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return db
}

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) *store.DB { return open(t, filepath.Join(t.TempDir(), "store.db")) })
}

func TestMigrations(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.db")
	db := open(t, path)
	all, err := sqlite.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	storetest.Migrations(t, db.SQL(), sqlite.Dialect(db.SQL(), path), all)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(t.Context(), path); claviger.CodeOf(err) != claviger.Unsupported {
		t.Errorf("open a newer store: %v, want unsupported", err)
	}
	if unlock, err := sqlite.Lock(path); err != nil {
		t.Errorf("a store that was refused is still locked: %v", err)
	} else if err := unlock(); err != nil {
		t.Error(err)
	}
}
