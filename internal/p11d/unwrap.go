//go:build cgo

package p11d

import (
	"bytes"
	"crypto/rand"
	"strings"

	"github.com/miekg/pkcs11"
)

// unwraps says why a key of a scheme is not used to unwrap.
func unwraps(s scheme) string {
	if s.keyType != pkcs11.CKK_RSA && s.keyType != pkcs11.CKK_AES {
		return "only of RSA and AES keys; CKA_UNWRAP of others is in p11.attributes"
	}
	return ""
}

// unwrapWith has the key unwrap a secret that the attacker knows, into an
// object whose attributes the attacker chooses: readable and extractable. What
// the key unwraps so, it decrypts for whoever asks.
func (a *attacker) unwrapWith(o object, sch scheme) outcome {
	known := make([]byte, 32)
	if _, err := rand.Read(known); err != nil {
		return denied(err)
	}
	last := outcome{result: "the token lists no mechanism that unwraps with such a key", absent: true}
	for _, w := range wrappings {
		if about, listed := a.link.mechanisms[w.mechanism]; !listed || about.Flags&pkcs11.CKF_UNWRAP == 0 || w.key != sch.keyType {
			continue
		}
		by := "CKM_" + strings.ToUpper(strings.ReplaceAll(w.name, "-", "_"))
		blob, err := a.wrapKnown(w, o, known)
		if err != nil {
			blob = make([]byte, len(known)+8) // the key wraps nothing: nobody wrapped this one
		}
		b, err := a.unwrapBlob(w, o, blob)
		if err == nil && bytes.Equal(b, known) {
			return leak("by %s it unwrapped what the attacker had wrapped, and readable", by)
		}
		if err == nil {
			return leak("by %s the token unwraps with it", by)
		}
		// Tokens differ in how they refuse, so this one shows how: on a key that
		// may not unwrap. Any other error is about the blob or its attributes.
		refusing, made := a.victim(sch, loose)
		if made != nil {
			return denied(made)
		}
		if _, refused := a.unwrapBlob(w, refusing, blob); code(refused) != code(err) {
			return leak("by %s the token unwraps with it: a key that may not is refused by %s, this one by %s", by, name(refused), name(err))
		}
		last = denied(err)
	}
	return last
}

// unwrapBlob has the key unwrap a blob as readable, and reads that.
func (a *attacker) unwrapBlob(w wrapping, o object, blob []byte) ([]byte, error) {
	in, err := a.module.UnwrapKey(a.s, w.mechanisms(), o, blob, []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET), attribute(pkcs11.CKA_TOKEN, false),
		attribute(pkcs11.CKA_SENSITIVE, false), attribute(pkcs11.CKA_EXTRACTABLE, true),
	})
	if err != nil {
		return nil, err
	}
	b, _ := a.get(a.s, in, pkcs11.CKA_VALUE)
	_ = a.module.DestroyObject(a.s, in)
	return b, nil
}

// wrapKnown wraps a known secret so that the key would unwrap it: under the
// public half of an RSA key, which everybody has, or under an AES key itself
// where that wraps.
func (a *attacker) wrapKnown(w wrapping, o object, known []byte) ([]byte, error) {
	secret, err := a.module.CreateObject(a.s, []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET), attribute(pkcs11.CKA_TOKEN, false),
		attribute(pkcs11.CKA_SENSITIVE, false), attribute(pkcs11.CKA_EXTRACTABLE, true), attribute(pkcs11.CKA_VALUE, known),
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.module.DestroyObject(a.s, secret) }()
	if w.key == pkcs11.CKK_RSA {
		modulus, err := a.get(a.s, o, pkcs11.CKA_MODULUS)
		if err != nil {
			return nil, err
		}
		exponent, err := a.get(a.s, o, pkcs11.CKA_PUBLIC_EXPONENT)
		if err != nil {
			return nil, err
		}
		if o, err = a.module.CreateObject(a.s, []*pkcs11.Attribute{
			attribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA), attribute(pkcs11.CKA_TOKEN, false),
			attribute(pkcs11.CKA_WRAP, true), attribute(pkcs11.CKA_MODULUS, modulus), attribute(pkcs11.CKA_PUBLIC_EXPONENT, exponent),
		}); err != nil {
			return nil, err
		}
		defer func(public object) { _ = a.module.DestroyObject(a.s, public) }(o)
	}
	return a.module.WrapKey(a.s, w.mechanisms(), o, secret)
}
