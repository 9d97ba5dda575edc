package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/appsecret"
	"claviger.dev/internal/recipe"
)

// place is where a secret stands, as flags.
type place struct {
	path, kind, name, masterKey string
	line                        int
}

func (p *place) register(f *pflag.FlagSet) {
	f.StringVar(&p.path, "from", "", "file or directory where the secret stands")
	f.StringVar(&p.kind, "kind", "", "what it is, when its name does not tell: web.config, dotenv, python, properties, yaml, rails-credentials or key-ring")
	f.StringVar(&p.name, "name", "", "the variable or setting, where there are several")
	f.IntVar(&p.line, "line", 0, "the line, where it is set more than once")
	f.StringVar(&p.masterKey, "master-key", "", "file of the key of Rails credentials; the one beside them when left out")
}

// read reads the place. Its path becomes the real one, without links.
func (p *place) read(set recipe.Set, encoding string) (*appsecret.Found, error) {
	real, err := filepath.EvalSymlinks(p.path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return nil, err
	}
	asked := p.path
	p.path = real
	info, err := os.Stat(real)
	if err != nil {
		return nil, err
	}
	kind, known := appsecret.Kind(p.kind), true
	if p.kind == "" {
		if kind, known = appsecret.Guess(asked); !known {
			kind, known = appsecret.Guess(real)
		}
		if info.IsDir() {
			kind, known = appsecret.KeyRing, true
		}
	}
	if !known {
		return nil, usagef("the name of the file does not tell what it is: give --kind")
	}
	src := appsecret.Source{Now: time.Now()}
	switch {
	case info.IsDir() != (kind == appsecret.KeyRing):
		return nil, usagef("a key ring is a directory, and every other kind a file")
	case info.IsDir():
		src.Ring, err = readRing(real)
	default:
		src.Data, err = readRegular(real, appsecret.MaxSize)
	}
	if err == nil && kind == appsecret.Credentials {
		src.Key, err = readRegular(p.keyFile(), 4096)
		defer clear(src.Key)
	}
	if err != nil {
		return nil, err
	}
	defer clear(src.Data)
	return appsecret.Read(kind, src, appsecret.Choice{Set: set, Name: p.name, Line: p.line, Encoding: encoding})
}

// keyFile is the file of the key of Rails credentials: config/master.key for
// config/credentials.yml.enc, and config/credentials/production.key for
// config/credentials/production.yml.enc.
func (p *place) keyFile() string {
	dir, base := filepath.Split(p.path)
	switch stem, _, _ := strings.Cut(base, "."); {
	case p.masterKey != "":
		return p.masterKey
	case stem == "credentials":
		return filepath.Join(dir, "master.key")
	default:
		return filepath.Join(dir, stem+".key")
	}
}

// readRegular reads a regular file of at most so many bytes, and nothing that
// could block or never end.
func readRegular(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readOpen(f, most)
}

func readOpen(f fs.File, most int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, usagef("%q is no regular file", info.Name())
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		clear(data)
		return nil, usagef("%q is larger than %d bytes", info.Name(), most)
	}
	return data, err
}

