package keeper_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"claviger.dev"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// paths lead a version to a state, from pre-activation.
var paths = map[claviger.State][]claviger.State{
	claviger.PreActivation: {},
	claviger.Active:        {claviger.Active},
	claviger.Suspended:     {claviger.Active, claviger.Suspended},
	claviger.Deactivated:   {claviger.Active, claviger.Deactivated},
	claviger.Compromised:   {claviger.Compromised},
	claviger.Destroyed:     {claviger.Destroyed},
}

func TestEveryTransition(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, from := range claviger.States() {
		for _, to := range claviger.States() {
			name := fmt.Sprintf("prod/%s/%s", from, to)
			if _, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: name, Algorithm: "ed25519", PreActivation: true}); err != nil {
				t.Fatal(err)
			}
			for _, step := range paths[from] {
				if _, err := w.ChangeState(t.Context(), w.op, name, 1, step, "path", false); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			view, err := w.ChangeState(t.Context(), w.op, name, 1, to, "because", false)
			if claviger.TransitionNumber(from, to) == 0 {
				wantCode(t, name, err, claviger.Invalid)
				if view, err = w.Key(t.Context(), w.op, name); err != nil || view.Versions[0].State != from {
					t.Errorf("%s: refused, and is %s: %v", name, view.Versions[0].State, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			v := view.Versions[0]
			last := v.History[len(v.History)-1]
			if v.State != to || last.From != from || last.To != to || last.Reason != "because" || last.By != w.op.ID || last.At.IsZero() {
				t.Errorf("%s: state %s, last transition %+v", name, v.State, last)
			}
			err = w.db.View(t.Context(), func(tx *store.Tx) error { _, _, err := tx.Blob(view.ID, 1); return err })
			if gone := errors.Is(err, claviger.NotFound); gone != (to == claviger.Destroyed) {
				t.Errorf("%s: the blob is gone: %v", name, gone)
			}
		}
	}
}

func TestDestroyGrace(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: "prod/app/key", Algorithm: "ed25519",
		Settings: claviger.Settings{DestroyGrace: claviger.Duration(time.Hour)}})
	if err != nil {
		t.Fatal(err)
	}
	state := func(to claviger.State) error {
		_, err := w.ChangeState(t.Context(), w.op, "prod/app/key", 1, to, "", false)
		return err
	}
	wantCode(t, "destroy an active version", state(claviger.Destroyed), claviger.Invalid)
	wantCode(t, "deactivate", state(claviger.Deactivated), "")
	w.later(59 * time.Minute)
	wantCode(t, "destroy within the grace", state(claviger.Destroyed), claviger.Invalid)
	w.later(2 * time.Minute)
	wantCode(t, "destroy after the grace", state(claviger.Destroyed), "")
}

func TestSettingsOnlyTighten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	base := claviger.Settings{OriginatorPeriod: claviger.Duration(2 * time.Hour), RecipientPeriod: claviger.Duration(4 * time.Hour), MaxInvocations: 100, ProcessSuspended: true}
	if _, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: "prod/app/box", Algorithm: "aes-256-gcm", Settings: base}); err != nil {
		t.Fatal(err)
	}
	looser := base
	looser.MaxInvocations = 101
	tighter := base
	tighter.MaxInvocations, tighter.ProcessSuspended = 10, false
	for _, tc := range []struct {
		name string
		next claviger.Settings
		want claviger.Code
	}{
		{"looser", looser, claviger.Invalid}, {"none", claviger.Settings{}, claviger.Invalid}, {"equal", base, ""},
		{"tighter", tighter, ""}, {"back", base, claviger.Invalid},
	} {
		_, err := w.UpdateKey(t.Context(), w.op, "prod/app/box", keeper.KeyChange{Settings: &tc.next})
		wantCode(t, tc.name, err, tc.want)
	}
	_, err := w.UpdateKey(t.Context(), w.op, "prod/app/box", keeper.KeyChange{Revision: 1, Settings: &tighter})
	wantCode(t, "old revision", err, claviger.Conflict)
	w.key("prod/app/capped", claviger.AES256GCM)
	view, err := w.Key(t.Context(), w.op, "prod/app/capped")
	if err != nil || view.Settings.MaxInvocations != claviger.MaxGCMInvocations {
		t.Errorf("AES-256-GCM without a limit: %d, %v", view.Settings.MaxInvocations, err)
	}
}

