package dpop_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/pubkey"
	"filippo.io/mldsa"
)

const (
	apiURL = "https://api.example.com/orders"
	token  = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
)

var b64 = base64.RawURLEncoding

var start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func at(t time.Time) func() time.Time { return func() time.Time { return t } }

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newSigner(t testing.TB, key crypto.Signer, alg string) *dpop.Signer {
	t.Helper()
	s, err := dpop.NewSigner(key, alg)
	if err != nil {
		t.Fatal(err)
	}
	s.Now = at(start)
	return s
}

func prove(t testing.TB, s *dpop.Signer, c dpop.Claims) string {
	t.Helper()
	proof, err := s.Proof(c)
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

func newVerifier() *dpop.Verifier {
	return &dpop.Verifier{Replays: &dpop.Memory{Now: at(start)}, Now: at(start)}
}

// forge signs any header and any claims with a key.
func forge(t testing.TB, key *ecdsa.PrivateKey, header, claims any) string {
	t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	part := func(v any) string {
		if s, ok := v.(string); ok {
			return b64([]byte(s))
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b64(b)
	}
	input := part(header) + "." + part(claims)
	digest := sha256.Sum256([]byte(input))
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	if sig, err = pubkey.ToP1363(claviger.ECDSAP256, sig); err != nil {
		t.Fatal(err)
	}
	return input + "." + b64(sig)
}

type object = map[string]any

func jwkOf(t testing.TB, key *ecdsa.PrivateKey) object {
	t.Helper()
	raw, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return object{"kty": "EC", "crv": "P-256", "x": b64(raw[1:33]), "y": b64(raw[33:])}
}

func ath(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// good are the parts of a proof that is accepted.
func good(t testing.TB, key *ecdsa.PrivateKey) (header, claims object) {
	return object{"typ": "dpop+jwt", "alg": "ES256", "jwk": jwkOf(t, key)},
		object{"jti": "4c1d2e", "htm": "GET", "htu": apiURL, "iat": start.Unix(), "ath": ath(token)}
}

func with(o object, name string, v any) object {
	o = maps.Clone(o)
	if o[name] = v; v == nil {
		delete(o, name)
	}
	return o
}

func TestAlgorithms(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pqKey, err := mldsa.GenerateKey(mldsa.MLDSA65())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		alg   string
		key   crypto.Signer
		named bool // the verifier has to name it
	}{
		{dpop.ES256, newKey(t), false},
		{dpop.EdDSA, edKey, false},
		{dpop.Ed25519, edKey, false},
		{dpop.PS256, rsaKey, false},
		{dpop.RS256, rsaKey, false},
		{dpop.MLDSA65, pqKey, true},
	} {
		t.Run(c.alg, func(t *testing.T) {
			t.Parallel()
			s := newSigner(t, c.key, c.alg)
			v := newVerifier()
			if c.named {
				if _, err := v.Check(t.Context(), dpop.Request{Proofs: []string{prove(t, s, dpop.Claims{Method: "GET", URL: apiURL})}, Method: "GET", URL: apiURL}); dpop.CodeOf(err) != dpop.InvalidProof {
					t.Errorf("accepted without being named: %v", err)
				}
				v.Algorithms = []string{c.alg}
			}
			proof := prove(t, s, dpop.Claims{Method: "GET", URL: apiURL + "?page=2#top", Token: token})
			got, err := v.Check(t.Context(), dpop.Request{Proofs: []string{proof}, Method: "GET", URL: apiURL, Token: token, Thumbprint: s.Thumbprint()})
			if err != nil {
				t.Fatal(err)
			}
			if want, err := dpop.Thumbprint(c.key.Public()); err != nil || got.Thumbprint != want || s.Thumbprint() != want {
				t.Errorf("thumbprints: of the proof %s, of the signer %s, of the key %s (%v)", got.Thumbprint, s.Thumbprint(), want, err)
			}
			v = newVerifier()
			v.Algorithms = slices.DeleteFunc(append(dpop.Algorithms(), dpop.MLDSA65), func(a string) bool { return a == c.alg })
			other := prove(t, s, dpop.Claims{Method: "GET", URL: apiURL})
			if _, err := v.Check(t.Context(), dpop.Request{Proofs: []string{other}, Method: "GET", URL: apiURL}); dpop.CodeOf(err) != dpop.InvalidProof {
				t.Errorf("accepted where it is not allowed: %v", err)
			}
		})
	}
}

// TestRFC checks the proofs of RFC 9449, figures 2 and 12, and the binding of figure 9.
func TestRFC(t *testing.T) {
	t.Parallel()
	const (
		header   = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19"
		atToken  = header + ".eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
		atAPI    = header + ".eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
		thumb    = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
		resource = "https://resource.example.org/protectedresource"
	)
	then := time.Unix(1562262618, 0)
	v := &dpop.Verifier{Replays: &dpop.Memory{Now: at(then)}, Now: at(then)}
	for _, req := range []dpop.Request{
		{Proofs: []string{atToken}, Method: "POST", URL: "https://server.example.com/token"},
		{Proofs: []string{atAPI}, Method: "GET", URL: resource, Token: token, Thumbprint: thumb},
	} {
		got, err := v.Check(t.Context(), req)
		if err != nil || got.Thumbprint != thumb {
			t.Errorf("%s: %v, thumbprint %q", req.URL, err, got.Thumbprint)
		}
	}
}

// fixture is a proof that is accepted, and what it is made of.
type fixture struct {
	key, other          *ecdsa.PrivateKey
	header, claims, jwk object
	whole               string
	fit                 dpop.Request // what it fits, without the proof
}

func newFixture(t testing.TB) fixture {
	t.Helper()
	f := fixture{key: newKey(t), other: newKey(t)}
	f.header, f.claims = good(t, f.key)
	f.jwk = jwkOf(t, f.key)
	f.whole = f.forge(t, f.header, f.claims)
	f.fit = dpop.Request{Method: "GET", URL: apiURL, Token: token, Thumbprint: newSigner(t, f.key, "").Thumbprint()}
	return f
}

func (f fixture) forge(t testing.TB, header, claims any) string {
	t.Helper()
	return forge(t, f.key, header, claims)
}

func asText(v any) string { b, _ := json.Marshal(v); return string(b) }

// refusal is a request that is refused.
type refusal struct {
	name   string
	proofs []string
	req    dpop.Request
	code   string
}

func checkRefusals(t *testing.T, f fixture, list []refusal) {
	t.Helper()
	for _, c := range list {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := newVerifier()
			replays := &burns{Replays: v.Replays}
			v.Replays = replays
			c.req.Proofs = c.proofs
			got, err := v.Check(t.Context(), c.req)
			if dpop.CodeOf(err) != c.code || got.Thumbprint != "" {
				t.Errorf("got %+v, %v; want %s", got, err, c.code)
			}
			if err != nil && len(err.Error()) > 400 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			if replays.n != 0 {
				t.Error("a proof that was refused was burnt")
			}
		})
	}
	f.fit.Proofs = []string{f.whole}
	if _, err := newVerifier().Check(t.Context(), f.fit); err != nil {
		t.Errorf("the proof that the others are made from: %v", err)
	}
}

