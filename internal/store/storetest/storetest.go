// Package storetest is the conformance suite of the store: what every dialect
// promises. A dialect is done when it passes.
package storetest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// now is the time at which the suite plays.
func now() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// Run runs the suite. Open returns a new and empty store, which the suite
// closes.
func Run(t *testing.T, open func(t *testing.T) *store.DB) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, *store.DB)
	}{
		{"KeyIsReadAsWritten", keyIsReadAsWritten},
		{"KeyChangesByCompareAndSwap", keyCompareAndSwap},
		{"ImportedIsNeverBetterThanExposed", importedIsExposed},
		{"PublicHalfIsNotExchanged", publicHalfIsNotExchanged},
		{"NamesAndAliasesAreOneSpace", namesAndAliases},
		{"OneActiveVersion", oneActiveVersion},
		{"KeysArePaged", keysArePaged},
		{"KeysAreChosen", keysAreChosen},
		{"ScheduledKeys", scheduledKeys},
		{"Blobs", blobs},
		{"EvidenceStandsOverTheKey", evidenceStands},
		{"ExposedStaysExposed", exposedStays},
		{"EvidenceOfMany", evidenceOfMany},
		{"Findings", findings},
		{"Copies", copies},
		{"CopiesAreBounded", copiesAreBounded},
		{"Holders", holders},
		{"Runs", runs},
		{"Principals", principals},
		{"CodesAreTakenOnce", codes},
		{"Certificates", certificates},
		{"Grants", grants},
		{"GrantsByKey", grantsByKey},
		{"Clients", clients},
		{"Sessions", sessions},
		{"SessionUses", sessionUses},
		{"SessionBlobs", sessionBlobs},
		{"RefreshTokens", refreshTokens},
		{"OneTimesAreTakenOnce", oneTimes},
		{"RevokedTokens", revokedTokens},
		{"Deliveries", deliveries},
		{"Uses", uses},
		{"Sightings", sightings},
		{"FoldedSightings", foldedSightings},
		{"IssuedTokens", issuedTokens},
		{"BudgetIsExact", budgetIsExact},
		{"BudgetUnderContention", budgetContention},
		{"Outbox", outbox},
		{"Meta", meta},
		{"SequenceHasNoGaps", sequence},
		{"SequenceUnderContention", sequenceContention},
		{"FailedUpdateLeavesNothing", failedUpdate},
		{"ViewIsUnchanging", viewIsolation},
		{"ViewCannotWrite", viewCannotWrite},
		{"WritersDoNotLoseUpdates", lostUpdates},
		{"ContextEndsACall", contextEnds},
		{"BadTextIsInvalid", badText},
		{"LimitsHold", limits},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db := open(t)
			t.Cleanup(func() {
				if err := db.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			test.run(t, db)
		})
	}
}

// NewKey returns a key with one active version.
func NewKey(name claviger.Name) claviger.Key {
	return claviger.Key{
		ID: claviger.NewID(now()), Name: name, Algorithm: claviger.Ed25519, Custodian: claviger.Soft,
		Recipe: claviger.PlainRecipe, Owner: "Payments Team", Created: now(), Revision: 1,
		Versions: []claviger.Version{NewVersion(1, claviger.Active)},
	}
}

// NewVersion returns a version in a state, of a key of NewKey.
func NewVersion(number uint32, state claviger.State) claviger.Version {
	public := []byte{1, 2, byte(number)}
	return claviger.Version{Number: number, State: state, Origin: claviger.Generated, Level: claviger.Isolated,
		Public: public, Fingerprint: sha256.Sum256(append([]byte("ed25519\x00"), public...)), Created: now(), Activated: now(),
		History: []claviger.Transition{{To: claviger.PreActivation, At: now()}, {From: claviger.PreActivation, To: state, At: now()}}}
}

// NewPrincipal returns a workload.
func NewPrincipal(name string) claviger.PrincipalRecord {
	return claviger.PrincipalRecord{ID: claviger.NewID(now()), Name: name, Kind: claviger.Workload,
		Environments: []string{"prod"}, Owner: "Web", Created: now(), Revision: 1}
}

// NewGrant returns a grant that lets a principal sign.
func NewGrant(principal claviger.ID, selector claviger.Selector) claviger.Grant {
	return claviger.Grant{ID: claviger.NewID(now()), Principal: principal, Selector: selector,
		Operations: []claviger.Operation{claviger.Sign}, Created: now(), CreatedBy: principal, Revision: 1}
}

func update(t *testing.T, db *store.DB, fn func(*store.Tx) error) {
	t.Helper()
	if err := db.Update(t.Context(), fn); err != nil {
		t.Fatalf("update: %v", err)
	}
}

