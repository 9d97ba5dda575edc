package proxy_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/proxy"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	const head = "listen = '127.0.0.1:0'\nupstream = 'unix:/run/app.sock'\n"
	good := head + rule("sid", state.ExpressCookie, "")
	for name, text := range map[string]string{
		"":                             good,
		"nothing is translated":        head,
		"is not known":                 good + "[limits]\nheaders = 1\n",
		"not valid TOML":               "listen = ",
		"listen is no address":         strings.Replace(good, "127.0.0.1:0", "x", 1),
		"upstream is no address":       strings.Replace(good, "unix:/run/app.sock", "https://app:1", 1),
		"admin is no loopback":         "admin = '0.0.0.0:1'\n" + good,
		"certificate_key is missing":   "certificate = '/x'\n" + good,
		"directory is not absolute":    "directory = 'x'\n" + good,
		"is given no secret":           strings.Replace(good, "[[file]]\nname = 'secret'\ntext", "[[cookie]]\nname", 1),
		"cannot be made":               strings.Replace(good, "'secret'", "'../x'", 1),
		"a limit is negative":          good + "[limits]\ntokens = -1\n",
		"is no name of a cookie":       head + rule("a b", state.ExpressCookie, ""),
		"no cookie is of the format":   head + rule("sid", state.ASPNETLegacyViewState, ""),
		"has no key":                   strings.Replace(good, "key = 'prod/shop/key'", "key = ''", 1),
		"cannot stand in its cookie":   head + rule("sid", state.CookieSession, "text = 'percent'"),
		"renew is no list":             head + rule("sid", state.ExpressCookie, "renew = '; Path=/'"),
		"is not set again":             head + rule("sid", state.AuthJS, "renew = 'Path=/'"),
		"does not work with these":     head + rule("sid", state.RailsEncryptedCookie, "params = {size = 17}"),
		"of no common recipe set":      head + rule("a", state.ExpressCookie, "") + strings.Split(rule("b", state.FlaskSession, ""), "[[file]]")[0],
		"webforms has no key":          head + "[webforms]\n[[file]]\nname = 'a'\ntext = 'b'\n",
		"template of secret cannot be": strings.Replace(good, `{{secret "prod/shop/key"}}`, `{{secret "other"}}`, 1),
		"template of X cannot be":      good + "[environment]\nX = '{{decryption \"prod/shop/key\"}}'\n",
	} {
		cfg, err := load(t, text)
		if err == nil {
			var p *proxy.Proxy
			if p, err = proxy.New(cfg, newVault(recipe.CookieSignature, "x"), nil, slog.New(slog.DiscardHandler)); err == nil {
				var place *proxy.Place
				if place, err = p.Prepare(os.Geteuid(), os.Getegid()); err == nil {
					check(t, place.Remove())
				}
			}
		}
		if name == "" && err != nil || name != "" && (err == nil || claviger.CodeOf(err) != claviger.Invalid || !strings.Contains(err.Error(), name)) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// The application is given its secrets where it can read them and nobody else,
// and other ones at each start.
func TestPrepare(t *testing.T) {
	t.Parallel()
	text := "listen = '127.0.0.1:0'\nupstream = 'unix:/run/app.sock'\n"
	for i, f := range []state.Format{state.LaravelEncrypted, state.ASPNETForms, state.DataProtection, state.FlaskSession} {
		text += fmt.Sprintf("[[cookie]]\nname = 'c%d'\nformat = '%s'\nkey = 'k%d'\n", i, f, i)
	}
	text += "[[file]]\nname = 'web.config'\ntext = '''{{secret \"k0\"}} {{decryption \"k1\"}} {{validation \"k1\"}} {{id \"k2\"}} {{master \"k2\"}} {{secret \"k3\"}} {{hex \"k3\"}} {{base64 \"k3\"}}'''\n[environment]\nA = 'x{{secret \"k3\"}}'\n"
	cfg, err := load(t, text)
	check(t, err)
	seen := map[string]bool{}
	for range 2 {
		p, err := proxy.New(cfg, newVault(recipe.CookieSignature, "x"), func(context.Context) error { return errGone }, slog.New(slog.DiscardHandler))
		check(t, err)
		place, err := p.Prepare(os.Geteuid(), os.Getegid())
		check(t, err)
		name := filepath.Join(place.Dir, "web.config")
		content, err := os.ReadFile(name)
		check(t, err)
		words := strings.Fields(string(content))
		var sizes []int
		for _, w := range words {
			sizes = append(sizes, len(w))
			if seen[w] {
				t.Errorf("the same at two starts: %q", w)
			}
			seen[w] = true
		}
		if got, want := fmt.Sprint(sizes), "[51 64 128 36 88 64 128 88]"; got != want || place.Environment[0] != "A=x"+words[5] {
			t.Errorf("%s characters, want %s: %q %q", got, want, content, place.Environment)
		}
		for path, mode := range map[string]os.FileMode{place.Dir: 0o700 | os.ModeDir, name: 0o600} {
			if info, err := os.Stat(path); err != nil || info.Mode() != mode {
				t.Errorf("%s: %v %v", path, info.Mode(), err)
			}
		}
		check(t, place.Remove())
		if _, err := os.Stat(place.Dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", place.Dir, err)
		}
		r := &rig{t: t, proxy: p}
		for path, want := range map[string]int{"/livez": http.StatusOK, "/readyz": http.StatusServiceUnavailable, "/metrics": http.StatusOK, "/": http.StatusNotFound} {
			if code, body := r.admin(path); code != want || strings.Contains(body, "k0") {
				t.Errorf("%s: %d %q", path, code, body)
			}
		}
	}
}

// A directory into which others can write is no place for secrets.
func TestDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	check(t, os.Symlink(dir, filepath.Join(dir, "link")))
	for name, test := range map[string]struct {
		mode os.FileMode
		uid  int
		fine bool
	}{
		"own": {0o755, os.Geteuid(), true}, "closed": {0o700, os.Geteuid(), true}, "for all": {0o777 | os.ModeSticky, os.Geteuid(), false}, "for a group": {0o770, os.Geteuid(), false},
		"foreign": {0o700, 4242, false}, "link": {},
	} {
		path := filepath.Join(dir, name)
		if name != "link" {
			check(t, os.Mkdir(path, 0o700))
			check(t, os.Chmod(path, test.mode))
		}
		if test.uid == 4242 {
			if os.Chown(path, test.uid, test.uid) != nil {
				continue // only root gives a directory away
			}
		}
		cfg, err := load(t, fmt.Sprintf("listen = '127.0.0.1:0'\nupstream = 'unix:/run/app.sock'\ndirectory = '%s'\n[[cookie]]\nname = 'c'\nformat = 'flask.session'\nkey = 'k'\n[[file]]\nname = 'secret'\ntext = '{{secret \"k\"}}'\n", path))
		check(t, err)
		p, err := proxy.New(cfg, newVault(recipe.Flask, "x"), func(context.Context) error { return nil }, slog.New(slog.DiscardHandler))
		check(t, err)
		place, err := p.Prepare(os.Geteuid(), os.Getegid())
		if (err == nil) != test.fine {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			check(t, place.Remove())
		}
	}
}