func TestRefusedForms(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	flipped := []byte(f.whole)
	flipped[len(flipped)-20] ^= 1
	unbound, elsewhere := f.fit, f.fit
	unbound.Thumbprint = ""
	elsewhere.Thumbprint = newSigner(t, f.other, "").Thumbprint()
	dup := func(doc, member string) string { return strings.Replace(doc, "{", "{"+member+",", 1) }
	checkRefusals(t, f, []refusal{
		{"no proof", nil, f.fit, dpop.InvalidProof},
		{"two proofs", []string{f.whole, f.whole}, f.fit, dpop.InvalidProof},
		{"two in one field", []string{f.whole + ", " + f.whole}, f.fit, dpop.InvalidProof},
		{"not a JWT", []string{"proof"}, f.fit, dpop.InvalidProof},
		{"empty", []string{""}, f.fit, dpop.InvalidProof},
		{"encrypted form", []string{f.whole + ".a.b"}, f.fit, dpop.InvalidProof},
		{"padding", []string{strings.Replace(f.whole, ".", "=.", 1)}, f.fit, dpop.InvalidProof},
		{"a newline", []string{strings.Replace(f.whole, ".", "\n.", 1)}, f.fit, dpop.InvalidProof},
		{"too long", []string{strings.Repeat("a", dpop.MaxProof+1)}, f.fit, dpop.InvalidProof},
		{"bound to another key", []string{f.whole}, elsewhere, dpop.InvalidToken},
		{"bound to no key", []string{f.whole}, unbound, dpop.InvalidToken},
		{"signature of another key", []string{forge(t, f.other, f.header, f.claims)}, f.fit, dpop.InvalidProof},
		{"signature changed", []string{string(flipped)}, f.fit, dpop.InvalidProof},
		{"signature in ASN.1", []string{f.whole[:strings.LastIndex(f.whole, ".")] + ".MAYCAQECAQE"}, f.fit, dpop.InvalidProof},
		{"no signature", []string{f.whole[:strings.LastIndex(f.whole, ".")+1]}, f.fit, dpop.InvalidProof},
		{"two members typ", []string{f.forge(t, dup(asText(f.header), `"typ":"dpop+jwt"`), f.claims)}, f.fit, dpop.InvalidProof},
		{"two members htu", []string{f.forge(t, f.header, dup(asText(f.claims), `"htu":"https://evil.example/"`))}, f.fit, dpop.InvalidProof},
		{"two members in the jwk", []string{f.forge(t, strings.Replace(asText(f.header), `"kty"`, `"kty":"EC","kty"`, 1), f.claims)}, f.fit, dpop.InvalidProof},
		{"two claims", []string{f.forge(t, f.header, asText(f.claims)+asText(f.claims))}, f.fit, dpop.InvalidProof},
		{"claims a list", []string{f.forge(t, f.header, "["+asText(f.claims)+"]")}, f.fit, dpop.InvalidProof},
		{"deep claims", []string{f.forge(t, f.header, `{"a":`+strings.Repeat("[", 900)+strings.Repeat("]", 900)+`}`)}, f.fit, dpop.InvalidProof},
		{"not UTF-8", []string{f.forge(t, f.header, "{\"jti\":\"\xff\"}")}, f.fit, dpop.InvalidProof},
		{"members by case", []string{f.forge(t, f.header, strings.Replace(asText(f.claims), `"htm"`, `"HTM"`, 1))}, f.fit, dpop.InvalidProof},
	})
}

