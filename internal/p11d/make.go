//go:build cgo

package p11d

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/p11"
	"claviger.dev/pubkey"
)

// reference is the content of a blob: what it takes to find a key in the token
// and to see that it is the one. Nothing in it is secret.
type reference struct {
	bound  bool   // made elsewhere in the device
	public []byte // raw; empty for a symmetric key
	uri    string
}

const blobLabel = "claviger p11 blob 1\x00"

// seal encodes a reference for a binding: kind, u16 length, public key, URI,
// and a checksum with the binding, which shows damage and mix-ups. Whether the
// token has that key is shown by load.
func (r reference) seal(b frames.Binding) []byte {
	kind := byte('c')
	if r.bound {
		kind = 'b'
	}
	out := binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(r.public)))
	out = append(append(out, r.public...), r.uri...)
	sum := checksum(b, out)
	return append(out, sum[:]...)
}

func checksum(b frames.Binding, body []byte) [32]byte {
	return sha256.Sum256(append(b.Append([]byte(blobLabel)), body...))
}

func unseal(b frames.Binding, blob []byte) (r reference, u *p11.URI, err error) {
	n := len(blob) - sha256.Size
	if n < 3 {
		return r, nil, errBlob
	}
	body := blob[:n]
	if sum := checksum(b, body); !bytes.Equal(sum[:], blob[n:]) {
		return r, nil, errBlob
	}
	size := int(binary.BigEndian.Uint16(body[1:]))
	if body[0] != 'c' && body[0] != 'b' || 3+size > n {
		return r, nil, errBlob
	}
	r = reference{bound: body[0] == 'b', public: body[3 : 3+size], uri: string(body[3+size:])}
	if u, err = p11.ParseURI(r.uri); err != nil {
		return r, nil, errBlob.Wrap(err)
	}
	if id := idOf(b); !r.bound && !bytes.Equal(u.ID, id[:]) || r.bound && ours(u.Object) || u.ModulePath != "" || u.PINFile != "" {
		return r, nil, errBlob
	}
	return r, u, nil
}

// idOf is the CKA_ID of what is made for a binding.
func idOf(b frames.Binding) [32]byte { return sha256.Sum256(b.Append(nil)) }

// offered returns how the token does an algorithm.
func (l *link) offered(a claviger.Algorithm) (scheme, error) {
	sch, ok := schemeOf(a)
	if ok && sch.offered(l.mechanisms) {
		return sch, nil
	}
	names := make([]string, len(l.about.Algorithms))
	for i, a := range l.about.Algorithms {
		names[i] = string(a)
	}
	return sch, claviger.Errorf(claviger.Unsupported, "the token does not offer "+string(a), "it offers "+strings.Join(names, ", "))
}

// generate makes a key for a version. It may be repeated: what an answer that
// was lost left behind under the binding is taken, if it is as it should be.
func (c *custodian) generate(b frames.Binding) (made frames.Made, err error) {
	if err := b.Validate(); err != nil {
		return made, err
	}
	if b.Origin != claviger.Generated {
		return made, claviger.Errorf(claviger.Invalid, "what is generated cannot be bound as imported", "bind it as generated")
	}
	err = c.with(func(l *link, s session) error {
		sch, err := l.offered(b.Algorithm)
		if err != nil {
			return err
		}
		id, label := idOf(b), fmt.Sprintf("%s%s v%d", labelKey, b.KeyID, b.Version)
		u := l.reference(sch.class, label, id[:])
		o, err := c.only(l, s, sch.class, u)
		if claviger.CodeOf(err) == claviger.NotFound {
			o, err = c.create(s, sch, sch.protected(label, id[:]), sch.publicHalf(label, id[:]))
		}
		if err != nil {
			return err
		}
		broken, err := c.broken(s, o, sch)
		if err != nil {
			return err
		}
		if len(broken) > 0 {
			became := "the key was destroyed again"
			if err := c.destroy(s, sch.class, o, id[:]); err != nil {
				became = "the key could not be destroyed again: delete " + u.String()
			}
			return claviger.Errorf(claviger.Unsupported, "the device made the key with other attributes than it was told: "+strings.Join(broken, ", "),
				became+"; use another device, or bind a key by reference and see what evidence shows of it")
		}
		made, err = c.describeKey(l, s, o, sch, b, reference{uri: u.String()})
		return err
	})
	return made, err
}

// forget deletes the key of a blob from the token. One that was bound is
// others': it is kept.
func (c *custodian) forget(b frames.Binding, blob []byte) (kept bool, err error) {
	r, _, err := unseal(b, blob)
	if err != nil || r.bound {
		return true, err
	}
	err = c.with(func(l *link, s session) error {
		k, err := c.look(l, s, b, blob)
		if claviger.CodeOf(err) == claviger.NotFound {
			return nil
		}
		if err != nil {
			return err
		}
		id := idOf(b)
		return c.destroy(s, k.scheme.class, k.object, id[:])
	})
	return false, err
}

