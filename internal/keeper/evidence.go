package keeper

import (
	"context"
	"time"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/store"
)

// Observed is what a custodian says now of one version.
type Observed struct {
	Key         claviger.Key
	Version     uint32
	Device      claviger.Device
	Level       claviger.Level // as the custodian reports it
	Finding     string         // the worst; "" when there is none
	Attempts    []claviger.Attempt
	Attestation *custody.Attestation // of a TPM; nil for others
	Nonce       []byte               // that the attestation answers
	Memory      []byte               // what was remembered of this device when it was judged before
}

// Judged is what is made of it.
type Judged struct {
	Level   claviger.Level
	Finding string
	Memory  []byte // kept for the next time, at most 4 KiB; nil keeps what was
}

// Shown is what evidence shows of one version.
type Shown struct {
	Key     claviger.ID
	Version uint32
	Level   claviger.Level
	Finding string // the worst open one; "" when there is none
}

// Signer signs statements with the evidence key, Ed25519.
type Signer struct {
	Sign  func(message []byte) ([]byte, error)
	Chain [][]byte // DER: the key's certificate, whose extended key usage is documentSigning (RFC 9336), and the CA's
}

// Recording is a run that was submitted.
type Recording struct {
	Run      claviger.ID // names the run; new
	Versions []Shown     // each version once, at most MaxSubjects

	// Statement returns the signed envelope over what is recorded. A level may
	// be lower there than in Versions: it is never higher than what the
	// custodian itself reports now, and exposed stays exposed.
	Statement func(recorded []Shown, signer Signer) ([]byte, error)
}

// Limits of a recording.
const (
	MaxSubjects  = 100_000  // versions
	MaxStatement = 64 << 20 // bytes of an envelope
)

// VersionEvidence is what evidence shows of one version now.
type VersionEvidence struct {
	Name        claviger.Name
	KeyID       claviger.ID
	Version     uint32
	State       claviger.State
	Custodian   claviger.Custodian
	Fingerprint claviger.Fingerprint
	Level       claviger.Level // as it stands: lapsed when it was shown too long ago
	Shown       time.Time
	Finding     string
	Run         claviger.ID // that showed it; "" for what the custodian reported when it was made
}

// Statement is the signed statement of a run.
type Statement struct {
	Run      claviger.ID
	At       time.Time
	Envelope []byte
}

// Search chooses what is searched for.
type Search struct {
	Selector  string // "" for every key
	Symmetric bool   // only keys without a public half
	Haystack  []byte // at most 1 MiB
}

// Found says where a version lies in a haystack.
type Found struct {
	Name     claviger.Name
	KeyID    claviger.ID
	Version  uint32
	Offset   uint32
	Encoding string
}

// CustodianReport is a custodian as it is now.
type CustodianReport struct {
	claviger.Device
	Trouble string         // why it cannot be reached; "" when it can
	PID     int            // of the key process; 0 for others
	Level   claviger.Level // of what the key process makes now; "" for others
}

// Notice tells an owner that versions of theirs were found exposed.
type Notice struct {
	Owner     string    `json:"owner"`
	Finding   string    `json:"finding"`
	Run       string    `json:"run,omitempty"`
	At        time.Time `json:"at"`
	Suspended bool      `json:"suspended"` // some were suspended, as their settings ask
	Count     int       `json:"count"`
	Versions  []string  `json:"versions"` // such as "prod/app/key#3"; the first 100
}

var errLater = claviger.Errorf(claviger.Unavailable, "this server does not serve evidence yet", "try again after an upgrade")

// Attest has the device of a key certify one of its versions; 0 is the active
// one, or the only one. Nonce has 16 to 64 bytes.
func (k *Keeper) Attest(ctx context.Context, by claviger.Principal, ref string, version uint32, nonce []byte) (uint32, custody.Attestation, error) {
	return 0, custody.Attestation{}, errLater
}

// Probe has the device of a key attack one of its versions.
func (k *Keeper) Probe(ctx context.Context, by claviger.Principal, ref string, version uint32, loud bool) (uint32, custody.Probed, error) {
	return 0, custody.Probed{}, errLater
}

// SearchMaterial looks for keys of the key process in a haystack, and returns
// where they are and how many versions were looked for.
func (k *Keeper) SearchMaterial(ctx context.Context, by claviger.Principal, req Search) ([]Found, int, error) {
	return nil, 0, errLater
}

// RecordEvidence records what a run showed and returns its signed statement.
func (k *Keeper) RecordEvidence(ctx context.Context, by claviger.Principal, req Recording) ([]byte, error) {
	return nil, errLater
}

// Evidence lists what evidence shows of the keys that the caller may see, one
// page of keys at a time.
func (k *Keeper) Evidence(ctx context.Context, by claviger.Principal, q store.KeyQuery) (list []VersionEvidence, next string, err error) {
	return nil, "", errLater
}

// Statement returns the statement of a run that was submitted; of the last one
// when run is empty.
func (k *Keeper) Statement(ctx context.Context, by claviger.Principal, run string) (Statement, error) {
	return Statement{}, errLater
}

// ReportCopy records that a version was found outside custody.
func (k *Keeper) ReportCopy(ctx context.Context, by claviger.Principal, ref string, version uint32, where, run string) (KeyView, error) {
	return KeyView{}, errLater
}

// Custodians reports every custodian.
func (k *Keeper) Custodians(ctx context.Context, by claviger.Principal) ([]CustodianReport, error) {
	return nil, errLater
}
