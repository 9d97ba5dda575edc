package storetest

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// Migrations runs the suite of migrations on a database that has had the first
// ones; they are what the dialect's package returns.
func Migrations(t *testing.T, db *sql.DB, d store.Dialect, have []store.Migration) {
	next := store.Migration{Number: len(have) + 1, Name: "next.sql",
		SQL: "CREATE TABLE extra (n BIGINT NOT NULL);\nINSERT INTO extra (n) VALUES (1);\n"}
	boom := errors.New("boom")
	migrate := func(last ...store.Migration) error {
		return store.Migrate(t.Context(), db, d, append(slices.Clone(have), last...))
	}
	rows := func() int {
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT n FROM extra").Scan(&n); err != nil {
			return -1
		}
		return n
	}
	if err := migrate(); err != nil {
		t.Fatalf("with nothing to do: %v", err)
	}

	// Whatever fails, nothing of the migration is left.
	broken := next
	broken.SQL += "CREATE TABLE;\n"
	before, after := next, next
	before.Before = func(context.Context, *sql.Tx) error { return boom }
	after.After = func(context.Context, *sql.Tx) error { return boom }
	for name, m := range map[string]store.Migration{"statement": broken, "before": before, "after": after} {
		if err := migrate(m); err == nil || name != "statement" && !errors.Is(err, boom) {
			t.Errorf("%s: %v, want its error", name, err)
		}
		if rows() != -1 {
			t.Fatalf("%s failed and the table is there", name)
		}
	}

	// Code before and after sees the schema as it was and as it is.
	whole := next
	whole.Before = func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "CREATE TABLE carried AS SELECT 41 AS n")
		return err
	}
	whole.After = func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE extra SET n = n + (SELECT n FROM carried)")
		return err
	}
	for range 2 { // the second time there is nothing to do
		if err := migrate(whole); err != nil {
			t.Fatalf("migrate: %v", err)
		}
		if got := rows(); got != 42 {
			t.Fatalf("the table holds %d, want 42", got)
		}
	}

	refused := func(name string, err error) {
		t.Helper()
		if e, ok := errors.AsType[*claviger.Error](err); !ok || e.Code != claviger.Unsupported || e.Hint == "" {
			t.Errorf("%s: %v, want unsupported with a hint", name, err)
		}
	}
	refused("a newer one that is not known", migrate())
	edited, renamed := whole, whole
	edited.SQL += "-- edited\n"
	renamed.Name = "renamed.sql"
	refused("edited", migrate(edited))
	refused("renamed", migrate(renamed))
}
