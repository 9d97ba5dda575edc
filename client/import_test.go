package client_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"filippo.io/mldsa"
	mldsax509 "filippo.io/mldsa/x509"
	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/types/known/timestamppb"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
	"claviger.dev/pubkey"
)

// components returns the raw components of a private key.
func components(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	switch k := key.(type) {
	case ed25519.PrivateKey:
		return k.Seed()
	case *ecdsa.PrivateKey:
		b, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return b
	case *mldsa.PrivateKey:
		return k.Bytes()
	case *rsa.PrivateKey:
		return x509.MarshalPKCS1PrivateKey(k)
	}
	t.Fatalf("key of type %T", key)
	return nil
}

func TestReadMaterial(t *testing.T) {
	t.Parallel()
	for _, alg := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.ECDSAP384, claviger.MLDSA65, "rsa-2048-pss-sha256"} {
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			key := newSigner(t, alg)
			want := components(t, key)
			pkcs8, err := mldsax509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				t.Fatal(err)
			}
			forms := map[string][]byte{
				"raw": want, "PKCS#8": pkcs8,
				"PEM": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
			}
			switch k := key.(type) {
			case *ecdsa.PrivateKey:
				sec1, err := x509.MarshalECPrivateKey(k)
				if err != nil {
					t.Fatal(err)
				}
				forms["SEC 1"] = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})
				forms["openssl ecparam"] = append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), forms["SEC 1"]...)
			case *rsa.PrivateKey:
				forms["PKCS#1"] = pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: want})
			}
			if alg == claviger.MLDSA65 {
				forms["JWK"] = []byte(`{"kty":"AKP","alg":"ML-DSA-65","priv":"` + base64.RawURLEncoding.EncodeToString(want) + `"}`)
			} else if forms["JWK"], err = (jose.JSONWebKey{Key: key}).MarshalJSON(); err != nil {
				t.Fatal(err)
			}
			for name, form := range forms {
				if got, err := client.ReadMaterial(alg, form); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
		})
	}
}

