package claviger

import (
	"slices"
	"time"
)

// Origin says where a version's material came from.
type Origin string

// The origins. Imported material has been outside: it is never called
// non-extractable, whatever holds it now.
const (
	Generated Origin = "generated"
	Imported  Origin = "imported"
)

// Level is the custody level that evidence shows of a version.
type Level string

// The levels, best first.
const (
	Attested Level = "attested" // a device proves it
	Hardware Level = "hardware" // a device reports it
	Isolated Level = "isolated" // lives only in the key process
	Exposed  Level = "exposed"  // imported, seen elsewhere, or held by a key process without its hardening
	Lapsed   Level = "lapsed"   // what showed it is too old; worse than any other
)

// AtLeast reports whether l is as good as min. An empty min is always met, and
// a lapsed level meets no other.
func (l Level) AtLeast(min Level) bool {
	order := []Level{Exposed, Isolated, Hardware, Attested}
	return min == "" || slices.Index(order, l) >= slices.Index(order, min)
}

// Custodian is the kind of process or device that holds material.
type Custodian string

// The custodians.
const (
	Soft Custodian = "soft" // claviger-keyd
	TPM  Custodian = "tpm"  // a TPM 2.0, through claviger-tpmd
	P11  Custodian = "p11"  // a PKCS#11 token, through claviger-p11d
)

// Device is what a custodian says of what it stands on.
type Device struct {
	Kind         Custodian   `json:"kind"`
	Manufacturer string      `json:"manufacturer,omitempty"`
	Model        string      `json:"model,omitempty"`
	Serial       string      `json:"serial,omitempty"`
	Firmware     string      `json:"firmware,omitempty"`
	Software     bool        `json:"software"`   // no hardware is behind it: a key process, SoftHSM, swtpm
	Algorithms   []Algorithm `json:"algorithms"` // that it makes keys of
}

// Settings are the protective settings of a key. Zero means none. Once set
// they only ever tighten: see Tightens.
type Settings struct {
	OriginatorPeriod Duration `json:"originator_period,omitzero"`  // a version protects for this long after its activation (SP 800-57 part 1, 5.3)
	RecipientPeriod  Duration `json:"recipient_period,omitzero"`   // a version processes for this long after its activation
	RotateEvery      Duration `json:"rotate_every,omitzero"`       // a new version is made when the newest is this old
	DestroyGrace     Duration `json:"destroy_grace,omitzero"`      // least time between deactivation, compromise or suspension and destruction
	MaxInvocations   uint64   `json:"max_invocations,omitzero"`    // protecting operations of one version; AES-256-GCM never more than 2^32
	ProcessSuspended bool     `json:"process_suspended,omitempty"` // a suspended version still verifies and opens
	ProcessExposed   bool     `json:"process_exposed,omitempty"`   // a compromised version still verifies and opens
	MinLevel         Level    `json:"min_level,omitempty"`         // refuse use below this custody level
	SuspendExposed   bool     `json:"suspend_exposed,omitempty"`   // a version that was seen outside custody is suspended at once
	Grace            Duration `json:"grace,omitzero"`              // a version that was replaced processes for this long, and is retired then
	GraceDrained     bool     `json:"grace_drained,omitempty"`     // and not before nothing of it was checked for a day
	RecordTokens     bool     `json:"record_tokens,omitempty"`     // keep a keyed digest of each token that is made: after an exposure no others pass
}

// Duration is a time.Duration that is JSON-encoded as a string such as "720h0m0s".
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MaxGCMInvocations is the most times that one AES-256-GCM version seals with
// random 96-bit nonces (SP 800-38D, section 8.3).
const MaxGCMInvocations = 1 << 32

// Tightens reports whether next is nowhere looser than s. A period or a limit
// may be set where there was none and may become shorter or smaller; the grace
// before destruction may only grow; a permission may only be withdrawn.
func (s Settings) Tightens(next Settings) bool {
	shorter := func(old, new Duration) bool { return old == 0 || new != 0 && new <= old }
	return shorter(s.OriginatorPeriod, next.OriginatorPeriod) &&
		shorter(s.RecipientPeriod, next.RecipientPeriod) &&
		shorter(s.RotateEvery, next.RotateEvery) &&
		next.DestroyGrace >= s.DestroyGrace &&
		(s.MaxInvocations == 0 || next.MaxInvocations != 0 && next.MaxInvocations <= s.MaxInvocations) &&
		(s.ProcessSuspended || !next.ProcessSuspended) &&
		(s.ProcessExposed || !next.ProcessExposed) &&
		(next.SuspendExposed || !s.SuspendExposed) &&
		shorter(s.Grace, next.Grace) &&
		(s.Grace == 0 || s.GraceDrained || !next.GraceDrained) &&
		(next.RecordTokens || !s.RecordTokens) &&
		next.MinLevel.AtLeast(s.MinLevel)
}

