package state_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
	"claviger.dev/pubkey"
)

// gullible finds everything right, so that what comes after a check is reached
// by hostile text too: of a sealed token it says that it was the plaintext.
type gullible struct{}

func (gullible) Run(_ context.Context, r recipe.Recipe, make bool, items []recipe.Item) ([]recipe.Result, error) {
	out := []recipe.Result{}
	for _, it := range items {
		res := recipe.Result{OK: true}
		if !r.Tags() && !make {
			res.Output = it.Data
		}
		out = append(out, res)
	}
	return out, nil
}

// params are such that every format has what it takes.
func params() state.Params {
	return state.Params{Salt: "salt", Salt2: "salt 2", Name: "name", KeyID: "6f8cb2b5-9b80-4d2b-b7b0-09cd1f8ed6c3", Over: []byte("over"),
		Properties: [][]byte{[]byte("a"), []byte("b")}, AnyPurpose: true, Class: "C", Modifier: []byte{1, 2, 3, 4}, Expires: time.Unix(1900000000, 0)}
}

// variants are the parameters under which a format has a parser of its own.
func variants(f state.Format) []state.Params {
	all := []state.Params{params()}
	for _, cipher := range []string{"gcm", "cbc", "aes"} {
		p := params()
		p.Cipher = cipher
		all = append(all, p)
	}
	for _, encoding := range []string{"hex", "base64", "base64url", "base64url-padded", "token", "raw"} {
		p := params()
		p.Encoding = encoding
		all = append(all, p)
	}
	if f == state.Iron || f == state.IronSession {
		for i := range all {
			all[i].KeyID = ""
		}
	}
	return all
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for _, f := range state.Formats() {
		if _, _, err := state.Unprotect(t.Context(), gullible{}, f, params(), make([]byte, state.MaxToken+1)); err != state.ErrToken {
			t.Errorf("%s: a token over the limit: %v", f, err)
		}
		_, err := state.Protect(t.Context(), gullible{}, f, params(), make([]byte, state.MaxPayload+1))
		if code := claviger.CodeOf(err); code != claviger.TooLarge && f != state.ASPNETLegacyViewState {
			t.Errorf("%s: a payload over the limit: %v", f, err)
		}
	}
	if _, err := state.Protect(t.Context(), gullible{}, state.ASPNETLegacyViewState, params(), nil); claviger.CodeOf(err) != claviger.Unsupported {
		t.Errorf("legacy view state: %v", err)
	}
	if _, _, err := state.Unprotect(t.Context(), gullible{}, "none", params(), nil); claviger.CodeOf(err) != claviger.Unsupported {
		t.Errorf("no such format: %v", err)
	}
	seen := map[state.Format]bool{}
	for _, f := range state.Formats() {
		if seen[f] || len(f.Sets()) == 0 {
			t.Errorf("%s is listed twice, or has no set", f)
		}
		seen[f] = true
	}
}

// TestShortAnswers has custody answer with nothing: no token comes of it, and
// no panic.
func TestShortAnswers(t *testing.T) {
	t.Parallel()
	for _, f := range state.Formats() {
		for _, p := range variants(f) {
			p.Issued = time.Unix(1760000000, 0)
			for _, payload := range []string{"", "payload"} {
				_, _ = state.Protect(t.Context(), gullible{}, f, p, []byte(payload))
			}
		}
	}
}

// TestBatch has good and bad tokens in one request: each has its own answer.
func TestBatch(t *testing.T) {
	t.Parallel()
	u := &local{set: recipe.CookieSignature, key: []byte("mk-test-express-secret-0001")}
	tokens, err := state.ProtectAll(t.Context(), u, state.ExpressCookie, state.Params{}, [][]byte{[]byte("a"), []byte("b")})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := state.UnprotectAll(t.Context(), u, state.ExpressCookie, state.Params{}, [][]byte{[]byte("nonsense"), tokens[1], append(bytes.Clone(tokens[0]), 'x'), tokens[0]})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"", "b", "", "a"}
	for i, o := range opened {
		if o.OK != (want[i] != "") || string(o.Payload) != want[i] {
			t.Errorf("token %d: %+v", i, o)
		}
	}
}

// fuzz holds one format's parser to what holds for all: no panic, nothing but
// ErrToken, and what a key of the set accepts is what that key makes.
func fuzz(f *testing.F, format state.Format) {
	for _, p := range variants(format) {
		p.Issued = time.Unix(1760000000, 0)
		u := &local{set: format.Sets()[0], key: bytes.Repeat([]byte("k"), 32)}
		if format.Sets()[0] == recipe.ASPNET {
			u.key = recipe.Pair(u.key, u.key)
		}
		if token, err := state.Protect(f.Context(), u, format, p, []byte("payload")); err == nil {
			f.Add(token)
		}
	}
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, token []byte) {
		for _, p := range variants(format) {
			if _, _, err := state.Unprotect(t.Context(), gullible{}, format, p, token); err != nil && err != state.ErrToken && claviger.CodeOf(err) != claviger.Invalid {
				t.Errorf("%+v: %v", p, err)
			}
		}
	})
}

