package oauth_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker"
	"claviger.dev/internal/broker/oauth"
	"claviger.dev/internal/broker/upstream"
	"claviger.dev/internal/store"
)

// nobody is a door at which one client is known and nothing else. It has none
// of the methods that issue, open or end: a call of one ends the test.
type nobody struct {
	broker.Door
	client claviger.Client
	keys   []byte
}

func (nobody) TokenRefused(context.Context, claviger.Principal, claviger.Name, string) error {
	return nil
}

func (n nobody) Client(_ context.Context, ref string) (claviger.Client, error) {
	if ref != "known" {
		return claviger.Client{}, claviger.NotFound
	}
	return n.client, nil
}
func (n nobody) ClientLive(ctx context.Context, ref string) (claviger.Client, error) {
	return n.Client(ctx, ref)
}
func (n nobody) TokenKeys(context.Context) ([]byte, error)          { return n.keys, nil }
func (n nobody) TokenRevoked(context.Context, string) (bool, error) { return false, nil }
func (n nobody) PutOneTime(context.Context, store.OneTime) error    { return nil }
func (n nobody) TakeRefresh(context.Context, [32]byte) (claviger.Session, error) {
	return claviger.Session{}, claviger.NotFound
}
func (n nobody) SessionLive(context.Context, claviger.ID) (claviger.Session, error) {
	return claviger.Session{}, claviger.NotFound
}
func (n nobody) TakeOneTime(context.Context, string, [32]byte) (store.OneTime, error) {
	return store.OneTime{}, claviger.NotFound
}

// FuzzEndpoints sends any form with any header fields to each endpoint:
// nothing panics, nothing is an error of the server, and nothing is issued.
func FuzzEndpoints(f *testing.F) {
	const issuer = "https://auth.example.org"
	nonces := &dpop.Nonces{MAC: dpop.NonceKey([]byte(strings.Repeat("k", 32)))}
	issuers, err := upstream.New(nil, issuer, time.Now)
	if err != nil {
		f.Fatal(err)
	}
	h := &oauth.Handler{Log: slog.New(slog.DiscardHandler), Spent: func(claviger.Facts) bool { return false }, Charge: func(claviger.Facts) {},
		Identify: func(*http.Request) broker.Request { return broker.Request{} },
		Broker: &broker.Broker{Config: broker.Config{Issuer: issuer}, Issuers: issuers, Log: slog.New(slog.DiscardHandler),
			Proofs: &dpop.Verifier{Nonces: nonces, Replays: &dpop.Memory{}},
			Door: nobody{keys: []byte(fuzzSet), client: claviger.Client{ID: "known", Name: "prod/shop/known", Kind: claviger.Confidential, JWKS: []byte(fuzzSet),
				GrantTypes: []string{"client_credentials", "authorization_code", "refresh_token"}, RedirectURIs: []string{back}, Audiences: []string{api}}}}}
	mux := h.Mux()
	paths := []string{broker.TokenPath, broker.PARPath, broker.IntrospectPath, broker.RevokePath, broker.LogoutPath, broker.BackchannelPath, broker.AuthorizePath}
	f.Add(uint8(0), "grant_type=client_credentials&client_id=known&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion=a.b.c", "a.b.c", "")
	f.Add(uint8(2), "client_id=known&token="+encoded(`{"alg":"ES256","typ":"at+jwt"}`)+"."+encoded(`{"iss":"https://auth.example.org"}`)+".AA", "", "")
	f.Add(uint8(4), "post_logout_redirect_uri=x&state=y", "a.b.c", "DPoP a.b.c")
	f.Add(uint8(5), "logout_token=a.b.c", "", "Basic YTpi")
	f.Add(uint8(6), "client_id=known&response_type=code&code_challenge_method=S256", "", "")
	f.Fuzz(func(t *testing.T, path uint8, form, proof, authorization string) {
		r := httptest.NewRequest(http.MethodPost, paths[int(path)%len(paths)], strings.NewReader(form))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for name, value := range map[string]string{"DPoP": proof, "Authorization": authorization} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		w := httptest.NewRecorder()
		mux[r.URL.Path].ServeHTTP(w, r)
		if w.Code >= http.StatusInternalServerError || w.Code == http.StatusOK || w.Code == http.StatusCreated || w.Code == http.StatusNoContent {
			t.Errorf("%s answers %d: %s", r.URL.Path, w.Code, w.Body)
		}
		if w.Code >= http.StatusBadRequest && r.URL.Path != broker.AuthorizePath {
			var body map[string]string
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body["error"] == "" || strings.ContainsAny(body["error_description"], "\"\\\n") {
				t.Errorf("%s answers %s (%v)", r.URL.Path, w.Body, err)
			}
		}
	})
}

// fuzzSet is the key of RFC 7515, A.3, whose private half everybody has.
const fuzzSet = `{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`
