package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// Cookies without bound are refused or pass, with work in proportion.
func TestManyCookies(t *testing.T) {
	t.Parallel()
	r, public := express(t, "")
	many := func(n int, text string) string { return strings.TrimSuffix(strings.Repeat(text+"; ", n), "; ") }
	for name, test := range map[string]struct {
		cookies string
		status  int
	}{
		"10 000 of others":  {many(10_000, "a=b"), 200},
		"10 000 forged":     {many(10_000, "sid="), 431},
		"10 000 near":       {many(10_000, "SID"), 200},
		"10 000 commas":     {"a=" + strings.Repeat(",", 10_000), 200},
		"10 000 empty":      {strings.Repeat(";", 10_000), 200},
		"60 000 of a token": {"sid=" + strings.Repeat(".", 60_000), 200},
		"64 valid":          {many(64, "sid="+public("a")), 200},
		"65 valid":          {many(65, "sid="+public("a")), 431},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := time.Now()
		resp, body := r.get("/", test.cookies)
		took := time.Since(began)
		runtime.ReadMemStats(&after)
		if resp.StatusCode != test.status || strings.Contains(body, "forged") {
			t.Errorf("%s: %d %.100q, want %d", name, resp.StatusCode, body, test.status)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 32<<20 || took > 5*time.Second {
			t.Errorf("%s: %v and %d bytes", name, took, grown)
		}
	}
}

// A header of 1 MB is not read to its end.
func TestLongHeader(t *testing.T) {
	t.Parallel()
	r, _ := express(t, "")
	conn := r.raw("GET / HTTP/1.1\r\nHost: x\r\nCookie: sid=")
	sent, err := io.Copy(conn, io.LimitReader(strings.NewReader(strings.Repeat("a", 1<<20)), 1<<20))
	answer := make([]byte, 12)
	_, failed := io.ReadFull(conn, answer)
	if string(answer) != "HTTP/1.1 431" && err == nil && failed == nil {
		t.Errorf("%d bytes were sent, and the answer is %q", sent, answer)
	}
	if got := r.vault.seen(); len(got) > 0 {
		t.Errorf("custody was asked: %q", got)
	}
}

// What a payload has in it never becomes a header, another cookie or an
// attribute.
func TestInjection(t *testing.T) {
	t.Parallel()
	r, public := express(t, "")
	custody := newVault(recipe.Django, strings.Repeat("old-", 12))
	django := newRig(t, custody, rule("sid", state.DjangoSigner, ""), sees)
	for _, payload := range []string{"a; admin=1", "a\"; admin=1", "a, admin=1", "é\u2028", `a\`, "%0d%0aX: y", "a=b"} {
		resp, body := r.get("/", "sid="+public(payload))
		if got := r.named(body); resp.StatusCode != http.StatusOK || len(got) != 1 || got[0] != payload || strings.Contains(body, "; ") {
			t.Errorf("%q: %d %q", payload, resp.StatusCode, body)
		}
		local := escape(made(t, r.own(recipe.CookieSignature), state.ExpressCookie, state.Params{}, payload))
		resp, _ = r.get("/", "", "X-Set", "sid="+local+"; Path=/")
		if set := resp.Header["Set-Cookie"]; len(set) != 1 || strings.Count(set[0], ";") != 1 || strings.ContainsAny(set[0], "\r\n\" ,") != strings.Contains(set[0], "; Path") {
			t.Errorf("%q: set %q", payload, set)
		}
		// A format that escapes nothing carries what a header carries, or nothing.
		token := made(t, custody.versions[key][0], state.DjangoSigner, state.Params{}, payload)
		if _, body := django.get("/", "sid="+token); strings.Contains(payload, ";") && body != "" && strings.Contains(body, "sid") {
			t.Errorf("%q: the application got %q", payload, body)
		}
	}
	for _, payload := range []string{"a\r\nX: y", "a\x00b", "a\nSet-Cookie: b=c", "\t"} {
		forged := "sid=" + escape(strings.NewReplacer("\r", "%0d", "\n", "%0a", "\x00", "%00", "\t", "%09").Replace("s:"+payload+".c2ln"))
		resp, body := r.get("/", forged)
		if resp.StatusCode != http.StatusOK || body != "" || resp.Header.Get("X") != "" {
			t.Errorf("%q: %d %q", payload, resp.StatusCode, body)
		}
	}
}

// Answers without bound are refused.
func TestManySetCookies(t *testing.T) {
	t.Parallel()
	r, _ := express(t, "")
	local := escape(made(t, r.own(recipe.CookieSignature), state.ExpressCookie, state.Params{}, "a"))
	set := func(n int) int {
		resp, _ := r.get("/", "", "X-Set", strings.TrimSuffix(strings.Repeat("sid="+local+"|", n), "|"))
		return resp.StatusCode
	}
	if got := fmt.Sprint(set(64), set(65)); got != "200 502" {
		t.Errorf("64 and 65 tokens in one answer: %s", got)
	}
}
