// Package appsecret reads the secret of a framework out of the place where an
// application has it: configuration files, encrypted credentials, key rings.
//
// It owns the forms of those places. It promises to read the value that the
// framework would read, or to refuse with the line and the reason: where two
// readers of a form differ it does not guess. It is given bytes and returns
// values that do not print, and its work is bounded by MaxSize. It must never
// do input or output, run or evaluate what it reads, or let a secret into an
// error or a text.
package appsecret

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/recipe"
)

// Limits of what is read.
const (
	MaxSize    = 1 << 20 // bytes of a file
	MaxEntries = 1000    // files of a key ring
	maxListed  = 100     // older secrets
	maxSet     = 10_000  // settings of a file
)

// Kind is the form of a place.
type Kind string

// The kinds.
const (
	WebConfig   Kind = "web.config"        // ASP.NET: machineKey
	Dotenv      Kind = "dotenv"            // .env
	Python      Kind = "python"            // settings.py, config.py
	Properties  Kind = "properties"        // Java's application.properties
	YAML        Kind = "yaml"              // application.yml, secrets.yml
	Credentials Kind = "rails-credentials" // credentials.yml.enc, with its key
	KeyRing     Kind = "key-ring"          // a directory of key-*.xml: ASP.NET Core Data Protection
)

// Kinds lists every kind.
func Kinds() []Kind {
	return []Kind{WebConfig, Dotenv, Python, Properties, YAML, Credentials, KeyRing}
}

// Values returns the value of every setting of a file that is text, as its
// framework reads it, of those too that Read would refuse. A secret with escapes
// in it is found there, and not in the file as it stands. Credentials need their
// key; a web.config and a ring have what they hold in hex or base64, and no
// values here.
func Values(kind Kind, src Source) ([]Material, error) {
	if len(src.Data) > MaxSize {
		return nil, errMany
	}
	data := src.Data
	if kind != Credentials {
		var err error
		if data, _, err = decodeText(data); err != nil {
			return nil, err
		}
	}
	list, err := settings(kind, data, src.Key, "")
	var out []Material
	for _, c := range list {
		for _, v := range c.values {
			out = append(out, v)
		}
	}
	return out, err
}

// settings reads the settings of a file.
func settings(kind Kind, data, key []byte, name string) ([]candidate, error) {
	switch kind {
	case Dotenv:
		return readDotenv(data)
	case Python:
		return readPython(data, name)
	case Properties:
		return readProperties(data)
	case YAML:
		return readYAML(data)
	case Credentials:
		return readCredentials(data, key)
	case WebConfig, KeyRing:
		return nil, nil
	}
	return nil, claviger.Errorf(claviger.Unsupported, "there is no such kind of place", "use one of "+join(Kinds()))
}

// Guess tells the kind of a file by its name. A key ring is a directory, which
// is not for Guess.
func Guess(name string) (Kind, bool) {
	base := strings.ToLower(path.Base(name))
	switch {
	case base == ".env" || strings.HasPrefix(base, ".env.") || strings.HasSuffix(base, ".env"):
		return Dotenv, true
	case strings.HasSuffix(base, ".yml.enc") || strings.HasSuffix(base, ".yaml.enc"):
		return Credentials, true
	}
	switch path.Ext(base) {
	case ".config":
		return WebConfig, true
	case ".py":
		return Python, true
	case ".properties":
		return Properties, true
	case ".yml", ".yaml":
		return YAML, true
	}
	return "", false
}

// Source is what is read.
type Source struct {
	Data []byte    // of a file, at most MaxSize
	Key  []byte    // of credentials: the content of master.key
	Ring []File    // of a key ring: every file of the directory
	Now  time.Time // for the expiry of a ring's keys
}

// File is one file of a directory.
type File struct {
	Name string
	Data []byte
}

// Choice says which secret is meant, where a place has several. Its zero value
// leaves that to what is there.
type Choice struct {
	Set      recipe.Set
	Name     string // of the variable or setting
	Line     int    // where it is set more than once
	Encoding string // "text", "base64" or "hex"; "" is as the set has it
}

// Material is the bytes of a secret. It does not print.
type Material []byte

// Format implements fmt.Formatter.
func (Material) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, removed) }

