package keyd

import (
	"crypto/rsa"
	"encoding/asn1"
	"math/big"
)

// rsaPrivateKey is RSAPrivateKey of RFC 8017, A.1.2, of two primes.
type rsaPrivateKey struct {
	Version          int
	N                *big.Int
	E                int
	D, P, Q          *big.Int
	DP, DQ, Qinverse *big.Int
}

// rsaPublicKey is RSAPublicKey of RFC 8017, A.1.1.
type rsaPublicKey struct {
	N *big.Int
	E int
}

func encodeRSA(key *rsa.PrivateKey) ([]byte, error) {
	key.Precompute()
	return asn1.Marshal(rsaPrivateKey{
		N: key.N, E: key.E, D: key.D, P: key.Primes[0], Q: key.Primes[1],
		DP: key.Precomputed.Dp, DQ: key.Precomputed.Dq, Qinverse: key.Precomputed.Qinv,
	})
}

// decodeRSA parses a key. It is ready to sign: that the values agree with each
// other was checked by Precompute.
func decodeRSA(der []byte) (*rsa.PrivateKey, error) {
	var k rsaPrivateKey
	if rest, err := asn1.Unmarshal(der, &k); err != nil || len(rest) > 0 || k.Version != 0 {
		return nil, errMaterial
	}
	for _, n := range []*big.Int{k.N, k.D, k.P, k.Q, k.DP, k.DQ, k.Qinverse} {
		if n.Sign() <= 0 || n.BitLen() > 4096 {
			return nil, errMaterial
		}
	}
	key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: k.N, E: k.E}, D: k.D, Primes: []*big.Int{k.P, k.Q}}
	key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv = k.DP, k.DQ, k.Qinverse
	return key, nil
}

// publicRSA checks a key strictly: the size, an odd public exponent of 65537
// to 2^31-1, two different primes of half the size whose product is the
// modulus, and exponents and coefficient that agree (FIPS 186-5, A.1.1).
func publicRSA(size int, der []byte) ([]byte, error) {
	key, err := decodeRSA(der)
	if err != nil {
		return nil, err
	}
	p, q := key.Primes[0], key.Primes[1]
	if key.N.BitLen() != size || key.E < 65537 || key.E > 1<<31-1 || key.E%2 == 0 ||
		p.BitLen() != size/2 || q.BitLen() != size/2 || p.Cmp(q) == 0 ||
		!p.ProbablyPrime(20) || !q.ProbablyPrime(20) {
		return nil, errMaterial
	}
	if err := key.Validate(); err != nil {
		return nil, errMaterial
	}
	if again, err := encodeRSA(key); err != nil || string(again) != string(der) {
		return nil, errMaterial // not DER, or with other values than these imply
	}
	return asn1.Marshal(rsaPublicKey{N: key.N, E: key.E})
}
