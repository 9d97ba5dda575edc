//go:build cgo

package p11d_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/p11d/p11dtest"
)

// TestMayUnwrap: a key that unwraps what whoever asks gives it is caught, be
// its attributes in order otherwise.
func TestMayUnwrap(t *testing.T) {
	t.Parallel()
	rsa := func(t *testing.T, m *pkcs11.Ctx, s pkcs11.SessionHandle, named template) {
		half := named.with(template{pkcs11.CKA_UNWRAP: nil, pkcs11.CKA_TOKEN: true, pkcs11.CKA_VERIFY: true, pkcs11.CKA_MODULUS_BITS: 2048, pkcs11.CKA_PUBLIC_EXPONENT: []byte{1, 0, 1}})
		_, _, err := m.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)}, half, good.with(named))
		must(t, err)
	}
	aes := func(t *testing.T, m *pkcs11.Ctx, s pkcs11.SessionHandle, named template) {
		kind := template{pkcs11.CKA_VALUE_LEN: 32, pkcs11.CKA_ENCRYPT: true, pkcs11.CKA_DECRYPT: true, pkcs11.CKA_SIGN: false, pkcs11.CKA_SIGN_RECOVER: nil, pkcs11.CKA_WRAP: false}
		for k, v := range named {
			kind[k] = v
		}
		_, err := m.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, good.with(kind))
		must(t, err)
	}
	for name, test := range map[string]struct {
		algorithm claviger.Algorithm
		build     func(*testing.T, *pkcs11.Ctx, pkcs11.SessionHandle, template)
		unwrap    bool
		leaks     []string // exactly these
		says      string   // what the attempt's result contains
	}{
		"RSA that may":     {"rsa-2048-pss-sha256", rsa, true, []string{"p11.attributes", "p11.unwrap"}, "it unwrapped what the attacker had wrapped, and readable"},
		"RSA that may not": {"rsa-2048-pss-sha256", rsa, false, nil, "denied, CKR_"},
		"AES that may":     {claviger.AES256GCM, aes, true, []string{"p11.attributes", "p11.token-wrap-decrypt", "p11.unwrap"}, "the token unwraps with it"},
		"AES that may not": {claviger.AES256GCM, aes, false, nil, "denied, CKR_"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := p11dtest.NewToken(t)
			library(t, k, func(m *pkcs11.Ctx, s pkcs11.SessionHandle) {
				test.build(t, m, s, template{pkcs11.CKA_LABEL: "built on purpose", pkcs11.CKA_ID: []byte{1, 2, 3}, pkcs11.CKA_UNWRAP: test.unwrap})
			})
			c, _ := p11dtest.Client(t, program, k.Args("")...)
			b := custodytest.Binding(test.algorithm, claviger.Generated)
			kind := "private"
			if test.algorithm == claviger.AES256GCM {
				kind = "secret-key"
			}
			made, err := c.Bind(t.Context(), b, "pkcs11:object=built%20on%20purpose;type="+kind)
			must(t, err)
			results, _ := attack(t, k, nil, targetOf(custody.Material{Binding: b, Blob: made.Blob, Fingerprint: made.Fingerprint}, made))
			leaks := by(results[0].Attempts, claviger.Leaked)
			slices.Sort(leaks)
			if diff := cmp.Diff(test.leaks, leaks); diff != "" {
				t.Errorf("leaks (-want +got):\n%s", diff)
			}
			i := slices.IndexFunc(results[0].Attempts, func(a claviger.Attempt) bool { return a.Probe == "p11.unwrap" })
			if a := results[0].Attempts[i]; !strings.Contains(a.Result, test.says) || !strings.Contains(a.Control, "it unwrapped what the attacker had wrapped") {
				t.Errorf("%+v", a)
			}
		})
	}
}
