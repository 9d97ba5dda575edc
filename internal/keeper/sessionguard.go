package keeper

import (
	"context"
	"errors"
	"slices"
	"time"

	"claviger.dev"
	"claviger.dev/internal/policy"
)

// SessionUse is one use of a session, or several alike, as the rules against
// abuse see it.
type SessionUse struct {
	Kind      string // of what was signed: "dpop", "assertion", "jwt", "ssh"; "token" for a token
	Audiences []string
	Method    string // of HTTP; "" where there is none
	Source    claviger.Source
	At        time.Time
	Count     uint64 // 0: one
	Stale     bool   // a proof with a nonce that is no longer good, which was refused for that
}

// UseVerdict is what the rules against abuse say of one use.
type UseVerdict struct {
	Refuse  claviger.SessionEvent   // why it must not be; "" where it may
	Suspend claviger.SessionEvent   // why the session is to be suspended until somebody resumes it; "" where it is not
	End     bool                    // the session ends: it came from elsewhere, and its client wants that
	Events  []claviger.SessionEvent // each of which becomes a record
}

// maxObserved bounds the uses that are reported at once.
const maxObserved = 1_000_000

// judgeUse asks the rules against abuse about a use that is decided. They hear
// of uses that are refused for what the session is, and of none by who may not
// use it at all, who could otherwise have it suspended.
func (k *Keeper) judgeUse(ctx context.Context, s snapshot, by claviger.Principal, a ask, d policy.Decision, u SessionUse) policy.Decision {
	own := []string{reasonEnded, reasonExpired, reasonIdle, reasonLimits, reasonSource}
	if k.cfg.SessionGuard == nil || s.session == nil || !d.Allowed && !slices.Contains(own, d.Reason) {
		return d
	}
	session := s.session.current()
	v := k.cfg.SessionGuard(session, u)
	for _, event := range v.Events {
		k.events.add(string(event))
		r := k.sessionRecord(by, a, s, policy.Allowance{})
		r.Action, r.Reason = "session.event", string(event)
		if u.Source.Address.IsValid() {
			addDetailText(r, "source", u.Source.Address.String())
		}
		k.attempt("record an event of a session", k.append(ctx, r))
	}
	if v.Suspend != "" {
		if err := k.setSession(ctx, k.self(), session.ID, claviger.SessionSuspended, string(v.Suspend)); err != nil && !errors.Is(err, claviger.Conflict) {
			k.attempt("suspend a session", err)
		}
	}
	if v.End {
		_, err := k.endOverdue(ctx, session.ID, End{Reason: EndSource})
		k.attempt("end a session", err)
	}
	// Budgets and rates are the door's own, which knows them over all servers.
	door := v.Refuse == claviger.UseOverBudget || v.Refuse == claviger.UseOverRate
	if d.Allowed && (v.Suspend != "" || v.Refuse != "" && (!door || session.KeyKind != claviger.CustodyKey)) {
		return policy.Decision{Code: claviger.Denied, Reason: reasonGuard, Detail: string(orText(v.Refuse, v.Suspend))}
	}
	return d
}

// ReportedUse is a use of a session that somebody tells of.
type ReportedUse struct {
	Session claviger.ID
	SessionUse
}

// ReportUses tells the rules against abuse what resource servers saw, which
// takes report-uses on the client's name, or to have opened the session: for
// what is told a session may be suspended, or live on. It returns how many it
// took. Of those that it refuses the first is recorded, because whoever lacks a
// grant reports each second; a use that must not have been is taken.
func (k *Keeper) ReportUses(ctx context.Context, by claviger.Principal, uses []ReportedUse) (taken int, err error) {
	refused := false
	for _, u := range uses {
		s, err := k.sessionSnapshot(ctx, by.ID, "", u.Session)
		if err != nil {
			return taken, outward(err)
		}
		if s.session == nil || s.client == nil {
			continue
		}
		d := k.decideChange(s, &by, change{op: claviger.ReportUses, stub: &claviger.Key{Name: s.client.Name}})
		if !d.Allowed && (s.principal.admit(&by) != "" || s.session.session.Principal != by.ID) {
			if !refused {
				refused = true
				a := ask{session: &sessionAsk{action: "session.report", id: u.Session}}
				_ = k.deny(ctx, k.sessionRecord(by, a, s, policy.Allowance{}), d) // the caller learns it from the number
			}
			continue
		}
		_, err = k.ObserveUse(ctx, by, u.Session, u.SessionUse)
		if code := claviger.CodeOf(err); err != nil && code != claviger.Denied && code != claviger.NotFound && code != claviger.Exhausted {
			return taken, err
		}
		taken++
	}
	return taken, nil
}

// ObserveUse is SessionLive for whoever saw a use of the session's key, or a
// proof that was refused: a resource server, or what stands in front of one.
// Keys in browsers and devices sign without passing here, so that this is where
// the rules against abuse hear of them. It counts the use, and answers
// claviger.Denied when it should not have been.
func (k *Keeper) ObserveUse(ctx context.Context, by claviger.Principal, id claviger.ID, u SessionUse) (claviger.Session, error) {
	now := k.cfg.Now()
	s, d, err := k.lookLive(ctx, id, now)
	if err != nil {
		return claviger.Session{}, outward(err)
	}
	if u.At.IsZero() || u.At.After(now) {
		u.At = now
	}
	u.Count = min(max(u.Count, 1), maxObserved)
	if d.Allowed && !u.Stale && s.session.session.KeyKind == claviger.CustodyKey {
		return s.session.current(), nil // the door saw the use when it signed
	}
	if d = k.judgeUse(ctx, s, by, ask{op: useSession, count: int(u.Count), session: &sessionAsk{
		action: "session.event", id: id, audiences: u.Audiences, method: u.Method, kind: u.Kind, source: u.Source,
	}}, d, u); !d.Allowed {
		return claviger.Session{}, liveRefusal(d)
	}
	if !u.Stale {
		k.counts.observe(s.session, u.Count, now)
	}
	return s.session.current(), nil
}
