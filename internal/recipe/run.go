package recipe

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Item is one input. What Data and Aside are depends on the scheme:
//
//	tags      make: Data the message. check: Data the message, Aside the tag.
//	ciphers   make: Data the plaintext. check: Data what was made.
//	          Aside is what is bound beside it: iron, "id*expiry"; JWE, the
//	          protected header as text, for a check only; legacy, the modifier.
type Item struct {
	Data  []byte
	Aside []byte
}

// Result is the answer for one item: a tag, what was sealed, or the plaintext
// of what was opened. Output is nil unless OK, and for a tag that was checked.
type Result struct {
	OK     bool
	Output []byte
}

// Overhead is how much longer than Data what Make appends can be, in bytes.
const Overhead = 256

// LaravelPrefix is the Salt of a LaravelURL whose key is the configured text
// "base64:..." of the APP_KEY, and not its bytes.
const LaravelPrefix = "base64:"

// Make protects an item and appends the result to dst. ok is false when the
// item is none that the scheme protects. The recipe was admitted, and key is
// what Key returned for it; random gives nonces and salts.
func (r Recipe) Make(dst, key []byte, random io.Reader, it Item) (out []byte, ok bool) {
	switch r.Scheme {
	case IronSeal:
		return makeIron(dst, key, random, it)
	case JWEGCM, JWECBC:
		return r.makeJWE(dst, key, random, it)
	case LaravelCBC, LaravelGCM:
		it.Data = append(r.cookiePrefix(key), it.Data...)
	}
	switch r.Scheme {
	case LegacyMAC, LegacyAES, Legacy3DES:
		return nil, false
	}
	if len(it.Aside) > 0 {
		return nil, false
	}
	if r.Tags() {
		if !r.tagged(it.Data) {
			return nil, false
		}
		return append(dst, r.tag(key, it.Data)...), true
	}
	return r.seal(dst, key, random, it.Data)
}

// Check checks a tag, or opens what was made and appends the plaintext to dst.
// There is one answer for everything that is wrong.
func (r Recipe) Check(dst, key []byte, it Item) (out []byte, ok bool) {
	switch r.Scheme {
	case IronSeal:
		return openIron(dst, key, it)
	case JWEGCM, JWECBC:
		return r.openJWE(dst, key, it)
	case LegacyMAC, LegacyAES, Legacy3DES:
		return r.openLegacy(dst, key, it)
	}
	if r.Tags() {
		return dst, r.tagged(it.Data) && hmac.Equal(r.tag(key, it.Data), it.Aside)
	}
	if len(it.Aside) > 0 {
		return nil, false
	}
	if out, ok = r.open(dst, key, it.Data); !ok {
		return nil, false
	}
	if prefix := r.cookiePrefix(key); prefix != nil {
		opened := out[len(dst):]
		if len(opened) < len(prefix) || !hmac.Equal(prefix, opened[:len(prefix)]) {
			clear(opened)
			return nil, false
		}
		out = append(dst, opened[len(prefix):]...)
	}
	return out, true
}

// Tags reports whether the scheme makes tags, of which a check gives nothing but
// a verdict.
func (r Recipe) Tags() bool {
	switch r.Scheme {
	case Tag, HalfTag, RailsTag, LaravelURL, LaravelClosure, SymfonyURI, SymfonyUser:
		return true
	}
	return false
}

// tag computes the tag of a message.
func (r Recipe) tag(key, message []byte) []byte {
	h := r.MAC.constructor() // SHA-256 where it is not a parameter
	switch {
	case r.Scheme == LaravelURL && r.Salt == LaravelPrefix:
		key = base64.StdEncoding.AppendEncode([]byte(LaravelPrefix), key)
	case r.Scheme == HalfTag:
		full := sum(h, key, message)
		for i := range full[:len(full)/2] {
			full[i] = full[2*i]&0xf0 | full[2*i+1]>>4
		}
		return full[:len(full)/2]
	}
	return sum(h, key, message)
}

