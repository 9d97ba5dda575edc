package keeper

import (
	"context"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/store"
)

// Observed is what a custodian says now of one version.
type Observed struct {
	Key      *claviger.Key
	Version  *claviger.Version
	Device   claviger.Device
	Level    claviger.Level // as the custodian reports it
	Finding  string         // the worst; "" when there is none
	Attempts []claviger.Attempt

	TPM    *TPM                                            // nil for others
	Attest func(nonce []byte) (custody.Attestation, error) // of a TPM; nil for others
}

// Judged is what is made of it.
type Judged struct {
	Level   claviger.Level
	Finding string
}

// TPM says which TPM it is.
type TPM struct {
	AKPublic       []byte   // TPMT_PUBLIC
	EKPublic       []byte   // TPMT_PUBLIC
	EKCertificates [][]byte // DER, leaf first
	Bound          bool     // it activated a credential for both keys just now: they lie in one TPM
}

// Shown is what evidence shows of one version.
type Shown struct {
	Key     claviger.ID
	Version uint32
	Level   claviger.Level
	Finding string // the worst open one; "" when there is none
}

// Signer signs statements with the evidence key: ECDSA P-256 with SHA-256, DER.
type Signer struct {
	Sign  func(message []byte) ([]byte, error)
	Chain [][]byte // DER: the key's certificate, whose extended key usage is documentSigning (RFC 9336), and the CA's
}

// Subject is one version that a run is about.
type Subject struct {
	Key     claviger.ID
	Version uint32
}

// Recording is a run that was submitted.
type Recording struct {
	Run      claviger.ID // names the run; new
	Subjects []Subject   // each version once, at most MaxSubjects

	// Judge returns what the run shows of each subject, in their order, and the
	// signed envelope that says so. It must not say more of one than the facts'
	// Own does.
	Judge func(facts Facts, signer Signer) (shown []Shown, envelope []byte, err error)
}

// Facts are what the server itself knows of a run's subjects.
type Facts struct {
	Keys       map[claviger.ID]*claviger.Key
	Own        []Shown // what the custodians report now, in the order of the subjects; exposed stays exposed, and lapsed could not be examined
	Custodians []CustodianReport
}

