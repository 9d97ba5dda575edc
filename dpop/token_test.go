package dpop_test

import (
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"claviger.dev/dpop"
	"claviger.dev/dpop/dpoptest"
)

const issuerURL = "https://login.example.com"

// issuer makes access tokens, and has them checked.
type issuer struct {
	*dpoptest.Issuer
	now time.Time
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{now: start}
	i.Issuer = dpoptest.New(t, issuerURL, func() time.Time { return i.now })
	return i
}

func (i *issuer) tokens() *dpop.Tokens {
	return &dpop.Tokens{Issuer: issuerURL, Audience: "https://api.example.com", Now: func() time.Time { return i.now }, Keys: i.Keys}
}

func (i *issuer) claims(jkt string) map[string]any {
	c := i.Claims("https://api.example.com", jkt)
	c["jti"] = "1"
	c["act"] = map[string]any{"sub": "a", "act": map[string]any{"sub": "b", "act": map[string]any{"sub": "c", "act": map[string]any{"sub": "d"}}}}
	return c
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
		h := map[string]any{"typ": "at+jwt", "alg": "ES256", "kid": i.Kid}
		maps.Copy(h, change)
		return i.Sign(h, good)
	}
	whole := i.Issue(good)
	parts := strings.Split(whole, ".")
	for name, c := range map[string]struct {
		token string
		good  bool
	}{
		"good":                   {whole, true},
		"one audience":           {i.Issue(with("aud", "https://api.example.com")), true},
		"the long typ":           {header(map[string]any{"typ": "application/at+jwt"}), true},
		"a clock ahead":          {i.Issue(with("nbf", start.Add(9*time.Second).Unix())), true},
		"an ID token":            {header(map[string]any{"typ": "JWT"}), false},
		"a proof":                {header(map[string]any{"typ": "dpop+jwt"}), false},
		"none":                   {header(map[string]any{"alg": "none"}), false},
		"a MAC":                  {header(map[string]any{"alg": "HS256", "kid": "mac"}), false},
		"another algorithm":      {header(map[string]any{"alg": "RS256"}), false},
		"crit":                   {header(map[string]any{"crit": []string{"exp"}}), false},
		"no kid":                 {header(map[string]any{"kid": ""}), false},
		"another's key":          {stranger.Issue(good), false},
		"another's key, our kid": {stranger.Sign(map[string]any{"typ": "at+jwt", "alg": "ES256", "kid": i.Kid}, good), false},
		"key in the header":      {stranger.Sign(`{"typ":"at+jwt","alg":"ES256","kid":"x","jwk":`+stranger.JWK+`}`, good), false},
		"no signature":           {parts[0] + "." + parts[1] + ".", false},
		"four parts":             {whole + ".a", false},
		"members twice":          {i.Issue(`{"iss":"x","iss":"` + issuerURL + `"}`), false},
		"other issuer":           {i.Issue(with("iss", issuerURL+"/")), false},
		"other audience":         {i.Issue(with("aud", "https://api.example.com/")), false},
		"no audience":            {i.Issue(with("aud", nil)), false},
		"no end":                 {i.Issue(with("exp", nil)), false},
		"an end in words":        {i.Issue(with("exp", "never")), false},
		"ended":                  {i.Issue(with("exp", start.Add(-11*time.Second).Unix())), false},
		"not yet":                {i.Issue(with("nbf", start.Add(11*time.Second).Unix())), false},
		"no jti":                 {i.Issue(with("jti", nil)), false},
		"no subject":             {i.Issue(with("sub", nil)), false},
		"no client":              {i.Issue(with("client_id", nil)), false},
		"too long":               {i.Issue(with("x", strings.Repeat("x", 16<<10))), false},
		"nested too deep":        {i.Issue(with("x", deep(40))), false},
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
	if access, err := i.tokens().Access(t.Context(), i.Issue(with("cnf", nil))); err != nil || access.Thumbprint != "" {
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
	i.Serve("", errors.New("away"))
	old := i.Issue(i.claims("thumb"))
	accept(old, false, dpop.Unavailable)
	accept(old, false, dpop.Unavailable)
	if i.Asks() != 1 {
		t.Errorf("asked %d times within a second", i.Asks())
	}
	i.Rotate()
	i.now = i.now.Add(time.Second)
	old = i.Issue(i.claims("thumb"))
	accept(old, true, "")
	accept(old, true, "")
	if i.Asks() != 2 {
		t.Errorf("asked %d times", i.Asks())
	}
	i.Rotate()
	next := i.Issue(i.claims("thumb"))
	accept(next, false, "") // it was asked for a moment ago
	i.now = i.now.Add(6 * time.Second)
	accept(next, true, "")
	accept(old, false, "") // a token that was seen before ends with its key
	i.Serve("", errors.New("away"))
	i.now = i.now.Add(2 * time.Minute)
	accept(next, true, "")
	i.now = i.now.Add(9 * time.Minute)
	accept(next, false, dpop.Unavailable)
	i.Rotate()
	i.now = i.now.Add(time.Minute)
	accept(next, false, "") // ended by itself
	for _, set := range []string{"", "[]", "{}", `{"keys":1}`, `{"keys":[` + i.JWK + "," + i.JWK + "]}", strings.Repeat(" ", 300<<10)} {
		bad := newIssuer(t)
		bad.Serve(set, nil)
		tokens = bad.tokens()
		accept(bad.Issue(bad.claims("thumb")), false, dpop.Unavailable)
	}
}

func TestFetchKeys(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/jwks" {
			w.WriteHeader(http.StatusNotFound)
		}
		keys, _ := i.Keys(r.Context())
		w.Write(keys)
	}))
	defer server.Close()
	tokens := i.tokens()
	tokens.Keys = dpop.FetchKeys(server.Client(), server.URL+"/jwks")
	if _, err := tokens.Access(t.Context(), i.Issue(i.claims("thumb"))); err != nil {
		t.Error(err)
	}
	if doc, err := dpop.FetchKeys(server.Client(), server.URL+"/other")(t.Context()); err == nil {
		t.Errorf("status 404: %s", doc)
	}
}

// FuzzTokens looks for a token that is accepted and was not signed.
func FuzzTokens(f *testing.F) {
	i := newIssuer(f)
	f.Add(i.Issue(i.claims("thumb")))
	f.Add("a.b.c")
	f.Add(i.Issue(`{"cnf":{"jkt":1},"aud":[1]}`))
	f.Add(i.Issue(`{"a":[[[[{}]]]]}`))
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
	f.Add(`{"keys":[` + i.JWK + `]}`)
	f.Add(`{"keys":[{}]}`)
	f.Add(`{"keys":[null,1,{"kid":"a","alg":"RS256","kty":"RSA","n":"","e":"AQAB"}]}`)
	token := i.Issue(i.claims("thumb"))
	f.Fuzz(func(t *testing.T, set string) {
		other := newIssuer(t)
		other.Serve(set, nil)
		if _, err := other.tokens().Access(t.Context(), token); err == nil && !strings.Contains(set, i.Kid) {
			t.Errorf("accepted by %s", set)
		}
	})
}
