package hunt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha3"
	"crypto/sha512"
	"fmt"
	"math/big"
	"slices"

	"filippo.io/edwards25519"
	"filippo.io/mldsa"
	"filippo.io/nistec"

	"claviger.dev"
	"claviger.dev/pubkey"
)

// matcher tests windows against all keys of one kind at once: the work on a
// window does not grow with the number of keys.
type matcher interface {
	// width is the size of a window in bytes.
	width() int
	// bias bounds how far the material is from uniform: see limit.
	bias() int
	// sparse matchers are too slow for every window: they are given only those
	// that an encoding's structure points at.
	sparse() bool
	// match returns the index of the key whose private half the window gives
	// away and the form it has, or -1. Little-endian reading is left out where
	// both is false.
	match(window []byte, both bool) (key int, form string)
}

// The forms in which a window gives a private half away.
const (
	formBig    = "scalar, big-endian"
	formLittle = "scalar, little-endian"
	formSeed   = "seed"
	formFactor = "prime factor, big-endian"
	formFactLE = "prime factor, little-endian"
	formRSAD   = "private exponent"
)

// reversed fills out with the window's bytes from the last to the first.
func reversed(window, out []byte) []byte {
	out = append(out[:0], window...)
	slices.Reverse(out)
	return out
}

// matchers groups the keys by kind.
func matchers(keys []Key) ([]matcher, error) {
	p256, p384, ed, ml := map[string]int{}, map[string]int{}, map[string]int{}, mlMatcher{}
	factors := map[int]*rsaFactor{}
	exponents := map[int]*rsaExponent{}
	var out []matcher
	for i, k := range keys {
		switch pub := k.Public.Std().(type) {
		case *ecdsa.PublicKey:
			if k.Public.Algorithm() == claviger.ECDSAP256 {
				p256[string(k.Public.Raw())] = i
			} else {
				p384[string(k.Public.Raw())] = i
			}
		case ed25519.PublicKey:
			ed[string(pub)] = i
		case *mldsa.PublicKey:
			ml[string(pub.Bytes()[:rhoSize])] = mlKey{pub, i}
		case *rsa.PublicKey:
			size := pub.Size()
			if factors[size] == nil {
				factors[size] = &rsaFactor{size: size / 2, product: big.NewInt(1)}
				exponents[size] = &rsaExponent{size: size}
				out = append(out, factors[size], exponents[size])
			}
			factors[size].add(pub.N, i)
			exponents[size].keys = append(exponents[size].keys, modulus{pub.N, i})
		default:
			return nil, Symmetric(k.Name)
		}
	}
	for _, m := range []struct {
		keys int
		make func() (matcher, error)
	}{
		{len(p256), func() (matcher, error) { return newP256(p256) }},
		{len(p384), func() (matcher, error) { return newP384(p384) }},
		{len(ed), func() (matcher, error) { return newEd(ed) }},
		{len(ml), func() (matcher, error) { return ml, nil }},
	} {
		if m.keys == 0 {
			continue
		}
		made, err := m.make()
		if err != nil {
			return nil, fmt.Errorf("read a public key: %w", err)
		}
		out = append(out, made)
	}
	return out, nil
}

// Symmetric is the refusal to hunt for a key that has no public half.
func Symmetric(name string) error {
	return claviger.Errorf(claviger.Unsupported, name+" is symmetric: it has no public half to hunt by",
		"only the key process can tell its own symmetric keys: its 'find' says whether a buffer contains one")
}

// curve tests scalars d by d·G. Keys are known by the x of their point, so that
// n-d, which gives d away, is found too.
type curve struct {
	size int
	find func(d []byte) int // the key whose point is d·G or its negative, or -1
}

// few is up to how many keys a point is compared with each as it is. To look it
// up among more it is brought to its one encoding, which takes an inversion.
const few = 8

// newP256 takes keys by their points, uncompressed.
func newP256(keys map[string]int) (*curve, error) {
	byX := map[string]int{}
	type known struct{ point, negative *nistec.P256Point }
	points := map[int]known{}
	for raw, i := range keys {
		point, err := nistec.NewP256Point().SetBytes([]byte(raw))
		if err != nil {
			return nil, err
		}
		byX[raw[1:33]], points[i] = i, known{point, nistec.NewP256Point().Negate(point)}
	}
	return &curve{32, func(d []byte) int {
		p, err := nistec.NewP256Point().ScalarBaseMult(d)
		if err != nil {
			return -1
		}
		if len(points) > few {
			return lookUp(byX, p)
		}
		for i, k := range points {
			if p.Equal(k.point) == 1 || p.Equal(k.negative) == 1 {
				return i
			}
		}
		return -1
	}}, nil
}

