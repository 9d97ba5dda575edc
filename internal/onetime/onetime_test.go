package onetime_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/sha256"
	"testing"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
)

// vouched returns a one-time key with its private half and its pin.
func vouched(t *testing.T) (onetime.Key, hpke.PrivateKey, [32]byte) {
	t.Helper()
	private, err := onetime.KEM().GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	identity := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{5}, 32))
	k := onetime.Key{
		ID: "abc", Purpose: onetime.Import, Public: private.PublicKey().Bytes(),
		Binding: frames.Binding{KeyID: claviger.NewID(time.Unix(1e9, 0)), Version: 1, Algorithm: claviger.Ed25519, Recipe: claviger.PlainRecipe, Origin: claviger.Imported},
		Expires: time.Unix(1000, 0), Identity: identity.Public().(ed25519.PublicKey),
	}
	k.Signature = ed25519.Sign(identity, k.Statement())
	return k, private, sha256.Sum256(k.Identity)
}

func TestVerify(t *testing.T) {
	t.Parallel()
	before := time.Unix(999, 0)
	good, _, pin := vouched(t)
	if err := good.Verify(pin, before); err != nil {
		t.Fatal(err)
	}
	if err := good.Verify(pin, time.Unix(1000, 0)); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("expired: %v", err)
	}
	if err := good.Verify([32]byte{1}, before); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("another pin: %v", err)
	}
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{6}, 32))
	for name, change := range map[string]func(*onetime.Key){
		"id":            func(k *onetime.Key) { k.ID = "abd" },
		"purpose":       func(k *onetime.Key) { k.Purpose = onetime.Share },
		"public":        func(k *onetime.Key) { k.Public = bytes.Clone(k.Public); k.Public[0] ^= 1 },
		"key":           func(k *onetime.Key) { k.Binding.KeyID = claviger.NewID(time.Unix(2e9, 0)) },
		"version":       func(k *onetime.Key) { k.Binding.Version++ },
		"algorithm":     func(k *onetime.Key) { k.Binding.Algorithm = claviger.AES256GCM },
		"expiry":        func(k *onetime.Key) { k.Expires = k.Expires.Add(time.Second) },
		"signature":     func(k *onetime.Key) { k.Signature = make([]byte, 64) },
		"no signature":  func(k *onetime.Key) { k.Signature = nil },
		"own signature": func(k *onetime.Key) { k.Signature = ed25519.Sign(other, k.Statement()) },
		"own identity": func(k *onetime.Key) {
			k.Identity = other.Public().(ed25519.PublicKey)
			k.Signature = ed25519.Sign(other, k.Statement())
		},
		"no identity": func(k *onetime.Key) { k.Identity = nil },
	} {
		k := good
		change(&k)
		if err := k.Verify(pin, before); claviger.CodeOf(err) != claviger.Denied {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

func TestSeal(t *testing.T) {
	t.Parallel()
	k, private, _ := vouched(t)
	sealed, err := k.Seal([]byte("material"))
	if err != nil {
		t.Fatal(err)
	}
	open := func(info []byte) ([]byte, error) {
		return hpke.Open(private, onetime.KDF(), onetime.AEAD(), info, sealed)
	}
	if got, err := open(k.Statement()); err != nil || string(got) != "material" {
		t.Errorf("%q, %v", got, err)
	}
	k.Binding.Version++
	if _, err := open(k.Statement()); err == nil {
		t.Error("opened for another binding")
	}
	k.Public = k.Public[1:]
	if _, err := k.Seal(nil); err == nil {
		t.Error("sealed to a key that is none")
	}
}
