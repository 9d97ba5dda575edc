package pubkey_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"claviger.dev"
	"claviger.dev/pubkey"
	"filippo.io/mldsa"
	"github.com/go-jose/go-jose/v4"
)

// rsaKeys are made once for each size: they are slow.
var rsaKeys = map[int]func() (*rsa.PrivateKey, error){}

func TestMain(m *testing.M) {
	for _, bits := range []int{2048, 3072, 4096} {
		rsaKeys[bits] = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, bits) })
	}
	os.Exit(m.Run())
}

func signer(t *testing.T, alg claviger.Algorithm) crypto.Signer {
	t.Helper()
	var s crypto.Signer
	var err error
	switch alg {
	case claviger.Ed25519:
		_, s, err = ed25519.GenerateKey(rand.Reader)
	case claviger.ECDSAP256:
		s, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case claviger.ECDSAP384:
		s, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case claviger.MLDSA65:
		s, err = mldsa.GenerateKey(mldsa.MLDSA65())
	default:
		p, _ := alg.RSA()
		s, err = rsaKeys[p.Bits]()
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func parse(t *testing.T, alg claviger.Algorithm, s crypto.Signer) pubkey.Key {
	t.Helper()
	k, err := pubkey.FromStd(alg, s.Public())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func asymmetric() []claviger.Algorithm {
	return slices.DeleteFunc(claviger.Algorithms(), func(a claviger.Algorithm) bool { return !a.Asymmetric() })
}

func digest(alg claviger.Algorithm, message []byte) []byte {
	if alg.Hash() == 0 {
		return message
	}
	h := alg.Hash().New()
	h.Write(message)
	return h.Sum(nil)
}

func sign(t *testing.T, alg claviger.Algorithm, s crypto.Signer, message []byte) []byte {
	t.Helper()
	var opts crypto.SignerOpts = alg.Hash()
	if p, ok := alg.RSA(); ok && p.PSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: p.Hash}
	}
	sig, err := s.Sign(rand.Reader, digest(alg, message), opts)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func TestVerify(t *testing.T) {
	t.Parallel()
	message := []byte("a message")
	for _, alg := range asymmetric() {
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			s := signer(t, alg)
			k := parse(t, alg, s)
			sig := sign(t, alg, s, message)
			if !k.Verify(message, sig, pubkey.ASN1) {
				t.Error("the signature does not verify")
			}
			if k.Verify([]byte("another message"), sig, pubkey.ASN1) {
				t.Error("the signature verifies for another message")
			}
			sig[len(sig)-1] ^= 1
			if k.Verify(message, sig, pubkey.ASN1) {
				t.Error("a changed signature verifies")
			}
			sig[len(sig)-1] ^= 1
			if got, want := k.VerifyDigest(digest(alg, message), sig, pubkey.ASN1), alg.Hash() != 0; got != want {
				t.Errorf("by its digest: %v, want %v", got, want)
			}
			if k.VerifyDigest(message, sig, pubkey.ASN1) {
				t.Error("a digest of another length verifies")
			}
			// Every RSA key fits six algorithms: the key's own is the only one.
			for _, other := range asymmetric() {
				if k2, err := pubkey.Parse(other, k.Raw()); err == nil && other != alg && k2.Verify(message, sig, pubkey.ASN1) {
					t.Errorf("the signature verifies as %s", other)
				}
			}
		})
	}
	if (pubkey.Key{}).Verify(message, nil, pubkey.ASN1) || (pubkey.Key{}).VerifyDigest(message, nil, pubkey.ASN1) {
		t.Error("the zero Key verifies")
	}
}

