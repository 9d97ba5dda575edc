//go:build cgo

package p11d

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"strings"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
	"claviger.dev/internal/p11"
)

// rooting keeps the secrets of root slots: each is encrypted by AES-256-GCM
// under a key of its own that the token made and keeps. It implements
// p11.RootToken.
type rooting struct{ *device }

const rootData = "claviger root slot 1\x00"

var errNoRoot = claviger.Errorf(claviger.NotFound, "the token does not have the wrapping key of the root slot", "is this the token that the slot was made with? open with another slot")

// Wrap makes a wrapping key and encrypts the secret under it.
func (r rooting) Wrap(secret []byte) (blob []byte, reference string, err error) {
	err = r.with(func(l *link, s session) error {
		sch, err := l.offered(claviger.AES256GCM)
		if err != nil {
			return err
		}
		var id [16]byte
		_, _ = rand.Read(id[:]) // crypto/rand.Read never fails
		label := labelRoot + hex.EncodeToString(id[:])
		o, err := r.create(s, sch, sch.protected(label, id[:]), nil)
		if err != nil {
			return err
		}
		broken, err := r.broken(s, o, sch)
		if err == nil && len(broken) > 0 {
			err = claviger.Errorf(claviger.Unsupported, "the device made the wrapping key with other attributes than it was told: "+strings.Join(broken, ", "), "the key was destroyed again; use another device")
		}
		if err == nil {
			blob, err = r.sealOne(s, o, secret, append([]byte(rootData), id[:]...))
		}
		if err == nil {
			err = r.opens(s, o, secret, blob, id[:])
		}
		if err != nil {
			_ = r.module.DestroyObject(s, o)
			return err
		}
		reference = l.reference(sch.class, label, id[:]).String()
		return nil
	})
	return blob, reference, tell(err)
}

// Device says what the token is.
func (r rooting) Device() (about claviger.Device, err error) {
	err = r.with(func(l *link, _ session) error {
		about = l.about
		return nil
	})
	return about, tell(err)
}

// opens insists that what was wrapped opens again, before anything relies on it.
func (r rooting) opens(s session, o object, secret, blob, id []byte) error {
	again, err := r.decrypt(s, o, blob[:nonceSize], blob[nonceSize:], append([]byte(rootData), id...))
	defer clear(again)
	if err == nil && !bytes.Equal(again, secret) {
		return errOther
	}
	return err
}

// Unwrap decrypts what Wrap made.
func (r rooting) Unwrap(reference string, blob []byte) (secret []byte, err error) {
	if len(blob) != nonceSize+p11.SecretSize+tagSize {
		return nil, errBlob
	}
	err = r.named(reference, func(s session, o object, id []byte) error {
		secret, err = r.decrypt(s, o, blob[:nonceSize], blob[nonceSize:], append([]byte(rootData), id...))
		if isForged(err) {
			return claviger.Errorf(claviger.Invalid, "what the root slot holds was not made by the token's wrapping key, or is damaged", "open with another slot").Wrap(err)
		}
		return err
	})
	return secret, tell(err)
}

// Remove destroys the wrapping key.
func (r rooting) Remove(reference string) error {
	return tell(r.named(reference, func(s session, o object, _ []byte) error {
		defer r.watch("C_DestroyObject", useLimit)()
		return wrap("destroy wrapping key", r.module.DestroyObject(s, o))
	}))
}

// named runs f on a wrapping key, and on nothing else.
func (r rooting) named(reference string, f func(session, object, []byte) error) error {
	u, err := p11.ParseURI(reference)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(u.Object, labelRoot) || len(u.ID) == 0 {
		return errNoRoot
	}
	return r.with(func(l *link, s session) error {
		o, err := r.only(l, s, pkcs11.CKO_SECRET_KEY, u)
		if claviger.CodeOf(err) == claviger.NotFound {
			return errNoRoot.Wrap(err)
		}
		if err != nil {
			return err
		}
		return f(s, o, u.ID)
	})
}
