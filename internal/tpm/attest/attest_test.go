package attest_test

import (
	"bytes"
	"testing"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/tpm"
	"claviger.dev/internal/tpm/attest"
	"claviger.dev/internal/tpm/tpmtest"
)

var nonce = bytes.Repeat([]byte{9}, 32)

// attested is an attestation of a real software TPM.
func attested(t testing.TB) frames.AttestResponse {
	t.Helper()
	d, err := tpm.Open(tpmtest.Start(t).Device())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	k, err := d.Create(claviger.ECDSAP256, [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	a, err := d.Attest(k, nonce)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestBits flips a bit of every byte of an attestation: none may count for
// nothing, but those of the endorsement key, which no TPM signed.
func TestBits(t *testing.T) {
	t.Parallel()
	a := attested(t)
	good, err := attest.Verify(a, nonce)
	if err != nil {
		t.Fatal(err)
	}
	if good.Algorithm != claviger.ECDSAP256 || len(good.Public) != 65 || len(good.Name) != 34 {
		t.Errorf("%+v", good)
	}
	for name, part := range map[string]*[]byte{
		"key": &a.KeyPublic, "attestation": &a.Attest, "signature": &a.Signature, "attestation key": &a.AKPublic,
	} {
		whole := *part
		for i := range whole {
			*part = bytes.Clone(whole)
			(*part)[i] ^= 1 << (i % 8)
			if _, err := attest.Verify(a, nonce); claviger.CodeOf(err) != claviger.Invalid {
				t.Errorf("%s with byte %d flipped: %v", name, i, err)
			}
		}
		for _, other := range [][]byte{nil, whole[:len(whole)-1], append(bytes.Clone(whole), 0), make([]byte, 5000)} {
			*part = other
			if _, err := attest.Verify(a, nonce); claviger.CodeOf(err) != claviger.Invalid {
				t.Errorf("%s of %d bytes: %v", name, len(other), err)
			}
		}
		*part = whole
	}
	if _, err := attest.Verify(a, nonce); err != nil {
		t.Errorf("put together again: %v", err)
	}
}

// TestMixed offers parts of two TPMs' attestations together.
func TestMixed(t *testing.T) {
	t.Parallel()
	one, two := attested(t), attested(t)
	for name, change := range map[string]func(*frames.AttestResponse){
		"key":                func(a *frames.AttestResponse) { a.KeyPublic = two.KeyPublic },
		"attestation":        func(a *frames.AttestResponse) { a.Attest = two.Attest },
		"signature":          func(a *frames.AttestResponse) { a.Signature = two.Signature },
		"attestation key":    func(a *frames.AttestResponse) { a.AKPublic = two.AKPublic },
		"key as attestation": func(a *frames.AttestResponse) { a.AKPublic = a.KeyPublic },
		"key as endorsement": func(a *frames.AttestResponse) { a.EKPublic = a.KeyPublic },
		"endorsement as key": func(a *frames.AttestResponse) { a.KeyPublic = a.EKPublic },
		"attestation as key": func(a *frames.AttestResponse) { a.KeyPublic = a.AKPublic },
	} {
		a := one
		change(&a)
		if _, err := attest.Verify(a, nonce); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFollows(t *testing.T) {
	t.Parallel()
	last := attest.Clock{Milliseconds: 100, Resets: 5, Restarts: 2, Safe: true}
	for name, test := range map[string]struct {
		clock attest.Clock
		want  bool
	}{
		"same":               {last, true},
		"later":              {attest.Clock{Milliseconds: 101, Resets: 5, Restarts: 2, Safe: true}, true},
		"restarted":          {attest.Clock{Milliseconds: 100, Resets: 5, Restarts: 3, Safe: true}, true},
		"reset":              {attest.Clock{Milliseconds: 150, Resets: 6, Safe: true}, true},
		"reset after a cut":  {attest.Clock{Milliseconds: 90, Resets: 6}, true},
		"clock back":         {attest.Clock{Milliseconds: 99, Resets: 5, Restarts: 2}, false},
		"restarts back":      {attest.Clock{Milliseconds: 200, Resets: 5, Restarts: 1, Safe: true}, false},
		"resets back":        {attest.Clock{Milliseconds: 200, Resets: 4, Restarts: 9, Safe: true}, false},
		"reset, but earlier": {attest.Clock{Milliseconds: 90, Resets: 6, Safe: true}, false},
	} {
		if got := test.clock.Follows(last); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestChallenge refuses to encrypt to what is no endorsement key, or for what
// is no attestation key. (That a TPM opens its own is tested in package tpm.)
func TestChallenge(t *testing.T) {
	t.Parallel()
	a := attested(t)
	if _, _, err := attest.Challenge(a.EKPublic, a.AKPublic, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string][2][]byte{
		"swapped":             {a.AKPublic, a.EKPublic},
		"no attestation key":  {a.EKPublic, a.KeyPublic},
		"no endorsement key":  {a.KeyPublic, a.AKPublic},
		"nothing":             {nil, nil},
		"cut endorsement key": {a.EKPublic[:len(a.EKPublic)-1], a.AKPublic},
	} {
		if _, _, err := attest.Challenge(keys[0], keys[1], [32]byte{1}); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzVerify looks for what makes the verifier panic, or believe.
func FuzzVerify(f *testing.F) {
	f.Fuzz(func(t *testing.T, key, said, signature, ak, ek []byte) {
		a := frames.AttestResponse{KeyPublic: key, Attest: said, Signature: signature, AKPublic: ak, EKPublic: ek}
		if v, err := attest.Verify(a, bytes.Repeat([]byte{0xEE}, 32)); err == nil {
			t.Errorf("believed: %+v", v)
		}
		if _, _, err := attest.Challenge(ek, ak, [32]byte{}); err != nil && claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("challenge: %v", err)
		}
	})
}
