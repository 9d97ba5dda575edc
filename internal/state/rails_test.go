package state_test

import (
	"strings"
	"testing"
	"time"

	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// TestRails7 has tokens of Rails 7.2. Each message is opened and made as a whole,
// as the adapter does, and where this package has the envelope also by its parts.
func TestRails7(t *testing.T) {
	t.Parallel()
	expires := time.Date(2030, 3, 17, 17, 46, 40, 0, time.UTC)
	var tokens []token
	for _, v := range load(t, "rails_7_2") {
		kind := v.s("kind")
		p := state.Params{Salt: v.s("salt"), Digest: recipe.Hash(v.s("digest")), Encoding: v.s("encoding")}
		tk := token{name: kind, set: recipe.Rails, key: []byte(v.s("key")), text: v.s("token"), params: p, format: state.RailsVerifier}
		parts := tk
		parts.params.Purpose, parts.payload = v.s("purpose"), []byte(v.s("payload"))
		parts.params.Name = v.s("name")
		ends := v["expires"] == true
		switch {
		case strings.HasPrefix(kind, "signed cookie"):
			tk.params.Salt, parts.format = "signed cookie", state.RailsSignedCookie
			if ends {
				parts.making = func(p *state.Params) { p.Expires = expires }
			}
		case kind == "encrypted cookie":
			tk.format, tk.params.Salt, tk.random = state.RailsEncrypted, "authenticated encrypted cookie", at(0, 12)
			parts.format, parts.random = state.RailsEncryptedCookie, tk.random
		case kind == "cbc cookie":
			tk.format, tk.params.Salt, tk.params.Salt2, tk.random = state.RailsCBC, "encrypted cookie", "signed encrypted cookie", at(0, 16)
			parts.format, parts.random = state.RailsCBCCookie, tk.random
		case kind == "encryptor, url-safe":
			tk.format, parts.format, tk.random = state.RailsEncrypted, state.RailsEncrypted, at(0, 12)
		}
		tk.name, tk.params.Whole = kind+", whole", true
		tk.facts = func(f state.Facts) bool {
			return f.Expires.Equal(expires) == ends && (kind == "verifier" || f.Purpose == "cookie."+v.s("name") || f.Purpose == v.s("purpose"))
		}
		tokens = append(tokens, tk)
		if strings.Contains(kind, "cookie") || kind == "verifier" {
			tokens = append(tokens, parts)
			continue
		}
		// The envelope around "data" is made by whoever serialises.
		u := &local{set: recipe.Rails, key: parts.key}
		got, facts, err := state.Unprotect(t.Context(), u, parts.format, parts.params, []byte(parts.text))
		if err != nil || string(got) != v.s("payload") || !tk.facts(facts) {
			t.Errorf("%s: %q %+v %v, want %q", kind, got, facts, err, parts.payload)
		}
		parts.params.Purpose += "x"
		if _, _, err := state.Unprotect(t.Context(), u, parts.format, parts.params, []byte(parts.text)); err != state.ErrToken {
			t.Errorf("%s: another purpose: %v", kind, err)
		}
	}
	run(t, tokens)
}

// TestRailsWhole has what a whole message may be, and what goes with it.
func TestRailsWhole(t *testing.T) {
	t.Parallel()
	u := &local{set: recipe.Rails, key: []byte("mk-test-rails-secret-key-base-0072")}
	for _, message := range []string{
		"", "\x04\bi\x06", `{"_rails":1}`, `{"_rails":{"message":"IQ==","exp":null,"pur":"a"} }`, `{"_rails":{"data":1,"pur":"a","exp":"2030-03-17T17:46:40.000Z"}}`,
		`{"_rails":{"data":1,"exp":"2030"}}`, `{"_rails":{"DATA":1,"pur":"a"}}`, `{"_rails":{"data":1,"data":2}}`, `{"_rails":{"message":"!","exp":null,"pur":"a"}}`,
	} {
		p := state.Params{Salt: "mail", Whole: true}
		token, err := state.Protect(t.Context(), u, state.RailsVerifier, p, []byte(message))
		if err != nil {
			t.Fatalf("%q: %v", message, err)
		}
		got, facts, err := state.Unprotect(t.Context(), u, state.RailsVerifier, p, token)
		if err != nil || string(got) != message || facts.Purpose != "" || !facts.Expires.IsZero() {
			t.Errorf("%q: %q %+v %v", message, got, facts, err)
		}
		p.Whole, p.AnyPurpose = false, true
		_, _, err = state.Unprotect(t.Context(), u, state.RailsVerifier, p, token)
		if envelope := strings.HasPrefix(message, `{"_rails"`); envelope != (err == state.ErrToken) {
			t.Errorf("%q by its parts: %v", message, err)
		}
	}
	for name, p := range map[string]state.Params{
		"purpose": {Salt: "mail", Whole: true, Purpose: "x"}, "end": {Salt: "mail", Whole: true, Expires: time.Unix(1, 0)},
		"encoding": {Salt: "mail", Encoding: "hex"}, "encoding of CBC": {Salt: "a", Salt2: "b", Encoding: "base64url"},
	} {
		format := state.RailsVerifier
		if p.Salt2 != "" {
			format = state.RailsCBC
		}
		if token, err := state.Protect(t.Context(), u, format, p, []byte("x")); err == nil {
			t.Errorf("%s: made %s", name, token)
		}
	}
}
