package jwt_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"claviger.dev/internal/broker/jwt"
)

// party signs tokens.
type party struct {
	key any
	alg string
	id  string
}

func newParty(t testing.TB, alg string) party {
	t.Helper()
	var key any
	var err error
	switch alg[:2] {
	case "ES":
		key, err = ecdsa.GenerateKey(map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384()}[alg], rand.Reader)
	case "Ed":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return party{key, alg, "of-" + alg}
}

func (p party) sign(t testing.TB, header map[jose.HeaderKey]any, payload string) string {
	t.Helper()
	options := (&jose.SignerOptions{ExtraHeaders: header}).WithHeader("kid", p.id)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(p.alg), Key: p.key}, options)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (p party) public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: p.key.(crypto.Signer).Public(), KeyID: p.id, Use: "sig"}
}

func keySet(t testing.TB, keys ...any) jwt.Keys {
	t.Helper()
	doc, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	set, err := jwt.ParseKeys(doc)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// TestAlgorithms reads what another library signed, with each algorithm.
func TestAlgorithms(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"ES256", "ES384", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"} {
		t.Run(alg, func(t *testing.T) {
			t.Parallel()
			p, other := newParty(t, alg), newParty(t, alg)
			token, err := jwt.Parse(p.sign(t, nil, `{"sub":"alice","aud":["a","b"]}`), jwt.Algorithms())
			if err != nil {
				t.Fatal(err)
			}
			if err := token.Verify(keySet(t, newParty(t, "ES256").public(), p.public())); err != nil {
				t.Error(err)
			}
			if token.Claims.Text("sub") != "alice" || !token.Claims.For("b") || token.Claims.For("c") {
				t.Errorf("claims %v", token.Claims)
			}
			if err := token.Verify(keySet(t, other.public())); err == nil {
				t.Error("another key of the same id verifies it")
			}
			renamed := p.public()
			renamed.KeyID = "other"
			if err := token.Verify(keySet(t, renamed)); err == nil {
				t.Error("a key of another id verifies it")
			}
			narrowed := p.public()
			narrowed.Algorithm = "ES512"
			if err := token.Verify(keySet(t, narrowed)); err == nil {
				t.Error("a key for another algorithm verifies it")
			}
			encryption := p.public()
			encryption.Use = "enc"
			if err := token.Verify(keySet(t, encryption)); err == nil {
				t.Error("a key for encryption verifies it")
			}
		})
	}
}

func encode(parts ...string) string {
	for i, p := range parts {
		parts[i] = base64.RawURLEncoding.EncodeToString([]byte(p))
	}
	return strings.Join(parts, ".")
}

