package proxy

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"text/template"

	"claviger.dev"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// secret is what the application has in place of one machine key: random, of
// this start. It runs the recipes of its set as the key process does.
type secret struct {
	set      recipe.Set
	material []byte

	mu   sync.Mutex // guards keys
	keys map[recipe.Recipe][]byte
}

// maxKeys is how many derived keys of one secret are kept: names of cookies are
// salts to some formats, and strangers choose what follows a prefix.
const maxKeys = 64

func newSecret(set recipe.Set) (*secret, error) {
	s := &secret{set: set, keys: map[recipe.Recipe][]byte{}}
	switch set {
	case recipe.Laravel, recipe.ASPNET, recipe.DataProtection:
		var err error
		s.material, err = set.Fresh(rand.Reader)
		return s, err
	}
	// A text, since configurations are text.
	raw := make([]byte, 48)
	_, _ = rand.Read(raw)
	s.material = base64.RawURLEncoding.AppendEncode(nil, raw)
	return s, set.Check(s.material)
}

// Run implements state.User.
func (s *secret) Run(_ context.Context, r recipe.Recipe, making bool, items []recipe.Item) ([]recipe.Result, error) {
	if !s.set.Admits(r) {
		return nil, invalid("the parameters are none of the key's recipe set", "see the parameters that the format takes")
	}
	key, err := s.key(r)
	if err != nil {
		return nil, err
	}
	out := make([]recipe.Result, len(items))
	for i, it := range items {
		if making {
			out[i].Output, out[i].OK = r.Make(nil, key, rand.Reader, it)
		} else {
			out[i].Output, out[i].OK = r.Check(nil, key, it)
		}
	}
	return out, nil
}

func (s *secret) key(r recipe.Recipe) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key, ok := s.keys[r]; ok {
		return key, nil
	}
	key, err := r.Key(s.material)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	if len(s.keys) == maxKeys {
		clear(s.keys)
	}
	s.keys[r] = key
	return key, nil
}

// secrets are the application's, by the machine key that each stands for.
type secrets map[string]*secret

// newSecrets makes one secret for each key. All formats of a key are of one
// recipe set.
func newSecrets(formats map[string][]state.Format) (secrets, error) {
	out := secrets{}
	for key, list := range formats {
		sets := slices.Clone(list[0].Sets())
		for _, f := range list[1:] {
			sets = slices.DeleteFunc(sets, func(s recipe.Set) bool { return !slices.Contains(f.Sets(), s) })
		}
		if len(sets) == 0 {
			return nil, invalid(fmt.Sprintf("the formats of the key %s are of no common recipe set", key), "a key answers one set: see 'claviger state formats'")
		}
		s, err := newSecret(sets[0])
		if err != nil {
			return nil, err
		}
		out[key] = s
	}
	return out, nil
}

// render fills a template in.
func (all secrets) render(name, text string) ([]byte, error) {
	of := func(sets []recipe.Set, write func(s *secret) string) func(string) (string, error) {
		return func(key string) (string, error) {
			s, ok := all[key]
			if !ok {
				return "", fmt.Errorf("no cookie and no page is of the key %s", key)
			}
			if !slices.Contains(sets, s.set) {
				return "", fmt.Errorf("a secret of the set %s is not written like that", s.set)
			}
			return write(s), nil
		}
	}
	part := func(n int, write func([]byte) string) func(s *secret) string {
		return func(s *secret) string { return write(s.set.Parts(s.material)[n]) }
	}
	upperHex := func(b []byte) string { return strings.ToUpper(hex.EncodeToString(b)) }
	aspnet, ring := []recipe.Set{recipe.ASPNET}, []recipe.Set{recipe.DataProtection}
	texts := slices.DeleteFunc(recipe.Sets(), func(s recipe.Set) bool { return s == recipe.ASPNET || s == recipe.DataProtection })
	t, err := template.New(name).Option("missingkey=error").Funcs(template.FuncMap{
		"secret":     of(texts, (*secret).text),
		"hex":        of(texts, part(0, hex.EncodeToString)),
		"base64":     of(texts, part(0, base64.StdEncoding.EncodeToString)),
		"decryption": of(aspnet, part(0, upperHex)),
		"validation": of(aspnet, part(1, upperHex)),
		"id":         of(ring, func(s *secret) string { return state.FormatGUID(s.material[:16]) }),
		"master":     of(ring, part(0, base64.StdEncoding.EncodeToString)),
	}).Parse(text)
	var b strings.Builder
	if err == nil {
		err = t.Execute(&b, nil)
	}
	if err != nil {
		return nil, claviger.Errorf(claviger.Invalid, fmt.Sprintf("the template of %s cannot be filled in: %s", name, err), "use {{secret \"KEY\"}} with the name of a key in the configuration")
	}
	return []byte(b.String()), nil
}

// text is a secret as its framework's configuration has it.
func (s *secret) text() string {
	if s.set == recipe.Laravel {
		return recipe.LaravelPrefix + base64.StdEncoding.EncodeToString(s.material)
	}
	return string(s.material)
}
