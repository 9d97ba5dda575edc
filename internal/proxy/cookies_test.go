package proxy_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// express is the configuration and custody of an application with one signed
// cookie, "sid".
func express(t *testing.T, more string) (r *rig, public func(payload string) string) {
	t.Helper()
	custody := newVault(recipe.CookieSignature, strings.Repeat("old-", 12))
	r = newRig(t, custody, rule("sid", state.ExpressCookie, more), sees)
	return r, func(payload string) string {
		return escape(made(t, custody.versions[key][0], state.ExpressCookie, state.Params{}, payload))
	}
}

// named returns the payloads of cookies called sid, as the application gets them.
func (r *rig) named(header string) (out []string) {
	r.t.Helper()
	for text := range strings.SplitSeq(header, "; ") {
		if name, value, _ := strings.Cut(text, "="); strings.TrimSpace(name) == "sid" {
			payload, _, err := state.Unprotect(r.t.Context(), r.own(recipe.CookieSignature), state.ExpressCookie, state.Params{}, []byte(unescape(r.t, strings.TrimSpace(value))))
			if err != nil {
				r.t.Errorf("%q reached the application: %v", text, err)
			}
			out = append(out, string(payload))
		}
	}
	return out
}

func TestCookies(t *testing.T) {
	t.Parallel()
	r, public := express(t, "")
	for _, test := range []struct {
		name, cookies string
		want          []string // of sid
		rest          string   // what passes beside it
	}{
		{"one", "sid=" + public("a"), []string{"a"}, ""},
		{"quoted", `sid="` + public("a") + `"`, nil, ""},
		{"spaces", "  sid = " + public("a") + " ;b=2", []string{"a"}, "b=2"},
		{"others stay as they are", `a="x y"; sid=` + public("a") + `;b==;c; d= 1`, []string{"a"}, `a="x y"; b==; c; d= 1`},
		{"several", "sid=" + public("a") + "; sid=" + public("b"), []string{"a", "b"}, ""},
		{"the valid of several", "sid=x; sid=" + public("b") + "; sid=" + changed(public("c")), []string{"b"}, ""},
		{"not valid", "sid=" + changed(public("a")) + "; b=1", nil, "b=1"},
		{"nothing", "sid=; b=1", nil, "b=1"},
		{"bad escape", "sid=%zz; b=1", nil, "b=1"},
		{"another's name in part", "sidx=1; xsid=2", nil, "sidx=1; xsid=2"},
		{"nearly the name", "SID=1; %73id=2; \"sid\"=3; sid ; 'sid'=4; b=1", nil, "b=1"},
		{"behind a comma", "b=1,sid=x; c=2", nil, "c=2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			resp, body := r.get("/", test.cookies)
			if test.name == "quoted" { // the quotes stay, as Express takes them off
				body = strings.ReplaceAll(body, `"`, "")
				test.want = []string{"a"}
			}
			if got := r.named(body); resp.StatusCode != http.StatusOK || !cmp.Equal(got, test.want) {
				t.Errorf("%d %q: sid is %q, want %q", resp.StatusCode, body, got, test.want)
			}
			var rest []string
			for text := range strings.SplitSeq(body, "; ") {
				if !strings.HasPrefix(strings.TrimSpace(text), "sid") || strings.HasPrefix(text, "sidx") {
					rest = append(rest, text)
				}
			}
			if got := strings.Join(rest, "; "); got != test.rest {
				t.Errorf("beside it %q, want %q", got, test.rest)
			}
		})
	}
	t.Run("one call", func(t *testing.T) {
		r.vault.seen()
		r.get("/", "sid="+public("a")+"; sid="+public("b")+"; sid=x; other=1")
		r.get("/", "other=1")
		if got := r.vault.seen(); !cmp.Equal(got, []string{"check 3"}) {
			t.Errorf("custody was called for %q", got)
		}
	})
}

