package upstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/broker/upstream"
)

const callback = audience + "/oauth/callback"

func assertion(_ context.Context, claims map[string]any) (string, error) {
	doc, err := json.Marshal(claims)
	return string(doc), err
}

func provider(t *testing.T, c *clock, p *party, secret string) *upstream.Provider {
	t.Helper()
	return issuers(t, c, upstream.Config{Issuer: "https://other.example"}, upstream.Config{Issuer: p.URL, CA: p.ca, ClientID: "claviger", SecretFile: secret}).
		Provider(callback, assertion)
}

func TestAddress(t *testing.T) {
	t.Parallel()
	c, p := newClock(), newParty(t)
	p.meta["authorization_endpoint"] = p.URL + "/authorize?tenant=7"
	to, err := provider(t, c, p, "").Address(t.Context(), upstream.Login{State: "s", Nonce: "n", Challenge: "c", Prompt: "login"})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	want := url.Values{"tenant": {"7"}, "response_type": {"code"}, "client_id": {"claviger"}, "redirect_uri": {callback}, "scope": {"openid profile"},
		"state": {"s"}, "nonce": {"n"}, "code_challenge": {"c"}, "code_challenge_method": {"S256"}, "prompt": {"login"}}
	if diff := cmp.Diff(want, u.Query()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestRedeem takes a code to the provider, and judges what comes back.
func TestRedeem(t *testing.T) {
	t.Parallel()
	c, p := newClock(), newParty(t)
	good := map[string]any{"iss": p.URL, "sub": "alice", "aud": "claviger", "exp": c.now().Unix() + 60, "iat": c.now().Unix(), "nonce": "n", "sid": "s-1", "email": "alice@example.org"}
	for _, test := range []struct {
		name    string
		typ     string
		changes map[string]any
		good    bool
	}{
		{"as it should be", "", nil, true},
		{"with typ", "JWT", nil, true},
		{"for several, and this one asked", "", map[string]any{"aud": []string{"claviger", "other"}, "azp": "claviger"}, true},
		{"for several, and another one asked", "", map[string]any{"aud": []string{"claviger", "other"}, "azp": "other"}, false},
		{"for several, and nobody asked", "", map[string]any{"aud": []string{"claviger", "other"}}, false},
		{"for another client", "", map[string]any{"aud": "other"}, false},
		{"of another login", "", map[string]any{"nonce": "m"}, false},
		{"of no login", "", map[string]any{"nonce": nil}, false},
		{"of another issuer", "", map[string]any{"iss": "https://other.example"}, false},
		{"ended", "", map[string]any{"exp": c.now().Unix() - 3600}, false},
		{"endless", "", map[string]any{"exp": nil}, false},
		{"of no time", "", map[string]any{"iat": nil}, false},
		{"of the future", "", map[string]any{"iat": c.now().Unix() + 3600}, false},
		{"of nobody", "", map[string]any{"sub": nil}, false},
		{"within max_age", "", map[string]any{"auth_time": c.now().Unix() - 60}, true},
		{"within max_age: not", "", map[string]any{"auth_time": c.now().Unix() - 120}, false},
		{"within max_age: not told", "", nil, false},
		{"an access token", "at+jwt", nil, false},
		{"a logout token", "logout+jwt", nil, false},
	} {
		p.tokens = func(w http.ResponseWriter, r *http.Request) {
			_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "x", "id_token": p.sign(t, test.typ, with(good, test.changes))})
		}
		maxAge := ""
		if strings.HasPrefix(test.name, "within max_age") {
			maxAge = "60"
		}
		person, err := provider(t, c, p, "").Redeem(t.Context(), "code", "verifier", "n", maxAge)
		if (err == nil) != test.good {
			t.Errorf("%s: %v", test.name, err)
		}
		if want := (upstream.Person{Subject: claviger.Subject{Issuer: p.URL, ID: "alice", Name: "alice@example.org"}, SID: "s-1"}); test.good && person != want {
			t.Errorf("%s: %v", test.name, person)
		}
	}
}