// tagged reports whether a message is one that the scheme tags. Where one key
// tags two kinds of message, neither may pass for the other.
func (r Recipe) tagged(message []byte) bool {
	switch r.Scheme {
	case Tag:
		return r.Derivation != Verbatim || isText(message)
	case RailsTag:
		return !railsEncrypted(message)
	case LaravelURL:
		// What LaravelCBC authenticates is base64 throughout, and no shorter.
		return (len(message) < 44 || !onlyBase64(message)) && !isObject(message)
	case LaravelClosure:
		return isObject(message)
	case SymfonyURI:
		return isURI(message)
	case SymfonyUser:
		return isLogin(message)
	}
	return true
}

// isText reports whether a message is text without control characters, as
// every cookie and token is, and as no step of PBKDF2 or HKDF is.
func isText(message []byte) bool {
	return utf8.Valid(message) && !bytes.ContainsFunc(message, unicode.IsControl)
}

const base64Alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// onlyBase64 reports whether all of b could be base64 to a decoder that skips white space.
func onlyBase64(b []byte) bool {
	return len(bytes.TrimLeft(b, base64Alphabet+"+/=-_ \t\r\n\v\f\x00")) == 0
}

// isObject reports whether a message begins as an object that PHP serialised,
// which neither a URL nor base64 does.
func isObject(message []byte) bool {
	rest, ok := bytes.CutPrefix(message, []byte("O:"))
	size, _, quoted := bytes.Cut(rest, []byte(`:"`))
	return ok && quoted && len(size) > 0 && len(bytes.TrimLeft(size, "0123456789")) == 0
}

// railsEncrypted reports whether a signed message could be what RailsCBC
// signs: the base64 of two base64 texts with "--" between them.
func railsEncrypted(message []byte) bool {
	standard := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(string(message), "="))
	inner, err := base64.RawStdEncoding.DecodeString(standard)
	return err == nil && bytes.Contains(inner, []byte("--")) && onlyBase64(inner)
}

// isURI reports whether a message begins as an absolute URI or path does: with
// a scheme of at most 16 characters or a slash. isLogin's have neither.
func isURI(message []byte) bool {
	scheme, _, ok := bytes.Cut(message, []byte("://"))
	return ok && len(scheme) > 0 && len(scheme) <= 16 && len(bytes.TrimLeft(scheme, base64Alphabet+"+-.")) == 0 ||
		len(message) > 0 && message[0] == '/'
}

// isLogin reports whether a message is hash:expiry:user, the hash a base64 text
// of 43 characters and a "~".
func isLogin(message []byte) bool {
	if len(message) < 46 || string(message[43:45]) != "~:" || len(bytes.TrimLeft(message[:43], base64Alphabet+"-_")) > 0 {
		return false
	}
	expiry, _, ok := bytes.Cut(message[45:], []byte(":"))
	return ok && len(expiry) > 0 && len(expiry) <= 19 && len(bytes.TrimLeft(expiry, "0123456789")) == 0
}

// cookiePrefix is what Laravel puts before the value of the cookie that Salt
// names, so that one cookie does not pass for another.
func (r Recipe) cookiePrefix(key []byte) []byte {
	if r.Salt == "" || r.Scheme != LaravelCBC && r.Scheme != LaravelGCM {
		return nil
	}
	return append(hex.AppendEncode(nil, sum(sha1.New, key, []byte(r.Salt+"v2"))), '|')
}

// jweKeyID is the SHA-512 thumbprint (RFC 7638) of a derived key, which Auth.js
// puts into the header of every token.
func jweKeyID(key []byte) []byte {
	h := SHA512.constructor()()
	io.WriteString(h, `{"k":"`+base64.RawURLEncoding.EncodeToString(key)+`","kty":"oct"}`)
	return h.Sum(nil)
}
