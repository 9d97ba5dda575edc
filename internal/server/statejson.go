package server

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"time"

	"claviger.dev/internal/keeper"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// The JSON of Protect and Unprotect, read and written without reflection: a
// tenth of the work of the general codec, on calls that an application makes
// for each request of its own. What is unusual, such as an escape in a string,
// and what is wrong is left to the general codec: the readers here say false,
// and never take what it would refuse or understand otherwise.

// scanner reads JSON. Once bad, it stays so and reads nothing.
type scanner struct {
	text []byte
	at   int
	bad  bool
}

// next returns the next byte that is no white space, 0 at the end, and leaves
// it there.
func (s *scanner) next() byte {
	for ; s.at < len(s.text); s.at++ {
		switch c := s.text[s.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (s *scanner) skip(c byte) bool {
	if s.bad || s.next() != c {
		return false
	}
	s.at++
	return true
}

func (s *scanner) want(c byte) {
	if !s.skip(c) {
		s.bad = true
	}
}

// raw reads a string of printing ASCII without escapes.
func (s *scanner) raw() []byte {
	s.want('"')
	if s.bad {
		return nil
	}
	n := bytes.IndexByte(s.text[s.at:], '"')
	if n < 0 {
		s.bad = true
		return nil
	}
	raw := s.text[s.at : s.at+n]
	s.at += n + 1
	for _, c := range raw {
		if c < ' ' || c > '~' || c == '\\' {
			s.bad = true
			return nil
		}
	}
	return raw
}

func (s *scanner) string() string { return string(s.raw()) }

// bytes reads base64, of either alphabet, padded or not.
func (s *scanner) bytes() []byte {
	raw := s.raw()
	enc := base64.StdEncoding
	if bytes.ContainsAny(raw, "-_") {
		enc = base64.URLEncoding
	}
	if len(raw)%4 != 0 {
		enc = enc.WithPadding(base64.NoPadding)
	}
	out := make([]byte, enc.DecodedLen(len(raw)))
	n, err := enc.Decode(out, raw)
	if err != nil {
		s.bad = true
	}
	return out[:n]
}

func (s *scanner) bool() bool {
	s.next()
	for _, value := range []string{"true", "false"} {
		if bytes.HasPrefix(s.text[s.at:], []byte(value)) {
			s.at += len(value)
			return value == "true"
		}
	}
	s.bad = true
	return false
}

// number reads a number of 32 bits in its only plain form.
func (s *scanner) number() uint32 {
	s.next()
	start := s.at
	for s.at < len(s.text) && s.text[s.at] >= '0' && s.text[s.at] <= '9' {
		s.at++
	}
	digits := s.text[start:s.at]
	n, err := strconv.ParseUint(string(digits), 10, 32)
	if err != nil || len(digits) > 1 && digits[0] == '0' {
		s.bad = true
	}
	return uint32(n)
}

// time reads a time in UTC, to the second or the millisecond.
func (s *scanner) time() time.Time {
	raw := s.raw()
	t, err := time.Parse(time.RFC3339Nano, string(raw))
	if err != nil || raw[len(raw)-1] != 'Z' || len(raw) != len("2006-01-02T15:04:05Z") && len(raw) != len("2006-01-02T15:04:05.000Z") || t.Year() < 1 {
		s.bad = true
	}
	return t
}

// object reads an object. member reads the value of a member and returns its
// number, below 32, or -1 when there is no such member; none may stand twice.
func (s *scanner) object(member func(name []byte) int) {
	s.want('{')
	if s.skip('}') {
		return
	}
	for seen := uint32(0); !s.bad; {
		name := s.raw()
		s.want(':')
		if s.bad {
			return
		}
		n := member(name)
		if n < 0 || seen&(1<<n) != 0 {
			s.bad = true
			return
		}
		seen |= 1 << n
		if !s.skip(',') {
			s.want('}')
			return
		}
	}
}

func values[T any](s *scanner, value func() T) (out []T) {
	s.want('[')
	if s.skip(']') {
		return nil
	}
	for !s.bad {
		out = append(out, value())
		if !s.skip(',') {
			s.want(']')
			break
		}
	}
	return out
}

func (s *scanner) context() (c keeper.Context) {
	s.object(func(name []byte) int {
		switch string(name) {
		case "audience":
			c.Audience = s.string()
			return 0
		case "purpose":
			c.Purpose = s.string()
			return 1
		}
		return -1
	})
	return c
}

func (s *scanner) params() (p state.Params) {
	s.object(func(name []byte) int {
		if n := s.param(&p, name); n >= 0 {
			return n
		}
		return s.rareParam(&p, name)
	})
	return p
}

// param reads one of the parameters that signatures have.
func (s *scanner) param(p *state.Params, name []byte) int {
	switch string(name) {
	case "salt":
		p.Salt = s.string()
		return 0
	case "name":
		p.Name = s.string()
		return 1
	case "digest":
		p.Digest = recipe.Hash(s.string())
		return 2
	case "kdf":
		p.KDF = recipe.Hash(s.string())
		return 3
	case "derivation":
		p.Derivation = s.string()
		return 4
	case "iterations":
		p.Iterations = s.number()
		return 5
	case "size":
		p.Size = s.number()
		return 6
	case "cipher":
		p.Cipher = s.string()
		return 7
	case "encoding":
		p.Encoding = s.string()
		return 8
	case "separator":
		p.Separator = s.string()
		return 9
	case "issued":
		p.Issued = s.time()
		return 10
	case "expires":
		p.Expires = s.time()
		return 11
	case "compressed":
		p.Compressed = s.bool()
		return 12
	}
	return -1
}

// rareParam reads one of the others.
func (s *scanner) rareParam(p *state.Params, name []byte) int {
	switch string(name) {
	case "salt2":
		p.Salt2 = s.string()
		return 13
	case "purpose":
		p.Purpose = s.string()
		return 14
	case "purposes":
		p.Purposes = values(s, s.string)
		return 15
	case "anyPurpose", "any_purpose":
		p.AnyPurpose = s.bool()
		return 16
	case "keyId", "key_id":
		p.KeyID = s.string()
		return 17
	case "over":
		p.Over = s.bytes()
		return 18
	case "header":
		p.Header = s.bytes()
		return 19
	case "properties":
		p.Properties = values(s, s.bytes)
		return 20
	case "class":
		p.Class = s.string()
		return 21
	case "modifier":
		p.Modifier = s.bytes()
		return 22
	case "whole":
		p.Whole = s.bool()
		return 23
	}
	return -1
}

// call reads what both methods have; items is the name of their tokens or
// payloads, and another reads any further member.
func (s *scanner) call(items string, another func(name []byte) int) (r keeper.UnprotectRequest, ok bool) {
	s.object(func(name []byte) int {
		switch string(name) {
		case "key":
			r.Key = s.string()
			return 0
		case "format":
			r.Format = state.Format(s.string())
			return 1
		case "params":
			r.Params = s.params()
			return 2
		case items:
			r.Tokens = values(s, s.bytes)
			return 3
		case "context":
			r.Context = s.context()
			return 4
		}
		return another(name)
	})
	return r, !s.bad && s.next() == 0 && s.at == len(s.text)
}

func readUnprotect(text []byte) (keeper.UnprotectRequest, bool) {
	s, expired := scanner{text: text}, false
	r, ok := s.call("tokens", func(name []byte) int {
		if string(name) != "expired" {
			return -1
		}
		expired = s.bool()
		return 5
	})
	r.Expired = expired
	return r, ok
}

func readProtect(text []byte) (keeper.ProtectRequest, bool) {
	s := scanner{text: text}
	r, ok := s.call("payloads", func([]byte) int { return -1 })
	return keeper.ProtectRequest{Key: r.Key, Format: r.Format, Params: r.Params, Payloads: r.Tokens, Context: r.Context}, ok
}

// writer appends the members of one object. Members that are zero are left out.
type writer struct {
	out   []byte
	comma bool
	bad   bool // left to the general codec
}

func (w *writer) name(name string) {
	if w.comma {
		w.out = append(w.out, ',')
	}
	w.comma = true
	w.out = append(append(append(w.out, '"'), name...), `":`...)
}

func (w *writer) quoted(b []byte) {
	w.out = append(base64.StdEncoding.AppendEncode(append(w.out, '"'), b), '"')
}

func (w *writer) bytes(name string, b []byte) {
	if len(b) > 0 {
		w.name(name)
		w.quoted(b)
	}
}

func (w *writer) text(name, text string) {
	if text == "" {
		return
	}
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			w.bad = true
		}
	}
	w.name(name)
	w.out = append(append(append(w.out, '"'), text...), '"')
}

func (w *writer) bool(name string, b bool) {
	if b {
		w.name(name)
		w.out = append(w.out, "true"...)
	}
}

func (w *writer) number(name string, n uint32) {
	if n > 0 {
		w.name(name)
		w.out = strconv.AppendUint(w.out, uint64(n), 10)
	}
}

// time writes as many digits of a fraction as are needed: 0, 3, 6 or 9.
func (w *writer) time(name string, t time.Time) {
	if t.IsZero() {
		return
	}
	t = t.UTC()
	layout := "2006-01-02T15:04:05Z"
	switch ns := t.Nanosecond(); {
	case t.Year() < 1 || t.Year() > 9999:
		w.bad = true
	case ns == 0:
	case ns%1e6 == 0:
		layout = "2006-01-02T15:04:05.000Z"
	case ns%1e3 == 0:
		layout = "2006-01-02T15:04:05.000000Z"
	default:
		layout = "2006-01-02T15:04:05.000000000Z"
	}
	w.name(name)
	w.out = append(t.AppendFormat(append(w.out, '"'), layout), '"')
}

func writeUnprotected(dst []byte, items []keeper.Unprotected) ([]byte, bool) {
	w := writer{out: append(dst, '{')}
	if len(items) > 0 {
		w.name("items")
		w.out = append(w.out, '[')
		for i, u := range items {
			if i > 0 {
				w.out = append(w.out, ',')
			}
			w.out, w.comma = append(w.out, '{'), false
			w.bool("ok", u.OK)
			w.bytes("payload", u.Payload)
			w.number("version", u.Version)
			w.time("issued", u.Facts.Issued)
			w.time("expires", u.Facts.Expires)
			w.text("purpose", u.Facts.Purpose)
			w.text("keyId", u.Facts.KeyID)
			w.bool("compressed", u.Facts.Compressed)
			w.bytes("header", u.Facts.Header)
			w.bool("renew", u.Renew)
			w.out = append(w.out, '}')
		}
		w.out = append(w.out, ']')
	}
	return append(w.out, '}'), !w.bad
}

func writeProtected(dst []byte, p keeper.Protected) ([]byte, bool) {
	w := writer{out: append(dst, '{')}
	if len(p.Tokens) > 0 {
		w.name("tokens")
		for i, token := range p.Tokens {
			w.out = append(w.out, "[,"[min(i, 1)])
			w.quoted(token)
		}
		w.out = append(w.out, ']')
	}
	w.number("version", p.Version)
	return append(w.out, '}'), !w.bad
}
