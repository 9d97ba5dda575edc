package proxy

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// rule is what is done with one kind of cookie, or of hidden field.
type rule struct {
	name    string
	prefix  bool // name is what names begin with
	loose   string
	key     string
	format  state.Format
	params  Params
	percent bool   // the token is percent-encoded in the cookie
	pair    bool   // the signature is a cookie of its own, with ".sig" after the name
	chunks  bool   // a long token is cut into cookies with ".0", ".1" ... after the name
	renew   string // attributes for setting it again
}

// cookieFormats are the formats that a cookie carries, by how it stands there.
var cookieFormats = map[state.Format]string{
	state.DjangoSigner: "raw", state.DjangoTimestamp: "raw", state.DjangoDumps: "raw", state.DjangoSession: "raw",
	state.DjangoCookie: "raw", state.DjangoCookieDumps: "raw",
	state.ItsdangerousSigner: "raw", state.ItsdangerousTimestamp: "raw", state.ItsdangerousURLSafe: "raw", state.ItsdangerousTimed: "raw",
	state.FlaskSession: "raw", state.CookieSession: "raw", state.KeygripSignature: "raw",
	state.RailsVerifier: "percent", state.RailsEncrypted: "percent", state.RailsCBC: "percent", state.RailsSignedCookie: "percent",
	state.RailsEncryptedCookie: "percent", state.RailsCBCCookie: "percent", state.LaravelEncrypted: "percent",
	state.CookieSignature: "percent", state.ExpressCookie: "percent", state.Iron: "percent", state.IronSession: "percent",
	state.NextAuth: "percent", state.AuthJS: "percent", state.JWT: "raw",
	state.PlugVerifier: "raw", state.PlugToken: "raw", state.PlugEncrypted: "raw", state.PlugEncryptedToken: "raw",
	state.ASPNETProtect: "raw", state.ASPNETForms: "raw", state.ASPNETOWIN: "raw", state.DataProtection: "raw",
}

func newRule(c Cookie) (*rule, error) {
	r := &rule{key: c.Key, format: c.Format, params: c.Params, renew: c.Renew,
		pair:   c.Format == state.CookieSession || c.Format == state.KeygripSignature,
		chunks: c.Format == state.NextAuth || c.Format == state.AuthJS}
	r.name, r.prefix = strings.CutSuffix(c.Name, "*")
	r.loose = loosely(r.name)
	usual, carried := cookieFormats[c.Format]
	text := c.Text
	setDefault(&text, usual)
	r.percent = text == "percent"
	switch {
	case r.name == "" || strings.ContainsAny(r.name, " \t\r\n=;,\"*"):
		return nil, invalid(fmt.Sprintf("%q is no name of a cookie", c.Name), "give the name, or what it begins with and a *")
	case !carried:
		return nil, invalid(fmt.Sprintf("%s: no cookie is of the format %q", c.Name, c.Format), "see 'claviger state formats'; formats that are checked and never made cannot be translated")
	case c.Key == "":
		return nil, invalid(c.Name+" has no key", "name the machine key in custody")
	case text != "raw" && !r.percent || r.percent && r.pair:
		return nil, invalid(fmt.Sprintf("%s cannot stand in its cookie as %q", c.Name, c.Text), "use raw or percent; pairs are raw")
	case strings.ContainsAny(c.Renew, "\r\n") || strings.HasPrefix(c.Renew, ";"):
		return nil, invalid(c.Name+": renew is no list of attributes", "write it as in Set-Cookie, from the first attribute on")
	case r.renew != "" && r.chunks:
		return nil, invalid(c.Name+": a cookie that may be cut into chunks is not set again", "leave renew out: the framework sets it again by itself")
	}
	return r, nil
}

// try makes and opens a token, so that a rule that cannot work is refused at
// the start.
func (r *rule) try(ctx context.Context, a application) error {
	payload := []byte("{}")
	now := time.Now().Truncate(time.Second).UTC()
	k := kind{rule: r, name: r.name}
	switch r.format {
	case state.ASPNETForms:
		payload = state.Ticket{Version: 2, Issued: now, Expires: now}.Append(nil)
	case state.KeygripSignature:
		payload, k.over = nil, r.name+"="
	}
	made, err := a.make(ctx, form{kind: k, issued: now}, [][]byte{payload})
	if err == nil {
		var found []opened
		if found, err = a.open(ctx, k, made); err == nil && !found[0].ok {
			err = state.ErrToken
		}
	}
	if err != nil {
		return invalid(fmt.Sprintf("%s: the format %s does not work with these parameters", r.name, r.format), "see the parameters that the format takes").Wrap(err)
	}
	return nil
}

// read returns the token that stands in a cookie.
func (r *rule) read(value string) ([]byte, bool) {
	if !r.percent {
		return []byte(value), true
	}
	text, err := url.PathUnescape(value)
	return []byte(text), err == nil
}

