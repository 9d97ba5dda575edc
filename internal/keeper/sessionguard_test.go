package keeper_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/broker/guard"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// TestObserveUse has resource servers tell of a browser's uses, which no door
// of ours sees: the rules hear of them, and a session that is used in bulk, or
// with proofs minted ahead of time, is suspended where its client wants that.
func TestObserveUse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		limit claviger.ClientLimits
		use   keeper.SessionUse
		event claviger.SessionEvent
		state claviger.SessionState
	}{
		{"as usual", claviger.ClientLimits{SuspendOn: claviger.SessionEvents}, keeper.SessionUse{Kind: "dpop", Count: 10}, "", claviger.SessionLive},
		{"in bulk, reported", claviger.ClientLimits{}, keeper.SessionUse{Kind: "dpop", Count: 1000}, claviger.UseVolume, claviger.SessionLive},
		{"in bulk, suspended", claviger.ClientLimits{SuspendOn: claviger.SessionEvents}, keeper.SessionUse{Kind: "dpop", Count: 1000}, claviger.UseVolume, claviger.SessionSuspended},
		{"minted ahead of time", claviger.ClientLimits{SuspendOn: claviger.SessionEvents}, keeper.SessionUse{Kind: "dpop", Count: 50, Stale: true}, claviger.UseStaleNonce, claviger.SessionSuspended},
		{"from elsewhere, which ends it", claviger.ClientLimits{SourceChanges: claviger.SourceEnds},
			keeper.SessionUse{Kind: "dpop", Source: claviger.Source{Address: netip.MustParseAddr("203.0.113.9")}}, claviger.UseSourceChange, claviger.SessionEnded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cfg := w.config()
			cfg.SessionGuard = new(guard.Guard).Judge
			w.open(cfg)
			by := w.caller(7)
			w.client(by, "prod/shop/web", tt.limit)
			s := w.session(by, browserSession(t))
			records := w.since(func() {
				_, err := w.ObserveUse(t.Context(), by, s.ID, tt.use)
				if (err == nil) != (tt.state == claviger.SessionLive) {
					t.Errorf("observed: %v", err)
				}
			})
			i := slices.IndexFunc(records, func(r audit.Record) bool { return r.Action == "session.event" })
			switch {
			case tt.event == "" && i >= 0:
				t.Errorf("an event of nothing: %+v", records[i])
			case tt.event != "" && (i < 0 || records[i].Reason != string(tt.event) || records[i].Detail["session"] != string(s.ID)):
				t.Errorf("records: %+v", records)
			}
			if n := w.SessionEvents()[string(tt.event)]; tt.event != "" && n != 1 {
				t.Errorf("%d events are counted", n)
			}
			got, err := w.Session(t.Context(), by, s.ID)
			if err != nil || got.State != tt.state {
				t.Errorf("%+v, %v; want %s", got, err, tt.state)
			}
			if tt.state == claviger.SessionLive && got.Uses != tt.use.Count {
				t.Errorf("%d uses, want %d", got.Uses, tt.use.Count)
			}
			_, err = w.SessionLive(t.Context(), s.ID)
			if (err == nil) != (tt.state == claviger.SessionLive) {
				t.Errorf("the status check: %v", err)
			}
		})
	}
}

// TestUsesThatAreRefused: who opened a session raises its events with uses that
// the door refuses, and a stranger raises none.
func TestUsesThatAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.config()
	cfg.SessionGuard = new(guard.Guard).Judge
	w.open(cfg)
	by, stranger := w.caller(7), w.caller(8)
	w.client(by, "prod/shop/web", claviger.ClientLimits{SuspendOn: claviger.SessionEvents})
	s := w.session(by, keeper.NewSession{Client: "prod/shop/web", Methods: []string{"GET"}})
	sign := func(by claviger.Principal, method string) error {
		_, err := w.SignForSession(t.Context(), by, s.ID, keeper.SessionStatement{Kind: "dpop", Audience: "https://api.example/", Method: method, ToBeSigned: []byte("x")})
		return err
	}
	wantCode(t, "a stranger", sign(stranger, "DELETE"), claviger.NotFound)
	if all := w.SessionEvents(); len(all) > 0 {
		t.Errorf("a stranger raised %v", all)
	}
	if err := sign(by, "GET"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "another method", sign(by, "DELETE"), claviger.Denied)
	if all := w.SessionEvents(); all[string(claviger.UseForeignMethod)] != 1 {
		t.Errorf("events %v", all)
	}
	wantCode(t, "suspended for it", sign(by, "GET"), claviger.Denied)
	if err := w.EndSession(t.Context(), w.System(), s.ID, keeper.End{Reason: keeper.EndLogout}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "after logout", sign(by, "GET"), claviger.Denied)
	if all := w.SessionEvents(); all[string(claviger.UseAfterEnd)] != 1 {
		t.Errorf("events %v", all)
	}
}

