package keyd

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/hazmat"
)

// A blob is: format (1 byte) | root generation (u32) | nonce (12 bytes) |
// AES-256-GCM ciphertext and tag. Its key is HKDF-SHA256 of the root key of
// that generation with "claviger blob v1", key id and version as info; its
// associated data is the binding. Inside are the fingerprint (32 bytes), the
// public half where signing needs it (u16 length and bytes) and the material.
const (
	blobFormat   = 1
	blobHeader   = 1 + 4
	blobOverhead = blobHeader + 12 + 16
	insideHeader = len(claviger.Fingerprint{}) + 2
)

var (
	errBlob = claviger.Errorf(claviger.Invalid, "the stored key does not open under this name, version, algorithm and origin",
		"it was altered or belongs to another key: restore it from a backup ('claviger backup')")
	errRetired = claviger.Errorf(claviger.Unavailable, "the stored key is wrapped under a root generation that the key process does not have",
		"restore that generation ('claviger recovery restore'), or destroy the version")
)

// material is a version's material while it is being made or moved. It exists
// inside Do alone.
type material struct {
	fingerprint claviger.Fingerprint
	public      []byte // where signing needs it
	secret      []byte
}

// blobCipher returns the cipher of a blob. It is called inside Do.
func blobCipher(rootKey []byte, b frames.Binding) (cipher.AEAD, error) {
	info := append([]byte("claviger blob v1"), b.KeyID...)
	info = binary.BigEndian.AppendUint32(info, b.Version)
	key, err := hkdf.Key(sha256.New, rootKey, nil, string(info), 32)
	if err != nil {
		return nil, fmt.Errorf("derive blob key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make blob cipher: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// wrap makes a blob of m under the newest generation.
func (r *root) wrap(b frames.Binding, m material) (blob []byte, number uint32, err error) {
	g := r.generations[len(r.generations)-1]
	inside := make([]byte, 0, insideHeader+len(m.public)+len(m.secret))
	inside = append(inside, m.fingerprint[:]...)
	inside = binary.BigEndian.AppendUint16(inside, uint16(len(m.public)))
	inside = append(append(inside, m.public...), m.secret...)
	blob = make([]byte, 0, blobOverhead+len(inside))
	blob = binary.BigEndian.AppendUint32(append(blob, blobFormat), g.number)
	err = g.key.Use(hazmat.Token{}, func(key []byte) error {
		aead, err := blobCipher(key, b)
		if err == nil {
			blob = aead.Seal(blob, nil, inside, b.Append(nil))
		}
		return err
	})
	return blob, g.number, err
}

// unwrap opens a blob and calls f with what is inside, inside Do.
func (r *root) unwrap(b frames.Binding, blob []byte, f func(material) error) error {
	if err := b.Validate(); err != nil {
		return err
	}
	if len(blob) < blobOverhead+insideHeader || blob[0] != blobFormat {
		return errBlob
	}
	number := binary.BigEndian.Uint32(blob[1:])
	for _, g := range r.generations {
		if g.number != number {
			continue
		}
		return g.key.Use(hazmat.Token{}, func(key []byte) error {
			aead, err := blobCipher(key, b)
			if err != nil {
				return err
			}
			inside, err := aead.Open(nil, nil, blob[blobHeader:], b.Append(nil))
			if err != nil {
				return errBlob
			}
			m := material{fingerprint: claviger.Fingerprint(inside)}
			n := int(binary.BigEndian.Uint16(inside[len(m.fingerprint):]))
			if inside = inside[insideHeader:]; n >= len(inside) {
				return errBlob
			}
			m.public, m.secret = inside[:n:n], inside[n:]
			return f(m)
		})
	}
	return errRetired
}

// load unwraps a blob into a slot.
func (p *Process) load(req *frames.LoadRequest) (*frames.LoadResponse, error) {
	r, err := p.rooted()
	if err != nil {
		return nil, err
	}
	v := &slot{binding: req.Binding}
	err = r.unwrap(req.Binding, req.Blob, func(m material) (err error) {
		v.fingerprint, v.public = m.fingerprint, append([]byte(nil), m.public...)
		v.secret, err = p.keep(m.secret)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &frames.LoadResponse{Slot: p.slots.add(v), Fingerprint: v.fingerprint}, nil
}

// rewrap wraps a blob again, under the newest generation.
func (p *Process) rewrap(req *frames.RewrapRequest) (*frames.RewrapResponse, error) {
	r, err := p.rooted()
	if err != nil {
		return nil, err
	}
	resp := &frames.RewrapResponse{}
	err = r.unwrap(req.Binding, req.Blob, func(m material) (err error) {
		resp.Blob, resp.Generation, err = r.wrap(req.Binding, m)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}