// MarshalText implements encoding.TextMarshaler.
func (Material) MarshalText() ([]byte, error) { return []byte(removed), nil }

// removed stands where a secret was.
const removed = "<removed>"

// Secret is one secret that was found.
type Secret struct {
	Name     string   // of the variable, setting or entry
	File     string   // of a key ring; "" for others
	Line     int      // from 1; 0 where the file is encrypted
	Material Material // as the recipe set has it
}

// Found is what a place has.
type Found struct {
	Kind     Kind
	Encoding string     // of the text: "UTF-8", "UTF-16LE", "UTF-16BE"
	Set      recipe.Set // that the secrets are for
	Secrets  []Secret   // the oldest first; the last is the one in use
	Notes    []string   // what is good to know, without a secret

	hunks []hunk

	written         string      // how the application has the secret: Choice.Encoding
	unprefixed      bool        // Laravel: APP_KEY has no "base64:" before it
	machineKeyAfter string      // ASP.NET: the element that takes the place of the one with keys
	algorithms      [][2]string // ASP.NET: the adapter's settings that are not its own defaults
	gcm             bool        // Data Protection: the ring's key in use is for AES-256-GCM
}

// Clear overwrites the secrets.
func (f *Found) Clear() {
	for _, s := range f.Secrets {
		clear(s.Material)
	}
}

// Read reads a place.
func Read(kind Kind, src Source, want Choice) (*Found, error) {
	if len(src.Data) > MaxSize || len(src.Ring) > MaxEntries {
		return nil, claviger.Errorf(claviger.TooLarge, "the place is larger than a configuration is", "give a file of at most 1 MiB, or a ring of at most 1000 files")
	}
	if kind == KeyRing {
		return readRing(src, want)
	}
	data, f := src.Data, &Found{Kind: kind, Encoding: "UTF-8"}
	if kind != Credentials {
		var err error
		if data, f.Encoding, err = decodeText(data); err != nil {
			return nil, err
		}
		defer clear(data)
	}
	if kind == WebConfig {
		if err := readWebConfig(f, data, want); err != nil {
			return nil, err
		}
		f.indented(data)
		return f, nil
	}
	list, err := settings(kind, data, src.Key, want.Name)
	if err != nil {
		return nil, err
	}
	defer clearAll(list)
	if kind == Python && want.Set == "" {
		want.Set = flavour(data)
	}
	if err := f.choose(list, want); err != nil {
		f.Clear()
		return nil, err
	}
	if kind != Credentials {
		f.indented(data)
	}
	f.written = want.Encoding
	return f, nil
}

var errMany = claviger.Errorf(claviger.TooLarge, "the file has more settings than a configuration has", "give one of at most 10000, or use standard input")

// candidate is a setting that may be the secret.
type candidate struct {
	name   string
	values [][]byte        // one, or those of a list, the newest first
	list   bool            // it is written as a list
	line   int             // 0 where the file is encrypted
	lines  int             // that it takes up
	shown  string          // the setting without the secret
	app    string          // the object of a Flask application that it is set on; "" where it is not said
	block  string          // the statement on which it depends, such as "if"; "" for none
	refuse *claviger.Error // why its value cannot be read
}

func clearAll(list []candidate) {
	for _, c := range list {
		for _, v := range c.values {
			clear(v)
		}
	}
}

// family is a framework's secret with the names that it has.
type family struct {
	sets  []recipe.Set // one, or those between which the name does not decide
	names []string     // the oldest first; the last that is there is in use
	lists []string     // of older ones
}

