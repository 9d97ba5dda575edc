package jwt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"strconv"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"claviger.dev"
	"claviger.dev/pubkey"
)

// Limits of a set of keys.
const (
	MaxKeySet = 256 << 10 // bytes of the document
	maxKeys   = 64        // keys that are used of it
)

// Keys are the public keys of one party (RFC 7517).
type Keys []verifying

// verifying is one key that may verify.
type verifying struct {
	id, alg string
	public  any
}

var errKeySet = errors.New("it is no JWK set, or is longer than 256 KiB")

// ParseKeys reads a JWK set. Keys of a kind that is not known here, and those
// that are not for signatures, are left out; a private key is refused, since
// whoever publishes one has lost it.
func ParseKeys(doc []byte) (Keys, error) {
	if len(doc) > MaxKeySet || depth(doc) > maxDepth {
		return nil, errKeySet
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(doc, &set); err != nil || set.Keys == nil {
		return nil, errKeySet
	}
	var out Keys
	for _, raw := range set.Keys {
		members, err := Object(raw)
		if err != nil {
			return nil, errKeySet
		}
		for _, name := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "priv"} {
			if _, ok := members[name]; ok {
				return nil, errors.New("it has a private key: keep that one, make another, and publish public halves alone")
			}
		}
		switch members.Text("use") {
		case "", "sig", "jwt-svid":
		default:
			continue
		}
		var k jose.JSONWebKey
		if members.Text("kty") == "oct" || json.Unmarshal(raw, &k) != nil {
			continue
		}
		if out = append(out, verifying{id: k.KeyID, alg: k.Algorithm, public: k.Key}); len(out) > maxKeys {
			return nil, errors.New("it has more than " + strconv.Itoa(maxKeys) + " keys")
		}
	}
	return out, nil
}

// Has reports whether a key has the id.
func (k Keys) Has(id string) bool {
	for _, key := range k {
		if key.id == id {
			return true
		}
	}
	return false
}

// sameAlgorithm tells EdDSA and Ed25519 as two names of one.
func sameAlgorithm(a, b string) bool {
	fold := strings.NewReplacer("Ed25519", "EdDSA")
	return fold.Replace(a) == fold.Replace(b)
}

// forAlgorithm is the key for a JWS algorithm, where it is of its type.
func (k verifying) forAlgorithm(alg string) (pubkey.Key, error) {
	name := ""
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		switch {
		case alg == "ES256" && public.Curve == elliptic.P256():
			name = string(claviger.ECDSAP256)
		case alg == "ES384" && public.Curve == elliptic.P384():
			name = string(claviger.ECDSAP384)
		}
	case ed25519.PublicKey:
		if alg == "EdDSA" || alg == "Ed25519" {
			name = string(claviger.Ed25519)
		}
	case *rsa.PublicKey:
		padding := map[string]string{"PS": "pss", "RS": "pkcs1"}[alg[:2]]
		if padding != "" {
			name = "rsa-" + strconv.Itoa(public.N.BitLen()) + "-" + padding + "-sha" + alg[2:]
		}
	}
	algorithm, err := claviger.ParseAlgorithm(name)
	if err != nil {
		return pubkey.Key{}, err
	}
	return pubkey.FromStd(algorithm, k.public)
}
