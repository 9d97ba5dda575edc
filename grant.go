package claviger

import (
	"net/netip"
	"time"
)

// Grant lets one principal do operations on the keys that a selector chooses,
// under conditions. It is the unit of access review.
type Grant struct {
	ID           ID          `json:"id"`
	Principal    ID          `json:"principal"`
	Selector     Selector    `json:"selector"`
	Operations   []Operation `json:"operations"`
	Conditions   Conditions  `json:"conditions"`
	Reason       string      `json:"reason,omitempty"`
	Created      time.Time   `json:"created"`
	CreatedBy    ID          `json:"created_by"`
	Revoked      time.Time   `json:"revoked,omitzero"`
	RevokeReason string      `json:"revoke_reason,omitempty"`
	Revision     uint64      `json:"revision"`
}

// Conditions narrow a grant. Zero means that the condition is not set; every
// condition that is set must be met.
type Conditions struct {
	Sources     []netip.Prefix `json:"sources,omitempty"`     // the connection comes from one of them
	Executables []string       `json:"executables,omitempty"` // exact path of the calling program (local socket)
	Units       []string       `json:"units,omitempty"`       // systemd unit of the caller (local socket)
	Cgroups     []string       `json:"cgroups,omitempty"`     // cgroup path, exact or a parent of the caller's
	Audiences   []string       `json:"audiences,omitempty"`   // the request names one of them
	Purposes    []string       `json:"purposes,omitempty"`    // the request names one of them
	Formats     []string       `json:"formats,omitempty"`     // protect and unprotect are of one of them, such as "django.session"; every other use is refused
	NotBefore   time.Time      `json:"not_before,omitzero"`
	NotAfter    time.Time      `json:"not_after,omitzero"`
	Rate        *Rate          `json:"rate,omitempty"`        // token bucket
	Count       uint64         `json:"count,omitzero"`        // operations over the life of the grant
	MinLevel    Level          `json:"min_level,omitempty"`   // least custody level of the version
	MinBinding  Level          `json:"min_binding,omitempty"` // least level of the device that the caller's own key is bound to
	Template    *Template      `json:"template,omitempty"`    // sign only what matches; raw signing is refused
}

// Rate is a token bucket.
type Rate struct {
	PerSecond float64 `json:"per_second"`
	Burst     uint64  `json:"burst"`
}

// Template restricts signing to one structure. Exactly one member is set.
type Template struct {
	JWT  *JWTTemplate  `json:"jwt,omitempty"`
	X509 *X509Template `json:"x509,omitempty"`
	SSH  *SSHTemplate  `json:"ssh,omitempty"`
}

// JWTTemplate restricts a JSON Web Token (RFC 7519). The header holds alg (from
// the key), typ and kid and nothing else.
type JWTTemplate struct {
	Type        string            `json:"type,omitempty"`     // header typ, "JWT" when empty
	Issuer      string            `json:"issuer"`             // fixed
	Subject     string            `json:"subject"`            // fixed
	Audiences   []string          `json:"audiences"`          // aud is one or more of these
	MaxLifetime Duration          `json:"max_lifetime"`       // longest exp - iat; both claims are required
	Claims      map[string]string `json:"claims,omitempty"`   // other claims that may appear: name to an RE2 pattern that the whole value (a string, or the JSON of anything else) must match
	Required    []string          `json:"required,omitempty"` // of those, the ones that must appear
}

// X509Template restricts an X.509 certificate (RFC 5280): an end entity, never
// a CA, with the issuer fixed and every name matched.
type X509Template struct {
	IssuerDN    string         `json:"issuer_dn"`               // RFC 2253 text, fixed
	CommonName  string         `json:"common_name,omitempty"`   // RE2 pattern for the whole CN; other subject attributes are refused
	DNSNames    []string       `json:"dns_names,omitempty"`     // RE2 patterns, one of which each DNS name matches
	URIs        []string       `json:"uris,omitempty"`          // RE2 patterns for URI names
	IPs         []netip.Prefix `json:"ips,omitempty"`           // prefixes for IP names
	ExtKeyUsage []string       `json:"ext_key_usage,omitempty"` // of "server-auth", "client-auth", "code-signing", "email-protection"; only these may appear
	MaxLifetime Duration       `json:"max_lifetime"`
}

// SSHTemplate restricts an OpenSSH certificate.
type SSHTemplate struct {
	Host            bool              `json:"host,omitempty"`             // host certificate; a user certificate otherwise
	KeyID           string            `json:"key_id,omitempty"`           // RE2 pattern for the whole key id
	Principals      []string          `json:"principals"`                 // RE2 patterns, one of which each principal matches; at least one principal is required
	CriticalOptions map[string]string `json:"critical_options,omitempty"` // options that must be there, with these values; no others may
	Extensions      []string          `json:"extensions,omitempty"`       // extensions that may appear
	MaxLifetime     Duration          `json:"max_lifetime"`
}
