package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"

	claviger "claviger.dev"
	"claviger.dev/internal/tpm"
	"claviger.dev/internal/tpm/attest"
	"claviger.dev/internal/tpm/tpmtest"
	"claviger.dev/pubkey"
)

func open(t testing.TB, s *tpmtest.TPM) *tpm.Device {
	t.Helper()
	d, err := tpm.Open(s.Device())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func create(t testing.TB, d *tpm.Device, a claviger.Algorithm) *tpm.Key {
	t.Helper()
	k, err := d.Create(a, [32]byte{1, 2, 3})
	if err != nil {
		t.Fatalf("create %s: %+v", a, err)
	}
	return k
}

func TestInfo(t *testing.T) {
	t.Parallel()
	d := open(t, tpmtest.Start(t))
	info, err := d.Info()
	if err != nil {
		t.Fatal(err)
	}
	if info.Kind != claviger.TPM || info.Manufacturer != "IBM" || !info.Software || len(info.Algorithms) < 6 {
		t.Errorf("%+v", info)
	}
	for _, a := range info.Algorithms {
		if p, ok := a.RSA(); ok && p.Hash != crypto.SHA256 || p.Bits > 2048 {
			continue // slow to make, and no other code
		}
		k, err := d.Create(a, [32]byte{1})
		if err != nil {
			t.Errorf("%s is offered: %v", a, err)
			continue
		}
		if err := attest.CheckKey(k.Area); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
}

func TestSign(t *testing.T) {
	t.Parallel()
	d := open(t, tpmtest.Start(t))
	digest := sha256.Sum256([]byte("message"))
	var keys []*tpm.Key
	for range 5 { // more than there are slots
		keys = append(keys, create(t, d, claviger.ECDSAP256))
	}
	for range 2 {
		for _, k := range keys {
			sigs, err := d.Sign(k, [][]byte{digest[:], digest[:]})
			if err != nil {
				t.Fatal(err)
			}
			pub, err := pubkey.Parse(k.Algorithm, k.Public)
			if err != nil {
				t.Fatal(err)
			}
			if !pub.VerifyDigest(digest[:], sigs[1], pubkey.ASN1) {
				t.Error("the signature does not verify")
			}
		}
	}
}

func TestSeal(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	d := open(t, s)
	for _, pcrs := range [][]uint{nil, {16}, {23, 7, 7}} {
		secret := bytes.Repeat([]byte{7}, 32+len(pcrs))
		blob, err := d.Seal(secret, pcrs)
		if err != nil {
			t.Fatalf("%v: %+v", pcrs, err)
		}
		got, err := d.Unseal(blob)
		if err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%v: %x, %v", pcrs, got, err)
		}
		// What was sealed before blobs named the storage root key still opens; under
		// the name of another the device is not asked for the secret.
		const first, second = "claviger tpm sealed 1\x00", "claviger tpm sealed 2\x00"
		name := 2 + int(binary.BigEndian.Uint16(blob[len(second):]))
		old := append([]byte(first), blob[len(second)+name:]...)
		if got, err = d.Unseal(old); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%v: sealed before: %x, %v", pcrs, got, err)
		}
		other := bytes.Clone(blob)
		other[len(second)+name-1] ^= 1
		if got, err = d.Unseal(other); !errors.Is(err, claviger.Denied) || got != nil {
			t.Errorf("%v: under another root: %x, %v", pcrs, got, err)
		}
	}
}

func TestAttest(t *testing.T) {
	t.Parallel()
	s, root := tpmtest.Certified(t)
	_ = root
	d := open(t, s)
	k := create(t, d, claviger.ECDSAP256)
	nonce := bytes.Repeat([]byte{9}, 32)
	a, err := d.Attest(k, nonce)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	v, err := attest.Verify(a, nonce)
	if err != nil {
		t.Fatal(err)
	}
	if v.Fingerprint != k.Fingerprint {
		t.Error("another key")
	}
	t.Logf("%+v, %d certificates", v, len(a.EKCertificates))
	secret := [32]byte{5}
	credential, encrypted, err := attest.Challenge(a.EKPublic, a.AKPublic, secret)
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Activate(credential, encrypted)
	if err != nil || !bytes.Equal(got, secret[:]) {
		t.Errorf("%x, %+v", got, err)
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	d := open(t, tpmtest.Start(t))
	for _, a := range []claviger.Algorithm{claviger.ECDSAP256, claviger.ECDSAP384, "rsa-2048-pss-sha256", claviger.HMACSHA256} {
		k := create(t, d, a)
		attempts, err := d.Probe(k, true)
		if err != nil {
			t.Fatalf("%s: %+v", a, err)
		}
		for _, at := range attempts {
			t.Logf("%s %s: %s | %s | control: %s | %s", at.Verdict, at.Probe, at.Tried, at.Result, at.Control, at.Reason)
			if at.Verdict == claviger.Leaked || at.Verdict == claviger.Broken {
				t.Errorf("%s: %+v", a, at)
			}
		}
	}
}
