package state

import (
	"bytes"
	"encoding/hex"

	"claviger.dev/internal/recipe"
)

// Express and its neighbours: cookie-signature (express-session, cookie-parser)
// and keygrip (cookies, cookie-session, koa).
const (
	// value.signature
	CookieSignature Format = "cookie-signature"
	// s:value.signature, the value of a signed cookie.
	ExpressCookie Format = "express.cookie"
	// A detached signature of what Over is: "name=value". Digest: sha1. Encoding:
	// "base64url", or "hex" or "base64".
	KeygripSignature Format = "keygrip"
	// Both cookies as they travel, "name=value; name.sig=signature": the payload
	// is the JSON. Name: "session". Digest: sha1.
	CookieSession Format = "cookie-session"
)

func express(f Format) codec {
	switch f {
	case CookieSignature, ExpressCookie:
		prefix := ""
		if f == ExpressCookie {
			prefix = "s:"
		}
		return codec{
			sets:    []recipe.Set{recipe.CookieSignature},
			recipe:  func(Params) (recipe.Recipe, error) { return recipe.Recipe{Scheme: recipe.Tag, MAC: recipe.SHA256}, nil },
			protect: func(_ Params, payload []byte) (making, error) { return expressSign(prefix, payload) },
			open:    func(_ Params, token []byte) (opening, bool) { return expressUnsign(prefix, token) },
		}
	case KeygripSignature, CookieSession:
		c := codec{sets: []recipe.Set{recipe.Keygrip}, protect: keygripSign, open: keygripCheck}
		c.recipe = func(p Params) (recipe.Recipe, error) {
			return recipe.Recipe{Scheme: recipe.Tag, MAC: or(p.Digest, recipe.SHA1)}, nil
		}
		if f == CookieSession {
			c.protect, c.open = cookieSession, openCookieSession
		}
		return c
	}
	return codec{}
}

func expressSign(prefix string, payload []byte) (making, error) {
	return making{0, recipe.Item{Data: payload}, func(tag []byte) []byte {
		return append([]byte(prefix), join(".", payload, encode(b64raw, tag))...)
	}}, nil
}

func expressUnsign(prefix string, token []byte) (opening, bool) {
	token, ok := bytes.CutPrefix(token, []byte(prefix))
	value, sig, cut := cutLast(token, ".")
	tag, decoded := decode(b64raw, sig)
	return opening{recipe.Item{Data: value, Aside: tag}, func([]byte) ([]byte, Facts, bool) { return value, Facts{}, true }}, ok && cut && decoded
}

func keygripSign(p Params, payload []byte) (making, error) {
	if len(payload) > 0 {
		return making{}, errPayload
	}
	return making{0, recipe.Item{Data: p.Over}, func(tag []byte) []byte {
		switch p.Encoding {
		case "hex":
			return hex.AppendEncode(nil, tag)
		case "base64":
			return encode(b64, tag)
		}
		return encode(b64u, tag)
	}}, nil
}

func keygripCheck(p Params, token []byte) (opening, bool) {
	var tag []byte
	var ok bool
	switch p.Encoding {
	case "hex":
		tag, ok = decodeHex(token)
	case "base64":
		tag, ok = decode(b64, token)
	default:
		tag, ok = decode(b64u, token)
	}
	return opening{recipe.Item{Data: p.Over, Aside: tag}, func([]byte) ([]byte, Facts, bool) { return nil, Facts{}, true }}, ok
}

func cookieSession(p Params, payload []byte) (making, error) {
	name := or(p.Name, "session")
	cookie := append([]byte(name+"="), encode(b64, payload)...)
	return making{0, recipe.Item{Data: cookie}, func(tag []byte) []byte {
		return join("", cookie, []byte("; "+name+".sig="), encode(b64u, tag))
	}}, nil
}

func openCookieSession(p Params, token []byte) (opening, bool) {
	name := or(p.Name, "session")
	cookie, sig, cut := bytes.Cut(token, []byte("; "+name+".sig="))
	value, named := bytes.CutPrefix(cookie, []byte(name+"="))
	payload, ok := decode(b64, value)
	tag, decoded := decode(b64u, sig)
	return opening{recipe.Item{Data: cookie, Aside: tag}, func([]byte) ([]byte, Facts, bool) { return payload, Facts{}, true }}, cut && named && ok && decoded
}
