package storetest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// NewClient returns a confidential client of a principal.
func NewClient(name claviger.Name, principal claviger.ID) claviger.Client {
	return claviger.Client{ID: claviger.NewID(now()), Name: name, Principal: principal, Kind: claviger.Confidential,
		Audiences: []string{"https://api.example/*"}, Scopes: []string{"read"}, Created: now(), CreatedBy: principal, Revision: 1}
}

// NewSession returns a live session of a client, with its key in custody.
func NewSession(c claviger.Client, subject string) claviger.Session {
	id := claviger.NewID(now())
	return claviger.Session{ID: id, Client: c.ID, Principal: c.Principal, Subject: claviger.Subject{Issuer: "https://login.example", ID: subject},
		KeyKind: claviger.CustodyKey, Algorithm: claviger.Ed25519, Public: []byte{1}, JKT: "jkt-" + string(id), Binding: string(claviger.Isolated),
		Idle: claviger.Duration(time.Hour), SourceChanges: claviger.SourceAllowed, Created: now(), Ends: now().Add(12 * time.Hour),
		State: claviger.SessionLive, Revision: 1}
}

// registered stores a principal with a client.
func registered(t *testing.T, db *store.DB, name claviger.Name) claviger.Client {
	t.Helper()
	p := NewPrincipal(string(name))
	c := NewClient(name, p.ID)
	update(t, db, func(tx *store.Tx) error { return errors.Join(tx.InsertPrincipal(p), tx.InsertClient(c)) })
	return c
}

func clients(t *testing.T, db *store.DB) {
	shop, wiki := registered(t, db, "prod/shop/web"), registered(t, db, "prod/wiki/web")
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.InsertClient(NewClient("prod/shop/web", shop.Principal)) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.InsertClient(NewClient("prod/x/web", "nobody")) })
	wiki.Disabled, wiki.DisabledReason = now(), "moved"
	update(t, db, func(tx *store.Tx) error { return tx.UpdateClient(wiki) })
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.UpdateClient(wiki) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.UpdateClient(NewClient("prod/y/web", shop.Principal)) })
	wiki.Revision = 2
	view(t, db, func(tx *store.Tx) error {
		for ref, want := range map[string]claviger.Client{"prod/shop/web": shop, string(shop.ID): shop, "prod/wiki/web": wiki} {
			got, err := tx.Client(ref)
			if err != nil {
				return err
			}
			diff(t, ref, want, got)
		}
		if _, err := tx.Client("prod/none/web"); !errors.Is(err, claviger.NotFound) {
			t.Errorf("client: %v, want not found", err)
		}
		for _, test := range []struct {
			name  string
			query store.ClientQuery
			want  []claviger.Client
			next  string
		}{
			{"all", store.ClientQuery{}, []claviger.Client{shop, wiki}, ""},
			{"of a principal", store.ClientQuery{Principal: wiki.Principal}, []claviger.Client{wiki}, ""},
			{"first page", store.ClientQuery{Limit: 1}, []claviger.Client{shop}, "prod/shop/web"},
			{"second page", store.ClientQuery{Limit: 1, After: "prod/shop/web"}, []claviger.Client{wiki}, ""},
		} {
			got, next, err := tx.Clients(test.query)
			if err != nil {
				return err
			}
			diff(t, test.name, test.want, got)
			diff(t, test.name+": next", test.next, next)
		}
		return nil
	})
}

