package state

import (
	"bytes"
	"encoding/hex"
	"strconv"
	"time"

	"claviger.dev/internal/recipe"
)

// @hapi/iron 6 and 7 with their defaults (AES-256-CBC, one iteration), and
// iron-session over it. The payload is the JSON. KeyID: the password's id. A
// token carries its end in milliseconds when Expires is given.
const (
	Iron Format = "iron"
	// IronSession adds the version "~2".
	IronSession Format = "iron-session"
)

func iron(f Format) codec {
	suffix := ""
	switch f {
	case Iron:
	case IronSession:
		suffix = "~2"
	default:
		return codec{}
	}
	return codec{
		sets:   []recipe.Set{recipe.Iron},
		recipe: func(Params) (recipe.Recipe, error) { return recipe.Recipe{Scheme: recipe.IronSeal}, nil },
		protect: func(p Params, payload []byte) (making, error) {
			return ironSeal(suffix, p, payload)
		},
		open: func(p Params, token []byte) (opening, bool) {
			token, ok := bytes.CutSuffix(token, []byte(suffix))
			o, opens := ironOpen(p, token)
			return o, ok && opens
		},
	}
}

func ironSeal(suffix string, p Params, payload []byte) (making, error) {
	expiry := ""
	if !p.Expires.IsZero() {
		expiry = strconv.FormatInt(p.Expires.UnixMilli(), 10)
	}
	return making{32 + 16 + 64, recipe.Item{Data: payload, Aside: []byte(p.KeyID + "*" + expiry)}, func(out []byte) []byte {
		n := len(out)
		salt, iv, ct, macSalt, mac := out[:32], out[32:48], out[48:n-64], out[n-64:n-32], out[n-32:]
		return append(join("*", []byte("Fe26.2"), []byte(p.KeyID), hex.AppendEncode(nil, salt), encode(b64u, iv), encode(b64u, ct),
			[]byte(expiry), hex.AppendEncode(nil, macSalt), encode(b64u, mac)), suffix...)
	}}, nil
}

func ironOpen(p Params, token []byte) (opening, bool) {
	parts := bytes.SplitN(token, []byte("*"), 9)
	if len(parts) != 8 || string(parts[0]) != "Fe26.2" || len(parts[1]) > 128 || p.KeyID != "" && string(parts[1]) != p.KeyID {
		return opening{}, false
	}
	salt, ok1 := decodeHex(parts[2])
	iv, ok2 := decodeSized(b64u, parts[3], 16)
	ct, ok3 := decode(b64u, parts[4])
	macSalt, ok4 := decodeHex(parts[6])
	mac, ok5 := decodeSized(b64u, parts[7], 32)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || len(salt) != 32 || len(macSalt) != 32 {
		return opening{}, false
	}
	f := Facts{KeyID: string(parts[1])}
	if len(parts[5]) > 0 {
		ms, ok := parseDecimal(parts[5])
		if !ok || ms > 1<<50 {
			return opening{}, false
		}
		f.Expires = time.UnixMilli(ms).UTC()
	}
	item := recipe.Item{Data: bytes.Join([][]byte{salt, iv, ct, macSalt, mac}, nil), Aside: join("*", parts[1], parts[5])}
	return opening{item, func(out []byte) ([]byte, Facts, bool) { return out, f, true }}, true
}
