package rootkey

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"claviger.dev"
)

// document is the slots file: JSON in the one form that encode writes.
type document struct {
	Format string `json:"format"`
	Slots  []Slot `json:"slots"`
	Bundle []byte `json:"bundle"` // nonce, AES-256-GCM ciphertext and tag, under the bundle key, which is new at each write
	MAC    []byte `json:"mac"`    // HMAC-SHA-256 over the file without it, under a key of the bundle's identity
}

const (
	format     = "claviger root slots 1"
	bundleInfo = "claviger root bundle 1"
	macInfo    = "claviger root slots mac 1"
)

var errAltered = claviger.Errorf(claviger.Invalid, "the slots file is damaged or was altered; nothing in it is used",
	"put the last good copy back, and find out who can write to its directory")

func (doc *document) encode() ([]byte, error) {
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the slots file: %w", err)
	}
	return append(out, '\n'), nil
}

// decode accepts only what encode writes.
func decode(data []byte) (*document, error) {
	doc := &document{}
	if len(data) > maxFile || json.Unmarshal(data, doc) != nil {
		return nil, errAltered
	}
	again, err := doc.encode()
	if err != nil || !bytes.Equal(again, data) || doc.Format != format || len(doc.MAC) != sha256.Size ||
		len(doc.Bundle) > maxBundle+64 || len(doc.Slots) < 1 || len(doc.Slots) > maxSlots {
		return nil, errAltered
	}
	for i := range doc.Slots {
		if doc.Slots[i].check() != nil || i > 0 && doc.Slots[i-1].ID >= doc.Slots[i].ID {
			return nil, errAltered
		}
	}
	return doc, nil
}

// mac computes the MAC of the file under the bundle's identity.
func (doc *document) mac(b *Bundle) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, b.Identity[:], nil, macInfo, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("derive the key of the slots file: %w", err)
	}
	defer clear(key)
	bare := *doc
	bare.MAC = nil
	data, err := bare.encode()
	if err != nil {
		return nil, err
	}
	h := hmac.New(sha256.New, key)
	h.Write(data)
	return h.Sum(nil), nil
}

func (doc *document) verify(b *Bundle) error {
	want, err := doc.mac(b)
	if err != nil {
		return err
	}
	if !hmac.Equal(want, doc.MAC) {
		return errAltered
	}
	return nil
}

// seal encrypts the bundle under a new key and wraps that to every slot.
func (doc *document) seal(b *Bundle) error {
	plain, err := b.Encode()
	if err != nil {
		return err
	}
	defer clear(plain)
	key := make([]byte, KeySize)
	defer clear(key)
	_, _ = rand.Read(key)
	gcm, err := bundleCipher(key)
	if err != nil {
		return err
	}
	doc.Format, doc.Bundle = format, gcm.Seal(nil, nil, plain, []byte(bundleInfo))
	for i := range doc.Slots {
		if err := doc.Slots[i].wrap(key); err != nil {
			return err
		}
	}
	doc.MAC, err = doc.mac(b)
	return err
}

