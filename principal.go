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
	Created      time.Time     `json:"created"`
	Revoked      time.Time     `json:"revoked,omitzero"`
	RevokeReason string        `json:"revoke_reason,omitempty"`
	Revision     uint64        `json:"revision"`
}

// Principal is who asks: a record that was identified, with the facts of this
// call. Package proof makes it; it is passed as a parameter, never in a context.
type Principal struct {
	ID           ID
	Name         string
	Kind         PrincipalKind
	Environments []string
	Facts        Facts
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
