package postgres_test

import (
	"testing"

	"claviger.dev/internal/store/postgres/pgtest"
	"claviger.dev/internal/store/storetest"
)

func BenchmarkList100000(b *testing.B) {
	db := open(b, pgtest.Start(b))
	b.Cleanup(func() { _ = db.Close() })
	storetest.Seed(b, db, 100_000)
	if _, err := db.SQL().ExecContext(b.Context(), "ANALYZE"); err != nil { // what autovacuum would have done
		b.Fatal(err)
	}
	storetest.BenchList(b, db)
}

func BenchmarkUpdate(b *testing.B) { // the test's server does not sync
	db := open(b, pgtest.Start(b))
	b.Cleanup(func() { _ = db.Close() })
	storetest.BenchUpdate(b, db)
}
