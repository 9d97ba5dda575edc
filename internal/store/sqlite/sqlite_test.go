package sqlite_test

import (
	"path/filepath"
	"testing"

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
