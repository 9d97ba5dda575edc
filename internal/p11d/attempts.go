//go:build cgo

package p11d

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
)

// attempts are made on every key, each first on a weak one of the same kind.
var attempts = []attempt{
	{probe: "p11.attributes", tried: "read the protective attributes and where the key was made", weak: readable, try: (*attacker).readRules},
	{probe: "p11.value", tried: "C_GetAttributeValue of CKA_VALUE and of the private components", weak: readable, try: (*attacker).readValue},
	{probe: "p11.rewrap", tried: "wrap under a key of the attacker, C_UnwrapKey as readable, read CKA_VALUE", weak: readable, try: (*attacker).rewrap},
	{probe: "p11.unwrap", tried: "C_UnwrapKey with the key, of a secret that the attacker wrapped, into a readable object", weak: readable, try: (*attacker).unwrapWith, unfit: unwraps},
	{probe: "p11.set-attributes", tried: "C_SetAttributeValue of EXTRACTABLE, SENSITIVE, DERIVE, DECRYPT, UNWRAP, WRAP", weak: loose, try: (*attacker).setAttributes},
	{probe: "p11.copy", tried: "C_CopyObject with EXTRACTABLE, not SENSITIVE, not PRIVATE, DERIVE, DECRYPT", weak: loose, try: (*attacker).copyOut},
	{probe: "p11.derive", tried: "C_DeriveKey by ECDH with a point of the attacker into a readable secret", weak: readable, try: (*attacker).derive, unfit: func(s scheme) string {
		if s.keyType != pkcs11.CKK_EC {
			return "only of ECDSA keys; CKA_DERIVE of others is in p11.attributes"
		}
		return ""
	}},
	{probe: "p11.decrypt", tried: "C_DecryptInit with a signing key", weak: readable, try: (*attacker).decryptWith, unfit: func(s scheme) string {
		if s.keyType != pkcs11.CKK_RSA {
			return "only of RSA keys"
		}
		return ""
	}},
	{probe: "p11.sign-recover", tried: "C_SignRecoverInit with the key", weak: readable, try: (*attacker).signRecover, unfit: func(s scheme) string {
		if s.class != pkcs11.CKO_PRIVATE_KEY {
			return "only of private keys"
		}
		return ""
	}},
	{probe: "p11.operation-state", tried: "C_GetOperationState amid a signature", weak: readable, try: (*attacker).operationState, unfit: func(s scheme) string {
		if s.use == pkcs11.CKM_AES_GCM {
			return "only of keys that sign"
		}
		return ""
	}},
	{probe: "p11.digest-key", tried: "C_DigestKey, and 65 792 guesses at what was digested", weak: readable, try: (*attacker).digestKey, unfit: func(s scheme) string {
		if s.class != pkcs11.CKO_SECRET_KEY {
			return "only of symmetric keys"
		}
		return ""
	}},
}

func (a *attacker) readRules(o object, sch scheme) outcome {
	broken, err := a.broken(a.s, o, sch)
	switch {
	case err != nil:
		return denied(err)
	case len(broken) > 0:
		return leak("%s", strings.Join(broken, ", "))
	}
	return outcome{result: "as they must be"}
}

func (a *attacker) readValue(o object, sch scheme) outcome {
	kinds := []uint{pkcs11.CKA_VALUE}
	if sch.keyType == pkcs11.CKK_RSA {
		kinds = []uint{pkcs11.CKA_PRIVATE_EXPONENT, pkcs11.CKA_PRIME_1, pkcs11.CKA_PRIME_2, pkcs11.CKA_EXPONENT_1, pkcs11.CKA_EXPONENT_2, pkcs11.CKA_COEFFICIENT}
	}
	var last error
	for _, kind := range kinds {
		b, err := a.get(a.s, o, kind)
		clear(b)
		if err == nil && len(b) > 0 {
			return leak("%d bytes of attribute %#x", len(b), kind)
		}
		last = err
	}
	return denied(last)
}

// wrapping is a mechanism that wraps, with the attacker's key that it takes.
type wrapping struct {
	name      string
	mechanism uint
	key       uint // CKK_
	parameter any
}

// ckmAESKeyWrapKWP is of PKCS#11 3.0.
const ckmAESKeyWrapKWP = 0x210B

var wrappings = []wrapping{
	{"aes-key-wrap", pkcs11.CKM_AES_KEY_WRAP, pkcs11.CKK_AES, nil},
	{"aes-key-wrap-pad", pkcs11.CKM_AES_KEY_WRAP_PAD, pkcs11.CKK_AES, nil},
	{"aes-key-wrap-kwp", ckmAESKeyWrapKWP, pkcs11.CKK_AES, nil},
	{"aes-ecb", pkcs11.CKM_AES_ECB, pkcs11.CKK_AES, nil},
	{"aes-cbc", pkcs11.CKM_AES_CBC, pkcs11.CKK_AES, make([]byte, 16)},
	{"aes-cbc-pad", pkcs11.CKM_AES_CBC_PAD, pkcs11.CKK_AES, make([]byte, 16)},
	{"rsa-pkcs", pkcs11.CKM_RSA_PKCS, pkcs11.CKK_RSA, nil},
	{"rsa-x-509", pkcs11.CKM_RSA_X_509, pkcs11.CKK_RSA, nil},
	{"rsa-pkcs-oaep", pkcs11.CKM_RSA_PKCS_OAEP, pkcs11.CKK_RSA, pkcs11.NewOAEPParams(pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1, pkcs11.CKZ_DATA_SPECIFIED, nil)},
}

