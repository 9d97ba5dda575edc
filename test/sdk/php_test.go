package sdk_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// php is Debian's own, which has the frameworks that are tested.
const php = "/usr/bin/php"

// stagePHP copies the adapters and the applications to where every uid may read
// them, and returns the directory.
func stagePHP(t *testing.T) string {
	t.Helper()
	dir := openDir(t)
	check(t, os.CopyFS(filepath.Join(dir, "sdk"), os.DirFS("../../sdk/php/src")))
	check(t, os.CopyFS(filepath.Join(dir, "apps"), os.DirFS("testdata/php")))
	for _, name := range []string{"data", "apps/laravel/bootstrap/cache", "apps/symfony/var"} {
		check(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
		check(t, os.Chown(filepath.Join(dir, name), application, application))
	}
	return dir
}

func TestLaravel(t *testing.T) {
	for name, hashed := range map[string]bool{"AES-256-CBC": false, "AES-256-GCM": false, "AES-256-CBC, passwords hashed": true} {
		t.Run(name, func(t *testing.T) {
			s := &laravelSite{t: t, cipher: name[:len("AES-256-CBC")], hashed: hashed, dir: stagePHP(t), custody: newCustody(t), secret: newSecret()[:32]}
			s.custody.adopt("dev/shop/laravel", "laravel", s.secret)
			local := s.launch(true)
			local.holds(s.secret)
			old := newVisitor(t)
			tokens := s.visit(old, local)

			app := s.launch(false)
			s.known(old, app, tokens)
			s.tampered(old, app, tokens)

			// What custody makes is what the application made by itself.
			fresh := newVisitor(t)
			made := s.visit(fresh, app)
			s.known(fresh, local, made)
			if url := 2; made[url] != tokens[url] { // it has no time and no nonce in it
				t.Errorf("a URL signed in custody is %q, by itself %q", made[url], tokens[url])
			}
			local.kill()
			s.uncovered(fresh, app)
			s.rotate(old, fresh, app, made)
			s.custody.outage(app, "custody does not answer at "+s.custody.socket, func() {
				for _, path := range []string{"/me", "/login", "/cookie", "/sign", "/framework", path(made[2])} {
					if status, body := old.get(app, path); status != http.StatusInternalServerError || body != `Claviger\Unavailable` {
						t.Errorf("%s without custody: %d %.200q", path, status, body)
					}
				}
			})
			if said, log := app.log.says("SensitiveParameterValue"), app.log.String(); !said || strings.Contains(log, "three apples") || strings.Contains(log, "eyJpdiI6") {
				t.Errorf("a token or what is in it was logged, or no call was:\n%s", tail(log))
			}
			old.sees(app, "/me", "alice three apples")
			app.apart(s.custody.socket, s.secret)
		})
	}
}

// laravelSite is an application, its sessions and custody.
type laravelSite struct {
	t                   *testing.T
	cipher, dir, secret string
	hashed              bool // as Laravel 12.45 and later keep what the password was
	custody             *custody
}

// arguments are those of the application's process.
func (s *laravelSite) arguments(mode string) []string {
	// Calls that fail are then logged with what they were given.
	return []string{"-d", "zend.exception_ignore_args=0", filepath.Join(s.dir, "apps", "laravel", "app.php"), mode, s.cipher, filepath.Join(s.dir, "data")}
}

func (s *laravelSite) environment() []string {
	return []string{s.hashing(), "ADAPTERS=" + filepath.Join(s.dir, "sdk"), "CLAVIGER_KEY=dev/shop/laravel", "CLAVIGER_SOCKET=" + s.custody.socket}
}

func (s *laravelSite) launch(local bool) *process {
	s.t.Helper()
	if local {
		return launch(s.t, appKey(s.secret)+"\n", []string{s.hashing()}, php, s.arguments("local")...)
	}
	return launch(s.t, "", s.environment(), php, s.arguments("custody")...)
}

func (s *laravelSite) hashing() string {
	if s.hashed {
		return "HASHED=1"
	}
	return "HASHED="
}

func appKey(secret string) string {
	return "base64:" + base64.StdEncoding.EncodeToString([]byte(secret))
}

// path returns the path and the query of a URL.
func path(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	return u.RequestURI()
}

// visit logs in, leaves cookies, and returns one token of each kind.
func (s *laravelSite) visit(v *visitor, p *process) []string {
	s.t.Helper()
	v.sees(p, "/login", "in")
	v.sees(p, "/cookie", "set")
	status, body := v.get(p, "/sign")
	tokens := strings.Split(body, "\n")
	if status != http.StatusOK || len(tokens) != 6 {
		s.t.Fatalf("/sign: %d %q\n%s", status, body, tail(p.log.String()))
	}
	return tokens
}

// known visits all that a visitor's cookies and tokens are good for.
func (s *laravelSite) known(v *visitor, p *process, tokens []string) {
	s.t.Helper()
	v.sees(p, "/me", "alice three apples")
	v.sees(p, "/pref", "dark light")
	v.sees(p, "/framework", "dark")
	v.sees(p, "/check", "yes yes yes yes yes yes", "X-Tokens", strings.Join(tokens, " "))
	for i, want := range []string{2: "open 5", 3: "open 6", 4: "open 7"} {
		if want != "" {
			v.sees(p, path(tokens[i]), want)
		}
	}
	if status := s.post(v, p, v.cookie(p, "XSRF-TOKEN")); status != http.StatusOK {
		s.t.Errorf("a form was answered by %d", status)
	}
	// Whoever is remembered is logged in without a session.
	remembered := s.remembered(v, p)
	remembered.sees(p, "/me", "alice -")
}

// post sends a form with the token that a script reads from a cookie.
func (s *laravelSite) post(v *visitor, p *process, token string) int {
	s.t.Helper()
	req, err := http.NewRequest(http.MethodPost, p.base+"/form", nil)
	check(s.t, err)
	token, err = url.QueryUnescape(token)
	check(s.t, err)
	req.Header.Set("X-XSRF-TOKEN", token)
	status, _ := v.do(req)
	return status
}

// tampered changes every token in one place.
func (s *laravelSite) tampered(v *visitor, p *process, tokens []string) {
	s.t.Helper()
	bad := make([]string, len(tokens))
	for i, token := range tokens {
		bad[i] = other(token)
	}
	closure, err := base64.StdEncoding.DecodeString(tokens[5])
	check(s.t, err)
	forged := strings.Replace(string(closure), "i:42;", "i:43;", 1)
	if forged == string(closure) {
		s.t.Fatalf("the closure is %q", closure)
	}
	bad[5] = base64.StdEncoding.EncodeToString([]byte(forged))
	v.sees(p, "/check", "no no no no no no", "X-Tokens", strings.Join(bad, " "))
	unsigned := strings.Join([]string{"x", "eyJpdiI6", "/open/5", "/open/5?signature=", "/relative/7?signature[]=a", bad[5]}, " ")
	v.sees(p, "/check", "no no no no no no", "X-Tokens", unsigned)
	if status, _ := v.get(p, path(tokens[2])+"&admin=1"); status != http.StatusForbidden {
		s.t.Errorf("a URL with something added was answered by %d", status)
	}
	thief := newVisitor(s.t)
	for _, name := range []string{"pref", "laravel_session", "XSRF-TOKEN"} {
		thief.set(p, name, other(v.cookie(p, name)))
	}
	thief.set(p, "_ga", "GA1.1.1")
	thief.sees(p, "/pref", "- -")
	thief.sees(p, "/me", "- -")
	thief.set(p, "pref", v.cookie(p, "laravel_session")) // one cookie is no other
	thief.sees(p, "/pref", "- -")
	if status := s.post(v, p, other(v.cookie(p, "XSRF-TOKEN"))); status != 419 {
		s.t.Errorf("a form with a wrong token was answered by %d", status)
	}
}

// uncovered asks for what no adapter can give.
func (s *laravelSite) uncovered(v *visitor, app *process) {
	s.t.Helper()
	for _, path := range []string{"/passport", "/forgotten"} {
		if status, body := v.get(app, path); status != http.StatusInternalServerError || body != `Claviger\Error` {
			s.t.Errorf("%s asked for the key's bytes, and the answer was %d %q", path, status, body)
		}
	}
	// Only what a visitor does not have yet is made again.
	before := v.cookie(app, "laravel_session")
	if v.sees(app, "/me", "alice three apples"); v.cookie(app, "laravel_session") != before {
		s.t.Error("a cookie that did not change was made again")
	}
}

// rotate makes a new version in the middle of sessions. The old one may then go,
// because whoever came by was given new cookies.
func (s *laravelSite) rotate(old, fresh *visitor, app *process, tokens []string) {
	s.t.Helper()
	before := old.cookie(app, "laravel_session")
	s.custody.run("", "key", "rotate", "dev/shop/laravel")
	old.sees(app, "/me", "alice three apples")
	if old.cookie(app, "laravel_session") == before {
		s.t.Error("a session of the old version was not made again")
	}
	s.known(fresh, app, tokens)
	s.custody.destroy("dev/shop/laravel")
	old.sees(app, "/me", "alice three apples")
	fresh.sees(app, "/me", "alice three apples")
	fresh.sees(app, "/pref", "- light")
	fresh.sees(app, "/check", "no no no no no no", "X-Tokens", strings.Join(tokens, " "))
	s.known(fresh, app, s.visit(fresh, app))
}

// TestLaravelRemembers rotates under a visitor whose cookie of "remember me" has a
// hash by the old version in it, which is made again when it lets him in.
func TestLaravelRemembers(t *testing.T) {
	s := &laravelSite{t: t, cipher: "AES-256-CBC", hashed: true, dir: stagePHP(t), custody: newCustody(t), secret: newSecret()[:32]}
	s.custody.adopt("dev/shop/laravel", "laravel", s.secret)
	local := s.launch(true)
	old := newVisitor(t)
	old.sees(local, "/login", "in")
	local.kill()
	app := s.launch(false)
	s.custody.run("", "key", "rotate", "dev/shop/laravel")
	remembered := s.remembered(old, app)
	remembered.sees(app, "/me", "alice -")
	s.custody.destroy("dev/shop/laravel")
	remembered.sees(app, "/me", "alice -")
	again := s.remembered(remembered, app)
	again.sees(app, "/me", "alice -")
	s.remembered(old, app).sees(app, "/me", "- -")
}

// remembered is a visitor who has nothing but the cookie of another.
func (s *laravelSite) remembered(v *visitor, p *process) *visitor {
	s.t.Helper()
	remembered := newVisitor(s.t)
	u, err := url.Parse(p.base)
	check(s.t, err)
	for _, c := range v.client.Jar.Cookies(u) {
		if strings.HasPrefix(c.Name, "remember_web_") {
			remembered.set(p, c.Name, c.Value)
		}
	}
	return remembered
}

// TestLaravelRefuses starts applications that still have their key.
func TestLaravelRefuses(t *testing.T) {
	s := &laravelSite{t: t, cipher: "AES-256-CBC", dir: stagePHP(t), custody: &custody{socket: "/nowhere"}, secret: strings.Repeat("s", 32)}
	file := filepath.Join(s.dir, "apps", "laravel", ".env")
	for name, test := range map[string]struct{ env, file, want string }{
		"configuration":      {env: "CONFIGURED=" + appKey(s.secret), want: "app.key is still configured here"},
		"random, in a cache": {env: "CONFIGURED=a CACHED=a", want: "custody does not answer at /nowhere"},
		"environment":        {env: "APP_KEY=" + appKey(s.secret), want: "APP_KEY is still configured here"},
		"previous keys":      {env: "APP_PREVIOUS_KEYS=" + appKey(s.secret), want: "APP_PREVIOUS_KEYS is still configured here"},
		"file":               {file: "APP_NAME=shop\nAPP_KEY=" + appKey(s.secret) + "\n", want: "APP_KEY is still configured here"},
		"file, after export": {file: "export APP_KEY=\"" + appKey(s.secret) + "\"\n", want: "APP_KEY is still configured here"},
		"emptied":            {file: "APP_KEY=\n#APP_KEY=x\n", want: "custody does not answer at /nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			check(t, os.WriteFile(file, []byte(test.file), 0o644))
			p := launch(t, "", append(s.environment(), strings.Fields(test.env)...), php, s.arguments("custody")...)
			if status, body := newVisitor(t).get(p, "/login"); status != http.StatusInternalServerError {
				t.Errorf("%d %q", status, body)
			}
			if said, text := p.log.says(test.want), p.log.String(); !said || strings.Contains(text, s.secret) || strings.Contains(text, appKey(s.secret)) {
				t.Errorf("it says\n%s", tail(text))
			}
			p.kill()
		})
	}
}

