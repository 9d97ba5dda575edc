package oauth_test

import (
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker"
	"claviger.dev/internal/keeper"
)

const back = "https://shop.example/back"

func unguessable() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

// asking is an authorization request as a page makes it.
func (p *party) asking(verifier string) url.Values {
	return url.Values{"response_type": {"code"}, "client_id": {string(p.client.ID)}, "redirect_uri": {back}, "state": {"st"}, "scope": {"read write"},
		"code_challenge": {s256(verifier)}, "code_challenge_method": {"S256"}, "resource": {api}}
}

// browser is one, with its cookies.
func (p *party) browser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Transport: p.http.Transport, Jar: jar, CheckRedirect: p.http.CheckRedirect}
}

// visit has a browser open an address, and returns where it is sent.
func visit(t *testing.T, b *http.Client, to string) (status int, location string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := do(t, b, r)
	return a.status, a.header.Get("Location")
}

// logIn sends a browser with a request to the server, to the provider and
// back, and returns what the page is told.
func (p *party) logIn(t *testing.T, b *http.Client, request url.Values) url.Values {
	t.Helper()
	status, to := visit(t, b, p.site.issuer+broker.AuthorizePath+"?"+request.Encode())
	if status != http.StatusSeeOther {
		t.Fatalf("the authorization endpoint answers %d", status)
	}
	if !strings.HasPrefix(to, back) {
		_, to = visit(t, b, p.site.op.consent(t, to))
	}
	u, err := url.Parse(to)
	if err != nil || !strings.HasPrefix(to, back+"?") {
		t.Fatalf("the browser comes back to %q", to)
	}
	q := u.Query()
	if q.Get("state") != "st" || q.Get("iss") != p.site.issuer {
		t.Errorf("the answer is %v", q)
	}
	return q
}

func redeeming(code, verifier string) url.Values {
	return url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {back}, "code_verifier": {verifier}}
}

// opened is a page with a session.
func (p *party) opened(t *testing.T) answer {
	t.Helper()
	verifier := unguessable()
	a := p.token(t, redeeming(p.logIn(t, p.browser(t), p.asking(verifier)).Get("code"), verifier))
	want(t, "a code", a, "")
	return a
}

func refreshing(token string) url.Values {
	return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}
}

// TestCode logs a person in, with and without a pushed request, and looks at
// the session that is there then.
func TestCode(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.page
	a := p.opened(t)
	claims := s.claims(t, a.text("access_token"))
	if claims["sub"] != s.op.URL+"|alice" || claims["scope"] != "read write" || claims["cnf"].(map[string]any)["jkt"] != p.proof.Thumbprint() || a.text("token_type") != "DPoP" {
		t.Errorf("claims %v", claims)
	}
	session, err := s.Keeper.SessionLive(t.Context(), claviger.ID(claims["sid"].(string)))
	if err != nil {
		t.Fatal(err)
	}
	if session.KeyKind != claviger.BrowserKey || session.Binding != claviger.BindingScript || session.JKT != p.proof.Thumbprint() || session.UpstreamIssuer != s.op.URL ||
		session.UpstreamSID != "sid-alice" || session.Subject.ID != "alice" || !session.Source.Address.IsValid() || session.Source.UserAgent == "" {
		t.Errorf("session %+v", session)
	}
	verifier := unguessable()
	pushed := p.bound(t, p.proof, broker.PARPath, p.asking(verifier))
	if pushed.status != http.StatusCreated || pushed.body["expires_in"] != 60.0 {
		t.Fatalf("pushed: %d %v", pushed.status, pushed.body)
	}
	request := url.Values{"client_id": {string(p.client.ID)}, "request_uri": {pushed.text("request_uri")}}
	q := p.logIn(t, p.browser(t), request)
	status, _ := visit(t, p.browser(t), s.issuer+broker.AuthorizePath+"?"+request.Encode())
	if status != http.StatusBadRequest {
		t.Errorf("a pushed request is taken a second time: %d", status)
	}
	thief := newProof(t)
	want(t, "a code that is bound to another key", p.bound(t, thief, broker.TokenPath, redeeming(q.Get("code"), verifier)), "invalid_grant")
}