func FuzzDjangoSigner(f *testing.F)        { fuzz(f, state.DjangoSigner) }
func FuzzDjangoDumps(f *testing.F)         { fuzz(f, state.DjangoDumps) }
func FuzzDjangoReset(f *testing.F)         { fuzz(f, state.DjangoReset) }
func FuzzDjangoHMAC(f *testing.F)          { fuzz(f, state.DjangoHMAC) }
func FuzzItsdangerousSigner(f *testing.F)  { fuzz(f, state.ItsdangerousSigner) }
func FuzzFlaskSession(f *testing.F)        { fuzz(f, state.FlaskSession) }
func FuzzRailsVerifier(f *testing.F)       { fuzz(f, state.RailsSignedCookie) }
func FuzzRailsEncrypted(f *testing.F)      { fuzz(f, state.RailsEncryptedCookie) }
func FuzzRailsCBC(f *testing.F)            { fuzz(f, state.RailsCBCCookie) }
func FuzzLaravelEncrypted(f *testing.F)    { fuzz(f, state.LaravelEncrypted) }
func FuzzLaravelURL(f *testing.F)          { fuzz(f, state.LaravelURL) }
func FuzzLaravelClosure(f *testing.F)      { fuzz(f, state.LaravelClosure) }
func FuzzExpressCookie(f *testing.F)       { fuzz(f, state.ExpressCookie) }
func FuzzKeygrip(f *testing.F)             { fuzz(f, state.KeygripSignature) }
func FuzzCookieSession(f *testing.F)       { fuzz(f, state.CookieSession) }
func FuzzIron(f *testing.F)                { fuzz(f, state.IronSession) }
func FuzzNextAuth(f *testing.F)            { fuzz(f, state.NextAuth) }
func FuzzAuthJS(f *testing.F)              { fuzz(f, state.AuthJS) }
func FuzzJWT(f *testing.F)                 { fuzz(f, state.JWT) }
func FuzzPlugToken(f *testing.F)           { fuzz(f, state.PlugToken) }
func FuzzPlugEncrypted(f *testing.F)       { fuzz(f, state.PlugEncryptedToken) }
func FuzzSymfonyURI(f *testing.F)          { fuzz(f, state.SymfonyURI) }
func FuzzSymfonyHash(f *testing.F)         { fuzz(f, state.SymfonyHash) }
func FuzzSymfonyRemember(f *testing.F)     { fuzz(f, state.SymfonyRemember) }
func FuzzSymfonySignature(f *testing.F)    { fuzz(f, state.SymfonySignature) }
func FuzzASPNETForms(f *testing.F)         { fuzz(f, state.ASPNETForms) }
func FuzzASPNETViewState(f *testing.F)     { fuzz(f, state.ASPNETViewState) }
func FuzzLegacyViewState(f *testing.F)     { fuzz(f, state.ASPNETLegacyViewState) }
func FuzzDataProtectionToken(f *testing.F) { fuzz(f, state.DataProtection) }
func FuzzDataProtectionKeyID(f *testing.F) {
	f.Add([]byte("CfDJ8AAAAAAAAAAAAAAAAAAAAAAAAAAF"))
	f.Fuzz(func(t *testing.T, token []byte) {
		if id, ok := state.KeyIDOf(token); ok {
			if _, ok := state.ParseGUID(id); !ok {
				t.Errorf("key id %q is no GUID", id)
			}
		}
	})
}

func FuzzTicket(f *testing.F) {
	f.Add(state.Ticket{Version: 1, Name: "alice", UserData: "é𝄞", Path: "/"}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if ticket, ok := state.ParseTicket(b); ok && !bytes.Equal(ticket.Append(nil), b) {
			t.Errorf("%x is not what the ticket makes", b)
		}
	})
}

func FuzzPASETO(f *testing.F) {
	s := newSigner(f, claviger.Ed25519)
	f.Add([]byte("v4.public.AAAA.AAAA"))
	f.Fuzz(func(t *testing.T, token []byte) {
		if payload, _, err := state.VerifyPASETO([]pubkey.Key{s.public}, token, nil); err != state.ErrToken {
			t.Errorf("%q: %q, %v", token, payload, err)
		}
	})
}

func FuzzNativeJWT(f *testing.F) {
	s := newSigner(f, claviger.ECDSAP256)
	f.Add([]byte("eyJhbGciOiJFUzI1NiJ9.e30.AAAA"))
	f.Fuzz(func(t *testing.T, token []byte) {
		if payload, _, err := state.VerifyJWT([]pubkey.Key{s.public}, token); err != state.ErrToken {
			t.Errorf("%q: %q, %v", token, payload, err)
		}
	})
}

// FuzzEveryFormat has every format that there is, chosen by the first argument.
func FuzzEveryFormat(f *testing.F) {
	formats := state.Formats()
	for i := range formats {
		f.Add(uint8(i), []byte("a.b--c:d*e|f%2B&signature=AAAA"))
	}
	f.Fuzz(func(t *testing.T, which uint8, token []byte) {
		format := formats[int(which)%len(formats)]
		for _, p := range variants(format) {
			if _, _, err := state.Unprotect(t.Context(), gullible{}, format, p, token); err != nil && err != state.ErrToken && claviger.CodeOf(err) != claviger.Invalid {
				t.Errorf("%s, %+v: %v", format, p, err)
			}
		}
	})
}