// lookUp returns the key that has the point or its negative, or -1.
func lookUp(byX map[string]int, p interface{ BytesX() ([]byte, error) }) int {
	if x, err := p.BytesX(); err == nil {
		if i, ok := byX[string(x)]; ok {
			return i
		}
	}
	return -1
}

// newP384 takes keys by their points, uncompressed.
func newP384(keys map[string]int) (*curve, error) {
	byX := map[string]int{}
	for raw, i := range keys {
		byX[raw[1:49]] = i
	}
	multiples := multiplesOf(48, nistec.NewP384Point().SetGenerator(), nistec.NewP384Point)
	return &curve{48, func(d []byte) int {
		p := nistec.NewP384Point()
		for i, digit := range d {
			if digit != 0 {
				p.Add(p, multiples[47-i][digit])
			}
		}
		return lookUp(byX, p)
	}}, nil
}

// multiplesOf makes a table in which [i][d] is d·256^i times a point, so that a
// multiple of the point is one addition a byte. Unlike the ways of the libraries
// it takes a time that depends on the scalar: those that are tested are no
// secrets of this process.
func multiplesOf[P interface{ Add(P, P) P }](size int, point P, zero func() P) [][256]P {
	out := make([][256]P, size)
	for i := range out {
		out[i][0] = zero()
		for d := 1; d < 256; d++ {
			out[i][d] = zero().Add(out[i][d-1], point)
		}
		point = zero().Add(out[i][255], point)
	}
	return out
}

func (c *curve) width() int   { return c.size }
func (c *curve) bias() int    { return 1 } // n is close to a power of two
func (c *curve) sparse() bool { return false }

func (c *curve) match(window []byte, both bool) (int, string) {
	if i := c.find(window); i >= 0 {
		return i, formBig
	}
	if !both {
		return -1, ""
	}
	var turned [48]byte
	if i := c.find(reversed(window, turned[:])); i >= 0 {
		return i, formLittle
	}
	return -1, ""
}

// edMatcher tests Ed25519 seeds (RFC 8032, 5.1.5) and scalars, both clamped and
// reduced.
type edMatcher struct {
	keys      map[string]int
	points    map[int]*edwards25519.Point // of few keys
	multiples [][256]*edwards25519.Point
}

// newEd takes keys by their encoded points.
func newEd(keys map[string]int) (*edMatcher, error) {
	m := &edMatcher{keys: keys, points: map[int]*edwards25519.Point{},
		multiples: multiplesOf(32, edwards25519.NewGeneratorPoint(), edwards25519.NewIdentityPoint)}
	for raw, i := range keys {
		point, err := new(edwards25519.Point).SetBytes([]byte(raw))
		if err != nil {
			return nil, err
		}
		m.points[i] = point
	}
	return m, nil
}

func (*edMatcher) width() int   { return 32 }
func (*edMatcher) bias() int    { return 6 } // of the clamped scalar, which has five fixed bits
func (*edMatcher) sparse() bool { return false }

// find returns the key whose point is s·B, or -1.
func (m *edMatcher) find(s *edwards25519.Scalar, err error) int {
	if err != nil {
		return -1
	}
	p := edwards25519.NewIdentityPoint()
	for i, digit := range s.Bytes() {
		if digit != 0 {
			p.Add(p, m.multiples[i][digit])
		}
	}
	if len(m.points) > few {
		if i, ok := m.keys[string(p.Bytes())]; ok {
			return i
		}
		return -1
	}
	for i, k := range m.points {
		if p.Equal(k) == 1 {
			return i
		}
	}
	return -1
}

func (m *edMatcher) match(window []byte, _ bool) (int, string) {
	h := sha512.Sum512(window)
	if i := m.find(edwards25519.NewScalar().SetBytesWithClamping(h[:32])); i >= 0 {
		return i, formSeed
	}
	if window[0]&7 == 0 && window[31]>>6 == 1 {
		if i := m.find(edwards25519.NewScalar().SetBytesWithClamping(window)); i >= 0 {
			return i, formLittle
		}
	}
	if window[31] <= 0x10 {
		if i := m.find(edwards25519.NewScalar().SetCanonicalBytes(window)); i >= 0 {
			return i, formLittle
		}
	}
	return -1, ""
}

