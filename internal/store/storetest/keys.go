package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/store"
)

func keyIsReadAsWritten(t *testing.T, db *store.DB) {
	want := NewKey("prod/billing/session-cookie")
	want.Aliases = []claviger.Name{"prod/billing/cookie", "prod/billing/old"}
	want.Labels = map[string]string{"team": "Zürich <&> \\u0000 \u2028", "empty": ""}
	want.Settings = claviger.Settings{RotateEvery: claviger.Duration(time.Hour), MaxInvocations: 1 << 32, MinLevel: claviger.Isolated}
	want.Versions = append(want.Versions, NewVersion(2, claviger.Deactivated), NewVersion(3, claviger.PreActivation))
	want.Revision = 77 // an insert begins at 1 whatever it is given
	insert(t, db, want, NewKey("prod/billing/other"))
	want.Revision = 1
	view(t, db, func(tx *store.Tx) error {
		for _, ref := range []string{string(want.ID), "prod/billing/session-cookie", "prod/billing/cookie", "prod/billing/old"} {
			got, err := tx.Key(ref)
			if err != nil {
				return fmt.Errorf("key %q: %w", ref, err)
			}
			diff(t, ref, want, got)
		}
		for _, ref := range []string{"", "prod/billing", "prod/billing/nothing", "PROD/BILLING/COOKIE", "prod/billing/cooki_", "%",
			strings.Repeat("a", 64<<10), string(claviger.NewID(now()))} {
			if _, err := tx.Key(ref); !errors.Is(err, claviger.NotFound) {
				t.Errorf("key %.40q: %v, want not found", ref, err)
			}
		}
		return nil
	})
}

func keyCompareAndSwap(t *testing.T, db *store.DB) {
	key := NewKey("prod/a/b")
	insert(t, db, key)
	key.Owner = "First"
	update(t, db, func(tx *store.Tx) error { return tx.UpdateKey(key) })
	stale := key
	stale.Owner = "Second"
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.UpdateKey(stale) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.UpdateKey(NewKey("prod/a/c")) })
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.Key("prod/a/b")
		key.Revision = 2
		diff(t, "key", key, got)
		return err
	})
}

// Whoever writes the database can write a level into it, but not one that
// imported material never has.
func importedIsExposed(t *testing.T, db *store.DB) {
	for name, level := range map[claviger.Name]claviger.Level{
		"prod/a/isolated": claviger.Isolated, "prod/a/attested": claviger.Attested, "prod/a/none": "", "prod/a/exposed": claviger.Exposed,
	} {
		key := NewKey(name)
		key.Versions[0].Origin, key.Versions[0].Level = claviger.Imported, level
		insert(t, db, key)
		want := claviger.Internal
		if level == claviger.Exposed {
			want = ""
		}
		wantCode(t, db, want, func(tx *store.Tx) error { _, err := tx.Key(string(name)); return err })
	}
}

// Whoever writes the database could have verifiers accept a key of his while
// the real one goes on signing.
func publicHalfIsNotExchanged(t *testing.T, db *store.DB) {
	key := NewKey("prod/a/b")
	key.Versions[0].Public = []byte{6, 6, 6}
	insert(t, db, key)
	wantCode(t, db, claviger.Internal, func(tx *store.Tx) error { _, err := tx.Key("prod/a/b"); return err })
	wantCode(t, db, claviger.Internal, func(tx *store.Tx) error { _, _, err := tx.Keys(store.KeyQuery{}); return err })
}

func namesAndAliases(t *testing.T, db *store.DB) {
	a, b := NewKey("prod/a/one"), NewKey("prod/a/two")
	insert(t, db, a, b)
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.InsertKey(NewKey("prod/a/one")) })
	a.Aliases, a.Name = []claviger.Name{"prod/a/one"}, "prod/a/uno" // renamed: the old name stays an alias
	update(t, db, func(tx *store.Tx) error { return tx.UpdateKey(a) })
	a.Revision++
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.InsertKey(NewKey("prod/a/one")) })
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.InsertKey(NewKey("prod/a/uno")) })
	taken := b
	taken.Name = "prod/a/one"
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.UpdateKey(taken) })
	taken = b
	taken.Aliases = []claviger.Name{"prod/a/uno"}
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.UpdateKey(taken) })
	taken = NewKey("prod/a/three")
	taken.Aliases = []claviger.Name{"prod/a/two"}
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.InsertKey(taken) })

	a.Name, a.Aliases = "prod/a/one", []claviger.Name{"prod/a/uno"} // and back again
	update(t, db, func(tx *store.Tx) error { return tx.UpdateKey(a) })
	a.Revision++
	view(t, db, func(tx *store.Tx) error {
		for _, ref := range []string{"prod/a/one", "prod/a/uno"} {
			got, err := tx.Key(ref)
			if err != nil {
				return err
			}
			diff(t, ref, a, got)
		}
		keys, _, err := tx.Keys(store.KeyQuery{})
		diff(t, "names listed", []claviger.Name{"prod/a/one", "prod/a/two"}, namesOf(keys))
		return err
	})
	a.Aliases = nil // a name that is given up is free
	update(t, db, func(tx *store.Tx) error { return tx.UpdateKey(a) })
	insert(t, db, NewKey("prod/a/uno"))
}

