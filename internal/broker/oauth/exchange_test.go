package oauth_test

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/broker"
)

const (
	typeAccess = "urn:ietf:params:oauth:token-type:access_token"
	typeJWT    = "urn:ietf:params:oauth:token-type:jwt"
)

func exchanging(subject, kind string, more ...string) url.Values {
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {subject}, "subject_token_type": {kind}, "resource": {stock}}
	for i := 0; i+1 < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return form
}

// TestExchange has a service act for others (RFC 8693).
func TestExchange(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.service
	other := s.register(t, "other", claviger.Client{Kind: claviger.Confidential, GrantTypes: []string{"client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"}})
	now := s.now().Unix()
	outside := func(changes map[string]any) string {
		claims := map[string]any{"iss": s.op.URL, "sub": "alice", "aud": s.issuer, "iat": now, "exp": now + 120}
		for name, value := range changes {
			claims[name] = value
		}
		return sign(t, s.op.key, "", claims)
	}
	a := p.token(t, exchanging(outside(nil), typeJWT, "scope", "read"))
	want(t, "a person's token", a, "")
	claims := s.claims(t, a.text("access_token"))
	id := string(p.client.ID)
	if claims["sub"] != s.op.URL+"|alice" || claims["client_id"] != id || claims["cnf"].(map[string]any)["jkt"] != p.proof.Thumbprint() || a.text("issued_token_type") != typeAccess {
		t.Errorf("claims %v, answer %v", claims, a.body)
	}
	if diff := cmp.Diff(map[string]any{"sub": id}, claims["act"]); diff != "" {
		t.Errorf("act (-want +got):\n%s", diff)
	}
	if exp := int64(claims["exp"].(float64)); exp > now+120 {
		t.Errorf("it ends %d s after the token that it is made of", exp-now-120)
	}

	mine := p.token(t, credentials()).text("access_token")
	narrower := p.token(t, exchanging(mine, typeAccess))
	want(t, "a token of its own", narrower, "")
	if c := s.claims(t, narrower.text("access_token")); c["act"] != nil || c["sub"] != id || c["aud"] != stock {
		t.Errorf("claims %v", c)
	}
	want(t, "a token of its own, with another key", p.bound(t, newProof(t), broker.TokenPath, exchanging(mine, typeAccess)), "invalid_request")
	want(t, "a token of somebody else", other.token(t, exchanging(mine, typeAccess)), "invalid_request")
	scoped := p.token(t, credentials("scope", "read")).text("access_token")
	want(t, "more than the token has", p.token(t, exchanging(scoped, typeAccess, "scope", "write")), "invalid_scope")

	acted := p.token(t, exchanging(outside(nil), typeJWT, "actor_token", mine, "actor_token_type", typeAccess))
	want(t, "with an actor", acted, "")
	stranger := other.token(t, credentials()).text("access_token")
	want(t, "with an actor whose key is elsewhere", p.token(t, exchanging(outside(nil), typeJWT, "actor_token", stranger, "actor_token_type", typeAccess)), "invalid_request")
	want(t, "an actor without a type", p.token(t, exchanging(outside(nil), typeJWT, "actor_token", mine)), "invalid_request")

	may := outside(map[string]any{"may_act": map[string]any{"sub": id}})
	want(t, "as the token allows", p.token(t, exchanging(may, typeJWT)), "")
	named := outside(map[string]any{"may_act": map[string]any{"sub": string(p.client.Name)}})
	want(t, "as the token allows by name", p.token(t, exchanging(named, typeJWT)), "")
	others := other.bound(t, p.proof, broker.TokenPath, credentials()).text("access_token")
	want(t, "for an actor whom it does not name", p.token(t, exchanging(named, typeJWT, "actor_token", others, "actor_token_type", typeAccess)), "invalid_request")
	want(t, "as it does not allow", other.token(t, exchanging(may, typeJWT)), "invalid_request")

	for name, form := range map[string]url.Values{
		"another audience":       exchanging(outside(map[string]any{"aud": "https://other.example"}), typeJWT),
		"ended":                  exchanging(outside(map[string]any{"exp": now - 3600}), typeJWT),
		"ended a moment ago":     exchanging(outside(map[string]any{"exp": now - 5}), typeJWT), // not outlived, whatever clocks differ by
		"another issuer":         exchanging(outside(map[string]any{"iss": "https://other.example"}), typeJWT),
		"somebody else's key":    exchanging(sign(t, newKey(t), "", map[string]any{"iss": s.op.URL, "sub": "alice", "aud": s.issuer, "exp": now + 60}), typeJWT),
		"no subject":             {"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "resource": {stock}},
		"an unknown type":        exchanging(outside(nil), "urn:ietf:params:oauth:token-type:saml2"),
		"a foreign access token": exchanging(outside(nil), typeAccess),
		"a refresh token wanted": exchanging(outside(nil), typeJWT, "requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"),
	} {
		want(t, name, p.token(t, form), "invalid_request")
	}
	want(t, "revoked", p.send(t, broker.RevokePath, p.authenticated(t, url.Values{"token": {mine}}), nil), "")
	want(t, "a revoked token", p.token(t, exchanging(mine, typeAccess)), "invalid_request")
	s.pass(6 * time.Minute)
	want(t, "a token that has ended", p.token(t, exchanging(scoped, typeAccess)), "invalid_request")
}

// TestChain has services call each other for one person, until there are too
// many of them.
func TestChain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	now := s.now().Unix()
	token, kind := "", typeJWT
	var ids []string
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		p := s.register(t, name, claviger.Client{Kind: claviger.Confidential, GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"}})
		if token == "" {
			token = sign(t, s.op.key, "", map[string]any{"iss": s.op.URL, "sub": "alice", "aud": s.issuer, "exp": now + 120})
		}
		c := p.client
		c.Audiences = append(c.Audiences, "prod/shop/*") // services that are named as their clients are
		if _, err := s.Keeper.UpdateClient(t.Context(), s.operator, c); err != nil {
			t.Fatal(err)
		}
		form := exchanging(token, kind)
		form.Del("resource")
		next := map[string]string{"a": "b", "b": "c", "c": "d", "d": "e", "e": "f"}[name]
		form.Set("audience", "prod/shop/"+next)
		a := p.token(t, form)
		if name == "e" {
			want(t, "the fifth", a, "invalid_request")
			break
		}
		want(t, name, a, "")
		ids = append([]string{string(p.client.ID)}, ids...)
		token, kind = a.text("access_token"), typeAccess
		var chain []string
		for act, ok := s.claims(t, token)["act"].(map[string]any); ok; act, ok = act["act"].(map[string]any) {
			chain = append(chain, act["sub"].(string))
		}
		if diff := cmp.Diff(ids, chain); diff != "" {
			t.Errorf("%s: who acts (-want +got):\n%s", name, diff)
		}
	}
}

// TestIntrospection asks about tokens.
func TestIntrospection(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.service
	token := p.token(t, credentials()).text("access_token")
	ask := func(by *party, form url.Values) answer {
		return by.send(t, broker.IntrospectPath, by.authenticated(t, form), nil)
	}
	a := ask(p, url.Values{"token": {token}, "token_type_hint": {"access_token"}})
	want(t, "its own", a, "")
	if a.body["active"] != true || a.text("token_type") != "DPoP" || a.body["cnf"].(map[string]any)["jkt"] != p.proof.Thumbprint() || a.text("aud") != api {
		t.Errorf("it is %v", a.body)
	}
	want(t, "a public client", ask(s.page, url.Values{"token": {token}}), "invalid_client")
	want(t, "no token", ask(p, url.Values{}), "invalid_request")
	for name, token := range map[string]string{"no token of ours": "x", "another's": sign(t, newKey(t), "at+jwt", map[string]any{"iss": s.issuer}), "a changed one": token[:len(token)-4] + "AAAA"} {
		if a := ask(p, url.Values{"token": {token}}); a.status != http.StatusOK || len(a.body) != 1 || a.body["active"] != false {
			t.Errorf("%s: %d %v", name, a.status, a.body)
		}
	}
	resource, _ := s.Enrol(t, "resource-server")
	p.http = s.Remote(t, resource).HTTP
	if a := p.send(t, broker.IntrospectPath, url.Values{"token": {token}}, nil); a.body["active"] != true {
		t.Errorf("a resource server with a certificate is told %d %v", a.status, a.body)
	}
	p.http = s.Remote(t, nil).HTTP
	want(t, "nobody", p.send(t, broker.IntrospectPath, url.Values{"token": {token}}, nil), "invalid_client")
}

// TestRevokedPrincipal asks about a token of no session whose client can get
// none any more, and has that client ask.
func TestRevokedPrincipal(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	other := s.register(t, "other", claviger.Client{Kind: claviger.Confidential, GrantTypes: []string{"client_credentials"}})
	token := other.token(t, credentials()).text("access_token")
	ask := func(by *party) answer {
		return by.send(t, broker.IntrospectPath, by.authenticated(t, url.Values{"token": {token}}), nil)
	}
	for _, by := range []*party{s.service, other} {
		if a := ask(by); a.body["active"] != true {
			t.Errorf("before: %d %v", a.status, a.body)
		}
	}
	if _, err := s.Keeper.RevokePrincipal(t.Context(), s.operator, other.principal.Id, "left"); err != nil {
		t.Fatal(err)
	}
	if a := ask(s.service); a.status != http.StatusOK || a.body["active"] != false {
		t.Errorf("its token: %d %v", a.status, a.body)
	}
	want(t, "its own question", ask(other), "access_denied")
}

// TestRate has one address guess, and then a client that asks too much.
func TestRate(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.page
	for i := 0; ; i++ {
		a := p.send(t, broker.TokenPath, url.Values{"client_id": {"guess"}}, nil)
		if a.status == http.StatusTooManyRequests {
			if a.header.Get("Retry-After") == "" {
				t.Error("nothing says how long to wait")
			}
			return
		}
		if i > 5000 {
			t.Fatal("5000 guesses are answered")
		}
	}
}
