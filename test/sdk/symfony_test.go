package sdk_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fieldsHash is that of the user's properties, which does not depend on the
// secret. It ends every signature.
const fieldsHash = "rPzRxd7qbNHCcOASG0VUvT64vgRrZEKmpo0CAZN3TrU~"

func TestSymfony(t *testing.T) {
	s := &symfonySite{t: t, dir: stagePHP(t), custody: newCustody(t), secret: newSecret()}
	s.custody.adopt("dev/shop/symfony", "symfony", s.secret)
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
	for i, token := range made[:3] { // those without a time
		if token != tokens[i] {
			t.Errorf("custody makes %q, the application by itself %q", token, tokens[i])
		}
	}
	_, own := fresh.get(local, "/own")
	local.kill()
	s.rotate(old, fresh, app, made)
	s.custody.outage(app, "custody does not answer at "+s.custody.socket, func() {
		for _, page := range []string{"/me", "/login", "/link", "/sign", path(made[2]), path(made[3])} {
			if status, body := old.get(app, page); status != http.StatusInternalServerError {
				t.Errorf("%s without custody: %d %.200q", page, status, body)
			}
		}
		newVisitor(t).sees(app, "/own", own) // what has a secret of its own needs no custody
	})
	old.sees(app, "/me", "alice")
	if log := app.log.String(); strings.Contains(log, fieldsHash) || strings.Contains(log, "_hash=") {
		t.Errorf("a token was logged:\n%s", tail(log))
	}
	app.apart(s.custody.socket, s.secret)
}

// symfonySite is an application and custody.
type symfonySite struct {
	t           *testing.T
	dir, secret string
	custody     *custody
}

func (s *symfonySite) launch(local bool, environment ...string) *process {
	s.t.Helper()
	args := []string{"-d", "zend.exception_ignore_args=0", filepath.Join(s.dir, "apps", "symfony", "app.php"), "custody", filepath.Join(s.dir, "data")}
	stdin := ""
	if local {
		args[3], stdin = "local", s.secret+"\n"
	}
	environment = append(environment, "ADAPTERS="+filepath.Join(s.dir, "sdk"), "CLAVIGER_KEY=dev/shop/symfony", "CLAVIGER_SOCKET="+s.custody.socket)
	return launch(s.t, stdin, environment, php, args...)
}

// visit logs in, and returns signed URIs and a login link.
func (s *symfonySite) visit(v *visitor, p *process) []string {
	s.t.Helper()
	v.sees(p, "/login", "in")
	status, body := v.get(p, "/sign")
	linked, link := v.get(p, "/link")
	tokens := append(strings.Split(body, "\n"), link)
	if status != http.StatusOK || linked != http.StatusOK || len(tokens) != 4 {
		s.t.Fatalf("/sign: %d %q, /link: %d %q\n%s", status, body, linked, link, tail(p.log.String()))
	}
	return tokens
}

// known visits all that a visitor's cookie and tokens are good for.
func (s *symfonySite) known(v *visitor, p *process, tokens []string) {
	s.t.Helper()
	v.sees(p, "/me", "alice")
	v.sees(p, "/check", "yes yes yes", "X-Tokens", strings.Join(tokens[:3], " "))
	v.sees(p, path(tokens[2]), "a part for alice")
	newVisitor(s.t).sees(p, path(tokens[3]), "in")
}

