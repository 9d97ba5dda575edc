package dpop_test

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/pubkey"
)

const issuerURL = "https://login.example.com"

// issuer makes access tokens, and has them checked.
type issuer struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	kid  string
	jwk  string
	now  time.Time
	set  string // that the issuer serves
	down error  // of the key set
	n    int    // how often it was asked for
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{t: t, now: start}
	i.rotate()
	return i
}

// rotate makes a new key, the only one of the set.
func (i *issuer) rotate() {
	i.t.Helper()
	i.key = newKey(i.t)
	public, err := pubkey.FromStd(claviger.ECDSAP256, &i.key.PublicKey)
	if err != nil {
		i.t.Fatal(err)
	}
	i.jwk, i.kid = string(public.JWK()), public.Thumbprint()
	i.set = `{"keys":[{"kty":"oct","kid":"mac","alg":"HS256","k":"AAAA"},` + i.jwk + `]}`
}

func (i *issuer) tokens() *dpop.Tokens {
	return &dpop.Tokens{Issuer: issuerURL, Audience: "https://api.example.com", Now: func() time.Time { return i.now },
		Keys: func(context.Context) ([]byte, error) {
			i.n++
			return []byte(i.set), i.down
		}}
}

func (i *issuer) claims(jkt string) map[string]any {
	return map[string]any{"iss": issuerURL, "sub": "ada", "aud": []string{"https://other.example.com", "https://api.example.com"}, "client_id": "shop", "jti": "1",
		"iat": i.now.Unix(), "exp": i.now.Add(5 * time.Minute).Unix(), "scope": "orders read", "sid": "s1", "cnf": map[string]any{"jkt": jkt},
		"act": map[string]any{"sub": "a", "act": map[string]any{"sub": "b", "act": map[string]any{"sub": "c", "act": map[string]any{"sub": "d"}}}}}
}

func (i *issuer) issue(claims any) string {
	i.t.Helper()
	return forge(i.t, i.key, map[string]any{"typ": "at+jwt", "alg": "ES256", "kid": i.kid}, claims)
}

func TestTokens(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	stranger := newIssuer(t)
	good := i.claims("thumb")
	with := func(name string, value any) map[string]any {
		c := maps.Clone(good)
		if c[name] = value; value == nil {
			delete(c, name)
		}
		return c
	}
	header := func(change map[string]any) string {
		h := map[string]any{"typ": "at+jwt", "alg": "ES256", "kid": i.kid}
		maps.Copy(h, change)
		return forge(t, i.key, h, good)
	}
	whole := i.issue(good)
	parts := strings.Split(whole, ".")
	for name, c := range map[string]struct {
		token string
		good  bool
	}{
		"good":                   {whole, true},
		"one audience":           {i.issue(with("aud", "https://api.example.com")), true},
		"the long typ":           {header(map[string]any{"typ": "application/at+jwt"}), true},
		"a clock ahead":          {i.issue(with("nbf", start.Add(9*time.Second).Unix())), true},
		"an ID token":            {header(map[string]any{"typ": "JWT"}), false},
		"a proof":                {header(map[string]any{"typ": "dpop+jwt"}), false},
		"none":                   {header(map[string]any{"alg": "none"}), false},
		"a MAC":                  {header(map[string]any{"alg": "HS256", "kid": "mac"}), false},
		"another algorithm":      {header(map[string]any{"alg": "RS256"}), false},
		"crit":                   {header(map[string]any{"crit": []string{"exp"}}), false},
		"no kid":                 {header(map[string]any{"kid": ""}), false},
		"another's key":          {stranger.issue(good), false},
		"another's key, our kid": {forge(t, stranger.key, map[string]any{"typ": "at+jwt", "alg": "ES256", "kid": i.kid}, good), false},
		"key in the header":      {forge(t, stranger.key, `{"typ":"at+jwt","alg":"ES256","kid":"x","jwk":`+stranger.jwk+`}`, good), false},
		"no signature":           {parts[0] + "." + parts[1] + ".", false},
		"four parts":             {whole + ".a", false},
		"members twice":          {i.issue(`{"iss":"x","iss":"` + issuerURL + `"}`), false},
		"other issuer":           {i.issue(with("iss", issuerURL+"/")), false},
		"other audience":         {i.issue(with("aud", "https://api.example.com/")), false},
		"no audience":            {i.issue(with("aud", nil)), false},
		"no end":                 {i.issue(with("exp", nil)), false},
		"an end in words":        {i.issue(with("exp", "never")), false},
		"ended":                  {i.issue(with("exp", start.Add(-11*time.Second).Unix())), false},
		"not yet":                {i.issue(with("nbf", start.Add(11*time.Second).Unix())), false},
		"no jti":                 {i.issue(with("jti", nil)), false},
		"no subject":             {i.issue(with("sub", nil)), false},
		"no client":              {i.issue(with("client_id", nil)), false},
		"too long":               {i.issue(with("x", strings.Repeat("x", 16<<10))), false},
		"nested too deep":        {i.issue(with("x", deep(40))), false},
	} {
		t.Run(name, func(t *testing.T) {
			access, err := i.tokens().Access(t.Context(), c.token)
			if (err == nil) != c.good || dpop.CodeOf(err) != "" {
				t.Fatalf("%+v, %v", access, err)
			}
			if !c.good {
				return
			}
			got := access.Claims.(*dpop.Token)
			if access.Thumbprint != "thumb" || got.Subject != "ada" || got.Session != "s1" || got.Client != "shop" || len(got.Scopes) != 2 || !got.Ends.Equal(start.Add(5*time.Minute)) {
				t.Errorf("%+v of %q", got, access.Thumbprint)
			}
		})
	}
	if access, err := i.tokens().Access(t.Context(), i.issue(with("cnf", nil))); err != nil || access.Thumbprint != "" {
		t.Errorf("unbound: %+v, %v", access, err) // which a Resource refuses
	}
}

