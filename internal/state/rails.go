package state

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"time"

	"claviger.dev/internal/recipe"
)

// Rails 5.2 to 8. KDF: sha256, or sha1 for applications with the defaults of
// 6.1 and before. Digest: sha1, which Rails still has for cookies. Iterations:
// 1000. The payload is what the serialiser made.
//
// With Purpose or Expires the payload stands in Rails' envelope, which it
// recognises by its literal first characters. Unprotect takes the payload out
// of it, and refuses another purpose than the one given, as Rails does. It also
// takes the JSON out of the envelope that JSON serialisers have since 7.1.
//
// Whole: the payload is the whole message, as it stands in the token, and Rails
// itself puts it into an envelope, takes it out, and looks at the purpose.
const (
	// base64--hex(HMAC). Salt: the verifier's name. Without a Salt the secret is
	// used as it is, which takes a key of the set rails-verifier. Encoding: of the
	// message, "base64url", "base64url-padded" or base64.
	RailsVerifier Format = "rails.verifier"
	// base64--base64(nonce)--base64(tag), AES-GCM. Salt: the encryptor's. Size: 32.
	// Encoding: as for the verifier.
	RailsEncrypted Format = "rails.encrypted"
	// AES-256-CBC and HMAC. Salt and Salt2: of the encryption and of the signature.
	RailsCBC Format = "rails.cbc"
	// Cookies with the salts that Rails gives them. Name: the cookie's.
	RailsSignedCookie    Format = "rails.signed-cookie"
	RailsEncryptedCookie Format = "rails.encrypted-cookie"
	RailsCBCCookie       Format = "rails.cbc-cookie"
)

func rails(f Format) codec {
	c := codec{sets: []recipe.Set{recipe.Rails}}
	scheme, salt, salt2 := recipe.RailsTag, "", ""
	switch f {
	case RailsVerifier:
		c.sets = append(c.sets, recipe.RailsVerifier)
		c.protect, c.open = railsSign, railsUnsign
	case RailsSignedCookie:
		salt, c.protect, c.open = "signed cookie", railsSign, railsUnsign
	case RailsEncrypted:
		scheme, c.protect, c.open = recipe.RailsGCM, railsSeal, railsOpen
	case RailsEncryptedCookie:
		scheme, salt, c.protect, c.open = recipe.RailsGCM, "authenticated encrypted cookie", railsSeal, railsOpen
	case RailsCBC:
		scheme, c.protect, c.open = recipe.RailsCBC, railsSealCBC, railsOpenCBC
	case RailsCBCCookie:
		scheme, salt, salt2, c.protect, c.open = recipe.RailsCBC, "encrypted cookie", "signed encrypted cookie", railsSealCBC, railsOpenCBC
	default:
		return codec{}
	}
	if salt != "" {
		c.protect, c.open = named(c.protect), namedOpen(c.open)
	}
	c.recipe = func(p Params) (recipe.Recipe, error) {
		return railsRecipe(scheme, or(p.Salt, salt), or(p.Salt2, salt2), p)
	}
	return c
}

func railsRecipe(scheme recipe.Scheme, salt, salt2 string, p Params) (recipe.Recipe, error) {
	if railsText(p) == nil || p.Encoding != "" && scheme == recipe.RailsCBC {
		return recipe.Recipe{}, errParams
	}
	digest := or(p.Digest, recipe.SHA1)
	if salt == "" {
		if scheme != recipe.RailsTag {
			return recipe.Recipe{}, errParams
		}
		return recipe.Recipe{Scheme: recipe.Tag, MAC: digest}, nil
	}
	r := recipe.Recipe{Scheme: scheme, Derivation: recipe.PBKDF2, Hash: or(p.KDF, recipe.SHA256), Salt: salt, Iterations: or(p.Iterations, 1000)}
	switch scheme {
	case recipe.RailsTag:
		r.MAC, r.Size = digest, 64
	case recipe.RailsGCM:
		r.Size = or(p.Size, 32)
	case recipe.RailsCBC:
		if salt2 == "" {
			return r, errParams
		}
		r.MAC, r.Salt2 = digest, salt2
	}
	return r, nil
}

