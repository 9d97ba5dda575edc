package keeper_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
	"claviger.dev/pubkey"
)

const api = "https://api.example/orders"

// client registers a client of a caller, which may open its sessions.
func (w *world) client(by claviger.Principal, name claviger.Name, limits claviger.ClientLimits) claviger.Client {
	w.Helper()
	c, err := w.CreateClient(w.Context(), w.op, claviger.Client{Name: name, Principal: by.ID, Kind: claviger.Confidential,
		Audiences: []string{"https://api.example/*"}, Scopes: []string{"read", "write"}, GrantTypes: []string{"client_credentials"}, Limits: limits})
	if err != nil {
		w.Fatal(err)
	}
	w.grant(by, string(name), claviger.Conditions{}, claviger.OpenSession)
	return c
}

func (w *world) session(by claviger.Principal, n keeper.NewSession) claviger.Session {
	w.Helper()
	n.KeyKind = orCustody(n.KeyKind)
	s, err := w.OpenSession(w.Context(), by, n)
	if err != nil {
		w.Fatal(err)
	}
	return s
}

func orCustody(k claviger.SessionKey) claviger.SessionKey {
	if k == "" {
		return claviger.CustodyKey
	}
	return k
}

func statement() keeper.SessionStatement {
	return keeper.SessionStatement{Kind: "dpop", Audience: api, Method: "GET", ToBeSigned: []byte("header.claims")}
}

func (w *world) use(by claviger.Principal, id claviger.ID) error {
	_, err := w.SignForSession(w.Context(), by, id, statement())
	return err
}

func TestSessionSignsUntilItEnds(t *testing.T) {
	t.Parallel()
	for _, alg := range []claviger.Algorithm{claviger.ECDSAP256, claviger.Ed25519} {
		t.Run(string(alg), func(t *testing.T) {
			w := newWorld(t)
			by := w.caller(7)
			w.client(by, "prod/shop/web", claviger.ClientLimits{})
			s := w.session(by, keeper.NewSession{Client: "prod/shop/web", Algorithm: alg, Subject: claviger.Subject{Issuer: "https://login.example", ID: "ann"}})
			signed, err := w.SignForSession(t.Context(), by, s.ID, statement())
			if err != nil {
				t.Fatal(err)
			}
			key, err := pubkey.FromSPKI(alg, s.Public)
			if err != nil {
				t.Fatal(err)
			}
			if !key.Verify([]byte("header.claims"), signed.Signature, pubkey.ASN1) || key.Thumbprint() != s.JKT {
				t.Error("the session's own public half does not verify what it signed")
			}
			if _, err := w.SessionLive(t.Context(), s.ID); err != nil {
				t.Errorf("it is live: %v", err)
			}
			records := w.since(func() {
				for range 2 { // to end it twice is no error, and no second record
					if err := w.EndSession(t.Context(), by, s.ID, keeper.End{Reason: keeper.EndLogout}); err != nil {
						t.Error(err)
					}
				}
			})
			if len(records) != 1 || records[0].Action != "session.end" || records[0].Detail["subject"] != "ann" || records[0].Reason != "logout" {
				t.Errorf("records of the end: %+v", records)
			}
			wantCode(t, "use after the end", w.use(by, s.ID), claviger.Denied)
			_, err = w.SessionLive(t.Context(), s.ID)
			wantCode(t, "live after the end", err, claviger.Denied)
			if err := w.db.View(t.Context(), func(tx *store.Tx) error { _, _, err := tx.SessionBlob(s.ID); return err }); !errors.Is(err, claviger.NotFound) {
				t.Errorf("the wrapped key is still there: %v", err)
			}
			got, err := w.Session(t.Context(), by, s.ID)
			if err != nil || got.State != claviger.SessionEnded || got.EndReason != "logout" || got.Uses != 1 {
				t.Errorf("as it is shown: %+v, %v", got, err)
			}
		})
	}
}

// refusedUse is a use of a session that must be refused.
type refusedUse struct {
	name   string
	limits claviger.ClientLimits
	open   keeper.NewSession
	before func(*world, claviger.Principal, claviger.Session)
	use    func(*keeper.SessionStatement)
	code   claviger.Code
	reason string
	ends   bool
}

