package policy_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/policy"
	"claviger.dev/pubkey"
	"github.com/go-jose/go-jose/v4"
)

// authority is a signing key of an algorithm, as custody would hold it.
type authority struct {
	alg    claviger.Algorithm
	signer crypto.Signer
	public pubkey.Key
}

func newAuthority(t testing.TB, alg claviger.Algorithm) authority {
	t.Helper()
	var signer crypto.Signer
	var err error
	switch alg {
	case claviger.Ed25519:
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	case claviger.ECDSAP256:
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case claviger.ECDSAP384:
		signer, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		p, _ := alg.RSA()
		signer, err = rsa.GenerateKey(rand.Reader, p.Bits)
	}
	if err != nil {
		t.Fatal(err)
	}
	public, err := pubkey.FromStd(alg, signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	return authority{alg, signer, public}
}

// sign signs as custody does: ECDSA in ASN.1.
func (a authority) sign(t testing.TB, message []byte) []byte {
	t.Helper()
	var opts crypto.SignerOpts = a.alg.Hash()
	if p, ok := a.alg.RSA(); ok && p.PSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: p.Hash}
	}
	if h := a.alg.Hash(); h != 0 {
		w := h.New()
		w.Write(message)
		message = w.Sum(nil)
	}
	sig, err := a.signer.Sign(rand.Reader, message, opts)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// decide asks to sign a structure under one grant with the template.
func (a authority) decide(e *policy.Engine, tmpl *claviger.Template, s *policy.Structured) policy.Decision {
	in, g := request()
	in.Key.Algorithm = a.alg
	for i := range in.Key.Versions {
		in.Key.Versions[i].Public = a.public.Raw()
	}
	g.Operations = []claviger.Operation{claviger.Sign}
	g.Conditions.Template = tmpl
	in.Operation, in.Structured = claviger.Sign, s
	return e.Decide(in)
}

func jwtTemplate() *claviger.Template {
	return &claviger.Template{JWT: &claviger.JWTTemplate{
		Issuer: "https://billing.example", Subject: "billing", Audiences: []string{"a", "b"},
		MaxLifetime: claviger.Duration(5 * time.Minute),
		Claims:      map[string]string{"jti": "[a-z]{1,8}", "role": "reader|writer", "n": "[0-9]+", "deep": ".*"},
		Required:    []string{"jti"},
	}}
}

func claims() map[string]any {
	return map[string]any{
		"iss": "https://billing.example", "sub": "billing", "aud": "a",
		"iat": now.Unix(), "exp": now.Unix() + 300, "jti": "abc",
	}
}

func TestJWT(t *testing.T) {
	t.Parallel()
	for _, alg := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.ECDSAP384, "rsa-2048-pss-sha256", "rsa-2048-pkcs1-sha512"} {
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t, alg)
			body, err := json.Marshal(claims())
			if err != nil {
				t.Fatal(err)
			}
			var e policy.Engine
			d := a.decide(&e, jwtTemplate(), &policy.Structured{JWT: &policy.JWT{Claims: body}})
			if !d.Allowed {
				t.Fatalf("denied: %s: %s", d.Reason, d.Detail)
			}
			s := d.Allowances[0].Structure
			token, err := s.Assemble(a.sign(t, s.ToBeSigned))
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := jose.ParseSignedCompact(string(token), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(pubkey.JWSAlgorithm(alg))})
			if err != nil {
				t.Fatal(err)
			}
			payload, err := parsed.Verify(a.public.Std())
			if err != nil {
				t.Fatalf("go-jose does not verify the token: %v", err)
			}
			if string(payload) != string(body) {
				t.Errorf("payload %s; want %s", payload, body)
			}
			h := parsed.Signatures[0].Protected
			if h.KeyID != a.public.Thumbprint() || h.KeyID != s.KID || h.ExtraHeaders["typ"] != "JWT" {
				t.Errorf("header %+v", h)
			}
		})
	}
}