func TestForms(t *testing.T) {
	t.Parallel()
	for _, alg := range asymmetric() {
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			k := parse(t, alg, signer(t, alg))
			again, err := pubkey.Parse(alg, k.Raw())
			if err != nil || !bytes.Equal(again.Raw(), k.Raw()) || again.Algorithm() != alg {
				t.Errorf("Parse of Raw: %v", err)
			}
			again, err = pubkey.FromSPKI(alg, k.SPKI())
			if err != nil || !bytes.Equal(again.Raw(), k.Raw()) {
				t.Errorf("FromSPKI of SPKI: %v", err)
			}
			if block, rest := pem.Decode(k.PEM()); block == nil || len(rest) > 0 || block.Type != "PUBLIC KEY" || !bytes.Equal(block.Bytes, k.SPKI()) {
				t.Errorf("PEM: %s", k.PEM())
			}
			if got := k.Fingerprint(); got != sha256.Sum256(slices.Concat([]byte(alg), []byte{0}, k.Raw())) {
				t.Errorf("fingerprint %s", got)
			}
			for _, spoilt := range [][]byte{nil, k.SPKI()[1:], append(k.SPKI(), 0), k.Raw()} {
				if _, err := pubkey.FromSPKI(alg, spoilt); !errors.Is(err, claviger.Invalid) {
					t.Errorf("FromSPKI of %d bytes: %v", len(spoilt), err)
				}
			}
			checkJWK(t, alg, k)
		})
	}
}

// checkJWK has go-jose read the JWK and compute the thumbprint.
func checkJWK(t *testing.T, alg claviger.Algorithm, k pubkey.Key) {
	t.Helper()
	var members map[string]string
	if err := json.Unmarshal(k.JWK(), &members); err != nil {
		t.Fatal(err)
	}
	if members["kid"] != k.Thumbprint() || members["alg"] != pubkey.JWSAlgorithm(alg) || members["use"] != "sig" {
		t.Errorf("JWK %s", k.JWK())
	}
	if alg == claviger.MLDSA65 {
		want := sha256.Sum256([]byte(`{"alg":"ML-DSA-65","kty":"AKP","pub":"` + base64.RawURLEncoding.EncodeToString(k.Raw()) + `"}`))
		if members["kty"] != "AKP" || k.Thumbprint() != base64.RawURLEncoding.EncodeToString(want[:]) {
			t.Errorf("JWK %s", k.JWK())
		}
		return
	}
	var read jose.JSONWebKey
	if err := read.UnmarshalJSON(k.JWK()); err != nil {
		t.Fatalf("go-jose does not read %s: %v", k.JWK(), err)
	}
	if !k.Std().(interface{ Equal(crypto.PublicKey) bool }).Equal(read.Key) {
		t.Error("go-jose reads another key")
	}
	sum, err := read.Thumbprint(crypto.SHA256)
	if err != nil || base64.RawURLEncoding.EncodeToString(sum) != k.Thumbprint() {
		t.Errorf("thumbprint %s; go-jose has %x (%v)", k.Thumbprint(), sum, err)
	}
}

