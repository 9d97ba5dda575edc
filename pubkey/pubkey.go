// Package pubkey is the public half of a version: it parses raw public keys
// strictly, verifies signatures of every algorithm that Claviger offers, and
// writes the key in the forms that other programs read (SPKI, PEM, JWK,
// OpenSSH). It holds no private material and has no way to take any.
package pubkey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"slices"

	"claviger.dev"
	"filippo.io/edwards25519"
	"filippo.io/mldsa"
)

// Key is a public key with its algorithm. The zero Key is not valid; Parse and
// FromSPKI make one. A Key is safe for concurrent use.
type Key struct {
	alg claviger.Algorithm
	raw []byte
	std crypto.PublicKey
}

// publicExponent is the only RSA public exponent that is accepted.
const publicExponent = 65537

func invalid(msg string) error {
	return claviger.Errorf(claviger.Invalid, msg, "check that the public key is of the algorithm that was named")
}

// Parse reads a raw public key: Ed25519, 32 bytes (RFC 8032); ECDSA, the
// uncompressed point (SEC 1, 2.3.3), 65 or 97 bytes; RSA, DER of RSAPublicKey
// (RFC 8017, A.1.1) with exponent 65537 and a modulus of exactly the
// algorithm's bits; ML-DSA-65, 1952 bytes (FIPS 204). Whatever is accepted
// encodes to the same bytes again.
func Parse(alg claviger.Algorithm, raw []byte) (Key, error) {
	if len(raw) > 4096 {
		return Key{}, claviger.Errorf(claviger.TooLarge, "the public key is longer than 4096 bytes", "give one public key")
	}
	k := Key{alg: alg, raw: slices.Clone(raw)}
	switch alg {
	case claviger.Ed25519:
		if !validEd25519(raw) {
			return Key{}, invalid("an Ed25519 public key is 32 bytes that encode a point of large order")
		}
		k.std = ed25519.PublicKey(k.raw)
		return k, nil
	case claviger.ECDSAP256, claviger.ECDSAP384:
		pub, err := ecdsa.ParseUncompressedPublicKey(curve(alg), raw)
		if err != nil {
			return Key{}, invalid("the public key is not an uncompressed point on the algorithm's curve")
		}
		k.std = pub
		return k, nil
	case claviger.MLDSA65:
		pub, err := mldsa.NewPublicKey(mldsa.MLDSA65(), raw)
		if err != nil {
			return Key{}, invalid("an ML-DSA-65 public key is 1952 bytes")
		}
		k.std = pub
		return k, nil
	}
	params, ok := alg.RSA()
	if !ok {
		return Key{}, invalid("the algorithm has no public key")
	}
	pub, err := x509.ParsePKCS1PublicKey(raw)
	if err != nil || !bytes.Equal(x509.MarshalPKCS1PublicKey(pub), raw) {
		return Key{}, invalid("the public key is not the DER of an RSAPublicKey")
	}
	if pub.N.BitLen() != params.Bits || pub.E != publicExponent || pub.N.Bit(0) == 0 {
		return Key{}, invalid("the RSA public key has another size than the algorithm, or an exponent other than 65537")
	}
	k.std = pub
	return k, nil
}

func curve(alg claviger.Algorithm) elliptic.Curve {
	if alg == claviger.ECDSAP384 {
		return elliptic.P384()
	}
	return elliptic.P256()
}

// Algorithm returns the algorithm that the key was parsed for.
func (k Key) Algorithm() claviger.Algorithm { return k.alg }

// Raw returns a copy of the raw public key, in the form that Parse takes.
func (k Key) Raw() []byte { return slices.Clone(k.raw) }

// Std returns the key as the standard library's type: ed25519.PublicKey,
// *ecdsa.PublicKey or *rsa.PublicKey; or *mldsa.PublicKey of filippo.io/mldsa.
func (k Key) Std() crypto.PublicKey { return k.std }

// Fingerprint identifies the material: see claviger.Fingerprint.
func (k Key) Fingerprint() claviger.Fingerprint {
	h := sha256.New()
	h.Write([]byte(k.alg))
	h.Write([]byte{0})
	h.Write(k.raw)
	return claviger.Fingerprint(h.Sum(nil))
}

// validEd25519 reports whether raw is the one encoding of a point that is not
// of small order: under such a point anybody could make signatures that verify.
func validEd25519(raw []byte) bool {
	p, err := new(edwards25519.Point).SetBytes(raw)
	return err == nil && bytes.Equal(p.Bytes(), raw) &&
		new(edwards25519.Point).MultByCofactor(p).Equal(edwards25519.NewIdentityPoint()) == 0
}
