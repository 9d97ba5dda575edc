package custodytest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"filippo.io/mldsa"
	"github.com/google/go-cmp/cmp"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
)

// Algorithms is a choice of claviger.Algorithms: one for each primitive, size
// and padding.
func Algorithms() []claviger.Algorithm {
	return []claviger.Algorithm{
		claviger.Ed25519, claviger.ECDSAP256, claviger.ECDSAP384, claviger.MLDSA65,
		"rsa-2048-pss-sha256", "rsa-2048-pkcs1-sha256", "rsa-3072-pss-sha384", "rsa-4096-pkcs1-sha512",
		claviger.HMACSHA256, claviger.HMACSHA384, claviger.HMACSHA512, claviger.AES256GCM,
	}
}

// Binding returns a fresh binding for the algorithm.
func Binding(a claviger.Algorithm, origin claviger.Origin) frames.Binding {
	return frames.Binding{KeyID: claviger.NewID(time.Now()), Version: 1, Algorithm: a, Recipe: claviger.PlainRecipe, Origin: origin}
}

// Key is material that the suite made.
type Key struct {
	custody.Material
	Public []byte
}

// Generate makes a key of the algorithm.
func Generate(t testing.TB, c *custody.Client, a claviger.Algorithm) Key {
	t.Helper()
	b := Binding(a, claviger.Generated)
	made, err := c.Generate(t.Context(), b)
	if err != nil {
		t.Fatalf("generate %s: %v", a, err)
	}
	return Key{custody.Material{Binding: b, Blob: made.Blob, Fingerprint: made.Fingerprint}, made.Public}
}

// Import seals material to a one-time key and has it adopted.
func Import(t testing.TB, c *custody.Client, a claviger.Algorithm, material []byte) (Key, error) {
	t.Helper()
	b := Binding(a, claviger.Imported)
	sealed, id := sealTo(t, c, onetime.Import, b, material)
	made, err := c.Adopt(t.Context(), b, id, sealed[0])
	if err == nil && made.Level != claviger.Exposed {
		t.Errorf("level of an import is %s", made.Level)
	}
	return Key{custody.Material{Binding: b, Blob: made.Blob, Fingerprint: made.Fingerprint}, made.Public}, err
}

func sealTo(t testing.TB, c *custody.Client, purpose string, b frames.Binding, texts ...[]byte) (sealed [][]byte, id string) {
	t.Helper()
	k, err := c.OneTimeKey(t.Context(), purpose, b)
	if err != nil {
		t.Fatal(err)
	}
	who, err := c.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Verify(sha256.Sum256(who.Public), time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		s, err := k.Seal(text)
		if err != nil {
			t.Fatal(err)
		}
		sealed = append(sealed, s)
	}
	return sealed, k.ID
}