// named gives a cookie the purpose that is its name.
func named(protect func(Params, []byte) (making, error)) func(Params, []byte) (making, error) {
	return func(p Params, payload []byte) (making, error) {
		if p.Name == "" {
			return making{}, errParams
		}
		p.Purpose = "cookie." + p.Name
		return protect(p, payload)
	}
}

func namedOpen(open func(Params, []byte) (opening, bool)) func(Params, []byte) (opening, bool) {
	return func(p Params, token []byte) (opening, bool) {
		if p.Name == "" && !p.AnyPurpose {
			return opening{}, false
		}
		p.Purpose = "cookie." + p.Name
		return open(p, token)
	}
}

// railsText returns the encoding of a token's parts, nil when there is no such.
func railsText(p Params) *base64.Encoding {
	switch p.Encoding {
	case "":
		return b64
	case "base64url":
		return b64u
	case "base64url-padded":
		return b64uPadded
	}
	return nil
}

func railsSign(p Params, payload []byte) (making, error) {
	message, err := wrap(p, payload)
	text := encode(railsText(p), message)
	return making{0, recipe.Item{Data: text}, func(tag []byte) []byte { return join("--", text, hex.AppendEncode(nil, tag)) }}, err
}

func railsUnsign(p Params, token []byte) (opening, bool) {
	text, sig, ok := cutLast(token, "--")
	tag, hexOK := decodeHex(sig)
	message, textOK := decode(railsText(p), text)
	return opening{recipe.Item{Data: text, Aside: tag}, func([]byte) ([]byte, Facts, bool) { return unwrap(p, message) }}, ok && hexOK && textOK
}

func railsSeal(p Params, payload []byte) (making, error) {
	message, err := wrap(p, payload)
	enc := railsText(p)
	return making{28, recipe.Item{Data: message}, func(out []byte) []byte {
		nonce, ct, tag := out[:12], out[12:len(out)-16], out[len(out)-16:]
		return join("--", encode(enc, ct), encode(enc, nonce), encode(enc, tag))
	}}, err
}

// railsOpen cuts from the end, by length: base64url has the separator's dashes.
func railsOpen(p Params, token []byte) (opening, bool) {
	enc := railsText(p)
	rest, tag, ok1 := cutSized(enc, token, 16)
	rest, nonce, ok2 := cutSized(enc, rest, 12)
	ct, ok3 := decode(enc, rest)
	item := recipe.Item{Data: bytes.Join([][]byte{nonce, ct, tag}, nil)}
	return opening{item, func(out []byte) ([]byte, Facts, bool) { return unwrap(p, out) }}, ok1 && ok2 && ok3
}

// cutSized cuts off the separator and, after it, the text of n bytes.
func cutSized(enc *base64.Encoding, token []byte, n int) (rest, part []byte, ok bool) {
	i := len(token) - enc.EncodedLen(n)
	if i < 0 {
		return nil, nil, false
	}
	part, ok = decodeSized(enc, token[i:], n)
	rest, separated := bytes.CutSuffix(token[:i], []byte("--"))
	return rest, part, ok && separated
}

func railsSealCBC(p Params, payload []byte) (making, error) {
	message, err := wrap(p, payload)
	tagSize := or(p.Digest, recipe.SHA1).Size()
	return making{16 + tagSize, recipe.Item{Data: message}, func(out []byte) []byte {
		iv, ct, tag := out[:16], out[16:len(out)-tagSize], out[len(out)-tagSize:]
		inner := join("--", encode(b64, ct), encode(b64, iv))
		return join("--", encode(b64, inner), hex.AppendEncode(nil, tag))
	}}, err
}

func railsOpenCBC(p Params, token []byte) (opening, bool) {
	text, sig, ok := cutLast(token, "--")
	tag, ok1 := decodeHex(sig)
	inner, ok2 := decode(b64, text)
	ctText, ivText, ok3 := bytes.Cut(inner, []byte("--"))
	ct, ok4 := decode(b64, ctText)
	iv, ok5 := decodeSized(b64, ivText, 16)
	if !ok || !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || len(tag) != or(p.Digest, recipe.SHA1).Size() {
		return opening{}, false
	}
	item := recipe.Item{Data: bytes.Join([][]byte{iv, ct, tag}, nil)}
	return opening{item, func(out []byte) ([]byte, Facts, bool) { return unwrap(p, out) }}, true
}

