package proxy_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"

	"claviger.dev/internal/proxy"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// The view state of the reference sources, and the keys that made it.
func viewState(t *testing.T) (token, plain string, custody *vault) {
	t.Helper()
	text, err := os.ReadFile("../state/testdata/aspnet_45.json")
	check(t, err)
	var doc struct{ Vectors []map[string]any }
	check(t, json.Unmarshal(text, &doc))
	for _, v := range doc.Vectors {
		if strings.HasPrefix(v["kind"].(string), "ViewState __VIEWSTATE /app/default.aspx") {
			raw := func(name string) []byte {
				b, err := hex.DecodeString(v[name].(string))
				check(t, err)
				return b
			}
			pair := recipe.Pair(raw("decryptionKey"), raw("validationKey"))
			return v["token"].(string), string(raw("plaintext_hex")), &vault{versions: map[string][]state.User{key: {proxy.SecretOf(recipe.ASPNET, pair)}}}
		}
	}
	t.Fatal("no vector of a view state")
	return "", "", nil
}

const webForms = "[webforms]\nkey = 'prod/shop/key'\napplication = '/app'\nbody = 100000\npages = {'/app/' = '/app/default.aspx'}\n" +
	"[[file]]\nname = 'secret'\ntext = '{{decryption \"prod/shop/key\"}} {{validation \"prod/shop/key\"}}'\n"

var (
	pagePurposes = []string{"TemplateSourceDirectory: /APP", "Type: DEFAULT_ASPX"}
	ofState      = state.Params{Purposes: pagePurposes}
	ofEvents     = state.Params{Purpose: "WebForms.ClientScriptManager.EventValidation", Purposes: pagePurposes, Encoding: "base64"}
)

// scripted is an upstream that answers as ASP.NET would: it shows the hidden
// fields that it was sent, opened, and makes a page with new ones. There is no
// .NET here.
func scripted(t *testing.T, plain string) func(r *rig) http.Handler {
	return func(r *rig) http.Handler {
		own := pairOf(t, r.secret)
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Accept-Encoding") != "identity" && req.URL.Path == "/app/default.aspx" {
				t.Errorf("a page may come as %q", req.Header.Get("Accept-Encoding"))
			}
			_ = req.ParseMultipartForm(1 << 20)
			if token := req.Form.Get("__VIEWSTATE"); token != "" {
				got, _, err := state.Unprotect(req.Context(), own, state.ASPNETViewState, ofState, []byte(token))
				fmt.Fprintf(w, "%s|%s|%v", got, req.Form.Get("text"), err)
				return
			}
			fresh := made(t, own, state.ASPNETViewState, ofState, plain)
			events := made(t, own, state.ASPNETProtect, ofEvents, "events")
			switch req.URL.Query().Get("as") {
			case "delta":
				w.Header().Set("Content-Type", "text/plain; charset=utf-8")
				text := "größe 🙂 |hiddenField|__VIEWSTATE|x|"
				fmt.Fprintf(w, "1|#||4|%d|updatePanel|p|%s|%d|hiddenField|__VIEWSTATE|%s|0|asyncPostBackControlIDs|||", len(utf16.Encode([]rune(text))), text, len(fresh), fresh)
			case "other":
				w.Header().Set("Content-Type", "text/html")
				fmt.Fprint(w, `<input type="hidden" name="__VIEWSTATE" value="bm90IG91cnM=">`)
			case "gzip":
				w.Header().Set("Content-Type", "text/html")
				w.Header().Set("Content-Encoding", "gzip")
				fmt.Fprint(w, "packed")
			case "long":
				w.Header().Set("Content-Type", "text/html")
				fmt.Fprint(w, strings.Repeat("x", 100001))
			default:
				w.Header().Set("Content-Type", "text/html; charset=utf-8")
				w.Header().Set("ETag", `"1"`)
				fmt.Fprintf(w, "<p>größe</p><input type=\"hidden\" name=\"__VIEWSTATE\" id=\"__VIEWSTATE\" value=\"%s\" />\n"+
					"<input type='text' name=\"other\" value=\"%s\"><INPUT type=\"hidden\" name=\"__EVENTVALIDATION\" value=\"%s\"/><input name=\"__VIEWSTATE\" value=\"\">", fresh, "a", events)
			}
		})
	}
}

