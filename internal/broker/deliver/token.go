package deliver

import (
	"encoding/json"
	"fmt"
	"time"

	"claviger.dev"
	"claviger.dev/internal/keeper"
)

// The types of the events.
const (
	logoutEvent  = "http://schemas.openid.net/event/backchannel-logout"
	revokedEvent = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
)

// logoutLifetime is how long a logout token is good. It is made anew for each
// try, so that it only has to last for one, and for clocks that differ.
const logoutLifetime = 2 * time.Minute

// token is a JWT before it is signed.
type token struct {
	typ    string
	claims []byte
}

// newToken returns what a receiver is told of the end of a session.
func newToken(issuer string, r claviger.Receiver, d keeper.Delivery, now time.Time) (token, error) {
	claims := map[string]any{"iss": issuer, "aud": r.Audience, "jti": string(d.ID), "iat": now.Unix()}
	typ, e := "", d.End
	switch r.Kind {
	case claviger.LogoutReceiver: // OpenID Connect Back-Channel Logout 1.0, 2.4
		typ = keeper.LogoutToken
		claims["exp"] = now.Add(logoutLifetime).Unix()
		claims["sid"] = string(e.Session)
		if e.Subject.ID != "" {
			claims["sub"] = e.Subject.ID
		}
		claims["events"] = map[string]any{logoutEvent: struct{}{}}
	case claviger.CAEPReceiver: // RFC 8417; of SSF 1.0, with neither exp nor sub
		typ = keeper.SecurityEvent
		claims["sub_id"] = subjectOf(issuer, e)
		claims["events"] = map[string]any{revokedEvent: map[string]any{
			"event_timestamp":   e.At.Unix(),
			"initiating_entity": initiator(e),
			"reason_admin":      map[string]string{"en": string(e.Reason)},
		}}
	default:
		return token{}, claviger.Errorf(claviger.Invalid, "a receiver is of no kind that is known", "remove it, and add it again")
	}
	b, err := json.Marshal(claims)
	if err != nil {
		return token{}, fmt.Errorf("encode claims: %w", err)
	}
	return token{typ: typ, claims: b}, nil
}

// subjectOf names the session and, where there is one, its person (RFC 9493;
// SSF 1.0, 3.2).
func subjectOf(issuer string, e keeper.SessionEnded) map[string]any {
	subject := map[string]any{"format": "complex", "session": map[string]any{"format": "opaque", "id": string(e.Session)}}
	if e.Subject.ID != "" {
		from := e.Subject.Issuer
		if from == "" {
			from = issuer
		}
		subject["user"] = map[string]any{"format": "iss_sub", "iss": from, "sub": e.Subject.ID}
	}
	return subject
}

// initiator is who ended a session, in CAEP's words (CAEP 1.0, 2).
func initiator(e keeper.SessionEnded) string {
	switch e.Reason {
	case keeper.EndLogout, keeper.EndUpstream:
		return "user"
	case keeper.EndExpired, keeper.EndIdle, keeper.EndSource, keeper.EndAbuse, keeper.EndRefresh:
		return "policy"
	}
	if e.By == string(claviger.Operator) {
		return "admin"
	}
	return "system"
}
