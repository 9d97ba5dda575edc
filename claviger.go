// Package claviger holds the words that the whole system speaks: names, keys,
// versions, states, operations, principals, grants and errors. It depends on
// the standard library alone, does no input or output, and no type in it can
// carry private key material.
package claviger

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"time"
)

// ID names a row for its whole life: 26 lower-case base32 characters, of which
// the first ten encode the time of creation in milliseconds, so that ids sort
// by age.
type ID string

var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewID returns a fresh id: 48 bits of time and 80 bits of randomness.
func NewID(now time.Time) ID {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<16)
	_, _ = rand.Read(b[6:]) // crypto/rand.Read never fails
	return ID(idEncoding.EncodeToString(b[:]))
}

// ParseID checks the form of an id that came from outside.
func ParseID(s string) (ID, error) {
	if b, err := idEncoding.DecodeString(s); err != nil || len(b) != 16 || idEncoding.EncodeToString(b) != s {
		return "", Errorf(Invalid, "an id is 26 characters of lower-case base32", "copy the id from a listing")
	}
	return ID(s), nil
}

// Fingerprint identifies one version's material without revealing it. For an
// asymmetric key it is the SHA-256 of the algorithm's name, a zero byte and
// the raw public key; for a symmetric key it is an HMAC-SHA-256 that only the
// key process can compute, so that it is no oracle for guesses.
type Fingerprint [32]byte

// String returns the fingerprint as 64 lower-case hex digits.
func (f Fingerprint) String() string { return fmt.Sprintf("%x", f[:]) }

// IsZero reports whether the fingerprint was never set.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }
