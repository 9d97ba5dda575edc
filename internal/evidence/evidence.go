// Package evidence turns attempts to take keys into levels, and levels into
// signed statements that are checked offline.
//
// It owns the rules by which attempts, the word of a custodian and the
// attestation of a device become a custody level (Judge), and the form of a
// statement: an in-toto Statement v1 in a DSSE envelope. It promises that a
// statement which it accepts says nothing that does not follow from its own
// inputs, and that its reading is strict: what it accepts is exactly what it
// would write. It is pure: it starts nothing, opens nothing and asks nobody,
// and must never hold a byte of a key.
package evidence

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"claviger.dev"
)

// The limits of a run and of the statement made of it.
const (
	MaxRun      = 24 << 20 // bytes of its JSON
	MaxSubjects = 50_000
	MaxGroups   = MaxSubjects + 1000
	MaxAttempts = 200  // in a group
	MaxText     = 2048 // bytes of a text
	NonceSize   = 32   // bytes
)

// Run is what one process attempted, and what came back. Attempts on a whole
// process, store or device are kept once, in a group that each result which
// they hold for refers to; so are equal attempts on several versions.
type Run struct {
	ID       claviger.ID `json:"run"`
	Nonce    []byte      `json:"nonce"` // NonceSize bytes, chosen by who asked for the run
	Started  time.Time   `json:"started"`
	Finished time.Time   `json:"finished"`
	Host     Host        `json:"host"`
	By       string      `json:"by"`              // the principal that submitted it; set by the server
	Loud     bool        `json:"loud,omitempty"`  // attempts that may alarm a device were made
	Reports  []Report    `json:"reports"`         // what each custodian says of itself; set by the server
	Groups   []Group     `json:"groups"`          //
	Results  []Result    `json:"results"`         // ordered by name and version
	Scope    []string    `json:"scope,omitempty"` // what was searched, and what not
}

// Host says where a run was made, and as whom.
type Host struct {
	Name   string `json:"name"`
	Kernel string `json:"kernel"`
	Arch   string `json:"arch"`
	UID    int    `json:"uid"`
	AsRoot bool   `json:"as_root,omitempty"` // attempts with root's authority were made
}

// Report is what a custodian says of itself.
type Report struct {
	Device claviger.Device `json:"device"`
	Level  claviger.Level  `json:"level"` // of what it makes now

	// Of a TPM: the keys that say which it is, as TPMT_PUBLIC, and the
	// certificates of the endorsement key, leaf first.
	AKPublic       []byte   `json:"ak_public,omitempty"`
	EKPublic       []byte   `json:"ek_public,omitempty"`
	EKCertificates [][]byte `json:"ek_certificates,omitempty"`
	// Bound says that the server had the TPM activate a credential for this pair
	// of keys: the attestation key lives beside the endorsement key. Nobody but
	// who made the credential can check that.
	Bound bool `json:"bound,omitempty"`
}

// Group is attempts that hold for every result which refers to them.
type Group struct {
	About    string             `json:"about"` // "the key process", "the store", "p11 keys", ...
	Attempts []claviger.Attempt `json:"attempts"`
}

// Subject is one version of a key, as the server describes it.
type Subject struct {
	Name        claviger.Name      `json:"name"`
	KeyID       claviger.ID        `json:"key_id"`
	Version     uint32             `json:"version"`
	Algorithm   claviger.Algorithm `json:"algorithm"`
	Custodian   claviger.Custodian `json:"custodian"`
	Origin      claviger.Origin    `json:"origin"`
	Fingerprint string             `json:"fingerprint"`         // as claviger.Fingerprint writes it
	Reference   string             `json:"reference,omitempty"` // what the device calls it
}

// String returns the subject's name in a statement, such as "prod/app/x#3".
func (s Subject) String() string { return fmt.Sprintf("%s#%d", s.Name, s.Version) }

// Result is what a run shows of one version.
type Result struct {
	Subject
	Groups      []int          `json:"groups"` // indexes of Run.Groups, ascending
	Attestation *Attestation   `json:"attestation,omitempty"`
	Reported    claviger.Level `json:"reported"`          // what the custodian says of this version now; set by the server
	Level       claviger.Level `json:"level"`             // what all of it shows; set by the server
	Finding     string         `json:"finding,omitempty"` // the worst; "" when there is none
}

// Attestation is what a TPM certified of one version: TPM2_Certify by the
// attestation key of the report, with Challenge as its qualifying data.
type Attestation struct {
	KeyPublic []byte `json:"key_public"` // TPMT_PUBLIC
	Attest    []byte `json:"attest"`     // TPMS_ATTEST
	Signature []byte `json:"signature"`  // TPMT_SIGNATURE
}

// Challenge returns the nonce (32 bytes) with which a TPM certifies a version
// for a run: it is bound to the run's nonce, the key and the version, so that
// an attestation fits one place of one statement.
func Challenge(nonce []byte, key claviger.ID, version uint32) []byte {
	h := sha256.New()
	h.Write([]byte("claviger evidence 1"))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(nonce))))
	h.Write(nonce)
	h.Write([]byte(key))
	h.Write(binary.BigEndian.AppendUint32(nil, version))
	return h.Sum(nil)
}
