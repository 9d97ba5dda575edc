package state

import (
	"bytes"
	"encoding/binary"
	"time"

	"claviger.dev/internal/recipe"
)

// Plug and Phoenix. KDF: sha256, Iterations: 1000, Size: 32. Digest: sha256.
// The payload is the external term format as it stands in the token.
const (
	// MessageVerifier: signed session cookies. Salt: signing_salt.
	PlugVerifier Format = "plug.verifier"
	// Phoenix.Token.sign: the term is {data, signed_at_ms, max_age}.
	PlugToken Format = "plug.token"
	// MessageEncryptor: encrypted session cookies. Cipher: "xchacha" (2.x), or
	// "gcm" (1.x). Salt: encryption_salt. Salt2: signing_salt, for "gcm" alone.
	PlugEncrypted Format = "plug.encrypted"
	// Phoenix.Token.encrypt: as PlugToken, encrypted.
	PlugEncryptedToken Format = "plug.encrypted-token"
)

func plug(f Format) codec {
	c := codec{sets: []recipe.Set{recipe.Plug}}
	facts := func([]byte) (Facts, bool) { return Facts{}, true }
	if f == PlugToken || f == PlugEncryptedToken {
		facts = termFacts
	}
	switch f {
	case PlugVerifier, PlugToken:
		c.protect = plugSign
		c.open = func(p Params, token []byte) (opening, bool) { return plugUnsign(p, token, facts) }
	case PlugEncrypted, PlugEncryptedToken:
		c.protect = plugSeal
		c.open = func(p Params, token []byte) (opening, bool) { return plugOpen(p, token, facts) }
	default:
		return c
	}
	c.recipe = func(p Params) (recipe.Recipe, error) {
		r := recipe.Recipe{Scheme: recipe.Tag, Derivation: recipe.PBKDF2, Hash: or(p.KDF, recipe.SHA256),
			Salt: p.Salt, Iterations: or(p.Iterations, 1000), Size: or(p.Size, 32)}
		switch {
		case p.Salt == "":
			return r, errParams
		case f == PlugVerifier || f == PlugToken:
			r.MAC = or(p.Digest, recipe.SHA256)
		case or(p.Cipher, "xchacha") == "xchacha":
			r.Scheme = recipe.PlugXChaCha
		case p.Cipher == "gcm":
			r.Scheme, r.Salt2 = recipe.PlugGCM, p.Salt2
		default:
			return r, errParams
		}
		return r, nil
	}
	return c
}

// plugHeader is the base64url of the algorithm's name, which a token begins with.
func plugHeader(p Params) []byte { return encode(b64u, []byte(jwtAlgorithm(p.Digest))) }

func plugSign(p Params, payload []byte) (making, error) {
	signed := join(".", plugHeader(p), encode(b64u, payload))
	return making{0, recipe.Item{Data: signed}, func(tag []byte) []byte { return join(".", signed, encode(b64u, tag)) }}, nil
}

func plugUnsign(p Params, token []byte, facts func([]byte) (Facts, bool)) (opening, bool) {
	signed, sig, ok := cutLast(token, ".")
	tag, ok1 := decode(b64u, sig)
	head, body, ok2 := bytes.Cut(signed, []byte("."))
	payload, ok3 := decode(b64u, body)
	return opening{recipe.Item{Data: signed, Aside: tag}, func([]byte) ([]byte, Facts, bool) {
		f, ok := facts(payload)
		return payload, f, ok
	}}, ok && ok1 && ok2 && ok3 && bytes.Equal(head, plugHeader(p))
}

const (
	xchachaHead = "XCP."
	gcmHead     = "QTEyOEdDTQ." // A128GCM
)

func plugSeal(p Params, payload []byte) (making, error) {
	least := 24 + 16
	if p.Cipher == "gcm" {
		least = 44 + 12 + 16
	}
	return making{least, recipe.Item{Data: payload}, func(out []byte) []byte {
		if p.Cipher != "gcm" {
			return append([]byte(xchachaHead), encode(b64u, out)...)
		}
		n := len(out)
		return append([]byte(gcmHead), join(".", encode(b64u, out[:44]), encode(b64u, out[44:56]), encode(b64u, out[56:n-16]), encode(b64u, out[n-16:]))...)
	}}, nil
}

