package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"claviger.dev"
	"claviger.dev/pubkey"
	"filippo.io/mldsa"
)

// The signature algorithms (RFC 7518, 3.1; RFC 8037; RFC 9864). EdDSA and
// Ed25519 are two names of one.
const (
	ES256   = "ES256"
	EdDSA   = "EdDSA"
	Ed25519 = "Ed25519"
	PS256   = "PS256"
	RS256   = "RS256"
	MLDSA65 = "ML-DSA-65" // not in Algorithms: a verifier that wants it names it
)

// Algorithms are what a Verifier takes that names none.
func Algorithms() []string { return []string{ES256, Ed25519, EdDSA, PS256, RS256} }

// private are the members that a public key does not have (RFC 7518, 6.2.2,
// 6.3.2 and 6.4; RFC 8037, 2; the AKP key type).
var private = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"}

// parseKey reads the public key of a proof's header for the algorithm that the
// header names: the key's type has to be that algorithm's.
func parseKey(alg string, members map[string]any) (pubkey.Key, error) {
	for _, name := range private {
		if _, ok := members[name]; ok {
			return pubkey.Key{}, refuse("the jwk has the private member %q: a proof carries the public key alone, and this key is to be given up", name)
		}
	}
	if own, ok := members["alg"]; ok && own != alg && !(alg == EdDSA && own == Ed25519 || alg == Ed25519 && own == EdDSA) {
		return pubkey.Key{}, refuse("the jwk is for another algorithm than the header's alg")
	}
	var key pubkey.Key
	err := errJSON
	switch kty, crv := text(members, "kty"), text(members, "crv"); {
	case alg == ES256 && kty == "EC" && crv == "P-256":
		x, errX := decode(text(members, "x"))
		y, errY := decode(text(members, "y"))
		if errX == nil && errY == nil && len(x) == 32 && len(y) == 32 {
			key, err = pubkey.Parse(claviger.ECDSAP256, slices.Concat([]byte{4}, x, y))
		}
	case (alg == EdDSA || alg == Ed25519) && kty == "OKP" && crv == "Ed25519":
		x, errX := decode(text(members, "x"))
		if errX == nil {
			key, err = pubkey.Parse(claviger.Ed25519, x)
		}
	case (alg == PS256 || alg == RS256) && kty == "RSA":
		key, err = parseRSA(alg, members)
	case alg == MLDSA65 && kty == "AKP" && text(members, "alg") == MLDSA65:
		pub, errPub := decode(text(members, "pub"))
		if errPub == nil {
			key, err = pubkey.Parse(claviger.MLDSA65, pub)
		}
	}
	if err != nil {
		return pubkey.Key{}, refuse("the jwk is no public key for %s", alg)
	}
	return key, nil
}

// parseRSA reads a modulus of 2048, 3072 or 4096 bits.
func parseRSA(alg string, members map[string]any) (pubkey.Key, error) {
	n, errN := decode(text(members, "n"))
	e, errE := decode(text(members, "e"))
	if errN != nil || errE != nil || len(n) == 0 || n[0] == 0 || len(e) > 4 {
		return pubkey.Key{}, errJSON
	}
	public := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	padding := "pss"
	if alg == RS256 {
		padding = "pkcs1"
	}
	name, err := claviger.ParseAlgorithm("rsa-" + strconv.Itoa(public.N.BitLen()) + "-" + padding + "-sha256")
	if err != nil {
		return pubkey.Key{}, err
	}
	return pubkey.Parse(name, x509.MarshalPKCS1PublicKey(public))
}

// Thumbprint returns the RFC 7638 thumbprint of a public key, by SHA-256: what
// cnf.jkt of a token has to be for proofs by this key. An RSA key has the same
// for PS256 and RS256.
func Thumbprint(public crypto.PublicKey) (string, error) {
	k, err := standard("", public)
	if err != nil {
		return "", err
	}
	return k.Thumbprint(), nil
}

// standard is the key of a type of the standard library, for the named
// algorithm or, for "", the first of Algorithms that fits.
func standard(alg string, public crypto.PublicKey) (pubkey.Key, error) {
	name := claviger.Algorithm("")
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		if p.Curve == elliptic.P256() && (alg == "" || alg == ES256) {
			name = claviger.ECDSAP256
		}
	case ed25519.PublicKey:
		if alg == "" || alg == EdDSA || alg == Ed25519 {
			name = claviger.Ed25519
		}
	case *rsa.PublicKey:
		padding := map[string]string{"": "pss", PS256: "pss", RS256: "pkcs1"}[alg]
		if padding != "" {
			name = claviger.Algorithm("rsa-" + strconv.Itoa(p.N.BitLen()) + "-" + padding + "-sha256")
		}
	case *mldsa.PublicKey:
		if alg == "" || alg == MLDSA65 {
			name = claviger.MLDSA65
		}
	}
	if name == "" {
		return pubkey.Key{}, claviger.Errorf(claviger.Unsupported, "the key makes no proofs of this algorithm",
			"use a key of ECDSA P-256, Ed25519, RSA of 2048 bits or more, or ML-DSA-65")
	}
	return pubkey.FromStd(name, public)
}

// algorithmOf is the alg of a header for a key; for Ed25519 the older name,
// which more servers know.
func algorithmOf(k pubkey.Key) string { return pubkey.JWSAlgorithm(k.Algorithm()) }

// publicMembers are the members of a JWK that RFC 7638 hashes, and no others.
func publicMembers(k pubkey.Key) (json.RawMessage, error) {
	var all map[string]any
	if err := json.Unmarshal(k.JWK(), &all); err != nil {
		return nil, err
	}
	for _, name := range []string{"alg", "kid", "use"} {
		if name != "alg" || !strings.HasPrefix(text(all, "kty"), "AKP") {
			delete(all, name)
		}
	}
	return json.Marshal(all)
}