// Limits of a recording.
const (
	MaxSubjects  = 100_000            // versions
	MaxStatement = store.MaxStatement // bytes of an envelope
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
	TPM     *TPM           // of a TPM, where it was asked for
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

// Attest has the device of a key certify one of its versions; 0 is the active
// one, or the only one. Nonce has 16 to 64 bytes. It returns the version.
func (k *Keeper) Attest(ctx context.Context, by claviger.Principal, ref string, version uint32, nonce []byte) (uint32, custody.Attestation, error) {
	if len(nonce) < 16 || len(nonce) > 64 {
		return 0, custody.Attestation{}, claviger.Errorf(claviger.Invalid, "the nonce does not have 16 to 64 bytes", "draw 32 random bytes")
	}
	var out custody.Attestation
	number, err := k.examine(ctx, by, "evidence.attest", ref, version, func(ctx context.Context, d Device, m custody.Material, r *audit.Record) (err error) {
		r.Digest = digestOf(nonce)
		out, err = d.Attest(ctx, m, nonce)
		return err
	})
	return number, out, err
}

// Probe has the device of a key attack one of its versions; 0 is the active
// one, or the only one. Loud includes what alarms a device or counts against a
// lockout. It returns the version.
func (k *Keeper) Probe(ctx context.Context, by claviger.Principal, ref string, version uint32, loud bool) (uint32, custody.Probed, error) {
	var out custody.Probed
	number, err := k.examine(ctx, by, "evidence.probe", ref, version, func(ctx context.Context, d Device, m custody.Material, r *audit.Record) (err error) {
		if loud {
			addDetailText(r, "loud", "true")
		}
		out, err = d.Probe(ctx, m, loud)
		out.Level, out.Finding = claviger.Level(clipText(string(out.Level))), clipText(out.Finding)
		for i := range out.Attempts {
			a := &out.Attempts[i]
			for _, text := range []*string{&a.Probe, &a.Tried, &a.Result, (*string)(&a.Verdict), &a.Control, &a.Reason} {
				*text = printable(*text)
			}
		}
		addDetailText(r, "level", string(out.Level))
		addDetailText(r, "finding", out.Finding)
		return err
	})
	return number, out, err
}

// examine does something with a version of a device, for who manages the key.
func (k *Keeper) examine(ctx context.Context, by claviger.Principal, action, ref string, number uint32, do func(context.Context, Device, custody.Material, *audit.Record) error) (uint32, error) {
	c := change{op: claviger.ManageKey, action: action, key: ref}
	err := k.administer(ctx, by, c, func(ctx context.Context, key *claviger.Key, r *audit.Record) error {
		if number == 0 {
			number = chosen(key)
		}
		v, err := liveVersion(key, number)
		if err != nil {
			return err
		}
		r.Version, r.Fingerprint = v.Number, v.Fingerprint
		if key.Custodian == claviger.Soft {
			return claviger.Errorf(claviger.Unsupported, "the key is in no device", "the key process is examined from outside: run 'claviger evidence run'")
		}
		d, err := k.device(key.Custodian)
		if err != nil {
			return err
		}
		m, err := k.stored(ctx, key, v)
		if err != nil {
			return err
		}
		return do(ctx, d, m, r)
	})
	if err != nil {
		return 0, err
	}
	return number, nil
}

// liveVersion returns a version that is not destroyed.
func liveVersion(key *claviger.Key, number uint32) (*claviger.Version, error) {
	v := key.Version(number)
	if v == nil {
		return nil, claviger.Errorf(claviger.NotFound, "the key has no such version", "look at its versions with 'claviger key show'")
	}
	if v.State == claviger.Destroyed {
		return nil, claviger.Errorf(claviger.NotFound, "the version is destroyed", "name one that is not")
	}
	return v, nil
}

// stored returns the material of a version as the store has it.
func (k *Keeper) stored(ctx context.Context, key *claviger.Key, v *claviger.Version) (custody.Material, error) {
	m := custody.Material{Binding: bindingOf(key, v.Number, v.Origin), Fingerprint: v.Fingerprint}
	err := k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		m.Blob, _, err = tx.Blob(key.ID, v.Number)
		return err
	})
	return m, err
}

// Evidence lists what evidence shows of the keys that the caller may see, one
// page of keys at a time.
func (k *Keeper) Evidence(ctx context.Context, by claviger.Principal, q store.KeyQuery) (list []VersionEvidence, next string, err error) {
	keys, next, err := k.Keys(ctx, by, q)
	if err != nil {
		return nil, "", err
	}
	ids := make([]claviger.ID, len(keys))
	for i, key := range keys {
		ids[i] = key.ID
	}
	runs := map[Subject]claviger.ID{}
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.EvidenceOf(ids...)
		for _, row := range rows {
			runs[Subject{row.Key, row.Version}] = row.Run
		}
		return err
	})
	if err != nil {
		return nil, "", outward(err)
	}
	for _, key := range keys {
		for _, v := range key.Versions {
			list = append(list, VersionEvidence{
				Name: key.Name, KeyID: key.ID, Version: v.Number, State: v.State, Custodian: key.Custodian, Fingerprint: v.Fingerprint,
				Level: v.Level, Shown: v.Shown, Finding: v.Finding, Run: runs[Subject{key.ID, v.Number}],
			})
		}
	}
	return list, next, nil
}

// Statement returns the statement of a run that was submitted; of the last one
// when run is empty.
func (k *Keeper) Statement(ctx context.Context, by claviger.Principal, run string) (Statement, error) {
	var found store.Run
	c := change{op: claviger.ReadAudit, action: "evidence.statement"}
	err := k.administer(ctx, by, c, func(ctx context.Context, _ *claviger.Key, r *audit.Record) error {
		err := k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
			found, err = tx.Run(run)
			return err
		})
		addDetailText(r, "run", string(found.ID))
		return err
	})
	if err != nil {
		return Statement{}, err
	}
	return Statement{Run: found.ID, At: found.At, Envelope: found.Statement}, nil
}
