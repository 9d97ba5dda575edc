package storetest

import (
	"context"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// sightings adds what two nodes saw, at once, and reads sums and flows.
func sightings(t *testing.T, db *store.DB) {
	k := NewKey("prod/app/seen")
	update(t, db, func(tx *store.Tx) error { return tx.InsertKey(k) })
	at := now().Truncate(time.Hour).Add(90 * time.Second)
	seen := func(version uint32, node, host, what string, made, checked uint64, last time.Time) store.Sighting {
		return store.Sighting{Key: k.ID, Version: version, Node: node, Principal: "p", Host: host, What: what, Made: made, Checked: checked, First: last, Last: last}
	}
	if err := together(8, func(i int) error {
		return db.Update(context.Background(), func(tx *store.Tx) error {
			return tx.AddSightings([]store.Sighting{seen(2, "b", "", "jwt", 1, 0, at), seen(1, "a", "192.0.2.1", "jwt", 0, 2, at.Add(time.Duration(i)*time.Second))})
		})
	}); err != nil {
		t.Fatal(err)
	}
	update(t, db, func(tx *store.Tx) error { return tx.AddSightings(nil) })
	update(t, db, func(tx *store.Tx) error {
		return tx.AddSightings([]store.Sighting{seen(1, "a", "192.0.2.1", "iron", 0, 5, at), seen(1, "a", "192.0.2.1", "jwt", 0, 1, at.Add(-time.Minute))})
	})
	jwt := seen(1, "a", "192.0.2.1", "jwt", 0, 17, at.Add(7*time.Second))
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.SightingsOf(k.ID)
		if len(got) != 3 {
			t.Fatalf("sightings %+v", got)
		}
		got[1].First = jwt.First // whichever of them came first
		diff(t, "sightings", []store.Sighting{seen(1, "a", "192.0.2.1", "iron", 0, 5, at), jwt, seen(2, "b", "", "jwt", 8, 0, at)}, got)
		return err
	})
	minute := at.Truncate(time.Minute)
	flow := func(version uint32, node string, at time.Time, made, checked uint64) store.Flow {
		return store.Flow{Key: k.ID, Version: version, Node: node, At: at, Made: made, Checked: checked}
	}
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.FlowsOf(k.ID, time.Minute, minute)
		diff(t, "by minutes", []store.Flow{flow(1, "a", minute, 0, 21), flow(2, "b", minute, 8, 0)}, got)
		return err
	})
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.FlowsOf(k.ID, time.Hour, at.Add(-2*time.Hour))
		diff(t, "by hours", []store.Flow{flow(1, "a", at.Truncate(time.Hour), 0, 22), flow(2, "b", at.Truncate(time.Hour), 8, 0)}, got)
		return err
	})
	update(t, db, func(tx *store.Tx) error { return tx.DropSightings(at.Add(time.Second), minute) })
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.SightingsOf(k.ID)
		got[0].First = jwt.First
		diff(t, "what stays", []store.Sighting{jwt}, got)
		return err
	})
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.FlowsOf(k.ID, time.Minute, time.Time{})
		diff(t, "the minutes that stay", []store.Flow{flow(1, "a", minute, 0, 21), flow(2, "b", minute, 8, 0)}, got)
		return err
	})
}