// TestRequests goes through authorization requests. Where the redirect URI is
// not known to be the client's, nothing goes there.
func TestRequests(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.page
	verifier := unguessable()
	for _, c := range []struct {
		name    string
		changes map[string]string
		told    string // the error that the client is told; "": the person is
	}{
		{"no client", map[string]string{"client_id": ""}, ""},
		{"an unknown client", map[string]string{"client_id": "other"}, ""},
		{"another redirect URI", map[string]string{"redirect_uri": back + "/"}, ""},
		{"an unknown request", map[string]string{"request_uri": "urn:ietf:params:oauth:request_uri:x"}, ""},
		{"a request elsewhere", map[string]string{"request_uri": "https://other.example/request"}, ""},
		{"a token", map[string]string{"response_type": "token"}, "unsupported_response_type"},
		{"a fragment", map[string]string{"response_mode": "fragment"}, "invalid_request"},
		{"no challenge", map[string]string{"code_challenge": ""}, "invalid_request"},
		{"a plain challenge", map[string]string{"code_challenge_method": "plain"}, "invalid_request"},
		{"no method of the challenge", map[string]string{"code_challenge_method": ""}, "invalid_request"},
		{"a request object", map[string]string{"request": "a.b.c"}, "request_not_supported"},
		{"another scope", map[string]string{"scope": "admin"}, "invalid_scope"},
		{"another audience", map[string]string{"resource": "https://other.example"}, "invalid_target"},
		{"no thumbprint", map[string]string{"dpop_jkt": "x"}, "invalid_request"},
		{"an unknown prompt", map[string]string{"prompt": "please"}, "invalid_request"},
	} {
		request := p.asking(verifier)
		for name, value := range c.changes {
			request.Set(name, value)
		}
		status, to := visit(t, p.browser(t), s.issuer+broker.AuthorizePath+"?"+request.Encode())
		if c.told == "" {
			if status < 400 || to != "" {
				t.Errorf("%s: %d, and the browser goes to %q", c.name, status, to)
			}
			continue
		}
		if u, err := url.Parse(to); err != nil || !strings.HasPrefix(to, back+"?") || u.Query().Get("error") != c.told || u.Query().Get("state") != "st" || u.Query().Get("iss") != s.issuer {
			t.Errorf("%s: %d %q, want error %q", c.name, status, to, c.told)
		}
		pushed := p.bound(t, p.proof, broker.PARPath, request)
		want(t, c.name+", pushed", pushed, c.told)
	}
	form := p.asking(verifier)
	form.Set("dpop_jkt", newProof(t).Thumbprint())
	want(t, "dpop_jkt and a proof by another key", p.bound(t, p.proof, broker.PARPath, form), "invalid_request")
	form.Set("dpop_jkt", p.proof.Thumbprint())
	want(t, "dpop_jkt and a proof by that key", p.bound(t, p.proof, broker.PARPath, form), "")
	want(t, "dpop_jkt alone", p.send(t, broker.PARPath, form, nil), "")

	s.op.refuse = "login_required"
	if q := p.logIn(t, p.browser(t), p.asking(verifier)); q.Get("error") != "login_required" || q.Get("code") != "" {
		t.Errorf("the provider's refusal: %v", q)
	}
	s.op.refuse = "server_error"
	if q := p.logIn(t, p.browser(t), p.asking(verifier)); q.Get("error") != "access_denied" {
		t.Errorf("the provider's error: %v", q)
	}
}

// TestCallback has answers of the provider come where they do not belong.
func TestCallback(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.page
	begin := func() (*http.Client, string) {
		b := p.browser(t)
		_, to := visit(t, b, s.issuer+broker.AuthorizePath+"?"+p.asking(unguessable()).Encode())
		return b, s.op.consent(t, to)
	}
	refused := func(what string, b *http.Client, to string) {
		t.Helper()
		if status, location := visit(t, b, to); status != http.StatusBadRequest || location != "" {
			t.Errorf("%s: %d, and the browser goes to %q", what, status, location)
		}
	}
	_, to := begin()
	refused("in another browser", p.browser(t), to)
	b, to := begin()
	refused("by another issuer", b, strings.Replace(to, url.QueryEscape(s.op.URL), "https%3A%2F%2Fother.example", 1))
	b, to = begin()
	refused("by nobody", b, strings.Replace(to, "iss=", "was=", 1))
	b, to = begin()
	if _, location := visit(t, b, to); !strings.Contains(location, "code=") {
		t.Errorf("as it should be: %q", location)
	}
	refused("twice", b, to)
	b, to = begin()
	s.pass(11 * time.Minute)
	refused("too late", b, to)
	b, to = begin()
	if _, location := visit(t, b, strings.Replace(to, "code=", "code=x", 1)); !strings.Contains(location, "error=access_denied") {
		t.Errorf("a code that the provider does not know: %q", location)
	}
}

