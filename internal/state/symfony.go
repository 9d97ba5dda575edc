package state

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"strconv"
	"strings"

	"claviger.dev/internal/recipe"
)

// Symfony 5.4 to 7.
const (
	// UriSigner: the payload is the URI without its hash; the token has the
	// parameter _hash in its place. Name: "_hash".
	SymfonyURI Format = "symfony.uri"
	// The hash of a URI, detached: Over is the URI without it, its parameters in
	// Symfony's order. For URIs whose parameters only PHP can read. Encoding:
	// "base64", or "base64url" as since 7.3.
	SymfonyHash Format = "symfony.uri-hash"
	// The REMEMBERME cookie: the payload is the user's identifier. Class,
	// Properties, Expires; the class is not authenticated by Symfony, so that
	// Unprotect compares it.
	SymfonyRemember Format = "symfony.remember-me"
	// SignatureHasher, for login links, detached: Over is the user's identifier.
	// Properties and Expires, which Unprotect takes too. Purpose: the hash of the
	// properties, in their place. AnyPurpose: whatever they are.
	SymfonySignature Format = "symfony.signature"
)

func symfony(f Format) codec {
	scheme := recipe.SymfonyUser
	c := codec{sets: []recipe.Set{recipe.Symfony}}
	switch f {
	case SymfonyURI:
		scheme, c.protect, c.open = recipe.SymfonyURI, symfonySign, symfonyUnsign
	case SymfonyHash:
		scheme, c.protect, c.open = recipe.SymfonyURI, signDetached, checkDetached
	case SymfonyRemember:
		c.protect, c.open = rememberMe, openRememberMe
	case SymfonySignature:
		c.protect, c.open = loginSign, loginCheck
	default:
		return c
	}
	c.recipe = func(Params) (recipe.Recipe, error) { return recipe.Recipe{Scheme: scheme}, nil }
	return c
}

// tilde is Symfony's base64 for URLs: "+/=" become "-_~".
func tilde(b []byte) []byte {
	return []byte(strings.NewReplacer("+", "-", "/", "_", "=", "~").Replace(string(encode(b64, b))))
}

func untilde(text []byte) ([]byte, bool) {
	if bytes.ContainsAny(text, "+/=") {
		return nil, false
	}
	return decode(b64, []byte(strings.NewReplacer("-", "+", "_", "/", "~", "=").Replace(string(text))))
}

// fieldsHash binds the user's properties, such as the hash of the password.
func fieldsHash(p Params) []byte {
	if p.Purpose != "" {
		return []byte(p.Purpose)
	}
	h := sha256.New()
	for _, property := range p.Properties {
		h.Write([]byte(":"))
		h.Write(encode(b64, property))
	}
	return tilde(h.Sum(nil))
}

func loginMessage(p Params, expires int64, user []byte) []byte {
	return join(":", fieldsHash(p), strconv.AppendInt(nil, expires, 10), user)
}

func loginSign(p Params, payload []byte) (making, error) {
	if p.Expires.Unix() <= 0 {
		return making{}, errNoTime
	}
	if len(payload) > 0 {
		return making{}, errPayload
	}
	if !isHalf(fieldsHash(p)) {
		return making{}, errParams
	}
	return making{0, recipe.Item{Data: loginMessage(p, p.Expires.Unix(), p.Over)}, func(tag []byte) []byte { return append(tilde(tag), fieldsHash(p)...) }}, nil
}

func loginCheck(p Params, token []byte) (opening, bool) {
	if p.AnyPurpose && len(token) == 2*loginHalf {
		p.Purpose = string(token[loginHalf:])
	}
	tag, ok := loginTag(p, token)
	return opening{recipe.Item{Data: loginMessage(p, p.Expires.Unix(), p.Over), Aside: tag}, func([]byte) ([]byte, Facts, bool) {
		return nil, Facts{Expires: unix(p.Expires.Unix()), Purpose: p.Purpose}, true
	}}, ok && isHalf(fieldsHash(p))
}

// loginHalf is the length of either half of a signature: the tag, and the
// fields' hash.
const loginHalf = 44

func isHalf(text []byte) bool {
	_, ok := untilde(text)
	return ok && len(text) == loginHalf
}

// loginTag takes the tag off a signature, whose second half is the fields' hash.
func loginTag(p Params, signature []byte) ([]byte, bool) {
	if len(signature) != 2*loginHalf {
		return nil, false
	}
	sig, ok := bytes.CutSuffix(signature, fieldsHash(p))
	tag, decoded := untilde(sig)
	return tag, ok && decoded
}

