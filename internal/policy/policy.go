// Package policy decides, from grants and the state of a key, whether a
// principal may do an operation, and checks structures (JWT, X.509 and SSH
// certificates) against templates.
//
// It promises that whatever is not granted is denied, that a fact that was not
// observed meets no condition, and that the same input gives the same
// decision. It must never read a clock, a store or a file, and never decide
// from anything that is not in its input.
package policy

import (
	"time"

	"claviger.dev"
)

// SystemEnvironment is the reserved environment of Claviger's own keys. No
// grant may select it and no decision allows anything on it, whoever asks.
const SystemEnvironment = "system"

// MaxBatch is the most items that one call may carry.
const MaxBatch = 1000

// Reasons of a denial: short, stable, for the record. The caller sees only
// the code and a hint.
const (
	ReasonSystem      = "system"            // a key of the reserved environment
	ReasonEnvironment = "environment"       // the principal is not of the key's environment
	ReasonNoGrant     = "no-grant"          // no grant names this principal, operation and key
	ReasonRevoked     = "revoked"           // the grant was revoked
	ReasonNotBefore   = "not-before"        // the grant is not valid yet
	ReasonExpired     = "expired"           // the grant is not valid any more
	ReasonSource      = "source"            // the connection comes from elsewhere
	ReasonExecutable  = "executable"        // another program calls
	ReasonUnit        = "unit"              // another systemd unit calls
	ReasonCgroup      = "cgroup"            // another cgroup calls
	ReasonBound       = "caller-binding"    // the caller's own key is in no device, or in one of too low a level
	ReasonAudience    = "audience"          // the request names no permitted audience
	ReasonPurpose     = "purpose"           // the request names no permitted purpose
	ReasonFormat      = "format"            // the request is of no permitted format
	ReasonRaw         = "template-required" // raw signing under a grant with a template, or the other way round
	ReasonBatch       = "batch"             // the batch is empty, too large, or more than the grant's budgets ever hold
	ReasonAlgorithm   = "algorithm"         // the key's algorithm does not do this operation
	ReasonState       = "state"             // no version is in a state that permits it
	ReasonOriginator  = "originator-period" // the version is too old to protect
	ReasonRecipient   = "recipient-period"  // the version is too old to process
	ReasonLevel       = "level"             // the version's custody level is too low
	ReasonTemplate    = "template"          // the structure does not match the template
)

// Input is everything that a decision rests on.
type Input struct {
	Principal claviger.Principal
	Grants    []claviger.Grant // those of the principal; others are passed over

	// Key is what the operation is on. To create a key, its record has a name
	// alone. Nil for an operation that is on no key: then Selector says what it
	// is on (the selector of a grant that is made or revoked, for example), and
	// an empty Selector is everything.
	Key      *claviger.Key
	Selector claviger.Selector

	Version    *claviger.Version // nil: every version that may do it
	Operation  claviger.Operation
	Audience   string      // as the request names it; empty meets no condition
	Purpose    string      // as the request names it; empty meets no condition
	Format     string      // of the tokens that are made or checked; empty for every other operation
	Structured *Structured // nil: raw
	Count      int         // items of the batch; 0 is refused for an operation that uses a key
	Now        time.Time
	MaxAge     time.Duration // of evidence: a level that was shown longer ago has lapsed; 0: none does
}

// Structured is what is to be signed under a template: exactly one member is
// set.
type Structured struct {
	JWT     *JWT
	X509TBS []byte // TBSCertificate, DER (RFC 5280, 4.1)
	SSHTBS  []byte // OpenSSH certificate in wire form without its signature
}

// JWT asks for a JSON Web Token (RFC 7519).
type JWT struct {
	Claims []byte // a JSON object, at most 16 KiB
	Type   string // header typ; the template's when empty
}

// Decision is what was decided.
type Decision struct {
	Allowed bool
	Code    claviger.Code   // of a refusal: Denied, or Invalid or Exhausted where nothing could ever be granted
	Reason  string          // of a refusal, for the record; one of the Reason constants
	Detail  string          // of a refusal by a template: what does not match
	Grant   *claviger.Grant // the one that allows first; of a refusal, the closest one, which may be nil

	// Allowances are the grants that allow, in the order in which their budgets
	// are to be taken: those without a budget first. Never empty when Allowed.
	Allowances []Allowance
}

// Allowance is one way in which a request is allowed.
type Allowance struct {
	Grant     *claviger.Grant     // nil where an operator administers
	Versions  []*claviger.Version // that may be used, newest first; exactly one to protect with, none to administer
	Structure *Structure          // of a structured request
}

// Structure is a checked structure: what custody signs, and how the whole is
// put together then.
type Structure struct {
	ToBeSigned []byte
	KID        string // RFC 7638 thumbprint of the signing version
	assemble   func(signature []byte) ([]byte, error)
}

// Assemble returns the signed whole: a compact JWT, a DER certificate or an
// SSH certificate in wire form. The signature is as custody makes it: ECDSA in
// ASN.1.
func (s *Structure) Assemble(signature []byte) ([]byte, error) { return s.assemble(signature) }

// Err returns nil when allowed, and otherwise the error that the caller sees:
// it tells nothing of the grants that there are.
func (d Decision) Err() error {
	if d.Allowed {
		return nil
	}
	switch d.Reason {
	case ReasonAlgorithm:
		return claviger.Errorf(d.Code, "the key's algorithm does not do this operation", "use an operation of the key's algorithm")
	case ReasonBatch:
		return claviger.Errorf(d.Code, "the batch has a size that is not permitted", "send 1 to 1000 items, and fewer where the grant has a budget")
	case ReasonState, ReasonOriginator, ReasonRecipient:
		return claviger.Errorf(d.Code, "no version of the key permits this operation now", "check the states of its versions with 'claviger key show', and rotate the key if none is active")
	case ReasonTemplate:
		return claviger.Errorf(d.Code, "the structure does not match the grant's template: "+d.Detail, "change the structure, or ask for another grant")
	}
	return claviger.Errorf(d.Code, "policy refuses this operation", "ask an operator for a grant; the audit record of this request has the reason")
}

// Engine decides. It keeps compiled templates, so that patterns are compiled
// once for each grant and revision. The zero Engine is ready; it may be used
// concurrently and must not be copied.
type Engine struct {
	templates templateCache
}