// readRing reads the files of a key ring. A link that leads out of the directory
// is not followed.
func readRing(dir string) ([]appsecret.File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	names, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*.xml"))
	if err != nil {
		return nil, err
	}
	if len(names) > appsecret.MaxEntries {
		return nil, usagef("%q has more than %d files: it is no key ring", dir, appsecret.MaxEntries)
	}
	var files []appsecret.File
	for _, name := range names {
		f, err := root.OpenFile(filepath.Base(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		data, err := readOpen(f, appsecret.MaxSize)
		_ = f.Close()
		if err != nil {
			return nil, err
		}
		files = append(files, appsecret.File{Name: filepath.Base(name), Data: data})
	}
	return files, nil
}

// escapeGlob writes a path so that a pattern takes it as it is.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// guideOf is the page of a recipe set.
func guideOf(set recipe.Set) string {
	switch set {
	case recipe.Itsdangerous:
		return "docs/guide/flask.md"
	case recipe.CookieSignature, recipe.Keygrip, recipe.JWT:
		return "docs/guide/express.md"
	case recipe.Iron:
		return "docs/guide/iron-session.md"
	case recipe.AuthJS:
		return "docs/guide/nextauth.md"
	case recipe.ASPNET, recipe.ASPNETLegacy:
		return "docs/guide/aspnet.md"
	case recipe.DataProtection:
		return "docs/guide/aspnet-core.md"
	case recipe.Django, recipe.Flask, recipe.Rails, recipe.Laravel, recipe.Symfony:
		return "docs/guide/" + string(set) + ".md"
	}
	return "docs/guide/proxy.md"
}

// installing says how to make the change, and which page has the rest.
func installing(found *appsecret.Found) (what, guide string) {
	guide = guideOf(found.Set)
	switch adapter := found.Adapter(); adapter {
	case appsecret.NoAdapter:
		return "leave its machineKey where it is: tokens of the modes before 4.5 are checked and opened in custody, and never made.\n" +
			"Move it to compatibilityMode=\"Framework45\" first, which ends them once, and adopt then", guide
	case appsecret.ProxyAdapter:
		return "there is no adapter for it; start it behind 'claviger agent proxy', as above.\n" +
			"The proxy translates cookies. Tokens in headers and bodies it does not see: for those have the application call\n" +
			"StateService on the local socket (docs/api.md)", guideOf("")
	default:
		what = "install " + string(adapter) + ", and make the change above"
		if found.Set == recipe.JWT {
			what += ".\nIn another language than JavaScript have it call StateService on the local socket (docs/api.md), or start it behind\n" +
				"'claviger agent proxy' where the token is a cookie"
		}
		return what, guide
	}
}

// nextSteps says what remains to be done. s is nil for a plan.
func (a *app) nextSteps(c *cobra.Command, s *client.Client, key string, found *appsecret.Found, path string) []string {
	var steps []string
	if granted := mayUse(c, s, key); granted != "" {
		steps = append(steps, "Nothing to grant: "+granted+" may use the key already.")
	} else if found.Set == recipe.ASPNET {
		steps = append(steps, fmt.Sprintf("Let the application use the key, by the principal of its host's certificate:\nclaviger grant create HOST %s protect,unprotect", key))
	} else {
		environment, _, _ := strings.Cut(key, "/")
		steps = append(steps, fmt.Sprintf("Let the application use the key, by the uid that it runs under:\nclaviger principal create uid:UID --environment %s\nclaviger grant create uid:UID %s protect,unprotect", environment, key))
	}
	what, guide := installing(found)
	change := "Change the application: " + what + ".\nWhat that covers, and how to go back: " + guide
	for set, framework := range map[recipe.Set]string{recipe.Django: "django", recipe.Rails: "rails", recipe.Laravel: "laravel"} {
		if set == found.Set {
			change += "\nWhat it does not cover in your own code: claviger state audit-app DIRECTORY --framework " + framework
		}
	}
	if steps = append(steps, change); found.Adapter() == appsecret.NoAdapter {
		return steps
	}
	remove := "Remove the secret from " + path
	switch found.Kind {
	case appsecret.KeyRing:
		remove = "Delete the files of the ring in " + path
	case appsecret.Credentials:
		remove = "Remove secret_key_base from the credentials ('bin/rails credentials:edit')"
	}
	return append(steps, remove+", from the environment, from repositories and their history, and from backups.",
		"Look whether it is gone: claviger key copies "+key+" --check",
		"When the application has proved itself: claviger key rotate "+key)
}

// mayUse names a principal, other than the caller, who may make and check tokens
// by the key; "" for none, and where that is not to be seen.
func mayUse(c *cobra.Command, s *client.Client, key string) string {
	if s == nil {
		return ""
	}
	me, err := s.WhoAmI(c.Context())
	if err != nil {
		return ""
	}
	grants, err := s.ListGrants(c.Context(), &pb.ListGrantsRequest{Key: key})
	if err != nil {
		return ""
	}
	for _, g := range grants.Grants {
		operations := strings.Join(g.Operations, ",")
		if g.Principal != me.Principal.GetId() && strings.Contains(operations, string(claviger.Protect)) && strings.Contains(operations, string(claviger.Unprotect)) {
			return g.PrincipalName
		}
	}
	return ""
}

// isGone says that nothing stands in a place any more.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) }
