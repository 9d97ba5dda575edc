package claviger

import (
	"crypto/rand"
	"crypto/sha256"
	"strings"
)

// EnrolmentCode is the one-time code by which a principal enrols the key that
// it made. It carries two pins, so that who enrols knows the server and its key
// process by more than their word. The server keeps the hash of the secret
// alone.
type EnrolmentCode struct {
	Secret   [20]byte
	CA       [32]byte // SHA-256 of the CA's SubjectPublicKeyInfo
	Identity [32]byte // SHA-256 of the key process's raw Ed25519 identity key
}

// enrolmentLabel begins every code, with the version of its form.
const enrolmentLabel = "clv1"

// NewEnrolmentCode returns a code with a fresh secret.
func NewEnrolmentCode(ca, identity [32]byte) EnrolmentCode {
	c := EnrolmentCode{CA: ca, Identity: identity}
	_, _ = rand.Read(c.Secret[:]) // crypto/rand.Read never fails
	return c
}

// ParseEnrolmentCode reads a code: "clv1", the secret and the two pins, joined
// by underscores, the last three in the alphabet of ids.
func ParseEnrolmentCode(s string) (EnrolmentCode, error) {
	var c EnrolmentCode
	parts := strings.Split(s, "_")
	if len(s) <= 256 && len(parts) == 4 {
		for i, dst := range [][]byte{c.Secret[:], c.CA[:], c.Identity[:]} {
			if b, err := idEncoding.DecodeString(parts[i+1]); err == nil && len(b) == len(dst) {
				copy(dst, b)
			}
		}
	}
	if c.String() != s {
		return EnrolmentCode{}, Errorf(Invalid, "the enrolment code is malformed", "copy the whole code, which begins with clv1_")
	}
	return c, nil
}

// String returns the code as it is handed over. It is a secret until it is used.
func (c EnrolmentCode) String() string {
	return strings.Join([]string{enrolmentLabel, idEncoding.EncodeToString(c.Secret[:]),
		idEncoding.EncodeToString(c.CA[:]), idEncoding.EncodeToString(c.Identity[:])}, "_")
}

// Hash returns what the server keeps of the code.
func (c EnrolmentCode) Hash() [32]byte { return sha256.Sum256(c.Secret[:]) }