// TestRefused lists what is not read at all.
func TestRefused(t *testing.T) {
	t.Parallel()
	const header, claims = `{"alg":"ES256","typ":"JWT"}`, `{"sub":"a"}`
	if _, err := jwt.Parse(encode(header, claims, "signature"), jwt.Algorithms()); err != nil {
		t.Fatalf("the control is refused: %v", err)
	}
	for name, token := range map[string]string{
		"empty":               "",
		"two parts":           encode(header, claims),
		"four parts":          encode(header, claims, "s", "t"),
		"padding":             encode(header, claims, "s") + "=",
		"line break":          encode(header, claims, "signature") + "\n",
		"trailing bits":       encode(header, claims, "s")[:len(encode(header, claims, "s"))-1] + "x",
		"none":                encode(`{"alg":"none"}`, claims, ""),
		"a MAC":               encode(`{"alg":"HS256"}`, claims, "s"),
		"no alg":              encode(`{"typ":"JWT"}`, claims, "s"),
		"crit":                encode(`{"alg":"ES256","crit":["exp"]}`, claims, "s"),
		"b64":                 encode(`{"alg":"ES256","b64":false}`, claims, "s"),
		"encrypted":           encode(`{"alg":"ES256","enc":"A256GCM"}`, claims, "s"),
		"header twice":        encode(`{"alg":"ES256","alg":"ES256"}`, claims, "s"),
		"claim twice":         encode(header, `{"sub":"a","sub":"b"}`, "s"),
		"claim twice, deeper": encode(header, `{"cnf":{"jkt":"a","jkt":"b"}}`, "s"),
		"escaped twice":       encode(header, `{"sub":"a","\u0073ub":"b"}`, "s"),
		"a list":              encode(header, `[1]`, "s"),
		"null":                encode(header, `null`, "s"),
		"two objects":         encode(header, claims+claims, "s"),
		"no UTF-8":            encode(header, "{\"sub\":\"\xff\"}", "s"),
		"deep":                encode(header, `{"a":`+strings.Repeat("[", 100)+strings.Repeat("]", 100)+`}`, "s"),
		"long":                encode(header, `{"jti":"`+strings.Repeat("j", 1<<20)+`"}`, "s"),
	} {
		if _, err := jwt.Parse(token, jwt.Algorithms()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := jwt.Parse(encode(header, claims, "s"), []string{"RS256"}); err == nil {
		t.Error("an algorithm that is not listed is accepted")
	}
}

func TestKeySets(t *testing.T) {
	t.Parallel()
	public, err := newParty(t, "ES256").public().MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	private, err := json.Marshal(jose.JSONWebKey{Key: newParty(t, "ES256").key, KeyID: "p"})
	if err != nil {
		t.Fatal(err)
	}
	set := func(keys ...string) []byte { return []byte(`{"keys":[` + strings.Join(keys, ",") + `]}`) }
	for _, c := range []struct {
		name  string
		doc   []byte
		count int // -1: refused
	}{
		{"none", set(), 0},
		{"one", set(string(public)), 1},
		{"of an unknown kind", set(string(public), `{"kty":"NEW","kid":"n"}`), 1},
		{"symmetric", set(`{"kty":"oct","k":"AAAA"}`), 0},
		{"private", set(string(private)), -1},
		{"no set", []byte(`{}`), -1},
		{"no JSON", []byte(`keys`), -1},
		{"members twice", set(`{"kty":"EC","kty":"EC"}`), -1},
		{"too many", set(strings.Split(strings.Repeat(string(public)+"\n", 65), "\n")[:65]...), -1},
		{"too long", append(set(string(public)), make([]byte, jwt.MaxKeySet)...), -1},
	} {
		keys, err := jwt.ParseKeys(c.doc)
		if (err != nil) != (c.count < 0) || err == nil && len(keys) != c.count {
			t.Errorf("%s: %d keys, %v; want %d", c.name, len(keys), err, c.count)
		}
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	for _, c := range []struct {
		name, claims string
		longest      time.Duration
		good         bool
	}{
		{"now", `{"exp":1800000060,"iat":1800000000}`, time.Minute, true},
		{"a fraction", `{"exp":1800000060.5}`, 0, true},
		{"no exp", `{"iat":1800000000}`, 0, false},
		{"exp a text", `{"exp":"1800000060"}`, 0, false},
		{"just ended, within the skew", `{"exp":1799999980}`, 0, true},
		{"ended", `{"exp":1799999960}`, 0, false},
		{"too far", `{"exp":1800000600}`, 5 * time.Minute, false},
		{"far, and no limit", `{"exp":1900000000}`, 0, true},
		{"not yet", `{"exp":1800000060,"nbf":1800000040}`, 0, false},
		{"issued in the future", `{"exp":1800000060,"iat":1800000040}`, 0, false},
		{"iat a text", `{"exp":1800000060,"iat":"x"}`, 0, false},
		{"negative", `{"exp":-1}`, 0, false},
		{"endless", `{"exp":1e300}`, 0, false},
	} {
		claims, err := jwt.Object([]byte(c.claims))
		if err != nil {
			t.Fatal(err)
		}
		if err := claims.Timely(now, c.longest); (err == nil) != c.good {
			t.Errorf("%s: %v, want good %v", c.name, err, c.good)
		}
	}
}

// FuzzParse checks that what is read is read in one way: the parts encode to
// the same text again.
func FuzzParse(f *testing.F) {
	f.Add(encode(`{"alg":"ES256","typ":"at+jwt","kid":"k"}`, `{"iss":"a","aud":["b"],"exp":1,"cnf":{"jkt":"x"}}`, "s"))
	f.Add(encode(`{"alg":"none"}`, `{}`, ""))
	f.Add(encode(`{"alg":"RS256","alg":"HS256"}`, `{"a":1,"a":2}`, "s"))
	f.Fuzz(func(t *testing.T, text string) {
		token, err := jwt.Parse(text, jwt.Algorithms())
		if err != nil {
			return
		}
		parts := strings.Split(text, ".")
		if len(parts) != 3 {
			t.Fatalf("%q has %d parts", text, len(parts))
		}
		for _, part := range parts {
			raw, err := base64.RawURLEncoding.DecodeString(part)
			if err != nil || base64.RawURLEncoding.EncodeToString(raw) != part {
				t.Errorf("%q is read, and is not what it encodes to", part)
			}
		}
		var std map[string]any
		raw, _ := base64.RawURLEncoding.DecodeString(parts[1])
		if err := json.Unmarshal(raw, &std); err != nil || len(std) != len(token.Claims) {
			t.Errorf("another reader sees %v in %s (%v), and this one %v", std, raw, err, token.Claims)
		}
		if err := token.Verify(nil); err == nil {
			t.Error("no key verifies it")
		}
	})
}

// FuzzParseKeys checks that no set of keys is accepted with a private one.
func FuzzParseKeys(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"EC","d":"AA"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"},{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		keys, err := jwt.ParseKeys(doc)
		if err != nil {
			return
		}
		var set map[string]any
		if err := json.Unmarshal(doc, &set); err == nil {
			list, _ := set["keys"].([]any)
			for _, k := range list {
				members, _ := k.(map[string]any)
				if _, private := members["d"]; private {
					t.Errorf("a set with a private key is accepted: %s", doc)
				}
			}
		}
		token, err := jwt.Parse(encode(`{"alg":"ES256"}`, `{}`, "s"), jwt.Algorithms())
		if err != nil {
			t.Fatal(err)
		}
		if token.Verify(keys) == nil {
			t.Error("a signature of one byte holds")
		}
	})
}