func sessions(t *testing.T, db *store.DB) {
	shop, wiki := registered(t, db, "prod/shop/web"), registered(t, db, "prod/wiki/web")
	ann, bob, other := NewSession(shop, "ann"), NewSession(shop, "bob"), NewSession(wiki, "ann")
	bob.ID, other.ID = ann.ID[:25]+"y", ann.ID[:25]+"z" // in this order
	ann.ID = ann.ID[:25] + "w"
	other.Subject.Issuer, other.UpstreamIssuer, other.UpstreamSID = "", "https://login.example", "s-1"
	before := revision(t, db)
	for _, s := range []claviger.Session{ann, bob, other} {
		update(t, db, func(tx *store.Tx) error { return tx.InsertSession(s, 1, []byte("wrapped")) })
	}
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.InsertSession(ann, 1, nil) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error {
		return tx.InsertSession(NewSession(claviger.Client{ID: "none"}, "x"), 1, nil)
	})
	wantCode(t, db, claviger.TooLarge, func(tx *store.Tx) error {
		return tx.InsertSession(NewSession(shop, "x"), 1, make([]byte, store.MaxBlob+1))
	})
	if after := revision(t, db); after != before {
		t.Errorf("sessions that were opened moved the sequence from %d to %d", before, after)
	}
	bob.State, bob.EndReason, bob.Ended = claviger.SessionEnded, "logout", now()
	update(t, db, func(tx *store.Tx) error { return tx.UpdateSession(bob) })
	if after := revision(t, db); after != before+1 {
		t.Errorf("the end of a session moved the sequence from %d to %d, want one more", before, after)
	}
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.UpdateSession(bob) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.UpdateSession(NewSession(shop, "x")) })
	bob.Revision = 2
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.Session(bob.ID)
		diff(t, "one that ended", bob, got)
		if err != nil {
			return err
		}
		if _, err := tx.Session("none"); !errors.Is(err, claviger.NotFound) {
			t.Errorf("session: %v, want not found", err)
		}
		for _, test := range []struct {
			name  string
			query store.SessionQuery
			want  []claviger.Session
			next  claviger.ID
		}{
			{"live", store.SessionQuery{}, []claviger.Session{ann, other}, ""},
			{"all", store.SessionQuery{Ended: true}, []claviger.Session{ann, bob, other}, ""},
			{"client", store.SessionQuery{Client: shop.ID}, []claviger.Session{ann}, ""},
			{"principal", store.SessionQuery{Principal: wiki.Principal}, []claviger.Session{other}, ""},
			{"subject", store.SessionQuery{Issuer: "https://login.example", Subject: "ann"}, []claviger.Session{ann}, ""},
			{"subject of no issuer", store.SessionQuery{Subject: "ann"}, []claviger.Session{other}, ""},
			{"upstream", store.SessionQuery{UpstreamIssuer: "https://login.example", UpstreamSID: "s-1"}, []claviger.Session{other}, ""},
			{"key", store.SessionQuery{JKT: ann.JKT}, []claviger.Session{ann}, ""},
			{"first page", store.SessionQuery{Ended: true, Limit: 2}, []claviger.Session{ann, bob}, bob.ID},
			{"second page", store.SessionQuery{Ended: true, Limit: 2, After: bob.ID}, []claviger.Session{other}, ""},
		} {
			got, next, err := tx.Sessions(test.query)
			if err != nil {
				return err
			}
			diff(t, test.name, test.want, got)
			diff(t, test.name+": next", test.next, next)
			if n, err := tx.CountSessions(test.query); err != nil || test.query.Limit == 0 && n != uint64(len(test.want)) {
				t.Errorf("%s: counted %d, %v; want %d", test.name, n, err, len(test.want))
			}
		}
		return nil
	})
}

func sessionUses(t *testing.T, db *store.DB) {
	c := registered(t, db, "prod/shop/web")
	s := NewSession(c, "ann") // idle after an hour, ends after twelve
	update(t, db, func(tx *store.Tx) error { return tx.InsertSession(s, 1, nil) })
	before := revision(t, db)
	at := func(d time.Duration) time.Time { return now().Add(d) }
	expired := func(when time.Time, want int) {
		t.Helper()
		view(t, db, func(tx *store.Tx) error {
			list, err := tx.ExpiredSessions(when, 10)
			if len(list) != want {
				t.Errorf("%d expired at %v, want %d", len(list), when, want)
			}
			return err
		})
	}
	use := func(n uint64, last time.Time) {
		t.Helper()
		update(t, db, func(tx *store.Tx) error {
			return tx.AddSessionUses([]store.SessionUse{{Session: s.ID, Count: n, Last: last}, {Session: "none", Count: 1, Last: last}})
		})
	}
	expired(at(time.Hour-time.Millisecond), 0)
	expired(at(time.Hour), 1)
	use(3, at(30*time.Minute))
	use(2, at(10*time.Minute)) // told late
	expired(at(time.Hour), 0)
	expired(at(90*time.Minute), 1)
	use(1, at(11*time.Hour+30*time.Minute))
	expired(at(12*time.Hour-time.Millisecond), 0)
	expired(at(12*time.Hour), 1) // the absolute end
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.Session(s.ID)
		if got.Uses != 6 || !got.LastUsed.Equal(at(11*time.Hour+30*time.Minute)) {
			t.Errorf("%d uses, last %v", got.Uses, got.LastUsed)
		}
		return err
	})
	if after := revision(t, db); after != before {
		t.Errorf("uses moved the sequence from %d to %d", before, after)
	}
	s.State, s.Ended = claviger.SessionEnded, now()
	update(t, db, func(tx *store.Tx) error { return tx.UpdateSession(s) })
	use(1, at(13*time.Hour))
	expired(at(24*time.Hour), 0)
	update(t, db, func(tx *store.Tx) error {
		if n, err := tx.DropSessions(now(), 10); n != 0 || err != nil {
			t.Errorf("dropped %d that ended later, %v", n, err)
		}
		n, err := tx.DropSessions(at(time.Millisecond), 10)
		if n != 1 {
			t.Errorf("dropped %d, want 1", n)
		}
		return err
	})
}

