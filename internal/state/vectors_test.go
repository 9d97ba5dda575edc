package state_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// local runs recipes with a key in the test, as the key process does, with
// nonces of the test's choosing.
type local struct {
	set    recipe.Set
	key    []byte
	random io.Reader
	last   recipe.Item // of the last check
}

func (l *local) Run(_ context.Context, r recipe.Recipe, make bool, items []recipe.Item) ([]recipe.Result, error) {
	if err := l.set.Check(l.key); err != nil {
		return nil, err
	}
	if !l.set.Admits(r) {
		return nil, claviger.Errorf(claviger.Denied, "not of the set", "")
	}
	key, err := r.Key(l.key)
	if err != nil {
		return nil, err
	}
	random := l.random
	if random == nil {
		random = rand.Reader
	}
	var out []recipe.Result
	for _, it := range items {
		var res recipe.Result
		if make {
			res.Output, res.OK = r.Make(nil, key, random, it)
		} else {
			res.Output, res.OK = r.Check(nil, key, it)
			l.last = it
		}
		out = append(out, res)
	}
	return out, nil
}

// vector is one of testdata. Every field that a file has must be named here.
type vector map[string]any

func (v vector) s(name string) string { s, _ := v[name].(string); return s }

func (v vector) bytes(t *testing.T, name string) []byte {
	t.Helper()
	b, err := hex.DecodeString(v.s(name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func load(t testing.TB, file string) []vector {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct{ Vectors []vector }
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Vectors) == 0 {
		t.Fatal("no vectors")
	}
	return doc.Vectors
}

// token is one vector as the package sees it.
type token struct {
	name    string
	format  state.Format
	set     recipe.Set
	key     []byte
	params  state.Params // of both directions
	making  func(*state.Params)
	payload []byte
	want    []byte // of Unprotect, where it is not the payload
	text    string
	facts   func(state.Facts) bool
	random  func(t *testing.T, checked recipe.Item) []byte // the nonces, out of what was checked
}

// check holds one vector to everything that a vector is held to.
func (v token) check(t *testing.T) {
	ctx := t.Context()
	u := &local{set: v.set, key: v.key}
	if !slices.Contains(v.format.Sets(), v.set) {
		t.Errorf("the format is not one of the set %s", v.set)
	}
	payload, facts, err := state.Unprotect(ctx, u, v.format, v.params, []byte(v.text))
	if err != nil {
		t.Fatalf("unprotect: %v", err)
	}
	want := v.payload
	if v.want != nil {
		want = v.want
	}
	if !bytes.Equal(payload, want) && !(v.payload == nil && v.want == nil) {
		t.Errorf("payload %q, want %q", payload, want)
	}
	if v.facts != nil && !v.facts(facts) {
		t.Errorf("facts %+v", facts)
	}
	p := v.params
	if v.making != nil {
		v.making(&p)
	}
	maker := &local{set: v.set, key: v.key}
	if v.random != nil {
		maker.random = bytes.NewReader(v.random(t, u.last))
	}
	again := payload
	if v.payload != nil {
		again = v.payload
	}
	made, err := state.Protect(ctx, maker, v.format, p, again)
	if err != nil {
		t.Fatalf("protect: %v", err)
	}
	if string(made) != v.text {
		t.Errorf("made\n%s\nwant\n%s", made, v.text)
	}
	// One character of the key, here and there.
	for i := 0; i < len(v.key); i += max(1, len(v.key)/8) {
		other := bytes.Clone(v.key)
		other[i] ^= 1
		if v.set == recipe.ASPNET && i < 2 {
			continue // the length is no part of a key
		}
		_, _, err := state.Unprotect(ctx, &local{set: v.set, key: other}, v.format, v.params, []byte(v.text))
		// The decryption key alone is not what ASP.NET authenticates with, and
		// padding that happens to be right gives another text.
		if err == nil && !(v.set == recipe.ASPNET && i < 2+32) {
			t.Fatalf("accepted with byte %d of the key changed", i)
		}
		if err != nil && !errors.Is(err, state.ErrToken) {
			t.Fatalf("byte %d of the key: %v", i, err)
		}
	}
	v.damage(t)
}

// damage changes each character of the token: whatever is accepted says the
// same, in another text that the framework too would take.
func (v token) damage(t *testing.T) {
	u := &local{set: v.set, key: v.key}
	for i := range len(v.text) {
		b := []byte(v.text)
		if b[i] ^= 1; i%3 == 0 {
			b = slices.Delete(b, i, i+1)
		}
		if got, _, err := state.Unprotect(t.Context(), u, v.format, v.params, b); err == nil {
			t.Errorf("accepted with character %d changed: %s (%q)", i, b, got)
		} else if !errors.Is(err, state.ErrToken) {
			t.Errorf("character %d: %v", i, err)
		}
	}
}

func run(t *testing.T, tokens []token) {
	t.Helper()
	for _, v := range tokens {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			v.check(t)
		})
	}
}