func oneActiveVersion(t *testing.T, db *store.DB) {
	two := NewKey("prod/a/two")
	two.Versions = append(two.Versions, NewVersion(2, claviger.Active))
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.InsertKey(two) })

	key := NewKey("prod/a/b")
	insert(t, db, key)
	bad := key
	bad.Versions = append(slices.Clone(key.Versions), NewVersion(2, claviger.Active))
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.UpdateKey(bad) })

	key.Versions = []claviger.Version{NewVersion(1, claviger.Deactivated), NewVersion(2, claviger.Active)}
	update(t, db, func(tx *store.Tx) error { return tx.UpdateKey(key) })
	key.Revision++
	key.Versions = []claviger.Version{NewVersion(1, claviger.Active), NewVersion(2, claviger.Suspended)}
	update(t, db, func(tx *store.Tx) error { return tx.UpdateKey(key) })
	key.Revision++
	gone := key
	gone.Versions = key.Versions[:1]
	wantCode(t, db, claviger.Invalid, func(tx *store.Tx) error { return tx.UpdateKey(gone) })
}

func namesOf(keys []claviger.Key) []claviger.Name {
	var names []claviger.Name
	for _, k := range keys {
		names = append(names, k.Name)
	}
	return names
}

func keysArePaged(t *testing.T, db *store.DB) {
	var want []claviger.Name
	var keys []claviger.Key
	for i := range 25 {
		name := claviger.Name(fmt.Sprintf("prod/app-%c/key-%02d", 'a'+i%3, i))
		keys, want = append(keys, NewKey(name)), append(want, name)
	}
	insert(t, db, keys...)
	slices.Sort(want)
	for _, size := range []int{1, 5, 7, 25, 26} {
		var got []claviger.Name
		view(t, db, func(tx *store.Tx) error {
			q := store.KeyQuery{Limit: size}
			for {
				page, next, err := tx.Keys(q)
				if err != nil {
					return err
				}
				if len(page) > size || next != "" && len(page) < size {
					t.Errorf("a page of %d has %d keys", size, len(page))
				}
				got = append(got, namesOf(page)...)
				if next == "" {
					return nil
				}
				q.After = next
			}
		})
		diff(t, fmt.Sprintf("pages of %d", size), want, got)
	}
}