func rememberMe(p Params, payload []byte) (making, error) {
	if p.Expires.Unix() <= 0 || p.Class == "" || strings.ContainsAny(p.Class, ".:") {
		return making{}, errParams
	}
	p.Over = payload
	m, err := loginSign(p, nil)
	sign := m.finish
	m.finish = func(tag []byte) []byte {
		class := strings.ReplaceAll(p.Class, `\`, ".")
		return join(":", []byte(class), tilde(payload), strconv.AppendInt(nil, p.Expires.Unix(), 10), sign(tag))
	}
	return m, err
}

func openRememberMe(p Params, token []byte) (opening, bool) {
	parts := bytes.SplitN(token, []byte(":"), 5)
	if len(parts) != 4 || string(parts[0]) != strings.ReplaceAll(p.Class, `\`, ".") {
		return opening{}, false
	}
	user, ok1 := untilde(parts[1])
	expires, ok2 := parseDecimal(parts[2])
	tag, ok3 := loginTag(p, parts[3])
	f := Facts{Expires: unix(expires)}
	return opening{recipe.Item{Data: loginMessage(p, expires, user), Aside: tag}, func([]byte) ([]byte, Facts, bool) { return user, f, true }}, ok1 && ok2 && ok3
}

// parameter is one of a query, decoded.
type parameter struct{ name, value string }

// splitURI cuts a URI into what is before its query, its parameters, and its
// fragment with the sign.
func splitURI(uri []byte) (head string, query []parameter, fragment string, ok bool) {
	rest, frag, hasFragment := strings.Cut(string(uri), "#")
	if hasFragment {
		fragment = "#" + frag
	}
	head, text, _ := strings.Cut(rest, "?")
	if strings.Count(text, "&") >= 1000 { // PHP reads no more
		return "", nil, "", false
	}
	seen := map[string]bool{}
	for pair := range strings.SplitSeq(text, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, ok1 := phpDecode(name)
		value, ok2 := phpDecode(value)
		// PHP renames, nests, renumbers or drops these; they are refused.
		if !ok1 || !ok2 || name == "" || strings.ContainsAny(name, "[]. \x00") || strings.Contains("0123456789+-", name[:1]) || seen[name] {
			return "", nil, "", false
		}
		seen[name] = true
		query = append(query, parameter{name, value})
	}
	return head, query, fragment, true
}

// buildURI is Symfony's: parameters in order of their names.
func buildURI(head string, query []parameter, fragment string) []byte {
	slices.SortFunc(query, func(a, b parameter) int { return strings.Compare(a.name, b.name) })
	out := []byte(head)
	for i, p := range query {
		sep := byte('&')
		if i == 0 {
			sep = '?'
		}
		out = append(out, sep)
		out = append(phpEncode(out, p.name), '=')
		out = phpEncode(out, p.value)
	}
	return append(out, fragment...)
}

func phpEncode(dst []byte, s string) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9', 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', c == '-', c == '_', c == '.':
			dst = append(dst, c)
		case c == ' ':
			dst = append(dst, '+')
		default:
			dst = append(dst, '%', digits[c>>4], digits[c&15])
		}
	}
	return dst
}

func phpDecode(s string) (string, bool) {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '+':
			out = append(out, ' ')
		case s[i] == '%':
			if i+2 >= len(s) {
				return "", false
			}
			n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", false
			}
			out = append(out, byte(n))
			i += 2
		default:
			out = append(out, s[i])
		}
	}
	return string(out), true
}

func symfonySign(p Params, payload []byte) (making, error) {
	name := or(p.Name, "_hash")
	head, query, fragment, ok := splitURI(payload)
	if !ok || slices.ContainsFunc(query, func(q parameter) bool { return q.name == name }) {
		return making{}, errPayload
	}
	return making{0, recipe.Item{Data: buildURI(head, query, fragment)}, func(tag []byte) []byte {
		return buildURI(head, append(query, parameter{name, string(encode(b64, tag))}), fragment)
	}}, nil
}

func symfonyUnsign(p Params, token []byte) (opening, bool) {
	name := or(p.Name, "_hash")
	head, query, fragment, ok := splitURI(token)
	i := slices.IndexFunc(query, func(q parameter) bool { return q.name == name })
	if !ok || i < 0 {
		return opening{}, false
	}
	tag, ok := decode(b64, []byte(query[i].value))
	uri := buildURI(head, slices.Delete(query, i, i+1), fragment)
	var f Facts
	for _, q := range query[:len(query)-1] {
		if q.name == "_expiration" { // since 7.1
			n, _ := parseDecimal([]byte(q.value))
			f.Expires = unix(n)
		}
	}
	return opening{recipe.Item{Data: uri, Aside: tag}, func([]byte) ([]byte, Facts, bool) { return uri, f, true }}, ok
}
