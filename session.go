package claviger

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// ClientKind says whether a client can keep a key of its own.
type ClientKind string

// The kinds of clients (RFC 6749, section 2.1).
const (
	Confidential ClientKind = "confidential" // authenticates by mTLS or private_key_jwt
	Public       ClientKind = "public"       // cannot: a page in a browser, an application on a device
)

// Client is an application that is registered to get tokens and to open
// sessions. Every request of it is its principal's.
type Client struct {
	ID             ID           `json:"id"`
	Name           Name         `json:"name"`      // environment/application/purpose: what a grant to open sessions selects
	Principal      ID           `json:"principal"` // whoever revokes it ends the client's sessions
	Kind           ClientKind   `json:"kind"`
	JWKS           []byte       `json:"jwks,omitempty"`             // public keys of private_key_jwt (RFC 7523), a JWK Set; empty: mTLS alone
	Certificates   []string     `json:"certificates,omitempty"`     // SHA-256 of client certificates from elsewhere (RFC 8705), base64url; the principal's own are accepted in any case
	RedirectURIs   []string     `json:"redirect_uris,omitempty"`    // compared as whole strings
	PostLogoutURIs []string     `json:"post_logout_uris,omitempty"` // compared as whole strings
	Audiences      []string     `json:"audiences,omitempty"`        // that its tokens may be for: patterns, see MatchAudience; empty: none
	Scopes         []string     `json:"scopes,omitempty"`           // that its tokens may carry
	GrantTypes     []string     `json:"grant_types,omitempty"`      // of OAuth 2.0, such as "client_credentials"
	TokenAlgorithm Algorithm    `json:"token_algorithm,omitempty"`  // of its access tokens: ecdsa-p256-sha256 when empty, or rsa-2048-pkcs1-sha256
	Limits         ClientLimits `json:"limits"`
	Created        time.Time    `json:"created"`
	CreatedBy      ID           `json:"created_by"`
	Disabled       time.Time    `json:"disabled,omitzero"`
	DisabledReason string       `json:"disabled_reason,omitempty"`
	Revision       uint64       `json:"revision"`
}

// ClientLimits bound what a client gets. Zero is the default that stands in
// the comment; a limit of 0 uses and a nil rate are none.
type ClientLimits struct {
	Access        Duration     `json:"access,omitzero"`          // lifetime of an access token; 5 minutes, at most 1 hour
	RefreshIdle   Duration     `json:"refresh_idle,omitzero"`    // a refresh token that was not used for so long is dead; 8 hours
	Refresh       Duration     `json:"refresh,omitzero"`         // from the first refresh token to the last; 24 hours, at most 30 days
	SessionIdle   Duration     `json:"session_idle,omitzero"`    // a session that was not used for so long ends; 1 hour
	Session       Duration     `json:"session,omitzero"`         // lifetime of a session; 12 hours, at most 30 days
	SessionUses   uint64       `json:"session_uses,omitzero"`    // of one session's key, over its life
	SessionRate   *Rate        `json:"session_rate,omitempty"`   // of one session's key
	SourceChanges SourceChange `json:"source_changes,omitempty"` // what becomes of a session that is used from another address; allow
	MaxSessions   uint64       `json:"max_sessions,omitzero"`    // live ones of one subject; 0: as many as there are

	SessionVolume uint64         `json:"session_volume,omitzero"` // uses in a minute that are no event, whatever the session's past; 300
	SuspendOn     []SessionEvent `json:"suspend_on,omitempty"`    // events that suspend a session; the others are recorded alone
}

// The limits that stand where a client has none, and the most there can be.
const (
	DefaultAccess      = 5 * time.Minute
	DefaultRefreshIdle = 8 * time.Hour
	DefaultRefresh     = 24 * time.Hour
	DefaultSessionIdle = time.Hour
	DefaultSession     = 12 * time.Hour
	MaxAccess          = time.Hour
	MaxSession         = 30 * 24 * time.Hour
)

