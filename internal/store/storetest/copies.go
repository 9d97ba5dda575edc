package storetest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/store"
)

func copies(t *testing.T, db *store.DB) {
	key, other := NewKey("prod/a/b"), NewKey("prod/a/c")
	insert(t, db, key, other)
	config := store.Copy{Key: key.ID, Version: 1, Host: "web-1", Path: "/srv/app/.env", Line: 12, Seen: now(), By: "ann"}
	farm := config
	farm.Host = "web-2"
	log := store.Copy{Key: key.ID, Version: 1, Path: "a log", Seen: now(), By: "ann", Run: "run"}
	put := func(list ...store.Copy) {
		t.Helper()
		update(t, db, func(tx *store.Tx) error {
			for _, c := range list {
				if err := tx.PutCopy(c); err != nil {
					return err
				}
			}
			return nil
		})
	}
	want := func(what string, list ...store.Copy) {
		t.Helper()
		view(t, db, func(tx *store.Tx) error {
			got, err := tx.CopiesOf(key.ID)
			diff(t, what, list, got)
			return err
		})
	}
	put(farm, log, config)
	want("as recorded", log, config, farm)
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.CopiesOf(other.ID)
		diff(t, "of another key", []store.Copy(nil), got)
		return err
	})
	// Gone, and seen again on another line.
	later := now().Add(time.Hour)
	update(t, db, func(tx *store.Tx) error {
		_, err := tx.CloseCopy(key.ID, 1, config.Host, config.Path, later)
		return err
	})
	closed := config
	closed.Gone = later
	want("after one is gone", log, closed, farm)
	for name, at := range map[string]struct {
		version uint32
		host    string
	}{"closed already": {1, "web-1"}, "another host": {1, "web-3"}, "another version": {2, "web-2"}} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error {
				_, err := tx.CloseCopy(key.ID, at.version, at.host, config.Path, later)
				return err
			})
		})
	}
	again := config
	again.Line, again.Seen = 14, later
	put(again)
	want("when it is back", log, again, farm)
	for name, bad := range map[string]store.Copy{
		"no place":   {Key: key.ID, Version: 1, Seen: now()},
		"no date":    {Key: key.ID, Version: 1, Path: "x"},
		"a long one": {Key: key.ID, Version: 1, Seen: now(), Path: strings.Repeat("x", 257)},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, db, claviger.Invalid, func(tx *store.Tx) error { return tx.PutCopy(bad) })
		})
	}
}

func copiesAreBounded(t *testing.T, db *store.DB) {
	key := NewKey("prod/a/b")
	insert(t, db, key)
	at := func(i int) store.Copy {
		return store.Copy{Key: key.ID, Version: 1, Path: fmt.Sprint(i), Seen: now(), By: "ann"}
	}
	update(t, db, func(tx *store.Tx) error {
		for i := range store.MaxCopies {
			if err := tx.PutCopy(at(i)); err != nil {
				return err
			}
		}
		return nil
	})
	wantCode(t, db, claviger.Exhausted, func(tx *store.Tx) error { return tx.PutCopy(at(store.MaxCopies)) })
	update(t, db, func(tx *store.Tx) error { return tx.PutCopy(at(7)) }) // a place that is known
}

func holders(t *testing.T, db *store.DB) {
	key, same, other := NewKey("prod/a/b"), NewKey("prod/a/c"), NewKey("prod/a/d")
	same.Algorithm, key.Algorithm = claviger.MachineKey, claviger.MachineKey
	for _, k := range []*claviger.Key{&key, &same} {
		k.Versions[0].Public, k.Versions[0].Fingerprint = nil, claviger.Fingerprint{7}
	}
	insert(t, db, key, same, other)
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.HoldersOf(claviger.Fingerprint{7})
		want := []store.Holder{{Key: key.ID, Version: 1, State: key.Versions[0].State}, {Key: same.ID, Version: 1, State: key.Versions[0].State}}
		if want[1].Key < want[0].Key {
			want[0], want[1] = want[1], want[0]
		}
		diff(t, "holders", want, got)
		if err != nil {
			return err
		}
		got, err = tx.HoldersOf(claviger.Fingerprint{8})
		diff(t, "of what nobody has", []store.Holder(nil), got)
		return err
	})
}