// The example of RFC 7638, section 3.1.
func TestThumbprint(t *testing.T) {
	t.Parallel()
	const n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
	modulus, err := base64.RawURLEncoding.DecodeString(n)
	if err != nil {
		t.Fatal(err)
	}
	k, err := pubkey.FromStd("rsa-2048-pkcs1-sha256", &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := k.Thumbprint(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"; got != want {
		t.Errorf("thumbprint %s, want %s", got, want)
	}
}

func TestParseRefusals(t *testing.T) {
	t.Parallel()
	unhex := func(s string) []byte { b, _ := hex.DecodeString(s); return b }
	p256 := parse(t, claviger.ECDSAP256, signer(t, claviger.ECDSAP256)).Raw()
	offCurve := slices.Clone(p256)
	offCurve[64] ^= 1
	key, err := rsaKeys[2048]()
	if err != nil {
		t.Fatal(err)
	}
	rsaDER := func(n *big.Int, e int) []byte { return x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: n, E: e}) }
	good := rsaDER(key.N, 65537)
	for _, test := range []struct {
		name string
		alg  claviger.Algorithm
		raw  []byte
		want claviger.Code
	}{
		{"ed25519 short", claviger.Ed25519, make([]byte, 31), claviger.Invalid},
		{"ed25519 not a point", claviger.Ed25519, append([]byte{2}, make([]byte, 31)...), claviger.Invalid},
		{"ed25519 of small order", claviger.Ed25519, append([]byte{1}, make([]byte, 31)...), claviger.Invalid},
		{"ed25519 of order 8", claviger.Ed25519, unhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), claviger.Invalid},
		{"ed25519 not canonical", claviger.Ed25519, unhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"), claviger.Invalid},
		{"p256 off the curve", claviger.ECDSAP256, offCurve, claviger.Invalid},
		{"p256 compressed", claviger.ECDSAP256, append([]byte{2}, p256[1:33]...), claviger.Invalid},
		{"p256 infinity", claviger.ECDSAP256, []byte{0}, claviger.Invalid},
		{"p256 as p384", claviger.ECDSAP384, p256, claviger.Invalid},
		{"rsa of another size", "rsa-3072-pss-sha256", good, claviger.Invalid},
		{"rsa exponent 3", "rsa-2048-pss-sha256", rsaDER(key.N, 3), claviger.Invalid},
		{"rsa even", "rsa-2048-pss-sha256", rsaDER(new(big.Int).Add(key.N, big.NewInt(1)), 65537), claviger.Invalid},
		{"rsa trailing byte", "rsa-2048-pss-sha256", append(slices.Clone(good), 0), claviger.Invalid},
		{"rsa garbage", "rsa-2048-pss-sha256", []byte("garbage"), claviger.Invalid},
		{"ml-dsa short", claviger.MLDSA65, make([]byte, 1951), claviger.Invalid},
		{"ml-dsa-87", claviger.MLDSA65, make([]byte, 2592), claviger.Invalid},
		{"symmetric", claviger.AES256GCM, make([]byte, 32), claviger.Invalid},
		{"unknown", "rot13", make([]byte, 32), claviger.Invalid},
		{"huge", claviger.Ed25519, make([]byte, 4097), claviger.TooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if _, err := pubkey.Parse(test.alg, test.raw); !errors.Is(err, test.want) {
				t.Errorf("Parse: %v; want %s", err, test.want)
			}
		})
	}
	if _, err := pubkey.FromSPKI(claviger.ECDSAP384, parse(t, claviger.ECDSAP256, signer(t, claviger.ECDSAP256)).SPKI()); !errors.Is(err, claviger.Invalid) {
		t.Errorf("FromSPKI of another curve: %v", err)
	}
	if _, err := pubkey.FromStd(claviger.Ed25519, "key"); !errors.Is(err, claviger.Invalid) {
		t.Errorf("FromStd of no key: %v", err)
	}
}