// WithDefaults returns the limits as they hold.
func (l ClientLimits) WithDefaults() ClientLimits {
	or := func(d *Duration, standard, most time.Duration) {
		if *d <= 0 {
			*d = Duration(standard)
		}
		*d = min(*d, Duration(most))
	}
	or(&l.Access, DefaultAccess, MaxAccess)
	or(&l.Refresh, DefaultRefresh, MaxSession)
	or(&l.RefreshIdle, DefaultRefreshIdle, time.Duration(l.Refresh))
	or(&l.Session, DefaultSession, MaxSession)
	or(&l.SessionIdle, DefaultSessionIdle, time.Duration(l.Session))
	if l.SourceChanges == "" {
		l.SourceChanges = SourceAllowed
	}
	return l
}

// SourceChange says what becomes of a session that is used from another
// address than it was opened from.
type SourceChange string

// The answers to a change of source.
const (
	SourceAllowed SourceChange = "allow"  // it goes on; the change is an event
	SourceRefused SourceChange = "refuse" // that use is refused
	SourceEnds    SourceChange = "end"    // the session ends
)

// SessionKey says where the key of a session is.
type SessionKey string

// The kinds of session keys.
const (
	CustodyKey SessionKey = "custody" // held by the server's custodian; the caller asks for structured signatures
	BrowserKey SessionKey = "browser" // made by WebCrypto, and kept in the browser's profile
	DeviceKey  SessionKey = "device"  // in the caller's own TPM or HSM
)

// SessionState is where a session stands.
type SessionState string

// The states of a session. An ended one never returns.
const (
	SessionLive      SessionState = "live"
	SessionSuspended SessionState = "suspended"
	SessionEnded     SessionState = "ended"
)

// Subject is for whom a session is: a person or a workload, as the issuer
// that vouches for it names it.
type Subject struct {
	Issuer string `json:"issuer,omitempty"` // empty: a principal of this server
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"` // for people to read
}

// Actor is who acts for a subject (RFC 8693, section 4.1), the current one
// first in a chain.
type Actor struct {
	Issuer string `json:"issuer,omitempty"`
	ID     string `json:"id"`
}

// Source is what was seen of who opened a session.
type Source struct {
	Address   netip.Addr `json:"address,omitzero"`     // of the connection; of the browser where the opener tells it
	UserAgent string     `json:"user_agent,omitempty"` // SHA-256 of the header, hex
}

// Session is a subject that is logged in through a client, with a key pair of
// its own and limits. Its id is the handle.
type Session struct {
	ID             ID           `json:"id"`
	Client         ID           `json:"client"`
	Principal      ID           `json:"principal"` // who opened it, and may use it
	Subject        Subject      `json:"subject"`
	Actors         []Actor      `json:"actors,omitempty"`
	KeyKind        SessionKey   `json:"key_kind"`
	Algorithm      Algorithm    `json:"algorithm"`
	Public         []byte       `json:"public"`         // SubjectPublicKeyInfo, DER
	JKT            string       `json:"jkt"`            // RFC 7638 thumbprint of the key, base64url
	Binding        string       `json:"binding"`        // what keeps the key where it is: see BindingText
	DBSC           string       `json:"dbsc,omitempty"` // RFC 7638 thumbprint of the key that the application's cookie is bound to, as it says; empty: none
	Scopes         []string     `json:"scopes,omitempty"`
	Audiences      []string     `json:"audiences,omitempty"` // that the key may be used for: patterns, see MatchAudience; empty: none
	Methods        []string     `json:"methods,omitempty"`   // of HTTP, upper case; empty: any
	MaxUses        uint64       `json:"max_uses,omitzero"`   // 0: no limit
	Rate           *Rate        `json:"rate,omitempty"`
	Idle           Duration     `json:"idle"` // it ends when it was not used for so long
	SourceChanges  SourceChange `json:"source_changes"`
	Created        time.Time    `json:"created"`
	Ends           time.Time    `json:"ends"` // at the latest
	Source         Source       `json:"source"`
	State          SessionState `json:"state"`
	EndReason      string       `json:"end_reason,omitempty"` // also why it is suspended
	Ended          time.Time    `json:"ended,omitzero"`
	UpstreamIssuer string       `json:"upstream_issuer,omitempty"` // of the OpenID provider where the person logged in
	UpstreamSID    string       `json:"upstream_sid,omitempty"`    // what that provider calls its own session
	Revision       uint64       `json:"revision"`

	Volume    uint64         `json:"volume,omitzero"`      // uses in a minute that are no event, whatever its past; 300 when 0
	SuspendOn []SessionEvent `json:"suspend_on,omitempty"` // events that suspend it; the others are recorded alone

	LastUsed time.Time `json:"-"` // to the second; counted beside the record
	Uses     uint64    `json:"-"`
}

