package state

import (
	"bytes"
	"encoding/hex"
	"strconv"
	"time"

	"claviger.dev/internal/recipe"
)

// Django 1.x to 5.x. Digest: sha256 by default, sha1 for tokens of Django
// before 3.1. Separator: ":".
const (
	// value:signature. Salt: "django.core.signing.Signer".
	DjangoSigner Format = "django.signer"
	// value:time:signature. Salt: "django.core.signing.TimestampSigner".
	DjangoTimestamp Format = "django.timestamp"
	// signing.dumps: the payload is what was serialised, compressed or not.
	// Salt: "django.core.signing".
	DjangoDumps Format = "django.dumps"
	// A session, as the database and cache back ends encode it; for
	// signed_cookies give Salt "django.contrib.sessions.backends.signed_cookies".
	DjangoSession Format = "django.session"
	// set_signed_cookie. Name: the cookie's. Salt: what the view gives.
	DjangoCookie Format = "django.cookie"
	// sign_object of get_cookie_signer, as messages has it since 3.2. Name: the
	// salt, "django.contrib.messages".
	DjangoCookieDumps Format = "django.cookie-dumps"
	// PasswordResetTokenGenerator. Properties: the two parts of the hash value,
	// before and after the timestamp. There is no payload. Salt: that class.
	DjangoReset Format = "django.reset"
	// salted_hmac(...).hexdigest(), detached: Over is the value. Salt:
	// AbstractBaseUser.get_session_auth_hash.
	DjangoHMAC Format = "django.salted-hmac"
)

// djangoCookies stands before the secret in the keys of cookies.
const djangoCookies = "django.http.cookies"

func django(f Format) codec {
	c := codec{sets: []recipe.Set{recipe.Django}, recipe: func(p Params) (recipe.Recipe, error) { return djangoRecipe(f, p) }}
	switch f {
	case DjangoSigner:
		c.protect, c.open = djangoSign, djangoUnsign
	case DjangoTimestamp, DjangoCookie:
		c.protect, c.open = djangoStamp, djangoUnstamp
	case DjangoDumps, DjangoSession, DjangoCookieDumps:
		c.protect, c.open = djangoDump, djangoLoad
	case DjangoReset:
		c.protect, c.open = djangoReset, djangoCheckReset
	case DjangoHMAC:
		c.protect, c.open = detachedHex, openDetachedHex
	default:
		return codec{}
	}
	return c
}

func djangoRecipe(f Format, p Params) (recipe.Recipe, error) {
	h := or(p.Digest, recipe.SHA256)
	r := recipe.Recipe{Scheme: recipe.Tag, Derivation: recipe.Concat, Hash: h, MAC: h}
	switch f {
	case DjangoSigner:
		r.Salt = or(p.Salt, "django.core.signing.Signer") + "signer"
	case DjangoTimestamp:
		r.Salt = or(p.Salt, "django.core.signing.TimestampSigner") + "signer"
	case DjangoDumps:
		r.Salt = or(p.Salt, "django.core.signing") + "signer"
	case DjangoSession:
		r.Salt = or(p.Salt, "django.contrib.sessions.SessionStore") + "signer"
	case DjangoCookie, DjangoCookieDumps:
		if p.Name == "" {
			return r, errParams
		}
		r.Salt = p.Name + p.Salt + "signer" + djangoCookies
	case DjangoReset:
		r.Scheme = recipe.HalfTag
		r.Salt = or(p.Salt, "django.contrib.auth.tokens.PasswordResetTokenGenerator")
	case DjangoHMAC:
		r.Salt = or(p.Salt, "django.contrib.auth.models.AbstractBaseUser.get_session_auth_hash")
	}
	return r, nil
}

func djangoSep(p Params) string { return or(p.Separator, ":") }

func djangoSign(p Params, payload []byte) (making, error) {
	return making{0, recipe.Item{Data: payload}, func(tag []byte) []byte {
		return join(djangoSep(p), payload, encode(b64u, tag))
	}}, nil
}

func djangoUnsign(p Params, token []byte) (opening, bool) {
	value, sig, ok := cutLast(token, djangoSep(p))
	if !ok {
		return opening{}, false
	}
	tag, ok := decode(b64u, sig)
	return opening{recipe.Item{Data: value, Aside: tag}, func([]byte) ([]byte, Facts, bool) { return value, Facts{}, true }}, ok
}

