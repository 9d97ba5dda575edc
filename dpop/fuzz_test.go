package dpop_test

import (
	"testing"
	"time"

	"claviger.dev/dpop"
)

// FuzzProof looks for a text that is accepted and was not signed for this
// request, or that costs more than its size.
func FuzzProof(f *testing.F) {
	key := newKey(f)
	header, claims := good(f, key)
	f.Add(forge(f, key, header, claims))
	f.Add("a.b.c")
	f.Add(forge(f, key, `{"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"EC"}}`, `{"iat":1e9}`))
	f.Add(forge(f, key, header, `{"a":[[[[{}]]]]}`))
	thumb := newSigner(f, key, "").Thumbprint()
	f.Fuzz(func(t *testing.T, proof string) {
		v := &dpop.Verifier{Algorithms: append(dpop.Algorithms(), dpop.MLDSA65), Replays: &dpop.Memory{Now: at(start)}, Now: at(start), MaxAge: 100 * 365 * 24 * time.Hour}
		got, err := v.Check(t.Context(), dpop.Request{Proofs: []string{proof}, Method: "GET", URL: apiURL, Token: token, Thumbprint: thumb})
		if err == nil && got.Thumbprint != thumb {
			t.Errorf("accepted under key %s", got.Thumbprint)
		}
		if err != nil && dpop.CodeOf(err) == "" {
			t.Errorf("an error without a code: %v", err)
		}
	})
}

// FuzzTarget checks that the form in which URLs are compared is its own form.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{apiURL, "HTTP://EXAMPLE.com:80/%7efoo/../b%2fc?d#e", "https://[::1]:443", "https://a@b/", "http://h/%zz", "https://h/..%2f", "https://h/a/..;x/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		once, ok := dpop.Target(raw)
		if !ok {
			return
		}
		if twice, ok := dpop.Target(once); !ok || twice != once {
			t.Errorf("%q -> %q -> %q, %t", raw, once, twice, ok)
		}
	})
}

func TestTarget(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://Example.COM":                 "https://example.com/",
		"https://example.com:443/a?b#c":       "https://example.com/a",
		"http://example.com:80":               "http://example.com/",
		"http://example.com:443/":             "http://example.com:443/",
		"https://example.com:8443/a//b/":      "https://example.com:8443/a//b/",
		"https://example.com/%7Euser/%2f%E4":  "https://example.com/~user/%2F%E4",
		"https://example.com/a/./b/../c":      "https://example.com/a/c",
		"https://example.com/a/..":            "https://example.com/",
		"https://example.com/../../a":         "https://example.com/a",
		"https://[2001:DB8::1]:443/x":         "https://[2001:db8::1]/x",
		"https://[2001:db8:0:0::1]/x":         "https://[2001:db8::1]/x",
		"ftp://example.com/":                  "",
		"//example.com/":                      "",
		"/a":                                  "",
		"https://user@example.com/":           "",
		"https:///a":                          "",
		"https://example.com\\@evil.example/": "",
		"https://example.com/a b":             "",
		"https://ex\u00e4mple.com/":           "",
		"https:example.com/a":                 "",
		"https://example.com/%":               "",
		"https://example.com/%e4":             "https://example.com/%E4",
		"https://example.com/a/..%2fb":        "", // dot segments that some servers see and others do not
		"https://example.com/a%2f%2e%2e/b":    "",
		"https://example.com/a/..%5cb":        "",
		"https://example.com/a/..;x/b":        "",
		"https://example.com/a/.%3bx/b":       "",
		"https://example.com/a%2f...%2f.b;.":  "https://example.com/a%2F...%2F.b;.",
	} {
		if got, _ := dpop.Target(raw); got != want {
			t.Errorf("%s: %q, want %q", raw, got, want)
		}
	}
}