func TestJWTRefusals(t *testing.T) {
	t.Parallel()
	n := now.Unix()
	set := func(name string, v any) func(map[string]any) { return func(c map[string]any) { c[name] = v } }
	drop := func(name string) func(map[string]any) { return func(c map[string]any) { delete(c, name) } }
	tests := []struct {
		name  string
		spoil func(map[string]any)
		want  string // part of the detail; "" is allowed
	}{
		{"plain", func(map[string]any) {}, ""},
		{"issuer", set("iss", "https://other.example"), "iss"},
		{"issuer as a list", set("iss", []string{"https://billing.example"}), "iss"},
		{"no issuer", drop("iss"), "iss"},
		{"subject", set("sub", "root"), "sub"},
		{"no subject", drop("sub"), "sub"},
		{"audiences", set("aud", []string{"b", "a"}), ""},
		{"another audience", set("aud", "c"), "aud"},
		{"one audience of several", set("aud", []string{"a", "c"}), "aud"},
		{"empty audiences", set("aud", []string{}), "aud"},
		{"audience that is no string", set("aud", []any{"a", 1}), "aud"},
		{"no audience", drop("aud"), "aud"},
		{"no iat", drop("iat"), "iat"},
		{"iat late", set("iat", n+61), "iat"},
		{"iat early", set("iat", n-61), "iat"},
		{"iat in skew", set("iat", n+60), ""},
		{"iat as text", set("iat", "1"), "iat"},
		{"iat with a fraction", set("iat", json.Number("1772366400.0")), "iat"},
		{"exp with an exponent", set("exp", json.Number("1.7723667e9")), "exp"},
		{"no exp", drop("exp"), "exp"},
		{"exp too late", set("exp", n+301), "lifetime"},
		{"exp before iat", set("exp", n-1), "exp"},
		{"exp at iat", set("exp", n), "exp"},
		{"exp beyond every reader", set("exp", json.Number("9007199254740992")), "exp"},
		{"nbf", set("nbf", n), ""},
		{"nbf early", set("nbf", n-61), "nbf"},
		{"nbf after exp", set("nbf", n+300), "nbf"},
		{"nbf as text", set("nbf", "now"), "nbf"},
		{"other claim", set("role", "writer"), ""},
		{"other claim in part", set("role", "writers"), "role"},
		{"other claim, second half of the alternation", set("role", "xwriter"), "role"},
		{"number by its JSON", set("n", 12), ""},
		{"number that does not match", set("n", -12), "n"},
		{"unknown claim", set("admin", true), "admin"},
		{"claim in another case", set("Sub", "root"), "Sub"},
		{"required claim missing", drop("jti"), "jti"},
		{"required claim of another form", set("jti", "ABC"), "jti"},
		{"as deep as may be", set("deep", json.RawMessage(strings.Repeat("[", 7)+strings.Repeat("]", 7))), ""},
		{"too deep", set("deep", json.RawMessage(strings.Repeat("[", 8)+strings.Repeat("]", 8))), "deeper"},
		{"too long", set("deep", strings.Repeat("x", 16<<10)), "16 KiB"},
	}
	a := newAuthority(t, claviger.Ed25519)
	var e policy.Engine
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := claims()
			test.spoil(c)
			body, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			checkTemplate(t, a.decide(&e, jwtTemplate(), &policy.Structured{JWT: &policy.JWT{Claims: body}}), test.want)
		})
	}
}

// checkTemplate checks that a decision allows, or refuses by the template with
// a detail.
func checkTemplate(t *testing.T, d policy.Decision, want string) {
	t.Helper()
	if want == "" {
		if !d.Allowed {
			t.Errorf("denied: %s: %s", d.Reason, d.Detail)
		}
		return
	}
	if d.Allowed || d.Reason != policy.ReasonTemplate || !strings.Contains(d.Detail, want) {
		t.Errorf("allowed %v, reason %q, detail %q; want template with %q", d.Allowed, d.Reason, d.Detail, want)
	}
	if !errors.Is(d.Err(), claviger.Denied) {
		t.Errorf("error %v; want denied", d.Err())
	}
}

