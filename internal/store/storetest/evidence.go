package storetest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// put records evidence that must be accepted, and returns how many stayed exposed.
func put(t *testing.T, db *store.DB, list ...store.Evidence) (kept int) {
	t.Helper()
	update(t, db, func(tx *store.Tx) (err error) {
		kept, err = tx.PutEvidence(list)
		return err
	})
	return kept
}

func evidenceStands(t *testing.T, db *store.DB) {
	key, other := NewKey("prod/a/b"), NewKey("prod/a/c")
	key.Versions = append([]claviger.Version{NewVersion(1, claviger.Deactivated)}, NewVersion(2, claviger.Active))
	insert(t, db, key, other)
	at := now().Add(time.Hour)
	want := store.Evidence{Key: key.ID, Version: 2, Level: claviger.Hardware, Shown: at, Finding: "the token is software", Run: "run"}
	put(t, db, want)
	whole := key
	whole.Versions = append([]claviger.Version(nil), key.Versions...)
	whole.Versions[1].Level, whole.Versions[1].Shown, whole.Versions[1].Finding = want.Level, at, want.Finding
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.Key("prod/a/b")
		diff(t, "key by name", whole, got)
		if err != nil {
			return err
		}
		page, _, err := tx.Keys(store.KeyQuery{})
		diff(t, "page", []claviger.Key{whole, other}, page)
		if err != nil {
			return err
		}
		some, err := tx.KeysOf(other.ID, key.ID, "none")
		if len(some) != 2 {
			t.Errorf("keys by id: %d, want 2", len(some))
		}
		if err != nil {
			return err
		}
		list, err := tx.EvidenceOf(key.ID, other.ID)
		diff(t, "evidence", []store.Evidence{want}, list)
		return err
	})
	// A change of the key does not lose it, and the key's own revision did not move.
	changed := whole
	changed.Owner = "another"
	update(t, db, func(tx *store.Tx) error { return tx.UpdateKey(changed) })
	later := at.Add(time.Hour)
	put(t, db, store.Evidence{Key: key.ID, Version: 2, Level: claviger.Isolated, Shown: later})
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.Key(string(key.ID))
		if v := got.Versions[1]; v.Level != claviger.Isolated || !v.Shown.Equal(later) || v.Finding != "" || got.Revision != 2 {
			t.Errorf("after another run: %+v at revision %d", v, got.Revision)
		}
		return err
	})
	for name, bad := range map[string]store.Evidence{
		"a lapsed level":     {Key: key.ID, Version: 1, Level: claviger.Lapsed, Shown: at},
		"no date":            {Key: key.ID, Version: 1, Level: claviger.Isolated},
		"a finding too long": {Key: key.ID, Version: 1, Level: claviger.Isolated, Shown: at, Finding: strings.Repeat("x", 257)},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, db, claviger.Invalid, func(tx *store.Tx) error { _, err := tx.PutEvidence([]store.Evidence{bad}); return err })
		})
	}
}

func exposedStays(t *testing.T, db *store.DB) {
	key, imported := NewKey("prod/a/b"), NewKey("prod/a/c")
	imported.Versions[0].Origin, imported.Versions[0].Level = claviger.Imported, claviger.Exposed
	insert(t, db, key, imported)
	found := store.Evidence{Key: key.ID, Version: 1, Level: claviger.Exposed, Shown: now(), Finding: "a copy lies in a log"}
	if kept := put(t, db, found); kept != 0 {
		t.Errorf("%d were kept exposed, want 0", kept)
	}
	later := now().Add(time.Hour)
	if kept := put(t, db, store.Evidence{Key: key.ID, Version: 1, Level: claviger.Isolated, Shown: later}); kept != 1 {
		t.Errorf("%d were kept exposed, want 1", kept)
	}
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.Key("prod/a/b")
		if v := got.Versions[0]; v.Level != claviger.Exposed || v.Finding != found.Finding || !v.Shown.Equal(later) {
			t.Errorf("an exposed version came back up: %+v", v)
		}
		return err
	})
	// A row that says more of imported material than may be is not believed.
	put(t, db, store.Evidence{Key: imported.ID, Version: 1, Level: claviger.Isolated, Shown: now()})
	wantCode(t, db, claviger.Internal, func(tx *store.Tx) error { _, err := tx.Key("prod/a/c"); return err })
}