func TestEncodings(t *testing.T) {
	t.Parallel()
	for _, alg := range []claviger.Algorithm{claviger.ECDSAP256, claviger.ECDSAP384} {
		s := signer(t, alg)
		k := parse(t, alg, s)
		for range 50 { // leading zeros of r and s come up by chance
			sig := sign(t, alg, s, []byte("x"))
			p, err := pubkey.ToP1363(alg, sig)
			if err != nil {
				t.Fatal(err)
			}
			if !k.Verify([]byte("x"), p, pubkey.P1363) || k.Verify([]byte("x"), p, pubkey.ASN1) || k.Verify([]byte("x"), sig, pubkey.P1363) {
				t.Error("an encoding is taken for another")
			}
			back, err := pubkey.ToASN1(alg, p)
			if err != nil || !bytes.Equal(back, sig) {
				t.Errorf("%x became %x (%v)", sig, back, err)
			}
		}
		n := alg.Hash().Size()
		for _, bad := range [][]byte{nil, make([]byte, 2*n), make([]byte, 2*n-1), bytes.Repeat([]byte{0xff}, 2*n)} {
			if _, err := pubkey.ToASN1(alg, bad); !errors.Is(err, claviger.Invalid) {
				t.Errorf("ToASN1(%x): %v", bad, err)
			}
		}
		for _, bad := range [][]byte{nil, {0x30, 0}, {0x30, 6, 2, 1, 0, 2, 1, 1}, {0x30, 6, 2, 1, 1, 2, 1, 0xff}, {0x30, 7, 2, 2, 0, 1, 2, 1, 1}, {0x30, 6, 2, 1, 1, 2, 1, 1, 0}} {
			if _, err := pubkey.ToP1363(alg, bad); !errors.Is(err, claviger.Invalid) {
				t.Errorf("ToP1363(%x): %v", bad, err)
			}
		}
	}
	for _, f := range []func(claviger.Algorithm, []byte) ([]byte, error){pubkey.ToASN1, pubkey.ToP1363} {
		if got, err := f(claviger.Ed25519, []byte("as it is")); err != nil || string(got) != "as it is" {
			t.Errorf("of Ed25519: %q, %v", got, err)
		}
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func write(t *testing.T, dir, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// openssl verifies with our PEM, and we verify what openssl signs.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	for _, alg := range asymmetric() {
		if alg == claviger.MLDSA65 { // openssl has it from 3.5 on
			continue
		}
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			dir, s := t.TempDir(), signer(t, alg)
			k := parse(t, alg, s)
			private, err := x509.MarshalPKCS8PrivateKey(s)
			if err != nil {
				t.Fatal(err)
			}
			priv := write(t, dir, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
			pub := write(t, dir, "pub.pem", k.PEM())
			message := write(t, dir, "message", []byte("a message"))
			ours := write(t, dir, "ours", sign(t, alg, s, []byte("a message")))
			theirs := filepath.Join(dir, "theirs")
			var opts []string
			if h := alg.Hash(); h != 0 {
				opts = append(opts, "-digest", strings.ToLower(strings.ReplaceAll(h.String(), "-", "")))
			}
			if p, ok := alg.RSA(); ok && p.PSS {
				opts = append(opts, "-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:digest")
			}
			run(t, "openssl", append([]string{"pkeyutl", "-verify", "-pubin", "-inkey", pub, "-rawin", "-in", message, "-sigfile", ours}, opts...)...)
			run(t, "openssl", append([]string{"pkeyutl", "-sign", "-inkey", priv, "-rawin", "-in", message, "-out", theirs}, opts...)...)
			sig, err := os.ReadFile(theirs)
			if err != nil {
				t.Fatal(err)
			}
			if !k.Verify([]byte("a message"), sig, pubkey.ASN1) {
				t.Error("a signature by openssl does not verify")
			}
			if got := run(t, "openssl", "pkey", "-in", priv, "-pubout"); got != string(k.PEM()) {
				t.Errorf("openssl writes the public key as\n%swe as\n%s", got, k.PEM())
			}
		})
	}
}

func TestSSH(t *testing.T) {
	t.Parallel()
	for _, alg := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.ECDSAP384, "rsa-2048-pss-sha256"} {
		k := parse(t, alg, signer(t, alg))
		line, err := k.SSH()
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		blob, err := base64.StdEncoding.DecodeString(strings.Fields(line)[1])
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(blob)
		if got := run(t, "ssh-keygen", "-l", "-f", write(t, dir, "key.pub", []byte(line))); !strings.Contains(got, "SHA256:"+base64.RawStdEncoding.EncodeToString(sum[:])) {
			t.Errorf("%s: ssh-keygen reads %q as %s", alg, line, got)
		}
		if alg == claviger.Ed25519 { // which ssh-keygen does not convert
			continue
		}
		pkcs8 := run(t, "ssh-keygen", "-e", "-m", "PKCS8", "-f", write(t, dir, "key.pub", []byte(line)))
		if pkcs8 != string(k.PEM()) {
			t.Errorf("%s: ssh-keygen reads %q as\n%s", alg, line, pkcs8)
		}
	}
	if _, err := parse(t, claviger.MLDSA65, signer(t, claviger.MLDSA65)).SSH(); !errors.Is(err, claviger.Unsupported) {
		t.Errorf("SSH of ML-DSA-65: %v", err)
	}
}

func TestJWSAlgorithm(t *testing.T) {
	t.Parallel()
	for alg, want := range map[claviger.Algorithm]string{
		claviger.Ed25519: "EdDSA", claviger.ECDSAP256: "ES256", claviger.ECDSAP384: "ES384", claviger.MLDSA65: "ML-DSA-65",
		"rsa-2048-pss-sha256": "PS256", "rsa-3072-pss-sha384": "PS384", "rsa-4096-pkcs1-sha512": "RS512",
		claviger.AES256GCM: "", claviger.HMACSHA256: "",
	} {
		if got := pubkey.JWSAlgorithm(alg); got != want {
			t.Errorf("%s: %q, want %q", alg, got, want)
		}
	}
}
