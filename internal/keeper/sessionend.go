package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/store"
)

// EndReason says why a session ends.
type EndReason string

// The reasons.
const (
	EndLogout    EndReason = "logout"          // the subject logged out
	EndUpstream  EndReason = "upstream-logout" // the OpenID provider said so
	EndClosed    EndReason = "closed"          // its opener or an operator closed it
	EndExpired   EndReason = "expired"         // its time is over
	EndIdle      EndReason = "idle"            // it was not used for too long
	EndSource    EndReason = "source"          // it was used from elsewhere
	EndAbuse     EndReason = "abuse"           // the rules against abuse
	EndRefresh   EndReason = "refresh-reuse"   // a refresh token was presented twice
	EndPrincipal EndReason = "principal"       // who opened it was revoked
	EndClient    EndReason = "client"          // its client was disabled
	EndExposure  EndReason = "exposure"        // its key was seen outside
)

// End is why sessions end.
type End struct {
	Reason EndReason
	Text   string // of whoever ends them; at most 256 bytes
}

func (e End) String() string {
	if e.Text == "" {
		return string(e.Reason)
	}
	return string(e.Reason) + ": " + e.Text
}

// SessionEnded is what receivers are told of the end of a session.
type SessionEnded struct {
	Session  claviger.ID      `json:"session"`
	Client   claviger.ID      `json:"client"`
	Subject  claviger.Subject `json:"subject"`
	Reason   EndReason        `json:"reason"`
	By       string           `json:"by"` // kind of who ended it: "system", "operator", ...
	At       time.Time        `json:"at"`
	JKT      string           `json:"jkt"`
	Upstream string           `json:"upstream,omitempty"` // the OpenID provider's own id of the session
}

// endAtOnce is how many sessions one transaction ends.
const endAtOnce = 100

// System is the Keeper as who ends sessions by itself: for an OpenID provider
// that says so, for time, for abuse. Nobody can call as it.
func (k *Keeper) System() claviger.Principal { return k.self() }

func (k *Keeper) isSelf(by claviger.Principal) bool { return by.ID == "" && by.Kind == k.self().Kind }

// EndSession ends a session in one transaction: the handle is revoked, refresh
// tokens are dead, the wrapped key is erased, every receiver is going to be
// told, and the record stands in the outbox. When it has returned, the key
// signs nothing any more. It is for who opened the session, and for who may
// manage those of its client. To end one that has ended is no error.
func (k *Keeper) EndSession(ctx context.Context, by claviger.Principal, id claviger.ID, why End) error {
	if err := checkText("reason", why.Text); err != nil {
		return err
	}
	if _, err := k.mayManage(ctx, &by, id, "session.end"); err != nil {
		return err
	}
	_, err := k.end(ctx, by, why, func(tx *store.Tx) ([]claviger.Session, error) {
		s, err := tx.Session(id)
		return []claviger.Session{s}, err
	})
	return outward(err)
}

// EndSessions ends every session of a query and returns how many. It is for
// who may manage sessions, and ends those of any other caller that it opened.
func (k *Keeper) EndSessions(ctx context.Context, by claviger.Principal, q SessionQuery, why End) (n int, err error) {
	if err := checkText("reason", why.Text); err != nil {
		return 0, err
	}
	if q.Client == "" && q.Principal == "" && q.Subject == "" && q.UpstreamSID == "" && q.JKT == "" {
		return 0, claviger.Errorf(claviger.Invalid, "nothing says whose sessions end", "name a subject, a client or a principal")
	}
	switch {
	case k.isSelf(by):
	case q.Principal == by.ID:
		err = k.known(ctx, &by)
	default:
		c := change{op: claviger.ManageSessions, action: "session.end", reason: why.Text}
		if s, err := k.sessionSnapshot(ctx, by.ID, string(q.Client), ""); err == nil && s.client != nil {
			c.stub = &claviger.Key{Name: s.client.Name}
		}
		_, err = k.permitChange(ctx, &by, c)
	}
	if err != nil {
		return 0, err
	}
	q.Ended, q.Limit, q.After = false, endAtOnce, ""
	return k.endAll(ctx, by, why, func(tx *store.Tx) ([]claviger.Session, error) {
		list, _, err := tx.Sessions(q)
		return list, err
	})
}

// endAll ends what pick chooses, some at once, until there is no more.
func (k *Keeper) endAll(ctx context.Context, by claviger.Principal, why End, pick func(*store.Tx) ([]claviger.Session, error)) (n int, err error) {
	for {
		ended, err := k.end(ctx, by, why, pick)
		n += ended
		if err != nil || ended < endAtOnce {
			return n, outward(err)
		}
	}
}