func TestJWTForm(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, claviger.Ed25519)
	body, err := json.Marshal(claims())
	if err != nil {
		t.Fatal(err)
	}
	base := strings.TrimSuffix(string(body), "}")
	var e policy.Engine
	for _, test := range []struct{ name, claims, typ, want string }{
		{"plain", base + "}", "", ""},
		{"white space", " " + base + " }\n", "", ""},
		{"type of the template", base + "}", "JWT", ""},
		{"another type", base + "}", "at+jwt", "typ"},
		{"empty", "", "", "JSON"},
		{"null", "null", "", "object"},
		{"list", "[]", "", "object"},
		{"two objects", base + "}{}", "", "JSON"},
		{"name twice", base + `,"sub":"root"}`, "", "twice"},
		{"name twice by escape", base + `,"s\u0075b":"root"}`, "", "twice"},
		{"name twice below", base + `,"deep":{"x":[{"a":1,"a":2}]}}`, "", "twice"},
		{"invalid UTF-8", base + ",\"deep\":\"\xff\"}", "", "UTF-8"},
		{"lone surrogate", base + `,"deep":"\ud800"}`, "", "surrogate"},
		{"lone surrogate in a name", base + `,"\udfff":"x"}`, "", "surrogate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			checkTemplate(t, a.decide(&e, jwtTemplate(), &policy.Structured{JWT: &policy.JWT{Claims: []byte(test.claims), Type: test.typ}}), test.want)
		})
	}
}

// A structure of one kind never passes under a template of another, and a
// request with two is refused.
func TestStructureKinds(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, claviger.Ed25519)
	body, err := json.Marshal(claims())
	if err != nil {
		t.Fatal(err)
	}
	tbs := x509TBS(t, a, x509Leaf())
	var e policy.Engine
	for name, test := range map[string]struct {
		tmpl *claviger.Template
		s    *policy.Structured
	}{
		"jwt under x509": {x509Template(), &policy.Structured{JWT: &policy.JWT{Claims: body}}},
		"x509 under jwt": {jwtTemplate(), &policy.Structured{X509TBS: tbs}},
		"both":           {jwtTemplate(), &policy.Structured{JWT: &policy.JWT{Claims: body}, X509TBS: tbs}},
		"none":           {jwtTemplate(), &policy.Structured{}},
		"two templates":  {&claviger.Template{JWT: jwtTemplate().JWT, X509: x509Template().X509}, &policy.Structured{JWT: &policy.JWT{Claims: body}}},
	} {
		d := a.decide(&e, test.tmpl, test.s)
		if d.Allowed || d.Reason != policy.ReasonTemplate {
			t.Errorf("%s: allowed %v, reason %q", name, d.Allowed, d.Reason)
		}
	}
}

// A revision of a grant is decided by its own template, not by a kept one.
func TestTemplateCache(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, claviger.Ed25519)
	body, err := json.Marshal(claims())
	if err != nil {
		t.Fatal(err)
	}
	in, g := request()
	in.Key.Algorithm, in.Key.Versions[1].Public = a.alg, a.public.Raw()
	in.Operation, g.Operations = claviger.Sign, []claviger.Operation{claviger.Sign}
	in.Structured = &policy.Structured{JWT: &policy.JWT{Claims: body}}
	g.Conditions.Template = jwtTemplate()
	var e policy.Engine
	for range 2 {
		if d := e.Decide(in); !d.Allowed {
			t.Fatalf("denied: %s: %s", d.Reason, d.Detail)
		}
	}
	g.Conditions.Template = jwtTemplate()
	g.Conditions.Template.JWT.Claims["jti"] = "[0-9]+"
	g.Revision++
	if d := e.Decide(in); d.Allowed {
		t.Error("a new revision was decided by the old template")
	}
}
