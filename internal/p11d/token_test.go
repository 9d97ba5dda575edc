//go:build cgo

package p11d_test

import (
	"os"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"claviger.dev/internal/p11d/p11dtest"
)

// loading is held while this process has the module loaded: its configuration
// comes from the environment.
var loading sync.Mutex

// library calls f with the module loaded in this process and logged in: what
// any other program on the machine can do with the PIN.
func library(t testing.TB, k *p11dtest.Token, f func(m *pkcs11.Ctx, s pkcs11.SessionHandle)) {
	t.Helper()
	loading.Lock()
	defer loading.Unlock()
	must(t, os.Setenv("SOFTHSM2_CONF", k.Config))
	m := pkcs11.New(p11dtest.Module)
	must(t, m.Initialize())
	defer func() {
		_ = m.Finalize()
		m.Destroy()
	}()
	slots, err := m.GetSlotList(true)
	must(t, err)
	s, err := m.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	must(t, err)
	must(t, m.Login(s, pkcs11.CKU_USER, p11dtest.PIN))
	f(m, s)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// template is attributes by kind.
type template map[uint]any

func (t template) with(more template) []*pkcs11.Attribute {
	all := template{}
	for k, v := range t {
		all[k] = v
	}
	for k, v := range more {
		all[k] = v
	}
	var list []*pkcs11.Attribute
	for k, v := range all {
		if v != nil {
			list = append(list, pkcs11.NewAttribute(k, v))
		}
	}
	return list
}

var p256 = []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}

// good is what a protected private key looks like.
var good = template{
	pkcs11.CKA_TOKEN: true, pkcs11.CKA_PRIVATE: true, pkcs11.CKA_SENSITIVE: true, pkcs11.CKA_EXTRACTABLE: false,
	pkcs11.CKA_MODIFIABLE: false, pkcs11.CKA_COPYABLE: false, pkcs11.CKA_DERIVE: false, pkcs11.CKA_UNWRAP: false,
	pkcs11.CKA_DECRYPT: false, pkcs11.CKA_SIGN: true, pkcs11.CKA_SIGN_RECOVER: false,
}

// makePair makes a P-256 key pair in the token.
func makePair(t testing.TB, m *pkcs11.Ctx, s pkcs11.SessionHandle, label string, id []byte, change template) (public, private pkcs11.ObjectHandle) {
	t.Helper()
	named := template{pkcs11.CKA_LABEL: label, pkcs11.CKA_ID: id}
	half := named.with(template{pkcs11.CKA_TOKEN: true, pkcs11.CKA_VERIFY: true, pkcs11.CKA_EC_PARAMS: p256})
	for k, v := range change {
		named[k] = v
	}
	public, private, err := m.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)}, half, good.with(named))
	must(t, err)
	return public, private
}

// remove destroys every object of the token with the id.
func remove(t testing.TB, m *pkcs11.Ctx, s pkcs11.SessionHandle, id []byte) int {
	t.Helper()
	must(t, m.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, id)}))
	all, _, err := m.FindObjects(s, 10)
	must(t, err)
	must(t, m.FindObjectsFinal(s))
	for _, o := range all {
		must(t, m.DestroyObject(s, o))
	}
	return len(all)
}

// count is how many objects the token has.
func count(t testing.TB, m *pkcs11.Ctx, s pkcs11.SessionHandle) int {
	t.Helper()
	must(t, m.FindObjectsInit(s, nil))
	all, _, err := m.FindObjects(s, 100_000)
	must(t, err)
	must(t, m.FindObjectsFinal(s))
	return len(all)
}
