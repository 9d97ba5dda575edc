package keeper_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/state"
)

func (s shop) expose(req keeper.ExposeRequest) keeper.Exposed {
	s.Helper()
	req.Key = cart
	if req.Since.IsZero() {
		req.Since = s.now()
	}
	out, err := s.Expose(s.Context(), s.op, req)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

func issuedAt(at time.Time) state.Params { return state.Params{Issued: at} }

// TestExposed has three kinds of format of one key: what carries a time passes
// when it was issued before, and for the grace; what does not, and what a
// framework may make objects of, only where that is asked for.
func TestExposed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	told := make(chan keeper.Notice, 1)
	cfg := w.config()
	cfg.Notify = func(_ context.Context, n keeper.Notice) error { told <- n; return nil }
	w.open(cfg)
	s := newShop(w, "django", claviger.Settings{})
	since := s.now().Add(-time.Hour)
	before, after := issuedAt(since.Add(-time.Minute)), issuedAt(since.Add(time.Minute))
	timed, late := s.token(state.DjangoTimestamp, before, "a"), s.token(state.DjangoTimestamp, after, "a")
	untimed, session := s.token(state.DjangoSigner, state.Params{}, "a"), s.token(state.DjangoSession, before, "{}")

	dry := s.expose(keeper.ExposeRequest{Since: since, DryRun: true})
	if dry.Version != 1 || dry.Replacement != 2 || s.version(1).State != claviger.Active {
		t.Fatalf("a dry run: %+v", dry)
	}
	out := s.expose(keeper.ExposeRequest{Since: since, Reason: "found in a bucket"})
	if out.Version != 1 || out.Replacement != 2 || s.version(1).State != claviger.Compromised || s.version(2).State != claviger.Active {
		t.Fatalf("%+v", out)
	}
	if v := s.version(1); v.Level != claviger.Exposed || !strings.Contains(v.Finding, "found in a bucket") {
		t.Errorf("level %s, finding %q", v.Level, v.Finding)
	}
	for what, test := range map[string]struct {
		format state.Format
		token  []byte
		want   bool
	}{
		"issued before":             {state.DjangoTimestamp, timed, true},
		"issued after":              {state.DjangoTimestamp, late, false},
		"without a time":            {state.DjangoSigner, untimed, false},
		"which may be deserialised": {state.DjangoSession, session, false},
	} {
		if got := s.passes(test.format, state.Params{}, test.token); got != test.want {
			t.Errorf("%s: passes %v", what, got)
		}
	}
	if !s.passes(state.DjangoSession, state.Params{}, s.token(state.DjangoSession, state.Params{}, "{}")) {
		t.Error("the new version's token is refused")
	}
	what := map[string]uint64{}
	for _, p := range out.Protected {
		what[p.What] += p.Made
		if out.Names[p.Principal] != "uid:7" || p.First.IsZero() || p.Last.IsZero() {
			t.Errorf("sighting %+v", p)
		}
	}
	if what["django.timestamp"] != 2 || what["django.session"] != 1 || what["django.signer"] != 1 {
		t.Errorf("what it protected: %v", what)
	}
	if !slices.ContainsFunc(out.Warnings, func(w string) bool { return strings.Contains(w, "date a token back") }) {
		t.Errorf("warnings %q", out.Warnings)
	}
	s.later(25 * time.Hour)
	if s.passes(state.DjangoTimestamp, state.Params{}, timed) {
		t.Error("a token passes after the grace")
	}
	_, err := s.Expose(t.Context(), s.op, keeper.ExposeRequest{Key: cart, Version: 1, Since: since})
	wantCode(t, "expose again", err, claviger.Invalid)
	runUntil(w, func() bool { return len(told) > 0 })
	if n := <-told; n.Owner != "shop" || !strings.Contains(n.Finding, "found in a bucket") {
		t.Errorf("notice %+v", n)
	}
}

