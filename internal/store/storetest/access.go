package storetest

import (
	"errors"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/store"
)

func principals(t *testing.T, db *store.DB) {
	web, batch, gone := NewPrincipal("web"), NewPrincipal("batch"), NewPrincipal("uid:1000")
	gone.Kind = claviger.Operator
	update(t, db, func(tx *store.Tx) error {
		return errors.Join(tx.InsertPrincipal(web), tx.InsertPrincipal(batch), tx.InsertPrincipal(gone))
	})
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.InsertPrincipal(NewPrincipal("web")) })
	gone.Revoked, gone.RevokeReason = now(), "left"
	update(t, db, func(tx *store.Tx) error { return tx.UpdatePrincipal(gone) })
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.UpdatePrincipal(gone) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.UpdatePrincipal(NewPrincipal("x")) })
	renamed := batch
	renamed.Name = "web"
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.UpdatePrincipal(renamed) })
	gone.Revision = 2
	view(t, db, func(tx *store.Tx) error {
		for ref, want := range map[string]claviger.PrincipalRecord{"web": web, string(web.ID): web, "uid:1000": gone} {
			got, err := tx.Principal(ref)
			if err != nil {
				return err
			}
			diff(t, ref, want, got)
		}
		if _, err := tx.Principal("nobody"); !errors.Is(err, claviger.NotFound) {
			t.Errorf("principal: %v, want not found", err)
		}
		for _, test := range []struct {
			name  string
			query store.PrincipalQuery
			want  []claviger.PrincipalRecord
			next  string
		}{
			{"all", store.PrincipalQuery{}, []claviger.PrincipalRecord{batch, gone, web}, ""},
			{"live", store.PrincipalQuery{Live: true}, []claviger.PrincipalRecord{batch, web}, ""},
			{"kind", store.PrincipalQuery{Kind: claviger.Operator}, []claviger.PrincipalRecord{gone}, ""},
			{"search", store.PrincipalQuery{Search: "ATC"}, []claviger.PrincipalRecord{batch}, ""},
			{"first page", store.PrincipalQuery{Limit: 2}, []claviger.PrincipalRecord{batch, gone}, "uid:1000"},
			{"second page", store.PrincipalQuery{Limit: 2, After: "uid:1000"}, []claviger.PrincipalRecord{web}, ""},
		} {
			got, next, err := tx.Principals(test.query)
			if err != nil {
				return err
			}
			diff(t, test.name, test.want, got)
			diff(t, test.name+": next", test.next, next)
		}
		return nil
	})
}

func codes(t *testing.T, db *store.DB) {
	p := NewPrincipal("web")
	update(t, db, func(tx *store.Tx) error { return tx.InsertPrincipal(p) })
	code := store.Code{Hash: [32]byte{1}, Principal: p.ID, Expires: now().Add(time.Hour)}
	put := func(c store.Code) {
		t.Helper()
		update(t, db, func(tx *store.Tx) error { return tx.PutCode(c, now()) })
	}
	take := func(hash byte, at time.Time) error {
		return db.Update(t.Context(), func(tx *store.Tx) error {
			got, err := tx.TakeCode([32]byte{hash}, at)
			if err == nil {
				diff(t, "code", code, got)
			}
			return err
		})
	}
	put(code)
	for name, err := range map[string]error{"unknown": take(9, now()), "expired": take(1, now().Add(time.Hour))} {
		if !errors.Is(err, claviger.NotFound) {
			t.Errorf("%s code: %v, want not found", name, err)
		}
	}
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.Code([32]byte{1}, now()) // and it stays
		diff(t, "code that was looked at", code, got)
		for name, at := range map[byte]time.Time{9: now(), 1: now().Add(time.Hour)} {
			if _, err := tx.Code([32]byte{name}, at); !errors.Is(err, claviger.NotFound) {
				t.Errorf("look at code %d: %v, want not found", name, err)
			}
		}
		return err
	})
	// Many take it at once: one gets it.
	taken := make([]bool, 8)
	if err := together(len(taken), func(i int) error {
		err := take(1, now())
		if taken[i] = err == nil; errors.Is(err, claviger.NotFound) {
			return nil
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	winners := 0
	for _, won := range taken {
		if won {
			winners++
		}
	}
	if winners != 1 {
		t.Errorf("%d took the code, want 1", winners)
	}
	put(code)
	code.Hash = [32]byte{2}
	put(code) // replaces the first
	if err := take(1, now()); !errors.Is(err, claviger.NotFound) {
		t.Errorf("replaced code: %v, want not found", err)
	}
	if err := take(2, now()); err != nil {
		t.Errorf("code that replaced it: %v", err)
	}
}

func certificates(t *testing.T, db *store.DB) {
	p := NewPrincipal("web")
	early := store.Certificate{Serial: "0a", Principal: p.ID, KeyHash: "ff", NotBefore: now(), NotAfter: now().Add(time.Hour)}
	late := store.Certificate{Serial: "0b", Principal: p.ID, KeyHash: "ee", NotBefore: now(), NotAfter: now().Add(2 * time.Hour)}
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.InsertCertificate(early) })
	update(t, db, func(tx *store.Tx) error {
		return errors.Join(tx.InsertPrincipal(p), tx.InsertCertificate(early), tx.InsertCertificate(late))
	})
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.InsertCertificate(early) })
	late.Revoked, late.Reason = now(), "lost"
	update(t, db, func(tx *store.Tx) error { return tx.UpdateCertificate(late) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error {
		return tx.UpdateCertificate(store.Certificate{Serial: "0c", Principal: p.ID})
	})
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.Certificate("0b")
		if err != nil {
			return err
		}
		diff(t, "certificate", late, got)
		if _, err := tx.Certificate("0c"); !errors.Is(err, claviger.NotFound) {
			t.Errorf("certificate: %v, want not found", err)
		}
		list, err := tx.Certificates(p.ID)
		diff(t, "certificates", []store.Certificate{late, early}, list)
		return err
	})
	update(t, db, func(tx *store.Tx) error {
		n, err := tx.DropCertificates(early.NotAfter.Add(time.Second))
		diff(t, "dropped", 1, n)
		return err
	})
	view(t, db, func(tx *store.Tx) error {
		list, err := tx.Certificates(p.ID)
		diff(t, "certificates left", []store.Certificate{late}, list)
		return err
	})
}

