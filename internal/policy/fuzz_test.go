package policy_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/policy"
	"claviger.dev/pubkey"
)

// A grant that is accepted encodes to the same grant again.
func FuzzGrant(f *testing.F) {
	for _, tmpl := range []*claviger.Template{nil, jwtTemplate(), x509Template(), sshTemplate()} {
		_, g := request()
		if g.Conditions.Template = tmpl; tmpl != nil {
			g.Operations = []claviger.Operation{claviger.Sign}
		}
		g.Conditions.Sources, g.Conditions.NotAfter = prefixes("10.0.0.0/8"), now
		g.Conditions.Rate = &claviger.Rate{PerSecond: 1.5, Burst: 3}
		b, err := json.Marshal(g)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var g claviger.Grant
		if json.Unmarshal(b, &g) != nil || policy.Validate(g) != nil {
			return
		}
		first, err := json.Marshal(g)
		if err != nil {
			t.Fatalf("an accepted grant does not encode: %v", err)
		}
		var again claviger.Grant
		if err := json.Unmarshal(first, &again); err != nil {
			t.Fatalf("%s does not decode: %v", first, err)
		}
		if err := policy.Validate(again); err != nil {
			t.Errorf("%s is refused when read again: %v", first, err)
		}
		if second, err := json.Marshal(again); err != nil || !bytes.Equal(first, second) {
			t.Errorf("%s\nbecame\n%s (%v)", first, second, err)
		}
		var e policy.Engine
		in, _ := request()
		in.Grants = []claviger.Grant{g}
		e.Decide(in)
	})
}

// fixedAuthority has the same key in every process of a fuzzing run.
func fixedAuthority(t testing.TB) authority {
	t.Helper()
	signer := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	public, err := pubkey.FromStd(claviger.Ed25519, signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	return authority{claviger.Ed25519, signer, public}
}

// Whatever claims are accepted, what is signed holds the template's issuer,
// subject and audience for every reader, and nothing twice.
func FuzzJWTClaims(f *testing.F) {
	body, err := json.Marshal(claims())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"iss":"x","iss":"y"}`))
	f.Add([]byte(`{"deep":[{"a":{"b":1e5}},"\ud83d\ude00",null,true]}`))
	f.Add([]byte(strings.Repeat(`{"a":`, 9) + "1" + strings.Repeat("}", 9)))
	a := fixedAuthority(f)
	var e policy.Engine
	f.Fuzz(func(t *testing.T, b []byte) {
		d := a.decide(&e, jwtTemplate(), &policy.Structured{JWT: &policy.JWT{Claims: b}})
		if !d.Allowed {
			return
		}
		_, payload, _ := bytes.Cut(d.Allowances[0].Structure.ToBeSigned, []byte("."))
		text, err := base64.RawURLEncoding.DecodeString(string(payload))
		if err != nil {
			t.Fatal(err)
		}
		var read struct{ Iss, Sub string } // matches names without regard to case
		if err := json.Unmarshal(text, &read); err != nil || read.Iss != "https://billing.example" || read.Sub != "billing" {
			t.Errorf("signed %s: %v", text, err)
		}
		again := a.decide(&e, jwtTemplate(), &policy.Structured{JWT: &policy.JWT{Claims: text}})
		if !again.Allowed || !bytes.Equal(again.Allowances[0].Structure.ToBeSigned, d.Allowances[0].Structure.ToBeSigned) {
			t.Errorf("what was signed, %s, is not signed as itself", text)
		}
	})
}

// Whatever certificate is accepted is an end entity's, within the template.
func FuzzX509TBS(f *testing.F) {
	a := fixedAuthority(f)
	f.Add(x509TBS(f, a, x509Leaf()))
	ca := x509Leaf()
	ca.IsCA = true
	f.Add(x509TBS(f, a, ca))
	var e policy.Engine
	f.Fuzz(func(t *testing.T, b []byte) {
		d := a.decide(&e, x509Template(), &policy.Structured{X509TBS: b})
		if !d.Allowed {
			return
		}
		der, err := d.Allowances[0].Structure.Assemble(make([]byte, 64))
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatalf("accepted what does not parse: %v", err)
		}
		if cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign != 0 || cert.Issuer.String() != "CN=Issuing CA,O=Example" {
			t.Errorf("accepted %x", b)
		}
		for _, name := range cert.DNSNames {
			if !strings.HasSuffix(name, ".example.com") {
				t.Errorf("accepted the name %q", name)
			}
		}
		if !bytes.Equal(cert.RawTBSCertificate, b) {
			t.Error("what is signed is not what was checked")
		}
	})
}