// The envelope, to the byte: Rails looks for its beginning as text.
const (
	envelopeHead = `{"_rails":{"message":"`
	railsTime    = "2006-01-02T15:04:05.000Z"
)

// wrap puts a payload into the envelope when it has a purpose or an end.
func wrap(p Params, payload []byte) ([]byte, error) {
	if p.Whole {
		if p.Purpose != "" || !p.Expires.IsZero() {
			return nil, errParams
		}
		return payload, nil
	}
	if len(p.Purpose) > maxText/6 { // the longest that is always read again
		return nil, errParams
	}
	if p.Purpose == "" && p.Expires.IsZero() {
		if bytes.HasPrefix(payload, []byte(`{"_rails":`)) {
			return nil, errPayload // it would be taken for an envelope
		}
		return payload, nil
	}
	return envelope(payload, p.Purpose, p.Expires), nil
}

func envelope(payload []byte, purpose string, expires time.Time) []byte {
	out := append(b64.AppendEncode([]byte(envelopeHead), payload), `","exp":`...)
	if expires.IsZero() {
		out = append(out, "null"...)
	} else {
		out = append(append(append(out, '"'), expires.UTC().Format(railsTime)...), '"')
	}
	quoted := []byte("null")
	if purpose != "" {
		quoted, _ = json.Marshal(purpose) // escapes what ActiveSupport does
	}
	return append(append(append(out, `,"pur":`...), quoted...), "}}"...)
}

// unwrap undoes wrap. What has no envelope has no purpose.
func unwrap(p Params, message []byte) ([]byte, Facts, bool) {
	payload, f, ok := message, Facts{}, true
	if bytes.HasPrefix(message, []byte(`{"_rails":`)) {
		if payload, f, ok = opened(message); !ok {
			f = Facts{}
		}
	}
	if p.Whole {
		return message, f, true
	}
	return payload, f, ok && (p.AnyPurpose || f.Purpose == p.Purpose)
}

// opened takes the payload out of an envelope of either kind. What is not
// exactly as it is made is refused.
func opened(message []byte) ([]byte, Facts, bool) {
	if rest, is := bytes.CutPrefix(message, []byte(envelopeHead)); is {
		text, rest, _ := bytes.Cut(rest, []byte(`","exp":`))
		expires, rest, _ := bytes.Cut(rest, []byte(`,"pur":`))
		f := Facts{Purpose: purposeOf(rest), Expires: railsEnd(expires)}
		payload, ok := decode(b64, text)
		return payload, f, ok && bytes.Equal(envelope(payload, f.Purpose, f.Expires), message)
	}
	rest, ok := bytes.CutPrefix(message, []byte(`{"_rails":{"data":`))
	dec := json.NewDecoder(bytes.NewReader(rest))
	var data json.RawMessage
	if !ok || dec.Decode(&data) != nil {
		return nil, Facts{}, false
	}
	again := append([]byte(`{"_rails":{"data":`), data...)
	rest = rest[dec.InputOffset():]
	var f Facts
	if after, is := bytes.CutPrefix(rest, []byte(`,"exp":`)); is {
		f.Expires = railsEnd(after[:min(len(after), len(railsTime)+2)])
		again = f.Expires.AppendFormat(append(again, `,"exp":`...), `"`+railsTime+`"`)
		rest = after[min(len(after), len(railsTime)+2):]
	}
	if after, is := bytes.CutPrefix(rest, []byte(`,"pur":`)); is {
		f.Purpose = purposeOf(after)
		again = append(append(again, `,"pur":`...), bytes.TrimSuffix(after, []byte("}}"))...)
		ok = f.Purpose != ""
	}
	return data, f, ok && bytes.Equal(append(again, "}}"...), message)
}

// railsEnd reads the time at which a message ends, in its quotes.
func railsEnd(quoted []byte) time.Time {
	end, _ := time.Parse(`"`+railsTime+`"`, string(quoted[:min(len(quoted), len(railsTime)+2)]))
	return end
}

// purposeOf reads what is left of an envelope: the purpose, and its end.
func purposeOf(rest []byte) string {
	purpose, _ := text(bytes.TrimSuffix(rest, []byte("}}")))
	return purpose
}
