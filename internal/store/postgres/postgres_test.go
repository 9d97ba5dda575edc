package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"claviger.dev"
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
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) *store.DB { return open(t, pgtest.Start(t)) })
}

func TestMigrations(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	all, err := postgres.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	storetest.Migrations(t, open(t, dsn).SQL(), postgres.Dialect(), all)
	if _, err := postgres.Open(t.Context(), postgres.Config{DSN: dsn}); claviger.CodeOf(err) != claviger.Unsupported {
		t.Errorf("open a newer store: %v, want unsupported", err)
	}
}

// TestTwoServers opens one new database from several servers at once, and has
// what one writes seen by the others.
func TestTwoServers(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	servers := make([]*store.DB, 4)
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i := range servers {
		wg.Go(func() {
			servers[i], errs[i] = postgres.Open(context.Background(), postgres.Config{DSN: dsn, Writers: 2, Readers: 2})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, db := range servers {
		t.Cleanup(func() { _ = db.Close() })
		k := storetest.NewKey(claviger.Name(fmt.Sprintf("prod/a/key-%d", i)))
		if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.InsertKey(k) }); err != nil {
			t.Fatal(err)
		}
		for j, other := range servers {
			if r, err := other.Revision(t.Context()); r != uint64(i+1) || err != nil {
				t.Errorf("server %d is at %d, %v; want %d", j, r, err, i+1)
			}
			if err := other.View(t.Context(), func(tx *store.Tx) error { _, err := tx.Key(string(k.ID)); return err }); err != nil {
				t.Errorf("server %d does not see key %d: %v", j, i, err)
			}
		}
	}
	if !servers[0].Shared() {
		t.Error("a PostgreSQL store says that it is not shared")
	}
}

// TestOutboxIsTakenByOne drains the outbox from one server while another does.
func TestOutboxIsTakenByOne(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	a, b := open(t, dsn), open(t, dsn)
	for range 4 {
		if err := a.Update(t.Context(), func(tx *store.Tx) error { _, err := tx.PushOutbox([]byte("{}")); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Update(t.Context(), func(tx *store.Tx) error {
		mine, err := tx.Outbox(3)
		if err != nil {
			return err
		}
		if err := b.Update(t.Context(), func(tx *store.Tx) error {
			others, err := tx.Outbox(10)
			if len(mine) != 3 || len(others) != 1 || others[0].Seq != mine[2].Seq+1 {
				t.Errorf("one server took %v, the other %v", mine, others)
			}
			return err
		}); err != nil {
			return err
		}
		return tx.DropOutbox(mine[0].Seq)
	}); err != nil {
		t.Fatal(err)
	}
}

func TestLostConnectionsAreUnavailableAndComeBack(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	db, killer := open(t, dsn), open(t, dsn)
	insert := func(tx *store.Tx) error { return tx.InsertKey(storetest.NewKey("prod/a/b")) }
	kill := func() {
		t.Helper()
		if _, err := killer.SQL().ExecContext(t.Context(), `SELECT pg_terminate_backend(a.pid, 10000) FROM pg_stat_activity a
			WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()`); err != nil {
			t.Fatal(err)
		}
	}
	err := db.Update(t.Context(), func(tx *store.Tx) error {
		if err := insert(tx); err != nil {
			return err
		}
		kill()
		return nil
	})
	if claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("update that lost its connection: %v, want unavailable", err)
	}
	if err := db.Update(t.Context(), insert); err != nil {
		t.Errorf("the next: %v", err)
	}
	if err := db.View(t.Context(), func(tx *store.Tx) error {
		kill()
		_, err := tx.Key("prod/a/b")
		return err
	}); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("view that lost its connection: %v, want unavailable", err)
	}
	if r, err := db.Revision(t.Context()); r != 1 || err != nil {
		t.Errorf("revision %d, %v; want 1", r, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	admin := open(t, dsn)
	if _, err := admin.SQL().ExecContext(t.Context(), `CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0`); err != nil {
		t.Fatal(err)
	}
	host, _, _ := strings.Cut(dsn, " ")
	for name, test := range map[string]struct {
		dsn  string
		want claviger.Code
	}{
		"encoding":   {host + " user=claviger dbname=latin", claviger.Invalid},
		"database":   {host + " user=claviger dbname=nothing", claviger.Unavailable},
		"user":       {host + " user=nobody dbname=postgres", claviger.Unavailable},
		"no server":  {"host=" + filepath.Join(t.TempDir(), "none"), claviger.Unavailable},
		"bad string": {"postgres://user:geheim@host:port/", claviger.Invalid},
	} {
		_, err := postgres.Open(t.Context(), postgres.Config{DSN: test.dsn})
		if claviger.CodeOf(err) != test.want || strings.Contains(fmt.Sprint(err), "geheim") {
			t.Errorf("%s: %v, want %s and no password", name, err, test.want)
		}
	}
}

func TestReadOnlyIsUnavailable(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	db := open(t, dsn+" default_transaction_read_only=off")
	standby, err := postgres.Open(t.Context(), postgres.Config{DSN: dsn + " default_transaction_read_only=on"})
	if err != nil {
		if claviger.CodeOf(err) != claviger.Unavailable {
			t.Errorf("open: %v, want unavailable", err)
		}
		return
	}
	defer func() { _ = standby.Close() }()
	insert := func(tx *store.Tx) error { return tx.InsertKey(storetest.NewKey("prod/a/b")) }
	if err := standby.Update(t.Context(), insert); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("update: %v, want unavailable", err)
	}
	if err := db.Update(t.Context(), insert); err != nil {
		t.Error(err)
	}
}
