package keeper_test

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/state"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/postgres/pgtest"
)

const cart = "prod/shop/cart"

// shop is a machine key and who uses it.
type shop struct {
	*world
	by claviger.Principal
}

func newShop(w *world, set string, settings claviger.Settings) shop {
	w.Helper()
	if _, err := w.CreateKey(w.Context(), w.op, keeper.CreateKey{Name: cart, Algorithm: "machine-key", Recipe: set, Owner: "shop", Settings: settings}); err != nil {
		w.Fatal(err)
	}
	by := w.caller(7)
	w.grant(by, cart, claviger.Conditions{}, claviger.Protect, claviger.Unprotect)
	return shop{w, by}
}

// token makes one token of a format.
func (s shop) token(f state.Format, params state.Params, payload string) []byte {
	s.Helper()
	out, err := s.Protect(s.Context(), s.by, keeper.ProtectRequest{Key: cart, Format: f, Params: params, Payloads: [][]byte{[]byte(payload)}})
	if err != nil {
		s.Fatal(err)
	}
	return out.Tokens[0]
}

// passes reports whether a token opens.
func (s shop) passes(f state.Format, params state.Params, token []byte) bool {
	s.Helper()
	out, err := s.Unprotect(s.Context(), s.by, keeper.UnprotectRequest{Key: cart, Format: f, Params: params, Tokens: [][]byte{token}})
	if err != nil {
		s.Fatal(err)
	}
	return out[0].OK
}

func (s shop) version(number uint32) claviger.Version {
	s.Helper()
	v, err := s.Key(s.Context(), s.op, cart)
	if err != nil {
		s.Fatal(err)
	}
	return *v.Version(number)
}

// TestGrace rotates with a grace: old tokens pass until it ends, and no longer,
// and only once whoever used the old version was seen with the new one.
func TestGrace(t *testing.T) {
	t.Parallel()
	s := newShop(newWorld(t), "django", claviger.Settings{Grace: claviger.Duration(48 * time.Hour)})
	old := s.token(state.DjangoDumps, state.Params{}, "{}")
	if _, err := s.Rotate(t.Context(), s.op, cart, "", 72*time.Hour); claviger.CodeOf(err) != claviger.Invalid {
		t.Fatalf("a grace longer than the key's: %v", err)
	}
	if _, err := s.Rotate(t.Context(), s.op, cart, "", time.Hour); err != nil {
		t.Fatal(err)
	}
	if v := s.version(1); time.Until(v.Retires) > time.Hour || time.Until(v.Retires) < 59*time.Minute {
		t.Fatalf("retires %v", v.Retires)
	}
	if !s.passes(state.DjangoDumps, state.Params{}, old) {
		t.Fatal("an old token is refused within the grace")
	}
	// The grace is over, but the caller was not seen with version 2.
	s.later(2 * time.Hour)
	runUntil(s.world, func() bool { return hasAction(s.world, "key.retire-later") })
	if !s.passes(state.DjangoDumps, state.Params{}, old) {
		t.Error("retired although a caller was not seen with the new version")
	}
	_, err := s.Retire(t.Context(), s.op, cart, 1, "by hand", false)
	wantCode(t, "retire by hand", err, claviger.Conflict)
	if err == nil || !strings.Contains(err.Error(), "uid:7 at node server") {
		t.Errorf("who is left is not named: %v", err)
	}
	_, err = s.ChangeState(t.Context(), s.op, cart, 1, claviger.Destroyed, "", false)
	wantCode(t, "destroy", err, claviger.Conflict)
	s.token(state.DjangoDumps, state.Params{}, "{}")
	s.later(2 * time.Hour)
	runUntil(s.world, func() bool { return hasAction(s.world, "key.retire") })
	if s.passes(state.DjangoDumps, state.Params{}, old) {
		t.Error("an old token passes after its version was retired")
	}
	if v := s.version(1); v.State != claviger.Deactivated || v.Retired.IsZero() {
		t.Errorf("version 1 after the grace: %+v", v)
	}
	_, err = s.Retire(t.Context(), s.op, cart, 1, "", true)
	wantCode(t, "retire again", err, claviger.Conflict)
	_, err = s.Retire(t.Context(), s.op, cart, 2, "", true)
	wantCode(t, "retire the active one", err, claviger.Invalid)
}