// write returns a token as it stands in a cookie.
func (r *rule) write(text []byte) (string, error) {
	if !r.percent {
		for i, c := range text {
			if c < ' ' || c == ';' || c == 0x7f || c == ' ' && (i == 0 || i == len(text)-1) {
				return "", errText
			}
		}
		return string(text), nil
	}
	const digits = "0123456789ABCDEF"
	const plain = "-_.!~*'()" // and letters and digits: encodeURIComponent of ECMA-262
	var b strings.Builder
	for _, c := range text {
		if 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte(plain, c) >= 0 {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		}
	}
	return b.String(), nil
}

// maxName is the most bytes of the name of a cookie that a rule's prefix takes:
// some formats have it in a salt, beside 100 bytes of their own.
const maxName = recipe.MaxSalt - 112

// The part of a token that a cookie is; a number is that of a chunk.
const (
	whole     = -1
	signature = -2
)

// match returns the rule of a cookie, the name without what its part adds to
// it, and the part.
func (p *Proxy) match(name string) (r *rule, base string, part int) {
	for _, r := range p.rules {
		if is, ok := strings.CutSuffix(name, ".sig"); ok && r.pair && r.names(is) {
			return r, is, signature
		}
		if i := strings.LastIndexByte(name, '.'); i > 0 && r.chunks && r.names(name[:i]) {
			if n, err := strconv.ParseUint(name[i+1:], 10, 8); err == nil {
				return r, name[:i], int(n)
			}
		}
		if r.names(name) {
			return r, name, whole
		}
	}
	return nil, "", 0
}

func (r *rule) names(name string) bool {
	return name == r.name || r.prefix && strings.HasPrefix(name, r.name)
}

// nearly reports whether some parser of cookies could take a text that has no
// rule for a cookie that has one: by the case of its name, by an escape in it,
// by what PHP makes of dots, or by a comma that stands for a semicolon.
func (p *Proxy) nearly(text string) bool {
	for piece := range strings.SplitSeq(text, ",") {
		name, _, _ := strings.Cut(piece, "=")
		name = loosely(name)
		for _, r := range p.rules {
			rest, ok := strings.CutPrefix(name, r.loose)
			if ok && (rest == "" || r.prefix || r.pair && rest == "_sig" || r.chunks && strings.Trim(rest, "_0123456789") == "") {
				return true
			}
		}
	}
	return false
}

func loosely(name string) string {
	if text, err := url.PathUnescape(name); err == nil {
		name = text
	}
	return strings.Map(func(c rune) rune {
		switch {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9':
			return c
		case 'A' <= c && c <= 'Z':
			return c | 0x20
		}
		return '_'
	}, strings.Trim(name, " \t\"'"))
}

// cookie is one cookie of a header that a rule is about, or a text that is not.
type cookie struct {
	field
	rule       *rule
	base       string
	part       int
	head, tail string // around the value, as they stood
}

// cut takes a cookie apart: the head ends with "=", the tail begins with ";".
func (p *Proxy) cut(text string) *cookie {
	end := strings.IndexByte(text, ';')
	if end < 0 {
		end = len(text)
	}
	eq := strings.IndexByte(text[:end], '=')
	if eq < 0 {
		return &cookie{head: text}
	}
	value := strings.TrimLeft(text[eq+1:end], " \t")
	start := end - len(value)
	value = strings.TrimRight(value, " \t")
	if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
		value, start = value[1:n-1], start+1
	}
	c := &cookie{field: field{name: strings.Trim(text[:eq], " \t"), value: value}, head: text[:start], tail: text[start+len(value):]}
	c.rule, c.base, c.part = p.match(c.name)
	return c
}

func (c *cookie) String() string { return c.head + c.value + c.tail }

// gather makes tokens out of cookies. Those of a rule that belong to none, such
// as a signature without its value or an empty text, are dropped.
func gather(cookies []*cookie) (tokens []*token) {
	taken := map[*cookie]bool{}
	find := func(of *cookie, part int) *cookie {
		i := slices.IndexFunc(cookies, func(c *cookie) bool {
			return !taken[c] && c.rule == of.rule && c.base == of.base && c.part == part
		})
		if i < 0 {
			return nil
		}
		return cookies[i]
	}
	for _, c := range cookies {
		if c.rule == nil || taken[c] || c.part != whole && c.part != 0 || c.value == "" && !c.rule.pair {
			continue
		}
		parts, value := []*cookie{c}, c.value
		t := &token{kind: kind{rule: c.rule, name: c.base}}
		switch {
		case c.rule.pair:
			sig := find(c, signature)
			if sig == nil || sig.value == "" {
				continue
			}
			parts = append(parts, sig)
			signed := c.base + "=" + value
			if c.rule.format == state.KeygripSignature {
				t.over, value = signed, sig.value
			} else {
				value = signed + "; " + sig.name + "=" + sig.value
			}
		case c.part == 0:
			for next := find(c, 1); next != nil; next = find(c, len(parts)) {
				parts = append(parts, next)
				value += next.value
			}
		}
		text, ok := c.rule.read(value)
		if !ok || len(c.base) > maxName || !utf8.ValidString(c.base) { // custody would refuse the call, and not the token
			continue
		}
		t.text, tokens = text, append(tokens, t)
		for _, part := range parts {
			taken[part], t.fields = true, append(t.fields, &part.field)
		}
	}
	for _, c := range cookies {
		c.drop = c.rule != nil && !taken[c]
	}
	return tokens
}