func TestWebForms(t *testing.T) {
	t.Parallel()
	token, plain, custody := viewState(t)
	r := newRig(t, custody, webForms, scripted(t, plain))
	old := custody.versions[key][0]
	opens := func(text string, f state.Format, p state.Params) string {
		got, _, err := state.Unprotect(t.Context(), old, f, p, []byte(text))
		if err != nil {
			t.Errorf("%.60q is not by custody", text)
		}
		return string(got)
	}
	for _, path := range []string{"/app/default.aspx", "/APP/Default.aspx/info", "/app/"} {
		resp, body := r.get(path, "")
		_, rest, _ := strings.Cut(body, `id="__VIEWSTATE" value="`)
		first, rest, _ := strings.Cut(rest, `"`)
		_, rest, _ = strings.Cut(rest, `name="__EVENTVALIDATION" value="`)
		second, _, _ := strings.Cut(rest, `"`)
		if opens(first, state.ASPNETViewState, ofState) != plain || opens(second, state.ASPNETProtect, ofEvents) != "events" ||
			!strings.HasPrefix(body, "<p>größe</p>") || resp.Header.Get("ETag") != "" || resp.ContentLength != int64(len(body)) {
			t.Errorf("%s: %d %v %q\n%s", path, resp.StatusCode, resp.Header, body, r.log)
		}
	}
	_, body := r.get("/app/default.aspx?as=delta", "", "X-MicrosoftAjax", "Delta=true")
	_, rest, _ := strings.Cut(body, "|x||")
	count, rest, _ := strings.Cut(rest, "|hiddenField|__VIEWSTATE|")
	fresh, _, _ := strings.Cut(rest, "|")
	if opens(fresh, state.ASPNETViewState, ofState) != plain || count != strconv.Itoa(len(fresh)) {
		t.Errorf("an update: %q\n%s", body, r.log)
	}
	want := plain + "|a b+c=größe|<nil>"
	for name, post := range map[string]func(token string) *http.Request{
		"urlencoded": func(token string) *http.Request {
			return r.post("application/x-www-form-urlencoded", "__VIEWSTATE="+url.QueryEscape(token)+"&text=a+b%2bc%3Dgr%C3%B6%C3%9Fe&x")
		},
		"multipart": func(token string) *http.Request {
			var b bytes.Buffer
			w := multipart.NewWriter(&b)
			for _, pair := range [][2]string{{"text", "a b+c=größe"}, {"__VIEWSTATE", token}} {
				check(t, w.WriteField(pair[0], pair[1]))
			}
			f, err := w.CreateFormFile("__VIEWSTATE", "evil.txt")
			check(t, err)
			_, err = f.Write([]byte("--x\r\n\r\n"))
			check(t, err)
			check(t, w.Close())
			return r.post(w.FormDataContentType(), b.String())
		},
		"query": func(token string) *http.Request {
			req := r.post("application/json", "{}")
			req.URL.RawQuery = "__viewstate=x&__VIEWSTATE=" + url.QueryEscape(token) + "&text=a%20b%2Bc%3Dgr%C3%B6%C3%9Fe"
			req.URL.RawQuery = strings.TrimPrefix(req.URL.RawQuery, "__viewstate=x&")
			return req
		},
	} {
		if resp, body := r.do(post(token)); resp.StatusCode != http.StatusOK || body != want {
			t.Errorf("%s: %d %q, want %q", name, resp.StatusCode, body, want)
		}
		if resp, body := r.do(post(changed(token))); resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "load it again") {
			t.Errorf("%s: a state that was tampered with: %d %q", name, resp.StatusCode, body)
		}
		if resp, _ := r.do(post(made(t, pairOf(t, r.secret), state.ASPNETViewState, ofState, plain))); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: a state by the application's own secret came in from outside: %d", name, resp.StatusCode)
		}
	}
	custody.set(errGone)
	if resp, body := r.get("/app/default.aspx", ""); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("custody is away: %d %q", resp.StatusCode, body)
	}
}