func TestSetCookie(t *testing.T) {
	t.Parallel()
	r, _ := express(t, "")
	local := escape(made(t, r.own(recipe.CookieSignature), state.ExpressCookie, state.Params{}, "a"))
	for _, test := range []struct {
		name, set string
		want      []string // %s stands for the token
		status    int
	}{
		{"none", "", nil, 200},
		{"attributes", "sid=" + local + "; Path=/; expires=Thu, 01 Jan 2032 00:00:00 GMT;  SECURE;x=\"y;z\"", []string{"sid=%s; Path=/; expires=Thu, 01 Jan 2032 00:00:00 GMT;  SECURE;x=\"y;z\""}, 200},
		{"several", "b=1; Path=/|sid=" + local + "|sid=" + local + "; Path=/x", []string{"b=1; Path=/", "sid=%s", "sid=%s; Path=/x"}, 200},
		{"removed", "sid=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT", []string{"sid=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT"}, 200},
		{"removed by PHP", "sid=deleted; expires=Thu, 01-Jan-1970 00:00:01 GMT; Max-Age=0; path=/", []string{"sid=; expires=Thu, 01-Jan-1970 00:00:01 GMT; Max-Age=0; path=/"}, 200},
		{"deleted, and set", "sid=deleted; Path=/", nil, 502},
		{"malformed", "nothing; Path=/|=x|;;", []string{"nothing; Path=/", "=x", ";;"}, 200},
		{"of no secret", "sid=plain; Path=/", nil, 502},
		{"of another secret", "sid=" + changed(local), nil, 502},
		{"bad escape", "sid=%zz", nil, 502},
	} {
		t.Run(test.name, func(t *testing.T) {
			resp, _ := r.get("/", "", "X-Set", test.set)
			if resp.StatusCode != test.status || len(resp.Header["Set-Cookie"]) != len(test.want) {
				t.Fatalf("%d %q, want %d %q\n%s", resp.StatusCode, resp.Header["Set-Cookie"], test.status, test.want, r.log)
			}
			for i, got := range resp.Header["Set-Cookie"] {
				if head, tail, has := strings.Cut(test.want[i], "%s"); has && (!strings.HasPrefix(got, head) || !strings.HasSuffix(got, tail) || strings.Contains(got, local)) || !has && got != test.want[i] {
					t.Errorf("set %q, want %q", got, test.want[i])
				}
			}
		})
	}
	if text := r.log.String(); strings.Contains(text, local) || !strings.Contains(text, "sid was not made with the secret of this start") {
		t.Errorf("the log:\n%s", text)
	}
}