// tampered changes every token in one place.
func (s *symfonySite) tampered(v *visitor, p *process, tokens []string) {
	s.t.Helper()
	bad := make([]string, 3)
	for i, token := range tokens[:3] {
		bad[i] = other(token)
	}
	v.sees(p, "/check", "no no no", "X-Tokens", strings.Join(bad, " "))
	v.sees(p, "/check", "no no no no no", "X-Tokens", "/plain /plain?_hash=x /plain?_hash[]=x /plain?_hash= "+strings.Replace(tokens[0], "b&tags", "c&tags", 1))
	if status, _ := v.get(p, path(bad[2])); status != http.StatusForbidden {
		s.t.Errorf("a fragment whose URI was changed was answered by %d", status)
	}
	for _, link := range []string{
		strings.Replace(tokens[3], "user=alice", "user=bob", 1),
		strings.Replace(tokens[3], "hash=", "hash=A", 1),
		strings.Replace(tokens[3], fieldsHash, strings.Repeat("A", 43)+"~", 1),
		strings.Replace(tokens[3], "expires=1", "expires=2", 1),
		strings.Replace(tokens[3], "expires=1", "expires=", 1),
	} {
		if status, body := newVisitor(s.t).get(p, path(link)); body == "in" || link == tokens[3] {
			s.t.Errorf("%s: %d %q", link, status, body)
		}
	}
	cookie := v.cookie(p, "REMEMBERME")
	for _, wrong := range []string{other(cookie), strings.Replace(cookie, "YWxpY2U~", "Ym9i", 1), cookie[:len(cookie)-4], "x", "a:b:c:d"} {
		thief := newVisitor(s.t)
		thief.set(p, "REMEMBERME", wrong)
		thief.sees(p, "/me", "-")
	}
}

// rotate makes a new version. The old one may then go, because a remember-me
// cookie is made again whenever it is used.
func (s *symfonySite) rotate(old, fresh *visitor, app *process, tokens []string) {
	s.t.Helper()
	s.custody.run("", "key", "rotate", "dev/shop/symfony")
	s.known(fresh, app, tokens)
	before := old.cookie(app, "REMEMBERME")
	old.sees(app, "/me", "alice")
	if old.cookie(app, "REMEMBERME") == before {
		s.t.Error("a cookie of the old version was not made again")
	}
	s.custody.destroy("dev/shop/symfony")
	old.sees(app, "/me", "alice")
	fresh.sees(app, "/me", "alice")
	old.sees(app, "/check", "no no no", "X-Tokens", strings.Join(tokens[:3], " "))
	s.known(fresh, app, s.visit(fresh, app))
}

// TestSymfonyRefuses starts applications that still have their secret.
func TestSymfonyRefuses(t *testing.T) {
	for name, test := range map[string]struct{ env, want string }{
		"environment":   {"APP_SECRET=still-there", "APP_SECRET is still configured here"},
		"configuration": {"CONFIGURED=still-there", "framework.secret is still a secret"},
		"by its name":   {"CONFIGURED=%env(APP_SECRET)%", "framework.secret is still a secret"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &symfonySite{t: t, dir: stagePHP(t), custody: &custody{socket: "/nowhere"}}
			p := s.launch(false, test.env)
			if status, body := newVisitor(t).get(p, "/login"); status != http.StatusInternalServerError {
				t.Errorf("%d %q", status, body)
			}
			if said, text := p.log.says(test.want), p.log.String(); !said || strings.Contains(text, "still-there") {
				t.Errorf("it says\n%s", tail(text))
			}
			p.kill()
			check(t, filepath.WalkDir(filepath.Join(s.dir, "data"), func(path string, entry os.DirEntry, err error) error {
				if err != nil || entry.IsDir() {
					return err
				}
				if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), "still-there") {
					t.Errorf("it is in %s: %v", path, err)
				}
				return nil
			}))
		})
	}
}

// TestSymfonyServices holds the container's pass to services of each kind.
func TestSymfonyServices(t *testing.T) {
	t.Parallel()
	want := strings.Join([]string{
		`signer: Claviger\Symfony\UriSigner, random, 1`,
		`own: Symfony\Component\HttpKernel\UriSigner, its own, 0`,
		`throttle: Symfony\Component\Security\Http\RateLimiter\DefaultLoginRateLimiter, of this container, 0`,
		`other: stdClass, random, 0`,
		"",
	}, "\n")
	if diff := cmp.Diff(want, runPHP(t, "testdata/php/symfony/pass.php")); diff != "" {
		t.Error(diff)
	}
}
