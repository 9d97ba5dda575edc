package keeper

import (
	"crypto/ed25519"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/store"
	"claviger.dev/pubkey"
)

// Count is how many operations were released, and when the last one was.
type Count struct {
	Count uint64
	Last  time.Time
}

// KeyView is a key's record with its use counts.
type KeyView struct {
	claviger.Key
	Use        Count
	VersionUse map[uint32]Count
	Copies     []store.Copy // where material was seen outside custody; of one key alone, not in listings
}

// worst returns the live version of the worst level, or nil when every version
// is destroyed. Of equal ones it prefers one with a finding.
func (v KeyView) worst() *claviger.Version {
	var worst *claviger.Version
	for i := range v.Versions {
		ver := &v.Versions[i]
		if ver.State == claviger.Destroyed {
			continue
		}
		if worst == nil || !ver.Level.AtLeast(worst.Level) || worst.Level.AtLeast(ver.Level) && worst.Finding == "" {
			worst = ver
		}
	}
	return worst
}

// Level returns the worst custody level of the versions that are not
// destroyed, or "" when there is none.
func (v KeyView) Level() claviger.Level {
	if w := v.worst(); w != nil {
		return w.Level
	}
	return ""
}

// Finding returns the worst open finding of the versions that are not
// destroyed, or "".
func (v KeyView) Finding() string {
	if w := v.worst(); w != nil && w.Finding != "" {
		return w.Finding
	}
	for _, ver := range v.Versions {
		if ver.State != claviger.Destroyed && ver.Finding != "" {
			return ver.Finding
		}
	}
	return ""
}

// Shown returns when evidence last showed all of that: the oldest time of the
// versions that are not destroyed.
func (v KeyView) Shown() time.Time {
	var oldest time.Time
	for _, ver := range v.Versions {
		if ver.State != claviger.Destroyed && (oldest.IsZero() || ver.Shown.Before(oldest)) {
			oldest = ver.Shown
		}
	}
	return oldest
}

// CreateKey is what a new key shall be.
type CreateKey struct {
	Name          string
	Algorithm     string
	Recipe        string // of a machine key, its recipe set; else empty or "plain"
	Owner         string
	Labels        map[string]string
	Settings      claviger.Settings
	PreActivation bool               // leave the first version in pre-activation
	ForImport     bool               // make no version: the first one will be imported
	Custodian     claviger.Custodian // soft when empty
	Reference     string             // take a key of the PKCS#11 device into custody: its RFC 7512 URI; "" makes one
}

// KeyChange is a change of a key's settings and texts. Nil leaves unchanged.
type KeyChange struct {
	Revision uint64 // must equal the key's revision; 0 skips the check
	Owner    *string
	Labels   *map[string]string // replaces all labels
	Settings *claviger.Settings // replaces all settings; refused where it loosens one
}

// PublicVersion is the public half of one version, for a JWKS (RFC 7517).
type PublicVersion struct {
	Name    claviger.Name
	Version uint32
	State   claviger.State
	Public  pubkey.Key
	KID     string // RFC 7638 thumbprint
}

// PublicSet is what an application publishes now.
type PublicSet struct {
	Versions []PublicVersion
	// MaxAge is how long the set may be cached: short while a rotation is
	// due, so that a new version is known before it signs.
	MaxAge time.Duration
}

// CreateGrant is what a new grant shall be.
type CreateGrant struct {
	Principal  string // id or name
	Selector   string
	Operations []string
	Conditions claviger.Conditions
	Reason     string
}

// GrantView is a grant with its principal's name and its use count.
type GrantView struct {
	claviger.Grant
	PrincipalName string
	Use           Count
}

// CreatePrincipal is what a new principal shall be.
type CreatePrincipal struct {
	Name         string
	Kind         claviger.PrincipalKind
	Environments []string
	Owner        string
	Bound        bool // only a key in a device may enrol
}

// Code is an enrolment code. It is shown once; the store keeps a hash.
type Code struct {
	Code    string // clv1_<secret>_<CA pin>_<identity pin>
	Expires time.Time
}

// Certificate is an issued certificate with what a caller needs beside it.
type Certificate struct {
	Chain     [][]byte // DER, leaf first; empty in listings
	Roots     [][]byte // DER; empty in listings
	Serial    string   // hex
	Principal claviger.ID
	NotBefore time.Time
	NotAfter  time.Time
	Revoked   time.Time
	Binding   *claviger.Binding // of its principal; nil in listings
}

// AuditQuery chooses records of the audit log.
type AuditQuery struct {
	audit.Query         // Key, KeyID and Principal are set from the two below
	KeyRef       string // name, former name or id; empty for any
	PrincipalRef string // name or id; empty for any
	Follow       bool   // wait for more
}

// Info is what a server says of itself.
type Info struct {
	Version             string
	Identity            ed25519.PublicKey // of the key process
	IdentityFingerprint string            // SHA-256 in hex, to pin
	CAFingerprint       string            // SHA-256 of the CA's SPKI in hex, to pin
	Roots               [][]byte          // DER
	CheckpointSPKI      []byte            // DER: the public half of the key that signs checkpoints of the record
	Store               string
	RootGeneration      uint32
	Started             time.Time
	Dev                 bool
}

// Measure is one protective measure as doctor reports it.
type Measure struct {
	Name   string
	Part   string // keyd, server, root, store, audit, host
	State  string // "on", "off" or "unavailable"
	Detail string // what was seen
	Gain   string // what an attacker gains where it is not on
	Hint   string // the next thing to do
}

// Report is doctor's answer. Healthy means that no measure is off.
type Report struct {
	Measures []Measure
	Healthy  bool
}

// Rewrapped is what a rewrap did.
type Rewrapped struct {
	Rewrapped  uint64 // blobs brought to the newest root key
	Already    uint64 // blobs that were there already
	Damaged    uint64 // blobs that do not open, and stay as they were
	Generation uint32 // of the newest root key
}

// Admitted is the root key, wrapped to a joining key process.
type Admitted struct {
	Wrapped  []byte
	Identity ed25519.PublicKey
}

// RecoveryResult says whether sealed shares restore the root key.
type RecoveryResult struct {
	Restores  bool
	Shares    int
	Threshold int
}