// A pair is a value and its signature in two cookies; only the signature changes.
func TestPairs(t *testing.T) {
	t.Parallel()
	for format, payload := range map[state.Format]string{state.CookieSession: "eyJ1IjoxfQ==", state.KeygripSignature: "free text"} {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			custody := newVault(recipe.Keygrip, strings.Repeat("old-", 12))
			r := newRig(t, custody, rule("s*", format, "renew = 'Path=/'"), sees)
			sign := func(u state.User, name string) string {
				return made(t, u, state.KeygripSignature, state.Params{Over: []byte(name + "=" + payload)}, "")
			}
			old, own := custody.versions[key][0], r.own(recipe.Keygrip)
			both := func(u state.User) string { return fmt.Sprintf("sess=%s; sess.sig=%s", payload, sign(u, "sess")) }
			for cookies, want := range map[string]string{
				both(old) + "; b=1": both(own) + "; b=1",
				fmt.Sprintf("sess.sig=%s; sess=%s", sign(old, "sess"), payload): fmt.Sprintf("sess.sig=%s; sess=%s", sign(own, "sess"), payload),
				both(own):              "",
				"s\xff=a; s\xff.sig=b": "",
				fmt.Sprintf("s%[1]s=a; s%[1]s.sig=b", strings.Repeat("x", 500)): "",
				"sess=" + payload:                                                   "",
				"sess.sig=" + sign(old, "sess"):                                     "",
				fmt.Sprintf("sess=%s; sess.sig=", payload):                          "",
				fmt.Sprintf("sother=%s; sother.sig=%s", payload, sign(old, "sess")): "",
			} {
				if _, body := r.get("/", cookies); body != want {
					t.Errorf("%q became %q, want %q", cookies, body, want)
				}
			}
			asked := len(custody.seen())
			if r.get("/", "s\xff=a; s\xff.sig=b"); len(custody.seen()) != 0 || asked == 0 {
				t.Error("custody was asked about a name that is no text")
			}
			set := func(line string) []string {
				resp, _ := r.get("/", "", "X-Set", line)
				return append(resp.Header["Set-Cookie"], fmt.Sprint(resp.StatusCode))
			}
			if d := cmp.Diff([]string{"sess=" + payload + "; path=/", "sess.sig=" + sign(old, "sess") + "; path=/; httponly", "200"},
				set("sess="+payload+"; path=/|sess.sig="+sign(own, "sess")+"; path=/; httponly")); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff([]string{"sess=; max-age=0", "sess.sig=; max-age=0", "200"}, set("sess=; max-age=0|sess.sig=; max-age=0")); d != "" {
				t.Error(d)
			}
			if got := set("sess=" + payload); got[len(got)-1] != "502" {
				t.Errorf("a value without its signature was set: %q", got)
			}
			custody.versions[key] = append(custody.versions[key], newVault(recipe.Keygrip, strings.Repeat("new-", 12)).versions[key]...)
			resp, body := r.get("/", both(old))
			if d := cmp.Diff([]string{"sess=" + payload + "; Path=/", "sess.sig=" + sign(custody.versions[key][1], "sess") + "; Path=/"}, resp.Header["Set-Cookie"]); d != "" || body != both(own) {
				t.Errorf("%q %s", body, d)
			}
		})
	}
}

// A token in chunks is one token.
func TestChunks(t *testing.T) {
	t.Parallel()
	custody := newVault(recipe.AuthJS, strings.Repeat("old-", 12))
	r := newRig(t, custody, rule("session", state.AuthJS, ""), sees)
	payload := fmt.Sprintf(`{"sub":%q}`, strings.Repeat("x", 9000))
	cut := func(token, apart string) string {
		var all []string
		for i := 0; len(token) > 0; i++ {
			n := min(3900, len(token))
			all = append(all, fmt.Sprintf("session.%d=%s", i, token[:n]))
			token = token[n:]
		}
		return strings.Join(all, apart)
	}
	joined := func(text, apart string) (token string) {
		for i, part := range strings.Split(text, apart) {
			value, ok := strings.CutPrefix(part, fmt.Sprintf("session.%d=", i))
			if !ok || len(value) > 3900 {
				t.Errorf("part %d is %.40q with %d characters", i, part, len(value))
			}
			token += value
		}
		return token
	}
	old, own := custody.versions[key][0], r.own(recipe.AuthJS)
	_, body := r.get("/", cut(made(t, old, state.AuthJS, state.Params{}, payload), "; ")+"; session.7=x")
	if got, _, err := state.Unprotect(t.Context(), own, state.AuthJS, state.Params{}, []byte(joined(body, "; "))); err != nil || string(got) != payload {
		t.Errorf("the application got %.200q: %v", body, err)
	}
	resp, _ := r.get("/", "", "X-Set", cut(made(t, own, state.AuthJS, state.Params{}, payload), "|")+"|session.9=; Max-Age=0")
	set := resp.Header["Set-Cookie"]
	if len(set) < 4 || set[len(set)-1] != "session.9=; Max-Age=0" {
		t.Fatalf("%d %.200q\n%s", resp.StatusCode, set, r.log)
	}
	if got, _, err := state.Unprotect(t.Context(), old, state.AuthJS, state.Params{}, []byte(joined(strings.Join(set[:len(set)-1], "|"), "|"))); err != nil || string(got) != payload {
		t.Errorf("set %.200q: %v", set, err)
	}
}

