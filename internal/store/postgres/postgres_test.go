package postgres_test

import (
	"testing"

	"claviger.dev/internal/store"
	"claviger.dev/internal/store/postgres"
	"claviger.dev/internal/store/postgres/pgtest"
	"claviger.dev/internal/store/storetest"
)

func open(t testing.TB, dsn string) *store.DB {
	t.Helper()
	db, err := postgres.Open(t.Context(), postgres.Config{DSN: dsn})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return db
}

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) *store.DB { return open(t, pgtest.Start(t)) })
}