func (w wrapping) mechanisms() []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(w.mechanism, w.parameter)}
}

func (a *attacker) wrapOut(w wrapping, o object) outcome {
	tool, err := a.tool(w.key)
	if err != nil {
		return denied(err)
	}
	defer a.watch("C_WrapKey", useLimit)()
	blob, err := a.module.WrapKey(a.s, w.mechanisms(), tool, o)
	if err != nil {
		return denied(err)
	}
	return leak("wrapped, %d bytes under a key that may decrypt", len(blob))
}

// rewrap takes a key out and in again as a readable one.
func (a *attacker) rewrap(o object, sch scheme) outcome {
	kind := uint(pkcs11.CKA_VALUE)
	if sch.keyType == pkcs11.CKK_RSA {
		kind = pkcs11.CKA_PRIME_1
	}
	last := outcome{result: "the token lists no mechanism that wraps by AES", absent: true}
	for _, w := range wrappings {
		if _, listed := a.link.mechanisms[w.mechanism]; !listed || w.key != pkcs11.CKK_AES {
			continue
		}
		tool, err := a.tool(w.key)
		if err != nil {
			return denied(err)
		}
		blob, err := a.module.WrapKey(a.s, w.mechanisms(), tool, o)
		if err != nil {
			last = denied(err)
			continue
		}
		in, err := a.module.UnwrapKey(a.s, w.mechanisms(), tool, blob, []*pkcs11.Attribute{
			attribute(pkcs11.CKA_CLASS, sch.class), attribute(pkcs11.CKA_KEY_TYPE, sch.keyType), attribute(pkcs11.CKA_TOKEN, false),
			attribute(pkcs11.CKA_SENSITIVE, false), attribute(pkcs11.CKA_EXTRACTABLE, true),
		})
		if err != nil {
			last = outcome{result: "wrapped, not unwrapped: " + name(err)}
			continue
		}
		b, err := a.get(a.s, in, kind)
		clear(b)
		_ = a.module.DestroyObject(a.s, in)
		if err == nil && len(b) > 0 {
			return leak("%d bytes by CKM_%s", len(b), strings.ToUpper(strings.ReplaceAll(w.name, "-", "_")))
		}
		last = denied(err)
	}
	return last
}

// change is an attribute that would weaken a key.
type change struct {
	name  string
	kind  uint
	value bool
}

var changes = []change{
	{"CKA_EXTRACTABLE=1", pkcs11.CKA_EXTRACTABLE, true},
	{"CKA_SENSITIVE=0", pkcs11.CKA_SENSITIVE, false},
	{"CKA_DERIVE=1", pkcs11.CKA_DERIVE, true},
	{"CKA_DECRYPT=1", pkcs11.CKA_DECRYPT, true},
	{"CKA_UNWRAP=1", pkcs11.CKA_UNWRAP, true},
	{"CKA_WRAP=1", pkcs11.CKA_WRAP, true},
}

// setAttributes weakens a key, and at once undoes what worked.
func (a *attacker) setAttributes(o object, _ scheme) outcome {
	var done []string
	last := outcome{result: "nothing to change"}
	for _, c := range changes {
		before, err := a.get(a.s, o, c.kind)
		if err != nil || len(before) != 1 || (before[0] != 0) == c.value {
			continue // it does not have it, or is as weak already: p11.attributes says so
		}
		if err := a.module.SetAttributeValue(a.s, o, []*pkcs11.Attribute{attribute(c.kind, c.value)}); err != nil {
			last = denied(err)
			continue
		}
		after, err := a.get(a.s, o, c.kind)
		if err == nil && len(after) == 1 && (after[0] != 0) == c.value {
			done = append(done, c.name)
		}
		_ = a.module.SetAttributeValue(a.s, o, []*pkcs11.Attribute{attribute(c.kind, !c.value)})
	}
	if len(done) > 0 {
		return leak("%s allowed, and undone", strings.Join(done, ", "))
	}
	return last
}

func (a *attacker) copyOut(o object, _ scheme) outcome {
	var done []string
	last := outcome{result: "nothing to change"}
	for _, c := range append([]change{{"CKA_PRIVATE=0", pkcs11.CKA_PRIVATE, false}}, changes...) {
		before, err := a.get(a.s, o, c.kind)
		if err != nil || len(before) != 1 || (before[0] != 0) == c.value {
			continue
		}
		twin, err := a.module.CopyObject(a.s, o, []*pkcs11.Attribute{attribute(pkcs11.CKA_TOKEN, false), attribute(c.kind, c.value)})
		if err != nil {
			last = denied(err)
			continue
		}
		_ = a.module.DestroyObject(a.s, twin)
		done = append(done, c.name)
	}
	if len(done) > 0 {
		return leak("a copy with %s", strings.Join(done, ", "))
	}
	return last
}

