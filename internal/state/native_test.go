package state_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"filippo.io/mldsa"

	claviger "claviger.dev"
	"claviger.dev/internal/state"
	"claviger.dev/pubkey"
)

// signer signs with a key of the test's own.
type signer struct {
	public pubkey.Key
	sign   func([]byte) ([]byte, error)
}

func (s signer) Public() pubkey.Key { return s.public }

func (s signer) Sign(_ context.Context, message []byte) ([]byte, error) { return s.sign(message) }

func newSigner(t testing.TB, alg claviger.Algorithm) signer {
	t.Helper()
	var std crypto.PublicKey
	var s signer
	switch alg {
	case claviger.Ed25519:
		key := ed25519.NewKeyFromSeed(random(32))
		std, s.sign = key.Public(), func(m []byte) ([]byte, error) { return ed25519.Sign(key, m), nil }
	case claviger.ECDSAP256, claviger.ECDSAP384:
		curve := elliptic.P256()
		if alg == claviger.ECDSAP384 {
			curve = elliptic.P384()
		}
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		std, s.sign = key.Public(), func(m []byte) ([]byte, error) {
			d := sha256.Sum256(m)
			return ecdsa.SignASN1(rand.Reader, key, d[:])
		}
	case claviger.MLDSA65:
		key, err := mldsa.NewPrivateKey(mldsa.MLDSA65(), random(32))
		if err != nil {
			t.Fatal(err)
		}
		std, s.sign = key.PublicKey(), func(m []byte) ([]byte, error) { return key.Sign(rand.Reader, m, crypto.Hash(0)) }
	}
	var err error
	if s.public, err = pubkey.FromStd(alg, std); err != nil {
		t.Fatal(err)
	}
	return s
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// TestPASETOVector is the vector 4-S-2 of the PASETO project.
func TestPASETOVector(t *testing.T) {
	t.Parallel()
	seed, err := hex.DecodeString("b4cbfb43df4ce210727d953e4a713307fa19bb7d9f85041438d9e11b942a3774")
	if err != nil {
		t.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	public, err := pubkey.FromStd(claviger.Ed25519, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	s := signer{public, func(m []byte) ([]byte, error) { return ed25519.Sign(key, m), nil }}
	payload := []byte(`{"data":"this is a signed message","exp":"2022-01-01T00:00:00+00:00"}`)
	footer := []byte(`{"kid":"zVhMiPBP9fRf2snEcT7gFTioeA9COcNy9DfgL1W60haN"}`)
	const want = "v4.public.eyJkYXRhIjoidGhpcyBpcyBhIHNpZ25lZCBtZXNzYWdlIiwiZXhwIjoiMjAyMi0wMS0wMVQwMDowMDowMCswMDowMCJ9v3Jt8mx_TdM2ceTGoqwrh4yDFn0XsHvvV_D0DtwQxVrJEBMl0F2caAdgnpKlt4p7xBnx1HcO-SPo8FPp214HDw.eyJraWQiOiJ6VmhNaVBCUDlmUmYyc25FY1Q3Z0ZUaW9lQTlDT2NOeTlEZmdMMVc2MGhhTiJ9"
	got, err := state.SignPASETO(t.Context(), s, payload, footer, nil)
	if err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
}

func TestPASETO(t *testing.T) {
	t.Parallel()
	s, other := newSigner(t, claviger.Ed25519), newSigner(t, claviger.Ed25519)
	for name, footer := range map[string][]byte{"no footer": nil, "footer": []byte("kid")} {
		payload, implicit := []byte(`{"sub":"42"}`), []byte("tenant 7")
		tok, err := state.SignPASETO(t.Context(), s, payload, footer, implicit)
		if err != nil {
			t.Fatal(err)
		}
		keys := []pubkey.Key{other.public, s.public}
		got, foot, err := state.VerifyPASETO(keys, tok, implicit)
		if err != nil || !bytes.Equal(got, payload) || !bytes.Equal(foot, footer) {
			t.Errorf("%s: %q, %q, %v", name, got, foot, err)
		}
		refused := func(what string, keys []pubkey.Key, tok, implicit []byte) {
			if _, _, err := state.VerifyPASETO(keys, tok, implicit); err != state.ErrToken {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		refused("another key", keys[:1], tok, implicit)
		refused("another implicit", keys, tok, nil)
		for i := range tok {
			changed := bytes.Clone(tok)
			changed[i] ^= 1
			refused("changed", keys, changed, implicit)
		}
	}
	if _, err := state.SignPASETO(t.Context(), newSigner(t, claviger.ECDSAP256), nil, nil, nil); claviger.CodeOf(err) != claviger.Unsupported {
		t.Errorf("ECDSA: %v", err)
	}
}

func TestNativeJWT(t *testing.T) {
	t.Parallel()
	var signers []signer
	var keys []pubkey.Key
	for _, alg := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.MLDSA65} {
		s := newSigner(t, alg)
		signers, keys = append(signers, s), append(keys, s.public)
	}
	payload := []byte(`{"sub":"42","iat":1760000000,"exp":1900000000}`)
	for i, s := range signers {
		tok, err := state.SignJWT(t.Context(), s, payload)
		if err != nil {
			t.Fatal(err)
		}
		got, facts, err := state.VerifyJWT(keys, tok)
		if err != nil || !bytes.Equal(got, payload) || facts.KeyID != s.public.Thumbprint() || facts.Expires.Unix() != 1900000000 {
			t.Errorf("%s: %q, %+v, %v", s.public.Algorithm(), got, facts, err)
		}
		if _, _, err := state.VerifyJWT([]pubkey.Key{keys[(i+1)%3], newSigner(t, s.public.Algorithm()).public}, tok); err != state.ErrToken {
			t.Errorf("%s, other keys: %v", s.public.Algorithm(), err)
		}
		for j := 0; j < len(tok); j += 7 {
			changed := bytes.Clone(tok)
			changed[j] ^= 1
			if _, _, err := state.VerifyJWT(keys, changed); err != state.ErrToken {
				t.Errorf("%s, changed at %d: %v", s.public.Algorithm(), j, err)
			}
		}
	}
	if _, err := state.SignJWT(t.Context(), newSigner(t, claviger.ECDSAP384), payload); claviger.CodeOf(err) != claviger.Unsupported {
		t.Errorf("P-384: %v", err)
	}
	if _, err := state.SignJWT(t.Context(), signers[0], []byte("[]")); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("no object: %v", err)
	}
}