func bundleCipher(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make the cipher of the bundle: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// Load reads the slots file. What it returns is checked for form alone until
// Open authenticates it.
func (d *Dir) Load() (*Sealed, error) {
	data, err := d.read(SlotsName, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, claviger.Errorf(claviger.NotFound, "there is no root key in "+d.Path,
			"make one with: claviger-unseal init --dir "+d.Path+" --kind ...; or join or restore").Wrap(err)
	} else if err != nil {
		return nil, err
	}
	doc, err := decode(data)
	if err != nil {
		return nil, err
	}
	return &Sealed{dir: d, doc: doc}, nil
}

// Sealed is a slots file that is not yet authenticated.
type Sealed struct {
	dir *Dir
	doc *document
}

// Slots returns the slots as the file has them.
func (s *Sealed) Slots() []Slot { return slices.Clone(s.doc.Slots) }

// Open opens the bundle with the numbered slot, or with any when slot is 0:
// those first that need no person, and of these last the token, which counts
// wrong PINs. A wrong secret is claviger.Denied, a TPM that is not there
// claviger.Unavailable, a file that was changed by someone else
// claviger.Invalid.
func (s *Sealed) Open(slot int, from Secrets) (*Root, error) {
	o := opening{sealed: s, from: from}
	defer func() { clear(o.typed) }()
	found := false
	for _, kind := range []SlotKind{TPM, Credential, File, PKCS11, Passphrase} {
		for i := range s.doc.Slots {
			t := &s.doc.Slots[i]
			if t.Kind != kind || slot != 0 && t.ID != slot {
				continue
			}
			found = true
			root, err := o.try(t)
			if err == nil {
				root.Failed = o.failed
				return root, nil
			}
			if errors.Is(err, errAltered) {
				return nil, err
			}
			o.note(t, err)
		}
	}
	if !found {
		return nil, claviger.Errorf(claviger.NotFound, "there is no such slot", "see them with: claviger-unseal list")
	}
	return nil, o.refusal()
}

// opening is one try of slots.
type opening struct {
	sealed *Sealed
	from   Secrets
	typed  []byte   // the passphrase: asked for once, tried on each slot of the kind
	failed []string // why each slot did not open

	absent, refused bool   // a TPM was not there; a device would not
	hint            string // of the first device
}

func (o *opening) try(t *Slot) (*Root, error) {
	secret := bytes.Clone(o.typed)
	if t.Kind != Passphrase || o.typed == nil {
		var err error
		if secret, err = t.secret(o.sealed.dir, o.from); err != nil {
			return nil, err
		}
	}
	if t.Kind == Passphrase && o.typed == nil {
		o.typed = bytes.Clone(secret)
	}
	return o.sealed.open(t, secret)
}

// note keeps why a slot did not open.
func (o *opening) note(t *Slot, err error) {
	reason, hint := err.Error(), ""
	if e, ok := errors.AsType[*claviger.Error](err); ok {
		reason, hint = e.Msg, e.Hint
	}
	o.failed = append(o.failed, fmt.Sprintf("slot %d (%s): %s", t.ID, t.Kind, reason))
	if t.Kind.held() {
		absent := t.Kind == TPM && claviger.CodeOf(err) == claviger.Unavailable // of a token it may be a PIN that was refused
		o.absent, o.refused = o.absent || absent, o.refused || !absent
		if o.hint == "" {
			o.hint = hint
		}
	}
}

// refusal is what is said when no slot opens. Only what a TPM that comes back
// would change is worth another try: a refused PIN is never repeated.
func (o *opening) refusal() error {
	code := claviger.Denied
	if o.absent && !o.refused {
		code = claviger.Unavailable
	}
	hint := "check the passphrase or the credential, or name another slot with --slot"
	if o.hint != "" {
		hint = o.hint + "; or open with another slot: --slot"
	}
	return claviger.Errorf(code, "no slot could be opened; "+strings.Join(o.failed, "; "), hint)
}

func (s *Sealed) open(slot *Slot, secret []byte) (*Root, error) {
	key, err := slot.unwrap(secret)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	gcm, err := bundleCipher(key)
	if err != nil {
		return nil, err
	}
	plain, err := gcm.Open(nil, nil, s.doc.Bundle, []byte(bundleInfo))
	if err != nil {
		return nil, errAltered
	}
	defer clear(plain)
	b, err := DecodeBundle(plain)
	if err != nil {
		return nil, errAltered
	}
	return s.Adopt(b)
}

// Adopt takes a bundle that arrived otherwise than through a slot. It must
// bear the identity under which the file was authenticated.
func (s *Sealed) Adopt(b *Bundle) (*Root, error) {
	if err := s.doc.verify(b); err != nil {
		return nil, err
	}
	return &Root{Bundle: b, dir: s.dir, doc: s.doc}, nil
}

// Root is an authenticated slots file with its bundle. Changes are on disk
// when Save has returned.
type Root struct {
	Bundle *Bundle
	Failed []string // why slots that were tried before did not open
	dir    *Dir
	doc    *document
	drop   []string // key files of removed slots
}

// New makes a root key with one slot, and its identity. A nil bundle is drawn
// at random. The slots file must not exist; Save writes it.
func (d *Dir) New(b *Bundle, slot NewSlot, from Secrets) (*Root, error) {
	if err := d.vacant(); err != nil {
		return nil, err
	}
	if b == nil {
		b = &Bundle{Generations: []Generation{{Number: 1}}}
		_, _ = rand.Read(b.Identity[:])
		_, _ = rand.Read(b.Generations[0].Key[:])
	}
	r := &Root{Bundle: b, dir: d, doc: &document{}}
	if _, err := r.Add(slot, from); err != nil {
		return nil, err
	}
	return r, nil
}

// vacant makes the directory if need be and refuses one that has a slots file.
func (d *Dir) vacant() error {
	if err := makeDir(d.Path); err != nil {
		return err
	}
	_, err := d.read(SlotsName, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return claviger.Errorf(claviger.Conflict, "there is a root key in "+d.Path+" already", "keep it, or move the directory away first: what it wraps is lost without it")
}

// Slots returns the slots.
func (r *Root) Slots() []Slot { return slices.Clone(r.doc.Slots) }

// Save seals the bundle anew, so that a removed slot opens it no more, and
// writes the file atomically.
func (r *Root) Save() error {
	if err := r.doc.seal(r.Bundle); err != nil {
		return err
	}
	data, err := r.doc.encode()
	if err != nil {
		return err
	}
	if err := r.dir.write(SlotsName, data); err != nil {
		return err
	}
	for _, name := range r.drop {
		if err := r.dir.erase(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the slot is removed, but not its key file: %w", err)
		}
	}
	r.drop = nil
	return nil
}