func view(t *testing.T, db *store.DB, fn func(*store.Tx) error) {
	t.Helper()
	if err := db.View(t.Context(), fn); err != nil {
		t.Fatalf("view: %v", err)
	}
}

// wantCode runs an update that must fail with a code.
func wantCode(t *testing.T, db *store.DB, want claviger.Code, fn func(*store.Tx) error) {
	t.Helper()
	if err := db.Update(t.Context(), fn); claviger.CodeOf(err) != want {
		t.Errorf("error is %v, want code %s", err, want)
	}
}

func diff(t *testing.T, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func insert(t *testing.T, db *store.DB, keys ...claviger.Key) {
	t.Helper()
	update(t, db, func(tx *store.Tx) error {
		for _, k := range keys {
			if err := tx.InsertKey(k); err != nil {
				return err
			}
		}
		return nil
	})
}

// together runs fn n times at once and returns the errors.
func together(n int, fn func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = fn(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func revision(t *testing.T, db *store.DB) uint64 {
	t.Helper()
	r, err := db.Revision(t.Context())
	if err != nil {
		t.Fatalf("revision: %v", err)
	}
	view(t, db, func(tx *store.Tx) error {
		inside, err := tx.Revision()
		if err == nil && inside < r {
			err = fmt.Errorf("revision inside is %d, before it was %d", inside, r)
		}
		return err
	})
	return r
}

func sequence(t *testing.T, db *store.DB) {
	if got := revision(t, db); got != 0 {
		t.Fatalf("a new store is at %d, want 0", got)
	}
	key, p := NewKey("prod/a/b"), NewPrincipal("web")
	g := NewGrant(p.ID, "prod/*/*")
	c := store.Certificate{Serial: "0a", Principal: p.ID, NotAfter: now()}
	want := uint64(0)
	for _, step := range []struct {
		name   string
		counts bool
		fn     func(tx *store.Tx) error
	}{
		{"insert key", true, func(tx *store.Tx) error { return tx.InsertKey(key) }},
		{"update key", true, func(tx *store.Tx) error { return tx.UpdateKey(key) }},
		{"insert principal", true, func(tx *store.Tx) error { return tx.InsertPrincipal(p) }},
		{"update principal", true, func(tx *store.Tx) error { return tx.UpdatePrincipal(p) }},
		{"insert grant", true, func(tx *store.Tx) error { return tx.InsertGrant(g) }},
		{"update grant", true, func(tx *store.Tx) error { return tx.UpdateGrant(g) }},
		{"insert certificate", true, func(tx *store.Tx) error { return tx.InsertCertificate(c) }},
		{"update certificate", true, func(tx *store.Tx) error { return tx.UpdateCertificate(c) }},
		{"evidence", true, func(tx *store.Tx) error {
			_, err := tx.PutEvidence([]store.Evidence{{Key: key.ID, Version: 1, Level: claviger.Isolated, Shown: now()}})
			return err
		}},
		{"run", false, func(tx *store.Tx) error { return tx.InsertRun(store.Run{ID: "r", At: now(), Statement: []byte("{}")}) }},
		{"two changes in one update", true, func(tx *store.Tx) error {
			return errors.Join(tx.InsertKey(NewKey("prod/a/c")), tx.InsertKey(NewKey("prod/a/d")))
		}},
		{"uses", false, func(tx *store.Tx) error { return tx.AddUses([]store.Use{{Subject: "key:a", Count: 1}}) }},
		{"budget", false, func(tx *store.Tx) error { _, err := tx.TakeBudget("grant:a", 1, 2); return err }},
		{"outbox", false, func(tx *store.Tx) error { _, err := tx.PushOutbox([]byte("{}")); return err }},
		{"meta", false, func(tx *store.Tx) error { return tx.PutMeta("a", nil) }},
		{"nothing", false, func(tx *store.Tx) error { return nil }},
	} {
		update(t, db, step.fn)
		if step.counts {
			want++
		}
		if got := revision(t, db); got != want {
			t.Fatalf("after %s the sequence is at %d, want %d", step.name, got, want)
		}
	}
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.UpdateKey(key) })
	if got := revision(t, db); got != want {
		t.Errorf("a failed update moved the sequence to %d, want %d", got, want)
	}
}

func sequenceContention(t *testing.T, db *store.DB) {
	const n = 24
	giveUp := errors.New("given up")
	err := together(n, func(i int) error {
		err := db.Update(context.Background(), func(tx *store.Tx) error {
			if err := tx.InsertKey(NewKey(claviger.Name(fmt.Sprintf("prod/app/key-%d", i)))); err != nil {
				return err
			}
			if i%3 == 0 {
				return giveUp
			}
			return nil
		})
		if i%3 == 0 && errors.Is(err, giveUp) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := revision(t, db), uint64(n-n/3); got != want {
		t.Errorf("%d updates were committed, and the sequence is at %d", want, got)
	}
}

func failedUpdate(t *testing.T, db *store.DB) {
	boom := errors.New("boom")
	key := NewKey("prod/a/b")
	err := db.Update(t.Context(), func(tx *store.Tx) error {
		if err := tx.InsertKey(key); err != nil {
			return err
		}
		if _, err := tx.PushOutbox([]byte("{}")); err != nil {
			return err
		}
		if _, err := tx.Key("prod/a/b"); err != nil {
			t.Errorf("an update does not see its own change: %v", err)
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Errorf("error is %v, want that of the function", err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = db.Update(t.Context(), func(tx *store.Tx) error { _ = tx.InsertKey(key); panic("boom") })
	}()
	view(t, db, func(tx *store.Tx) error {
		if _, err := tx.Key("prod/a/b"); !errors.Is(err, claviger.NotFound) {
			t.Errorf("key: %v, want not found", err)
		}
		lines, err := tx.Outbox(0)
		diff(t, "outbox", []store.Outgoing(nil), lines)
		return err
	})
}

func viewIsolation(t *testing.T, db *store.DB) {
	insert(t, db, NewKey("prod/a/b"))
	view(t, db, func(tx *store.Tx) error {
		before, err := tx.Key("prod/a/b")
		if err != nil {
			return err
		}
		changed := before
		changed.Owner = "Another"
		update(t, db, func(tx *store.Tx) error { return tx.UpdateKey(changed) })
		after, err := tx.Key("prod/a/b")
		diff(t, "the key in a view", before, after)
		if at, err := tx.Revision(); at != 1 || err != nil {
			t.Errorf("revision in a view is %d, %v; want 1", at, err)
		}
		return err
	})
	if got := revision(t, db); got != 2 {
		t.Errorf("revision outside is %d, want 2", got)
	}
}

func viewCannotWrite(t *testing.T, db *store.DB) {
	view(t, db, func(tx *store.Tx) error {
		_, budget := tx.TakeBudget("a", 1, 1)
		_, push := tx.PushOutbox([]byte("{}"))
		_, take := tx.TakeCode([32]byte{}, now())
		for name, err := range map[string]error{"budget": budget, "outbox": push, "code": take,
			"key": tx.InsertKey(NewKey("prod/a/b")), "meta": tx.PutMeta("a", nil)} {
			if claviger.CodeOf(err) != claviger.Internal {
				t.Errorf("%s: error is %v, want one of ours", name, err)
			}
		}
		return nil
	})
}

func lostUpdates(t *testing.T, db *store.DB) {
	const n = 16
	insert(t, db, NewKey("prod/a/b"))
	if err := together(n, func(int) error {
		return db.Update(context.Background(), func(tx *store.Tx) error {
			k, err := tx.Key("prod/a/b")
			if err != nil {
				return err
			}
			k.Versions = append(k.Versions, NewVersion(uint32(len(k.Versions)+1), claviger.PreActivation))
			return tx.UpdateKey(k)
		})
	}); err != nil {
		t.Fatal(err)
	}
	view(t, db, func(tx *store.Tx) error {
		k, err := tx.Key("prod/a/b")
		if len(k.Versions) != n+1 || k.Revision != n+1 {
			t.Errorf("%d versions, revision %d; want %d of both", len(k.Versions), k.Revision, n+1)
		}
		return err
	})
}

func contextEnds(t *testing.T, db *store.DB) {
	ctx, cancel := context.WithCancel(t.Context())
	err := db.Update(ctx, func(tx *store.Tx) error {
		if err := tx.InsertKey(NewKey("prod/a/b")); err != nil {
			return err
		}
		cancel()
		return nil
	})
	if claviger.CodeOf(err) != claviger.Deadline || !errors.Is(err, context.Canceled) {
		t.Errorf("update of a cancelled call: %v, want deadline and the context's error", err)
	}
	if err := db.View(ctx, func(*store.Tx) error { return nil }); claviger.CodeOf(err) != claviger.Deadline {
		t.Errorf("view of a cancelled call: %v, want deadline", err)
	}
	late, stop := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer stop()
	if err := db.View(late, func(*store.Tx) error { return nil }); claviger.CodeOf(err) != claviger.Deadline {
		t.Errorf("view past its deadline: %v, want deadline", err)
	}
	insert(t, db, NewKey("prod/a/b")) // and nothing of the cancelled one is left
}