// TestExposedGraces gives formats and purposes graces of their own.
func TestExposedGraces(t *testing.T) {
	t.Parallel()
	s := newShop(newWorld(t), "rails", claviger.Settings{})
	params := func(name string) state.Params { return state.Params{Name: name} }
	shopCart, login := s.token(state.RailsEncryptedCookie, params("cart"), "{}"), s.token(state.RailsEncryptedCookie, params("login"), "{}")
	out := s.expose(keeper.ExposeRequest{Graces: map[string]time.Duration{"rails.encrypted-cookie": time.Hour, "purpose:cookie.login": 0}})
	if !s.passes(state.RailsEncryptedCookie, params("cart"), shopCart) {
		t.Error("a token in its grace is refused")
	}
	if s.passes(state.RailsEncryptedCookie, params("login"), login) {
		t.Error("a purpose without a grace passes")
	}
	// A token that does not say what it is for has the shortest of all graces,
	// whatever its caller says.
	bare := newShop(newWorld(t), "jwt-hs", claviger.Settings{})
	claims := bare.token(state.JWT, state.Params{}, `{"iat":1000000000}`)
	bare.expose(keeper.ExposeRequest{Graces: map[string]time.Duration{"jwt": 2 * time.Hour, "purpose:api": time.Hour}})
	if !bare.passes(state.JWT, state.Params{}, claims) {
		t.Error("a token without a purpose is refused in every grace")
	}
	bare.later(90 * time.Minute)
	for _, purpose := range []string{"", "api", "web"} {
		got, err := bare.Unprotect(t.Context(), bare.by, keeper.UnprotectRequest{Key: cart, Format: state.JWT, Context: keeper.Context{Purpose: purpose}, Tokens: [][]byte{claims}})
		if err != nil || got[0].OK {
			t.Errorf("a token without a purpose passes for %q after the shortest grace, %v", purpose, err)
		}
	}
	if !slices.ContainsFunc(out.Warnings, func(w string) bool { return strings.Contains(w, "run code") }) {
		t.Errorf("warnings %q", out.Warnings)
	}
	for what, req := range map[string]keeper.ExposeRequest{
		"since when":   {Key: cart},
		"to come":      {Key: cart, Since: time.Now().Add(time.Hour)},
		"no format":    {Key: cart, Since: time.Now(), Graces: map[string]time.Duration{"jwt": time.Hour}},
		"negative":     {Key: cart, Since: time.Now(), Graces: map[string]time.Duration{"rails.cbc": -1}},
		"a long grace": {Key: cart, Since: time.Now(), Graces: map[string]time.Duration{"rails.cbc": 500 * 24 * time.Hour}},
	} {
		_, err := s.Expose(t.Context(), s.op, req)
		wantCode(t, what, err, claviger.Invalid)
	}
	w := newWorld(t)
	if _, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: "prod/old/site", Algorithm: "machine-key", Recipe: "aspnet45", Owner: "tests"}); err != nil {
		t.Fatal(err)
	}
	_, err := w.Expose(t.Context(), w.op, keeper.ExposeRequest{Key: "prod/old/site", Since: time.Now(), Graces: map[string]time.Duration{"aspnet.viewstate": time.Hour}})
	wantCode(t, "view state", err, claviger.Invalid)
	w.key("prod/app/sign", claviger.Ed25519)
	plain, err := w.Expose(t.Context(), w.op, keeper.ExposeRequest{Key: "prod/app/sign", Since: time.Now()})
	if err != nil || plain.Replacement != 2 || len(plain.Formats) > 0 {
		t.Errorf("a signing key: %+v, %v", plain, err)
	}
}