func sessionRefusals(t *testing.T) []refusedUse {
	home := claviger.Source{Address: netip.MustParseAddr("192.0.2.1")}
	public, err := pubkey.FromStd(claviger.Ed25519, ed25519.NewKeyFromSeed(make([]byte, 32)).Public())
	if err != nil {
		t.Fatal(err)
	}
	return []refusedUse{
		{name: "idle", before: func(w *world, _ claviger.Principal, _ claviger.Session) { w.later(time.Hour + time.Second) }, code: claviger.Denied, reason: "session-idle", ends: true},
		{name: "expired", open: keeper.NewSession{Lifetime: 30 * time.Minute}, before: func(w *world, _ claviger.Principal, _ claviger.Session) { w.later(31 * time.Minute) },
			code: claviger.Denied, reason: "session-expired", ends: true},
		{name: "uses", open: keeper.NewSession{MaxUses: 1}, before: func(w *world, by claviger.Principal, s claviger.Session) {
			if err := w.use(by, s.ID); err != nil {
				w.Error(err)
			}
		}, code: claviger.Exhausted, reason: "session-uses"},
		{name: "rate", limits: claviger.ClientLimits{SessionRate: &claviger.Rate{PerSecond: 0.001, Burst: 1}}, before: func(w *world, by claviger.Principal, s claviger.Session) {
			if err := w.use(by, s.ID); err != nil {
				w.Error(err)
			}
		}, code: claviger.Exhausted, reason: "session-rate"},
		{name: "audience", open: keeper.NewSession{Audiences: []string{"https://api.example/users/*"}}, code: claviger.Denied, reason: "session-limits"},
		{name: "method", open: keeper.NewSession{Methods: []string{"post"}}, code: claviger.Denied, reason: "session-limits"},
		{name: "source refused", limits: claviger.ClientLimits{SourceChanges: claviger.SourceRefused}, open: keeper.NewSession{Source: home},
			use:  func(st *keeper.SessionStatement) { st.Source.Address = netip.MustParseAddr("198.51.100.9") },
			code: claviger.Denied, reason: "session-source"},
		{name: "source ends", limits: claviger.ClientLimits{SourceChanges: claviger.SourceEnds}, open: keeper.NewSession{Source: home},
			code: claviger.Denied, reason: "session-source", ends: true},
		{name: "suspended", before: func(w *world, by claviger.Principal, s claviger.Session) {
			if err := w.SuspendSession(w.Context(), by, s.ID, "odd"); err != nil {
				w.Error(err)
			}
		}, code: claviger.Denied, reason: "session-suspended"},
		{name: "client disabled", before: func(w *world, _ claviger.Principal, s claviger.Session) {
			if _, err := w.DisableClient(w.Context(), w.op, string(s.Client), "moved"); err != nil {
				w.Error(err)
			}
		}, code: claviger.Denied, reason: "session-ended", ends: true},
		{name: "principal revoked", before: func(w *world, by claviger.Principal, _ claviger.Session) {
			if _, err := w.RevokePrincipal(w.Context(), w.op, string(by.ID), "left"); err != nil {
				w.Error(err)
			}
		}, code: claviger.Denied, reason: "principal", ends: true},
		{name: "key elsewhere", open: keeper.NewSession{KeyKind: claviger.BrowserKey, Algorithm: claviger.Ed25519, Public: public.SPKI()}, code: claviger.Denied, reason: "session-key"},
	}
}

// TestSessionRefusals has one use refused for each reason, with one record and
// no call of the custodian.
func TestSessionRefusals(t *testing.T) {
	t.Parallel()
	for _, test := range sessionRefusals(t) {

		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			by := w.caller(7)
			w.client(by, "prod/shop/web", test.limits)
			test.open.Client = "prod/shop/web"
			s := w.session(by, test.open)
			if test.before != nil {
				test.before(w, by, s)
			}
			st := statement()
			if test.use != nil {
				test.use(&st)
			}
			calls := w.keys.calls.Load()
			records := w.since(func() {
				_, err := w.SignForSession(t.Context(), by, s.ID, st)
				wantCode(t, "use", err, test.code)
				if e, ok := errors.AsType[*claviger.Error](err); !ok || e.Hint == "" {
					t.Errorf("no hint in %v", err)
				}
			})
			var denied []audit.Record
			for _, r := range records {
				if r.Action == "session.use" {
					denied = append(denied, r)
				}
			}
			if len(denied) != 1 || denied[0].Outcome != audit.Denied || denied[0].Reason != test.reason {
				t.Errorf("records %+v, want one denied for %s", records, test.reason)
			}
			if got := w.keys.calls.Load(); got != calls {
				t.Errorf("the custodian was asked %d times", got-calls)
			}
			got, err := w.Session(t.Context(), w.op, s.ID)
			if err != nil || (got.State == claviger.SessionEnded) != test.ends {
				t.Errorf("the session is %s (%s), %v; want it ended: %v", got.State, got.EndReason, err, test.ends)
			}
		})
	}
}

func TestSessionIsItsOpenersAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by, other, helper := w.caller(7), w.caller(8), w.caller(9)
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	w.client(other, "prod/wiki/web", claviger.ClientLimits{})
	w.grant(helper, "prod/shop/*", claviger.Conditions{}, claviger.ManageSessions)
	s := w.session(by, keeper.NewSession{Client: "prod/shop/web"})
	if s.Subject.ID != string(by.ID) || s.Subject.Name != by.Name {
		t.Errorf("the subject is %+v, want the principal itself", s.Subject)
	}
	// Another principal does not learn that there is one, and neither does an
	// operator use it.
	for name, who := range map[string]claviger.Principal{"another": other, "operator": w.op, "helper": helper} {
		wantCode(t, name+" uses", w.use(who, s.ID), claviger.NotFound)
	}
	_, err := w.Session(t.Context(), other, s.ID)
	wantCode(t, "another reads", err, claviger.NotFound)
	wantCode(t, "another ends", w.EndSession(t.Context(), other, s.ID, keeper.End{Reason: keeper.EndClosed}), claviger.NotFound)
	_, err = w.OpenSession(t.Context(), other, keeper.NewSession{Client: "prod/shop/web", KeyKind: claviger.CustodyKey})
	wantCode(t, "another opens", err, claviger.NotFound)
	_, err = w.OpenSession(t.Context(), w.op, keeper.NewSession{Client: "prod/shop/web", KeyKind: claviger.CustodyKey})
	wantCode(t, "an operator opens", err, claviger.NotFound)
	count := func(who claviger.Principal, q keeper.SessionQuery) int {
		list, _, err := w.Sessions(t.Context(), who, q)
		if err != nil {
			t.Error(err)
		}
		return len(list)
	}
	if own, foreign, all := count(by, keeper.SessionQuery{}), count(other, keeper.SessionQuery{}), count(w.op, keeper.SessionQuery{}); own != 1 || foreign != 0 || all != 1 {
		t.Errorf("listed %d own, %d of another, %d in all; want 1, 0, 1", own, foreign, all)
	}
	_, _, err = w.Sessions(t.Context(), other, keeper.SessionQuery{Principal: by.ID})
	wantCode(t, "another lists", err, claviger.Denied)
	_, err = w.EndSessions(t.Context(), other, keeper.SessionQuery{Client: s.Client}, keeper.End{Reason: keeper.EndClosed})
	wantCode(t, "another ends those of a client", err, claviger.Denied)
	_, err = w.EndSessions(t.Context(), w.op, keeper.SessionQuery{}, keeper.End{Reason: keeper.EndClosed})
	wantCode(t, "all sessions at once", err, claviger.Invalid)
	// The opener suspends, and who may manage sessions resumes.
	if err := w.SuspendSession(t.Context(), by, s.ID, "away"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "suspended twice", w.SuspendSession(t.Context(), by, s.ID, "away"), claviger.Conflict)
	wantCode(t, "opener resumes", w.ResumeSession(t.Context(), by, s.ID, ""), claviger.Denied)
	if err := w.ResumeSession(t.Context(), helper, s.ID, "back"); err != nil {
		t.Fatal(err)
	}
	if err := w.use(by, s.ID); err != nil {
		t.Errorf("use after it was resumed: %v", err)
	}
	if n, err := w.EndSessions(t.Context(), helper, keeper.SessionQuery{Client: s.Client}, keeper.End{Reason: keeper.EndClosed}); n != 1 || err != nil {
		t.Errorf("ended %d, %v; want 1", n, err)
	}
	wantCode(t, "use after all have ended", w.use(by, s.ID), claviger.Denied)
}

func TestOpenSessionRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by, bare := w.caller(7), w.caller(8)
	c := w.client(by, "prod/shop/web", claviger.ClientLimits{MaxSessions: 1})
	if _, err := w.CreateClient(t.Context(), w.op, claviger.Client{Name: "prod/bare/web", Principal: bare.ID, Kind: claviger.Confidential, Audiences: []string{"*"}}); err != nil {
		t.Fatal(err)
	}
	narrow := w.caller(9)
	if _, err := w.CreateClient(t.Context(), w.op, claviger.Client{Name: "prod/narrow/web", Principal: narrow.ID, Kind: claviger.Confidential, Audiences: []string{"*"}}); err != nil {
		t.Fatal(err)
	}
	w.grant(narrow, "prod/narrow/*", claviger.Conditions{Audiences: []string{"https://a.example/"}}, claviger.OpenSession)
	ann := claviger.Subject{Issuer: "https://login.example", ID: "ann"}
	for _, test := range []struct {
		name string
		by   claviger.Principal
		n    keeper.NewSession
		want claviger.Code
	}{
		{"no client", by, keeper.NewSession{Client: "prod/none/web"}, claviger.NotFound},
		{"no grant", bare, keeper.NewSession{Client: "prod/bare/web"}, claviger.Denied},
		{"audience of another grant", narrow, keeper.NewSession{Client: "prod/narrow/web", Audiences: []string{"https://a.example/", "https://b.example/"}}, claviger.Denied},
		{"audience of the grant", narrow, keeper.NewSession{Client: "prod/narrow/web", Audiences: []string{"https://a.example/"}}, ""},
		{"audience of no registration", by, keeper.NewSession{Client: string(c.Name), Audiences: []string{"https://b.example/"}}, claviger.Denied},
		{"wider audience", by, keeper.NewSession{Client: string(c.Name), Audiences: []string{"*"}}, claviger.Denied},
		{"scope of no registration", by, keeper.NewSession{Client: string(c.Name), Scopes: []string{"admin"}}, claviger.Denied},
		{"malformed audience", by, keeper.NewSession{Client: string(c.Name), Audiences: []string{"https://api*"}}, claviger.Invalid},
		{"no kind of key", by, keeper.NewSession{Client: string(c.Name), KeyKind: "cookie"}, claviger.Invalid},
		{"no public half", by, keeper.NewSession{Client: string(c.Name), KeyKind: claviger.BrowserKey}, claviger.Invalid},
		{"public half of custody", by, keeper.NewSession{Client: string(c.Name), Public: []byte{1}}, claviger.Invalid},
		{"not a public half", by, keeper.NewSession{Client: string(c.Name), KeyKind: claviger.DeviceKey, Public: []byte("x")}, claviger.Invalid},
		{"algorithm", by, keeper.NewSession{Client: string(c.Name), Algorithm: claviger.AES256GCM}, claviger.Unsupported},
		{"short idle", by, keeper.NewSession{Client: string(c.Name), Idle: time.Second}, claviger.Invalid},
		{"subject without an id", by, keeper.NewSession{Client: string(c.Name), Subject: claviger.Subject{Issuer: "x"}}, claviger.Invalid},
		{"first of a subject", by, keeper.NewSession{Client: string(c.Name), Subject: ann}, ""},
		{"second of a subject", by, keeper.NewSession{Client: string(c.Name), Subject: ann}, claviger.Exhausted},
		{"of another subject", by, keeper.NewSession{Client: string(c.Name), Subject: claviger.Subject{Issuer: "https://login.example", ID: "bob"}}, ""},
	} {
		test.n.KeyKind = orCustody(test.n.KeyKind)
		_, err := w.OpenSession(t.Context(), test.by, test.n)
		wantCode(t, test.name, err, test.want)
	}
	if list, _, err := w.Sessions(t.Context(), w.op, keeper.SessionQuery{Ended: true}); err != nil || len(list) != 3 {
		t.Errorf("%d sessions are stored, %v; want the 3 that were opened", len(list), err)
	}
}