func keysAreChosen(t *testing.T, db *store.DB) {
	for i, k := range []struct {
		name   claviger.Name
		owner  string
		state  claviger.State
		labels map[string]string
	}{
		{"prod/billing/cookie", "Payments", claviger.Active, map[string]string{"pci": "yes", "tier": "1"}},
		{"prod/billing/jwt", "Payments", claviger.Compromised, map[string]string{"pci": "yes", "tier": "2"}},
		{"prod/billing-2/jwt", "Web_Team", claviger.Active, map[string]string{"tier": "1"}},
		{"test/billing/jwt", "web%team", claviger.Suspended, nil},
		{"test/shop/cookie", "Ünï", claviger.Active, map[string]string{"pci": "no"}},
		{"prod.x/billing/jwt", "Payments", claviger.PreActivation, nil},
	} {
		key := NewKey(k.name)
		key.Owner, key.Labels = k.owner, k.labels
		key.Versions = []claviger.Version{NewVersion(1, claviger.Deactivated), NewVersion(2, k.state)}
		if i == 1 {
			key.Versions = append(key.Versions, NewVersion(3, claviger.Active))
		}
		insert(t, db, key)
	}
	all := []claviger.Name{"prod.x/billing/jwt", "prod/billing-2/jwt", "prod/billing/cookie", "prod/billing/jwt", "test/billing/jwt", "test/shop/cookie"}
	for _, test := range []struct {
		name  string
		query store.KeyQuery
		want  []claviger.Name
	}{
		{"all", store.KeyQuery{}, all},
		{"any name", store.KeyQuery{Selector: "*/*/*"}, all},
		{"environment", store.KeyQuery{Selector: "prod/*/*"}, all[1:4]},
		{"application", store.KeyQuery{Selector: "prod/billing/*"}, all[2:4]},
		{"one", store.KeyQuery{Selector: "prod/billing/jwt"}, all[3:4]},
		{"application anywhere", store.KeyQuery{Selector: "*/billing/*"}, []claviger.Name{all[0], all[2], all[3], all[4]}},
		{"purpose anywhere", store.KeyQuery{Selector: "*/*/cookie"}, []claviger.Name{all[2], all[5]}},
		{"environment and purpose", store.KeyQuery{Selector: "prod/*/jwt"}, []claviger.Name{all[1], all[3]}},
		{"application and purpose", store.KeyQuery{Selector: "*/billing/jwt"}, []claviger.Name{all[0], all[3], all[4]}},
		{"no selector at all", store.KeyQuery{Selector: "prod"}, nil},
		{"part of a name", store.KeyQuery{Search: "LING/j"}, []claviger.Name{all[0], all[3], all[4]}},
		{"part of an owner", store.KeyQuery{Search: "team"}, []claviger.Name{all[1], all[4]}},
		{"percent is itself", store.KeyQuery{Search: "%"}, all[4:5]},
		{"underscore is itself", store.KeyQuery{Search: "_"}, all[1:2]},
		{"letters beyond ASCII", store.KeyQuery{Search: "ÜNÏ"}, all[5:]},
		{"owner", store.KeyQuery{Owner: "Payments"}, []claviger.Name{all[0], all[2], all[3]}},
		{"label", store.KeyQuery{Labels: map[string]string{"pci": "yes"}}, all[2:4]},
		{"two labels", store.KeyQuery{Labels: map[string]string{"pci": "yes", "tier": "1"}}, all[2:3]},
		{"label's value differs", store.KeyQuery{Labels: map[string]string{"pci": ""}}, nil},
		{"active", store.KeyQuery{State: claviger.Active}, []claviger.Name{all[1], all[2], all[5]}},
		{"compromised stands before active", store.KeyQuery{State: claviger.Compromised}, all[3:4]},
		{"pre-activation", store.KeyQuery{State: claviger.PreActivation}, all[:1]},
		{"everything together", store.KeyQuery{Selector: "prod/*/cookie", Search: "pay", Labels: map[string]string{"tier": "1"},
			State: claviger.Active, Owner: "Payments", After: "prod/a/a", Limit: 3}, all[2:3]},
		{"after", store.KeyQuery{Labels: map[string]string{"pci": "yes"}, After: string(all[2])}, all[3:4]},
	} {
		view(t, db, func(tx *store.Tx) error {
			keys, next, err := tx.Keys(test.query)
			diff(t, test.name, test.want, namesOf(keys))
			diff(t, test.name+": next", "", next)
			return err
		})
	}
}

func scheduledKeys(t *testing.T, db *store.DB) {
	rotate, expire, both, never, done := NewKey("a/a/rotate"), NewKey("a/a/expire"), NewKey("a/a/both"), NewKey("a/a/never"), NewKey("a/a/done")
	rotate.Settings.RotateEvery = claviger.Duration(2 * time.Hour)
	expire.Settings.OriginatorPeriod = claviger.Duration(time.Hour)
	both.Settings = claviger.Settings{RotateEvery: claviger.Duration(4 * time.Hour), OriginatorPeriod: claviger.Duration(3 * time.Hour)}
	done.Settings = both.Settings
	done.Versions[0].State = claviger.Destroyed
	insert(t, db, rotate, expire, both, never, done)
	for after, want := range map[time.Duration][]claviger.Name{
		59 * time.Minute: nil,
		time.Hour:        {"a/a/expire"},
		2 * time.Hour:    {"a/a/expire", "a/a/rotate"},
		99 * time.Hour:   {"a/a/expire", "a/a/rotate", "a/a/both"},
	} {
		view(t, db, func(tx *store.Tx) error {
			keys, err := tx.Scheduled(now().Add(after), 10)
			diff(t, after.String(), want, namesOf(keys))
			return err
		})
	}
	expire.Versions[0].State = claviger.Deactivated
	update(t, db, func(tx *store.Tx) error { return tx.UpdateKey(expire) })
	view(t, db, func(tx *store.Tx) error {
		keys, err := tx.Scheduled(now().Add(99*time.Hour), 1)
		diff(t, "once handled, limited", []claviger.Name{"a/a/rotate"}, namesOf(keys))
		return err
	})
}

