package keeper

import (
	"context"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/policy"
)

// useSession is the use of a session's key by who opened it. It is no grant.
const useSession claviger.Operation = "use-session"

// Reasons of refusals that concern clients and sessions.
const (
	reasonNoClient  = "no-client"         // there is none, or it is another principal's
	reasonClient    = "client-disabled"   // it takes no more sessions and tokens
	reasonScope     = "client-scope"      // an audience or a scope that the client is not registered for
	reasonNoSession = "no-session"        // there is none, or another principal opened it
	reasonEnded     = "session-ended"     // it never returns
	reasonSuspended = "session-suspended" // until somebody resumes it
	reasonExpired   = "session-expired"   // its time is over
	reasonIdle      = "session-idle"      // it was not used for too long
	reasonLimits    = "session-limits"    // an audience or a method that it is not for
	reasonSource    = "session-source"    // used from elsewhere than it was opened from
	reasonUses      = "session-uses"      // its key was used as often as it may be
	reasonPace      = "session-rate"      // its key is used too fast
	reasonGuard     = "session-guard"     // the rules against abuse refuse it
	reasonNoKeyHere = "session-key"       // its key is not in custody
	reasonBound     = "session-bound"     // its cookie is bound to another key of a device
)

// sessionAsk is what a request about a session or a token has beside an ask.
type sessionAsk struct {
	action    string      // of the record
	client    string      // by id or name; "": the session's
	id        claviger.ID // of the session; "" for none
	audiences []string    // what it is for; patterns, of a session that is opened
	scopes    []string
	method    string          // of HTTP, where there is one
	kind      string          // of a statement
	source    claviger.Source // as the caller tells it; zero: the connection's own
	detail    map[string]string
}

// from is where a request comes from.
func (a *sessionAsk) from(by claviger.Principal) claviger.Source {
	if a.source.Address.IsValid() {
		return a.source
	}
	return claviger.Source{Address: by.Facts.Source, UserAgent: a.source.UserAgent}
}

// snapshotOf reads again what a permit rests on.
func (k *Keeper) snapshotOf(ctx context.Context, p permit) (snapshot, error) {
	if a := p.ask.session; a != nil {
		return k.sessionSnapshot(ctx, p.by.ID, a.client, a.id)
	}
	return k.snapshot(ctx, string(p.by.ID), p.ask.key)
}

// decideAgain decides what was decided once.
func (k *Keeper) decideAgain(s snapshot, by *claviger.Principal, a ask, now time.Time) policy.Decision {
	if a.session != nil {
		return k.decideSession(s, by, a, now)
	}
	return k.decide(s, by, a, now)
}

// authoriseSession decides about a session or a token and takes budgets. It
// refuses with exactly one record, and ends a session whose time is over.
func (k *Keeper) authoriseSession(ctx context.Context, by claviger.Principal, a ask) (permit, error) {
	s, err := k.sessionSnapshot(ctx, by.ID, a.session.client, a.session.id)
	if err != nil {
		return permit{}, outward(err)
	}
	now := k.cfg.Now()
	d := k.decideSession(s, &by, a, now)
	again := !d.Allowed && k.moved(ctx, s.revision)
	if why, over := endOf(d, s); over && !again {
		ended, err := k.endOverdue(ctx, a.session.id, why)
		if err != nil {
			return permit{}, outward(err)
		}
		if again = !ended; again {
			k.cache.forgetSession(a.session.id)
		}
	}
	if again {
		if s, err = k.sessionSnapshot(ctx, by.ID, a.session.client, a.session.id); err != nil {
			return permit{}, outward(err)
		}
		d = k.decideSession(s, &by, a, now)
	}
	d = k.judgeUse(ctx, s, by, a, d, SessionUse{Kind: a.session.kind, Audiences: a.session.audiences, Method: a.session.method,
		Source: a.session.from(by), At: now})
	if !d.Allowed {
		return permit{}, k.deny(ctx, k.sessionRecord(by, a, s, policy.Allowance{}), d)
	}
	allowed, reason, err := k.spendSession(ctx, s, a, d, now)
	if err != nil {
		return permit{}, outward(err)
	}
	if reason != "" {
		d = policy.Decision{Code: claviger.Exhausted, Reason: reason, Grant: d.Grant}
		return permit{}, k.deny(ctx, k.sessionRecord(by, a, s, policy.Allowance{}), d)
	}
	return permit{by: by, ask: a, on: s, allowed: allowed, revision: s.revision, tally: &tally{}}, nil
}