// Run holds a custodian to the suite. open returns a client of a fresh one.
func Run(t *testing.T, open func(t *testing.T) *custody.Client) {
	for name, test := range map[string]func(*testing.T, *custody.Client){
		"sign":               testSign,
		"mac":                testMAC,
		"seal":               testSeal,
		"wrong operation":    testOperation,
		"binding":            testBinding,
		"damaged blob":       testDamage,
		"fingerprint":        testFingerprint,
		"rewrap":             testRewrap,
		"import":             testImport,
		"import is strict":   testImportStrict,
		"one-time keys":      testOneTime,
		"find":               testFind,
		"recipe":             testRecipe,
		"recipe is strict":   testRecipeStrict,
		"caps":               testCaps,
		"unload":             testUnload,
		"generate is strict": testGenerateStrict,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func testSign(t *testing.T, c *custody.Client) {
	materials := map[int][]byte{} // making an RSA key is slow: one of each size does
	for _, a := range claviger.Algorithms() {
		if !a.Asymmetric() {
			continue
		}
		t.Run(string(a), func(t *testing.T) {
			var k Key
			if p, ok := a.RSA(); ok && p.Hash != crypto.SHA256 {
				var err error
				if materials[p.Bits] == nil {
					materials[p.Bits] = Material(t, a)
				}
				if k, err = Import(t, c, a, materials[p.Bits]); err != nil {
					t.Fatal(err)
				}
			} else {
				k = Generate(t, c, a)
			}
			want := sha256.Sum256(append([]byte(string(a)+"\x00"), k.Public...))
			if k.Fingerprint != want {
				t.Error("the fingerprint is not the documented one")
			}
			messages := [][]byte{nil, []byte("one"), bytes.Repeat([]byte("x"), 5000)}
			sigs, err := c.Sign(t.Context(), k.Material, messages, false)
			if err != nil {
				t.Fatal(err)
			}
			for i := range messages {
				if !Verify(a, k.Public, messages[i], sigs[i]) {
					t.Errorf("signature %d does not verify", i)
				}
				if Verify(a, k.Public, append(messages[i], 0), sigs[i]) {
					t.Errorf("signature %d verifies another message", i)
				}
			}
			digest := make([]byte, 32)
			if h := a.Hash(); h != 0 {
				hash := h.New()
				hash.Write(messages[1])
				digest = hash.Sum(nil)
				if sigs, err = c.Sign(t.Context(), k.Material, [][]byte{digest}, true); err != nil {
					t.Fatal(err)
				}
				if !Verify(a, k.Public, messages[1], sigs[0]) {
					t.Error("the signature of a digest does not verify")
				}
				digest = digest[1:]
			}
			if _, err := c.Sign(t.Context(), k.Material, [][]byte{digest}, true); claviger.CodeOf(err) != claviger.Invalid {
				t.Errorf("wrong digest: %v", err)
			}
		})
	}
}

// Verify checks a signature with the standard library and filippo.io/mldsa.
func Verify(a claviger.Algorithm, public, message, sig []byte) bool {
	digest := message
	if a.Hash() != 0 {
		h := a.Hash().New()
		h.Write(message)
		digest = h.Sum(nil)
	}
	switch a {
	case claviger.Ed25519:
		return ed25519.Verify(public, message, sig)
	case claviger.ECDSAP256, claviger.ECDSAP384:
		curve := elliptic.P256()
		if a == claviger.ECDSAP384 {
			curve = elliptic.P384()
		}
		key, err := ecdsa.ParseUncompressedPublicKey(curve, public)
		return err == nil && ecdsa.VerifyASN1(key, digest, sig)
	case claviger.MLDSA65:
		key, err := mldsa.NewPublicKey(mldsa.MLDSA65(), public)
		return err == nil && mldsa.Verify(key, message, sig, nil) == nil
	}
	p, ok := a.RSA()
	var parsed struct {
		N *big.Int
		E int
	}
	if rest, err := asn1.Unmarshal(public, &parsed); !ok || err != nil || len(rest) > 0 || parsed.N.BitLen() != p.Bits {
		return false
	}
	key := &rsa.PublicKey{N: parsed.N, E: parsed.E}
	if p.PSS {
		return rsa.VerifyPSS(key, p.Hash, digest, sig, &rsa.PSSOptions{SaltLength: p.Hash.Size()}) == nil
	}
	return rsa.VerifyPKCS1v15(key, p.Hash, digest, sig) == nil
}

func testMAC(t *testing.T, c *custody.Client) {
	for _, a := range []claviger.Algorithm{claviger.HMACSHA256, claviger.HMACSHA384, claviger.HMACSHA512} {
		secret := bytes.Repeat([]byte{7}, 40)
		k, err := Import(t, c, a, secret)
		if err != nil {
			t.Fatal(err)
		}
		inputs := [][]byte{[]byte("a"), nil, bytes.Repeat([]byte("b"), 300)}
		macs, err := c.MAC(t.Context(), k.Material, inputs)
		if err != nil {
			t.Fatal(err)
		}
		for i := range inputs {
			h := hmac.New(a.Hash().New, secret)
			h.Write(inputs[i])
			if diff := cmp.Diff(h.Sum(nil), macs[i]); diff != "" {
				t.Errorf("%s (-want +got):\n%s", a, diff)
			}
		}
		macs[1] = macs[1][:16]
		macs[2] = bytes.Clone(macs[2])
		macs[2][0] ^= 1
		valid, err := c.VerifyMAC(t.Context(), k.Material, inputs, macs)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]bool{true, false, false}, valid); diff != "" {
			t.Errorf("%s: right, cut, wrong (-want +got):\n%s", a, diff)
		}
		k = Generate(t, c, a)
		if len(k.Public) > 0 || k.Fingerprint.IsZero() {
			t.Error("a generated MAC key has a public half or no fingerprint")
		}
	}
}

