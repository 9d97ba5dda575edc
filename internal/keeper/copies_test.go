package keeper_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/state"
	"claviger.dev/internal/store"
)

// adopt moves a secret into a machine key, which is made when it is not there.
func adopt(t *testing.T, w *world, by claviger.Principal, name, set, secret string, at keeper.Place) (keeper.KeyView, error) {
	t.Helper()
	_, err := w.Key(t.Context(), w.op, name)
	if claviger.CodeOf(err) == claviger.NotFound {
		_, err = w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: name, Algorithm: "machine-key", Recipe: set, Owner: "tests", ForImport: true})
	}
	if err != nil {
		t.Fatal(err)
	}
	one, err := w.BeginImport(t.Context(), by, name)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := one.Seal([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return w.Import(t.Context(), by, keeper.Import{Key: name, OneTime: one.ID, Sealed: sealed, Place: at})
}

// One secret is not in two keys: not with other recipes, nor for another
// application. Who may not see the other key does not hear its name.
func TestOneSecretInTwoKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const secret = "one secret of a framework, of 39 bytes."
	for name, set := range map[string]string{"prod/shop/express": "cookie-signature", "prod/shop/django": "django"} {
		if _, err := adopt(t, w, w.op, name, set, secret[:30]+set, keeper.Place{}); err != nil {
			t.Fatal(err)
		}
	}
	view, err := adopt(t, w, w.op, "prod/shop/django", "django", secret, keeper.Place{})
	if err != nil || len(view.Versions) != 2 {
		t.Fatalf("%+v, %v", view.Versions, err)
	}
	// The same again makes nothing, and is no error.
	view, err = adopt(t, w, w.op, "prod/shop/django", "django", secret, keeper.Place{Host: "web-2", Path: "/srv/.env", Line: 3})
	if err != nil || len(view.Versions) != 2 || len(view.Copies) != 1 || view.Copies[0].Version != 2 {
		t.Errorf("again: %+v, %+v, %v", view.Versions, view.Copies, err)
	}
	_, err = adopt(t, w, w.op, "prod/shop/rails", "rails", secret, keeper.Place{})
	wantCode(t, "another recipe set", err, claviger.Conflict)
	if err == nil || !strings.Contains(err.Error(), "prod/shop/django, as version 2") {
		t.Errorf("whoever may see the other key is told %v", err)
	}
	by := w.caller(7)
	w.grant(by, "prod/blog/*", claviger.Conditions{}, claviger.ManageKey)
	records := w.since(func() {
		_, err = adopt(t, w, by, "prod/blog/django", "django", secret, keeper.Place{})
	})
	wantCode(t, "another application", err, claviger.Conflict)
	if err == nil || strings.Contains(err.Error(), "prod/shop") {
		t.Errorf("whoever may not see the other key is told %v", err)
	}
	if last := records[len(records)-1]; last.Action != "key.import" || last.Outcome != audit.Failed || last.Principal != by.ID {
		t.Errorf("the refusal left %+v", last)
	}
	if _, err := adopt(t, w, by, "prod/blog/django", "django", secret+".", keeper.Place{}); err != nil {
		t.Errorf("a byte more: %v", err)
	}

	// Two that compute nothing for each other.
	if _, err := adopt(t, w, w.op, "prod/shop/keygrip", "keygrip", secret[:30]+"cookie-signature", keeper.Place{}); err != nil {
		t.Errorf("keygrip beside cookie-signature: %v", err)
	}
	_, err = adopt(t, w, w.op, "prod/shop/keygrip-2", "keygrip", secret[:30]+"cookie-signature", keeper.Place{})
	wantCode(t, "two of one set", err, claviger.Conflict)

	// Nor does what was retired, which is named.
	if _, err := adopt(t, w, w.op, "prod/shop/express", "cookie-signature", secret+"new", keeper.Place{}); err != nil {
		t.Fatal(err)
	}
	old := secret[:30] + "cookie-signature"
	if _, err := adopt(t, w, w.op, "prod/shop/express", "cookie-signature", old, keeper.Place{}); err != nil {
		t.Errorf("the control: before it is retired nothing is refused: %v", err)
	}
	if _, err := w.Retire(t.Context(), w.op, "prod/shop/express", 1, "", true); err != nil {
		t.Fatal(err)
	}
	_, err = adopt(t, w, w.op, "prod/shop/express", "cookie-signature", old, keeper.Place{})
	wantCode(t, "a secret whose version is retired", err, claviger.Conflict)
	if err == nil || !strings.Contains(err.Error(), "version 1, which is retired since ") {
		t.Errorf("of a version that is retired it says %v", err)
	}

	// What was destroyed does not come back, and another key may have it.
	if _, err := w.ChangeState(t.Context(), w.op, "prod/shop/django", 2, claviger.Destroyed, "", false); err != nil {
		t.Fatal(err)
	}
	_, err = adopt(t, w, w.op, "prod/shop/django", "django", secret, keeper.Place{})
	wantCode(t, "a secret whose version is destroyed", err, claviger.Conflict)
	if _, err = adopt(t, w, w.op, "prod/shop/rails", "rails", secret, keeper.Place{}); err != nil {
		t.Errorf("after the other was destroyed: %v", err)
	}
}