func families() []family {
	python := []recipe.Set{recipe.Django, recipe.Flask, recipe.Itsdangerous}
	return []family{
		{[]recipe.Set{recipe.Laravel}, []string{"APP_KEY"}, []string{"APP_PREVIOUS_KEYS"}},
		{[]recipe.Set{recipe.Rails, recipe.Plug}, []string{"SECRET_KEY_BASE"}, nil},
		{[]recipe.Set{recipe.Rails}, []string{"secret_key_base"}, nil},
		{[]recipe.Set{recipe.AuthJS}, []string{"AUTH_SECRET", "AUTH_SECRET_1", "AUTH_SECRET_2", "AUTH_SECRET_3"}, nil},
		{[]recipe.Set{recipe.AuthJS}, []string{"NEXTAUTH_SECRET"}, nil},
		{python, []string{"SECRET_KEY"}, []string{"SECRET_KEY_FALLBACKS"}},
		{[]recipe.Set{recipe.Django}, []string{"DJANGO_SECRET_KEY"}, []string{"DJANGO_SECRET_KEY_FALLBACKS"}},
		{[]recipe.Set{recipe.Flask}, []string{"FLASK_SECRET_KEY"}, []string{"FLASK_SECRET_KEY_FALLBACKS"}},
		{[]recipe.Set{recipe.Symfony}, []string{"APP_SECRET", "framework.secret"}, nil},
		{[]recipe.Set{recipe.CookieSignature, recipe.Keygrip, recipe.Iron}, []string{"SESSION_SECRET", "COOKIE_SECRET", "session.secret"}, nil},
		{[]recipe.Set{recipe.JWT}, []string{"JWT_SECRET", "JWT_SECRET_KEY", "jwt.secret", "jwt.secret-key", "jwt.secretKey"}, nil},
	}
}

// hasName says that a setting is called name: a path of a structured file ends
// with it.
func hasName(setting, name string) bool {
	return setting == name || strings.Contains(setting+name, ".") && strings.HasSuffix(setting, "."+name)
}

// choose takes the secrets that are meant out of all that is there.
func (f *Found) choose(list []candidate, want Choice) error {
	var fits []family
	for _, fam := range families() {
		named := slices.ContainsFunc(list, func(c candidate) bool {
			return slices.ContainsFunc(fam.names, func(n string) bool { return hasName(c.name, n) }) && (want.Name == "" || c.name == want.Name)
		})
		if named && (want.Set == "" || want.Name != "" || slices.Contains(fam.sets, want.Set)) {
			fits = append(fits, fam)
		}
	}
	if len(fits) == 0 && want.Name != "" && want.Set != "" {
		fits = []family{{sets: []recipe.Set{want.Set}, names: []string{want.Name}}}
	}
	switch {
	case len(fits) == 0 && want.Name != "":
		return claviger.Errorf(claviger.NotFound, "no framework is known by a setting "+want.Name, "say what it is for by --set")
	case len(fits) == 0:
		return claviger.Errorf(claviger.NotFound, "no secret of a framework that is known is set here", "name the setting by --name, and by --set what it is for; or adopt from where the secret stands")
	case len(fits) > 1:
		var names []string
		for _, c := range list {
			if slices.ContainsFunc(fits, func(fam family) bool {
				return slices.ContainsFunc(fam.names, func(n string) bool { return hasName(c.name, n) })
			}) {
				names = append(names, at(c))
			}
		}
		return claviger.Errorf(claviger.Invalid, "several secrets stand here: "+few(names), "say which by --name; each becomes a key of its own")
	}
	fam := fits[0]
	if f.Set = want.Set; f.Set == "" {
		if f.Set = fam.sets[0]; len(fam.sets) > 1 && fam.sets[0] != recipe.Rails {
			return claviger.Errorf(claviger.Invalid, fam.names[0]+" can be of several frameworks", "say which by --set: "+join(fam.sets))
		}
	}
	return f.take(list, fam, want)
}

// take reads the secrets of a family, the oldest first.
func (f *Found) take(list []candidate, fam family, want Choice) error {
	for _, name := range append(slices.Clone(fam.lists), fam.names...) {
		older := slices.Contains(fam.lists, name)
		c, ok, err := one(list, name, want, older)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		values := c.values
		if older && !c.list {
			values = splitList(c.values[0])
		} else if c.list && !older {
			return refusedAt(c, "is a list", "name one that is a text")
		}
		for _, v := range slices.Backward(values) {
			if len(v) == 0 && older {
				continue
			}
			if err := f.add(c, v, want); err != nil {
				return err
			}
		}
		f.hunks = append(f.hunks, hunk{line: c.line, lines: c.lines, old: c.shown, app: c.app, older: older})
		f.unprefixed = !older && f.Set == recipe.Laravel && !strings.HasPrefix(string(c.values[0]), recipe.LaravelPrefix)
	}
	if len(f.Secrets) == 0 {
		return claviger.Errorf(claviger.NotFound, "no secret is set here", "adopt from where it stands")
	}
	return nil
}

