package claviger

import (
	"net/netip"
	"time"
)

// PrincipalKind says what sort of caller a principal is.
type PrincipalKind string

// The kinds.
const (
	Operator       PrincipalKind = "operator" // administers; uses no key without a grant
	Workload       PrincipalKind = "workload"
	ServiceAccount PrincipalKind = "service-account"
	Agent          PrincipalKind = "agent"
	Person         PrincipalKind = "person"
)

// PrincipalRecord is what is stored of a principal.
type PrincipalRecord struct {
	ID           ID            `json:"id"`
	Name         string        `json:"name"` // such as "billing-web"; "uid:1000" for a local user; a SPIFFE id for an external one
	Kind         PrincipalKind `json:"kind"`
	Environments []string      `json:"environments"` // environments it may use keys of; "*" for any
	Owner        string        `json:"owner"`
	KeyHash      string        `json:"key_hash,omitempty"` // SHA-256 of the enrolled public key (SPKI), hex
	Bound        bool          `json:"bound,omitempty"`    // only a key in a device may enrol, and only it renews
	Binding      *Binding      `json:"binding,omitempty"`  // of the key that enrolled from a device; nil for a key in a file
	Created      time.Time     `json:"created"`
	Revoked      time.Time     `json:"revoked,omitzero"`
	RevokeReason string        `json:"revoke_reason,omitempty"`
	Revision     uint64        `json:"revision"`
}

// Binding ties a principal to one key in one custodian: that key alone renews
// the principal's certificates.
type Binding struct {
	Custodian     Custodian `json:"custodian"`
	Device        string    `json:"device"`                   // what the custodian calls its device
	Software      bool      `json:"software"`                 // no hardware is behind it
	Fingerprint   string    `json:"fingerprint"`              // SHA-256 of the bound public key (SPKI), hex
	AKName        string    `json:"ak_name,omitempty"`        // Name of the TPM's attestation key, hex
	EKFingerprint string    `json:"ek_fingerprint,omitempty"` // SHA-256 of the TPM's endorsement key (TPMT_PUBLIC), hex
	Level         Level     `json:"level"`
	Root          string    `json:"root,omitempty"`      // the configured root that vouches for the endorsement key
	TestRoot      bool      `json:"test_root,omitempty"` // that root is one for tests: the level proves nothing about hardware
	At            time.Time `json:"at"`                  // when it was last proved
	Clock         Clock     `json:"clock,omitzero"`      // of the TPM, at that time
	Finding       string    `json:"finding,omitempty"`   // why it is not trusted any more; "" when there is nothing
}

// RootText names the root that vouches for the device, and says so where it is
// one for tests; "" when there is none.
func (b *Binding) RootText() string {
	if b.TestRoot {
		return b.Root + " (TEST ROOT)"
	}
	return b.Root
}

// Clock is what a TPM counts and signs with each attestation (TPM 2.0 part 2,
// 10.11). Within one TPM it never goes back.
type Clock struct {
	Milliseconds uint64 `json:"milliseconds"` // while the TPM had power, since it was last cleared
	Resets       uint32 `json:"resets"`       // since it was last cleared
	Restarts     uint32 `json:"restarts"`     // since the last reset
	Safe         bool   `json:"safe"`         // no later clock was ever told
}

// Principal is who asks: a record that was identified, with the facts of this
// call. Package proof makes it; it is passed as a parameter, never in a context.
type Principal struct {
	ID           ID
	Name         string
	Kind         PrincipalKind
	Environments []string
	Binding      *Binding // of its key; nil where there is none; read-only
	Facts        Facts
}

// Level returns the level of the binding of the principal's key, "" where
// there is none.
func (p Principal) Level() Level {
	if p.Binding == nil {
		return ""
	}
	return p.Binding.Level
}

// Facts are what was observed of the caller at this call. A grant may require
// any of them. What was not observed is zero and meets no condition.
type Facts struct {
	Method     string     // "mtls" or "peer" (Unix peer credentials)
	Source     netip.Addr // of the connection; zero on the local socket
	UID        int        // -1 when not observed
	GID        int        // -1 when not observed
	PID        int        // 0 when not observed
	Executable string     // path, read through the pidfd
	Cgroup     string     // path of the unified hierarchy
	Unit       string     // systemd unit derived from the cgroup
	CertSerial string     // hex serial of the client certificate
	RequestID  string
}