// TestSessionUnrecordedIsNotOpened has the log fail when a session is opened:
// nothing of it may stay.
func TestSessionUnrecordedIsNotOpened(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	w.log.broken.Store(true)
	_, err := w.OpenSession(t.Context(), by, keeper.NewSession{Client: "prod/shop/web", KeyKind: claviger.CustodyKey})
	wantCode(t, "open", err, claviger.Unavailable)
	w.log.broken.Store(false)
	list, _, err := w.Sessions(t.Context(), w.op, keeper.SessionQuery{Ended: true})
	if err != nil || len(list) != 0 {
		t.Errorf("%d sessions, %v; want none", len(list), err)
	}
}

// TestDiscardedSessionIsGone has a session found and used while it is still
// being opened, and then not opened, since the right to was withdrawn: its key
// signs nothing from memory then.
func TestDiscardedSessionIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	c, err := w.CreateClient(t.Context(), w.op, claviger.Client{Name: "prod/shop/web", Principal: by.ID, Kind: claviger.Confidential,
		Audiences: []string{"https://api.example/*"}, GrantTypes: []string{"client_credentials"}})
	if err != nil {
		t.Fatal(err)
	}
	g := w.grant(by, string(c.Name), claviger.Conditions{}, claviger.OpenSession)
	var found []claviger.Session
	early := func(r *audit.Record) {
		if r.Action != "session.open" {
			return
		}
		w.log.after.Store(nil)
		if _, err := w.RevokeGrant(context.Background(), w.op, string(g.ID), "test"); err != nil {
			t.Error(err)
		}
		var err error
		if found, _, err = w.Sessions(context.Background(), by, keeper.SessionQuery{Principal: by.ID}); err != nil || len(found) != 1 {
			t.Fatalf("%d sessions, %v", len(found), err)
		}
		if err := w.use(by, found[0].ID); err != nil {
			t.Errorf("use: %v", err)
		}
	}
	w.log.after.Store(&early)
	_, err = w.OpenSession(t.Context(), by, keeper.NewSession{Client: string(c.Name), KeyKind: claviger.CustodyKey})
	wantCode(t, "open", err, claviger.Denied)
	wantCode(t, "use of what was not opened", w.use(by, found[0].ID), claviger.NotFound)
}

// TestEndedSessionIsRefusedAtOnce ends a session while uses of it run: from
// the return of EndSession on none is released, those under way among them.
func TestEndedSessionIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	s := w.session(by, keeper.NewSession{Client: "prod/shop/web"})
	var ended atomic.Bool
	var released, late atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				after := ended.Load()
				if err := w.use(by, s.ID); err != nil {
					if claviger.CodeOf(err) != claviger.Denied {
						t.Errorf("use: %v", err)
					}
					return
				}
				released.Add(1)
				if after {
					late.Add(1)
				}
			}
		})
	}
	for released.Load() < 20 {
		if err := w.use(by, s.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.EndSession(t.Context(), by, s.ID, keeper.End{Reason: keeper.EndLogout}); err != nil {
		t.Fatal(err)
	}
	ended.Store(true)
	wg.Wait()
	if late.Load() > 0 {
		t.Errorf("%d uses were released that began after the end", late.Load())
	}
	// One that the custodian has done already is dropped.
	s = w.session(by, keeper.NewSession{Client: "prod/shop/web"})
	during := func() {
		w.keys.during.Store(nil)
		if err := w.EndSession(context.Background(), by, s.ID, keeper.End{Reason: keeper.EndLogout}); err != nil {
			t.Error(err)
		}
	}
	w.keys.during.Store(&during)
	records := w.since(func() { wantCode(t, "use that was under way", w.use(by, s.ID), claviger.Denied) })
	if last := records[len(records)-1]; last.Reason != "dropped-before-release" {
		t.Errorf("the last record is %+v", last)
	}
}

func TestEndTellsReceivers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	c := w.client(by, "prod/shop/web", claviger.ClientLimits{})
	if err := w.db.Update(t.Context(), func(tx *store.Tx) error {
		return errors.Join(
			tx.InsertReceiver(claviger.Receiver{ID: claviger.NewID(w.now()), Name: "all", Kind: claviger.CAEPReceiver}),
			tx.InsertReceiver(claviger.Receiver{ID: claviger.NewID(w.now()), Name: "shop", Kind: claviger.LogoutReceiver, Client: c.ID}),
			tx.InsertReceiver(claviger.Receiver{ID: claviger.NewID(w.now()), Name: "other", Kind: claviger.LogoutReceiver, Client: "another"}))
	}); err != nil {
		t.Fatal(err)
	}
	s := w.session(by, keeper.NewSession{Client: string(c.ID), Subject: claviger.Subject{Issuer: "https://login.example", ID: "ann"},
		UpstreamIssuer: "https://login.example", UpstreamSID: "s-1"})
	if n, err := w.EndSessions(t.Context(), w.System(), keeper.SessionQuery{UpstreamIssuer: "https://login.example", UpstreamSID: "s-1"},
		keeper.End{Reason: keeper.EndUpstream}); n != 1 || err != nil {
		t.Fatalf("ended %d, %v; want 1", n, err)
	}
	var list []store.Delivery
	if err := w.db.View(t.Context(), func(tx *store.Tx) (err error) { list, _, err = tx.Deliveries(store.DeliveryQuery{}); return err }); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 {
		t.Fatalf("%d deliveries, want 2", len(list))
	}
	var document struct{ End keeper.SessionEnded }
	err := json.Unmarshal(list[0].Document, &document)
	if event := document.End; err != nil || event.Session != s.ID || event.Subject.ID != "ann" || event.Reason != keeper.EndUpstream || event.Upstream != "s-1" {
		t.Errorf("event %+v, %v", document, err)
	}
}