// one returns the setting of a name. Where there are several, or it depends on
// something, the choice must say which line is meant.
func one(list []candidate, name string, want Choice, older bool) (candidate, bool, error) {
	var found []candidate
	for _, c := range list {
		if hasName(c.name, name) && (want.Name == "" || older || c.name == want.Name) {
			found = append(found, c)
		}
	}
	if production := slices.DeleteFunc(slices.Clone(found), func(c candidate) bool { return !strings.HasPrefix(c.name, "production.") }); len(production) > 0 {
		found = production
	}
	if i := slices.IndexFunc(found, func(c candidate) bool { return c.line == want.Line }); i >= 0 && want.Line > 0 {
		found = found[i : i+1]
	}
	if len(found) == 0 {
		return candidate{}, false, nil
	}
	c := found[0]
	if len(found) > 1 {
		var names []string
		for _, c := range found {
			names = append(names, at(c))
		}
		return c, false, claviger.Errorf(claviger.Invalid, "the secret is set more than once: "+few(names), "look which one is in use, and say so by --line")
	}
	if c.refuse != nil {
		return c, false, c.refuse
	}
	if c.block != "" && c.line != want.Line {
		return c, false, refusedAt(c, "is set under '"+c.block+"': whether it is in use depends on what happens there", "look, and if it is say so by --line "+fmt.Sprint(c.line))
	}
	return c, true, nil
}

// add appends a secret, decoded.
func (f *Found) add(c candidate, value []byte, want Choice) error {
	if len(value) == 0 {
		return refusedAt(c, "is empty", "adopt from where the secret stands")
	}
	if len(f.Secrets) == maxListed {
		return refusedAt(c, "has more than 100 secrets", "remove those that are not in use any more")
	}
	m, err := decodeValue(f.Set, want.Encoding, value)
	if err == nil {
		err = f.Set.Check(m)
	}
	if err != nil {
		clear(m)
		return refusedAt(c, "is no secret of "+string(f.Set)+" in the encoding that was expected", "look at its form, and give --encoding text, base64 or hex where the application decodes it")
	}
	if slices.ContainsFunc(f.Secrets, func(s Secret) bool { return string(s.Material) == string(m) }) {
		return nil // one of the older ones is listed twice, or is the one in use
	}
	if strings.HasPrefix(string(value), "django-insecure-") {
		f.Notes = append(f.Notes, at(c)+" is as 'startproject' made it, and marked insecure by that")
	}
	f.Secrets = append(f.Secrets, Secret{Name: c.name, Line: c.line, Material: m})
	return nil
}

func decodeValue(set recipe.Set, encoding string, value []byte) ([]byte, error) {
	if rest, ok := strings.CutPrefix(string(value), "base64:"); ok && set == recipe.Laravel {
		return base64.StdEncoding.AppendDecode(nil, []byte(rest))
	}
	switch encoding {
	case "base64":
		return base64.StdEncoding.AppendDecode(nil, value)
	case "hex":
		return hex.AppendDecode(nil, value)
	}
	return slices.Clone(value), nil
}

// splitList reads a list with commas, the newest first.
func splitList(value []byte) [][]byte {
	var out [][]byte
	for part := range strings.SplitSeq(string(value), ",") {
		out = append(out, []byte(strings.TrimSpace(part)))
	}
	return out
}

// at names a setting and its place.
func at(c candidate) string {
	if c.line == 0 {
		return c.name
	}
	return fmt.Sprintf("%s in line %d", c.name, c.line)
}

func refusedAt(c candidate, what, hint string) *claviger.Error {
	return claviger.Errorf(claviger.Invalid, at(c)+" "+what, hint)
}

// few joins texts, not too many.
func few(list []string) string {
	if len(list) > 8 {
		list = append(slices.Clone(list[:8]), fmt.Sprintf("and %d more", len(list)-8))
	}
	return strings.Join(list, ", ")
}

func join[T ~string](list []T) string {
	var out []string
	for _, v := range list {
		out = append(out, string(v))
	}
	return strings.Join(out, ", ")
}