func testSeal(t *testing.T, c *custody.Client) {
	k := Generate(t, c, claviger.AES256GCM)
	items := []custody.Plain{{}, {Plaintext: []byte("text"), AssociatedData: []byte("for")}, {Plaintext: bytes.Repeat([]byte("z"), frames.MaxInput)}}
	sealed, err := c.Seal(t.Context(), k.Material, items)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.Seal(t.Context(), k.Material, items[1:2])
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(again[0][:12], sealed[1][:12]) {
		t.Error("a nonce was used twice")
	}
	flipped := bytes.Clone(sealed[1])
	flipped[20] ^= 1
	opened, err := c.Open(t.Context(), k.Material, []custody.Sealed{
		{Sealed: sealed[0]}, {Sealed: sealed[1], AssociatedData: []byte("for")}, {Sealed: sealed[2]},
		{Sealed: sealed[1], AssociatedData: []byte("else")}, {Sealed: flipped, AssociatedData: []byte("for")}, {Sealed: sealed[0][:27]}, {},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []custody.Opened{{OK: true}, {OK: true, Plaintext: items[1].Plaintext}, {OK: true, Plaintext: items[2].Plaintext}, {}, {}, {}, {}}
	if diff := cmp.Diff(want, opened); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func testOperation(t *testing.T, c *custody.Client) {
	signing, sealing := Generate(t, c, claviger.Ed25519), Generate(t, c, claviger.AES256GCM)
	one := [][]byte{[]byte("x")}
	for name, f := range map[string]func() error{
		"sign with AES": func() error { _, err := c.Sign(t.Context(), sealing.Material, one, false); return err },
		"MAC with AES":  func() error { _, err := c.MAC(t.Context(), sealing.Material, one); return err },
		"MAC with Ed":   func() error { _, err := c.MAC(t.Context(), signing.Material, one); return err },
		"check with Ed": func() error { _, err := c.VerifyMAC(t.Context(), signing.Material, one, one); return err },
		"seal with Ed":  func() error { _, err := c.Seal(t.Context(), signing.Material, make([]custody.Plain, 1)); return err },
		"open with Ed":  func() error { _, err := c.Open(t.Context(), signing.Material, make([]custody.Sealed, 1)); return err },
	} {
		if err := f(); claviger.CodeOf(err) != claviger.Unsupported {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func testBinding(t *testing.T, c *custody.Client) {
	k := Generate(t, c, claviger.ECDSAP256)
	for name, change := range map[string]func(*frames.Binding){
		"key":       func(b *frames.Binding) { b.KeyID = claviger.NewID(time.Now()) },
		"version":   func(b *frames.Binding) { b.Version++ },
		"algorithm": func(b *frames.Binding) { b.Algorithm = claviger.Ed25519 },
		"origin":    func(b *frames.Binding) { b.Origin = claviger.Imported },
	} {
		m := k.Material
		change(&m.Binding)
		if sigs, err := c.Sign(t.Context(), m, [][]byte{nil}, false); claviger.CodeOf(err) != claviger.Invalid || sigs != nil {
			t.Errorf("another %s: %v, %d signatures", name, err, len(sigs))
		}
		if _, _, err := c.Rewrap(t.Context(), m.Binding, m.Blob); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("rewrap under another %s: %v", name, err)
		}
	}
	if _, err := c.Sign(t.Context(), k.Material, [][]byte{nil}, false); err != nil {
		t.Errorf("the right binding: %v", err)
	}
}

func testDamage(t *testing.T, c *custody.Client) {
	k := Generate(t, c, claviger.Ed25519)
	for i := range k.Blob {
		m := k.Material
		m.Blob = bytes.Clone(m.Blob)
		m.Blob[i] ^= 0x40
		if _, err := c.Sign(t.Context(), m, [][]byte{nil}, false); err == nil {
			t.Fatalf("signed with byte %d of the blob flipped", i)
		}
	}
	for _, n := range []int{0, 1, 5, 40, len(k.Blob) - 1} {
		m := k.Material
		m.Blob = m.Blob[:n]
		if _, err := c.Sign(t.Context(), m, [][]byte{nil}, false); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("blob cut to %d: %v", n, err)
		}
	}
}

func testFingerprint(t *testing.T, c *custody.Client) {
	k := Generate(t, c, claviger.Ed25519)
	other := k.Material
	other.Fingerprint[0] ^= 1
	if sigs, err := c.Sign(t.Context(), other, [][]byte{nil}, false); claviger.CodeOf(err) != claviger.Internal || sigs != nil {
		t.Errorf("another fingerprint: %v, %d signatures", err, len(sigs))
	}
	if _, err := c.Sign(t.Context(), k.Material, [][]byte{nil}, false); err != nil {
		t.Errorf("the right fingerprint: %v", err)
	}
}

func testRewrap(t *testing.T, c *custody.Client) {
	k := Generate(t, c, claviger.ECDSAP384)
	blob, generation, err := c.Rewrap(t.Context(), k.Binding, k.Blob)
	if err != nil {
		t.Fatal(err)
	}
	who, err := c.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(blob, k.Blob) || generation != who.Generation {
		t.Errorf("generation %d of %d, or the same blob", generation, who.Generation)
	}
	m := k.Material
	m.Blob = blob
	sigs, err := c.Sign(t.Context(), m, [][]byte{[]byte("m")}, false)
	if err != nil || !Verify(k.Binding.Algorithm, k.Public, []byte("m"), sigs[0]) {
		t.Errorf("after rewrapping: %v", err)
	}
}

func testCaps(t *testing.T, c *custody.Client) {
	k := Generate(t, c, claviger.HMACSHA256)
	large := make([]byte, frames.MaxInput+1)
	for name, inputs := range map[string][][]byte{
		"items": make([][]byte, frames.MaxItems+1), "bytes": {large}, "together": slices5(large[1:]),
	} {
		if _, err := c.MAC(t.Context(), k.Material, inputs); claviger.CodeOf(err) != claviger.TooLarge {
			t.Errorf("too many %s: %v", name, err)
		}
	}
	if _, err := c.MAC(t.Context(), k.Material, nil); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("nothing: %v", err)
	}
	if macs, err := c.MAC(t.Context(), k.Material, make([][]byte, frames.MaxItems)); err != nil || len(macs) != frames.MaxItems {
		t.Errorf("the most items: %v", err)
	}
}

func slices5(b []byte) [][]byte { return [][]byte{b, b, b, b, b} }

func testUnload(t *testing.T, c *custody.Client) {
	k := Generate(t, c, claviger.Ed25519)
	for range 2 {
		if _, err := c.Sign(t.Context(), k.Material, [][]byte{nil}, false); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := c.Unload(t.Context(), k.Material); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func testGenerateStrict(t *testing.T, c *custody.Client) {
	good := Binding(claviger.Ed25519, claviger.Generated)
	for name, change := range map[string]func(*frames.Binding){
		"no id":             func(b *frames.Binding) { b.KeyID = "" },
		"malformed id":      func(b *frames.Binding) { b.KeyID = "../../etc/passwd" },
		"no version":        func(b *frames.Binding) { b.Version = 0 },
		"unknown algorithm": func(b *frames.Binding) { b.Algorithm = "rsa-1024-pss-sha256" },
		"unknown recipe":    func(b *frames.Binding) { b.Recipe = "rails" },
		"imported":          func(b *frames.Binding) { b.Origin = claviger.Imported },
		"unknown origin":    func(b *frames.Binding) { b.Origin = "found" },
		"long":              func(b *frames.Binding) { b.Recipe = strings.Repeat("x", 65) },
	} {
		b := good
		change(&b)
		if _, err := c.Generate(t.Context(), b); err == nil {
			t.Errorf("%s: generated", name)
		}
	}
}
