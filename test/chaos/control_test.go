//go:build failpoints

package chaos_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/sqlite"
)

// TestVerifierFindsLosses shows that the verifier is not blind: it is told of
// what never happened, and the store is changed behind the keeper's back.
func TestVerifierFindsLosses(t *testing.T) {
	t.Parallel()
	r := &run{T: t, rng: rand.New(rand.NewPCG(1, 1)), dir: t.TempDir(), reached: new(reach)}
	if r.worker("") {
		t.Fatal("the worker was killed")
	}
	told := toldBy(t, r)
	first := func(what string, is func(*line) bool) line {
		i := slices.IndexFunc(told, func(l line) bool { return l.What == what && is(&l) })
		if i < 0 {
			t.Fatalf("the worker told of no such %s", what)
		}
		return told[i]
	}
	protects := func(l *line) bool { return l.Use.Op.Protects() }
	every := func(*line) bool { return true }

	gone := *first(isKey, every).Key
	gone.ID = claviger.NewID(gone.Created)
	ahead := *first(isKey, func(l *line) bool { return len(l.Key.Versions) > 0 }).Key
	ahead.Revision = 1 << 40
	ahead.Versions = slices.Clone(ahead.Versions)
	ahead.Versions[0].Fingerprint[0] ^= 1
	lost := *first(isUse, protects).Use
	lost.Request = "never"
	spent := first(isBudget, func(l *line) bool { return l.Grant != nil })
	over := *first(isUse, func(l *line) bool { return l.Use.Key == spent.Key.ID }).Use
	stranger := *first(isPrincipal, every).Principal
	stranger.ID = claviger.NewID(stranger.Created)
	free := first(isGrant, func(l *line) bool {
		return l.Key == nil && l.Grant.Revoked.IsZero() && strings.HasSuffix(string(l.Grant.Selector), "/*")
	})
	revoked := *free.Grant
	revoked.Revoked = revoked.Created
	code := first(isCode, every)
	checkpoint := first(isCheckpoint, every)
	verified := first(isVerified, every)
	unended := *first(isSession, every).Session // the first of two, which goes on
	unended.State = claviger.SessionEnded
	signed := first(isSessionUse, every)
	forged := []line{
		{What: isKey, Key: &gone},
		{What: isKey, Key: &ahead},
		{What: isUse, Use: &lost},
		{What: isUse, Use: &over},
		{What: isPrincipal, Principal: &stranger},
		{What: isGrant, Grant: &revoked, UID: free.UID, Key: spent.Key}, // it stays active
		{What: isCode, Code: code.Code, Principal: &stranger},
		{What: isSession, Session: &unended},
		{What: isSessionUse, Session: signed.Session, Text: "never"},
		{What: isCheckpoint, Checkpoint: bytes.Replace(checkpoint.Checkpoint, []byte(`"seq":"`), []byte(`"seq":"9`), 1)},
	}
	for range 1000 {
		forged = append(forged, line{What: isVerified, Worker: verified.Worker, Use: verified.Use})
	}
	tell(t, r, append(forged, line{What: isFlushed, Worker: verified.Worker}))
	r.meddle(*free.Grant, *signed.Session)

	lines, _ := r.child(verifier, "", bytes.NewReader(r.told.Bytes()))
	for _, want := range wants(gone.Name, stranger.Name) {
		if !slices.ContainsFunc(lines, func(l line) bool { return l.What == isFault && strings.Contains(l.Text, want) }) {
			t.Errorf("the verifier did not say %q", want)
		}
	}
	if t.Failed() {
		for _, l := range lines {
			t.Log(l.What, l.Text)
		}
	}
}

// wants are what the verifier has to say of all that.
func wants(gone claviger.Name, stranger string) []string {
	return []string{
		string(gone) + " is gone",
		"acknowledged was 1099511627776",
		"is not what became of that",
		"the use never of",
		"of a budget of 12",
		"the principal " + stranger + " is not there",
		"not revoked any more",
		"after its right was withdrawn",
		"the code of " + stranger,
		"bad-checkpoint-signature",
		"before a flush, and",
		"times before a flush",
		"what the store shows (-)",
		"its blob is there: true",
		"has not ended any more",
		"the use never of session",
		"its key is there: true",
		"0 are to be told of its end",
	}
}

// toldBy returns what the worker acknowledged.
func toldBy(t *testing.T, r *run) (told []line) {
	t.Helper()
	for text := range bytes.Lines(r.told.Bytes()) {
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			t.Fatal(err)
		}
		told = append(told, l)
	}
	return told
}

// tell adds acknowledgements that the worker never made.
func tell(t *testing.T, r *run, forged []line) {
	t.Helper()
	for _, l := range forged {
		raw, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		r.told.Write(append(raw, '\n'))
	}
}

// meddle makes a grant that has no record, and a session that has ended and
// still has its key, and brings a destroyed version's blob back.
func (r *run) meddle(like claviger.Grant, session claviger.Session) {
	db, err := sqlite.Open(r.Context(), r.database())
	if err != nil {
		r.Fatal(err)
	}
	defer db.Close()
	err = db.Update(r.Context(), func(tx *store.Tx) error {
		like.ID, like.Revision = claviger.NewID(like.Created), 0
		if err := tx.InsertGrant(like); err != nil {
			return err
		}
		session.ID, session.State, session.Ended = claviger.NewID(session.Created), claviger.SessionEnded, session.Created
		if err := tx.InsertSession(session, 1, []byte("back from the dead")); err != nil {
			return err
		}
		keys, _, err := tx.Keys(store.KeyQuery{Limit: store.MaxLimit})
		for _, key := range keys {
			for _, v := range key.Versions {
				if v.State == claviger.Destroyed {
					return tx.PutBlob(key.ID, v.Number, 1, []byte("back from the dead"))
				}
			}
		}
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
}