func evidenceOfMany(t *testing.T, db *store.DB) {
	const keys = 1000
	list := make([]store.Evidence, keys)
	update(t, db, func(tx *store.Tx) error {
		for i := range list {
			k := NewKey(claviger.Name(fmt.Sprintf("prod/app-%d/key-%d", i%10, i)))
			if err := tx.InsertKey(k); err != nil {
				return err
			}
			list[i] = store.Evidence{Key: k.ID, Version: 1, Level: claviger.Isolated, Shown: now(), Run: "run"}
		}
		return nil
	})
	before := revision(t, db)
	for range 2 { // inserted, and then replaced
		put(t, db, list...)
	}
	if got := revision(t, db); got != before+2 {
		t.Errorf("the sequence moved by %d, want 2", got-before)
	}
	view(t, db, func(tx *store.Tx) error {
		page, _, err := tx.Keys(store.KeyQuery{Limit: store.MaxLimit})
		for _, k := range page {
			if k.Versions[0].Shown.IsZero() || k.Revision != 1 {
				t.Fatalf("%s has no evidence, or another revision: %+v", k.Name, k)
			}
		}
		return err
	})
}

func findings(t *testing.T, db *store.DB) {
	a, b, gone := NewKey("prod/a/a"), NewKey("prod/a/b"), NewKey("prod/a/gone")
	gone.Versions[0].State = claviger.Destroyed
	insert(t, db, a, b, gone)
	view(t, db, func(tx *store.Tx) error {
		list, count, err := tx.Findings(10)
		if len(list) != 0 || count != 0 {
			t.Errorf("findings of a clean store: %v, %d", list, count)
		}
		return err
	})
	put(t, db,
		store.Evidence{Key: a.ID, Version: 1, Level: claviger.Isolated, Shown: now(), Finding: "descriptor left open"},
		store.Evidence{Key: b.ID, Version: 1, Level: claviger.Exposed, Shown: now().Add(-time.Hour), Finding: "copy in a backup"},
		store.Evidence{Key: gone.ID, Version: 1, Level: claviger.Exposed, Shown: now(), Finding: "long gone"})
	view(t, db, func(tx *store.Tx) error {
		list, count, err := tx.Findings(1)
		diff(t, "worst finding", []store.Finding{{Name: "prod/a/b", Version: 1, Level: claviger.Exposed, Finding: "copy in a backup"}}, list)
		if count != 2 {
			t.Errorf("%d findings, want 2", count)
		}
		if err != nil {
			return err
		}
		for at, want := range map[time.Time]int{now(): 0, now().Add(time.Second): 1} {
			n, err := tx.CountShownBefore(at)
			if err != nil || n != want {
				t.Errorf("shown before %v: %d, %v, want %d", at, n, err, want)
			}
		}
		return nil
	})
}

func runs(t *testing.T, db *store.DB) {
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { _, err := tx.Run(""); return err })
	first := store.Run{ID: "run-1", At: now(), Statement: []byte(`{"payload":"a"}`)}
	last := store.Run{ID: "run-2", At: now().Add(time.Hour), Statement: []byte(`{"payload":"b"}`)}
	for _, r := range []store.Run{first, last} {
		update(t, db, func(tx *store.Tx) error { return tx.InsertRun(r) })
	}
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.InsertRun(first) })
	wantCode(t, db, claviger.TooLarge, func(tx *store.Tx) error { return tx.InsertRun(store.Run{ID: "run-3", At: now()}) })
	view(t, db, func(tx *store.Tx) error {
		for id, want := range map[string]store.Run{"": last, "run-1": first} {
			got, err := tx.Run(id)
			if err != nil {
				return err
			}
			diff(t, "run "+id, want, got)
		}
		return nil
	})
	// Both have 15 bytes. The last stays, whatever the bound is.
	for _, bound := range []struct{ most, dropped int64 }{{30, 0}, {29, 1}, {0, 1}} {
		update(t, db, func(tx *store.Tx) error {
			n, err := tx.TrimRuns(bound.most)
			if err == nil && n != bound.dropped {
				t.Errorf("%d runs were removed to have %d bytes, want %d", n, bound.most, bound.dropped)
			}
			return err
		})
		if bound.dropped > 0 {
			update(t, db, func(tx *store.Tx) error { return tx.InsertRun(first) })
		}
	}
	update(t, db, func(tx *store.Tx) error { _, err := tx.DropRuns(now().Add(24 * time.Hour)); return err })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { _, err := tx.Run("run-1"); return err })
	view(t, db, func(tx *store.Tx) error { _, err := tx.Run("run-2"); return err })
}