func hasAction(w *world, action string) bool {
	for _, r := range w.records() {
		if r.Action == action && r.Outcome == audit.Allowed {
			return true
		}
	}
	return false
}

// TestGraceDrained waits for a day without a check, however long the grace is over.
func TestGraceDrained(t *testing.T) {
	t.Parallel()
	s := newShop(newWorld(t), "django", claviger.Settings{Grace: claviger.Duration(time.Hour), GraceDrained: true})
	old := s.token(state.DjangoDumps, state.Params{}, "{}")
	if _, err := s.Rotate(t.Context(), s.op, cart, "", 0); err != nil {
		t.Fatal(err)
	}
	s.token(state.DjangoDumps, state.Params{}, "{}") // everybody has the new version
	s.later(2 * time.Hour)
	if !s.passes(state.DjangoDumps, state.Params{}, old) {
		t.Fatal("an old token is refused")
	}
	runUntil(s.world, func() bool { return hasAction(s.world, "key.retire-later") })
	s.later(25 * time.Hour)
	runUntil(s.world, func() bool { return hasAction(s.world, "key.retire") })
	if s.passes(state.DjangoDumps, state.Params{}, old) {
		t.Error("an old token passes after the drain")
	}
}

// TestManyHosts has one principal come from more addresses than are gathered:
// those beyond are added up, and confirm nobody.
func TestManyHosts(t *testing.T) {
	t.Parallel()
	s := newShop(newWorld(t), "cookie-signature", claviger.Settings{})
	const most = 4096
	token := s.token(state.ExpressCookie, state.Params{}, "x")
	for i := range most + 50 {
		s.by.Facts.Source = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		s.passes(state.ExpressCookie, state.Params{}, token)
	}
	d, err := s.Drain(t.Context(), s.op, cart, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	checked, others := uint64(0), uint64(0)
	for _, seen := range d.Sightings {
		if checked += seen.Checked; seen.Host == store.OtherHosts {
			others += seen.Checked
		}
	}
	if checked != most+50 || others == 0 {
		t.Errorf("%d tokens were checked, %d of them by other hosts, in %d sightings", checked, others, len(d.Sightings))
	}
}

// TestForcedRetirement is recorded with who was left.
func TestForcedRetirement(t *testing.T) {
	t.Parallel()
	s := newShop(newWorld(t), "django", claviger.Settings{})
	old := s.token(state.DjangoDumps, state.Params{}, "{}")
	if _, err := s.Rotate(t.Context(), s.op, cart, "", 0); err != nil {
		t.Fatal(err)
	}
	records := s.since(func() {
		if _, err := s.Retire(t.Context(), s.op, cart, 1, "", true); err != nil {
			t.Fatal(err)
		}
	})
	r := records[len(records)-1]
	if r.Action != "key.retire" || r.Detail["forced"] != "yes" || !strings.Contains(r.Detail["unconfirmed"], "uid:7") {
		t.Errorf("record %+v", r)
	}
	if s.passes(state.DjangoDumps, state.Params{}, old) {
		t.Error("an old token passes")
	}
}

// TestDrainAcrossServers counts what two servers on one store saw, for each of
// them, keeps it over a restart, and refuses to retire a version while one of
// the servers was not seen with the newer one.
func TestDrainAcrossServers(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	a, b := sharedWorld(t, dsn, "a"), sharedWorld(t, dsn, "b")
	for node, w := range map[string]*world{"a": a, "b": b} {
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		cfg := w.config()
		cfg.Node = node
		w.open(cfg)
	}
	s := newShop(a, "django", claviger.Settings{})
	there := shop{b, s.by}
	began := time.Now().Add(-time.Minute)
	old := s.token(state.DjangoDumps, state.Params{}, "{}")
	for range 3 {
		s.passes(state.DjangoDumps, state.Params{}, old)
		there.passes(state.DjangoDumps, state.Params{}, old)
	}
	there.passes(state.DjangoDumps, state.Params{}, []byte("nonsense")) // no version's
	if _, err := a.Rotate(t.Context(), a.op, cart, "", 0); err != nil {
		t.Fatal(err)
	}
	s.token(state.DjangoDumps, state.Params{}, "{}")
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	drain := func(w *world) keeper.Drain {
		t.Helper()
		d, err := w.Drain(t.Context(), w.op, cart, began)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := drain(a)
	one := d.Versions[0]
	if one.Made != 1 || one.Checked != 6 || len(one.Nodes) != 2 || one.Nodes[0].Node != "a" || one.Nodes[0].Checked != 3 || one.Nodes[1].Checked != 3 || one.Last.IsZero() {
		t.Errorf("version 1: %+v", one)
	}
	if two := d.Versions[1]; two.Made != 1 || two.Checked != 0 || two.Unconfirmed != nil {
		t.Errorf("version 2: %+v", two)
	}
	if want := []string{"node b", "uid:7 at node b"}; strings.Join(one.Unconfirmed, "; ") != strings.Join(want, "; ") {
		t.Errorf("unconfirmed %q", one.Unconfirmed)
	}
	var made, checked uint64
	for _, f := range d.Flows {
		if f.Version == 1 {
			made, checked = made+f.Made, checked+f.Checked
		}
	}
	if made != 1 || checked != 6 {
		t.Errorf("the flows have %d made and %d checked", made, checked)
	}
	_, err := a.Retire(t.Context(), a.op, cart, 1, "", false)
	wantCode(t, "retire before the second server was seen with the new version", err, claviger.Conflict)
	there.token(state.DjangoDumps, state.Params{}, "{}")
	if err := b.Close(t.Context()); err != nil { // a clean stop
		t.Fatal(err)
	}
	cfg := b.config()
	cfg.Node = "b"
	b.open(cfg)
	if again := drain(b).Versions[0]; again.Checked != 6 || len(again.Unconfirmed) > 0 {
		t.Errorf("after a restart: %+v", again)
	}
	if _, err := a.Retire(t.Context(), a.op, cart, 1, "", false); err != nil {
		t.Errorf("retire: %v", err)
	}
	if there.passes(state.DjangoDumps, state.Params{}, old) {
		t.Error("the second server takes a token of a version that the first one retired")
	}
	if c := a.TokenCounts(); len(c) == 0 || c[0].Version != 1 {
		t.Errorf("token counts %+v", c)
	}
}

// TestUnconfirmedBeyondTheList does not take it that nobody is left where more
// were seen within a day than are read.
func TestUnconfirmedBeyondTheList(t *testing.T) {
	t.Parallel()
	s := newShop(newWorld(t), "django", claviger.Settings{})
	if _, err := s.Rotate(t.Context(), s.op, cart, "", 0); err != nil {
		t.Fatal(err)
	}
	key, err := s.Key(t.Context(), s.op, cart)
	if err != nil {
		t.Fatal(err)
	}
	many := make([]store.Sighting, store.MaxSightings)
	for i := range many {
		many[i] = store.Sighting{Key: key.ID, Version: 2, Node: "server", Principal: s.by.ID, Host: strconv.Itoa(i), What: "django.dumps", Checked: 1, First: s.now(), Last: s.now()}
	}
	for _, list := range [][]store.Sighting{many[1:], many[:1]} {
		d, err := s.Drain(t.Context(), s.op, cart, time.Time{})
		if err != nil || len(d.Versions[0].Unconfirmed) > 0 {
			t.Fatalf("unconfirmed %q, %v", d.Versions[0].Unconfirmed, err)
		}
		if err := s.db.Update(t.Context(), func(tx *store.Tx) error { return tx.AddSightings(list) }); err != nil {
			t.Fatal(err)
		}
	}
	_, err = s.Retire(t.Context(), s.op, cart, 1, "", false)
	wantCode(t, "retire", err, claviger.Conflict)
	s.later(25 * time.Hour)
	if _, err := s.Retire(t.Context(), s.op, cart, 1, "", false); err != nil {
		t.Errorf("a day later: %v", err)
	}
}
