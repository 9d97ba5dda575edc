// Package jwt reads signed JWTs of other parties: client assertions, ID
// tokens, tokens of workloads, logout tokens, and our own when they come back.
//
// It owns their text and the choice of the key. It promises that a token is
// read in one way only: compact form, canonical base64url, each JSON member
// once, no extension that would have to be understood, an algorithm of the
// reader's list. It must never take a key or the address of one from a token,
// and it knows nothing of what claims mean beyond their time and audience.
package jwt

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/json" // refuses a member that comes twice

	"claviger.dev/pubkey"
)

// MaxToken is the longest token that is read, in bytes.
const MaxToken = 16 << 10

// Algorithms are the signature algorithms that a reader may accept (RFC 7518,
// 3.1; RFC 8037; RFC 9864). None and the MACs are not among them.
func Algorithms() []string {
	return []string{"ES256", "ES384", "EdDSA", "Ed25519", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"}
}

// The refusals. They say what is wrong with a token and nothing of its content.
var (
	errForm      = errors.New("it is no JWT in compact form")
	errJSON      = errors.New("its JSON is not one object with each member once")
	errCritical  = errors.New("its header asks for what is not understood here")
	errAlgorithm = errors.New("its algorithm is not accepted here")
	errType      = errors.New("its typ is another one")
	errSignature = errors.New("its signature is by no key that may make it")
)

// Token is a JWT that is well formed. Nothing in it is to be believed before
// Verify.
type Token struct {
	Algorithm string
	Type      string // typ in lower case, without "application/"; "" where there is none
	KeyID     string
	Claims    Claims

	signed, signature []byte
}

// Parse reads a token whose algorithm is one of those given.
func Parse(text string, algorithms []string) (Token, error) {
	parts := strings.SplitN(text, ".", 4)
	if len(text) > MaxToken || len(parts) != 3 {
		return Token{}, errForm
	}
	var decoded [3][]byte
	for i, part := range parts {
		var ok bool
		if decoded[i], ok = decode(part); !ok {
			return Token{}, errForm
		}
	}
	header, err := Object(decoded[0])
	if err != nil {
		return Token{}, err
	}
	claims, err := Object(decoded[1])
	if err != nil {
		return Token{}, err
	}
	for _, name := range []string{"crit", "b64", "zip", "enc"} {
		if _, ok := header[name]; ok {
			return Token{}, errCritical
		}
	}
	t := Token{Algorithm: header.Text("alg"), KeyID: header.Text("kid"), Claims: claims,
		Type:   strings.TrimPrefix(strings.ToLower(header.Text("typ")), "application/"),
		signed: []byte(text[:len(parts[0])+1+len(parts[1])]), signature: decoded[2]}
	if !slices.Contains(algorithms, t.Algorithm) {
		return Token{}, errAlgorithm
	}
	return t, nil
}

// Typed checks the header's typ against those that a reader accepts; "" stands
// for none (RFC 8725, 3.11).
func (t *Token) Typed(types ...string) error {
	if !slices.Contains(types, t.Type) {
		return errType
	}
	return nil
}

// Verify checks the signature by one of the keys: by those of its kid where it
// has one.
func (t *Token) Verify(keys Keys) error {
	for _, k := range keys {
		if t.KeyID != "" && k.id != t.KeyID || k.alg != "" && !sameAlgorithm(k.alg, t.Algorithm) {
			continue
		}
		if key, err := k.forAlgorithm(t.Algorithm); err == nil && key.Verify(t.signed, t.signature, pubkey.P1363) {
			return nil
		}
	}
	return errSignature
}

// decode undoes base64url in its only form (RFC 7515, 2).
func decode(text string) ([]byte, bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	return b, err == nil && !strings.ContainsAny(text, "\r\n") // which the decoder skips
}

// Claims are the members of a JSON object. Numbers are json.Number.
type Claims map[string]any

// maxDepth is how deeply the JSON of a token may nest.
const maxDepth = 16

// Object reads one JSON object in UTF-8 with each member once, at every level.
func Object(doc []byte) (Claims, error) {
	if len(doc) > MaxToken || !utf8.Valid(doc) || depth(doc) > maxDepth {
		return nil, errJSON
	}
	d := json.NewDecoder(bytes.NewReader(doc))
	d.SetNumberType(json.UnmarshalJSONNumber)
	var out map[string]any
	if err := d.Decode(&out); err != nil || out == nil {
		return nil, errJSON
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errJSON
	}
	return out, nil
}

// depth is at least as deep as the document nests; brackets in texts count too.
func depth(doc []byte) (deepest int) {
	now := 0
	for _, c := range doc {
		switch c {
		case '{', '[':
			now++
			deepest = max(deepest, now)
		case '}', ']':
			now--
		}
	}
	return deepest
}

// Text returns a claim that is a string, "" where it is not there or is not one.
func (c Claims) Text(name string) string {
	s, _ := c[name].(string)
	return s
}

// Object returns a claim that is an object, nil where it is not.
func (c Claims) Object(name string) Claims {
	m, _ := c[name].(map[string]any)
	return m
}

// Texts returns a claim that is a string or a list of strings; ok is false for
// anything else.
func (c Claims) Texts(name string) (texts []string, ok bool) {
	switch v := c[name].(type) {
	case string:
		return []string{v}, true
	case []any:
		for _, e := range v {
			s, isText := e.(string)
			if !isText {
				return nil, false
			}
			texts = append(texts, s)
		}
		return texts, true
	}
	return nil, false
}

// Time returns a claim that is a NumericDate (RFC 7519, 2), to the second.
func (c Claims) Time(name string) (time.Time, bool) {
	n, ok := c[name].(json.Number)
	if !ok {
		return time.Time{}, false
	}
	seconds, err := n.Float64()
	if err != nil || math.IsNaN(seconds) || seconds < 0 || seconds > 1<<40 {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0), true
}

// Skew is by how much the clock of another party may differ.
const Skew = 30 * time.Second

// Timely checks exp, which has to be there, and nbf and iat where they are
// (RFC 7519, 4.1). longest bounds exp from now; 0: not bounded.
func (c Claims) Timely(now time.Time, longest time.Duration) error {
	exp, ok := c.Time("exp")
	if !ok {
		return errors.New("it has no exp")
	}
	if !now.Before(exp.Add(Skew)) {
		return errors.New("it has ended: exp is " + exp.UTC().Format(time.RFC3339) + ", and this server's clock says " + now.UTC().Format(time.RFC3339))
	}
	if longest > 0 && exp.After(now.Add(longest+Skew)) {
		return errors.New("its exp is more than " + longest.String() + " from now")
	}
	for _, name := range []string{"nbf", "iat"} {
		if _, there := c[name]; !there {
			continue
		}
		if at, ok := c.Time(name); !ok || at.After(now.Add(Skew)) {
			return errors.New("its " + name + " is no time, or is to come: this server's clock says " + now.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// For reports whether aud names the audience.
func (c Claims) For(audience string) bool {
	all, ok := c.Texts("aud")
	return ok && slices.Contains(all, audience)
}
