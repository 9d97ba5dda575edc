package statement_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker/statement"
	"claviger.dev/internal/keeper"
	"claviger.dev/pubkey"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// door signs with a key of its own, and shows what it was asked.
type door struct {
	key     ed25519.PrivateKey
	session claviger.Session
	asked   keeper.SessionStatement
}

func newDoor(t *testing.T) *door {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	public, err := pubkey.FromStd(claviger.Ed25519, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &door{key: key, session: claviger.Session{ID: "01s", Client: "01c", Subject: claviger.Subject{ID: "ann"}, Algorithm: claviger.Ed25519,
		Public: public.SPKI(), JKT: public.Thumbprint(), Ends: now.Add(30 * time.Minute)}}
}

func (d *door) Session(context.Context, claviger.Principal, claviger.ID) (claviger.Session, error) {
	return d.session, nil
}

func (d *door) SignForSession(_ context.Context, _ claviger.Principal, _ claviger.ID, st keeper.SessionStatement) (keeper.SessionSigned, error) {
	d.asked = st
	return keeper.SessionSigned{Signature: ed25519.Sign(d.key, st.ToBeSigned), Session: d.session}, nil
}

func (d *door) sign(t *testing.T, r statement.Request) string {
	t.Helper()
	out, err := statement.Sign(t.Context(), d, claviger.Principal{}, d.session.ID, r, claviger.Source{}, now)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestProofIsChecked(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	proof := d.sign(t, statement.Request{Proof: &statement.Proof{Method: "GET", URL: "https://API.example:443/orders?x=1", AccessToken: "token", Nonce: "n"}})
	if d.asked.Kind != "dpop" || d.asked.Audience != "https://api.example/orders" || d.asked.Method != "GET" {
		t.Errorf("the door was asked for %+v", d.asked)
	}
	v := &dpop.Verifier{Now: func() time.Time { return now }, Replays: &dpop.Memory{}}
	got, err := v.Check(t.Context(), dpop.Request{Proofs: []string{proof}, Method: "GET", URL: "https://api.example/orders", Token: "token", Thumbprint: d.session.JKT})
	if err != nil || got.Thumbprint != d.session.JKT {
		t.Errorf("proof %+v, %v", got, err)
	}
}

// parts reads a compact JWS that was checked against the session's key.
func (d *door) parts(t *testing.T, jws string) (header, claims map[string]any) {
	t.Helper()
	p := strings.Split(jws, ".")
	if len(p) != 3 {
		t.Fatalf("%d parts", len(p))
	}
	signature, err := base64.RawURLEncoding.DecodeString(p[2])
	if err != nil || !ed25519.Verify(d.key.Public().(ed25519.PublicKey), []byte(p[0]+"."+p[1]), signature) {
		t.Fatalf("the signature does not verify: %v", err)
	}
	for i, into := range []*map[string]any{&header, &claims} {
		text, err := base64.RawURLEncoding.DecodeString(p[i])
		if err == nil {
			err = json.Unmarshal(text, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return header, claims
}

func TestKindsAreApart(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	header, claims := d.parts(t, d.sign(t, statement.Request{Assertion: &statement.Assertion{Audience: "https://login.example"}}))
	if header["typ"] != "client-authentication+jwt" || claims["iss"] != "01c" || claims["sub"] != "01c" || claims["aud"] != "https://login.example" ||
		claims["exp"] != float64(now.Add(time.Minute).Unix()) || claims["jti"] == "" {
		t.Errorf("assertion %v %v", header, claims)
	}
	header, claims = d.parts(t, d.sign(t, statement.Request{Token: &statement.Token{Audience: "https://api.example/", Claims: []byte(`{"order":7}`), Lifetime: time.Hour}}))
	if header["typ"] != "claviger-session+jwt" || claims["sub"] != "ann" || claims["sid"] != "01s" || claims["order"] != float64(7) ||
		claims["exp"] != float64(d.session.Ends.Unix()) {
		t.Errorf("token %v %v", header, claims)
	}
}

func TestSSHCertificate(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	line := d.sign(t, statement.Request{SSH: &statement.SSH{PublicKey: string(ssh.MarshalAuthorizedKey(key)), Login: "deploy"}})
	parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ssh.NewPublicKey(d.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	checker := &ssh.CertChecker{Clock: func() time.Time { return now },
		IsUserAuthority: func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), authority.Marshal()) }}
	if err := checker.CheckCert("deploy", parsed.(*ssh.Certificate)); err != nil {
		t.Error(err)
	}
	if err := checker.CheckCert("root", parsed.(*ssh.Certificate)); err == nil {
		t.Error("it is for another login too")
	}
	if d.asked.Audience != "ssh:deploy" {
		t.Errorf("the door was asked for %q", d.asked.Audience)
	}
}

func TestStatementRefusals(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	proof := &statement.Proof{Method: "GET", URL: "https://api.example/"}
	for name, r := range map[string]statement.Request{
		"nothing":               {},
		"two statements":        {Proof: proof, Assertion: &statement.Assertion{Audience: "x"}},
		"no URL":                {Proof: &statement.Proof{Method: "GET"}},
		"another scheme":        {Proof: &statement.Proof{Method: "GET", URL: "ftp://api.example/"}},
		"no method":             {Proof: &statement.Proof{URL: "https://api.example/"}},
		"long nonce":            {Proof: &statement.Proof{Method: "GET", URL: "https://api.example/", Nonce: strings.Repeat("x", 4096)}},
		"no audience":           {Assertion: &statement.Assertion{}},
		"claims that bind":      {Token: &statement.Token{Audience: "x", Claims: []byte(`{"cnf":{}}`)}},
		"claims in other case":  {Token: &statement.Token{Audience: "x", Claims: []byte(`{"Sub":"bob"}`)}},
		"claims that fold":      {Token: &statement.Token{Audience: "x", Claims: []byte("{\"\u017fub\":\"bob\"}")}},
		"hidden dot segments":   {Proof: &statement.Proof{Method: "GET", URL: "https://api.example/public/..%2fadmin"}},
		"claims of a proof":     {Token: &statement.Token{Audience: "x", Claims: []byte(`{"htm":"GET"}`)}},
		"claims of an event":    {Token: &statement.Token{Audience: "x", Claims: []byte(`{"events":{}}`)}},
		"claims not an object":  {Token: &statement.Token{Audience: "x", Claims: []byte(`[]`)}},
		"claims null":           {Token: &statement.Token{Audience: "x", Claims: []byte(`null`)}},
		"claims too large":      {Token: &statement.Token{Audience: "x", Claims: []byte(`{"a":"` + strings.Repeat("x", 9000) + `"}`)}},
		"long lifetime":         {Token: &statement.Token{Audience: "x", Lifetime: 2 * time.Hour}},
		"negative lifetime":     {Token: &statement.Token{Audience: "x", Lifetime: -time.Hour}},
		"no key for SSH":        {SSH: &statement.SSH{Login: "deploy"}},
		"no login for SSH":      {SSH: &statement.SSH{PublicKey: "ssh-ed25519 AAAA"}},
		"pattern as SSH login":  {SSH: &statement.SSH{PublicKey: "ssh-ed25519 AAAA", Login: "*"}},
		"several logins of SSH": {SSH: &statement.SSH{PublicKey: "ssh-ed25519 AAAA", Login: "a,b"}},
	} {
		d.asked = keeper.SessionStatement{}
		_, err := statement.Sign(t.Context(), d, claviger.Principal{}, d.session.ID, r, claviger.Source{}, now)
		if code := claviger.CodeOf(err); code != claviger.Invalid && code != claviger.TooLarge {
			t.Errorf("%s: %v, want it refused", name, err)
		}
		if d.asked.Kind != "" {
			t.Errorf("%s: the door was asked for %+v", name, d.asked)
		}
	}
}