func TestGuardSuspends(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var verdict atomic.Pointer[keeper.UseVerdict]
	verdict.Store(&keeper.UseVerdict{})
	cfg := w.config()
	cfg.SessionGuard = func(claviger.Session, keeper.SessionUse) keeper.UseVerdict { return *verdict.Load() }
	w.open(cfg)
	by := w.caller(7)
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	s := w.session(by, keeper.NewSession{Client: "prod/shop/web"})
	if err := w.use(by, s.ID); err != nil {
		t.Fatal(err)
	}
	verdict.Store(&keeper.UseVerdict{Events: []claviger.SessionEvent{"volume"}})
	records := w.since(func() {
		if err := w.use(by, s.ID); err != nil {
			t.Error(err)
		}
	})
	if len(records) != 2 || records[0].Action != "session.event" || records[0].Reason != "volume" || w.SessionEvents()["volume"] != 1 {
		t.Errorf("records of an event: %+v", records)
	}
	verdict.Store(&keeper.UseVerdict{Refuse: claviger.UseVolume})
	wantCode(t, "refused", w.use(by, s.ID), claviger.Denied)
	verdict.Store(&keeper.UseVerdict{Suspend: "bulk", Events: []claviger.SessionEvent{"bulk"}})
	wantCode(t, "suspended", w.use(by, s.ID), claviger.Denied)
	verdict.Store(&keeper.UseVerdict{})
	wantCode(t, "after that", w.use(by, s.ID), claviger.Denied)
	if got, err := w.Session(t.Context(), by, s.ID); err != nil || got.State != claviger.SessionSuspended || got.EndReason != "bulk" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestSweepEndsWhatIsOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	idle := w.session(by, keeper.NewSession{Client: "prod/shop/web", Idle: time.Minute})
	used := w.session(by, keeper.NewSession{Client: "prod/shop/web", Idle: time.Minute})
	short := w.session(by, keeper.NewSession{Client: "prod/shop/web", Lifetime: time.Minute})
	w.later(40 * time.Second)
	if err := w.use(by, used.ID); err != nil {
		t.Fatal(err)
	}
	w.later(25 * time.Second)
	ended := func(id claviger.ID) string {
		s, err := w.Session(t.Context(), w.op, id)
		if err != nil {
			t.Fatal(err)
		}
		return s.EndReason
	}
	runUntil(w, func() bool { return ended(idle.ID) != "" && ended(short.ID) != "" })
	if i, s, u := ended(idle.ID), ended(short.ID), ended(used.ID); i != "idle" || s != "expired" || u != "" {
		t.Errorf("ended as %q and %q, and the one in use %q", i, s, u)
	}
}
