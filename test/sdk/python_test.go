package sdk_test

import (
	"crypto/rand"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// python is Debian's own, which has the frameworks that are tested.
const python = "/usr/bin/python3"

// stageFor copies a language's adapters and the applications to where every uid
// may read them, and returns the directory.
func stageFor(t *testing.T, language string) string {
	t.Helper()
	dir := openDir(t)
	check(t, os.CopyFS(filepath.Join(dir, "sdk"), os.DirFS("../../sdk/"+language)))
	check(t, os.CopyFS(filepath.Join(dir, "apps"), os.DirFS("testdata")))
	check(t, os.Mkdir(filepath.Join(dir, "data"), 0o755))
	check(t, os.Chown(filepath.Join(dir, "data"), application, application))
	return dir
}

// visitor is a browser: it keeps cookies.
type visitor struct {
	t      *testing.T
	client *http.Client
}

func newVisitor(t *testing.T) *visitor {
	jar, err := cookiejar.New(nil)
	check(t, err)
	return &visitor{t, &http.Client{Jar: jar, Timeout: 20 * time.Second}}
}

// get returns the status and the body of a page. Headers are pairs.
func (v *visitor) get(p *process, path string, headers ...string) (int, string) {
	v.t.Helper()
	req, err := http.NewRequest(http.MethodGet, p.base+path, nil)
	check(v.t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return v.do(req)
}

func (v *visitor) do(req *http.Request) (int, string) {
	v.t.Helper()
	resp, err := v.client.Do(req)
	check(v.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	check(v.t, err)
	return resp.StatusCode, string(body)
}

// sees checks the body of a page.
func (v *visitor) sees(p *process, path, want string, headers ...string) {
	v.t.Helper()
	if status, body := v.get(p, path, headers...); status != http.StatusOK || body != want {
		v.t.Errorf("%s: %d %.200q, want %q\n%s", path, status, body, want, tail(p.log.String()))
	}
}

// cookie returns the value of a cookie.
func (v *visitor) cookie(p *process, name string) string {
	v.t.Helper()
	u, err := url.Parse(p.base)
	check(v.t, err)
	for _, c := range v.client.Jar.Cookies(u) {
		if c.Name == name {
			return c.Value
		}
	}
	return ""
}

func (v *visitor) set(p *process, name, value string) {
	u, err := url.Parse(p.base)
	check(v.t, err)
	v.client.Jar.SetCookies(u, []*http.Cookie{{Name: name, Value: value, Path: "/"}})
}

func tail(text string) string { return text[max(0, len(text)-3000):] }

func newSecret() string {
	raw := make([]byte, 36)
	_, _ = rand.Read(raw)
	return base64.RawURLEncoding.EncodeToString(raw)
}

// other returns a text with one character in its middle changed.
func other(text string) string {
	i := len(text) / 2
	c := byte('A')
	if text[i] == c {
		c = 'B'
	}
	return text[:i] + string(c) + text[i+1:]
}

func TestDjango(t *testing.T) {
	for _, engine := range []string{"django.contrib.sessions.backends.db", "django.contrib.sessions.backends.signed_cookies"} {
		t.Run(engine[strings.LastIndexByte(engine, '.')+1:], func(t *testing.T) {
			s := &djangoSite{t: t, engine: engine, dir: stageFor(t, "python"), custody: newCustody(t), secret: newSecret()}
			s.custody.adopt("dev/shop/django", "django", s.secret)
			local := s.launch(true)
			local.holds(s.secret)
			old := newVisitor(t)
			tokens := s.visit(old, local)

			app := s.launch(false)
			old.sees(app, "/me", "alice three apples")
			old.sees(app, "/pref", "dark")
			old.sees(app, "/said", "saved")
			old.sees(app, "/said", "-")
			old.sees(app, "/check", "yes yes yes yes yes", "X-Tokens", strings.Join(tokens, " "))
			s.tampered(old, app, tokens)

			// What custody makes is what the application made by itself.
			fresh := newVisitor(t)
			made := s.visit(fresh, app)
			fresh.sees(local, "/me", "alice three apples")
			fresh.sees(local, "/pref", "dark")
			fresh.sees(local, "/said", "saved")
			fresh.sees(local, "/check", "yes yes yes yes yes", "X-Tokens", strings.Join(made, " "))
			for i, name := range []string{"Signer", 5: "salted_hmac"} { // those without a time in them
				if name != "" && made[i] != tokens[i] {
					t.Errorf("%s in custody makes %q, by itself %q", name, made[i], tokens[i])
				}
			}
			local.kill()
			s.rotate(old, fresh, app, made)
			s.outage(old, app)
			app.apart(s.custody.socket, s.secret)
		})
	}
}

// djangoSite is an application, its database and custody.
type djangoSite struct {
	t                   *testing.T
	engine, dir, secret string
	custody             *custody
}

func (s *djangoSite) launch(local bool) *process {
	s.t.Helper()
	apps, database := filepath.Join(s.dir, "apps", "django_app.py"), filepath.Join(s.dir, "data", "db.sqlite3")
	if local {
		return launch(s.t, s.secret+"\n", nil, python, apps, "local", database, s.engine)
	}
	return launch(s.t, "", []string{"PYTHONPATH=" + filepath.Join(s.dir, "sdk")}, python, apps, "custody", database, s.engine, "dev/shop/django", s.custody.socket)
}

// visit logs in, leaves cookies, and returns one token of each kind.
func (s *djangoSite) visit(v *visitor, p *process) []string {
	s.t.Helper()
	v.sees(p, "/login", "in")
	v.sees(p, "/cookie", "set")
	v.sees(p, "/say", "said")
	status, body := v.get(p, "/sign")
	tokens := strings.Split(body, "\n")
	if status != http.StatusOK || len(tokens) != 6 {
		s.t.Fatalf("/sign: %d %q\n%s", status, body, tail(p.log.String()))
	}
	return tokens
}

// tampered changes every token in one place.
func (s *djangoSite) tampered(v *visitor, p *process, tokens []string) {
	s.t.Helper()
	bad := make([]string, len(tokens))
	for i, token := range tokens {
		bad[i] = other(token)
	}
	v.sees(p, "/check", "no no no no no", "X-Tokens", strings.Join(bad, " "))
	v.sees(p, "/check", "no no no no no", "X-Tokens", strings.Join([]string{"x", ":", "a:b", "é:" + tokens[0], "-", "-"}, " "))
	thief := newVisitor(s.t)
	thief.set(p, "pref", other(v.cookie(p, "pref")))
	thief.set(p, "messages", "x")
	thief.set(p, "sessionid", other(v.cookie(p, "sessionid")))
	thief.sees(p, "/pref", "-")
	thief.sees(p, "/said", "-")
	thief.sees(p, "/me", "- -")
	// Forms are protected without a secret, so custody has no part in it.
	_, token := v.get(p, "/csrf")
	post := func(token string) int {
		req, err := http.NewRequest(http.MethodPost, p.base+"/csrf", nil)
		check(s.t, err)
		req.Header.Set("X-CSRFToken", token)
		status, _ := v.do(req)
		return status
	}
	if got := []int{post(token), post(other(token))}; !cmp.Equal(got, []int{200, 403}) {
		s.t.Errorf("a form was answered by %v, and one with a wrong token", got)
	}
}

// rotate makes a new version in the middle of sessions. The old one may then go,
// because whoever came by was given new tokens.
func (s *djangoSite) rotate(old, fresh *visitor, app *process, tokens []string) {
	s.t.Helper()
	s.custody.run("", "key", "rotate", "dev/shop/django")
	old.sees(app, "/me", "alice three apples")
	old.sees(app, "/check", "yes yes yes yes yes", "X-Tokens", strings.Join(tokens, " "))
	fresh.sees(app, "/again", "three apples") // logs in anew, and keeps the cart
	fresh.sees(app, "/me", "alice three apples")
	s.custody.destroy("dev/shop/django")
	old.sees(app, "/me", "alice three apples")
	fresh.sees(app, "/me", "alice three apples")
	old.sees(app, "/check", "no no no no no", "X-Tokens", strings.Join(tokens, " "))
	s.visit(newVisitor(s.t), app)
}

// outage stops custody: nothing is answered, nobody is logged out.
func (s *djangoSite) outage(v *visitor, app *process) {
	s.t.Helper()
	s.custody.outage(app, "claviger.Unavailable: custody does not answer at "+s.custody.socket, func() {
		for _, path := range []string{"/me", "/login", "/cookie", "/sign"} {
			if status, body := v.get(app, path); status != http.StatusInternalServerError {
				s.t.Errorf("%s without custody: %d %.200q", path, status, body)
			}
		}
	})
	v.sees(app, "/me", "alice three apples")
}

func TestFlask(t *testing.T) {
	dir, c, secret := stageFor(t, "python"), newCustody(t), newSecret()
	c.adopt("dev/shop/flask", "flask", secret)
	script := filepath.Join(dir, "apps", "flask_app.py")
	local := launch(t, secret+"\n", nil, python, script, "local")
	local.holds(secret)
	app := launch(t, "", []string{"PYTHONPATH=" + filepath.Join(dir, "sdk")}, python, script, "custody", "dev/shop/flask", c.socket)

	sign := func(v *visitor, p *process) string {
		v.sees(p, "/login", "in")
		status, body := v.get(p, "/sign")
		if status != http.StatusOK {
			t.Fatalf("/sign: %d\n%s", status, tail(p.log.String()))
		}
		return strings.ReplaceAll(body, "\n", " ")
	}
	old, fresh, thief := newVisitor(t), newVisitor(t), newVisitor(t)
	before := sign(old, local)
	old.sees(app, "/me", "alice")
	old.sees(app, "/check", "yes yes", "X-Tokens", before)
	after := sign(fresh, app)
	fresh.sees(local, "/me", "alice")
	fresh.sees(local, "/check", "yes yes", "X-Tokens", after)
	local.kill()

	one, two, _ := strings.Cut(before, " ")
	old.sees(app, "/check", "no no", "X-Tokens", other(one)+" "+other(two))
	old.sees(app, "/check", "no no", "X-Tokens", "x. .")
	thief.set(app, "session", other(old.cookie(app, "session")))
	thief.sees(app, "/me", "-")

	c.run("", "key", "rotate", "dev/shop/flask")
	held := old.cookie(app, "session")
	old.sees(app, "/me", "alice")
	if old.cookie(app, "session") == held {
		t.Error("the session was not signed by the new version")
	}
	c.destroy("dev/shop/flask")
	old.sees(app, "/me", "alice")
	fresh.sees(app, "/me", "-")
	old.sees(app, "/check", "no no", "X-Tokens", before)

	c.outage(app, "claviger.Unavailable: custody does not answer at ", func() {
		for _, path := range []string{"/me", "/login"} {
			if status, body := old.get(app, path); status != http.StatusInternalServerError {
				t.Errorf("%s without custody: %d %q", path, status, body)
			}
		}
	})
	old.sees(app, "/me", "alice")
	app.apart(c.socket, secret)
}

// TestPythonClient holds the client to threads, forks, deadlines and answers of
// others than the server.
func TestPythonClient(t *testing.T) {
	c := newCustody(t)
	c.adopt("dev/shop/django", "django", newSecret())
	cmd := exec.Command(python, "-W", "error", "testdata/client_test.py", c.socket)
	cmd.Env = append(os.Environ(), "PYTHONPATH=../../sdk/python")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
