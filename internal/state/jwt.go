package state

import (
	"bytes"
	"encoding/json"

	"claviger.dev/internal/recipe"
)

// JWT is a JWT with HS256, HS384 or HS512, by Digest (sha256). The payload is
// the JSON of the claims. Header: the JSON of the header where it is not
// {"alg":...,"typ":"JWT"} and, with KeyID, a kid.
const JWT Format = "jwt"

func jwt(f Format) codec {
	if f != JWT {
		return codec{}
	}
	return codec{
		sets: []recipe.Set{recipe.JWT},
		recipe: func(p Params) (recipe.Recipe, error) {
			return recipe.Recipe{Scheme: recipe.Tag, MAC: or(p.Digest, recipe.SHA256)}, nil
		},
		protect: jwtSign,
		open:    jwtUnsign,
	}
}

// jwtAlgorithm is the alg of a digest.
func jwtAlgorithm(h recipe.Hash) string {
	return map[recipe.Hash]string{recipe.SHA256: "HS256", recipe.SHA384: "HS384", recipe.SHA512: "HS512"}[or(h, recipe.SHA256)]
}

// joseHeader reads a protected header that has the algorithm and asks for
// nothing that would have to be understood.
func joseHeader(encoded []byte, alg string) (header map[string]json.RawMessage, kid string, ok bool) {
	doc, ok := decode(b64u, encoded)
	header, isObject := object(doc)
	is, isText := text(header["alg"])
	kid, _ = text(header["kid"])
	return header, kid, ok && isObject && isText && is == alg && header["crit"] == nil && header["b64"] == nil
}

// newHeader is the header, as text, of a token that is made.
func newHeader(p Params, alg string) ([]byte, error) {
	if p.Header == nil {
		doc := []byte(`{"alg":"` + alg + `","typ":"JWT"`)
		if p.KeyID != "" {
			kid, _ := json.Marshal(p.KeyID)
			doc = append(append(doc, `,"kid":`...), kid...)
		}
		p.Header = append(doc, '}')
	}
	encoded := encode(b64u, p.Header)
	if _, _, ok := joseHeader(encoded, alg); !ok {
		return nil, errParams
	}
	return encoded, nil
}

func jwtSign(p Params, payload []byte) (making, error) {
	header, err := newHeader(p, jwtAlgorithm(p.Digest))
	signed := join(".", header, encode(b64u, payload))
	return making{0, recipe.Item{Data: signed}, func(tag []byte) []byte { return join(".", signed, encode(b64u, tag)) }}, err
}

func jwtUnsign(p Params, token []byte) (opening, bool) {
	signed, sig, ok := cutLast(token, ".")
	tag, ok1 := decode(b64u, sig)
	head, body, ok2 := bytes.Cut(signed, []byte("."))
	_, kid, ok3 := joseHeader(head, jwtAlgorithm(p.Digest))
	payload, ok4 := decode(b64u, body)
	return opening{recipe.Item{Data: signed, Aside: tag}, func([]byte) ([]byte, Facts, bool) {
		f := claims(payload)
		f.KeyID = kid
		f.Header, _ = decode(b64u, head)
		return payload, f, true
	}}, ok && ok1 && ok2 && ok3 && ok4
}