func sessionBlobs(t *testing.T, db *store.DB) {
	c := registered(t, db, "prod/shop/web")
	s, bare := NewSession(c, "ann"), NewSession(c, "bob")
	update(t, db, func(tx *store.Tx) error {
		return errors.Join(tx.InsertSession(s, 1, []byte("wrapped")), tx.InsertSession(bare, 0, nil))
	})
	below := func(generation uint32, want int) {
		t.Helper()
		view(t, db, func(tx *store.Tx) error {
			list, err := tx.SessionBlobsBelow(generation, "", 10)
			if len(list) != want {
				t.Errorf("%d below generation %d, want %d", len(list), generation, want)
			}
			if err != nil {
				return err
			}
			n, err := tx.CountBlobs(generation - 1)
			if n != uint64(want) {
				t.Errorf("%d counted below generation %d, want %d", n, generation, want)
			}
			return err
		})
	}
	below(1, 0)
	below(2, 1)
	update(t, db, func(tx *store.Tx) error { return tx.PutSessionBlob(s.ID, 2, []byte("wrapped anew")) })
	below(2, 0)
	view(t, db, func(tx *store.Tx) error {
		blob, generation, err := tx.SessionBlob(s.ID)
		if string(blob) != "wrapped anew" || generation != 2 {
			t.Errorf("blob %q of generation %d", blob, generation)
		}
		return err
	})
	for range 2 { // the second time there is nothing to erase
		update(t, db, func(tx *store.Tx) error { return tx.EraseSessionBlob(s.ID) })
	}
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.PutSessionBlob(s.ID, 3, []byte("x")) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { _, _, err := tx.SessionBlob(s.ID); return err })
	update(t, db, func(tx *store.Tx) error { return tx.DiscardSession(bare.ID) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { _, err := tx.Session(bare.ID); return err })
}

func refreshTokens(t *testing.T, db *store.DB) {
	s := NewSession(registered(t, db, "prod/shop/web"), "ann")
	hash := sha256.Sum256([]byte("token"))
	update(t, db, func(tx *store.Tx) error {
		return errors.Join(tx.InsertSession(s, 0, nil), tx.PutRefresh(store.Refresh{Hash: hash, Session: s.ID, Ends: now()}))
	})
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.PutRefresh(store.Refresh{Hash: hash, Session: s.ID, Ends: now()}) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.PutRefresh(store.Refresh{Session: "none", Ends: now()}) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { _, err := tx.UseRefresh([32]byte{1}, now()); return err })
	for later := range 3 {
		update(t, db, func(tx *store.Tx) error {
			got, err := tx.UseRefresh(hash, now().Add(time.Duration(later)*time.Second))
			diff(t, "refresh token", store.Refresh{Hash: hash, Session: s.ID, Ends: now(), Used: now()}, got)
			return err
		})
	}
	update(t, db, func(tx *store.Tx) error {
		n, err := tx.DropRefresh(s.ID)
		if n != 1 {
			t.Errorf("dropped %d, want 1", n)
		}
		return err
	})
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { _, err := tx.UseRefresh(hash, now()); return err })
}

