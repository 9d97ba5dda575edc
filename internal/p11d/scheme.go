//go:build cgo

package p11d

import (
	"crypto"
	"crypto/elliptic"
	_ "crypto/sha512" // crypto.SHA384 and crypto.SHA512
	"encoding/asn1"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	claviger "claviger.dev"
	"claviger.dev/pubkey"
)

// Of PKCS#11 3.0, which the module's headers do not have.
const (
	ckmECPairsExtraBits = 0x140B
	ckkEdwards          = 0x40
	ckmEdwardsPairs     = 0x1055
	ckmEdDSA            = 0x1057
)

// scheme is how PKCS#11 does an algorithm.
type scheme struct {
	algorithm claviger.Algorithm
	class     uint // CKO_PRIVATE_KEY or CKO_SECRET_KEY
	keyType   uint
	generate  uint   // mechanism that makes a key
	use       uint   // mechanism that protects
	curve     []byte // CKA_EC_PARAMS: the DER of an object identifier (RFC 5480, RFC 8410)
	bits      int    // of an RSA modulus
	size      int    // bytes of a symmetric key
}

// schemeOf returns how an algorithm is done; not every one can be.
func schemeOf(a claviger.Algorithm) (scheme, bool) {
	private := scheme{algorithm: a, class: pkcs11.CKO_PRIVATE_KEY, keyType: pkcs11.CKK_EC, generate: pkcs11.CKM_EC_KEY_PAIR_GEN, use: pkcs11.CKM_ECDSA}
	secret := scheme{algorithm: a, class: pkcs11.CKO_SECRET_KEY, keyType: pkcs11.CKK_GENERIC_SECRET, generate: pkcs11.CKM_GENERIC_SECRET_KEY_GEN}
	if a.Protects() == claviger.MAC {
		secret.size = a.Hash().Size()
	}
	switch a {
	case claviger.ECDSAP256:
		private.curve = []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}
	case claviger.ECDSAP384:
		private.curve = []byte{6, 5, 0x2b, 0x81, 4, 0, 0x22}
	case claviger.Ed25519:
		private.keyType, private.generate, private.use = ckkEdwards, ckmEdwardsPairs, ckmEdDSA
		private.curve = []byte{6, 3, 0x2b, 0x65, 0x70}
	case claviger.HMACSHA256:
		secret.use = pkcs11.CKM_SHA256_HMAC
		return secret, true
	case claviger.HMACSHA384:
		secret.use = pkcs11.CKM_SHA384_HMAC
		return secret, true
	case claviger.HMACSHA512:
		secret.use = pkcs11.CKM_SHA512_HMAC
		return secret, true
	case claviger.AES256GCM:
		secret.keyType, secret.generate, secret.use, secret.size = pkcs11.CKK_AES, pkcs11.CKM_AES_KEY_GEN, pkcs11.CKM_AES_GCM, 32
		return secret, true
	default:
		p, ok := a.RSA()
		private.keyType, private.generate, private.use, private.bits = pkcs11.CKK_RSA, pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, pkcs11.CKM_RSA_PKCS, p.Bits
		if p.PSS {
			private.use = pkcs11.CKM_RSA_PKCS_PSS
		}
		return private, ok
	}
	return private, true
}

// offered says whether a token with these mechanisms does the algorithm.
func (s scheme) offered(mechanisms map[uint]pkcs11.MechanismInfo) bool {
	made, ok1 := mechanisms[s.generate]
	_, ok2 := mechanisms[s.use]
	size := uint(s.bits)
	return ok1 && ok2 && (size == 0 || size >= made.MinKeySize && size <= made.MaxKeySize)
}

var hashes = map[crypto.Hash]struct{ mechanism, mask uint }{
	crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
	crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
	crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
}

// mechanism returns what a signature or code is made with.
func (s scheme) mechanism() []*pkcs11.Mechanism {
	var parameter any
	if s.use == pkcs11.CKM_RSA_PKCS_PSS {
		h := hashes[s.algorithm.Hash()]
		parameter = pkcs11.NewPSSParams(h.mechanism, h.mask, uint(s.algorithm.Hash().Size()))
	}
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(s.use, parameter)}
}

// digestInfo are the DER prefixes of RFC 8017, 9.2, note 1.
var digestInfo = map[crypto.Hash][]byte{
	crypto.SHA256: {0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20},
	crypto.SHA384: {0x30, 0x41, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2, 5, 0, 4, 0x30},
	crypto.SHA512: {0x30, 0x51, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3, 5, 0, 4, 0x40},
}

// input returns what the token signs for a digest or, of Ed25519, a message.
func (s scheme) input(digest []byte) []byte {
	if s.use != pkcs11.CKM_RSA_PKCS {
		return digest
	}
	prefix := digestInfo[s.algorithm.Hash()]
	return append(append(make([]byte, 0, len(prefix)+len(digest)), prefix...), digest...)
}

// signature returns a token's signature in the form that Claviger gives out:
// ECDSA as ASN.1 (RFC 3279, 2.2.3) where PKCS#11 has r || s.
func (s scheme) signature(raw []byte) ([]byte, error) {
	if s.keyType != pkcs11.CKK_EC {
		return raw, nil
	}
	if len(raw) == 0 || len(raw)%2 != 0 {
		return nil, fmt.Errorf("an ECDSA signature of %d bytes", len(raw))
	}
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[:len(raw)/2]))
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[len(raw)/2:]))
	})
	return b.Bytes()
}

// public makes a public key of what a token's object says.
func (s scheme) public(get func(uint) ([]byte, error)) (pubkey.Key, error) {
	if s.keyType == pkcs11.CKK_RSA {
		n, err := get(pkcs11.CKA_MODULUS)
		if err != nil {
			return pubkey.Key{}, err
		}
		e, err := get(pkcs11.CKA_PUBLIC_EXPONENT)
		if err != nil {
			return pubkey.Key{}, err
		}
		der, err := asn1.Marshal(struct{ N, E *big.Int }{new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)})
		if err != nil {
			return pubkey.Key{}, fmt.Errorf("encode public key: %w", err)
		}
		return pubkey.Parse(s.algorithm, der)
	}
	point, err := get(pkcs11.CKA_EC_POINT)
	if err != nil {
		return pubkey.Key{}, err
	}
	if want := s.pointSize(); len(point) != want { // as PKCS#11 has it, an OCTET STRING; some give it bare
		var inner []byte
		if rest, err := asn1.Unmarshal(point, &inner); err != nil || len(rest) > 0 || len(inner) != want {
			return pubkey.Key{}, fmt.Errorf("a point of %d bytes", len(point))
		}
		point = inner
	}
	return pubkey.Parse(s.algorithm, point)
}

func (s scheme) pointSize() int {
	switch s.algorithm {
	case claviger.ECDSAP256:
		return 1 + 2*elliptic.P256().Params().BitSize/8
	case claviger.ECDSAP384:
		return 1 + 2*elliptic.P384().Params().BitSize/8
	}
	return 32
}

// recorded parses the public key that was recorded with a reference; there is
// none with a symmetric key.
func (s scheme) recorded(raw []byte) (pubkey.Key, error) {
	if s.class == pkcs11.CKO_PRIVATE_KEY {
		return pubkey.Parse(s.algorithm, raw)
	}
	if len(raw) > 0 {
		return pubkey.Key{}, fmt.Errorf("a symmetric key with %d bytes of public key", len(raw))
	}
	return pubkey.Key{}, nil
}
