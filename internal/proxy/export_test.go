package proxy

import (
	"strconv"
	"strings"

	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// SecretOf is a secret with material of a test's choosing.
func SecretOf(set recipe.Set, material []byte) *secret {
	return &secret{set: set, material: material, keys: map[recipe.Recipe][]byte{}}
}

// Bodies reads a text as each kind of body and writes it again. It is nil where
// the text is none of the kind, or its escapes have another form.
func Bodies(text []byte) map[string][]byte {
	p := (&WebForms{Key: "k", Application: "/"}).pageOf("/a.aspx")
	out := map[string][]byte{"page": p.html(text).bytes()}
	if d, ok := p.delta(text); ok && canonical(d) {
		out["update"] = d.bytes()
	}
	if d, ok := p.form(text); ok && canonical(d) {
		out["form"] = d.bytes()
	}
	if d, ok := p.multipart(text, "b"); ok {
		out["multipart"] = d.bytes()
	}
	return out
}

func canonical(d *document) bool {
	for _, p := range d.places {
		if p.escape(p.value.value) != string(d.text[p.start:p.end]) || p.countEnd > 0 && string(d.text[p.countStart:p.countEnd]) != strconv.Itoa(len(p.value.value)) {
			return false
		}
	}
	return true
}

// Cookies reads a header, and says how many cookies of rules are kept and how
// many tokens there are.
func Cookies(header string) (kept, tokens int) {
	p := &Proxy{cfg: Config{Limits: Limits{Tokens: 1000}}}
	p.metrics, _ = newMetrics()
	for _, c := range []Cookie{{Name: "sid", Format: state.ExpressCookie, Key: "k"}, {Name: "p*", Format: state.CookieSession, Key: "k"}, {Name: "s", Format: state.AuthJS, Key: "k"}} {
		r, err := newRule(c)
		if err != nil {
			panic(err)
		}
		p.rules = append(p.rules, r)
	}
	cookies, list, err := p.readCookies(strings.Split(header, "\n"))
	for _, c := range cookies {
		if c.rule != nil && !c.drop && err == nil {
			kept++
		}
	}
	return kept, len(list)
}
