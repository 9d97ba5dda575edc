package hunt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha512"
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
	p256, p384 := newP256(), newP384()
	ed, ml := edMatcher{}, mlMatcher{}
	factors := map[int]*rsaFactor{}
	exponents := map[int]*rsaExponent{}
	var out []matcher
	for i, k := range keys {
		switch pub := k.Public.Std().(type) {
		case *ecdsa.PublicKey:
			raw := k.Public.Raw()
			x := string(raw[1 : 1+len(raw)/2])
			if k.Public.Algorithm() == claviger.ECDSAP256 {
				p256.keys[x] = i
			} else {
				p384.keys[x] = i
			}
		case ed25519.PublicKey:
			ed[string(pub)] = i
		case *mldsa.PublicKey:
			ml[string(pub.Bytes())] = i
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
		matcher
		keys int
	}{{p256, len(p256.keys)}, {p384, len(p384.keys)}, {ed, len(ed)}, {ml, len(ml)}} {
		if m.keys > 0 {
			out = append(out, m.matcher)
		}
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
	keys map[string]int
	x    func(d []byte) ([]byte, error)
}

func newP256() *curve {
	return &curve{32, map[string]int{}, func(d []byte) ([]byte, error) {
		p, err := nistec.NewP256Point().ScalarBaseMult(d)
		if err != nil {
			return nil, err
		}
		return p.BytesX()
	}}
}

func newP384() *curve {
	return &curve{48, map[string]int{}, func(d []byte) ([]byte, error) {
		p, err := nistec.NewP384Point().ScalarBaseMult(d)
		if err != nil {
			return nil, err
		}
		return p.BytesX()
	}}
}

func (c *curve) width() int   { return c.size }
func (c *curve) bias() int    { return 1 } // n is close to a power of two
func (c *curve) sparse() bool { return false }

func (c *curve) match(window []byte, both bool) (int, string) {
	if x, err := c.x(window); err == nil {
		if i, ok := c.keys[string(x)]; ok {
			return i, formBig
		}
	}
	if !both {
		return -1, ""
	}
	var turned [48]byte
	if x, err := c.x(reversed(window, turned[:])); err == nil {
		if i, ok := c.keys[string(x)]; ok {
			return i, formLittle
		}
	}
	return -1, ""
}

// edMatcher tests Ed25519 seeds (RFC 8032, 5.1.5) and scalars, both clamped and
// reduced.
type edMatcher map[string]int

func (edMatcher) width() int   { return 32 }
func (edMatcher) bias() int    { return 6 } // of the clamped scalar, which has five fixed bits
func (edMatcher) sparse() bool { return false }

func (m edMatcher) match(window []byte, _ bool) (int, string) {
	try := func(s *edwards25519.Scalar, err error) int {
		if err == nil {
			if i, ok := m[string(new(edwards25519.Point).ScalarBaseMult(s).Bytes())]; ok {
				return i
			}
		}
		return -1
	}
	h := sha512.Sum512(window)
	if i := try(edwards25519.NewScalar().SetBytesWithClamping(h[:32])); i >= 0 {
		return i, formSeed
	}
	if window[0]&7 == 0 && window[31]>>6 == 1 {
		if i := try(edwards25519.NewScalar().SetBytesWithClamping(window)); i >= 0 {
			return i, formLittle
		}
	}
	if window[31] <= 0x10 {
		if i := try(edwards25519.NewScalar().SetCanonicalBytes(window)); i >= 0 {
			return i, formLittle
		}
	}
	return -1, ""
}

// mlMatcher tests ML-DSA-65 seeds (FIPS 204, algorithm 6).
type mlMatcher map[string]int

func (mlMatcher) width() int   { return mldsa.PrivateKeySize }
func (mlMatcher) bias() int    { return 0 }
func (mlMatcher) sparse() bool { return false }

func (m mlMatcher) match(window []byte, _ bool) (int, string) {
	key, err := mldsa.NewPrivateKey(mldsa.MLDSA65(), window)
	if err != nil {
		return -1, ""
	}
	if i, ok := m[string(key.PublicKey().Bytes())]; ok {
		return i, formSeed
	}
	return -1, ""
}

type modulus struct {
	n   *big.Int
	key int
}

// rsaFactor tests windows of half the modulus for dividing any modulus, by one
// division of the product of them all.
type rsaFactor struct {
	size    int
	product *big.Int
	keys    []modulus
}

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