// TestRedeemed takes codes to the token endpoint as they should not be.
func TestRedeemed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.page
	other := s.register(t, "other", claviger.Client{Kind: claviger.Public, GrantTypes: []string{"authorization_code"}, RedirectURIs: []string{back}})
	verifier := unguessable()
	code := func() string { return p.logIn(t, p.browser(t), p.asking(verifier)).Get("code") }
	want(t, "by another client", other.token(t, redeeming(code(), verifier)), "invalid_grant")
	want(t, "with another verifier", p.token(t, redeeming(code(), unguessable())), "invalid_grant")
	want(t, "with a short verifier", p.token(t, redeeming(code(), "short")), "invalid_grant")
	form := redeeming(code(), verifier)
	form.Del("redirect_uri")
	want(t, "without the redirect URI", p.token(t, form), "invalid_grant")
	want(t, "with another redirect URI", p.token(t, with(redeeming(code(), verifier), "redirect_uri", "https://shop.example/other")), "invalid_grant")
	want(t, "for another audience", p.token(t, with(redeeming(code(), verifier), "resource", stock)), "invalid_target")
	want(t, "for less", p.token(t, with(redeeming(code(), verifier), "scope", "read")), "")
	late := code()
	s.pass(2 * time.Minute)
	want(t, "too late", p.token(t, redeeming(late, verifier)), "invalid_grant")
	want(t, "no code", p.token(t, redeeming("", verifier)), "invalid_grant")

	bare := p.send(t, broker.TokenPath, p.authenticated(t, redeeming(code(), verifier)), nil)
	want(t, "without a proof", bare, "invalid_dpop_proof")

	twice := code()
	first := p.token(t, redeeming(twice, verifier))
	want(t, "once", first, "")
	want(t, "the session's refresh token", p.token(t, refreshing(first.text("refresh_token"))), "")
	want(t, "twice", p.token(t, redeeming(twice, verifier)), "invalid_grant")
	id := claviger.ID(s.claims(t, first.text("access_token"))["sid"].(string))
	if _, err := s.Keeper.SessionLive(t.Context(), id); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("the session of a code that came twice: %v, want that it has ended", err)
	}
}

func with(form url.Values, name, value string) url.Values {
	form.Set(name, value)
	return form
}

// TestRefresh follows a refresh token through its life.
func TestRefresh(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.page
	thief := newProof(t)
	first := p.opened(t).text("refresh_token")
	want(t, "with another key", p.bound(t, thief, broker.TokenPath, refreshing(first)), "invalid_grant")
	want(t, "without a proof", p.send(t, broker.TokenPath, p.authenticated(t, refreshing(first)), nil), "invalid_dpop_proof")
	want(t, "a changed one", p.token(t, refreshing(first[:len(first)-2]+"AA")), "invalid_grant")
	want(t, "no token", p.token(t, refreshing("x")), "invalid_grant")
	want(t, "for more", p.token(t, with(refreshing(first), "scope", "read write admin")), "invalid_scope")
	a := p.token(t, refreshing(first))
	want(t, "as it should be, after all that", a, "")
	second := a.text("refresh_token")
	if second == "" || second == first {
		t.Fatalf("the next refresh token is %q", second)
	}
	again := p.token(t, refreshing(first))
	want(t, "the same once more, as when the answer got lost", again, "")
	if claims := s.claims(t, again.text("access_token")); claims["cnf"].(map[string]any)["jkt"] != p.proof.Thumbprint() {
		t.Errorf("it is bound to %v", claims["cnf"])
	}
	want(t, "the second", p.token(t, refreshing(second)), "")
	s.pass(11 * time.Second)
	want(t, "the first again, later", p.token(t, refreshing(first)), "invalid_grant")
	want(t, "and with that the session has ended", p.token(t, refreshing(again.text("refresh_token"))), "invalid_grant")

	p.proof = newProof(t)
	idle := p.opened(t).text("refresh_token")
	s.pass(9 * time.Hour)
	want(t, "after a night", p.token(t, refreshing(idle)), "invalid_grant")
}