// at returns the middle of what was checked, which is what was random.
func at(ranges ...int) func(*testing.T, recipe.Item) []byte {
	return func(_ *testing.T, it recipe.Item) (out []byte) {
		for i := 0; i < len(ranges); i += 2 {
			from, to := ranges[i], ranges[i+1]
			if from < 0 {
				from, to = len(it.Data)+from, len(it.Data)+to
			}
			out = append(out, it.Data[from:to]...)
		}
		return out
	}
}

func unb64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDjango(t *testing.T) {
	t.Parallel()
	when := time.Unix(1760000000, 0).UTC()
	var tokens []token
	for _, v := range load(t, "django") {
		tk := token{name: v.s("kind") + "/" + v.s("salt") + v.s("signing_salt"), set: recipe.Django, key: []byte(v.s("key")), text: v.s("token"),
			params: state.Params{Salt: v.s("salt")}}
		timed := func(p *state.Params) { p.Issued = when }
		isThen := func(f state.Facts) bool { return f.Issued.Equal(when) }
		switch v.s("kind") {
		case "Signer":
			tk.format, tk.payload = state.DjangoSigner, []byte(v.s("plaintext"))
		case "TimestampSigner":
			tk.format, tk.payload, tk.making, tk.facts = state.DjangoTimestamp, []byte(v.s("plaintext")), timed, isThen
		case "signing.dumps", "sessions.signed_cookies", "sessions.db.encode":
			tk.format, tk.making = state.DjangoDumps, timed
			if strings.HasPrefix(v.s("kind"), "sessions") {
				tk.format = state.DjangoSession
			}
			compressed := strings.HasPrefix(tk.text, ".")
			if compressed {
				tk.making = func(p *state.Params) { p.Issued, p.Compressed = when, true }
			} else {
				tk.want = compact(t, v["plaintext"], tk.text, ":")
			}
			tk.facts = func(f state.Facts) bool { return isThen(f) && f.Compressed == compressed }
		case "set_signed_cookie":
			tk.format, tk.payload, tk.making, tk.facts = state.DjangoCookie, []byte(v.s("plaintext")), timed, isThen
			tk.params = state.Params{Name: "pref", Salt: "ui"}
		case "messages.CookieStorage (get_cookie_signer)":
			tk.format, tk.payload, tk.making, tk.facts = state.DjangoCookie, []byte(v.s("plaintext")), timed, isThen
			tk.params = state.Params{Name: v.s("signing_salt")}
		case "session_auth_hash":
			tk.format, tk.payload = state.DjangoHMAC, []byte(v.s("plaintext"))
			tk.params.Over = tk.payload
		case "PasswordResetTokenGenerator":
			tk.format, tk.making, tk.facts = state.DjangoReset, timed, isThen
			before, after, _ := strings.Cut(v.s("plaintext"), "<ts>")
			tk.params.Properties = [][]byte{[]byte(before), []byte(after)}
			tk.payload, tk.want = []byte{}, []byte{}
		default:
			t.Fatalf("unknown kind %q", v.s("kind"))
		}
		tokens = append(tokens, tk)
	}
	run(t, tokens)
}

// compact checks that a decoded JSON value is what the first part of a token
// holds, and returns those bytes.
func compact(t testing.TB, value any, text, sep string) []byte {
	t.Helper()
	first, _, _ := strings.Cut(text, sep)
	raw, err := base64.RawURLEncoding.DecodeString(first)
	if err != nil {
		t.Fatal(err)
	}
	sameJSON(t, raw, value)
	return raw
}

func sameJSON(t testing.TB, raw []byte, value any) {
	t.Helper()
	var got any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatalf("%q: %v", raw, err)
	}
	a, _ := json.Marshal(got)
	b, _ := json.Marshal(value)
	if !bytes.Equal(a, b) {
		t.Errorf("plaintext %s, want %s", a, b)
	}
}