func grants(t *testing.T, db *store.DB) {
	web, other := NewPrincipal("web"), NewPrincipal("other")
	a, b, c := NewGrant(web.ID, "prod/*/*"), NewGrant(web.ID, "prod/billing/jwt"), NewGrant(other.ID, "*/*/*")
	a.ID, b.ID, c.ID = claviger.NewID(now()), claviger.NewID(now().Add(time.Second)), claviger.NewID(now().Add(2*time.Second))
	a.Conditions = claviger.Conditions{Rate: &claviger.Rate{PerSecond: 0.5, Burst: 3}, Count: 10,
		Template: &claviger.Template{JWT: &claviger.JWTTemplate{Issuer: "<me>", MaxLifetime: claviger.Duration(time.Hour)}}}
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.InsertGrant(a) })
	update(t, db, func(tx *store.Tx) error {
		return errors.Join(tx.InsertPrincipal(web), tx.InsertPrincipal(other), tx.InsertGrant(a), tx.InsertGrant(b), tx.InsertGrant(c))
	})
	b.Revoked = now()
	update(t, db, func(tx *store.Tx) error { return tx.UpdateGrant(b) })
	wantCode(t, db, claviger.Conflict, func(tx *store.Tx) error { return tx.UpdateGrant(b) })
	wantCode(t, db, claviger.NotFound, func(tx *store.Tx) error { return tx.UpdateGrant(NewGrant(web.ID, "a/b/c")) })
	b.Revision = 2
	view(t, db, func(tx *store.Tx) error {
		got, err := tx.Grant(b.ID)
		if err != nil {
			return err
		}
		diff(t, "grant", b, got)
		if _, err := tx.Grant("nothing"); !errors.Is(err, claviger.NotFound) {
			t.Errorf("grant: %v, want not found", err)
		}
		of, err := tx.GrantsOf(web.ID)
		if err != nil {
			return err
		}
		diff(t, "grants of web", []claviger.Grant{a}, of)
		for _, test := range []struct {
			name  string
			query store.GrantQuery
			want  []claviger.Grant
			next  string
		}{
			{"all", store.GrantQuery{}, []claviger.Grant{a, b, c}, ""},
			{"live", store.GrantQuery{Live: true}, []claviger.Grant{a, c}, ""},
			{"principal", store.GrantQuery{Principal: web.ID}, []claviger.Grant{a, b}, ""},
			{"first page", store.GrantQuery{Limit: 2}, []claviger.Grant{a, b}, string(b.ID)},
			{"second page", store.GrantQuery{Limit: 2, After: string(b.ID)}, []claviger.Grant{c}, ""},
		} {
			got, next, err := tx.Grants(test.query)
			if err != nil {
				return err
			}
			diff(t, test.name, test.want, got)
			diff(t, test.name+": next", test.next, next)
		}
		return nil
	})
}

func grantsByKey(t *testing.T, db *store.DB) {
	web := NewPrincipal("web")
	update(t, db, func(tx *store.Tx) error { return tx.InsertPrincipal(web) })
	selectors := []claviger.Selector{"*/*/*", "prod/*/*", "*/a/*", "*/*/b", "prod/a/*", "prod/*/b", "*/a/b", "prod/a/b", "prod/a/c", "test/*/*", "prod/c/*"}
	for _, s := range selectors {
		update(t, db, func(tx *store.Tx) error { return tx.InsertGrant(NewGrant(web.ID, s)) })
	}
	for _, name := range []claviger.Name{"prod/a/b", "prod/a/c", "test/x/b", "dev/x/y"} {
		want, got := map[claviger.Selector]bool{}, map[claviger.Selector]bool{}
		for _, s := range selectors {
			if s.Matches(name) {
				want[s] = true
			}
		}
		view(t, db, func(tx *store.Tx) error {
			grants, _, err := tx.Grants(store.GrantQuery{Key: name})
			for _, g := range grants {
				got[g.Selector] = true
			}
			return err
		})
		diff(t, string(name), want, got)
	}
}