func blobs(t *testing.T, db *store.DB) {
	key := NewKey("prod/a/b")
	insert(t, db, key)
	wantBlob := func(version uint32, want []byte, generation uint32) {
		t.Helper()
		view(t, db, func(tx *store.Tx) error {
			got, g, err := tx.Blob(key.ID, version)
			if want == nil {
				if !errors.Is(err, claviger.NotFound) {
					t.Errorf("blob %d: %v, want not found", version, err)
				}
				return nil
			}
			if !bytes.Equal(got, want) || g != generation {
				t.Errorf("blob %d is %x of generation %d, want %x of %d", version, got, g, want, generation)
			}
			return err
		})
	}
	wantBlob(1, nil, 0)
	update(t, db, func(tx *store.Tx) error {
		return errors.Join(tx.PutBlob(key.ID, 1, 1, []byte("one")), tx.PutBlob(key.ID, 2, 2, []byte("two")), tx.PutBlob(key.ID, 3, 3, []byte("three")))
	})
	wantBlob(1, []byte("one"), 1)
	view(t, db, func(tx *store.Tx) error {
		below, err := tx.BlobsBelow(3, store.BlobRef{}, 10)
		want := []store.BlobRef{{Key: key.ID, Version: 1, Generation: 1}, {Key: key.ID, Version: 2, Generation: 2}}
		diff(t, "blobs below 3", want, below)
		rest, restErr := tx.BlobsBelow(3, want[0], 10)
		diff(t, "blobs below 3, after the first", want[1:], rest)
		return errors.Join(err, restErr)
	})
	update(t, db, func(tx *store.Tx) error {
		return errors.Join(tx.PutBlob(key.ID, 1, 3, []byte("again")), tx.EraseBlob(key.ID, 2))
	})
	wantBlob(1, []byte("again"), 3)
	wantBlob(2, nil, 0)
	wantBlob(3, []byte("three"), 3)
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.EraseBlob(key.ID, 2) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.PutBlob(claviger.NewID(now()), 1, 1, []byte("x")) })
	if err := db.Checkpoint(t.Context()); err != nil {
		t.Errorf("checkpoint: %v", err)
	}
}

func badText(t *testing.T, db *store.DB) {
	p := NewPrincipal("web")
	update(t, db, func(tx *store.Tx) error { return tx.InsertPrincipal(p) })
	for _, text := range []string{"a\x00b", "a\xffb", "\xc0\x80", "\xed\xa0\x80"} {
		key := NewKey("prod/a/b")
		inOwner, inLabel, inName := key, key, key
		inOwner.Owner = text
		inLabel.Labels = map[string]string{text: "x"}
		inName.Name = claviger.Name("prod/a/" + text)
		for name, k := range map[string]claviger.Key{"owner": inOwner, "label": inLabel, "name": inName} {
			t.Run(name, func(t *testing.T) {
				wantCode(t, db, claviger.Invalid, func(tx *store.Tx) error { return tx.InsertKey(k) })
			})
		}
		for name, fn := range map[string]func(tx *store.Tx) error{
			"key":         func(tx *store.Tx) error { _, err := tx.Key(text); return err },
			"keys":        func(tx *store.Tx) error { _, _, err := tx.Keys(store.KeyQuery{Search: text}); return err },
			"after":       func(tx *store.Tx) error { _, _, err := tx.Keys(store.KeyQuery{After: text}); return err },
			"principal":   func(tx *store.Tx) error { _, err := tx.Principal(text); return err },
			"certificate": func(tx *store.Tx) error { _, err := tx.Certificate(text); return err },
			"budget":      func(tx *store.Tx) error { _, err := tx.TakeBudget(text, 1, 1); return err },
			"uses":        func(tx *store.Tx) error { return tx.AddUses([]store.Use{{Subject: text}}) },
			"reason": func(tx *store.Tx) error {
				g := NewGrant(p.ID, "prod/*/*")
				g.Reason = text
				return tx.InsertGrant(g)
			},
		} {
			t.Run(name, func(t *testing.T) { wantCode(t, db, claviger.Invalid, fn) })
		}
	}
	fine := NewKey("prod/a/b")
	fine.Owner = "\ufffd and \\u0000 and \\\\ufffd" // text that only looks like it
	insert(t, db, fine)
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.Key("prod/a/b")
		diff(t, "owner", fine.Owner, got.Owner)
		return err
	})
}

func limits(t *testing.T, db *store.DB) {
	big := NewKey("prod/a/b")
	big.Owner = strings.Repeat("x", 2<<20)
	wantCode(t, db, claviger.TooLarge, func(tx *store.Tx) error { return tx.InsertKey(big) })
	key := NewKey("prod/a/b")
	insert(t, db, key)
	wantCode(t, db, claviger.TooLarge, func(tx *store.Tx) error { return tx.PutBlob(key.ID, 1, 1, make([]byte, store.MaxBlob+1)) })
	wantCode(t, db, claviger.TooLarge, func(tx *store.Tx) error { return tx.PutBlob(key.ID, 1, 1, nil) })
	wantCode(t, db, claviger.TooLarge, func(tx *store.Tx) error { _, err := tx.PushOutbox(make([]byte, 2<<20)); return err })
	wantCode(t, db, claviger.TooLarge, func(tx *store.Tx) error { return tx.PutMeta("a", make([]byte, 2<<20)) })
	view(t, db, func(tx *store.Tx) error {
		_, _, err := tx.Keys(store.KeyQuery{Limit: 1 << 40})
		return err
	})
}
