package postgres_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/postgres/pgtest"
	"claviger.dev/internal/store/storetest"
)

func feed(t *testing.T, db *store.DB) store.Feed {
	t.Helper()
	f, err := db.Feed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close(context.Background()) })
	return f
}

func insert(t *testing.T, db *store.DB, names ...claviger.Name) (ids []claviger.ID) {
	t.Helper()
	if err := db.Update(t.Context(), func(tx *store.Tx) error {
		ids = nil
		for _, name := range names {
			k := storetest.NewKey(name)
			ids = append(ids, k.ID)
			if err := tx.InsertKey(k); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return ids
}

func execute(t *testing.T, db *store.DB, query string) {
	t.Helper()
	if _, err := db.SQL().ExecContext(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}

// TestNews asks for what is new from every kind of position.
func TestNews(t *testing.T) {
	t.Parallel()
	db := open(t, pgtest.Start(t))
	f := feed(t, db)
	ask := func(from store.Position) store.News {
		t.Helper()
		n, err := f.News(t.Context(), "a", from)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := ask(store.Position{})
	if !first.Holds || !first.All || first.Beat != 1 || first.Head.Number != 0 || first.Head.Database == "" || first.Head.Tag == "" {
		t.Fatalf("the first news: %+v", first)
	}
	if n := ask(first.Head); !n.Holds || n.All || len(n.Touched) != 0 || n.Head != first.Head || n.Beat != 2 {
		t.Errorf("nothing new: %+v", n)
	}
	one := insert(t, db, "prod/a/one")
	two := insert(t, db, "prod/a/two", "prod/a/three")
	n := ask(first.Head)
	want := append(one, two...)
	slices.Sort(want) // of one change in no order
	slices.Sort(n.Touched)
	if diff := cmp.Diff(want, n.Touched); diff != "" || n.All || !n.Holds || n.Head.Number != 2 {
		t.Errorf("two changes: %+v (-want +got):\n%s", n, diff)
	}

	// A server of the version before says nothing of what it touched.
	execute(t, db, `UPDATE change_sequence SET value = value + 1 WHERE id = 1`)
	if old := ask(n.Head); !old.All || !old.Holds || old.Head.Number != 3 {
		t.Errorf("after a change that said nothing: %+v", old)
	}
	for i := range 1001 { // more than one look lists
		if i%100 == 0 {
			insert(t, db, claviger.Name(fmt.Sprintf("prod/b/k%d", i)))
		} else {
			execute(t, db, `UPDATE change_sequence SET value = value + 1, touched = 'x' WHERE id = 1`)
		}
	}
	if many := ask(n.Head); !many.All || !many.Holds || many.Head.Number != 3+1001 {
		t.Errorf("after 1001 changes: all %v, holds %v, head %d", many.All, many.Holds, many.Head.Number)
	}

	head := ask(first.Head).Head
	for name, from := range map[string]store.Position{
		"other database": {Database: "11111111-1111-1111-1111-111111111111", Number: head.Number, Tag: head.Tag},
		"later number":   {Database: head.Database, Number: head.Number + 1, Tag: head.Tag},
		"other change":   {Database: head.Database, Number: 2, Tag: head.Tag},
	} {
		if n := ask(from); n.Holds {
			t.Errorf("%s: it holds", name)
		}
		if err := db.View(t.Context(), func(tx *store.Tx) error {
			got, holds, err := tx.Position(from)
			if holds || got != head {
				t.Errorf("%s in a view: holds %v, head %+v", name, holds, got)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	execute(t, db, `UPDATE changes SET at = now() - interval '8 days'`)
	if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.TrimChanges(7 * 24 * time.Hour) }); err != nil {
		t.Fatal(err)
	}
	if !ask(n.Head).Holds {
		t.Error("one of the newest changes was trimmed")
	}
	execute(t, db, `UPDATE change_sequence SET value = value + 20000 WHERE id = 1`)
	if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.TrimChanges(7 * 24 * time.Hour) }); err != nil {
		t.Fatal(err)
	}
	if ask(n.Head).Holds {
		t.Error("what was trimmed is said to be held")
	}
}

func TestReplicas(t *testing.T) {
	t.Parallel()
	db := open(t, pgtest.Start(t))
	a, b := feed(t, db), feed(t, db)
	at, err := a.News(t.Context(), "a", store.Position{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := a.News(t.Context(), "a", at.Head); err != nil {
			t.Fatal(err)
		}
	}
	wrong := at.Head
	wrong.Tag = wrong.Database
	if _, err := b.News(t.Context(), "b", wrong); err != nil {
		t.Fatal(err)
	}
	list := func() (got []store.Replica) {
		t.Helper()
		if err := db.View(t.Context(), func(tx *store.Tx) (err error) { got, err = tx.Replicas(); return err }); err != nil {
			t.Fatal(err)
		}
		return got
	}
	want := []store.Replica{{Node: "a", Holds: true, Beat: 3}, {Node: "b", Beat: 1}}
	if diff := cmp.Diff(want, list()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if err := db.Update(t.Context(), func(tx *store.Tx) error {
		for _, r := range []store.Replica{{Node: "a", Beat: 2}, {Node: "b", Beat: 1}} {
			if err := tx.DropReplica(r); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want[:1], list()); diff != "" {
		t.Errorf("after one was heard of since: -want +got:\n%s", diff)
	}
}

// TestListen is woken by the change of another server.
func TestListen(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	a, b := open(t, dsn), open(t, dsn)
	woken := make(chan struct{}, 8)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Listen(ctx, func() { woken <- struct{}{} }) }()
	<-woken // it listens
	insert(t, b, "prod/a/b")
	<-woken
	cancel()
	if err := <-done; err == nil {
		t.Error("listening ended without an error")
	}
}
