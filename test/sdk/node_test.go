package sdk_test

import (
	"crypto/hkdf"
	"crypto/sha256"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// stageForNode copies the adapter, the applications and their packages to where
// every uid may read them, and returns the directory of the applications. They
// stand to each other as in the repository.
func stageForNode(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("node/node_modules/express"); err != nil {
		t.Fatal("the packages of test/sdk/node are not here: run make setup")
	}
	dir := openDir(t)
	check(t, os.CopyFS(filepath.Join(dir, "sdk/node"), os.DirFS("../../sdk/node")))
	apps := filepath.Join(dir, "test/sdk/node")
	check(t, os.CopyFS(apps, os.DirFS("node")))
	return apps
}

func node(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("node")
	check(t, err)
	return path
}

func TestNode(t *testing.T) {
	dir := stageForNode(t)
	t.Run("client", func(t *testing.T) { nodeClient(t) })
	for _, version := range []string{"express", "express4"} {
		t.Run(version, func(t *testing.T) {
			s := &expressSite{t: t, dir: dir, data: openDir(t), version: version, custody: newCustody(t), signed: newSecret(), keygrip: newSecret()}
			check(t, os.Chown(s.data, application, application))
			s.test()
		})
	}
	t.Run("iron-session", func(t *testing.T) { ironSession(t, dir) })
	t.Run("auth", func(t *testing.T) { authSessions(t, dir) })
}

// nodeClient holds the client to deadlines, answers of others than the server, and
// real packages.
func nodeClient(t *testing.T) {
	c, secret := newCustody(t), newSecret()
	for key, set := range map[string]string{"signed": "cookie-signature", "keygrip": "keygrip", "jwt": "jwt-hs"} {
		c.adopt("dev/shop/"+key, set, secret)
	}
	password := newSecret()
	c.adopt("dev/shop/iron", "iron", password)
	cmd := exec.Command(node(t), "--test-reporter=spec", "client_test.mjs", c.socket, secret, password)
	cmd.Dir = "node"
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "\nℹ fail 0\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

// expressSite is an application of Express, the files of its sessions and custody.
type expressSite struct {
	t                  *testing.T
	dir, data, version string
	signed, keygrip    string
	custody            *custody
}

func (s *expressSite) launch(local bool) *process {
	s.t.Helper()
	script := filepath.Join(s.dir, "express_app.mjs")
	if local {
		return launch(s.t, s.signed+"\n"+s.keygrip+"\n", nil, node(s.t), script, "local", s.version, s.data)
	}
	return launch(s.t, "", nil, node(s.t), script, "custody", s.version, s.data, "dev/shop/express", "dev/shop/keygrip", s.custody.socket)
}

func (s *expressSite) test() {
	t := s.t
	s.custody.adopt("dev/shop/express", "cookie-signature", s.signed)
	s.custody.adopt("dev/shop/keygrip", "keygrip", s.keygrip)
	local := s.launch(true)
	local.holds(s.signed, s.keygrip)
	old, fresh := newVisitor(t), newVisitor(t)
	s.visit(old, local)
	app := s.launch(false)
	s.known(old, app)

	// What custody makes is what the application made by itself.
	s.visit(fresh, app)
	s.known(fresh, local)
	for _, name := range []string{"cs", "cs.sig", "pref", "json", "plain"} { // those that have nothing random
		if got, want := fresh.cookie(app, name), old.cookie(app, name); got != want || got == "" {
			t.Errorf("the cookie %s is %q in custody, %q by itself", name, got, want)
		}
	}
	local.kill()
	s.tampered(old, app)
	s.others(app)
	s.rotate(old, fresh, app)
	s.outage(old, app)
	app.apart(s.custody.socket, s.signed, s.keygrip)
}

// visit logs in and leaves signed cookies.
func (s *expressSite) visit(v *visitor, p *process) {
	s.t.Helper()
	v.sees(p, "/es/login", "in")
	v.sees(p, "/cs/login", "in")
	v.sees(p, "/set", "set")
}

// known checks that the site knows the visitor.
func (s *expressSite) known(v *visitor, p *process) {
	s.t.Helper()
	v.sees(p, "/es/me", "alice größe,3")
	v.sees(p, "/cs/me", "alice größe,3")
	v.sees(p, "/pref", "dark. größe 7")
}

// tampered changes every cookie in one place.
func (s *expressSite) tampered(v *visitor, p *process) {
	s.t.Helper()
	for path, names := range map[string][]string{"/es/me": {"connect.sid"}, "/cs/me": {"cs", "cs.sig"}, "/pref": {"pref"}} {
		for _, name := range names {
			thief := newVisitor(s.t)
			for _, whole := range []string{"connect.sid", "cs", "cs.sig"} {
				thief.set(p, whole, v.cookie(p, whole))
			}
			thief.set(p, name, other(v.cookie(p, name)))
			want := "-"
			if name == "pref" {
				want = "false -" // as cookie-parser says it
			}
			thief.sees(p, path, want)
		}
	}
}

// others are answers of other kinds than a page: streams, ends without a body,
// errors, leaving.
func (s *expressSite) others(p *process) {
	s.t.Helper()
	v := newVisitor(s.t)
	if status, body := v.get(p, "/stream"); status != http.StatusOK || strings.Count(body, "\n") != 100 {
		s.t.Errorf("a stream: %d, %d bytes", status, len(body))
	}
	v.sees(p, "/pref", "streamed -")
	for _, path := range []string{"/es/", "/cs/"} {
		if status, _ := v.get(p, path+"login-empty"); status != http.StatusNoContent {
			s.t.Errorf("%slogin-empty: %d", path, status)
		}
		v.sees(p, path+"me", "alice undefined")
		v.sees(p, path+"out", "out")
		v.sees(p, path+"me", "-")
	}
	if status, _ := v.get(p, "/fail"); status != http.StatusInternalServerError {
		s.t.Errorf("/fail: %d", status)
	}
	// A package that signs with a secret of its own is not let through.
	if status, body := v.get(p, "/foreign"); status != http.StatusInternalServerError || body != "custody of keys is not available\n" {
		s.t.Errorf("a cookie that another secret signed: %d %q", status, body)
	}
	if !p.log.says("the cookie pref is signed with a secret of another: give its package the secret of the middleware") {
		s.t.Errorf("the log does not say whose cookie it was:\n%s", tail(p.log.String()))
	}
}

// rotate makes new versions in the middle of sessions. The old ones may then go,
// because whoever came by was given new cookies.
func (s *expressSite) rotate(old, fresh *visitor, app *process) {
	s.t.Helper()
	held := []string{old.cookie(app, "connect.sid"), old.cookie(app, "cs.sig")}
	for _, key := range []string{"dev/shop/express", "dev/shop/keygrip"} {
		s.custody.run("", "key", "rotate", key)
	}
	s.known(old, app)
	for i, name := range []string{"connect.sid", "cs.sig"} {
		if got := old.cookie(app, name); got == held[i] || got == "" {
			s.t.Errorf("the cookie %s was not signed by the new version", name)
		}
	}
	old.sees(app, "/set", "set") // of these cookies only the application knows the attributes
	for _, key := range []string{"dev/shop/express", "dev/shop/keygrip"} {
		s.custody.destroy(key)
	}
	s.known(old, app)
	fresh.sees(app, "/es/me", "-")
	fresh.sees(app, "/cs/me", "-")
	fresh.sees(app, "/pref", "false -")
}

// outage stops custody: nothing is answered, nobody is logged out.
func (s *expressSite) outage(v *visitor, app *process) {
	s.t.Helper()
	s.custody.outage(app, "claviger.Unavailable: custody does not answer at "+s.custody.socket, func() {
		stranger := newVisitor(s.t)
		for _, path := range []string{"/es/me", "/cs/me", "/pref"} {
			if status, body := v.get(app, path); status != http.StatusServiceUnavailable {
				s.t.Errorf("%s without custody: %d %.200q", path, status, body)
			}
		}
		for _, path := range []string{"/es/login", "/cs/login", "/es/login-empty", "/cs/login-empty", "/set", "/stream"} {
			if status, body := stranger.get(app, path); status != http.StatusServiceUnavailable || body != "custody of keys is not available\n" {
				s.t.Errorf("%s without custody: %d %.200q", path, status, body)
			}
		}
		for _, name := range []string{"connect.sid", "cs", "cs.sig", "pref"} {
			if got := stranger.cookie(app, name); got != "" {
				s.t.Errorf("without custody the cookie %s was set to %q", name, got)
			}
		}
	})
	s.known(v, app)
}

func ironSession(t *testing.T, dir string) {
	c, secret := newCustody(t), newSecret()
	c.adopt("dev/shop/iron", "iron", secret)
	script := filepath.Join(dir, "iron_app.mjs")
	local := launch(t, secret+"\n", nil, node(t), script, "local")
	local.holds(secret)
	app := launch(t, "", nil, node(t), script, "custody", "dev/shop/iron", c.socket)
	seal := func(v *visitor, p *process) string {
		v.sees(p, "/login", "in")
		status, body := v.get(p, "/seal")
		if status != http.StatusOK {
			t.Fatalf("/seal: %d\n%s", status, tail(p.log.String()))
		}
		return body
	}
	old, fresh, thief := newVisitor(t), newVisitor(t), newVisitor(t)
	before := seal(old, local)
	old.sees(app, "/me", "alice größe,3")
	old.sees(app, "/open", `{"id":5}`, "X-Token", before)
	after := seal(fresh, app)
	fresh.sees(local, "/me", "alice größe,3")
	fresh.sees(local, "/open", `{"id":5}`, "X-Token", after)
	for _, at := range []int{3, 4} { // the IV and the ciphertext; the end is in 5
		if one, two := strings.Split(before, "*"), strings.Split(after, "*"); len(one[at]) != len(two[at]) || one[1] != two[1] {
			t.Errorf("seals of other forms: %q %q", before, after)
		}
	}
	local.kill()

	old.sees(app, "/open", "{}", "X-Token", other(before))
	old.sees(app, "/open", "{}", "X-Token", "x~2")
	thief.set(app, "iron", other(old.cookie(app, "iron")))
	thief.sees(app, "/me", "-")

	c.run("", "key", "rotate", "dev/shop/iron")
	held := old.cookie(app, "iron")
	old.sees(app, "/me", "alice größe,3")
	if got := old.cookie(app, "iron"); got == held || got == "" {
		t.Error("the session was not sealed by the new version")
	}
	c.destroy("dev/shop/iron")
	old.sees(app, "/me", "alice größe,3")
	fresh.sees(app, "/me", "-")

	c.outage(app, "claviger.Unavailable: custody does not answer at ", func() {
		for _, path := range []string{"/me", "/login"} {
			if status, body := old.get(app, path); status != http.StatusServiceUnavailable {
				t.Errorf("%s without custody: %d %q", path, status, body)
			}
		}
	})
	old.sees(app, "/me", "alice größe,3")
	old.sees(app, "/out", "out")
	old.sees(app, "/me", "-")
	app.apart(c.socket, secret)
}

// authVersions are the paths of NextAuth 4 and Auth.js 5 in the application, and
// the cookies of their sessions.
var authVersions = map[string]string{"4": "next-auth.session-token", "5": "authjs.session-token"}

func authSessions(t *testing.T, dir string) {
	c, secret := newCustody(t), newSecret()
	c.adopt("dev/shop/auth", "authjs", secret)
	script := filepath.Join(dir, "auth_app.mjs")
	local := launch(t, secret+"\n", nil, node(t), script, "local")
	local.holds(secret)
	app := launch(t, "", nil, node(t), script, "custody", "dev/shop/auth", c.socket)
	old, fresh, thief := newVisitor(t), newVisitor(t), newVisitor(t)
	known := func(v *visitor, p *process, want bool) {
		t.Helper()
		for version := range authVersions {
			if status, body := v.get(p, "/"+version+"/session"); status != http.StatusOK || strings.Contains(body, `"name":"alice"`) != want {
				t.Errorf("/%s/session: %d %q\n%s", version, status, body, tail(p.log.String()))
			}
			name := "-"
			if want {
				name = "alice"
			}
			v.sees(p, "/token"+version, name)
		}
	}
	signIn(old, local)
	known(old, app, true)
	signIn(fresh, app)
	known(fresh, local, true)
	known(fresh, app, true)
	local.kill()
	for _, name := range authVersions {
		thief.set(app, name, other(fresh.cookie(app, name)))
	}
	known(thief, app, false)

	c.run("", "key", "rotate", "dev/shop/auth")
	known(old, app, true) // reading a session makes its token anew
	c.destroy("dev/shop/auth")
	known(old, app, true)
	known(fresh, app, false)

	c.outage(app, "claviger.Unavailable: custody does not answer at ", func() {
		for version, name := range authVersions {
			held := old.cookie(app, name)
			for _, path := range []string{"/" + version + "/session", "/token" + version} {
				if status, body := old.get(app, path); status != http.StatusServiceUnavailable {
					t.Errorf("%s without custody: %d %q", path, status, body)
				}
			}
			if old.cookie(app, name) != held {
				t.Errorf("without custody the cookie %s was taken away", name)
			}
		}
	})
	known(old, app, true)
	app.apart(c.socket, secret, derived(t, secret, "", "NextAuth.js Generated Encryption Key", 32),
		derived(t, secret, authVersions["5"], "Auth.js Generated Encryption Key ("+authVersions["5"]+")", 64))
}

// derived is the key that a framework derives of its secret.
func derived(t *testing.T, secret, salt, info string, size int) string {
	t.Helper()
	key, err := hkdf.Key(sha256.New, []byte(secret), []byte(salt), info, size)
	check(t, err)
	return string(key)
}

// signIn signs in to both versions.
func signIn(v *visitor, p *process) {
	v.t.Helper()
	v.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for version, name := range authVersions {
		_, csrf := v.get(p, "/"+version+"/csrf")
		form := url.Values{"name": {"alice"}, "csrfToken": {strings.TrimSuffix(strings.TrimPrefix(csrf, `{"csrfToken":"`), `"}`)}}
		req, err := http.NewRequest(http.MethodPost, p.base+"/"+version+"/callback/credentials", strings.NewReader(form.Encode()))
		check(v.t, err)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if status, body := v.do(req); status != http.StatusFound || v.cookie(p, name) == "" {
			v.t.Fatalf("sign-in to version %s: %d %q\n%s", version, status, body, tail(p.log.String()))
		}
	}
}
