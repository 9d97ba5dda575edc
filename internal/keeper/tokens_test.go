package keeper_test

import (
	"crypto/sha256"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

func TestRefreshTokensAreUsedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	s := w.session(by, keeper.NewSession{Client: "prod/shop/web"})
	first, late := sha256.Sum256([]byte("first")), sha256.Sum256([]byte("late"))
	for hash, ends := range map[[32]byte]time.Time{first: w.now().Add(time.Hour), late: w.now().Add(-time.Second)} {
		if err := w.PutRefresh(t.Context(), store.Refresh{Hash: hash, Session: s.ID, Ends: ends}); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := w.TakeRefresh(t.Context(), first); err != nil || got.ID != s.ID {
		t.Fatalf("taken: %+v, %v", got, err)
	}
	_, err := w.TakeRefresh(t.Context(), late)
	wantCode(t, "expired", err, claviger.Denied)
	_, err = w.TakeRefresh(t.Context(), [32]byte{9})
	wantCode(t, "unknown", err, claviger.NotFound)
	w.later(5 * time.Second)
	if _, err := w.TakeRefresh(t.Context(), first); err != nil {
		t.Errorf("once more, as when its answer got lost: %v", err)
	}
	w.later(6 * time.Second)
	_, err = w.TakeRefresh(t.Context(), first)
	wantCode(t, "used again later", err, claviger.Denied)
	if got, err := w.Session(t.Context(), by, s.ID); err != nil || got.State != claviger.SessionEnded || got.EndReason != "refresh-reuse" {
		t.Errorf("%+v, %v", got, err)
	}
	wantCode(t, "of a session that ended", w.PutRefresh(t.Context(), store.Refresh{Hash: [32]byte{8}, Session: s.ID, Ends: w.now()}), claviger.Conflict)

	assertion := store.OneTime{Kind: keeper.OneTimeAssertion, Hash: first, Ends: w.now().Add(time.Minute)}
	if err := w.PutOneTime(t.Context(), assertion); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "replay", w.PutOneTime(t.Context(), assertion), claviger.Conflict)
	if _, err := w.TakeOneTime(t.Context(), assertion.Kind, first); err != nil {
		t.Error(err)
	}
	_, err = w.TakeOneTime(t.Context(), assertion.Kind, first)
	wantCode(t, "taken twice", err, claviger.NotFound)
	for range 2 { // the second is known from the first
		if got, err := w.TokenRevoked(t.Context(), "jti-1"); got || err != nil {
			t.Errorf("before: %v, %v", got, err)
		}
	}
	if err := w.RevokeToken(t.Context(), by, "jti-1", w.now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for jti, want := range map[string]bool{"jti-1": true, "jti-2": false} {
		if got, err := w.TokenRevoked(t.Context(), jti); got != want || err != nil {
			t.Errorf("%s: %v, %v", jti, got, err)
		}
	}
}

// claims are those of a token that IssueToken takes.
func claims(w *world, c claviger.Client, s claviger.Session) map[string]any {
	now := w.now().Unix()
	m := map[string]any{"iss": "https://claviger.example", "sub": "ann", "aud": api, "iat": now, "exp": now + 300, "jti": string(claviger.NewID(w.now())),
		"client_id": string(c.ID), "scope": "read", "cnf": map[string]string{"jkt": s.JKT}}
	if s.ID != "" {
		m["sid"] = s.ID
	}
	return m
}

// malformedTokens are requests whose claims the door does not sign.
func malformedTokens(w *world) map[string]func(map[string]any, *keeper.TokenRequest) {
	return map[string]func(map[string]any, *keeper.TokenRequest){
		"unbound":               func(m map[string]any, _ *keeper.TokenRequest) { delete(m, "cnf") },
		"bound to another key":  func(m map[string]any, _ *keeper.TokenRequest) { m["cnf"] = map[string]string{"jkt": "x"} },
		"no jti":                func(m map[string]any, _ *keeper.TokenRequest) { delete(m, "jti") },
		"another audience":      func(m map[string]any, _ *keeper.TokenRequest) { m["aud"] = "https://b.example/" },
		"more audiences":        func(m map[string]any, _ *keeper.TokenRequest) { m["aud"] = []string{api, "https://b.example/"} },
		"another scope":         func(m map[string]any, _ *keeper.TokenRequest) { m["scope"] = "read write" },
		"another session":       func(m map[string]any, _ *keeper.TokenRequest) { m["sid"] = "x" },
		"no session":            func(m map[string]any, _ *keeper.TokenRequest) { delete(m, "sid") },
		"another client":        func(m map[string]any, _ *keeper.TokenRequest) { m["client_id"] = "x" },
		"too long":              func(m map[string]any, _ *keeper.TokenRequest) { m["exp"] = w.now().Unix() + 900 },
		"issued in the future":  func(m map[string]any, _ *keeper.TokenRequest) { m["iat"] = w.now().Unix() + 90 },
		"over before it begins": func(m map[string]any, _ *keeper.TokenRequest) { m["exp"] = w.now().Unix() - 1 },
		"not an object":         func(_ map[string]any, req *keeper.TokenRequest) { req.Claims = []byte(`[]`) },
		"not JSON":              func(_ map[string]any, req *keeper.TokenRequest) { req.Claims = []byte(`{`) },
	}
}

func TestIssueToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	c := w.client(by, "prod/shop/web", claviger.ClientLimits{})
	s := w.session(by, keeper.NewSession{Client: "prod/shop/web", Scopes: []string{"read"}})
	issue := func(edit func(map[string]any, *keeper.TokenRequest)) (keeper.TokenIssued, error) {
		m := claims(w, c, s)
		req := keeper.TokenRequest{Client: string(c.Name), Session: s.ID, Subject: s.Subject, Audiences: []string{api}, Scopes: []string{"read"}}
		if edit != nil {
			edit(m, &req)
		}
		if req.Claims == nil {
			req.Claims, _ = json.Marshal(m)
		}
		return w.IssueToken(t.Context(), by, req)
	}
	var issued keeper.TokenIssued
	records := w.since(func() {
		var err error
		if issued, err = issue(nil); err != nil {
			t.Fatal(err)
		}
	})
	if last := records[len(records)-1]; last.Action != "token.issue" || last.Outcome != audit.Allowed || last.Detail["jti"] != issued.ID || last.Detail["session"] != string(s.ID) {
		t.Errorf("record %+v", last)
	}
	set, err := w.TokenKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	verifyJWS(t, set, issued.Token, "at+jwt")
	for name, edit := range malformedTokens(w) {

		t.Run(name, func(t *testing.T) {
			_, err := issue(edit)
			wantCode(t, name, err, claviger.Invalid)
		})
	}
	for name, edit := range map[string]func(map[string]any, *keeper.TokenRequest){
		"audience of no registration": func(m map[string]any, req *keeper.TokenRequest) {
			m["aud"], req.Audiences = "https://b.example/", []string{"https://b.example/"}
		},
		"scope of the client alone": func(m map[string]any, req *keeper.TokenRequest) { m["scope"], req.Scopes = "write", []string{"write"} },
	} {
		_, err := issue(edit)
		wantCode(t, name, err, claviger.Denied)
	}
	_, err = issue(func(_ map[string]any, req *keeper.TokenRequest) {
		req.Claims = []byte(`{"x":"` + strings.Repeat("x", keeper.MaxToBeSigned) + `"}`)
	})
	wantCode(t, "too large", err, claviger.TooLarge)
	if err := w.EndSession(t.Context(), by, s.ID, keeper.End{Reason: keeper.EndLogout}); err != nil {
		t.Fatal(err)
	}
	_, err = issue(nil)
	wantCode(t, "of a session that ended", err, claviger.Denied)

	event, err := w.SignEvent(t.Context(), keeper.LogoutToken, []byte(`{"iss":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	verifyJWS(t, set, event, "logout+jwt")
	_, err = w.SignEvent(t.Context(), keeper.AccessToken, []byte(`{}`))
	wantCode(t, "an access token as an event", err, claviger.Invalid)
	mac, err := w.NonceMAC(t.Context(), []byte("span"))
	if err != nil || len(mac) != 32 {
		t.Errorf("MAC of %d bytes, %v", len(mac), err)
	}
}

// TestRS256Token issues a token for a client that asks for RSA.
func TestRS256Token(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	c := w.client(by, "prod/shop/web", claviger.ClientLimits{})
	c.TokenAlgorithm = "rsa-2048-pkcs1-sha256"
	c, err := w.UpdateClient(t.Context(), w.op, c)
	if err != nil {
		t.Fatal(err)
	}
	m := claims(w, c, claviger.Session{JKT: "x"})
	text, _ := json.Marshal(m)
	issued, err := w.IssueToken(t.Context(), by, keeper.TokenRequest{Client: string(c.ID), Audiences: []string{api}, Scopes: []string{"read"}, Claims: text})
	if err != nil {
		t.Fatal(err)
	}
	set, err := w.TokenKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	verifyJWS(t, set, issued.Token, "at+jwt")
}

// verifyJWS checks a compact JWS by a library that is not ours.
func verifyJWS(t *testing.T, set []byte, text, typ string) {
	t.Helper()
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(set, &keys); err != nil {
		t.Fatal(err)
	}
	signed, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	if got := signed.Signatures[0].Header.ExtraHeaders[jose.HeaderType]; got != typ {
		t.Errorf("typ is %v, want %s", got, typ)
	}
	if _, err := signed.Verify(keys); err != nil {
		t.Errorf("the token does not verify by %s: %v", set, err)
	}
}