// mlMatcher tests ML-DSA-65 seeds (FIPS 204, algorithm 6). Keys are known by
// what they begin with, the public seed rho, which is hashed from the seed alone.
type mlMatcher map[string]mlKey

type mlKey struct {
	public *mldsa.PublicKey
	key    int
}

// rhoSize is the size of rho in bytes.
const rhoSize = 32

func (mlMatcher) width() int   { return mldsa.PrivateKeySize }
func (mlMatcher) bias() int    { return 0 }
func (mlMatcher) sparse() bool { return false }

func (m mlMatcher) match(window []byte, _ bool) (int, string) {
	const k, l = 6, 5 // of ML-DSA-65
	var in [mldsa.PrivateKeySize + 2]byte
	copy(in[:], window)
	in[len(in)-2], in[len(in)-1] = k, l
	known, ok := m[string(sha3.SumSHAKE256(in[:], rhoSize))]
	if !ok {
		return -1, ""
	}
	key, err := mldsa.NewPrivateKey(mldsa.MLDSA65(), window)
	if err != nil || !key.PublicKey().Equal(known.public) {
		return -1, ""
	}
	return known.key, formSeed
}

type modulus struct {
	n   *big.Int
	key int
}

// rsaFactor tests windows of half the modulus for dividing any modulus, by one
// division of the product of them all; of many, only where the window is prime.
type rsaFactor struct {
	size    int
	product *big.Int
	keys    []modulus
}

// fewModuli is up to how many moduli their product is divided by every window.
// A division grows with them. With more, only what is prime divides.
const fewModuli = 64

func (m *rsaFactor) add(n *big.Int, key int) {
	m.keys = append(m.keys, modulus{n, key})
	m.product = new(big.Int).Mul(m.product, n)
}

func (m *rsaFactor) width() int   { return m.size }
func (m *rsaFactor) bias() int    { return 14 } // primes with the top bit set are more than 1 in 2^14 of all numbers of up to 2048 bits
func (m *rsaFactor) sparse() bool { return false }

func (m *rsaFactor) match(window []byte, both bool) (int, string) {
	last := len(window) - 1
	if window[0]&0x80 != 0 && window[last]&1 != 0 {
		if i := m.divides(window); i >= 0 {
			return i, formFactor
		}
	}
	if both && window[last]&0x80 != 0 && window[0]&1 != 0 {
		if i := m.divides(reversed(window, make([]byte, len(window)))); i >= 0 {
			return i, formFactLE
		}
	}
	return -1, ""
}

func (m *rsaFactor) divides(window []byte) int {
	p, rest := new(big.Int).SetBytes(window), new(big.Int)
	if len(m.keys) > fewModuli && !p.ProbablyPrime(0) { // it says so of every prime
		return -1
	}
	if rest.Mod(m.product, p).Sign() != 0 {
		return -1
	}
	for _, k := range m.keys {
		if rest.Mod(k.n, p).Sign() == 0 {
			return k.key
		}
	}
	return -1
}

// rsaExponent tests private exponents by 2^(e·d) = 2 mod n: slow, and so only
// where an encoding has an integer of the modulus's size.
type rsaExponent struct {
	size int
	keys []modulus
}

func (m *rsaExponent) width() int   { return m.size }
func (m *rsaExponent) bias() int    { return 8 }
func (m *rsaExponent) sparse() bool { return true }

func (m *rsaExponent) match(window []byte, _ bool) (int, string) {
	d, two := new(big.Int).SetBytes(window), big.NewInt(2)
	if d.Bit(0) == 0 {
		return -1, ""
	}
	for _, k := range m.keys {
		if d.Cmp(k.n) >= 0 {
			continue
		}
		power := new(big.Int).Exp(two, big.NewInt(65537), k.n) // the only exponent that pubkey reads
		if power.Exp(power, d, k.n).Cmp(two) == 0 {
			return k.key, formRSAD
		}
	}
	return -1, ""
}

// Key is a key to hunt for: its public half, and a name for the report.
type Key struct {
	Name   string
	Public pubkey.Key
}
