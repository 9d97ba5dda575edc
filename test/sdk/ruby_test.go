package sdk_test

import (
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"hash"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// ruby is Debian's own, which has the framework that is tested.
const ruby = "/usr/bin/ruby"

const allYes = "yes yes yes yes yes yes"

// TestRails has the cookies of its time, which are Marshal's, and those of today.
func TestRails(t *testing.T) {
	for _, serializer := range []string{"marshal", "json"} {
		t.Run(serializer, func(t *testing.T) {
			s := &railsSite{t: t, serializer: serializer, dir: stageFor(t, "ruby"), custody: newCustody(t), secret: newSecret()}
			s.custody.adopt("dev/shop/rails", "rails", s.secret)
			local := s.launch(true)
			old := newVisitor(t)
			tokens := s.visit(old, local)
			keys := searchProcess(t, local.cmd.Process.Pid, append(s.keys(), s.secret)...)
			if len(keys) < 8 || !slices.Contains(keys, s.secret) {
				t.Fatalf("the search finds %d of the secret and its keys in a process that has them", len(keys))
			}

			app := s.launch(false)
			old.sees(app, "/me", "alice three apples")
			old.sees(app, "/pref", "dark größe x x")
			old.sees(app, "/check", allYes, "X-Tokens", strings.Join(tokens, " "))
			s.tampered(old, app, tokens)
			s.uncovered(old, app)

			// What custody makes is what the application made by itself.
			fresh := newVisitor(t)
			made := s.visit(fresh, app)
			fresh.sees(local, "/me", "alice three apples")
			fresh.sees(local, "/pref", "dark größe x x")
			fresh.sees(local, "/check", allYes, "X-Tokens", strings.Join(made, " "))
			for i, name := range []string{"a verifier", 2: "signed_id"} { // those without a time or a nonce in them
				if name != "" && made[i] != tokens[i] {
					t.Errorf("%s in custody makes %q, by itself %q", name, made[i], tokens[i])
				}
			}
			local.kill()
			s.unchanged(fresh, app)
			s.rotate(old, fresh, app, made)
			s.custody.outage(app, "Claviger::Unavailable (custody does not answer at "+s.custody.socket, func() {
				for _, path := range []string{"/me", "/login", "/cookie", "/pref", "/sign"} {
					if status, body := old.get(app, path); status != http.StatusInternalServerError {
						t.Errorf("%s without custody: %d %.200q", path, status, body)
					}
				}
			})
			old.sees(app, "/me", "alice three apples")
			old.sees(app, "/pref", "dark größe x x")
			if log := app.log.String(); strings.Contains(log, "three apples") || strings.Contains(log, "eyJ") {
				t.Errorf("a token or what is in it was logged:\n%s", tail(log))
			}
			app.apart(s.custody.socket, keys...)
		})
	}
}

// railsSite is an application, its directory and custody.
type railsSite struct {
	t                       *testing.T
	serializer, dir, secret string
	custody                 *custody
}

func (s *railsSite) launch(local bool) *process {
	s.t.Helper()
	app, data := filepath.Join(s.dir, "apps", "rails_app.rb"), filepath.Join(s.dir, "data")
	if local {
		return launch(s.t, s.secret+"\n", []string{"RAILS_ENV=production"}, ruby, app, "local", data, s.serializer)
	}
	return launch(s.t, "", s.environment(), ruby, s.arguments()...)
}

func (s *railsSite) environment() []string {
	return []string{"RAILS_ENV=production", "RUBYLIB=" + filepath.Join(s.dir, "sdk", "lib")}
}

func (s *railsSite) arguments() []string {
	return []string{filepath.Join(s.dir, "apps", "rails_app.rb"), "custody", filepath.Join(s.dir, "data"), s.serializer, "dev/shop/rails", s.custody.socket}
}

// keys returns what Rails derives from the secret, by its older and its newer
// defaults.
func (s *railsSite) keys() (keys []string) {
	s.t.Helper()
	for salt, size := range map[string]int{
		"signed cookie": 64, "authenticated encrypted cookie": 32, "encrypted cookie": 32, "signed encrypted cookie": 64,
		"mail": 64, "letters": 32, "active_record/signed_id": 64, "signed_global_ids": 64,
	} {
		for _, h := range []func() hash.Hash{sha1.New, sha256.New} {
			key, err := pbkdf2.Key(h, s.secret, []byte(salt), 1000, size)
			check(s.t, err)
			keys = append(keys, string(key))
		}
	}
	return keys
}

// visit logs in, leaves cookies, and returns one token of each kind.
func (s *railsSite) visit(v *visitor, p *process) []string {
	s.t.Helper()
	v.sees(p, "/login", "in")
	v.sees(p, "/cookie", "set")
	v.sees(p, "/pref", "dark größe x x")
	status, body := v.get(p, "/sign")
	tokens := strings.Split(body, "\n")
	if status != http.StatusOK || len(tokens) != 6 {
		s.t.Fatalf("/sign: %d %q\n%s", status, body, tail(p.log.String()))
	}
	return tokens
}

// tampered changes every token in one place.
func (s *railsSite) tampered(v *visitor, p *process, tokens []string) {
	s.t.Helper()
	bad := make([]string, len(tokens))
	for i, token := range tokens {
		bad[i] = other(token)
	}
	v.sees(p, "/check", "no no no no no no", "X-Tokens", strings.Join(bad, " "))
	v.sees(p, "/check", "no no no no no no", "X-Tokens", strings.Join([]string{"x", "--", "a--b", "é--" + tokens[0], "--", "a--b--c"}, " "))
	v.sees(p, "/check", "no no no no no no", "X-Tokens", strings.Join(append(tokens[1:], tokens[0]), " "))
	v.sees(p, "/old", "nil")
	thief := newVisitor(s.t)
	for _, name := range []string{"_shop", "pref", "note", "older", "former"} {
		thief.set(p, name, other(v.cookie(p, name)))
	}
	thief.sees(p, "/me", "- ")
	thief.sees(p, "/pref", "- - - -")
	thief.set(p, "pref", v.cookie(p, "note")) // a cookie by another name
	thief.set(p, "note", v.cookie(p, "_shop"))
	thief.sees(p, "/pref", "- - - -")
	// Forms are protected by the session, and custody has no part in it.
	_, token := v.get(p, "/csrf")
	post := func(token string) int {
		req, err := http.NewRequest(http.MethodPost, p.base+"/csrf", nil)
		check(s.t, err)
		req.Header.Set("X-CSRF-Token", token)
		status, _ := v.do(req)
		return status
	}
	if got := []int{post(token), post(other(token))}; !cmp.Equal(got, []int{200, 422}) {
		s.t.Errorf("a form was answered by %v, and one with a wrong token", got)
	}
}

// uncovered asks for a key's bytes, and starts with the old secret.
func (s *railsSite) uncovered(v *visitor, p *process) {
	s.t.Helper()
	for _, path := range []string{"/bytes", "/bytes?short=1"} {
		if status, body := v.get(p, path); status != http.StatusInternalServerError {
			s.t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if !p.log.says(`Claviger::Error (the key of the salt "mine" is wanted as bytes, and it is in custody`) {
		s.t.Errorf("the log does not say what is not covered:\n%s", tail(p.log.String()))
	}
	for _, name := range []string{"SECRET_KEY_BASE", "OLD_SECRET"} {
		cmd := exec.Command(ruby, s.arguments()...)
		cmd.Env = append(s.environment(), "PATH=/usr/bin:/bin", name+"="+s.secret)
		cmd.SysProcAttr, cmd.Dir = within()
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "a secret_key_base is still configured in ") || strings.Contains(string(out), s.secret) {
			s.t.Errorf("with the old secret in %s it says %v\n%s", name, err, tail(string(out)))
		}
	}
}

// unchanged holds a session to its token for as long as nothing in it changes.
func (s *railsSite) unchanged(v *visitor, p *process) {
	s.t.Helper()
	held := v.cookie(p, "_shop")
	v.sees(p, "/me", "alice three apples")
	if v.cookie(p, "_shop") != held {
		s.t.Error("a session that did not change has another token")
	}
	v.sees(p, "/add", "added")
	v.sees(p, "/me", "alice three apples,a pear")
}

// rotate makes a new version in the middle of sessions. The old one may then go,
// because whoever came by was given new cookies.
func (s *railsSite) rotate(old, fresh *visitor, app *process, tokens []string) {
	s.t.Helper()
	s.custody.run("", "key", "rotate", "dev/shop/rails")
	old.sees(app, "/me", "alice three apples")
	old.sees(app, "/pref", "dark größe x x")
	old.sees(app, "/check", allYes, "X-Tokens", strings.Join(tokens, " "))
	old.sees(app, "/me", "alice three apples") // the cookies that were made again are good now
	old.sees(app, "/pref", "dark größe x x")
	s.custody.destroy("dev/shop/rails")
	old.sees(app, "/me", "alice three apples")
	old.sees(app, "/pref", "dark größe x x")
	old.sees(app, "/check", "no no no no no no", "X-Tokens", strings.Join(tokens, " "))
	fresh.sees(app, "/me", "- ") // did not come by
	s.visit(newVisitor(s.t), app)
}

// TestRubyClient holds the client to threads, fibers, forks, deadlines and answers
// of others than the server.
func TestRubyClient(t *testing.T) {
	c := newCustody(t)
	c.adopt("dev/shop/rails", "rails", newSecret())
	cmd := exec.Command(ruby, "-w", "testdata/client_test.rb", c.socket)
	cmd.Env = append(os.Environ(), "RUBYLIB=../../sdk/ruby/lib")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