// decideSession decides from what is known of the principal, the client and
// the session.
func (k *Keeper) decideSession(s snapshot, by *claviger.Principal, a ask, now time.Time) policy.Decision {
	denied := func(reason string) policy.Decision { return policy.Decision{Code: claviger.Denied, Reason: reason} }
	if reason := s.principal.admit(by); reason != "" {
		return denied(reason)
	}
	if a.session.id != "" {
		if reason := admitSession(s, by, a, now); reason != "" {
			d := denied(reason)
			if reason == reasonNoSession {
				d.Code = claviger.NotFound
			}
			return d
		}
	}
	switch c := s.client; {
	case c == nil || c.Principal != by.ID:
		// Who may not use a client learns as little of one that there is.
		return policy.Decision{Code: claviger.NotFound, Reason: reasonNoClient}
	case !c.Disabled.IsZero():
		return denied(reasonClient)
	case a.op == useSession:
		return policy.Decision{Allowed: true, Allowances: []policy.Allowance{{}}}
	case slices.ContainsFunc(a.session.audiences, func(audience string) bool { return !claviger.MatchAudience(c.Audiences, audience) }),
		slices.ContainsFunc(a.session.scopes, func(scope string) bool { return !slices.Contains(c.Scopes, scope) }):
		return denied(reasonScope)
	}
	return k.decideOpen(s, by, a, now)
}

// decideOpen asks policy whether the principal may open sessions of the client
// for each of the audiences.
func (k *Keeper) decideOpen(s snapshot, by *claviger.Principal, a ask, now time.Time) policy.Decision {
	in := policy.Input{Principal: *by, Grants: s.principal.grants, Operation: claviger.OpenSession,
		Key: &claviger.Key{Name: s.client.Name}, Count: 1, Now: now, MaxAge: k.cfg.MaxAge}
	if len(a.session.audiences) == 0 {
		return k.policy.Decide(in)
	}
	var first policy.Decision
	for i, audience := range a.session.audiences {
		in.Audience = audience
		d := k.policy.Decide(in)
		if !d.Allowed {
			return d
		}
		if i == 0 {
			first = d
		}
	}
	return first
}

// admitSession says why a session may not be used, "" when it may.
func admitSession(s snapshot, by *claviger.Principal, a ask, now time.Time) (reason string) {
	if s.session == nil || s.session.session.Principal != by.ID {
		return reasonNoSession
	}
	session := s.session.current()
	if s.client == nil || session.Client != s.client.ID {
		return reasonNoSession
	}
	switch {
	case session.State == claviger.SessionEnded:
		return reasonEnded
	case !now.Before(session.Ends):
		return reasonExpired
	case !now.Before(session.IdleEnd()):
		return reasonIdle
	case session.State != claviger.SessionLive:
		return reasonSuspended
	case a.op == useSession && session.KeyKind != claviger.CustodyKey:
		return reasonNoKeyHere
	}
	for _, audience := range a.session.audiences {
		if !session.Permits(audience, a.session.method) {
			return reasonLimits
		}
	}
	if slices.ContainsFunc(a.session.scopes, func(scope string) bool { return !slices.Contains(session.Scopes, scope) }) {
		return reasonLimits
	}
	if opened, from := session.Source, a.session.from(*by); session.SourceChanges != claviger.SourceAllowed && opened.Address.IsValid() &&
		(from.Address.Unmap() != opened.Address.Unmap() || opened.UserAgent != "" && from.UserAgent != "" && from.UserAgent != opened.UserAgent) {
		return reasonSource
	}
	return ""
}

