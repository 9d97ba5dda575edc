package pubkey

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"math/big"
	"slices"

	"claviger.dev"
	"filippo.io/mldsa"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Encoding is how ECDSA signatures are written. Other algorithms have one
// encoding and ignore it.
type Encoding int

// The encodings.
const (
	ASN1  Encoding = iota // DER of ECDSA-Sig-Value (RFC 3279, 2.2.3)
	P1363                 // r || s, each of the length of the curve's order (IEEE P1363; RFC 7518, 3.4)
)

// Verify reports whether sig is a signature of the message by the key.
func (k Key) Verify(message, sig []byte, enc Encoding) bool {
	switch pub := k.std.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(pub, message, sig)
	case *mldsa.PublicKey:
		return mldsa.Verify(pub, message, sig, nil) == nil
	case nil:
		return false
	}
	h := k.alg.Hash().New()
	h.Write(message)
	return k.VerifyDigest(h.Sum(nil), sig, enc)
}

// VerifyDigest reports whether sig is a signature of the message whose digest
// by the algorithm's hash is given. It is false for Ed25519 and ML-DSA-65,
// which sign messages only.
func (k Key) VerifyDigest(digest, sig []byte, enc Encoding) bool {
	if h := k.alg.Hash(); h == 0 || len(digest) != h.Size() {
		return false
	}
	switch pub := k.std.(type) {
	case *ecdsa.PublicKey:
		if enc == P1363 {
			var err error
			if sig, err = ToASN1(k.alg, sig); err != nil {
				return false
			}
		}
		return ecdsa.VerifyASN1(pub, digest, sig)
	case *rsa.PublicKey:
		params, _ := k.alg.RSA()
		if params.PSS {
			return rsa.VerifyPSS(pub, params.Hash, digest, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
		return rsa.VerifyPKCS1v15(pub, params.Hash, digest, sig) == nil
	}
	return false
}

// ToP1363 rewrites an ASN.1 ECDSA signature as r || s. A signature of another
// algorithm is returned as it is. Only the one DER form is accepted, with r
// and s between 1 and the curve's order.
func ToP1363(alg claviger.Algorithm, sig []byte) ([]byte, error) {
	if !isECDSA(alg) {
		return sig, nil
	}
	var r, s big.Int
	in := cryptobyte.String(sig)
	var seq cryptobyte.String
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() || !seq.ReadASN1Integer(&r) || !seq.ReadASN1Integer(&s) || !seq.Empty() {
		return nil, invalidSignature()
	}
	if !inOrder(alg, &r) || !inOrder(alg, &s) {
		return nil, invalidSignature()
	}
	n := orderSize(alg)
	return slices.Concat(r.FillBytes(make([]byte, n)), s.FillBytes(make([]byte, n))), nil
}

// ToASN1 rewrites an ECDSA signature r || s in ASN.1. A signature of another
// algorithm is returned as it is.
func ToASN1(alg claviger.Algorithm, sig []byte) ([]byte, error) {
	if !isECDSA(alg) {
		return sig, nil
	}
	n := orderSize(alg)
	if len(sig) != 2*n {
		return nil, invalidSignature()
	}
	r, s := new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])
	if !inOrder(alg, r) || !inOrder(alg, s) {
		return nil, invalidSignature()
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(r)
		b.AddASN1BigInt(s)
	})
	return b.Bytes()
}

func isECDSA(alg claviger.Algorithm) bool {
	return alg == claviger.ECDSAP256 || alg == claviger.ECDSAP384
}

func orderSize(alg claviger.Algorithm) int { return (curve(alg).Params().N.BitLen() + 7) / 8 }

func inOrder(alg claviger.Algorithm, v *big.Int) bool {
	return v.Sign() > 0 && v.Cmp(curve(alg).Params().N) < 0
}

func invalidSignature() error {
	return claviger.Errorf(claviger.Invalid, "the ECDSA signature is malformed", "check which encoding it has: ASN.1 or P1363")
}