// TestLogout ends sessions by each way that OAuth has.
func TestLogout(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.page
	shown := func(token string, by *dpop.Signer, scheme string, form url.Values) answer {
		return p.send(t, broker.LogoutPath, form, http.Header{"Authorization": {scheme + " " + token}, "Dpop": {p.prove(t, by, broker.LogoutPath, token)}})
	}
	ended := func(what string, a answer) {
		t.Helper()
		want(t, what, p.token(t, refreshing(a.text("refresh_token"))), "invalid_grant")
		introspected := s.service.bound(t, s.service.proof, broker.IntrospectPath, url.Values{"token": {a.text("access_token")}})
		if introspected.body["active"] != false || len(introspected.body) != 1 {
			t.Errorf("%s: the access token is %v", what, introspected.body)
		}
	}
	a := p.opened(t)
	want(t, "with another key", shown(a.text("access_token"), newProof(t), "DPoP", nil), "invalid_token")
	want(t, "as a bearer", shown(a.text("access_token"), p.proof, "Bearer", nil), "invalid_token")
	want(t, "to a page of others", shown(a.text("access_token"), p.proof, "DPoP", url.Values{"post_logout_redirect_uri": {back}}), "invalid_request")
	want(t, "the session lives", p.token(t, refreshing(a.text("refresh_token"))), "")
	s.pass(6 * time.Minute)  // the access token has expired, and names its session still
	p.token(t, url.Values{}) // for a nonce of now
	gone := shown(a.text("access_token"), p.proof, "DPoP", url.Values{"post_logout_redirect_uri": {"https://shop.example/bye"}, "state": {"x"}})
	if gone.status != http.StatusSeeOther || gone.header.Get("Location") != "https://shop.example/bye?state=x" {
		t.Errorf("logged out: %d, to %q", gone.status, gone.header.Get("Location"))
	}
	ended("logged out", a)

	a = p.opened(t)
	want(t, "a stranger's revocation", s.service.bound(t, s.service.proof, broker.RevokePath, url.Values{"token": {a.text("refresh_token")}}), "invalid_grant")
	sid := s.claims(t, a.text("access_token"))["sid"].(string)
	want(t, "an invented token of the session", p.send(t, broker.RevokePath, p.authenticated(t, url.Values{"token": {sid + "." + unguessable()}}), nil), "")
	want(t, "the session lives", p.token(t, refreshing(a.text("refresh_token"))), "")
	a = p.opened(t)
	want(t, "revoke", p.send(t, broker.RevokePath, p.authenticated(t, url.Values{"token": {a.text("refresh_token")}}), nil), "")
	ended("revoked", a)
	want(t, "revoke once more", p.send(t, broker.RevokePath, p.authenticated(t, url.Values{"token": {a.text("refresh_token")}}), nil), "")
	suspended := p.opened(t)
	id := claviger.ID(s.claims(t, suspended.text("access_token"))["sid"].(string))
	if err := s.Keeper.SuspendSession(t.Context(), s.operator, id, "a test"); err != nil {
		t.Fatal(err)
	}
	want(t, "revoke of a suspended session", p.send(t, broker.RevokePath, p.authenticated(t, url.Values{"token": {suspended.text("refresh_token")}}), nil), "")
	if got, err := s.Keeper.Session(t.Context(), s.operator, id); err != nil || got.State != claviger.SessionEnded {
		t.Errorf("a suspended session whose refresh token was revoked is %s, %v", got.State, err)
	}
	want(t, "revoke what nobody knows", p.send(t, broker.RevokePath, p.authenticated(t, url.Values{"token": {"x"}}), nil), "")

	a = p.opened(t)
	want(t, "revoke an access token", p.send(t, broker.RevokePath, p.authenticated(t, url.Values{"token": {a.text("access_token")}}), nil), "")
	if i := s.service.bound(t, s.service.proof, broker.IntrospectPath, url.Values{"token": {a.text("access_token")}}); i.body["active"] != false {
		t.Errorf("a revoked access token is %v", i.body)
	}
	want(t, "and its session lives", p.token(t, refreshing(a.text("refresh_token"))), "")
}

// TestBackchannel has the provider say that a session has ended.
func TestBackchannel(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.page
	logout := func(changes map[string]any) answer {
		now := s.now().Unix()
		claims := map[string]any{"iss": s.op.URL, "aud": "claviger", "iat": now, "exp": now + 60, "jti": claviger.NewID(s.now()), "sid": "sid-alice",
			"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}}
		for name, value := range changes {
			claims[name] = value
		}
		return p.send(t, broker.BackchannelPath, url.Values{"logout_token": {sign(t, s.op.key, "logout+jwt", claims)}}, nil)
	}
	first, second := p.opened(t), p.opened(t)
	s.op.person = "bob"
	bobs := p.opened(t)
	want(t, "with a nonce", logout(map[string]any{"nonce": "n"}), "invalid_request")
	want(t, "another session", logout(map[string]any{"sid": "other"}), "")
	want(t, "alice is here still", p.token(t, refreshing(first.text("refresh_token"))), "")
	want(t, "alice's", logout(map[string]any{"jti": "one"}), "")
	want(t, "the same again", logout(map[string]any{"jti": "one"}), "invalid_request")
	for _, a := range []answer{first, second} {
		want(t, "alice is gone", p.token(t, refreshing(a.text("refresh_token"))), "invalid_grant")
	}
	want(t, "bob is here", p.token(t, refreshing(bobs.text("refresh_token"))), "")
	bobs = p.opened(t)
	want(t, "bob's, by name", logout(map[string]any{"sid": "", "sub": "bob"}), "")
	want(t, "bob is gone", p.token(t, refreshing(bobs.text("refresh_token"))), "invalid_grant")
	list, _, err := s.Keeper.Sessions(t.Context(), s.operator, keeper.SessionQuery{Client: p.client.ID})
	if err != nil || len(list) != 0 {
		t.Errorf("live sessions: %v, %v", list, err)
	}
}