// endOf says whether a refusal ends the session, and as what.
func endOf(d policy.Decision, s snapshot) (End, bool) {
	switch {
	case d.Allowed:
	case d.Reason == reasonExpired:
		return End{Reason: EndExpired}, true
	case d.Reason == reasonIdle:
		return End{Reason: EndIdle}, true
	case d.Reason == reasonSource && s.session.session.SourceChanges == claviger.SourceEnds:
		return End{Reason: EndSource}, true
	}
	return End{}, false
}

// spendSession takes the budgets of the session's key, and of a grant.
func (k *Keeper) spendSession(ctx context.Context, s snapshot, a ask, d policy.Decision, now time.Time) (policy.Allowance, string, error) {
	if s.session != nil {
		session := &s.session.session
		if !k.budgets.takeTokens(session.ID, session.Rate, 1, now) {
			return policy.Allowance{}, reasonPace, nil
		}
		ok, err := k.budgets.take(ctx, sessionSubject(session.ID), 1, session.MaxUses)
		if err != nil || !ok {
			return policy.Allowance{}, reasonUses, err
		}
	}
	if d.Grant == nil {
		return policy.Allowance{}, "", nil
	}
	return k.spend(ctx, s, a, d.Allowances, now)
}

func sessionSubject(id claviger.ID) subject { return subject{kind: "session", id: id} }

// sessionRecord starts a record about a session or a token.
func (k *Keeper) sessionRecord(by claviger.Principal, a ask, s snapshot, allowed policy.Allowance) *audit.Record {
	r := k.newRecord(by, a.session.action)
	r.Count, r.Digest = a.count, a.digest
	if allowed.Grant != nil {
		r.Grant = allowed.Grant.ID
	}
	if s.client != nil {
		addDetailText(r, "client", string(s.client.Name))
	} else {
		addDetailText(r, "asked", a.session.client)
	}
	addDetailText(r, "session", string(a.session.id))
	if s.session != nil {
		r.Algorithm = s.session.session.Algorithm
		addSubject(r, s.session.session.Subject)
	}
	addDetailText(r, "audience", strings.Join(a.session.audiences, " "))
	addDetailText(r, "scope", strings.Join(a.session.scopes, " "))
	addDetailText(r, "method", a.session.method)
	addDetailText(r, "kind", a.session.kind)
	for name, text := range a.session.detail {
		addDetailText(r, name, text)
	}
	return r
}

func addSubject(r *audit.Record, of claviger.Subject) {
	addDetailText(r, "issuer", of.Issuer)
	addDetailText(r, "subject", of.ID)
}

// sessionRefusal is the error that the caller sees of a refusal that concerns
// a client or a session; nil for any other.
func sessionRefusal(d policy.Decision) error {
	text, hint := "", "open a new session"
	switch d.Reason {
	case reasonNoClient:
		text, hint = "there is no such client, or it is another principal's", "list the clients with 'claviger client list'"
	case reasonClient:
		text, hint = "the client is disabled", "ask an operator"
	case reasonScope:
		text, hint = "the client is not registered for the audience or the scope", "look at it with 'claviger client show'"
	case reasonNoSession:
		text, hint = "there is no such session", "list the sessions with 'claviger session list'"
	case reasonEnded, reasonExpired, reasonIdle:
		text = "the session has ended"
	case reasonSuspended:
		text, hint = "the session is suspended", "ask an operator, who resumes it with 'claviger session resume'"
	case reasonLimits:
		text, hint = "the session is not for this audience, method or scope", "look at it with 'claviger session show'"
	case reasonSource:
		text = "the session is used from elsewhere than it was opened from"
	case reasonUses:
		text = "the session's key was used as often as it may be"
	case reasonPace:
		text, hint = "the session's key is used too fast", "slow down and try again"
	case reasonGuard:
		text, hint = "this use of the session looks like abuse", "ask an operator; the audit record of this request has the reason"
	case reasonNoKeyHere:
		text, hint = "the session's key is not in custody", "prove possession with the key where it is"
	case reasonBound:
		text = "the session's cookie is bound to another key"
	default:
		return nil
	}
	return claviger.Errorf(d.Code, text, hint)
}
