package keeper_test

import (
	"strings"
	"testing"

	"claviger.dev"
)

// TestRedirectURIs registers where browsers are sent: nowhere that another
// program may answer, and nothing that a code may be appended to in vain.
func TestRedirectURIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	for uri, good := range map[string]bool{
		"https://shop.example/back":              true,
		"https://shop.example/back?tenant=7":     true,
		"http://127.0.0.1:8080/back":             true,
		"http://[::1]/back":                      true,
		"com.example.shop:/back":                 true,
		"https://shop.example/back#":             false,
		"https://shop.example/back#x":            false,
		"https://*.example/back":                 false,
		"https://user@shop.example/back":         false,
		"https:///back":                          false,
		"http://shop.example/back":               false,
		"http://127.0.0.1.shop.example/back":     false,
		"javascript:alert(1)":                    false,
		"data:text/html,x":                       false,
		"/back":                                  false,
		"https://shop.example/\nback":            false,
		"https://a/" + strings.Repeat("a", 1024): false,
	} {
		_, err := w.CreateClient(t.Context(), w.op, claviger.Client{Name: claviger.Name("prod/shop/" + strings.ToLower(string(claviger.NewID(w.now())))), Principal: by.ID, Kind: claviger.Public, RedirectURIs: []string{uri}})
		want := claviger.Invalid
		if good {
			want = ""
		}
		wantCode(t, uri, err, want)
	}
}

// TestClientLive tells a client that stands from one that does not.
func TestClientLive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by, other := w.caller(7), w.caller(8)
	c, d := w.client(by, "prod/shop/web", claviger.ClientLimits{}), w.client(other, "prod/shop/batch", claviger.ClientLimits{})
	live := func(what, ref string, want claviger.Code) {
		t.Helper()
		got, err := w.ClientLive(t.Context(), ref)
		wantCode(t, what, err, want)
		if err == nil && got.ID != c.ID && got.ID != d.ID {
			t.Errorf("%s: it is %q", what, got.ID)
		}
	}
	live("by id", string(c.ID), "")
	live("by name", "prod/shop/batch", "")
	live("none", "prod/shop/none", claviger.NotFound)
	live("malformed", "//", claviger.NotFound)
	if _, err := w.DisableClient(t.Context(), w.op, string(c.ID), "gone"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.RevokePrincipal(t.Context(), w.op, string(other.ID), "left"); err != nil {
		t.Fatal(err)
	}
	live("disabled", "prod/shop/web", claviger.Denied)
	live("of a principal that is revoked", string(d.ID), claviger.Denied)
}
