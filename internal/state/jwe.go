package state

import (
	"bytes"

	"claviger.dev/internal/recipe"
)

// The session tokens of next-auth 4 and Auth.js 5, encrypted JWTs: the payload
// is the JSON of the claims.
const (
	// A256GCM. Salt: "" for the session.
	NextAuth Format = "nextauth"
	// A256CBC-HS512. Salt: the cookie's name, "authjs.session-token".
	AuthJS Format = "authjs"
)

func jwe(f Format) codec {
	scheme, enc, ivSize, tagSize, salt := recipe.JWEGCM, "A256GCM", 12, 16, ""
	switch f {
	case NextAuth:
	case AuthJS:
		scheme, enc, ivSize, tagSize, salt = recipe.JWECBC, "A256CBC-HS512", 16, 32, "authjs.session-token"
	default:
		return codec{}
	}
	least := ivSize + tagSize
	if f == AuthJS {
		least += 64 // the thumbprint of the key
	}
	return codec{
		sets: []recipe.Set{recipe.AuthJS},
		recipe: func(p Params) (recipe.Recipe, error) {
			return recipe.Recipe{Scheme: scheme, Derivation: recipe.HKDF, Salt: or(p.Salt, salt)}, nil
		},
		protect: func(_ Params, payload []byte) (making, error) {
			return making{least, recipe.Item{Data: payload}, func(out []byte) []byte {
				header := recipe.JWEHeader(nil)
				if f == AuthJS {
					header, out = recipe.JWEHeader(out[:64]), out[64:]
				}
				n := len(out)
				return join(".", header, nil, encode(b64u, out[:ivSize]), encode(b64u, out[ivSize:n-tagSize]), encode(b64u, out[n-tagSize:]))
			}}, nil
		},
		open: func(_ Params, token []byte) (opening, bool) { return jweOpen(enc, ivSize, tagSize, token) },
	}
}

func jweOpen(enc string, ivSize, tagSize int, token []byte) (opening, bool) {
	parts := bytes.SplitN(token, []byte("."), 6)
	if len(parts) != 5 || len(parts[1]) != 0 || len(parts[0]) > recipe.MaxAside {
		return opening{}, false
	}
	header, kid, ok := joseHeader(parts[0], "dir")
	if e, isText := text(header["enc"]); !ok || !isText || e != enc || header["zip"] != nil {
		return opening{}, false
	}
	iv, ok1 := decodeSized(b64u, parts[2], ivSize)
	ct, ok2 := decode(b64u, parts[3])
	tag, ok3 := decodeSized(b64u, parts[4], tagSize)
	item := recipe.Item{Data: bytes.Join([][]byte{iv, ct, tag}, nil), Aside: parts[0]}
	return opening{item, func(out []byte) ([]byte, Facts, bool) {
		f := claims(out)
		f.KeyID = kid
		return out, f, true
	}}, ok1 && ok2 && ok3
}