func TestRefusedClaims(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	post := f.fit
	post.Method = "POST"
	checkRefusals(t, f, []refusal{
		{"jti of 1 MB", []string{f.forge(t, f.header, with(f.claims, "jti", strings.Repeat("a", 1<<20)))}, f.fit, dpop.InvalidProof},
		{"jti of 257 bytes", []string{f.forge(t, f.header, with(f.claims, "jti", strings.Repeat("a", 257)))}, f.fit, dpop.InvalidProof},
		{"jti missing", []string{f.forge(t, f.header, with(f.claims, "jti", nil))}, f.fit, dpop.InvalidProof},
		{"jti a number", []string{f.forge(t, f.header, with(f.claims, "jti", 7))}, f.fit, dpop.InvalidProof},
		{"htm missing", []string{f.forge(t, f.header, with(f.claims, "htm", nil))}, f.fit, dpop.InvalidProof},
		{"htm wrong", []string{f.whole}, post, dpop.InvalidProof},
		{"htm in lower case", []string{f.forge(t, f.header, with(f.claims, "htm", "get"))}, f.fit, dpop.InvalidProof},
		{"htu missing", []string{f.forge(t, f.header, with(f.claims, "htu", nil))}, f.fit, dpop.InvalidProof},
		{"htu of another path", []string{f.forge(t, f.header, with(f.claims, "htu", apiURL+"/7"))}, f.fit, dpop.InvalidProof},
		{"htu of another host", []string{f.forge(t, f.header, with(f.claims, "htu", "https://api.example.org/orders"))}, f.fit, dpop.InvalidProof},
		{"htu by http", []string{f.forge(t, f.header, with(f.claims, "htu", "http://api.example.com/orders"))}, f.fit, dpop.InvalidProof},
		{"htu with a user", []string{f.forge(t, f.header, with(f.claims, "htu", "https://a@api.example.com/orders"))}, f.fit, dpop.InvalidProof},
		{"iat missing", []string{f.forge(t, f.header, with(f.claims, "iat", nil))}, f.fit, dpop.InvalidProof},
		{"iat a text", []string{f.forge(t, f.header, with(f.claims, "iat", "1777636800"))}, f.fit, dpop.InvalidProof},
		{"iat beyond all", []string{f.forge(t, f.header, with(f.claims, "iat", json.Number("1e400")))}, f.fit, dpop.InvalidProof},
		{"iat an hour ago", []string{f.forge(t, f.header, with(f.claims, "iat", start.Unix()-3600))}, f.fit, dpop.InvalidProof},
		{"iat in an hour", []string{f.forge(t, f.header, with(f.claims, "iat", start.Unix()+3600))}, f.fit, dpop.InvalidProof},
		{"iat just over", []string{f.forge(t, f.header, with(f.claims, "iat", start.Unix()-71))}, f.fit, dpop.InvalidProof},
		{"iat just ahead", []string{f.forge(t, f.header, with(f.claims, "iat", start.Unix()+11))}, f.fit, dpop.InvalidProof},
		{"ath missing", []string{f.forge(t, f.header, with(f.claims, "ath", nil))}, f.fit, dpop.InvalidProof},
		{"ath of another token", []string{f.forge(t, f.header, with(f.claims, "ath", ath("another")))}, f.fit, dpop.InvalidProof},
	})
}

