package keeper

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"

	"claviger.dev"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/store"
)

// errBoundAlready says that a session was bound to this very key before.
var errBoundAlready = errors.New("bound already")

// BindSession notes that the application's cookie of a session is bound to a
// key of the device (Device Bound Session Credentials), by the key's RFC 7638
// thumbprint in base64url. It is for who opened the session and for its
// client's principal, while the session is live. A session is bound once:
// another key is claviger.Conflict, and the same one is no error.
func (k *Keeper) BindSession(ctx context.Context, by claviger.Principal, id claviger.ID, thumbprint string) error {
	if b, err := base64.RawURLEncoding.Strict().DecodeString(thumbprint); err != nil || len(b) != sha256.Size || len(thumbprint) != 43 {
		return claviger.Errorf(claviger.Invalid, "the thumbprint is no SHA-256 in base64url", "send the RFC 7638 thumbprint of the key, 43 characters")
	}
	s, err := k.sessionSnapshot(ctx, by.ID, "", id)
	if err != nil {
		return outward(err)
	}
	if d := k.decideBind(s, &by, thumbprint); !d.Allowed {
		a := ask{session: &sessionAsk{action: "session.bind", id: id, detail: map[string]string{"dbsc": thumbprint}}}
		return k.deny(ctx, k.sessionRecord(by, a, s, policy.Allowance{}), d)
	}
	err = k.commit(ctx, by, change{action: "session.bind", apply: func(tx *store.Tx, e *effect) error {
		s, err := tx.Session(id)
		switch {
		case err != nil:
			return err
		case s.DBSC == thumbprint:
			return errBoundAlready
		case s.DBSC != "":
			return refusal(policy.Decision{Code: claviger.Conflict, Reason: reasonBound})
		case s.State != claviger.SessionLive:
			return claviger.Errorf(claviger.Denied, "the session is "+string(s.State), "look at it with 'claviger session show'")
		}
		s.DBSC = thumbprint
		e.touched = append(e.touched, id)
		e.detail("session", string(id))
		e.detail("dbsc", thumbprint)
		addSubject(e.record, s.Subject)
		return tx.UpdateSession(s)
	}}, nil, nil)
	if errors.Is(err, errBoundAlready) {
		return nil
	}
	return outward(err)
}

// decideBind decides who may say to which key a session's cookie is bound.
func (k *Keeper) decideBind(s snapshot, by *claviger.Principal, thumbprint string) policy.Decision {
	if reason := s.principal.admit(by); reason != "" {
		return policy.Decision{Code: claviger.Denied, Reason: reason}
	}
	if s.session == nil || s.client == nil || by.ID != s.session.session.Principal && by.ID != s.client.Principal {
		return policy.Decision{Code: claviger.NotFound, Reason: reasonNoSession}
	}
	if have := s.session.session.DBSC; have != "" && have != thumbprint {
		return policy.Decision{Code: claviger.Conflict, Reason: reasonBound}
	}
	return live(s, k.cfg.Now())
}