// A cookie by an older version is made again, unless it should not be.
func TestRenewal(t *testing.T) {
	t.Parallel()
	r, public := express(t, "renew = 'Path=/; HttpOnly'")
	token := public("a")
	if resp, _ := r.get("/", "sid="+token); len(resp.Header["Set-Cookie"]) > 0 {
		t.Errorf("a cookie by the newest version was made again: %q", resp.Header["Set-Cookie"])
	}
	r.vault.versions[key] = append(r.vault.versions[key], newVault(recipe.CookieSignature, strings.Repeat("new-", 12)).versions[key]...)
	resp, body := r.get("/", "sid="+token)
	fresh := escape(made(t, r.vault.versions[key][1], state.ExpressCookie, state.Params{}, "a"))
	if d := cmp.Diff([]string{"sid=" + strings.ReplaceAll(fresh, ":", "%3A") + "; Path=/; HttpOnly"}, resp.Header["Set-Cookie"]); d != "" || !cmp.Equal(r.named(body), []string{"a"}) {
		t.Errorf("%q %s", body, d)
	}
	local := escape(made(t, r.own(recipe.CookieSignature), state.ExpressCookie, state.Params{}, "b"))
	for name, headers := range map[string][]string{
		"the application sets it":   {"X-Set", "sid=" + local},
		"the application ends it":   {"X-Set", "sid=; Max-Age=0"},
		"others may keep the page":  {"X-Cache", "max-age=60, Public"},
		"others may keep the pages": {"X-Cache", "s-maxage=60"},
	} {
		resp, _ := r.get("/", "sid="+token, headers...)
		if set := strings.Join(resp.Header["Set-Cookie"], "|"); strings.Contains(set, "HttpOnly") {
			t.Errorf("%s, and it was made again: %q", name, set)
		}
	}
}

// While custody is away nothing is answered that needs it, and nobody loses a
// cookie.
func TestAway(t *testing.T) {
	t.Parallel()
	r, public := express(t, "")
	local := escape(made(t, r.own(recipe.CookieSignature), state.ExpressCookie, state.Params{}, "b"))
	for _, fault := range []*claviger.Error{
		errGone, claviger.Errorf(claviger.Deadline, "the deadline passed", ""), claviger.Errorf(claviger.Denied, "no grant", "ask for one"),
	} {
		r.vault.set(fault)
		for name, answer := range map[string]func() (*http.Response, string){
			"in":  func() (*http.Response, string) { return r.get("/", "sid="+public("a")) },
			"out": func() (*http.Response, string) { return r.get("/", "", "X-Set", "sid="+local) },
		} {
			resp, body := answer()
			away := fault.Code != claviger.Denied
			if resp.StatusCode != http.StatusServiceUnavailable || len(resp.Header["Set-Cookie"]) > 0 || !strings.Contains(body, "still logged in") ||
				(resp.Header.Get("Retry-After") != "") != away || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s, %s: %d %v %q", fault.Code, name, resp.StatusCode, resp.Header, body)
			}
		}
		if resp, body := r.get("/", "other=1"); resp.StatusCode != http.StatusOK || body != "other=1" {
			t.Errorf("%s: a request without its cookie: %d %q", fault.Code, resp.StatusCode, body)
		}
	}
	r.vault.set(nil)
	if _, body := r.get("/", "sid="+public("a")); !cmp.Equal(r.named(body), []string{"a"}) {
		t.Errorf("custody is back, and the application got %q", body)
	}
	if text := r.log.String(); strings.Contains(text, public("a")) || !strings.Contains(text, "the server cannot be reached") {
		t.Errorf("the log:\n%s", text)
	}
}