func (r *rig) post(kind, body string) *http.Request {
	r.t.Helper()
	req, err := http.NewRequest(http.MethodPost, r.base+"/app/default.aspx", strings.NewReader(body))
	check(r.t, err)
	req.Header.Set("Content-Type", kind)
	return req
}

// What is not understood is refused, and what is no page passes.
func TestWebFormsRefuses(t *testing.T) {
	t.Parallel()
	token, plain, custody := viewState(t)
	r := newRig(t, custody, webForms, scripted(t, plain))
	for name, test := range map[string]struct {
		kind, body string
		want       int
	}{
		"escape of .NET":       {"application/x-www-form-urlencoded", "%u005f%u005fVIEWSTATE=x", 400},
		"other case":           {"application/x-www-form-urlencoded", "__viewstate=" + url.QueryEscape(changed(token)), 400},
		"bad escape":           {"application/x-www-form-urlencoded", "__VIEWSTATE=%zz", 400},
		"two boundaries":       {"multipart/form-data; boundary=a; boundary=b", "--a\r\n\r\n", 400},
		"no boundary":          {"multipart/form-data", "--\r\n\r\n", 400},
		"parts without end":    {"multipart/form-data; boundary=a", "--a\r\nContent-Disposition: form-data; name=\"__VIEWSTATE\"\r\n\r\nx", 400},
		"too long":             {"application/x-www-form-urlencoded", strings.Repeat("a", 100001), 413},
		"many":                 {"application/x-www-form-urlencoded", strings.Repeat("__VIEWSTATE=x&", 65), 431},
		"none":                 {"application/x-www-form-urlencoded", "", 200},
		"of another kind":      {"application/json", `{"__VIEWSTATE":"x"}`, 200},
		"without a view state": {"application/x-www-form-urlencoded", "a=b&__VIEWSTATE=&c", 200},
	} {
		if resp, body := r.do(r.post(test.kind, test.body)); resp.StatusCode != test.want {
			t.Errorf("%s: %d %.80q, want %d\n%s", name, resp.StatusCode, body, test.want, r.log)
		}
	}
	for path, want := range map[string]int{
		"/app/default.aspx?as=other": 502, "/app/default.aspx?as=gzip": 502, "/app/default.aspx?as=long": 502,
		"/app/page.txt?as=other": 200, "/app/page.aspxx?as=other": 200, "/elsewhere/default.aspx?as=other": 200,
	} {
		if resp, _ := r.get(path, ""); resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

// Whatever a body is, what has no hidden field stays as it is, byte by byte.
func FuzzBodies(f *testing.F) {
	for _, seed := range []string{"a=b&__VIEWSTATE=x%2b&c", "--b\r\nContent-Disposition: form-data; name=\"__VIEWSTATE\"\r\n\r\nx\r\n--b--\r\n",
		"3|hiddenField|__VIEWSTATE|abc|0|x|||", "<input name=\"__VIEWSTATE\" value=\"abc\">", "\xff|", "9999999999999999999|a|b|"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for name, body := range proxy.Bodies(text) {
			if body != nil && !bytes.Equal(body, text) {
				t.Errorf("as %s it became %q", name, body)
			}
		}
	})
}

// FuzzCookies: what has no rule stays as it is, and nothing of a rule stays
// without a token.
func FuzzCookies(f *testing.F) {
	for _, seed := range []string{"a=b; sid=x", "p=1; p.sig=2; p=3", "s.0=a; s.1=b; s.3=c", "=;;,", `sid="x`, "SID=x, sid=y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		kept, tokens := proxy.Cookies(header)
		if kept > 0 && tokens == 0 {
			t.Errorf("%d cookies of rules stay, and %d tokens were made", kept, tokens)
		}
	})
}