func plugOpen(p Params, token []byte, facts func([]byte) (Facts, bool)) (opening, bool) {
	var sealed []byte
	var ok bool
	if p.Cipher != "gcm" {
		rest, is := bytes.CutPrefix(token, []byte(xchachaHead))
		sealed, ok = decode(b64u, rest)
		ok = ok && is
	} else {
		rest, is := bytes.CutPrefix(token, []byte(gcmHead))
		parts := bytes.SplitN(rest, []byte("."), 5)
		if !is || len(parts) != 4 {
			return opening{}, false
		}
		wrapped, ok1 := decodeSized(b64u, parts[0], 44)
		nonce, ok2 := decodeSized(b64u, parts[1], 12)
		ct, ok3 := decode(b64u, parts[2])
		tag, ok4 := decodeSized(b64u, parts[3], 16)
		sealed, ok = bytes.Join([][]byte{wrapped, nonce, ct, tag}, nil), ok1 && ok2 && ok3 && ok4
	}
	return opening{recipe.Item{Data: sealed}, func(out []byte) ([]byte, Facts, bool) {
		f, ok := facts(out)
		return out, f, ok
	}}, ok
}

// termFacts reads the times of {data, signed_at_ms, max_age} in the external
// term format. data is only measured.
func termFacts(term []byte) (f Facts, ok bool) {
	if len(term) < 3 || term[0] != 131 || term[1] != 104 || term[2] != 3 {
		return f, false
	}
	n, ok := termSize(term[3:])
	if !ok {
		return f, false
	}
	ms, rest, ok := termInteger(term[3+n:])
	if !ok || ms <= 0 || ms > 1<<50 {
		return f, false
	}
	f.Issued = time.UnixMilli(ms).UTC()
	if age, after, ok := termInteger(rest); ok {
		if age > 0 && age < 1<<40 {
			f.Expires = f.Issued.Add(time.Duration(min(age, 1<<33)) * time.Second)
		}
		return f, len(after) == 0
	}
	return f, isAtom(rest, "infinity") || isAtom(rest, "nil")
}

func isAtom(term []byte, name string) bool {
	return string(term) == "w"+string(rune(len(name)))+name || string(term) == "d\x00"+string(rune(len(name)))+name
}

// termInteger reads an integer of at most eight bytes.
func termInteger(term []byte) (n int64, rest []byte, ok bool) {
	switch {
	case len(term) >= 2 && term[0] == 97:
		return int64(term[1]), term[2:], true
	case len(term) >= 5 && term[0] == 98:
		return int64(int32(binary.BigEndian.Uint32(term[1:]))), term[5:], true
	case len(term) >= 3 && term[0] == 110 && term[1] <= 7 && term[2] == 0 && len(term) >= 3+int(term[1]):
		size := int(term[1])
		var b [8]byte
		copy(b[:], term[3:3+size])
		return int64(binary.LittleEndian.Uint64(b[:])), term[3+size:], true
	}
	return 0, nil, false
}

// termSize measures one term, without recursion: each step consumes bytes.
func termSize(term []byte) (int, bool) {
	at := 0
	for todo := 1; todo > 0; todo-- {
		if at >= len(term) {
			return 0, false
		}
		size, parts, ok := termHead(term[at:])
		if !ok || size > len(term)-at || parts > len(term) {
			return 0, false
		}
		at, todo = at+size, todo+parts
		if todo > len(term) {
			return 0, false
		}
	}
	return at, true
}

// termHead returns the size of a term without its parts, and their number. What
// is compressed, or no data, is refused.
func termHead(b []byte) (size, parts int, ok bool) {
	n := func(width int) int { // the number after the tag
		if len(b) < 1+width {
			return 1 << 40
		}
		var v uint64
		for _, c := range b[1 : 1+width] {
			v = v<<8 | uint64(c)
		}
		return int(v)
	}
	switch b[0] {
	case 70: // float
		return 9, 0, true
	case 77: // bits
		return 6 + n(4), 0, true
	case 97: // integers
		return 2, 0, true
	case 98:
		return 5, 0, true
	case 110:
		return 3 + n(1), 0, true
	case 111:
		return 6 + n(4), 0, true
	case 100, 118: // atoms
		return 3 + n(2), 0, true
	case 115, 119:
		return 2 + n(1), 0, true
	case 104: // tuples
		return 2, n(1), true
	case 105:
		return 5, n(4), true
	case 106: // nil
		return 1, 0, true
	case 107: // string
		return 3 + n(2), 0, true
	case 108: // list, and its tail
		return 5, n(4) + 1, true
	case 109: // binary
		return 5 + n(4), 0, true
	case 116: // map
		return 5, 2 * n(4), true
	}
	return 0, 0, false
}