func TestRefusedHeaders(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	checkRefusals(t, f, []refusal{
		{"typ missing", []string{f.forge(t, with(f.header, "typ", nil), f.claims)}, f.fit, dpop.InvalidProof},
		{"typ JWT", []string{f.forge(t, with(f.header, "typ", "JWT"), f.claims)}, f.fit, dpop.InvalidProof},
		{"alg missing", []string{f.forge(t, with(f.header, "alg", nil), f.claims)}, f.fit, dpop.InvalidProof},
		{"alg none", []string{f.forge(t, with(f.header, "alg", "none"), f.claims)}, f.fit, dpop.InvalidProof},
		{"alg HS256", []string{f.forge(t, with(f.header, "alg", "HS256"), f.claims)}, f.fit, dpop.InvalidProof},
		{"alg of another key type", []string{f.forge(t, with(f.header, "alg", "EdDSA"), f.claims)}, f.fit, dpop.InvalidProof},
		{"crit", []string{f.forge(t, with(f.header, "crit", []string{"exp"}), f.claims)}, f.fit, dpop.InvalidProof},
		{"jwk missing", []string{f.forge(t, with(f.header, "jwk", nil), f.claims)}, f.fit, dpop.InvalidProof},
		{"jwk a text", []string{f.forge(t, with(f.header, "jwk", "key"), f.claims)}, f.fit, dpop.InvalidProof},
		{"jwk private", []string{f.forge(t, with(f.header, "jwk", with(f.jwk, "d", "AA")), f.claims)}, f.fit, dpop.InvalidProof},
		{"jwk a secret", []string{f.forge(t, with(f.header, "jwk", object{"kty": "oct", "k": "AA"}), f.claims)}, f.fit, dpop.InvalidProof},
		{"jwk for another alg", []string{f.forge(t, with(f.header, "jwk", with(f.jwk, "alg", "ES384")), f.claims)}, f.fit, dpop.InvalidProof},
		{"jwk off the curve", []string{f.forge(t, with(f.header, "jwk", with(f.jwk, "y", f.jwk["x"])), f.claims)}, f.fit, dpop.InvalidProof},
		{"jwk of 31 bytes", []string{f.forge(t, with(f.header, "jwk", with(f.jwk, "x", "AA")), f.claims)}, f.fit, dpop.InvalidProof},
	})
}