// destroy removes a key that is not to be, and its public half.
func (d *device) destroy(s session, class uint, o object, id []byte) error {
	defer d.watch("C_DestroyObject", useLimit)()
	if err := d.module.DestroyObject(s, o); err != nil || class != pkcs11.CKO_PRIVATE_KEY {
		return wrap("destroy a key", err)
	}
	halves, err := d.search(s, 2, attribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attribute(pkcs11.CKA_ID, id))
	if err == nil {
		for _, half := range halves {
			_ = d.module.DestroyObject(s, half) // public: that it stays gives nothing away
		}
	}
	return nil
}

// bind takes a key that was made elsewhere in the token. Its level is what its
// attributes show.
func (c *custodian) bind(b frames.Binding, text string) (made frames.Made, err error) {
	if err := b.Validate(); err != nil {
		return made, err
	}
	u, err := p11.ParseURI(text)
	if err != nil {
		return made, err
	}
	if u.ModulePath != "" || u.PINFile != "" || u.Object == "" && len(u.ID) == 0 || u.Type == "public" {
		return made, claviger.Errorf(claviger.Invalid, "a reference names one key of the token and nothing else", "write it like pkcs11:object=NAME;type=private or pkcs11:id=%01")
	}
	err = c.with(func(l *link, s session) error {
		sch, err := l.offered(b.Algorithm)
		if err != nil {
			return err
		}
		o, err := c.only(l, s, sch.class, u)
		if err != nil {
			return err
		}
		if err := c.checkType(s, o, sch); err != nil {
			return err
		}
		if err := c.others(s, o); err != nil {
			return err
		}
		label, err1 := c.get(s, o, pkcs11.CKA_LABEL)
		id, err2 := c.get(s, o, pkcs11.CKA_ID)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		precise := l.reference(sch.class, string(label), id)
		if again, err := c.only(l, s, sch.class, precise); err != nil || again != o {
			return errManyKeys
		}
		broken, err := c.broken(s, o, sch)
		if err != nil {
			return err
		}
		if made, err = c.describeKey(l, s, o, sch, b, reference{bound: true, uri: precise.String()}); err != nil {
			return err
		}
		made.Level = l.levelOf(broken)
		if b.Origin == claviger.Imported {
			made.Level = claviger.Exposed
		}
		return nil
	})
	return made, err
}

// others refuses what Claviger made: the key of another version, or of a root
// slot. What a reference says of the label is nobody's word but its writer's.
func (d *device) others(s session, o object) error {
	label, err := d.get(s, o, pkcs11.CKA_LABEL)
	if err == nil && ours(string(label)) {
		err = claviger.Errorf(claviger.Denied, "the key is Claviger's own already", "bind keys that were made elsewhere")
	}
	return err
}

// describeKey proves that a key works and returns what may be known of it.
func (c *custodian) describeKey(l *link, s session, o object, sch scheme, b frames.Binding, r reference) (made frames.Made, err error) {
	k := &key{scheme: sch, binding: b, object: o}
	if sch.class == pkcs11.CKO_PRIVATE_KEY {
		if k.public, err = c.publicOf(s, o, sch); err != nil {
			return made, err
		}
		r.public = k.public.Raw()
	}
	if k.fingerprint, err = c.prove(s, k); err != nil {
		return made, err
	}
	return frames.Made{
		Blob: r.seal(b), Public: r.public, Fingerprint: k.fingerprint, Level: l.levelOf(nil),
		Generation: frames.DeviceGeneration, Reference: r.uri,
	}, nil
}

// publicOf reads the public half of a private key: from itself where it tells,
// otherwise from the public object of the same id.
func (d *device) publicOf(s session, o object, sch scheme) (pubkey.Key, error) {
	own, err := sch.public(func(kind uint) ([]byte, error) { return d.get(s, o, kind) })
	if err == nil {
		return own, nil
	}
	id, err := d.get(s, o, pkcs11.CKA_ID)
	if err != nil {
		return pubkey.Key{}, err
	}
	halves, err := d.search(s, 2, attribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attribute(pkcs11.CKA_TOKEN, true), attribute(pkcs11.CKA_ID, id))
	if err != nil {
		return pubkey.Key{}, err
	}
	if len(halves) != 1 {
		return pubkey.Key{}, claviger.Errorf(claviger.Invalid, "the token does not tell the key's public half", "put its public key object beside it, with the same id")
	}
	half, err := sch.public(func(kind uint) ([]byte, error) { return d.get(s, halves[0], kind) })
	if err != nil {
		return half, claviger.Errorf(claviger.Invalid, "the token's public key object is no key of the algorithm "+string(sch.algorithm), "give the algorithm that the key has").Wrap(err)
	}
	return half, nil
}

// challenge returns a message that nobody has asked a signature for.
func challenge() []byte {
	var nonce [32]byte
	_, _ = rand.Read(nonce[:]) // crypto/rand.Read never fails
	return append([]byte("claviger p11 proof 1\x00"), nonce[:]...)
}