func TestRename(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/app/old", claviger.Conditions{}, claviger.Sign)
	w.key("prod/app/old", claviger.Ed25519)
	_, err := w.Rename(t.Context(), w.op, "prod/app/old", "stage/app/old")
	wantCode(t, "to another environment", err, claviger.Invalid)
	if _, err := w.Rename(t.Context(), w.op, "prod/app/old", "prod/app/new"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"prod/app/old", "prod/app/new"} {
		if err := sign(w, by, name); err != nil {
			t.Errorf("sign as %s: %v", name, err)
		}
	}
	_, err = w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: "prod/app/old", Algorithm: "ed25519"})
	wantCode(t, "another key under the former name", err, claviger.Conflict)
}

func TestImport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	for _, name := range []string{"prod/app/a", "prod/app/b"} {
		if _, err := w.CreateKey(ctx, w.op, keeper.CreateKey{Name: name, Algorithm: "ed25519", ForImport: true}); err != nil {
			t.Fatal(err)
		}
	}
	material := custodytest.Material(t, claviger.Ed25519)
	seal := func(key string) (id string, sealed []byte) {
		t.Helper()
		one, err := w.BeginImport(ctx, w.op, key)
		if err != nil {
			t.Fatal(err)
		}
		info, err := w.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := one.Verify([32]byte(unhex(t, info.IdentityFingerprint)), time.Now()); err != nil {
			t.Fatal(err)
		}
		if sealed, err = one.Seal(material); err != nil {
			t.Fatal(err)
		}
		return one.ID, sealed
	}
	id, sealed := seal("prod/app/a")
	_, err := w.Import(ctx, w.op, keeper.Import{Key: "prod/app/b", OneTime: id, Sealed: sealed, Reason: "redirected"})
	if err == nil {
		t.Error("material that was sealed for one key was adopted by another")
	}
	id, sealed = seal("prod/app/a")
	_, err = w.Import(ctx, w.op, keeper.Import{Key: "prod/app/a", OneTime: id, Sealed: bytes.Repeat([]byte{1}, len(sealed)), Reason: "forged"})
	if err == nil {
		t.Error("forged material was adopted")
	}
	id, sealed = seal("prod/app/a")
	view, err := w.Import(ctx, w.op, keeper.Import{Key: "prod/app/a", OneTime: id, Sealed: sealed, Reason: "moved here"})
	if err != nil {
		t.Fatal(err)
	}
	v := view.ActiveVersion()
	if v == nil || v.Origin != claviger.Imported || v.Level != claviger.Exposed || v.Number != 1 {
		t.Errorf("the imported version is %+v, want active, imported, exposed", v)
	}
	_, err = w.Import(ctx, w.op, keeper.Import{Key: "prod/app/a", OneTime: id, Sealed: sealed, Reason: "again"})
	if err == nil {
		t.Error("a one-time key was used twice")
	}
	// A rotation takes the number that the one-time key was bound to.
	id, sealed = seal("prod/app/a")
	if _, err := w.Rotate(ctx, w.op, "prod/app/a", "", 0); err != nil {
		t.Fatal(err)
	}
	if _, err = w.Import(ctx, w.op, keeper.Import{Key: "prod/app/a", OneTime: id, Sealed: sealed, Reason: "late"}); err == nil {
		t.Error("material that was sealed for one version was adopted as another")
	}
	// What asks for more than imported material has is refused at once.
	if _, err := w.CreateKey(ctx, w.op, keeper.CreateKey{Name: "prod/app/strict", Algorithm: "ed25519", ForImport: true, Settings: claviger.Settings{MinLevel: claviger.Isolated}}); err != nil {
		t.Fatal(err)
	}
	_, err = w.BeginImport(ctx, w.op, "prod/app/strict")
	wantCode(t, "import under a level", err, claviger.Invalid)
}