// TestPHPClient holds the client to large tokens, refusals and forks.
func TestPHPClient(t *testing.T) {
	c := newCustody(t)
	c.adopt("dev/shop/laravel", "laravel", newSecret()[:32])
	want := strings.Join([]string{
		"6772f6df65 1 false", "NULL", "bool(true)", "Claviger\\Error not_found", "Claviger\\Error unsupported", "Claviger\\Error invalid",
		"bool(true)", "int(0)", "int(0)", "int(0)", "",
	}, "\n")
	if diff := cmp.Diff(want, runPHP(t, "testdata/php/client.php", "use", c.socket)); diff != "" {
		t.Error(diff)
	}
}

// TestPHPClientAnswers gives the client answers of others than the server.
func TestPHPClientAnswers(t *testing.T) {
	t.Parallel()
	const no, yes = `{"items":[{}]}`, `{"items":[{"ok":true,"payload":"aGk=","version":2,"renew":true}]}`
	ok := func(body string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	for name, test := range map[string]struct {
		answers []string // of connections one after the other, | where the next request is awaited
		want    string   // of calls
	}{
		"kept":            {[]string{ok(no) + "|" + ok(yes)}, "not valid\nhi 2 true"},
		"closed after":    {[]string{"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n" + "xx", ok(no)}, "Claviger\\Unavailable unavailable\nnot valid"},
		"kept, then gone": {[]string{ok(no) + "|", ok(yes)}, "not valid\nhi 2 true"},
		"more than asked": {[]string{ok(no) + ok(no) + "|", ok(yes)}, "not valid\nhi 2 true"},
		"new, then gone":  {[]string{"", ok(yes)}, "Claviger\\Unavailable unavailable\nhi 2 true"},
		"half an answer":  {[]string{ok(yes)[:60], ok(no)}, "Claviger\\Unavailable unavailable\nnot valid"},
		"chunked":         {[]string{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7;a=b\r\n{\"items\r\n7\r\n\":[{}]}\r\n0\r\n\r\n|" + ok(yes)}, "not valid\nhi 2 true"},
		"long chunks":     {[]string{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n"}, "Claviger\\Unavailable unavailable"},
		"long answer":     {[]string{"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n"}, "Claviger\\Unavailable unavailable"},
		"negative length": {[]string{"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"}, "Claviger\\Unavailable unavailable"},
		"no length":       {[]string{"HTTP/1.1 200 OK\r\n\r\n"}, "Claviger\\Unavailable unavailable"},
		"no HTTP":         {[]string{"SSH-2.0-OpenSSH_9.2\r\n\r\n"}, "Claviger\\Unavailable unavailable"},
		"no JSON":         {[]string{ok("<html>")}, "Claviger\\Unavailable unavailable"},
		"a list":          {[]string{ok("[]")}, "Claviger\\Unavailable unavailable"},
		"no items":        {[]string{ok(`{"items":[]}`)}, "Claviger\\Unavailable unavailable"},
		"no version":      {[]string{ok(`{"items":[{"ok":true}]}`)}, "Claviger\\Unavailable unavailable"},
		"no base64":       {[]string{ok(`{"items":[{"ok":true,"payload":"%","version":1}]}`)}, "Claviger\\Unavailable unavailable"},
		"an empty token":  {[]string{ok(`{"items":[{"ok":true,"version":1}]}`)}, " 1 false"},
		"refused":         {[]string{"HTTP/1.1 403 Forbidden\r\nClaviger-Code: denied\r\nContent-Length: 2\r\n\r\n{}"}, "Claviger\\Error denied"},
		"stale":           {[]string{"HTTP/1.1 503 Unavailable\r\nClaviger-Code: stale\r\nContent-Length: 2\r\n\r\n{}"}, "Claviger\\Unavailable stale"},
		"code in body":    {[]string{"HTTP/1.1 404 Not Found\r\nContent-Length: 20\r\n\r\n{\"code\":\"not_found\"}"}, "Claviger\\Error not_found"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := strings.Count(test.want, "\n") + 1
			got := runPHP(t, "testdata/php/client.php", "check", fakeServer(t, test.answers), "2", strconv.Itoa(calls))
			if diff := cmp.Diff(test.want+"\n", got); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		t.Parallel()
		if got := runPHP(t, "testdata/php/client.php", "check", fakeServer(t, []string{"HTTP/1.1 200 OK\r\n|"}), "0.1", "1"); got != "Claviger\\Unavailable unavailable\n" {
			t.Errorf("%q", got)
		}
	})
}

// runPHP returns what a script writes.
func runPHP(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(php, args...)
	cmd.Env = append(os.Environ(), "ADAPTERS=../../sdk/php/src")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v", err)
	}
	return string(out)
}

// fakeServer answers each connection in a given way, and returns its socket.
func fakeServer(t *testing.T, answers []string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	check(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for _, answer := range answers {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			buffer := make([]byte, 65536)
			for part := range strings.SplitSeq(answer, "|") {
				if _, err := connection.Read(buffer); err != nil {
					break
				}
				_, _ = io.WriteString(connection, part)
			}
			_ = connection.Close()
		}
	}()
	return path
}