func oneTimes(t *testing.T, db *store.DB) {
	code := store.OneTime{Kind: "code", Hash: sha256.Sum256([]byte("a")), Ends: now().Add(time.Minute), Document: []byte(`{"a":1}`)}
	par := code
	par.Kind, par.Document = "par", []byte(`{"b":1}`)
	put := func(o store.OneTime) func(*store.Tx) error {
		return func(tx *store.Tx) error { return tx.PutOneTime(o, now()) }
	}
	update(t, db, put(code))
	update(t, db, put(par))
	wantCode(t, db, claviger.Conflict, put(code))
	large := code
	large.Document = bytes.Repeat([]byte("x"), 1<<20+1)
	wantCode(t, db, claviger.TooLarge, put(large))
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.OneTime("code", code.Hash, now())
		diff(t, "as it is", code, got)
		return err
	})
	take := func(kind string, at time.Time) func(*store.Tx) error {
		return func(tx *store.Tx) error { _, err := tx.TakeOneTime(kind, code.Hash, at); return err }
	}
	// Of many that take it at once, one gets it.
	const n = 8
	taken := make(chan store.OneTime, n)
	_ = together(n, func(int) error {
		return db.Update(t.Context(), func(tx *store.Tx) error {
			got, err := tx.TakeOneTime("code", code.Hash, now())
			if err == nil {
				taken <- got
			}
			return err
		})
	})
	got := <-taken
	diff(t, "as taken", code, got)
	wantCode(t, db, claviger.NotFound, take("code", now()))
	wantCode(t, db, claviger.NotFound, take("par", now().Add(time.Minute))) // it has ended
	short := par
	short.Kind, short.Ends = "short", now()
	update(t, db, put(short))
	update(t, db, put(short)) // it had ended
	update(t, db, func(tx *store.Tx) error { return tx.TrimOneTimes(now()) })
	wantCode(t, db, claviger.NotFound, take("short", now().Add(-time.Hour)))
	update(t, db, take("par", now()))
	viewRefused := errors.New("refused")
	if err := db.View(t.Context(), func(tx *store.Tx) error {
		if _, err := tx.TakeOneTime("par", par.Hash, now()); err != nil {
			return viewRefused
		}
		return nil
	}); !errors.Is(err, viewRefused) {
		t.Errorf("taken in a view: %v", err)
	}
}

func revokedTokens(t *testing.T, db *store.DB) {
	before := revision(t, db)
	update(t, db, func(tx *store.Tx) error { return tx.RevokeToken("jti-1", now().Add(time.Minute)) })
	if after := revision(t, db); after != before+1 {
		t.Errorf("a revoked token moved the sequence from %d to %d, want one more", before, after)
	}
	update(t, db, func(tx *store.Tx) error { return tx.RevokeToken("jti-1", now()) }) // never sooner
	update(t, db, func(tx *store.Tx) error { return tx.TrimOneTimes(now()) })
	revoked := func(want map[string]bool) {
		t.Helper()
		view(t, db, func(tx *store.Tx) error {
			for jti, want := range want {
				if got, err := tx.TokenRevoked(jti); got != want || err != nil {
					t.Errorf("%s is revoked: %v, %v; want %v", jti, got, err, want)
				}
			}
			return nil
		})
	}
	revoked(map[string]bool{"jti-1": true, "jti-2": false})
	update(t, db, func(tx *store.Tx) error { return tx.TrimOneTimes(now().Add(time.Minute)) })
	revoked(map[string]bool{"jti-1": false})
}

// twoReceivers registers one of everything and one of a single client.
func twoReceivers(t *testing.T, db *store.DB) (all, shop claviger.Receiver) {
	c := registered(t, db, "prod/shop/web")
	all = claviger.Receiver{ID: claviger.NewID(now()), Name: "all", Kind: claviger.CAEPReceiver, URL: "https://events.example", Audience: "events", Created: now(), Revision: 1}
	shop = all
	shop.ID, shop.Name, shop.Kind, shop.Client = claviger.NewID(now()), "shop", claviger.LogoutReceiver, c.ID
	update(t, db, func(tx *store.Tx) error { return errors.Join(tx.InsertReceiver(all), tx.InsertReceiver(shop)) })
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.InsertReceiver(all) })
	of := func(client claviger.ID, want int) {
		t.Helper()
		view(t, db, func(tx *store.Tx) error {
			got, err := tx.ReceiversOf(client)
			if len(got) != want {
				t.Errorf("%d receivers of %q, want %d", len(got), client, want)
			}
			return err
		})
	}
	of(c.ID, 2)
	of("another", 1)
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.Receiver("all")
		diff(t, "receiver", all, got)
		if err != nil {
			return err
		}
		list, err := tx.Receivers()
		diff(t, "receivers", []claviger.Receiver{all, shop}, list)
		return err
	})
	return all, shop
}