func TestSchedules(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.Sign, claviger.Verify)
	ctx := t.Context()
	for name, s := range map[string]claviger.Settings{
		"prod/app/rotates": {RotateEvery: claviger.Duration(time.Hour)},
		"prod/app/expires": {OriginatorPeriod: claviger.Duration(time.Hour), RecipientPeriod: claviger.Duration(3 * time.Hour)},
	} {
		if _, err := w.CreateKey(ctx, w.op, keeper.CreateKey{Name: name, Algorithm: "ed25519", Settings: s}); err != nil {
			t.Fatal(err)
		}
	}
	signed, err := w.Sign(ctx, by, keeper.SignRequest{Key: "prod/app/expires", Inputs: [][]byte{[]byte("m")}})
	if err != nil {
		t.Fatal(err)
	}
	verify := func() error {
		_, err := w.Verify(ctx, by, keeper.VerifyRequest{Key: "prod/app/expires", Items: []keeper.Item{{Input: []byte("m"), Signature: signed.Signatures[0]}}})
		return err
	}
	w.later(61 * time.Minute)
	wantCode(t, "sign after the originator period", sign(w, by, "prod/app/expires"), claviger.Denied)
	wantCode(t, "verify within the recipient period", verify(), "")
	runUntil(w, func() bool {
		rotated, err := w.Key(ctx, w.op, "prod/app/rotates")
		if err != nil {
			t.Fatal(err)
		}
		expired, err := w.Key(ctx, w.op, "prod/app/expires")
		if err != nil {
			t.Fatal(err)
		}
		return len(rotated.Versions) == 2 && rotated.Versions[0].State == claviger.Deactivated &&
			rotated.Versions[1].State == claviger.Active && expired.Versions[0].State == claviger.Deactivated
	})
	w.later(2 * time.Hour)
	wantCode(t, "verify after the recipient period", verify(), claviger.Denied)
	n := 0
	for _, r := range w.records() {
		if r.PrincipalName == "claviger" && (r.Action == "key.rotate" || r.Action == "key.state") {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d records of scheduled changes, want 2", n)
	}
}

// TestLifecycleHolds does random changes and looks after each one.
func TestLifecycleHolds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	serial := 0 // rapid runs one check at a time
	rapid.Check(t, func(r *rapid.T) {
		serial++
		name := fmt.Sprintf("prod/app/k%d", serial)
		view, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: name, Algorithm: "hmac-sha256", PreActivation: rapid.Bool().Draw(r, "pre")})
		if err != nil {
			r.Fatal(err)
		}
		destroyed := map[uint32]bool{}
		for range rapid.IntRange(1, 12).Draw(r, "steps") {
			if rapid.IntRange(0, 3).Draw(r, "what") == 0 {
				_, err = w.Rotate(t.Context(), w.op, name, "", 0)
			} else {
				version := uint32(rapid.IntRange(1, len(view.Versions)+1).Draw(r, "version"))
				_, err = w.ChangeState(t.Context(), w.op, name, version, rapid.SampledFrom(claviger.States()).Draw(r, "to"), "", false)
			}
			if code := claviger.CodeOf(err); !slices.Contains([]claviger.Code{"", claviger.Invalid, claviger.Conflict, claviger.NotFound}, code) {
				r.Fatalf("%s: %v", code, err)
			}
			if view, err = w.Key(t.Context(), w.op, name); err != nil {
				r.Fatal(err)
			}
			active := 0
			for _, v := range view.Versions {
				if v.State == claviger.Active {
					active++
				}
				if destroyed[v.Number] && v.State != claviger.Destroyed {
					r.Fatalf("version %d was destroyed and is %s", v.Number, v.State)
				}
				destroyed[v.Number] = v.State == claviger.Destroyed
				for i, step := range v.History {
					if claviger.TransitionNumber(step.From, step.To) == 0 || i > 0 && v.History[i-1].To != step.From {
						r.Fatalf("version %d has the history %+v", v.Number, v.History)
					}
				}
			}
			if active > 1 {
				r.Fatalf("%d active versions", active)
			}
		}
	})
}

func TestPublicKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.key("prod/app/one", claviger.Ed25519)
	w.key("prod/app/mac", claviger.HMACSHA256)
	w.key("prod/other/two", claviger.Ed25519)
	set := func() keeper.PublicSet {
		t.Helper()
		s, err := w.PublicKeys(t.Context(), "prod", "app")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := set()
	if len(first.Versions) != 1 || first.Versions[0].Name != "prod/app/one" || first.Versions[0].KID != first.Versions[0].Public.Thumbprint() || first.MaxAge <= 0 {
		t.Errorf("set %+v", first)
	}
	if _, err := w.Rotate(t.Context(), w.op, "prod/app/one", "", 0); err != nil {
		t.Fatal(err)
	}
	if n := len(set().Versions); n != 2 {
		t.Errorf("%d versions after a rotation, want 2: what was signed before still verifies", n)
	}
	if _, err := w.ChangeState(t.Context(), w.op, "prod/app/one", 1, claviger.Compromised, "", false); err != nil {
		t.Fatal(err)
	}
	if n := len(set().Versions); n != 1 {
		t.Errorf("%d versions after a compromise, want 1", n)
	}
	for _, env := range []string{"system", "*", "..", ""} {
		_, err := w.PublicKeys(t.Context(), env, "claviger")
		wantCode(t, env, err, claviger.NotFound)
	}
}
