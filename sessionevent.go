package claviger

import "slices"

// SessionEvent is something about the use of a session's key that neither its
// limits nor its past explain. Each is recorded and counted; a client may have
// its sessions suspended for it.
type SessionEvent string

// The events of sessions.
const (
	UseVolume          SessionEvent = "volume"           // many more uses in a minute than the session's own past has
	UseStaleNonce      SessionEvent = "stale-nonce"      // many proofs with a nonce that has ended: minted ahead of time
	UseSourceChange    SessionEvent = "source-change"    // from an address that was not seen with it lately
	UseForeignAudience SessionEvent = "foreign-audience" // for whom it is not
	UseForeignMethod   SessionEvent = "foreign-method"   // with an HTTP method that it is not for
	UseOverBudget      SessionEvent = "over-budget"      // more uses than it has
	UseOverRate        SessionEvent = "over-rate"        // faster than it may
	UseAfterIdle       SessionEvent = "use-after-idle"   // after it was not used for too long
	UseAfterEnd        SessionEvent = "use-after-end"    // after a logout, or its last moment
)

// SessionEvents lists the events.
var SessionEvents = []SessionEvent{UseVolume, UseStaleNonce, UseSourceChange, UseForeignAudience, UseForeignMethod,
	UseOverBudget, UseOverRate, UseAfterIdle, UseAfterEnd}

// ParseSessionEvent checks an event that came from outside.
func ParseSessionEvent(s string) (SessionEvent, error) {
	if slices.Contains(SessionEvents, SessionEvent(s)) {
		return SessionEvent(s), nil
	}
	return "", Errorf(Invalid, "there is no such event of sessions", "use one of volume, stale-nonce, source-change, foreign-audience, foreign-method, over-budget, over-rate, use-after-idle, use-after-end")
}