// TestObservedUses has a session used before resource servers alone, by many
// requests at once: each use is counted, also where nothing else is used, and
// the session does not become idle.
func TestObservedUses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	s := w.session(by, idleSoon(t))
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	const each, rounds = 8, 20
	for range 3 {
		w.later(45 * time.Second)
		var group sync.WaitGroup
		for range each {
			group.Go(func() {
				for range rounds {
					if _, err := w.ObserveUse(t.Context(), by, s.ID, keeper.SessionUse{Kind: "dpop"}); err != nil {
						t.Errorf("observe: %v", err)
					}
				}
			})
		}
		group.Wait()
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	err := w.db.View(t.Context(), func(tx *store.Tx) (err error) {
		s, err = tx.Session(s.ID)
		return err
	})
	if err != nil || s.Uses != 3*each*rounds {
		t.Errorf("%d uses are stored, want %d; %v", s.Uses, 3*each*rounds, err)
	}
}

// TestUsedElsewhere has a session used through another server: here it is not
// idle then, and is where nobody used it.
func TestUsedElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	s := w.session(by, idleSoon(t))
	look := map[string]func() error{
		"status": func() error { _, err := w.SessionLive(t.Context(), s.ID); return err },
		"observe": func() error {
			_, err := w.ObserveUse(t.Context(), by, s.ID, keeper.SessionUse{Stale: true})
			return err
		},
	}
	for name, do := range look {
		if err := do(); err != nil { // it is in memory now
			t.Fatal(err)
		}
		w.later(45 * time.Second)
		if err := w.db.Update(t.Context(), func(tx *store.Tx) error {
			return tx.AddSessionUses([]store.SessionUse{{Session: s.ID, Count: 1, Last: w.now()}})
		}); err != nil {
			t.Fatal(err)
		}
		w.later(45 * time.Second)
		if err := do(); err != nil {
			t.Errorf("%s: %v, though it was used through another server", name, err)
		}
		if err := w.db.Update(t.Context(), func(tx *store.Tx) error {
			return tx.AddSessionUses([]store.SessionUse{{Session: s.ID, Count: 1, Last: w.now()}})
		}); err != nil {
			t.Fatal(err)
		}
	}
	w.later(2 * time.Minute)
	for name, do := range look {
		wantCode(t, name, do(), claviger.Denied)
	}
}

// idleSoon is a browserSession of a minute.
func idleSoon(t *testing.T) keeper.NewSession {
	n := browserSession(t)
	n.Idle = time.Minute
	return n
}

// browserSession has its key in a browser.
func browserSession(t *testing.T) keeper.NewSession {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return keeper.NewSession{Client: "prod/shop/web", KeyKind: claviger.BrowserKey, Public: public, Source: claviger.Source{Address: netip.MustParseAddr("192.0.2.1")}}
}

// TestReportUses: a session can be suspended for what is reported, so that it
// takes a grant; and a use that the door saw is not counted again.
func TestReportUses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.config()
	cfg.SessionGuard = new(guard.Guard).Judge
	w.open(cfg)
	by, api, stranger := w.caller(7), w.caller(8), w.caller(9)
	w.client(by, "prod/shop/web", claviger.ClientLimits{SuspendOn: []claviger.SessionEvent{claviger.UseStaleNonce}})
	w.grant(api, "prod/shop/*", claviger.Conditions{}, claviger.ReportUses)
	browser, custody := w.session(by, browserSession(t)), w.session(by, keeper.NewSession{Client: "prod/shop/web"})
	report := func(by claviger.Principal, id claviger.ID, u keeper.SessionUse) int {
		t.Helper()
		taken, err := w.ReportUses(t.Context(), by, []keeper.ReportedUse{{Session: id, SessionUse: u}, {Session: id, SessionUse: u}})
		if err != nil {
			t.Error(err)
		}
		return taken
	}
	uses := func(id claviger.ID) uint64 {
		t.Helper()
		s, err := w.Session(t.Context(), by, id)
		if err != nil {
			t.Fatal(err)
		}
		return s.Uses
	}
	stale := keeper.SessionUse{Kind: "dpop", Count: 50, Stale: true}
	refused := w.since(func() {
		if n := report(stranger, browser.ID, stale); n != 0 {
			t.Errorf("%d reports of a stranger are taken", n)
		}
	})
	if len(refused) != 1 || refused[0].Action != "session.report" || refused[0].Outcome != audit.Denied {
		t.Errorf("of a stranger's reports there is %+v", refused)
	}
	if n := report(api, browser.ID, keeper.SessionUse{Kind: "dpop", Count: 3, Method: "GET"}); n != 2 || uses(browser.ID) != 6 {
		t.Errorf("%d reports are taken, and %d uses counted", n, uses(browser.ID))
	}
	if n := report(api, custody.ID, keeper.SessionUse{Kind: "dpop", Count: 3}); n != 2 || uses(custody.ID) != 0 {
		t.Errorf("of a key in custody %d reports are taken, and %d uses counted", n, uses(custody.ID))
	}
	if n := report(api, claviger.NewID(time.Now()), stale); n != 0 {
		t.Errorf("%d reports of no session are taken", n)
	}
	report(api, browser.ID, stale)
	if _, err := w.SessionLive(t.Context(), browser.ID); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("it lives after proofs that were minted ahead of time: %v", err)
	}
}