// TestRecordedTokens keeps a record of issued tokens: after the exposure a
// token that somebody else dated back does not pass, and the door's own do,
// also those of a format that is deserialised.
func TestRecordedTokens(t *testing.T) {
	t.Parallel()
	s := newShop(newWorld(t), "django", claviger.Settings{RecordTokens: true})
	since := s.now().Add(-time.Hour)
	// What a thief who has the version makes: the same, past the record.
	forged := s.token(state.DjangoTimestamp, issuedAt(since.Add(-time.Hour)), "admin")
	if _, err := s.db.SQL().ExecContext(t.Context(), "DELETE FROM issued"); err != nil {
		t.Fatal(err)
	}
	own, session := s.token(state.DjangoTimestamp, state.Params{}, "mine"), s.token(state.DjangoSession, state.Params{}, "{}")
	if !s.passes(state.DjangoTimestamp, state.Params{}, forged) {
		t.Fatal("the control: before the exposure a forged token passes")
	}
	out := s.expose(keeper.ExposeRequest{Since: since})
	if s.passes(state.DjangoTimestamp, state.Params{}, forged) {
		t.Error("a token that was dated back passes")
	}
	if !s.passes(state.DjangoTimestamp, state.Params{}, own) || !s.passes(state.DjangoSession, state.Params{}, session) {
		t.Error("a token of the record is refused")
	}
	if slices.ContainsFunc(out.Warnings, func(w string) bool { return strings.Contains(w, "date a token back") }) {
		t.Errorf("warnings %q", out.Warnings)
	}
	// The store has keyed digests and no tokens.
	var n int
	if err := s.db.SQL().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM issued WHERE instr(digest, 'mine') > 0 OR length(digest) <> 32").Scan(&n); err != nil || n > 0 {
		t.Errorf("%d digests are none: %v", n, err)
	}
}

// TestExposedNothingComesBack exposes versions that processed nothing, or that
// the key's least level refuses: no grace is promised, and none is given.
func TestExposedNothingComesBack(t *testing.T) {
	t.Parallel()
	timed := func(s shop) []byte {
		return s.token(state.DjangoTimestamp, issuedAt(s.now().Add(-2*time.Hour)), "a")
	}
	check := func(s shop, what string, token []byte) {
		s.Helper()
		day := 24 * time.Hour
		out := s.expose(keeper.ExposeRequest{Version: 1, Since: s.now().Add(-time.Hour), Grace: &day})
		if i := slices.IndexFunc(out.Formats, func(f keeper.FormatGrace) bool { return !f.Until.IsZero() }); i >= 0 || len(out.Formats) == 0 {
			s.Errorf("%s: formats %+v", what, out.Formats)
		}
		if !slices.ContainsFunc(out.Warnings, func(w string) bool { return strings.Contains(w, what) }) {
			s.Errorf("%s: warnings %q", what, out.Warnings)
		}
		out2, err := s.Unprotect(s.Context(), s.by, keeper.UnprotectRequest{Key: cart, Format: state.DjangoTimestamp, Tokens: [][]byte{token}})
		if err == nil && out2[0].OK {
			s.Errorf("%s: an old token passes after the exposure", what)
		}
	}
	s := newShop(newWorld(t), "django", claviger.Settings{})
	token := timed(s)
	if _, err := s.Rotate(t.Context(), s.op, cart, "", 0); err != nil {
		t.Fatal(err)
	}
	if !s.passes(state.DjangoTimestamp, state.Params{}, token) {
		t.Fatal("the control: before it is retired a token passes")
	}
	if _, err := s.Retire(t.Context(), s.op, cart, 1, "", true); err != nil {
		t.Fatal(err)
	}
	check(s, "retired", token)

	s = newShop(newWorld(t), "django", claviger.Settings{Grace: claviger.Duration(time.Hour)})
	token = timed(s)
	if _, err := s.UpdateKey(t.Context(), s.op, cart, keeper.KeyChange{Settings: &claviger.Settings{MinLevel: claviger.Isolated, Grace: claviger.Duration(time.Hour)}}); err != nil {
		t.Fatal(err)
	}
	records := s.since(func() { check(s, "least level", token) })
	if i := slices.IndexFunc(records, func(r audit.Record) bool { return r.Action == "key.exposed" }); i < 0 || records[i].Detail["grace"] != "" {
		t.Errorf("the record tells the grace of a rotation: %+v", records)
	}
}
