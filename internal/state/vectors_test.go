package state_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
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

// vector is one of testdata.
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
	all, err := parse(file, text)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// parse reads vectors strictly: each field of a file is one that it is known to
// have, and each of those is there.
func parse(file string, text []byte) ([]vector, error) {
	var doc struct {
		Framework, Version, PHP, Ruby, OpenSSL string
		Plaintext                              string `json:"roundtrip_plaintext"`
		Vectors                                []vector
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		return nil, err
	}
	missing := map[string]bool{}
	for name := range strings.FieldsSeq(fields[file]) {
		missing[name] = true
	}
	known := maps.Clone(missing)
	for i, v := range doc.Vectors {
		for name := range v {
			if !known[name] {
				return nil, fmt.Errorf("%s, vector %d: unknown field %q", file, i, name)
			}
			delete(missing, name)
		}
	}
	if len(missing) > 0 || len(doc.Vectors) == 0 {
		return nil, fmt.Errorf("%s: %d vectors, and none has %v", file, len(doc.Vectors), slices.Collect(maps.Keys(missing)))
	}
	return doc.Vectors, nil
}

// TestFields has mistakes in the names of fields found.
func TestFields(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("testdata", "rails_7_2.json"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parse("rails_7_2", text); err != nil {
		t.Fatal(err)
	}
	for was, is := range map[string]string{`"purpose"`: `"purpse"`, `"digest"`: `"salt"`, `"framework"`: `"frame"`, `"kind"`: `"Kind"`} {
		if _, err := parse("rails_7_2", bytes.Replace(text, []byte(was), []byte(is), 1)); err == nil {
			t.Errorf("%s in place of %s is taken", is, was)
		}
	}
}

// fields are those that the vectors of a file have. A file with another one is
// refused: it would be a mistake that makes a vector say less.
var fields = map[string]string{
	"aspnet_45":                "decryption decryptionKey derived_encryption_key_hex derived_validation_key_hex encoding kind plaintext_hex primary_purpose specific_purposes ticket token validation validationKey",
	"aspnetcore_dp":            "aad_hex alg bytes context contextHeader kdk key_bytes kind label mac master_key_utf8 plaintext_hex post pre purposes raw_with_buffers source token",
	"authjs_v5":                "header info key keys kind plaintext salt token",
	"cookie_session_keygrip":   "algorithm cookies encoding index key keys kind note plaintext set_cookie signed_string token",
	"django":                   "algorithm compress derived_secret_prefix effective_salt key kind now plaintext salt sep signing_salt time token",
	"express_cookie_signature": "accepted_by_new_only accepted_by_secret_array cookie key kind note plaintext token",
	"flask_itsdangerous":       "compressed digest key key_derivation keys kind plaintext plaintext_json_tagged salt signing_key time token",
	"iron":                     "key kind options password_id passwords plaintext token unsealed",
	"jwt_hs":                   "key kind plaintext result token",
	"laravel_8":                "app_key cipher cookie_name current_key_hex hmac_key key_hex kind plaintext plaintext_php_serialized previousKeys_supported token",
	"nextauth":                 "header info key kind plaintext salt token",
	"phoenix_plug_crypto":      "derived_enc_key_hex derived_key_hex derived_sign_key_hex digest iterations key kind length max_age plaintext plaintext_erlang_b64 salt signed_at signing_salt token",
	"rails_6_1":                "accepted config cookie_value_urlencoded current_key derived_key_hex hash key kind len plaintext purpose salt salt_enc salt_sig token verify",
	"rails_7_2":                "digest encoding expires key kind name payload purpose salt token",
	"symfony_5_4":              "check expires key kind plaintext properties token user_identifier",
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