// mayManage lets a caller at a session: who opened it, who may manage those of
// its client, and the Keeper. A refusal is recorded; who may not see the
// session does not learn that there is one.
func (k *Keeper) mayManage(ctx context.Context, by *claviger.Principal, id claviger.ID, action string) (snapshot, error) {
	s, err := k.sessionSnapshot(ctx, by.ID, "", id)
	if err != nil {
		return s, outward(err)
	}
	if k.isSelf(*by) && s.session != nil {
		return s, nil
	}
	a := ask{session: &sessionAsk{action: action, id: id}}
	d := policy.Decision{Code: claviger.NotFound, Reason: reasonNoSession}
	switch reason := s.principal.admit(by); {
	case reason != "":
		d = policy.Decision{Code: claviger.Denied, Reason: reason}
	case s.session == nil || s.client == nil:
	case s.session.session.Principal == by.ID:
		return s, nil
	default:
		got := k.decideChange(s, by, manages(s.client))
		if got.Allowed {
			return s, nil
		}
		d.Grant = got.Grant
	}
	return s, k.deny(ctx, k.sessionRecord(*by, a, s, policy.Allowance{}), d)
}

// manages is the right to manage the sessions of a client.
func manages(c *claviger.Client) change {
	return change{op: claviger.ManageSessions, stub: &claviger.Key{Name: c.Name}}
}

// end ends the sessions that pick chooses inside the transaction, and returns
// how many had not ended before.
func (k *Keeper) end(ctx context.Context, by claviger.Principal, why End, pick func(*store.Tx) ([]claviger.Session, error)) (int, error) {
	var ended []claviger.Session
	var records []*audit.Record
	var seqs []uint64
	err := k.update(ctx, func(tx *store.Tx) ([]claviger.ID, error) {
		ended, records, seqs = nil, nil, nil
		var touched []claviger.ID
		sessions, err := pick(tx)
		if err != nil {
			return nil, err
		}
		for _, s := range sessions {
			if s.State == claviger.SessionEnded {
				continue
			}
			r, err := k.endOne(tx, by, s, why)
			if err != nil {
				return nil, err
			}
			seq, err := k.pushRecord(tx, r)
			if err != nil {
				return nil, err
			}
			ended, records, seqs, touched = append(ended, s), append(records, r), append(seqs, seq), append(touched, s.ID)
		}
		failpoint.Hit(failpoint.SessionOutbox)
		return touched, nil
	})
	if err != nil || len(ended) == 0 {
		return 0, err
	}
	failpoint.Hit(failpoint.SessionCommitted)
	for _, s := range ended {
		k.budgets.forget(s.ID)
		if s.KeyKind == claviger.CustodyKey {
			k.unloadSession(ctx, &s)
		}
	}
	if err := k.append(ctx, records...); err != nil {
		return len(ended), claviger.Errorf(claviger.Unavailable, "the session has ended, but that could not be recorded yet",
			"it is recorded as soon as the audit log recovers").Wrap(err)
	}
	for _, seq := range seqs {
		k.outbox.done(seq)
	}
	return len(ended), nil
}

// endOne writes the end of one session.
func (k *Keeper) endOne(tx *store.Tx, by claviger.Principal, s claviger.Session, why End) (*audit.Record, error) {
	now := k.cfg.Now().UTC().Truncate(time.Millisecond)
	if why.Reason == EndExpired && now.Before(s.Ends) {
		why.Reason = EndIdle
	}
	s.State, s.EndReason, s.Ended = claviger.SessionEnded, why.String(), now
	if err := tx.UpdateSession(s); err != nil {
		return nil, err
	}
	dead, err := tx.DropRefresh(s.ID)
	if err != nil {
		return nil, err
	}
	if err := tx.EraseSessionBlob(s.ID); err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.SessionErase)
	if s.MaxUses > 0 {
		if err := tx.DropBudget(sessionSubject(s.ID).String()); err != nil {
			return nil, err
		}
	}
	told, err := announce(tx, SessionEnded{Session: s.ID, Client: s.Client, Subject: s.Subject, Reason: why.Reason,
		By: string(by.Kind), At: now, JKT: s.JKT, Upstream: s.UpstreamSID})
	if err != nil {
		return nil, err
	}
	r := k.newRecord(by, "session.end")
	r.Reason, r.Algorithm = why.String(), s.Algorithm
	addDetailText(r, "session", string(s.ID))
	addDetailText(r, "client", string(s.Client))
	addSubject(r, s.Subject)
	addDetail(r, "refresh_tokens", uint64(dead))
	addDetail(r, "receivers", told)
	return r, nil
}