func deep(n int) any {
	if n == 0 {
		return 1
	}
	return []any{deep(n - 1)}
}

// TestTokensTurn is an issuer whose keys change and cannot be had at times.
func TestTokensTurn(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	tokens := i.tokens()
	accept := func(token string, want bool, code string) {
		t.Helper()
		if _, err := tokens.Access(t.Context(), token); (err == nil) != want || dpop.CodeOf(err) != code {
			t.Errorf("accepted %t: %v", err == nil, err)
		}
	}
	i.down = errors.New("away")
	old := i.issue(i.claims("thumb"))
	accept(old, false, dpop.Unavailable)
	accept(old, false, dpop.Unavailable)
	if i.n != 1 {
		t.Errorf("asked %d times within a second", i.n)
	}
	i.down, i.now = nil, i.now.Add(time.Second)
	accept(old, true, "")
	accept(old, true, "")
	if i.n != 2 {
		t.Errorf("asked %d times", i.n)
	}
	i.rotate()
	next := i.issue(i.claims("thumb"))
	accept(next, false, "") // it was asked for a moment ago
	i.now = i.now.Add(6 * time.Second)
	accept(next, true, "")
	accept(old, false, "") // a token that was seen before ends with its key
	i.down = errors.New("away")
	i.now = i.now.Add(2 * time.Minute)
	accept(next, true, "")
	i.now = i.now.Add(9 * time.Minute)
	accept(next, false, dpop.Unavailable)
	i.down = nil
	i.now = i.now.Add(time.Minute)
	accept(next, false, "") // ended by itself
	for _, set := range []string{"", "[]", "{}", `{"keys":1}`, `{"keys":[` + i.jwk + "," + i.jwk + "]}", strings.Repeat(" ", 300<<10)} {
		bad := newIssuer(t)
		bad.set = set
		tokens = bad.tokens()
		accept(bad.issue(bad.claims("thumb")), false, dpop.Unavailable)
	}
}

func TestFetchKeys(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/jwks" {
			w.WriteHeader(http.StatusNotFound)
		}
		w.Write([]byte(i.set))
	}))
	defer server.Close()
	tokens := i.tokens()
	tokens.Keys = dpop.FetchKeys(server.Client(), server.URL+"/jwks")
	if _, err := tokens.Access(t.Context(), i.issue(i.claims("thumb"))); err != nil {
		t.Error(err)
	}
	if doc, err := dpop.FetchKeys(server.Client(), server.URL+"/other")(t.Context()); err == nil {
		t.Errorf("status 404: %s", doc)
	}
}

// FuzzTokens looks for a token that is accepted and was not signed.
func FuzzTokens(f *testing.F) {
	i := newIssuer(f)
	f.Add(i.issue(i.claims("thumb")))
	f.Add("a.b.c")
	f.Add(i.issue(`{"cnf":{"jkt":1},"aud":[1]}`))
	f.Add(i.issue(`{"a":[[[[{}]]]]}`))
	tokens := i.tokens()
	f.Fuzz(func(t *testing.T, token string) {
		access, err := tokens.Access(t.Context(), token)
		if err == nil && access.Claims.(*dpop.Token).ID != "1" {
			t.Errorf("accepted: %+v", access.Claims)
		}
	})
}

// FuzzKeySet looks for a key set that is read with a fault.
func FuzzKeySet(f *testing.F) {
	i := newIssuer(f)
	f.Add(i.set)
	f.Add(`{"keys":[{}]}`)
	f.Add(`{"keys":[null,1,{"kid":"a","alg":"RS256","kty":"RSA","n":"","e":"AQAB"}]}`)
	token := i.issue(i.claims("thumb"))
	f.Fuzz(func(t *testing.T, set string) {
		other := newIssuer(t)
		other.set = set
		if _, err := other.tokens().Access(t.Context(), token); err == nil && !strings.Contains(set, i.kid) {
			t.Errorf("accepted by %s", set)
		}
	})
}
