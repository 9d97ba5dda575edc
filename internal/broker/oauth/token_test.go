package oauth_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/broker"
	"claviger.dev/internal/keeper"
)

func s256(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func credentials(more ...string) url.Values {
	form := url.Values{"grant_type": {"client_credentials"}, "resource": {api}}
	for i := 0; i+1 < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return form
}

// TestClientCredentials gives tokens that are bound, whichever way the client
// authenticates.
func TestClientCredentials(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.service
	a := p.token(t, credentials("scope", "read"))
	want(t, "by private_key_jwt", a, "")
	claims := s.claims(t, a.text("access_token"))
	got := maps.Clone(claims)
	for _, name := range []string{"iat", "exp", "jti"} {
		if claims[name] == nil {
			t.Errorf("the token has no %s", name)
		}
		delete(got, name)
	}
	id := string(p.client.ID)
	if diff := cmp.Diff(map[string]any{"iss": s.issuer, "sub": id, "client_id": id, "aud": api, "scope": "read", "cnf": map[string]any{"jkt": p.proof.Thumbprint()}}, got); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	if life := claims["exp"].(float64) - claims["iat"].(float64); life != 300 || a.body["expires_in"] != 300.0 && a.body["expires_in"] != 299.0 {
		t.Errorf("it lives %v s, and the answer says %v", life, a.body["expires_in"])
	}
	if a.text("token_type") != "DPoP" || a.text("scope") != "read" || a.text("refresh_token") != "" || a.header.Get("Cache-Control") != "no-store" || a.header.Get("DPoP-Nonce") == "" {
		t.Errorf("answer %v %v", a.body, a.header)
	}

	plain := p.http
	p.http = s.Remote(t, p.cert).HTTP
	form := credentials("client_id", string(p.client.Name))
	a = p.send(t, broker.TokenPath, form, nil)
	want(t, "by certificate, without a proof", a, "")
	if cnf := s.claims(t, a.text("access_token"))["cnf"].(map[string]any); cnf["x5t#S256"] != sha256Text(p.cert.Certificate[0]) || len(cnf) != 1 || a.text("token_type") != "Bearer" {
		t.Errorf("it is bound to %v, as %q", cnf, a.text("token_type"))
	}
	a = p.send(t, broker.TokenPath, form, http.Header{"Dpop": {p.prove(t, p.proof, broker.TokenPath, "")}})
	want(t, "by certificate, with a proof", a, "")
	if cnf := s.claims(t, a.text("access_token"))["cnf"].(map[string]any); cnf["jkt"] != p.proof.Thumbprint() || len(cnf) != 1 {
		t.Errorf("it is bound to %v", cnf)
	}
	other, _ := s.Enrol(t, "stranger")
	p.http = s.Remote(t, other).HTTP
	want(t, "by somebody else's certificate", p.send(t, broker.TokenPath, form, nil), "invalid_client")
	p.http = plain
	want(t, "without authentication", p.send(t, broker.TokenPath, form, http.Header{"Dpop": {p.prove(t, p.proof, broker.TokenPath, "")}}), "invalid_client")
}

func sha256Text(b []byte) string { return s256(string(b)) }

// TestAsked goes through what a client may ask for.
func TestAsked(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, c := range []struct {
		name string
		form url.Values
		code string
	}{
		{"two audiences", url.Values{"grant_type": {"client_credentials"}, "resource": {api, stock}}, ""},
		{"as audience", url.Values{"grant_type": {"client_credentials"}, "audience": {api}}, ""},
		{"no audience", url.Values{"grant_type": {"client_credentials"}}, "invalid_target"},
		{"another audience", credentials("resource", "https://other.example/"), "invalid_target"},
		{"a relative resource", credentials("resource", "/orders"), "invalid_target"},
		{"a fragment", credentials("resource", api+"#x"), "invalid_target"},
		{"a pattern", credentials("resource", api+"*"), "invalid_target"},
		{"another scope", credentials("scope", "read admin"), "invalid_scope"},
		{"no grant type", url.Values{"resource": {api}}, "unsupported_grant_type"},
		{"a password", credentials("grant_type", "password"), "unsupported_grant_type"},
		{"a grant type of others", credentials("grant_type", "authorization_code"), "unauthorized_client"},
		{"a client secret", credentials("client_secret", "x"), "invalid_client"},
		{"scope twice", url.Values{"grant_type": {"client_credentials"}, "resource": {api}, "scope": {"read", "write"}}, "invalid_request"},
		{"a control character", credentials("scope", "read\x00"), "invalid_request"},
	} {
		want(t, c.name, s.service.token(t, c.form), c.code)
	}
	if _, err := s.Keeper.DisableClient(t.Context(), s.operator, string(s.service.client.ID), "test"); err != nil {
		t.Fatal(err)
	}
	want(t, "a disabled client", s.service.token(t, credentials()), "invalid_client")
	other := s.register(t, "other", claviger.Client{Kind: claviger.Confidential, GrantTypes: []string{"client_credentials"}})
	want(t, "a client", other.token(t, credentials()), "")
	wide := other.client
	wide.Audiences = append(wide.Audiences, api+"*")
	if _, err := s.Keeper.UpdateClient(t.Context(), s.operator, wide); err != nil {
		t.Fatal(err)
	}
	want(t, "an audience of a pattern", other.token(t, credentials("resource", api+strings.Repeat("a", 100))), "")
	want(t, "an audience that no session can have", other.token(t, credentials("resource", api+strings.Repeat("a", 600))), "invalid_target")
	if _, err := s.Keeper.RevokePrincipal(t.Context(), s.operator, other.principal.Id, "test"); err != nil {
		t.Fatal(err)
	}
	if a := other.token(t, credentials()); a.status < 400 {
		t.Errorf("of a revoked principal: %v", a)
	}
}

// TestAssertions goes through the rules of a client assertion (RFC 7523, 3;
// 7523bis: aud is the issuer alone).
func TestAssertions(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.service
	p.token(t, credentials()) // has a nonce now
	now := s.now()
	for _, c := range []struct {
		name    string
		typ     string
		changes map[string]any
		good    bool
	}{
		{"as it should be", "", nil, true},
		{"with its typ", "client-authentication+jwt", nil, true},
		{"aud a list of one", "", map[string]any{"aud": []string{s.issuer}}, true},
		{"aud the token endpoint", "", map[string]any{"aud": s.issuer + broker.TokenPath}, false},
		{"aud several", "", map[string]any{"aud": []string{s.issuer, api}}, false},
		{"aud another server", "", map[string]any{"aud": "https://other.example"}, false},
		{"aud with a slash", "", map[string]any{"aud": s.issuer + "/"}, false},
		{"no aud", "", map[string]any{"aud": nil}, false},
		{"another iss", "", map[string]any{"iss": "other"}, false},
		{"no sub", "", map[string]any{"sub": nil}, false},
		{"no jti", "", map[string]any{"jti": nil}, false},
		{"jti of 300 bytes", "", map[string]any{"jti": strings.Repeat("j", 300)}, false},
		{"no exp", "", map[string]any{"exp": nil}, false},
		{"ended", "", map[string]any{"exp": now.Unix() - 60}, false},
		{"good for an hour", "", map[string]any{"exp": now.Unix() + 3600}, false},
		{"not yet", "", map[string]any{"nbf": now.Unix() + 120}, false},
		{"an access token", "at+jwt", nil, false},
		{"a proof", "dpop+jwt", nil, false},
	} {
		form := p.authenticated(t, credentials())
		claims := p.assertion()
		for name, value := range c.changes {
			if claims[name] = value; value == nil {
				delete(claims, name)
			}
		}
		form.Set("client_assertion", sign(t, p.key, c.typ, claims))
		code := "invalid_client"
		if c.good {
			code = ""
		}
		want(t, c.name, p.send(t, broker.TokenPath, form, http.Header{"Dpop": {p.prove(t, p.proof, broker.TokenPath, "")}}), code)
	}
	post := func(assertion string) answer {
		form := p.authenticated(t, credentials())
		form.Set("client_assertion", assertion)
		return p.send(t, broker.TokenPath, form, http.Header{"Dpop": {p.prove(t, p.proof, broker.TokenPath, "")}})
	}
	want(t, "by another key", post(sign(t, newKey(t), "", p.assertion())), "invalid_client")
	once := sign(t, p.key, "", p.assertion())
	want(t, "once", post(once), "")
	want(t, "twice", post(once), "invalid_client")
	want(t, "no JWT", post("a.b"), "invalid_client")
	want(t, "without a signature", post(encoded(`{"alg":"none"}`)+"."+encoded(`{}`)+"."), "invalid_client")
	want(t, "by a MAC", post(encoded(`{"alg":"HS256"}`)+"."+encoded(`{}`)+".AA"), "invalid_client")
	form := p.authenticated(t, credentials())
	form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer")
	want(t, "another type", p.send(t, broker.TokenPath, form, http.Header{"Dpop": {p.prove(t, p.proof, broker.TokenPath, "")}}), "invalid_client")
	form = p.authenticated(t, credentials())
	form.Set("client_id", string(s.page.client.ID))
	want(t, "in another's name", p.send(t, broker.TokenPath, form, http.Header{"Dpop": {p.prove(t, p.proof, broker.TokenPath, "")}}), "invalid_client")
}

func encoded(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// forger makes proofs that no library makes.
type forger struct {
	*party
	key    *ecdsa.PrivateKey
	header map[string]any // as it should be
}

func newForger(t *testing.T, p *party) forger {
	t.Helper()
	p.token(t, credentials()) // has a nonce now
	f := forger{party: p, key: newKey(t)}
	signer, err := dpop.NewSigner(f.key, "")
	if err != nil {
		t.Fatal(err)
	}
	plain, err := signer.Proof(dpop.Claims{Method: "POST", URL: p.site.issuer + broker.TokenPath})
	if err != nil {
		t.Fatal(err)
	}
	head, err := base64.RawURLEncoding.DecodeString(strings.Split(plain, ".")[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(head, &f.header); err != nil {
		t.Fatal(err)
	}
	return f
}

// forge makes a proof with some members of its header and claims changed; nil
// takes one out.
func (f *forger) forge(t *testing.T, header, claims map[string]any) string {
	t.Helper()
	now := f.site.now()
	return signRaw(t, f.key, changed(f.header, header), changed(map[string]any{"jti": claviger.NewID(now), "htm": "POST",
		"htu": f.site.issuer + broker.TokenPath, "iat": now.Unix(), "nonce": f.nonce}, claims))
}

func changed(m, changes map[string]any) map[string]any {
	out := maps.Clone(m)
	for name, value := range changes {
		if out[name] = value; value == nil {
			delete(out, name)
		}
	}
	return out
}

// post asks for a token with these proofs.
func (f *forger) post(t *testing.T, proofs ...string) answer {
	t.Helper()
	return f.send(t, broker.TokenPath, f.authenticated(t, credentials()), http.Header{"Dpop": proofs})
}

// TestProofs is the negative list of RFC 9449, and what it makes of users'
// complaints, at the token endpoint. What must pass stands in it too.
func TestProofs(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	f := newForger(t, s.service)
	scalar, err := f.key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	private := changed(f.header["jwk"].(map[string]any), map[string]any{"d": base64.RawURLEncoding.EncodeToString(scalar)})
	port := s.issuer[strings.LastIndex(s.issuer, ":"):]
	for _, c := range []struct {
		name   string
		header map[string]any
		claims map[string]any
		code   string
	}{
		{"as it should be", nil, nil, ""},
		{"upper-case host", nil, map[string]any{"htu": "HTTPS://LOCALHOST" + port + broker.TokenPath}, ""},
		{"a query", nil, map[string]any{"htu": s.issuer + broker.TokenPath + "?a=b"}, ""},
		{"a fragment", nil, map[string]any{"htu": s.issuer + broker.TokenPath + "#f"}, ""},
		{"dot segments", nil, map[string]any{"htu": s.issuer + "/oauth/./token"}, ""},
		{"no typ", map[string]any{"typ": nil}, nil, "invalid_dpop_proof"},
		{"wrong typ", map[string]any{"typ": "JWT"}, nil, "invalid_dpop_proof"},
		{"no alg", map[string]any{"alg": nil}, nil, "invalid_dpop_proof"},
		{"alg none", map[string]any{"alg": "none"}, nil, "invalid_dpop_proof"},
		{"alg a MAC", map[string]any{"alg": "HS256"}, nil, "invalid_dpop_proof"},
		{"no jwk", map[string]any{"jwk": nil}, nil, "invalid_dpop_proof"},
		{"a private jwk", map[string]any{"jwk": private}, nil, "invalid_dpop_proof"},
		{"no jti", nil, map[string]any{"jti": nil}, "invalid_dpop_proof"},
		{"no htm", nil, map[string]any{"htm": nil}, "invalid_dpop_proof"},
		{"no htu", nil, map[string]any{"htu": nil}, "invalid_dpop_proof"},
		{"no iat", nil, map[string]any{"iat": nil}, "invalid_dpop_proof"},
		{"no nonce", nil, map[string]any{"nonce": nil}, "use_dpop_nonce"},
		{"another nonce", nil, map[string]any{"nonce": "AAAAAAAAAAAAAAAAAAAAAA"}, "use_dpop_nonce"},
		{"wrong htm", nil, map[string]any{"htm": "GET"}, "invalid_dpop_proof"},
		{"wrong path", nil, map[string]any{"htu": s.issuer + broker.PARPath}, "invalid_dpop_proof"},
		{"wrong host", nil, map[string]any{"htu": "https://other.example" + broker.TokenPath}, "invalid_dpop_proof"},
		{"wrong scheme", nil, map[string]any{"htu": strings.Replace(s.issuer, "https", "http", 1) + broker.TokenPath}, "invalid_dpop_proof"},
		{"an hour old", nil, map[string]any{"iat": s.now().Unix() - 3600}, "invalid_dpop_proof"},
		{"an hour ahead", nil, map[string]any{"iat": s.now().Unix() + 3600}, "invalid_dpop_proof"},
		{"jti of 300 bytes", nil, map[string]any{"jti": strings.Repeat("j", 300)}, "invalid_dpop_proof"},
	} {
		a := f.post(t, f.forge(t, c.header, c.claims))
		want(t, c.name, a, c.code)
		if c.code == "use_dpop_nonce" && (a.status != 400 || a.header.Get("DPoP-Nonce") == "") {
			t.Errorf("%s: %d %v, want 400 with a nonce", c.name, a.status, a.header)
		}
	}
}

// TestProofsTogether has proofs that are wrong for what else is there.
func TestProofsTogether(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	f := newForger(t, s.service)
	want(t, "two fields", f.post(t, f.forge(t, nil, nil), f.forge(t, nil, nil)), "invalid_dpop_proof")
	want(t, "no field", f.post(t), "invalid_dpop_proof")
	want(t, "no JWT", f.post(t, "proof"), "invalid_dpop_proof")
	want(t, "five parts", f.post(t, "a.b.c.d.e"), "invalid_dpop_proof")
	once := f.forge(t, nil, nil)
	want(t, "once", f.post(t, once), "")
	want(t, "twice", f.post(t, once), "invalid_dpop_proof")
	parts := strings.Split(f.forge(t, nil, nil), ".")
	other := signRaw(t, newKey(t), f.header, map[string]any{})
	want(t, "another's signature", f.post(t, parts[0]+"."+parts[1]+"."+strings.Split(other, ".")[2]), "invalid_dpop_proof")
	double := encoded(`{"typ":"dpop+jwt","typ":"dpop+jwt","alg":"ES256"}`)
	want(t, "a member twice", f.post(t, double+"."+parts[1]+"."+parts[2]), "invalid_dpop_proof")
	if a := f.post(t, f.forge(t, nil, map[string]any{"jti": strings.Repeat("j", 1<<20)})); a.status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a jti of 1 MB: %d, want 431", a.status)
	}
	stale := f.nonce
	s.pass(10 * time.Minute)
	f.nonce = stale
	a := f.post(t, f.forge(t, nil, nil))
	want(t, "a stale nonce", a, "use_dpop_nonce")
	f.nonce = a.header.Get("DPoP-Nonce")
	want(t, "the newest", f.post(t, f.forge(t, nil, nil)), "")
}

// TestDefaultPort has a client write the port of https, which is none.
func TestDefaultPort(t *testing.T) {
	t.Parallel()
	s := newSiteAt(t, "https://localhost")
	p := s.service
	want(t, "without the port", p.token(t, credentials()), "")
	p.proof.Now = s.now
	proof, err := p.proof.Proof(dpop.Claims{Method: "POST", URL: "https://LocalHost:443" + broker.TokenPath, Nonce: p.nonce})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "with the port", p.send(t, broker.TokenPath, p.authenticated(t, credentials()), http.Header{"Dpop": {proof}}), "")
}

// TestSharedReplays has servers of one store take a proof once.
func TestSharedReplays(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	one, two := broker.SharedReplays{Door: s.Keeper}, broker.SharedReplays{Door: s.Keeper}
	burn := func(r broker.SharedReplays, thumbprint, jti string, want bool) {
		t.Helper()
		if fresh, err := r.Burn(t.Context(), thumbprint, jti, s.now().Add(time.Minute)); err != nil || fresh != want {
			t.Errorf("%s of %s: %v %v, want %v", jti, thumbprint, fresh, err, want)
		}
	}
	burn(one, "a", "1", true)
	burn(two, "a", "1", false)
	burn(two, "b", "1", true)
	burn(one, "a", "2", true)
	s.pass(2 * time.Minute)
	burn(two, "a", "1", true)
}

// signRaw makes a JWT of ES256 with any header.
func signRaw(t *testing.T, key *ecdsa.PrivateKey, header, claims map[string]any) string {
	t.Helper()
	h, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	c, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	input := base64.RawURLEncoding.EncodeToString(h) + "." + base64.RawURLEncoding.EncodeToString(c)
	sum := sha256.Sum256([]byte(input))
	r, v, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...))
}

// TestRefusalsAreRecorded has a stranger and a client refused by the rules of
// OAuth, which the door never hears of.
func TestRefusalsAreRecorded(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	want(t, "no client", s.page.send(t, broker.TokenPath, url.Values{"grant_type": {"client_credentials"}}, nil), dpop.InvalidProof)
	want(t, "no such code", s.page.bound(t, s.page.proof, broker.TokenPath, url.Values{"grant_type": {"authorization_code"}, "code": {"none"},
		"client_id": {string(s.page.client.ID)}, "redirect_uri": {"https://shop.example/back"}, "code_verifier": {strings.Repeat("v", 43)}}), broker.InvalidGrant)
	if err := s.Keeper.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	err := s.Keeper.Query(t.Context(), s.operator, keeper.AuditQuery{Query: audit.Query{Action: "token.refuse"}}, func(l audit.Line) error {
		got[l.Record.Reason] = l.Record.Detail["client"]
		return nil
	})
	if diff := cmp.Diff(map[string]string{dpop.InvalidProof: "", broker.InvalidGrant: "prod/shop/page"}, got); diff != "" || err != nil {
		t.Errorf("records of refusals (-want +got): %v\n%s", err, diff)
	}
}