// Where a copy was seen is remembered until it is gone, and the version stays
// exposed after.
func TestCopies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	env := keeper.Place{Host: "web-1", Path: "/srv/app/.env", Line: 12}
	records := w.since(func() {
		if _, err := adopt(t, w, w.op, "prod/shop/django", "django", "the secret of a framework, in a file", env); err != nil {
			t.Fatal(err)
		}
	})
	if got := records[len(records)-1].Detail["where"]; got != "/srv/app/.env:12 on web-1" {
		t.Errorf("the record of the import says %q", got)
	}
	view, err := w.ReportCopy(t.Context(), w.op, "prod/shop/django", 1, "", keeper.Place{Host: "backup", Path: "/var/backup/app.tar"}, "")
	if err != nil {
		t.Fatal(err)
	}
	records = w.since(func() {
		if _, err := w.ReportCopy(t.Context(), w.op, "prod/shop/django", 1, "at 4 KiB of an image", keeper.Place{Host: "backup", Path: "/var/backup/app.tar"}, ""); err != nil {
			t.Fatal(err)
		}
	})
	if got := records[len(records)-1].Detail; got["where"] != "at 4 KiB of an image" || got["place"] != "/var/backup/app.tar on backup" {
		t.Errorf("the record of the report says %q", got)
	}
	seen := view.Copies[0].Seen
	want := []store.Copy{
		{Key: view.ID, Version: 1, Host: "backup", Path: "/var/backup/app.tar", Seen: seen, By: w.op.Name},
		{Key: view.ID, Version: 1, Host: "web-1", Path: "/srv/app/.env", Line: 12, Seen: seen, By: w.op.Name},
	}
	for i := range view.Copies {
		if view.Copies[i].Seen.IsZero() || view.Copies[i].Seen.Sub(seen).Abs() > time.Minute {
			t.Errorf("seen at %s", view.Copies[i].Seen)
		}
		view.Copies[i].Seen = seen
	}
	if diff := cmp.Diff(want, view.Copies); diff != "" {
		t.Errorf("copies (-want +got):\n%s", diff)
	}
	by := w.caller(7)
	w.grant(by, "prod/shop/*", claviger.Conditions{}, claviger.ReadKey)
	_, err = w.CloseCopy(t.Context(), by, "prod/shop/django", 1, env)
	wantCode(t, "closed by who may only read", err, claviger.Denied)
	records = w.since(func() {
		if view, err = w.CloseCopy(t.Context(), w.op, "prod/shop/django", 1, keeper.Place{Host: "web-1", Path: "/srv/app/.env"}); err != nil {
			t.Fatal(err)
		}
	})
	if len(records) != 1 || records[0].Action != "evidence.copy-gone" || records[0].Version != 1 || records[0].Detail["where"] != "/srv/app/.env:12 on web-1" {
		t.Errorf("closing left %+v", records)
	}
	if view.Copies[0].Gone.Equal(time.Time{}) == view.Copies[1].Gone.Equal(time.Time{}) || view.Level() != claviger.Exposed {
		t.Errorf("one is gone: %+v, %s", view.Copies, view.Level())
	}
	_, err = w.CloseCopy(t.Context(), w.op, "prod/shop/django", 1, env)
	wantCode(t, "closed twice", err, claviger.NotFound)
	for name, at := range map[string]keeper.Place{"nowhere": {Host: "x"}, "unprintable": {Path: "a\x1b[2J"}, "long": {Path: strings.Repeat("x", 300)}} {
		_, err := adopt(t, w, w.op, "prod/shop/"+name, "django", "the secret of a framework: "+name, at)
		wantCode(t, name, err, claviger.Invalid)
	}
}

// An older secret is checked and makes nothing: the active version stays.
func TestImportOlder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.Protect, claviger.Unprotect)
	const name, old = "prod/shop/jwt", "the secret before the one that is in use"
	other := "prod/shop/past"
	if _, err := adopt(t, w, w.op, other, "jwt-hs", old, keeper.Place{}); err != nil {
		t.Fatal(err)
	}
	token, err := w.Protect(t.Context(), by, keeper.ProtectRequest{Key: other, Format: state.JWT, Payloads: [][]byte{[]byte(`{"a":1}`)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ChangeState(t.Context(), w.op, other, 1, claviger.Destroyed, "", false); err != nil {
		t.Fatal(err)
	}
	if _, err := adopt(t, w, w.op, name, "jwt-hs", "the secret that is in use, of 40 bytes..", keeper.Place{}); err != nil {
		t.Fatal(err)
	}
	one, err := w.BeginImport(t.Context(), w.op, name)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := one.Seal([]byte(old))
	if err != nil {
		t.Fatal(err)
	}
	view, err := w.Import(t.Context(), w.op, keeper.Import{Key: name, OneTime: one.ID, Sealed: sealed, Older: true, Reason: "moved"})
	if err != nil {
		t.Fatal(err)
	}
	if v := view.Versions[1]; view.ActiveVersion().Number != 1 || v.State != claviger.Deactivated || v.Level != claviger.Exposed || v.Activated.IsZero() {
		t.Errorf("the versions are %+v", view.Versions)
	}
	out, err := w.Unprotect(t.Context(), by, keeper.UnprotectRequest{Key: name, Format: state.JWT, Tokens: token.Tokens})
	if err != nil || !out[0].OK || out[0].Version != 2 || !out[0].Renew {
		t.Errorf("a token of the older secret: %+v, %v", out, err)
	}
	made, err := w.Protect(t.Context(), by, keeper.ProtectRequest{Key: name, Format: state.JWT, Payloads: [][]byte{[]byte(`{"a":1}`)}})
	if err != nil || made.Version != 1 {
		t.Errorf("a token was made by version %d, %v", made.Version, err)
	}
}
