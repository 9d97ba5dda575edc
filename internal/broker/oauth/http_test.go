package oauth_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"claviger.dev/internal/broker"
)

func (p *party) request(t *testing.T, method, path, body string, header map[string]string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, p.site.issuer+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	return do(t, p.http, r)
}

// TestMetadata compares the document with what RFC 8414 and the others ask for.
func TestMetadata(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.page.request(t, http.MethodGet, broker.MetadataPath, "", nil)
	at := func(path string) string { return s.issuer + path }
	want := map[string]any{
		"issuer": s.issuer, "jwks_uri": at(broker.KeysPath), "token_endpoint": at(broker.TokenPath), "authorization_endpoint": at(broker.AuthorizePath),
		"pushed_authorization_request_endpoint": at(broker.PARPath), "introspection_endpoint": at(broker.IntrospectPath),
		"revocation_endpoint": at(broker.RevokePath), "end_session_endpoint": at(broker.LogoutPath),
		"code_challenge_methods_supported": []any{"S256"}, "response_types_supported": []any{"code"},
		"authorization_response_iss_parameter_supported": true, "tls_client_certificate_bound_access_tokens": true, "dpop_bound_access_tokens_required": true,
		"dpop_signing_alg_values_supported":     []any{"ES256", "Ed25519", "EdDSA", "PS256", "RS256"},
		"token_endpoint_auth_methods_supported": []any{"private_key_jwt", "tls_client_auth", "none"},
	}
	for name, value := range want {
		if diff := cmp.Diff(value, a.body[name]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if a.header.Get("Access-Control-Allow-Origin") != "*" || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("header %v", a.header)
	}
	keys := s.page.request(t, http.MethodGet, broker.KeysPath, "", nil)
	doc, err := json.Marshal(keys.body)
	if err != nil || len(keys.body["keys"].([]any)) != 2 || strings.Contains(string(doc), `"d"`) {
		t.Errorf("keys: %s %v", doc, err)
	}
	if a := s.page.request(t, http.MethodGet, "/.well-known/openid-configuration", "", nil); a.status != http.StatusNotFound {
		t.Errorf("an OpenID provider's metadata: %d", a.status)
	}
}

// TestForms goes through what is no request to a token endpoint.
func TestForms(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.page
	form := map[string]string{"Content-Type": "application/x-www-form-urlencoded"}
	for _, c := range []struct {
		name, method, body string
		header             map[string]string
		status             int
	}{
		{"GET", http.MethodGet, "", nil, 405},
		{"PUT", http.MethodPut, "a=b", form, 405},
		{"JSON", http.MethodPost, `{"grant_type":"client_credentials"}`, map[string]string{"Content-Type": "application/json"}, 400},
		{"no type", http.MethodPost, "a=b", nil, 400},
		{"compressed", http.MethodPost, "a=b", map[string]string{"Content-Type": form["Content-Type"], "Content-Encoding": "gzip"}, 415},
		{"too long", http.MethodPost, "a=" + strings.Repeat("b", broker.MaxForm), form, 413},
		{"no form", http.MethodPost, "a=%zz", form, 400},
		{"twice", http.MethodPost, "client_id=a&client_id=b", form, 400},
		{"by password", http.MethodPost, "client_id=a", map[string]string{"Content-Type": form["Content-Type"], "Authorization": "Basic YTpi"}, 401},
		{"by bearer", http.MethodPost, "client_id=a", map[string]string{"Content-Type": form["Content-Type"], "Authorization": "Bearer x"}, 401},
	} {
		a := p.request(t, c.method, broker.TokenPath, c.body, c.header)
		if a.status != c.status || a.text("error") == "" || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v %v, want %d", c.name, a.status, a.body, a.header, c.status)
		}
		if (a.header.Get("WWW-Authenticate") != "") != (c.status == 401) {
			t.Errorf("%s: the challenge is %q", c.name, a.header.Get("WWW-Authenticate"))
		}
	}
}

// TestOrigins has pages call: those of the client, and others.
func TestOrigins(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.page
	ask := func(method, origin, path string) answer {
		return p.request(t, method, path, "client_id="+string(p.client.ID), map[string]string{"Content-Type": "application/x-www-form-urlencoded", "Origin": origin,
			"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "dpop,content-type", "DPoP": "x"})
	}
	a := ask(http.MethodOptions, "https://shop.example", broker.TokenPath)
	if a.status != http.StatusNoContent || a.header.Get("Access-Control-Allow-Origin") != "https://shop.example" || !strings.Contains(a.header.Get("Access-Control-Allow-Headers"), "DPoP") ||
		a.header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("preflight: %d %v", a.status, a.header)
	}
	a = ask(http.MethodPost, "https://shop.example", broker.TokenPath)
	if a.header.Get("Access-Control-Allow-Origin") != "https://shop.example" || a.header.Get("DPoP-Nonce") == "" {
		t.Errorf("the client's page: %v", a.header)
	}
	for _, name := range []string{"DPoP-Nonce", "WWW-Authenticate"} {
		if !strings.Contains(a.header.Get("Access-Control-Expose-Headers"), name) {
			t.Errorf("the page may not read %s: %v", name, a.header)
		}
	}
	for _, c := range []struct{ method, origin, path string }{
		{http.MethodPost, "https://evil.example", broker.TokenPath}, {http.MethodPost, "null", broker.TokenPath},
		{http.MethodOptions, "null", broker.TokenPath}, {http.MethodOptions, "http://shop.example", broker.TokenPath},
		{http.MethodPost, "https://shop.example", broker.IntrospectPath}, {http.MethodOptions, "https://shop.example", broker.IntrospectPath},
	} {
		if a := ask(c.method, c.origin, c.path); a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s by a page of %s to %s: %v", c.method, c.origin, c.path, a.header)
		}
	}
}
