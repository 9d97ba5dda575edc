package state

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"time"

	"claviger.dev/internal/recipe"
)

// The decoders are strict: what they accept encodes to the same text again.
var (
	b64    = base64.StdEncoding.Strict()
	b64raw = base64.RawStdEncoding.Strict()
	b64u   = base64.RawURLEncoding.Strict()

	b64uPadded = base64.URLEncoding.Strict()
)

// decode refuses the line breaks that encoding/base64 skips.
func decode(enc *base64.Encoding, text []byte) ([]byte, bool) {
	if bytes.ContainsAny(text, "\r\n") {
		return nil, false
	}
	out := make([]byte, enc.DecodedLen(len(text)))
	n, err := enc.Decode(out, text)
	return out[:n], err == nil
}

// decodeSized decodes what must have exactly n bytes.
func decodeSized(enc *base64.Encoding, text []byte, n int) ([]byte, bool) {
	if len(text) != enc.EncodedLen(n) {
		return nil, false
	}
	out, ok := decode(enc, text)
	return out, ok && len(out) == n
}

func encode(enc *base64.Encoding, b []byte) []byte { return enc.AppendEncode(nil, b) }

// cutLast cuts at the last separator.
func cutLast(b []byte, sep string) (before, after []byte, ok bool) {
	i := bytes.LastIndex(b, []byte(sep))
	if i < 0 || sep == "" {
		return nil, nil, false
	}
	return b[:i], b[i+len(sep):], true
}

// join appends the parts with the separator between them.
func join(sep string, parts ...[]byte) []byte { return bytes.Join(parts, []byte(sep)) }

// or returns the first that is not zero.
func or[T comparable](values ...T) T { return cmp.Or(values...) }

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// formatBase62 writes a number with the digits of base62.
func formatBase62(n uint64) []byte {
	var b [11]byte
	i := len(b)
	for {
		i--
		b[i] = base62[n%62]
		if n /= 62; n == 0 {
			return bytes.Clone(b[i:])
		}
	}
}

func parseBase62(text []byte) (n uint64, ok bool) {
	if len(text) == 0 || len(text) > 8 { // 8 digits are the year 6920 million
		return 0, false
	}
	for _, c := range text {
		d := bytes.IndexByte([]byte(base62), c)
		if d < 0 {
			return 0, false
		}
		n = n*62 + uint64(d)
	}
	return n, bytes.Equal(formatBase62(n), text)
}

// parseDecimal reads a number that is not negative, in its only form.
func parseDecimal(text []byte) (int64, bool) {
	n, err := strconv.ParseInt(string(text), 10, 64)
	return n, err == nil && n >= 0 && strconv.FormatInt(n, 10) == string(text)
}

// unix returns the time of a number of seconds, zero when it is not sane.
func unix(seconds int64) time.Time {
	if seconds <= 0 || seconds > 1<<40 {
		return time.Time{}
	}
	return time.Unix(seconds, 0).UTC()
}

// object reads a JSON object with at most 256 members, each name once.
func object(text []byte) (map[string]json.RawMessage, bool) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, false
	}
	out := map[string]json.RawMessage{}
	for dec.More() {
		name, err := dec.Token()
		key, ok := name.(string)
		if err != nil || !ok || len(out) == 256 {
			return nil, false
		}
		if _, twice := out[key]; twice {
			return nil, false
		}
		var value json.RawMessage
		if dec.Decode(&value) != nil {
			return nil, false
		}
		out[key] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, false
	}
	return out, len(bytes.TrimSpace(text[dec.InputOffset():])) == 0
}

// claims returns what a JSON object says of its times; an object it need not be.
func claims(payload []byte) (f Facts) {
	members, _ := object(payload)
	f.Issued, f.Expires = numericDate(members["iat"]), numericDate(members["exp"])
	return f
}

// numericDate reads seconds since 1970, which may have a fraction.
func numericDate(text []byte) time.Time {
	seconds, err := strconv.ParseFloat(string(text[:min(len(text), 32)]), 64)
	if err != nil || len(text) > 32 || seconds <= 0 || seconds > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0).UTC()
}

// maxText is the longest string that text reads, in bytes of JSON. It names
// something: a purpose, a key, an algorithm.
const maxText = 8 << 10

// text returns the string that a JSON value is.
func text(value []byte) (s string, ok bool) {
	if len(value) == 0 || len(value) > maxText || value[0] != '"' {
		return "", false
	}
	return s, json.Unmarshal(value, &s) == nil
}

// signDetached makes the tag of p.Over as text: base64, or base64url.
func signDetached(p Params, payload []byte) (making, error) {
	if len(payload) > 0 {
		return making{}, errPayload
	}
	return making{0, recipe.Item{Data: p.Over}, func(tag []byte) []byte { return encode(detachedText(p), tag) }}, nil
}

func checkDetached(p Params, token []byte) (opening, bool) {
	tag, ok := decode(detachedText(p), token)
	return opening{recipe.Item{Data: p.Over, Aside: tag}, func([]byte) ([]byte, Facts, bool) { return nil, Facts{}, true }}, ok
}

func detachedText(p Params) *base64.Encoding {
	if p.Encoding == "base64url" {
		return b64u
	}
	return b64
}