// burns counts.
type burns struct {
	dpop.Replays
	n int
}

func (b *burns) Burn(ctx context.Context, thumbprint, jti string, until time.Time) (bool, error) {
	b.n++
	return b.Replays.Burn(ctx, thumbprint, jti, until)
}

func TestAccepted(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	header, claims := good(t, key)
	jwk := jwkOf(t, key)
	signer := newSigner(t, key, "")
	for _, c := range []struct {
		name           string
		header, claims any
	}{
		{"host in upper case", header, with(claims, "htu", "HTTPS://API.Example.COM/orders")},
		{"default port", header, with(claims, "htu", "https://api.example.com:443/orders")},
		{"query and fragment", header, with(claims, "htu", apiURL+"?a=b#c")},
		{"escapes", header, with(claims, "htu", "https://api.example.com/%6frders")},
		{"dots", header, with(claims, "htu", "https://api.example.com/v1/../orders")},
		{"iat 70 s ago", header, with(claims, "iat", start.Unix()-70)},
		{"iat in 10 s", header, with(claims, "iat", start.Unix()+10)},
		{"iat with a fraction", header, with(claims, "iat", json.Number(fmt.Sprint(start.Unix())+".25"))},
		{"a short jti", header, with(claims, "jti", "0.4fzyo82mvyr")},
		{"other claims", header, with(claims, "client", object{"a": []int{1}})},
		{"kid and use", with(header, "jwk", with(with(jwk, "kid", "1"), "use", "sig")), claims},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			req := dpop.Request{Proofs: []string{forge(t, key, c.header, c.claims)}, Method: "GET", URL: apiURL, Token: token, Thumbprint: signer.Thumbprint()}
			if _, err := newVerifier().Check(t.Context(), req); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTimeIsTold checks that who is refused for the time can see by how much.
func TestTimeIsTold(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	header, claims := good(t, key)
	_, err := newVerifier().Check(t.Context(), dpop.Request{Proofs: []string{forge(t, key, header, with(claims, "iat", start.Unix()-3600))}, Method: "GET", URL: apiURL})
	if err == nil || !strings.Contains(err.Error(), "2026-05-01T11:00:00Z") || !strings.Contains(err.Error(), "2026-05-01T12:00:00Z") {
		t.Errorf("got %v", err)
	}
}

func TestReplay(t *testing.T) {
	t.Parallel()
	s := newSigner(t, newKey(t), "")
	now := start
	clock := func() time.Time { return now }
	v := &dpop.Verifier{Replays: &dpop.Memory{Now: clock}, Now: clock}
	req := dpop.Request{Proofs: []string{prove(t, s, dpop.Claims{Method: "GET", URL: apiURL})}, Method: "GET", URL: apiURL}
	if _, err := v.Check(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	// It stays refused as long as its time lasts, and after.
	for _, later := range []time.Duration{0, time.Second, 59 * time.Second, 69 * time.Second, 70 * time.Second, 71 * time.Second, time.Hour} {
		now = start.Add(later)
		if _, err := v.Check(t.Context(), req); dpop.CodeOf(err) != dpop.InvalidProof {
			t.Errorf("after %s: %v", later, err)
		}
	}
	if _, err := (&dpop.Verifier{Now: clock}).Check(t.Context(), req); dpop.CodeOf(err) != dpop.Unavailable {
		t.Errorf("without a record of proofs: %v", err)
	}
	broken := &dpop.Verifier{Now: at(start), Replays: down{}}
	if _, err := broken.Check(t.Context(), req); dpop.CodeOf(err) != dpop.Unavailable || !errors.Is(err, errDown) {
		t.Errorf("with the record out of reach: %v", err)
	}
}

var errDown = errors.New("no connection")

type down struct{}

func (down) Burn(context.Context, string, string, time.Time) (bool, error) { return false, errDown }

func TestNonces(t *testing.T) {
	t.Parallel()
	s := newSigner(t, newKey(t), "")
	secret := []byte("0123456789abcdef0123456789abcdef")
	now := start
	clock := func() time.Time { return now }
	nonces := &dpop.Nonces{MAC: dpop.NonceKey(secret)}
	v := &dpop.Verifier{Replays: &dpop.Memory{Now: clock}, Now: clock, Nonces: nonces}
	check := func(v *dpop.Verifier, nonce string) string {
		t.Helper()
		s.Now = clock
		proof := prove(t, s, dpop.Claims{Method: "GET", URL: apiURL, Nonce: nonce})
		_, err := v.Check(t.Context(), dpop.Request{Proofs: []string{proof}, Method: "GET", URL: apiURL})
		return dpop.CodeOf(err)
	}
	nonce, err := nonces.Current(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	if got := check(v, ""); got != dpop.UseNonce {
		t.Errorf("without a nonce: %q", got)
	}
	if got := check(v, "guess"); got != dpop.UseNonce {
		t.Errorf("with a guess: %q", got)
	}
	if got := check(v, nonce); got != "" {
		t.Errorf("with the nonce: %q", got)
	}
	other := &dpop.Verifier{Replays: &dpop.Memory{}, Now: clock, Nonces: &dpop.Nonces{MAC: dpop.NonceKey(secret)}}
	if got := check(other, nonce); got != "" {
		t.Errorf("at another server: %q", got)
	}
	raised := &dpop.Verifier{Replays: &dpop.Memory{}, Now: clock, Nonces: &dpop.Nonces{MAC: dpop.NonceKey(secret), Epoch: 1}}
	if got := check(raised, nonce); got != dpop.UseNonce {
		t.Errorf("in another epoch: %q", got)
	}
	now = start.Add(time.Minute)
	if got := check(v, nonce); got != "" {
		t.Errorf("a span later: %q", got)
	}
	now = start.Add(2 * time.Minute)
	if got := check(v, nonce); got != dpop.UseNonce {
		t.Errorf("two spans later: %q", got)
	}
	now = start.Add(-time.Minute)
	if got := check(v, nonce); got != "" {
		t.Errorf("at a server whose clock is behind: %q", got)
	}
	v.Nonces = &dpop.Nonces{MAC: func(context.Context, []byte) ([]byte, error) { return nil, errDown }}
	if got := check(v, nonce); got != dpop.Unavailable {
		t.Errorf("without the key: %q", got)
	}
}

// TestNonceClock is a client whose clock is an hour off.
func TestNonceClock(t *testing.T) {
	t.Parallel()
	s := newSigner(t, newKey(t), "")
	s.Now = at(start.Add(-time.Hour))
	now := start
	clock := func() time.Time { return now }
	nonces := &dpop.Nonces{MAC: dpop.NonceKey(make([]byte, 32))}
	nonce, err := nonces.Current(t.Context(), start)
	if err != nil {
		t.Fatal(err)
	}
	v := &dpop.Verifier{Replays: &dpop.Memory{Now: clock}, Now: clock, Nonces: nonces}
	req := dpop.Request{Proofs: []string{prove(t, s, dpop.Claims{Method: "GET", URL: apiURL, Nonce: nonce})}, Method: "GET", URL: apiURL}
	if _, err := v.Check(t.Context(), req); dpop.CodeOf(err) != dpop.InvalidProof {
		t.Errorf("by its clock: %v", err)
	}
	v.NonceClock = true
	if _, err := v.Check(t.Context(), req); err != nil {
		t.Errorf("by the nonce: %v", err)
	}
	for now.Before(start.Add(3 * time.Minute)) {
		now = now.Add(10 * time.Second)
		if _, err := v.Check(t.Context(), req); err == nil {
			t.Errorf("used again at %s", now)
		}
	}
}