func (a *attacker) derive(o object, sch scheme) outcome {
	// The attacker's point, of which it knows the discrete logarithm.
	peer, err := sch.exchange().GenerateKey(rand.Reader)
	if err != nil {
		return denied(err)
	}
	point := peer.PublicKey().Bytes()
	secret, err := a.module.DeriveKey(a.s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDH1_DERIVE, pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, point))}, o,
		[]*pkcs11.Attribute{
			attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET), attribute(pkcs11.CKA_TOKEN, false),
			attribute(pkcs11.CKA_SENSITIVE, false), attribute(pkcs11.CKA_EXTRACTABLE, true), attribute(pkcs11.CKA_VALUE_LEN, 32),
		})
	if err != nil {
		return denied(err)
	}
	b, err := a.get(a.s, secret, pkcs11.CKA_VALUE)
	clear(b)
	_ = a.module.DestroyObject(a.s, secret)
	if err != nil || len(b) == 0 {
		return outcome{result: "derived, not readable"}
	}
	return leak("a readable secret of %d bytes", len(b))
}

// exchange is the scheme's curve for the attacker's half of an exchange.
func (s scheme) exchange() ecdh.Curve {
	if s.algorithm == claviger.ECDSAP384 {
		return ecdh.P384()
	}
	return ecdh.P256()
}

func (a *attacker) decryptWith(o object, _ scheme) outcome {
	if err := a.module.DecryptInit(a.s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil)}, o); err != nil {
		return denied(err)
	}
	b, _ := a.module.Decrypt(a.s, make([]byte, 256)) // ends the operation
	clear(b)
	return leak("the token decrypts with it")
}

func (a *attacker) signRecover(o object, sch scheme) outcome {
	m := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_X_509, nil)}
	if sch.keyType != pkcs11.CKK_RSA {
		m = sch.mechanism()
	}
	if err := a.module.SignRecoverInit(a.s, m, o); err != nil {
		out := denied(err)
		out.absent = out.absent || code(err) == pkcs11.CKR_KEY_TYPE_INCONSISTENT
		return out
	}
	_, _ = a.module.SignRecover(a.s, make([]byte, 32))
	return leak("the token signs with recovery")
}

func (a *attacker) operationState(o object, sch scheme) outcome {
	if err := a.module.SignInit(a.s, sch.mechanism(), o); err != nil {
		return denied(err)
	}
	state, err := a.module.GetOperationState(a.s)
	defer clear(state)
	_, _ = a.module.Sign(a.s, make([]byte, 32)) // ends the operation
	if err != nil {
		out := denied(err)
		out.absent = true // it saves the state of no signature
		return out
	}
	return leak("%d bytes that hold the state of an operation with the key", len(state))
}

// digestKey has the token digest a key and guesses what it was. That a digest
// comes out is by the standard; it gives a key away only where that is easy to
// guess. The control guesses at a key that is.
func (a *attacker) digestKey(o object, sch scheme) outcome {
	if v, err := a.victim(sch, readable); err == nil && v == o {
		var err error
		if o, err = a.guessable(sch.size); err != nil {
			return denied(err)
		}
	}
	if err := a.module.DigestInit(a.s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_SHA256, nil)}); err != nil {
		return denied(err)
	}
	err := a.module.DigestKey(a.s, o)
	sum, final := a.module.DigestFinal(a.s) // ends the operation
	if err == nil {
		err = final
	}
	if err != nil || len(sum) != sha256.Size {
		out := denied(err)
		out.absent = true
		return out
	}
	if a.easy(sch.size)[[32]byte(sum)] {
		return leak("the digest is that of a key that is easy to guess")
	}
	return outcome{result: "a digest of no key that is easy to guess"}
}

// guessable returns a key that whoever digests it can guess.
func (a *attacker) guessable(size int) (object, error) {
	kind := fmt.Sprint("guessable ", size)
	if o, ok := a.victims[kind]; ok {
		return o, nil
	}
	value := make([]byte, size)
	value[size-1] = 7
	o, err := a.module.CreateObject(a.s, []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_SENSITIVE, true), attribute(pkcs11.CKA_EXTRACTABLE, false),
		attribute(pkcs11.CKA_VALUE, value),
	})
	if err == nil {
		a.victims[kind] = o
	}
	return o, err
}

// easy are the digests of keys of the size that repeat one byte, or are a
// number of 16 bits.
func (a *attacker) easy(size int) map[[32]byte]bool {
	if m := a.guesses[size]; m != nil {
		return m
	}
	m, value := map[[32]byte]bool{}, make([]byte, size)
	for n := range 1 << 16 {
		binary.BigEndian.PutUint16(value[size-2:], uint16(n))
		m[sha256.Sum256(value)] = true
	}
	for n := range 256 {
		for i := range value {
			value[i] = byte(n)
		}
		m[sha256.Sum256(value)] = true
	}
	a.guesses[size] = m
	return m
}
