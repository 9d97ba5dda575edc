// Package onetime is the public half of importing: a key that a key process
// made for one message, and the signed statement about it.
//
// It promises that material is sealed only to a key that the pinned identity
// of the key process vouches for, and only for the one binding in the
// statement, so that a server in the middle can neither read nor redirect it.
// It must never hold a private half; those live in the key process.
package onetime

import (
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
)

// The purposes of a one-time key.
const (
	Import = "import" // material for the binding
	Share  = "share"  // recovery shares
)

// Lifetime and ShareLifetime are how long a one-time key can be used: for an
// import, and for shares, whose holders may be asleep.
const (
	Lifetime      = 10 * time.Minute
	ShareLifetime = 24 * time.Hour
)

// The HPKE suite (RFC 9180): ML-KEM-768 with X25519, HKDF-SHA256, AES-256-GCM.

// KEM returns the key encapsulation of the suite.
func KEM() hpke.KEM { return hpke.MLKEM768X25519() }

// KDF returns the key derivation of the suite.
func KDF() hpke.KDF { return hpke.HKDFSHA256() }

// AEAD returns the cipher of the suite.
func AEAD() hpke.AEAD { return hpke.AES256GCM() }

// Key is the public half of a one-time key, vouched for by the identity key of
// the process that holds the private half.
type Key struct {
	ID        string            `json:"id"`
	Purpose   string            `json:"purpose"` // Import or Share
	Public    []byte            `json:"public"`  // HPKE encoding
	Binding   frames.Binding    `json:"binding"` // what an import becomes; zero for shares
	Expires   time.Time         `json:"expires"` // to the second
	Identity  ed25519.PublicKey `json:"identity"`
	Signature []byte            `json:"signature"` // Ed25519, over Statement
}

// Statement returns the bytes that the identity key signs: a label, and every
// field but the identity and the signature, each with its length before it.
func (k Key) Statement() []byte {
	out := []byte("claviger one-time key v1\x00")
	for _, field := range [][]byte{
		[]byte(k.ID), []byte(k.Purpose), k.Public, k.Binding.Append(nil),
		binary.BigEndian.AppendUint64(nil, uint64(k.Expires.Unix())),
	} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(field)))
		out = append(out, field...)
	}
	return out
}

// Verify checks the statement against a pin, which is the SHA-256 of the
// identity's raw public key, and the time.
func (k Key) Verify(pin [32]byte, now time.Time) error {
	got := sha256.Sum256(k.Identity)
	if len(k.Identity) != ed25519.PublicKeySize || subtle.ConstantTimeCompare(got[:], pin[:]) != 1 {
		return claviger.Errorf(claviger.Denied, "the key process is not the one that is pinned",
			"send nothing; compare the pin with the one shown by 'claviger server info' on the server itself")
	}
	if !ed25519.Verify(k.Identity, k.Statement(), k.Signature) {
		return claviger.Errorf(claviger.Denied, "the statement about the one-time key is not genuine", "send nothing; something between here and the key process alters messages")
	}
	if !now.Before(k.Expires) {
		return claviger.Errorf(claviger.Invalid, "the one-time key has expired", "ask for another; also compare the clocks")
	}
	return nil
}

// Seal encrypts material to the key. The statement is the HPKE info, so that
// the ciphertext is of no use with any other key or binding. Verify first.
func (k Key) Seal(material []byte) ([]byte, error) {
	public, err := KEM().NewPublicKey(k.Public)
	if err != nil {
		return nil, fmt.Errorf("read one-time key: %w", err)
	}
	sealed, err := hpke.Seal(public, KDF(), AEAD(), k.Statement(), material)
	if err != nil {
		return nil, fmt.Errorf("seal to one-time key: %w", err)
	}
	return sealed, nil
}