// Key is the record of a key. It holds no private material; wrapped blobs are
// stored apart and never leave the server.
type Key struct {
	ID        ID                `json:"id"`
	Name      Name              `json:"name"`
	Aliases   []Name            `json:"aliases,omitempty"` // former names, which still resolve
	Algorithm Algorithm         `json:"algorithm"`
	Custodian Custodian         `json:"custodian"`
	Recipe    string            `json:"recipe"` // the one recipe set that the key answers; "plain" for the operations of its algorithm
	Owner     string            `json:"owner"`
	Labels    map[string]string `json:"labels,omitempty"`
	Settings  Settings          `json:"settings"`
	Created   time.Time         `json:"created"`
	Revision  uint64            `json:"revision"` // compare-and-swap on every change
	Versions  []Version         `json:"versions"` // ascending by number
}

// PlainRecipe is the recipe set of a key that answers its algorithm's own operations.
const PlainRecipe = "plain"

// Version is one set of material of a key.
type Version struct {
	Number      uint32       `json:"number"` // from 1
	State       State        `json:"state"`
	Origin      Origin       `json:"origin"`
	Level       Level        `json:"level"`
	Shown       time.Time    `json:"shown,omitzero"`      // when evidence last showed the level
	Finding     string       `json:"finding,omitempty"`   // the worst open one; "" when there is none
	Reference   string       `json:"reference,omitempty"` // what the device calls the key: an RFC 7512 URI, or the hex Name of a TPM object
	Public      []byte       `json:"public,omitempty"`    // raw public key, see package pubkey; empty for symmetric keys
	Fingerprint Fingerprint  `json:"fingerprint"`
	Created     time.Time    `json:"created"`
	Activated   time.Time    `json:"activated,omitzero"`
	Retires     time.Time    `json:"retires,omitzero"`   // when the grace of a version that was replaced ends
	Retired     time.Time    `json:"retired,omitzero"`   // since when it processes no more, although its state would let it
	Exposure    *Exposure    `json:"exposure,omitempty"` // what still passes of a compromised version; nil: the key's settings say so
	History     []Transition `json:"history"`
}

// Exposure says which tokens of a compromised version still pass.
type Exposure struct {
	At       time.Time            `json:"at"`                 // when it was answered
	Since    time.Time            `json:"since"`              // from when on somebody else may have made tokens: only those issued before pass
	Formats  map[string]time.Time `json:"formats,omitempty"`  // until when tokens of a format pass; those of others never do
	Purposes map[string]time.Time `json:"purposes,omitempty"` // until when at most tokens for a purpose pass
	Untimed  []string             `json:"untimed,omitempty"`  // formats of which tokens without a time of issue pass too
	Recorded bool                 `json:"recorded,omitempty"` // only tokens that are in the record of issued tokens pass
}

// Until returns when the last token stops passing; zero when none does.
func (x *Exposure) Until() (last time.Time) {
	for _, until := range x.Formats {
		if until.After(last) {
			last = until
		}
	}
	return last
}

// Passes reports whether a token passes that the version's material made: its
// format, what it says it is for ("" where it does not: then the shortest grace
// of any purpose is its own), when it says it was issued (zero where it does
// not), and whether it is in the record.
func (x *Exposure) Passes(now time.Time, format, purpose string, issued time.Time, recorded bool) bool {
	if !now.Before(x.Formats[format]) || x.Recorded && !recorded {
		return false
	}
	for name, until := range x.Purposes {
		if (purpose == "" || purpose == name) && !now.Before(until) {
			return false
		}
	}
	if x.Recorded { // the door made it, whatever it says of its time
		return true
	}
	if issued.IsZero() {
		return slices.Contains(x.Untimed, format)
	}
	return issued.Before(x.Since)
}

// Version returns the version with the number, or nil.
func (k *Key) Version(number uint32) *Version {
	if i := slices.IndexFunc(k.Versions, func(v Version) bool { return v.Number == number }); i >= 0 {
		return &k.Versions[i]
	}
	return nil
}

// ActiveVersion returns the one version that is active, or nil. A key never
// has two.
func (k *Key) ActiveVersion() *Version {
	if i := slices.IndexFunc(k.Versions, func(v Version) bool { return v.State == Active }); i >= 0 {
		return &k.Versions[i]
	}
	return nil
}

// LevelAt returns the level as it stands at a time: one that was shown longer
// ago than maxAge has lapsed. A version of which nothing was shown stands by
// what was seen when it was made. Exposure does not pass, and with a maxAge of
// zero nothing lapses.
func (v *Version) LevelAt(now time.Time, maxAge time.Duration) Level {
	shown := v.Shown
	if shown.IsZero() {
		shown = v.Created
	}
	// A date in the future is no better than one in the past: a clock was set.
	if maxAge > 0 && v.Level != Exposed && now.Sub(shown).Abs() > maxAge {
		return Lapsed
	}
	return v.Level
}

// StateSince returns when the version entered its present state.
func (v *Version) StateSince() time.Time {
	if n := len(v.History); n > 0 {
		return v.History[n-1].At
	}
	return v.Created
}