func djangoStamp(p Params, payload []byte) (making, error) {
	if p.Issued.Unix() <= 0 {
		return making{}, errNoTime
	}
	return djangoSign(p, join(djangoSep(p), payload, formatBase62(uint64(p.Issued.Unix()))))
}

func djangoUnstamp(p Params, token []byte) (opening, bool) {
	o, ok := djangoUnsign(p, token)
	if !ok {
		return o, false
	}
	value, stamp, ok := cutLast(o.item.Data, djangoSep(p))
	if !ok {
		return o, false
	}
	seconds, ok := parseBase62(stamp)
	issued := unix(int64(seconds))
	o.finish = func([]byte) ([]byte, Facts, bool) { return value, Facts{Issued: issued}, !issued.IsZero() }
	return o, ok
}

func djangoDump(p Params, payload []byte) (making, error) {
	return djangoStamp(p, encodeMaybeCompressed(p, payload))
}

func djangoLoad(p Params, token []byte) (opening, bool) {
	o, ok := djangoUnstamp(p, token)
	return decodeMaybeCompressed(o), ok
}

// encodeMaybeCompressed is base64url, with a dot before it when the payload is
// compressed; decodeMaybeCompressed has an opening undo it at its end.
func encodeMaybeCompressed(p Params, payload []byte) []byte {
	value := encode(b64u, payload)
	if p.Compressed {
		value = append([]byte("."), value...)
	}
	return value
}

func decodeMaybeCompressed(o opening) opening {
	finish := o.finish
	o.finish = func(out []byte) ([]byte, Facts, bool) {
		value, facts, ok := finish(out)
		if !ok {
			return nil, Facts{}, false
		}
		value, facts.Compressed = bytes.CutPrefix(value, []byte("."))
		payload, ok := decode(b64u, value)
		return payload, facts, ok
	}
	return o
}

// djangoEpoch is where the time of password-reset tokens begins.
var djangoEpoch = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)

func djangoReset(p Params, payload []byte) (making, error) {
	if len(payload) > 0 || len(p.Properties) != 2 {
		return making{}, errParams
	}
	seconds := int64(p.Issued.Sub(djangoEpoch) / time.Second)
	if seconds <= 0 {
		return making{}, errNoTime
	}
	return making{0, recipe.Item{Data: resetValue(p, seconds)}, func(tag []byte) []byte {
		return hex.AppendEncode([]byte(strconv.FormatInt(seconds, 36)+"-"), tag)
	}}, nil
}

func resetValue(p Params, seconds int64) []byte {
	return bytes.Join([][]byte{p.Properties[0], strconv.AppendInt(nil, seconds, 10), p.Properties[1]}, nil)
}

func djangoCheckReset(p Params, token []byte) (opening, bool) {
	stamp, sig, ok := bytes.Cut(token, []byte("-"))
	seconds, err := strconv.ParseInt(string(stamp), 36, 64)
	if !ok || err != nil || len(p.Properties) != 2 || seconds <= 0 || seconds > 1<<33 || strconv.FormatInt(seconds, 36) != string(stamp) {
		return opening{}, false
	}
	tag, ok := decodeHex(sig)
	return opening{recipe.Item{Data: resetValue(p, seconds), Aside: tag}, func([]byte) ([]byte, Facts, bool) {
		return nil, Facts{Issued: djangoEpoch.Add(time.Duration(seconds) * time.Second)}, true
	}}, ok
}

// detachedHex makes a signature by itself, in hexadecimal.
func detachedHex(_ Params, payload []byte) (making, error) {
	return making{0, recipe.Item{Data: payload}, func(tag []byte) []byte { return hex.AppendEncode(nil, tag) }}, nil
}

func openDetachedHex(p Params, token []byte) (opening, bool) {
	tag, ok := decodeHex(token)
	return opening{recipe.Item{Data: p.Over, Aside: tag}, func([]byte) ([]byte, Facts, bool) { return p.Over, Facts{}, true }}, ok
}

// decodeHex takes lower case alone.
func decodeHex(text []byte) ([]byte, bool) {
	out, err := hex.AppendDecode(nil, text)
	return out, err == nil && bytes.Equal(hex.AppendEncode(nil, out), text)
}