func deliveries(t *testing.T, db *store.DB) {
	all, shop := twoReceivers(t, db)
	var sent []store.Delivery
	for i := range 3 {
		d := store.Delivery{ID: claviger.ID(fmt.Sprintf("d%d", i)), Receiver: shop.ID, Session: "s", State: store.DeliveryPending,
			Since: now(), Next: now().Add(time.Duration(i) * time.Minute), Document: []byte(`{}`)}
		sent = append(sent, d)
		update(t, db, func(tx *store.Tx) error { return tx.PutDelivery(d) })
	}
	wantCode(t, db, claviger.TooLarge, func(tx *store.Tx) error { return tx.PutDelivery(store.Delivery{ID: "x", Receiver: shop.ID}) })
	wantCode(t, db, claviger.TooLarge, func(tx *store.Tx) error { return tx.UpdateDelivery(store.Delivery{ID: "d0", Receiver: shop.ID}) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.UpdateDelivery(store.Delivery{ID: "x", Document: []byte(`{}`)}) })
	until := now().Add(time.Hour)
	due := func(want ...claviger.ID) {
		t.Helper()
		update(t, db, func(tx *store.Tx) error {
			receivers, err := tx.DueReceivers(now().Add(time.Minute))
			if len(want) > 0 {
				diff(t, "due receivers", []claviger.Receiver{shop}, receivers)
			} else if len(receivers) > 0 {
				t.Errorf("due receivers: %v", receivers)
			}
			if err != nil {
				return err
			}
			others, err := tx.DueDeliveries(all.ID, now().Add(time.Minute), until, 10)
			if len(others) > 0 || err != nil {
				t.Errorf("of another receiver: %v", others)
				return err
			}
			list, err := tx.DueDeliveries(shop.ID, now().Add(time.Minute), until, 10)
			var got []claviger.ID
			for _, d := range list {
				got = append(got, d.ID)
			}
			diff(t, "due", want, got)
			return err
		})
	}
	due("d0", "d1")
	due() // they are another's until then
	dead := sent[0]
	dead.State, dead.Attempts, dead.Next, dead.Document = store.DeliveryDead, 5, until, []byte(`{"error":"x"}`)
	update(t, db, func(tx *store.Tx) error { return errors.Join(tx.UpdateDelivery(dead), tx.DropDelivery("d1")) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.DropDelivery("d1") })
	view(t, db, func(tx *store.Tx) error {
		got, next, err := tx.Deliveries(store.DeliveryQuery{Limit: 1})
		diff(t, "first page", []store.Delivery{dead}, got)
		if err != nil {
			return err
		}
		got, _, err = tx.Deliveries(store.DeliveryQuery{Limit: 1, After: next})
		diff(t, "second page", sent[2:], got)
		if err != nil {
			return err
		}
		got, _, err = tx.Deliveries(store.DeliveryQuery{Receiver: shop.ID, State: store.DeliveryDead})
		diff(t, "dead", []store.Delivery{dead}, got)
		return err
	})
	givenUp(t, db, all.ID, shop.ID, func() { due("d0") })
	update(t, db, func(tx *store.Tx) error { return tx.DeleteReceiver(shop.ID) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.DeleteReceiver(shop.ID) })
}

// givenUp takes two deliveries of a receiver, one dead and one pending, through
// what may become of them.
func givenUp(t *testing.T, db *store.DB, another, receiver claviger.ID, due func()) {
	touched := func(what string, want int64, do func(tx *store.Tx) (int64, error)) {
		t.Helper()
		update(t, db, func(tx *store.Tx) error {
			n, err := do(tx)
			if n != want {
				t.Errorf("%s: %d deliveries, want %d", what, n, want)
			}
			return err
		})
	}
	touched("retry of another", 0, func(tx *store.Tx) (int64, error) { return tx.RetryDeliveries(another, "", now()) })
	touched("retry of one that is pending", 0, func(tx *store.Tx) (int64, error) { return tx.RetryDeliveries(receiver, "d2", now()) })
	touched("retry of one", 1, func(tx *store.Tx) (int64, error) { return tx.RetryDeliveries(receiver, "d0", now()) })
	due()
	touched("expire nothing", 0, func(tx *store.Tx) (int64, error) { return tx.ExpireDeliveries(now()) })
	touched("expire", 2, func(tx *store.Tx) (int64, error) { return tx.ExpireDeliveries(now().Add(time.Second)) })
	touched("retry all", 2, func(tx *store.Tx) (int64, error) { return tx.RetryDeliveries(receiver, "", now().Add(time.Hour)) })
	touched("drop nothing that is pending", 0, func(tx *store.Tx) (int64, error) { return tx.DropDeadDeliveries(now().Add(2 * time.Hour)) })
	touched("expire again", 2, func(tx *store.Tx) (int64, error) { return tx.ExpireDeliveries(now().Add(2 * time.Hour)) })
	touched("drop what is not old", 0, func(tx *store.Tx) (int64, error) { return tx.DropDeadDeliveries(now().Add(time.Minute)) })
	touched("drop", 2, func(tx *store.Tx) (int64, error) { return tx.DropDeadDeliveries(now().Add(2 * time.Hour)) })
}