func TestReadMaterialSymmetric(t *testing.T) {
	t.Parallel()
	key := bytes.Repeat([]byte("k"), 32)
	for name, test := range map[string]struct {
		alg  claviger.Algorithm
		data []byte
		want []byte
	}{
		"aes":                  {claviger.AES256GCM, key, key},
		"aes short":            {claviger.AES256GCM, key[:31], nil},
		"hmac with a newline":  {claviger.HMACSHA256, append(bytes.Clone(key), '\n'), append(bytes.Clone(key), '\n')},
		"hmac short":           {claviger.HMACSHA256, key[:15], nil},
		"hmac long":            {claviger.HMACSHA256, make([]byte, 257), nil},
		"jwk":                  {claviger.AES256GCM, []byte(`{"kty":"oct","k":"` + base64.RawURLEncoding.EncodeToString(key) + `"}`), key},
		"jwk of another kind":  {claviger.AES256GCM, []byte(`{"kty":"EC"}`), nil},
		"jwk that is not one":  {claviger.HMACSHA256, []byte(`{"kty":"oct","k":"!"}`), nil},
		"text that looks JSON": {claviger.HMACSHA256, []byte(`{ my old secret! }`), []byte(`{ my old secret! }`)},
	} {
		got, err := client.ReadMaterial(test.alg, test.data)
		if !bytes.Equal(got, test.want) || (err == nil) != (test.want != nil) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestReadMaterialRefusals(t *testing.T) {
	t.Parallel()
	p256 := newSigner(t, claviger.ECDSAP256)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(p256)
	if err != nil {
		t.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	public, err := pubkey.FromStd(claviger.ECDSAP256, p256.Public())
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	old, err := x509.MarshalPKCS8PrivateKey(p224)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		alg  claviger.Algorithm
		data []byte
		want claviger.Code
	}{
		"empty":           {claviger.ECDSAP256, nil, claviger.TooLarge},
		"huge":            {claviger.ECDSAP256, make([]byte, 65<<10), claviger.TooLarge},
		"another curve":   {claviger.ECDSAP384, pkcs8, claviger.Invalid},
		"no curve":        {claviger.ECDSAP256, old, claviger.Invalid},
		"another kind":    {claviger.Ed25519, pkcs8, claviger.Invalid},
		"another size":    {"rsa-3072-pss-sha256", components(t, newSigner(t, "rsa-2048-pss-sha256")), claviger.Invalid},
		"two blocks":      {claviger.ECDSAP256, append(block, block...), claviger.Invalid},
		"public PEM":      {claviger.ECDSAP256, public.PEM(), claviger.Invalid},
		"public JWK":      {claviger.ECDSAP256, public.JWK(), claviger.Invalid},
		"encrypted":       {claviger.ECDSAP256, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: pkcs8}), claviger.Invalid},
		"garbage":         {claviger.ECDSAP256, []byte("garbage"), claviger.Invalid},
		"zero scalar":     {claviger.ECDSAP256, make([]byte, 32), claviger.Invalid},
		"ML-DSA-44 JWK":   {claviger.MLDSA65, []byte(`{"kty":"AKP","alg":"ML-DSA-44","priv":""}`), claviger.Invalid},
		"seed of 31":      {claviger.Ed25519, make([]byte, 31), claviger.Invalid},
		"RSA as scalar":   {"rsa-2048-pss-sha256", make([]byte, 32), claviger.Invalid},
		"broken JSON web": {claviger.ECDSAP256, []byte(`{"kty":`), claviger.Invalid},
	} {
		if got, err := client.ReadMaterial(test.alg, test.data); !errors.Is(err, test.want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// keyProcess is the other end of an import.
type keyProcess struct {
	identity ed25519.PrivateKey
	private  hpke.PrivateKey
	key      onetime.Key
	received []byte
}

// importing makes a fake server with a key process behind it.
func importing(t *testing.T, alg claviger.Algorithm, public []byte) (*fake, *keyProcess) {
	t.Helper()
	var p keyProcess
	var err error
	if _, p.identity, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	if p.private, err = onetime.KEM().GenerateKey(); err != nil {
		t.Fatal(err)
	}
	id := claviger.NewID(time.Now())
	p.key = onetime.Key{
		ID: "one", Purpose: onetime.Import, Public: p.private.PublicKey().Bytes(), Expires: time.Now().Add(time.Minute).Truncate(time.Second), Identity: p.identity.Public().(ed25519.PublicKey),
		Binding: frames.Binding{KeyID: id, Version: 1, Algorithm: alg, Recipe: claviger.PlainRecipe, Origin: claviger.Imported},
	}
	p.key.Signature = ed25519.Sign(p.identity, p.key.Statement())
	f := &fake{}
	f.getKey = func() (*clavigerv1.Key, error) { return &clavigerv1.Key{Id: string(id), Algorithm: string(alg)}, nil }
	f.beginImport = func() (*clavigerv1.OneTimeKey, error) {
		return &clavigerv1.OneTimeKey{
			Id: p.key.ID, Public: p.key.Public, Identity: p.key.Identity, Signature: p.key.Signature, Expires: timestamppb.New(p.key.Expires),
			KeyId: string(p.key.Binding.KeyID), Version: p.key.Binding.Version, Algorithm: string(p.key.Binding.Algorithm),
		}, nil
	}
	f.importKey = func(r *clavigerv1.ImportKeyRequest) (*clavigerv1.Key, error) {
		var err error
		if p.received, err = hpke.Open(p.private, onetime.KDF(), onetime.AEAD(), p.key.Statement(), r.Sealed); err != nil {
			return nil, refuse(claviger.Invalid)
		}
		return &clavigerv1.Key{Id: string(id), Versions: []*clavigerv1.Version{{Number: 1, Public: public}}}, nil
	}
	return f, &p
}

func TestImport(t *testing.T) {
	t.Parallel()
	for _, alg := range []claviger.Algorithm{claviger.Ed25519, claviger.AES256GCM} {
		material, public := bytes.Repeat([]byte{9}, 32), []byte(nil)
		if alg == claviger.Ed25519 {
			public = ed25519.NewKeyFromSeed(material).Public().(ed25519.PublicKey)
		}
		f, p := importing(t, alg, public)
		pin := sha256.Sum256(p.key.Identity)
		if _, err := serve(t, f, client.Config{}).Import(t.Context(), "x", material, pin, "moved"); err != nil || !bytes.Equal(p.received, material) {
			t.Errorf("%s: received %x, %v", alg, p.received, err)
		}
	}
}

// Nothing is sent to a key that the pinned key process does not vouch for.
func TestImportRefusals(t *testing.T) {
	t.Parallel()
	material := bytes.Repeat([]byte{9}, 32)
	for name, test := range map[string]struct {
		spoil func(*clavigerv1.OneTimeKey)
		want  claviger.Code
	}{
		"another identity": {func(k *clavigerv1.OneTimeKey) {
			k.Identity = ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
		}, claviger.Denied},
		"another public key": {func(k *clavigerv1.OneTimeKey) { k.Public[0] ^= 1 }, claviger.Denied},
		"another key":        {func(k *clavigerv1.OneTimeKey) { k.KeyId = string(claviger.NewID(time.Now())) }, claviger.Denied},
		"another version":    {func(k *clavigerv1.OneTimeKey) { k.Version++ }, claviger.Denied},
		"no version":         {func(k *clavigerv1.OneTimeKey) { k.Version = 0 }, claviger.Denied},
		"another algorithm":  {func(k *clavigerv1.OneTimeKey) { k.Algorithm = string(claviger.HMACSHA256) }, claviger.Denied},
		"another expiry":     {func(k *clavigerv1.OneTimeKey) { k.Expires.Seconds += 60 }, claviger.Denied},
		"no expiry":          {func(k *clavigerv1.OneTimeKey) { k.Expires = nil }, claviger.Denied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, p := importing(t, claviger.AES256GCM, nil)
			honest := f.beginImport
			f.beginImport = func() (*clavigerv1.OneTimeKey, error) {
				k, err := honest()
				k.Public = bytes.Clone(k.Public)
				test.spoil(k)
				return k, err
			}
			_, err := serve(t, f, client.Config{}).Import(t.Context(), "x", material, sha256.Sum256(p.key.Identity), "moved")
			if !errors.Is(err, test.want) || p.received != nil || f.count() != 2 {
				t.Errorf("%v after %d calls; received %x", err, f.count(), p.received)
			}
		})
	}
	f, p := importing(t, claviger.Ed25519, []byte("of another key"))
	if _, err := serve(t, f, client.Config{}).Import(t.Context(), "x", material, sha256.Sum256(p.key.Identity), "moved"); !errors.Is(err, claviger.Internal) {
		t.Errorf("another public half: %v", err)
	}
}