// pushRecord puts a record into the outbox, to be appended after the commit.
func (k *Keeper) pushRecord(tx *store.Tx, r *audit.Record) (uint64, error) {
	addDetailText(r, outboxDetail, string(claviger.NewID(r.Time)))
	line, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	return tx.PushOutbox(line)
}

// unloadSession has the key process forget the key of a session that ended.
func (k *Keeper) unloadSession(ctx context.Context, s *claviger.Session) {
	m, err := sessionMaterial(s)
	if err == nil { // with another it could not be used either
		k.unload(context.WithoutCancel(ctx), claviger.Soft, m)
	}
}

// endOverdue ends a session whose time is over, unless the store says that it
// was used through another server; it reports whether it did.
func (k *Keeper) endOverdue(ctx context.Context, id claviger.ID, why End) (bool, error) {
	n, err := k.end(ctx, k.self(), why, func(tx *store.Tx) ([]claviger.Session, error) {
		s, err := tx.Session(id)
		if err != nil || why.Reason == EndIdle && !k.overdue(s, k.cfg.Now()) {
			return nil, err
		}
		return []claviger.Session{s}, nil
	})
	return n > 0, err
}

// overdue reports whether a session as read from the store is over, with the
// uses that are not written yet.
func (k *Keeper) overdue(s claviger.Session, now time.Time) bool {
	s = k.counted(s)
	return !now.Before(s.IdleEnd())
}

// SuspendSession stops the use of a session until it is resumed.
func (k *Keeper) SuspendSession(ctx context.Context, by claviger.Principal, id claviger.ID, reason string) error {
	return k.setSession(ctx, by, id, claviger.SessionSuspended, reason)
}

// ResumeSession lets a suspended session be used again. It is for who may
// manage sessions of its client, and not for who opened it.
func (k *Keeper) ResumeSession(ctx context.Context, by claviger.Principal, id claviger.ID, reason string) error {
	return k.setSession(ctx, by, id, claviger.SessionLive, reason)
}

// setSession suspends or resumes a session.
func (k *Keeper) setSession(ctx context.Context, by claviger.Principal, id claviger.ID, to claviger.SessionState, reason string) error {
	if err := checkText("reason", reason); err != nil {
		return err
	}
	action, from := "session.suspend", claviger.SessionLive
	if to == claviger.SessionLive {
		action, from = "session.resume", claviger.SessionSuspended
	}
	s, err := k.mayManage(ctx, &by, id, action)
	if err != nil {
		return err
	}
	if to == claviger.SessionLive && !k.isSelf(by) {
		if d := k.decideChange(s, &by, manages(s.client)); !d.Allowed {
			return k.deny(ctx, k.sessionRecord(by, ask{session: &sessionAsk{action: action, id: id}}, s, policy.Allowance{}), d)
		}
	}
	return outward(k.commit(ctx, by, change{action: action, reason: reason, apply: func(tx *store.Tx, e *effect) error {
		s, err := tx.Session(id)
		if err != nil {
			return err
		}
		if s.State != from {
			return claviger.Errorf(claviger.Conflict, "the session is "+string(s.State), "look at it with 'claviger session show'")
		}
		s.State, s.EndReason = to, reason
		e.touched = append(e.touched, id)
		e.detail("session", string(id))
		addSubject(e.record, s.Subject)
		return tx.UpdateSession(s)
	}}, nil, nil))
}

// sweepSessions ends sessions whose time is over, and those that are left of
// clients and principals that are gone, and forgets what ended long ago.
func (k *Keeper) sweepSessions(ctx context.Context, now time.Time) error {
	for why, pick := range map[EndReason]func(*store.Tx) ([]claviger.Session, error){
		EndExpired: func(tx *store.Tx) ([]claviger.Session, error) {
			list, err := tx.ExpiredSessions(now, endAtOnce)
			return slices.DeleteFunc(list, func(s claviger.Session) bool { return !k.overdue(s, now) }), err
		},
		EndClient:    func(tx *store.Tx) ([]claviger.Session, error) { return tx.SessionsOfDisabled(endAtOnce) },
		EndPrincipal: func(tx *store.Tx) ([]claviger.Session, error) { return tx.SessionsOfRevoked(endAtOnce) },
	} {
		if _, err := k.endAll(ctx, k.self(), End{Reason: why}, pick); err != nil {
			return err
		}
	}
	return k.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.DropSessions(now.Add(-keepEnded), store.MaxLimit)
		return errors.Join(err, tx.TrimOneTimes(now))
	})
}