func TestClientAuthentication(t *testing.T) {
	t.Parallel()
	c, p := newClock(), newParty(t)
	var got url.Values
	var user, password string
	p.tokens = func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		got = r.PostForm
		user, password, _ = r.BasicAuth()
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write([]byte(`{"error":"invalid_grant"}`))
	}
	if _, err := provider(t, c, p, "").Redeem(t.Context(), "code", "verifier", "n", ""); !errors.Is(err, upstream.ErrRefused) {
		t.Errorf("a refused code: %v", err)
	}
	var claims map[string]any
	if err := json.Unmarshal([]byte(got.Get("client_assertion")), &claims); err != nil {
		t.Fatal(err)
	}
	if claims["aud"] != p.URL || claims["iss"] != "claviger" || claims["sub"] != "claviger" || claims["jti"] == "" || got.Get("client_id") != "claviger" {
		t.Errorf("the assertion says %v", claims)
	}
	if got.Get("code") != "code" || got.Get("code_verifier") != "verifier" || got.Get("redirect_uri") != callback || user != "" {
		t.Errorf("the request is %v by %q", got, user)
	}
	secret := filepath.Join(p.private, "secret")
	if err := os.WriteFile(secret, []byte("s3cret/+\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _ = provider(t, c, p, secret).Redeem(t.Context(), "code", "verifier", "n", "")
	if user != "claviger" || password != url.QueryEscape("s3cret/+") || got.Get("client_assertion") != "" {
		t.Errorf("by secret: %q %q %v", user, password, got)
	}
}

func TestAnswered(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name        string
		sends, good bool
		iss         string
	}{
		{"as announced", true, true, "own"},
		{"left out, though announced", true, false, ""},
		{"left out", false, true, ""},
		{"another's", false, false, "https://other.example"},
	} {
		c, p := newClock(), newParty(t)
		p.meta["authorization_response_iss_parameter_supported"] = test.sends
		if err := provider(t, c, p, "").Answered(t.Context(), strings.Replace(test.iss, "own", p.URL, 1)); (err == nil) != test.good {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// TestLogout goes through the rules of a logout token (OpenID Connect
// Back-Channel Logout 1.0, 2.4 and 2.6).
func TestLogout(t *testing.T) {
	t.Parallel()
	c, p := newClock(), newParty(t)
	const event = "http://schemas.openid.net/event/backchannel-logout"
	good := map[string]any{"iss": p.URL, "aud": "claviger", "iat": c.now().Unix(), "exp": c.now().Add(2 * time.Minute).Unix(), "jti": "j",
		"events": map[string]any{event: map[string]any{}}, "sub": "alice", "sid": "s-1"}
	for _, test := range []struct {
		name    string
		typ     string
		changes map[string]any
		good    bool
	}{
		{"as it should be", "logout+jwt", nil, true},
		{"the whole media type", "application/logout+jwt", nil, true},
		{"sid alone", "logout+jwt", map[string]any{"sub": nil}, true},
		{"sub alone", "logout+jwt", map[string]any{"sid": nil}, true},
		{"neither", "logout+jwt", map[string]any{"sub": nil, "sid": nil}, false},
		{"another typ", "JWT", nil, false},
		{"no typ", "", nil, false},
		{"a nonce", "logout+jwt", map[string]any{"nonce": "n"}, false},
		{"an empty nonce", "logout+jwt", map[string]any{"nonce": ""}, false},
		{"no events", "logout+jwt", map[string]any{"events": nil}, false},
		{"other events", "logout+jwt", map[string]any{"events": map[string]any{"x": map[string]any{}}}, false},
		{"an event that is no object", "logout+jwt", map[string]any{"events": map[string]any{event: true}}, false},
		{"no jti", "logout+jwt", map[string]any{"jti": nil}, false},
		{"a long jti", "logout+jwt", map[string]any{"jti": strings.Repeat("j", 300)}, false},
		{"no iat", "logout+jwt", map[string]any{"iat": nil}, false},
		{"no exp", "logout+jwt", map[string]any{"exp": nil}, false},
		{"ended", "logout+jwt", map[string]any{"exp": c.now().Unix() - 60}, false},
		{"good for a day", "logout+jwt", map[string]any{"exp": c.now().Unix() + 86400}, false},
		{"another issuer", "logout+jwt", map[string]any{"iss": "https://other.example"}, false},
		{"another client", "logout+jwt", map[string]any{"aud": "other"}, false},
	} {
		out, err := provider(t, c, p, "").Logout(t.Context(), p.sign(t, test.typ, with(good, test.changes)))
		if (err == nil) != test.good {
			t.Errorf("%s: %v", test.name, err)
		}
		if test.good && (out.Issuer != p.URL || out.JTI != "j" || out.Ends.Before(c.now())) {
			t.Errorf("%s: %v", test.name, out)
		}
	}
	stranger := newParty(t)
	if _, err := provider(t, c, p, "").Logout(t.Context(), stranger.sign(t, "logout+jwt", good)); err == nil {
		t.Error("a token that somebody else signed is accepted")
	}
}
