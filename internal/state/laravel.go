package state

import (
	"bytes"
	"encoding/hex"
	"strconv"

	"claviger.dev/internal/recipe"
)

// Laravel 5.5 to 13.
const (
	// Crypt::encryptString, and encrypt() where the payload is what PHP
	// serialised. Cipher: "cbc" (default) or "gcm"; the key's size says AES-128
	// or AES-256. Name: of the cookie, whose prefix is then put before the
	// payload and taken off again. Encoding: "plain" for tokens without the
	// member tag, as before Laravel 8.
	LaravelEncrypted Format = "laravel.encrypted"
	// A signed URL: the payload is the URL without its signature, which the
	// token has as its last parameter. Encoding: "raw" where APP_KEY has no
	// "base64:" before it.
	LaravelURL Format = "laravel.url"
	// laravel/serializable-closure, detached: Over is what PHP serialised.
	LaravelClosure Format = "laravel.closure"
)

func laravel(f Format) codec {
	c := codec{sets: []recipe.Set{recipe.Laravel}}
	switch f {
	case LaravelEncrypted:
		c.recipe = func(p Params) (recipe.Recipe, error) {
			switch or(p.Cipher, "cbc") {
			case "cbc":
				return recipe.Recipe{Scheme: recipe.LaravelCBC, Salt: p.Name}, nil
			case "gcm":
				return recipe.Recipe{Scheme: recipe.LaravelGCM, Salt: p.Name}, nil
			}
			return recipe.Recipe{}, errParams
		}
		c.protect, c.open = laravelSeal, laravelOpen
	case LaravelURL:
		c.recipe = func(p Params) (recipe.Recipe, error) {
			r := recipe.Recipe{Scheme: recipe.LaravelURL, Salt: recipe.LaravelPrefix}
			if p.Encoding == "raw" {
				r.Salt = ""
			}
			return r, nil
		}
		c.protect, c.open = laravelSign, laravelUnsign
	case LaravelClosure:
		c.recipe = func(Params) (recipe.Recipe, error) { return recipe.Recipe{Scheme: recipe.LaravelClosure}, nil }
		c.protect, c.open = signDetached, checkDetached
	}
	return c
}

// laravelJSON is the JSON as PHP's json_encode writes it.
func laravelJSON(iv, value, mac, tag []byte, withTag bool) []byte {
	out := join("", []byte(`{"iv":"`), encode(b64, iv), []byte(`","value":"`), encode(b64, value), []byte(`","mac":"`), hex.AppendEncode(nil, mac), []byte(`"`))
	if withTag {
		out = join("", out, []byte(`,"tag":"`), encode(b64, tag), []byte(`"`))
	}
	return append(out, '}')
}

func laravelSeal(p Params, payload []byte) (making, error) {
	least := 16 + 32
	if p.Cipher == "gcm" {
		least = 12 + 16
	}
	return making{least, recipe.Item{Data: payload}, func(out []byte) []byte {
		n := len(out)
		if p.Cipher == "gcm" {
			return encode(b64, laravelJSON(out[:12], out[12:n-16], nil, out[n-16:], true))
		}
		return encode(b64, laravelJSON(out[:16], out[16:n-32], out[n-32:], nil, p.Encoding != "plain"))
	}}, nil
}

func laravelOpen(p Params, token []byte) (opening, bool) {
	doc, ok := decode(b64, token)
	parts, known := laravelParts(doc)
	value, ok1 := decode(b64, parts[1])
	ivSize, macSize, tagSize := 16, 32, 0
	if p.Cipher == "gcm" {
		ivSize, macSize, tagSize = 12, 0, 16
	}
	iv, ok2 := decodeSized(b64, parts[0], ivSize)
	tag, ok3 := decodeSized(b64, parts[3], tagSize)
	mac, ok4 := decodeHex(parts[2])
	item := recipe.Item{Data: bytes.Join([][]byte{iv, value, mac, tag}, nil)}
	return opening{item, func(out []byte) ([]byte, Facts, bool) { return out, Facts{Purpose: p.Name}, true }},
		ok && known && ok1 && ok2 && ok3 && ok4 && len(mac) == macSize
}

// laravelParts cuts the JSON into the texts of iv, value, mac and tag. It takes
// the forms that PHP has written, and no other: with the member tag or without,
// and with all slashes escaped or none.
func laravelParts(doc []byte) (parts [4][]byte, ok bool) {
	rest, ok := bytes.CutPrefix(doc, []byte(`{"iv":"`))
	rest, ended := bytes.CutSuffix(rest, []byte(`"}`))
	if !ok || !ended {
		return parts, false
	}
	if bytes.IndexByte(rest, '\\') >= 0 {
		if rest, ok = unescapeSlashes(rest); !ok {
			return parts, false
		}
	}
	parts[0], rest, _ = bytes.Cut(rest, []byte(`","value":"`))
	parts[1], rest, _ = bytes.Cut(rest, []byte(`","mac":"`))
	parts[2], parts[3], _ = bytes.Cut(rest, []byte(`","tag":"`))
	return parts, true
}

// unescapeSlashes takes the backslash before each slash away. One without it is
// refused; another backslash stays, which no part has.
func unescapeSlashes(b []byte) ([]byte, bool) {
	out := make([]byte, 0, len(b))
	for i, c := range b {
		escaped := i > 0 && b[i-1] == '\\'
		if c == '/' && !escaped {
			return nil, false
		}
		if c == '/' {
			out = out[:len(out)-1]
		}
		out = append(out, c)
	}
	return out, true
}

const laravelSignature = "signature="

func laravelSign(_ Params, payload []byte) (making, error) {
	sep := "?"
	if bytes.Contains(payload, []byte("?")) {
		sep = "&"
	}
	return making{0, recipe.Item{Data: payload}, func(tag []byte) []byte {
		return join("", payload, []byte(sep+laravelSignature), hex.AppendEncode(nil, tag))
	}}, nil
}

func laravelUnsign(_ Params, token []byte) (opening, bool) {
	i := bytes.LastIndex(token, []byte(laravelSignature))
	if i < 1 || token[i-1] != '?' && token[i-1] != '&' {
		return opening{}, false
	}
	url := token[:i-1]
	if bytes.Contains(url, []byte("?")) != (token[i-1] == '&') {
		return opening{}, false
	}
	tag, ok := decodeHex(token[i+len(laravelSignature):])
	var f Facts
	if _, query, has := bytes.Cut(url, []byte("?")); has {
		for pair := range bytes.SplitSeq(query, []byte("&")) {
			if value, is := bytes.CutPrefix(pair, []byte("expires=")); is {
				n, _ := strconv.ParseInt(string(value), 10, 64)
				f.Expires = unix(n)
			}
		}
	}
	return opening{recipe.Item{Data: url, Aside: tag}, func([]byte) ([]byte, Facts, bool) { return url, f, true }}, ok
}
