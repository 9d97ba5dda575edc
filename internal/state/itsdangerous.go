package state

import (
	"bytes"
	"encoding/binary"

	"claviger.dev/internal/recipe"
)

// itsdangerous 1.x and 2.x, and Flask over it. Digest: sha1. Derivation:
// "django-concat", or "concat" or "hmac". Separator: ".". Key derivation "none"
// is not offered, because it computes the keys of "hmac".
const (
	// value.signature: Signer, and Serializer with Salt "itsdangerous". Salt:
	// "itsdangerous.Signer".
	ItsdangerousSigner Format = "itsdangerous.signer"
	// value.time.signature: TimestampSigner, and TimedSerializer.
	ItsdangerousTimestamp Format = "itsdangerous.timestamp"
	// URLSafeSerializer: the payload is what was serialised, compressed or not.
	// Salt: "itsdangerous".
	ItsdangerousURLSafe Format = "itsdangerous.urlsafe"
	// URLSafeTimedSerializer.
	ItsdangerousTimed Format = "itsdangerous.urlsafe-timed"
	// Flask's session cookie: Salt "cookie-session", Derivation "hmac".
	FlaskSession Format = "flask.session"
)

func itsdangerous(f Format) codec {
	c := codec{sets: []recipe.Set{recipe.Itsdangerous, recipe.Flask}}
	salt, derivation := "itsdangerous", "django-concat"
	switch f {
	case ItsdangerousSigner:
		salt, c.protect, c.open = "itsdangerous.Signer", dangerSign, dangerUnsign
	case ItsdangerousTimestamp:
		salt, c.protect, c.open = "itsdangerous.Signer", dangerStamp, dangerUnstamp
	case ItsdangerousURLSafe:
		c.protect = func(p Params, payload []byte) (making, error) {
			return dangerSign(p, encodeMaybeCompressed(p, payload))
		}
		c.open = func(p Params, token []byte) (opening, bool) {
			o, ok := dangerUnsign(p, token)
			return decodeMaybeCompressed(o), ok
		}
	case FlaskSession, ItsdangerousTimed:
		if f == FlaskSession {
			salt, derivation = "cookie-session", "hmac"
		}
		c.protect = func(p Params, payload []byte) (making, error) {
			return dangerStamp(p, encodeMaybeCompressed(p, payload))
		}
		c.open = func(p Params, token []byte) (opening, bool) {
			o, ok := dangerUnstamp(p, token)
			return decodeMaybeCompressed(o), ok
		}
	default:
		return codec{}
	}
	c.recipe = func(p Params) (recipe.Recipe, error) {
		h := or(p.Digest, recipe.SHA1)
		r := recipe.Recipe{Scheme: recipe.Tag, Derivation: recipe.Concat, Hash: h, MAC: h, Salt: or(p.Salt, salt)}
		switch or(p.Derivation, derivation) {
		case "django-concat":
			r.Salt += "signer"
		case "hmac":
			r.Derivation = recipe.Label
		case "concat":
		default:
			return r, errParams
		}
		return r, nil
	}
	return c
}

func dangerSep(p Params) string { return or(p.Separator, ".") }

func dangerSign(p Params, payload []byte) (making, error) {
	p.Separator = dangerSep(p)
	return djangoSign(p, payload)
}

func dangerUnsign(p Params, token []byte) (opening, bool) {
	p.Separator = dangerSep(p)
	return djangoUnsign(p, token)
}

func dangerStamp(p Params, payload []byte) (making, error) {
	if p.Issued.Unix() <= 0 {
		return making{}, errNoTime
	}
	stamp := bytes.TrimLeft(binary.BigEndian.AppendUint64(nil, uint64(p.Issued.Unix())), "\x00")
	return dangerSign(p, join(dangerSep(p), payload, encode(b64u, stamp)))
}

func dangerUnstamp(p Params, token []byte) (opening, bool) {
	o, ok := dangerUnsign(p, token)
	if !ok {
		return o, false
	}
	value, text, ok := cutLast(o.item.Data, dangerSep(p))
	if !ok {
		return o, false
	}
	stamp, ok := decode(b64u, text)
	if !ok || len(stamp) == 0 || len(stamp) > 8 || stamp[0] == 0 {
		return o, false
	}
	issued := unix(int64(binary.BigEndian.Uint64(append(make([]byte, 8-len(stamp)), stamp...))))
	o.finish = func([]byte) ([]byte, Facts, bool) { return value, Facts{Issued: issued}, !issued.IsZero() }
	return o, true
}