// foldedSightings has one principal come from many hosts, and another from one.
func foldedSightings(t *testing.T, db *store.DB) {
	k := NewKey("prod/app/crowd")
	update(t, db, func(tx *store.Tx) error { return tx.InsertKey(k) })
	at := now().Truncate(time.Hour)
	seen := func(principal claviger.ID, host string, made, checked uint64, first, last int) store.Sighting {
		return store.Sighting{Key: k.ID, Version: 1, Node: "a", Principal: principal, Host: host, What: "jwt", Made: made, Checked: checked,
			First: at.Add(time.Duration(first) * time.Second), Last: at.Add(time.Duration(last) * time.Second)}
	}
	crowded := func(want bool) {
		view(t, db, func(tx *store.Tx) error {
			got, err := tx.CrowdedSightings(2)
			if got != want {
				t.Errorf("crowded: %v, want %v", got, want)
			}
			return err
		})
	}
	fold := func(want int64) {
		update(t, db, func(tx *store.Tx) error {
			got, err := tx.FoldSightings(2)
			if got != want {
				t.Errorf("%d rows were folded, want %d", got, want)
			}
			return err
		})
	}
	update(t, db, func(tx *store.Tx) error {
		return tx.AddSightings([]store.Sighting{seen("p", "192.0.2.1", 1, 2, 1, 1), seen("p", "192.0.2.2", 3, 4, 2, 2), seen("q", "192.0.2.1", 1, 1, 0, 9)})
	})
	crowded(false)
	fold(0)
	update(t, db, func(tx *store.Tx) error {
		return tx.AddSightings([]store.Sighting{seen("p", "192.0.2.3", 5, 6, 3, 3), seen("p", "192.0.2.4", 7, 8, 4, 4)})
	})
	crowded(true)
	fold(2)
	crowded(false)
	update(t, db, func(tx *store.Tx) error { return tx.AddSightings([]store.Sighting{seen("p", "192.0.2.5", 1, 1, 5, 5)}) })
	fold(1)
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.SightingsOf(k.ID)
		diff(t, "folded", []store.Sighting{seen("p", "192.0.2.4", 7, 8, 4, 4), seen("p", "192.0.2.5", 1, 1, 5, 5), seen("p", store.OtherHosts, 9, 12, 1, 3), seen("q", "192.0.2.1", 1, 1, 0, 9)}, got)
		return err
	})
}

// issuedTokens keeps digests, for as long as the longest says, and bounds them.
func issuedTokens(t *testing.T, db *store.DB) {
	k, other := NewKey("prod/app/issued"), NewKey("prod/app/other")
	update(t, db, func(tx *store.Tx) error { return tx.InsertKey(k) })
	update(t, db, func(tx *store.Tx) error { return tx.InsertKey(other) })
	row := func(of claviger.ID, version uint32, digest byte, ends time.Duration) store.Issued {
		return store.Issued{Key: of, Version: version, Digest: [32]byte{digest}, Expires: now().Add(ends)}
	}
	update(t, db, func(tx *store.Tx) error {
		return tx.PutIssued([]store.Issued{row(k.ID, 1, 1, time.Hour), row(k.ID, 1, 2, time.Minute), row(k.ID, 1, 2, 3*time.Hour), row(k.ID, 2, 3, 2*time.Hour), row(other.ID, 1, 1, time.Second)})
	})
	update(t, db, func(tx *store.Tx) error { return tx.PutIssued([]store.Issued{row(k.ID, 1, 2, time.Second)}) })
	have := func(what string, of claviger.ID, version uint32, want ...bool) {
		t.Helper()
		view(t, db, func(tx *store.Tx) error {
			got, err := tx.IsIssued(of, version, [][32]byte{{1}, {2}, {3}})
			diff(t, what, want, got)
			return err
		})
	}
	have("version 1", k.ID, 1, true, true, false)
	have("version 2", k.ID, 2, false, false, true)
	have("another key", other.ID, 1, true, false, false)
	trim := func(at time.Time, limit int, want int64) {
		t.Helper()
		update(t, db, func(tx *store.Tx) error {
			over, err := tx.TrimIssued(at, limit)
			diff(t, "trimmed", want, over)
			return err
		})
	}
	trim(now().Add(time.Minute), 3, 0)
	have("another key, ended", other.ID, 1, false, false, false)
	have("version 1 goes on", k.ID, 1, true, true, false)
	trim(now(), 2, 1)
	have("version 1 over the limit", k.ID, 1, false, true, false)
	trim(now().Add(150*time.Minute), 2, 0)
	have("version 2, ended", k.ID, 2, false, false, false)
	// Of those that end together no more stay than of others.
	update(t, db, func(tx *store.Tx) error {
		return tx.PutIssued([]store.Issued{row(k.ID, 1, 1, 3*time.Hour), row(k.ID, 1, 3, 3*time.Hour)})
	})
	trim(now(), 2, 1)
	have("version 1, ending together", k.ID, 1, false, true, true)
}