// Bindings: what keeps a session's key where it is.
const (
	// BindingScript: scripts cannot export the key; whoever reads the
	// browser's profile can, because it stands there in clear.
	BindingScript = "script-resistant"
	// BindingNone: nothing is known of where the key is.
	BindingNone = "not known"
)

// BindingText says in words what a binding is worth.
func BindingText(binding string) string {
	switch binding {
	case BindingScript:
		return "script-resistant: the browser's profile holds the key in clear"
	case BindingNone, "":
		return "not known: the caller says that its device holds the key, and nothing shows it"
	}
	if Level(binding) == Exposed {
		return "exposed: held by a key process that lacks a measure of its protection"
	}
	return binding + ": held in custody, and never given out"
}

// IdleEnd returns when the session ends if it is not used again.
func (s *Session) IdleEnd() time.Time {
	last := s.LastUsed
	if last.Before(s.Created) {
		last = s.Created
	}
	if end := last.Add(time.Duration(s.Idle)); end.Before(s.Ends) {
		return end
	}
	return s.Ends
}

// Permits reports whether the session's key may be used for an audience and,
// where there is one, an HTTP method.
func (s *Session) Permits(audience, method string) bool {
	return MatchAudience(s.Audiences, audience) && (len(s.Methods) == 0 || method == "" || slices.Contains(s.Methods, method))
}

// MatchAudience reports whether one of the patterns matches an audience. A
// pattern is the audience itself, or a prefix that is followed by "*", which
// stands at the end alone: "https://api.example/*". "*" matches every one.
func MatchAudience(patterns []string, audience string) bool {
	return audience != "" && slices.ContainsFunc(patterns, func(p string) bool {
		prefix, wild := strings.CutSuffix(p, "*")
		return p == audience || wild && strings.HasPrefix(audience, prefix)
	})
}

// ParseAudience checks a pattern that came from outside: its "*", if it has
// one, stands alone or after a slash, so that a host is never matched in part.
func ParseAudience(pattern string) error {
	if prefix, wild := strings.CutSuffix(pattern, "*"); pattern == "" || len(pattern) > MaxAudienceLength ||
		strings.Contains(prefix, "*") || wild && prefix != "" && !strings.HasSuffix(prefix, "/") {
		return Errorf(Invalid, "an audience pattern is an audience, a prefix that ends in /*, or *", "use such as https://api.example/*")
	}
	return nil
}

// MaxAudienceLength bounds an audience, in bytes.
const MaxAudienceLength = 512

// Receiver is told when sessions end.
type Receiver struct {
	ID       ID           `json:"id"`
	Name     string       `json:"name"`
	Kind     ReceiverKind `json:"kind"`
	Client   ID           `json:"client,omitempty"` // only sessions of this client; empty: all
	URL      string       `json:"url"`              // https, where it listens
	Audience string       `json:"audience"`         // aud of what it gets
	Roots    [][]byte     `json:"roots,omitempty"`  // certificates, DER, that vouch for it; empty: those of the server's system
	Created  time.Time    `json:"created"`
	Revision uint64       `json:"revision"`
}

// ReceiverKind is what a receiver understands.
type ReceiverKind string

// The kinds of receivers.
const (
	LogoutReceiver ReceiverKind = "backchannel-logout" // OpenID Connect Back-Channel Logout 1.0
	CAEPReceiver   ReceiverKind = "caep"               // Shared Signals, CAEP session-revoked, by push (RFC 8935)
)