func TestItsdangerous(t *testing.T) {
	t.Parallel()
	when := time.Unix(1760000000, 0).UTC()
	var tokens []token
	for _, v := range load(t, "flask_itsdangerous") {
		key := v.s("key") + v.s("signing_key")
		tk := token{name: v.s("kind") + "/" + v.s("salt"), set: recipe.Flask, key: []byte(key), text: v.s("token"),
			params: state.Params{Salt: v.s("salt"), Derivation: v.s("key_derivation"), Digest: recipe.Hash(v.s("digest"))}}
		compressed := strings.HasPrefix(tk.text, ".")
		timed := func(p *state.Params) { p.Issued, p.Compressed = when, compressed }
		isThen := func(f state.Facts) bool { return f.Issued.Equal(when) && f.Compressed == compressed }
		switch kind, _, _ := strings.Cut(v.s("kind"), " "); kind {
		case "flask-session-cookie":
			tk.format, tk.making, tk.facts = state.FlaskSession, timed, isThen
			if !compressed {
				tk.want = compact(t, v["plaintext"], tk.text, ".")
			}
		case "itsdangerous.Signer":
			tk.format, tk.payload = state.ItsdangerousSigner, []byte(v.s("plaintext"))
		case "itsdangerous.TimestampSigner":
			tk.format, tk.payload, tk.making, tk.facts = state.ItsdangerousTimestamp, []byte(v.s("plaintext")), timed, isThen
		case "itsdangerous.Serializer":
			tk.set = recipe.Itsdangerous
			tk.format, tk.payload = state.ItsdangerousSigner, []byte("[1, 2, 3]")
			sameJSON(t, tk.payload, v["plaintext"])
		case "itsdangerous.URLSafeSerializer":
			tk.format, tk.want = state.ItsdangerousURLSafe, compact(t, v["plaintext"], tk.text, ".")
		case "itsdangerous.URLSafeTimedSerializer":
			tk.format, tk.making, tk.facts = state.ItsdangerousTimed, timed, isThen
			tk.want = compact(t, v["plaintext"], tk.text, ".")
		default:
			t.Fatalf("unknown kind %q", v.s("kind"))
		}
		tokens = append(tokens, tk)
	}
	run(t, tokens)
}

func TestRails(t *testing.T) {
	t.Parallel()
	expires := time.Date(2030, 3, 17, 17, 46, 40, 0, time.UTC)
	old := func(p state.Params) state.Params { p.KDF = recipe.SHA1; return p }
	derived := 0
	var tokens []token
	for _, v := range load(t, "rails_6_1") {
		tk := token{name: v.s("kind"), set: recipe.Rails, key: []byte(v.s("key")), text: v.s("token")}
		switch v.s("kind") {
		case "cookie:user_id", "cookie:cart":
			name := strings.TrimPrefix(v.s("kind"), "cookie:")
			tk.format, tk.params = state.RailsSignedCookie, old(state.Params{Name: name})
			if name == "cart" {
				tk.making = func(p *state.Params) { p.Expires = expires }
				tk.facts = func(f state.Facts) bool { return f.Expires.Equal(expires) && f.Purpose == "cookie.cart" }
			}
			if un, err := url.QueryUnescape(v.s("cookie_value_urlencoded")); err != nil || un != tk.text {
				t.Errorf("%s: the cookie is not the token", tk.name)
			}
		case "cookie:note", "cookie:_mk_session":
			tk.format, tk.params = state.RailsEncryptedCookie, old(state.Params{Name: strings.TrimPrefix(v.s("kind"), "cookie:")})
			tk.random = at(0, 12)
		case "app.message_verifier":
			tk.format, tk.params, tk.payload = state.RailsVerifier, old(state.Params{Salt: v.s("salt")}), []byte("\x04\bI\"\nhello\x06:\x06ET")
		case "app.message_verifier with purpose+expiry":
			tk.format, tk.params = state.RailsVerifier, old(state.Params{Salt: v.s("salt"), Purpose: v.s("purpose")})
			tk.making = func(p *state.Params) { p.Expires = expires }
			tk.payload = []byte("\x04\b{\x06I\"\aid\x06:\x06ETi\n")
		case "MessageVerifier(raw secret, SHA256, JSON)", "MessageVerifier signed by OLD, accepted through rotate(OLD)":
			tk.set, tk.format, tk.params = recipe.RailsVerifier, state.RailsVerifier, state.Params{Digest: recipe.SHA256}
			first, _, _ := strings.Cut(tk.text, "--")
			tk.payload = unb64(t, first)
			sameJSON(t, tk.payload, v["plaintext"])
		case "MessageEncryptor aes-256-gcm JSON":
			tk.format, tk.params, tk.payload, tk.random = state.RailsEncrypted, old(state.Params{Salt: v.s("salt")}), []byte(`{"x":"y"}`), at(0, 12)
		case "MessageEncryptor aes-256-cbc + HMAC-SHA1 JSON (legacy)":
			tk.format, tk.params = state.RailsCBC, old(state.Params{Salt: v.s("salt_enc"), Salt2: v.s("salt_sig")})
			tk.payload, tk.random = []byte(`{"x":"y"}`), at(0, 16)
		case "derived-key":
			derived++
			scheme := recipe.Recipe{Scheme: recipe.RailsTag, Derivation: recipe.PBKDF2, Hash: recipe.SHA1, MAC: recipe.SHA1, Salt: v.s("salt"), Iterations: 1000, Size: uint32(v["len"].(float64))}
			if key, err := scheme.Key(tk.key); err != nil || !bytes.Equal(key, v.bytes(t, "derived_key_hex")) {
				t.Errorf("derived %x", key)
			}
			continue
		default:
			t.Fatalf("unknown kind %q", v.s("kind"))
		}
		tokens = append(tokens, tk)
	}
	if derived == 0 {
		t.Error("no derived key was compared")
	}
	run(t, tokens)
}
