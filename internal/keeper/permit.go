package keeper

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/state"
)

// Reasons of refusals that are not policy's.
const (
	reasonPrincipal   = "principal"   // unknown or revoked, or its certificate is
	reasonBinding     = "binding"     // the principal is bound to another key, or its device is not trusted any more
	reasonNoKey       = "no-key"      // a grant would allow it, but there is no such key
	reasonRate        = "rate"        // the grant's token bucket is empty
	reasonCount       = "count"       // the grant's count is used up
	reasonInvocations = "invocations" // the version's invocation limit is reached
)

// ask is one request at the door.
type ask struct {
	op         claviger.Operation
	key        string // as the caller names it
	context    Context
	structured *policy.Structured
	format     state.Format // of tokens; "" for other uses
	count      int
	digest     string      // SHA-256 over the inputs
	session    *sessionAsk // of a session or a token; no key has a part in it then
}

// permit says that a use was authorised: by whom, with which versions, under
// which grant, and at which revision of the state. Only authorise makes one.
type permit struct {
	by       claviger.Principal
	ask      ask
	state    *keyState
	allowed  policy.Allowance
	revision uint64
	tally    *tally
	on       snapshot // of a session or a token
}

// tally notes what a use did, for the record and the counts.
type tally struct {
	versions []used
	first    [2]used // where versions lie: mostly there is one
	invalid  uint64  // items that were not valid or not authentic
}

// used is how many operations matched or used a version.
type used struct {
	version uint32
	n       uint64
}

func newTally() *tally {
	t := new(tally)
	t.versions = t.first[:0]
	return t
}

// add keeps the versions in their order.
func (t *tally) add(version uint32, n int) {
	i, found := slices.BinarySearchFunc(t.versions, version, func(u used, v uint32) int { return cmp.Compare(u.version, v) })
	if !found {
		t.versions = slices.Insert(t.versions, i, used{version: version})
	}
	t.versions[i].n += uint64(n)
}

// version returns the version that protects, or the newest that processes.
func (p permit) version() *claviger.Version { return p.allowed.Versions[0] }

// material returns the custodian of a key and what it needs to use one version.
func (k *Keeper) material(ctx context.Context, p permit, v *claviger.Version) (User, custody.Material, error) {
	u, err := k.holder(p.state.key.Custodian)
	if err != nil {
		return nil, custody.Material{}, err
	}
	blob, err := k.blob(ctx, p.state, v.Number)
	if err != nil {
		return nil, custody.Material{}, err
	}
	return u, custody.Material{Binding: bindingOf(p.state.key, v.Number, v.Origin), Blob: blob, Fingerprint: v.Fingerprint}, nil
}

func bindingOf(key *claviger.Key, version uint32, origin claviger.Origin) frames.Binding {
	return frames.Binding{KeyID: key.ID, Version: version, Algorithm: key.Algorithm, Recipe: key.Recipe, Origin: origin}
}

// authorise decides and takes budgets. It refuses with exactly one record.
func (k *Keeper) authorise(ctx context.Context, by claviger.Principal, a ask) (permit, error) {
	if a.session != nil {
		return k.authoriseSession(ctx, by, a)
	}
	s, err := k.snapshot(ctx, string(by.ID), a.key)
	if err != nil {
		return permit{}, outward(err)
	}
	now := k.cfg.Now()
	d := k.decide(s, &by, a, now)
	if !d.Allowed && k.moved(ctx, s.revision) {
		if s, err = k.snapshot(ctx, string(by.ID), a.key); err != nil {
			return permit{}, outward(err)
		}
		d = k.decide(s, &by, a, now)
	}
	if !d.Allowed {
		return permit{}, k.refuse(ctx, by, a, s, d)
	}
	allowed, reason, err := k.spend(ctx, s, a, d.Allowances, now)
	if err != nil {
		return permit{}, outward(err)
	}
	if reason != "" {
		d = policy.Decision{Code: claviger.Exhausted, Reason: reason, Grant: d.Grant}
		return permit{}, k.refuse(ctx, by, a, s, d)
	}
	return permit{
		by: by, ask: a, state: s.key, allowed: allowed, revision: s.revision,
		tally: newTally(),
	}, nil
}

// decide asks policy about one use, with the principal as the store has it
// now, and not as it was when the connection was made.
func (k *Keeper) decide(s snapshot, by *claviger.Principal, a ask, now time.Time) policy.Decision {
	if reason := s.principal.admit(by); reason != "" {
		return policy.Decision{Code: claviger.Denied, Reason: reason}
	}
	in := policy.Input{
		Principal: *by, Grants: s.principal.grants, Operation: a.op,
		Audience: a.context.Audience, Purpose: a.context.Purpose,
		Format: string(a.format), Structured: a.structured, Count: a.count, Now: now, MaxAge: k.cfg.MaxAge,
	}
	if s.key != nil {
		in.Key = s.key.key
		return k.policy.Decide(in)
	}
	// Who may not use the key may not learn that there is none.
	name, err := claviger.ParseName(a.key)
	if err != nil {
		return policy.Decision{Code: claviger.Denied, Reason: policy.ReasonNoGrant}
	}
	in.Key = &claviger.Key{Name: name}
	d := k.policy.Decide(in)
	if d.Allowed || d.Reason == policy.ReasonState || d.Reason == policy.ReasonAlgorithm {
		return policy.Decision{Code: claviger.NotFound, Reason: reasonNoKey, Grant: d.Grant}
	}
	return d
}

// spend takes the budgets of the first grant that has enough of all of them.
// It returns the reason when none has.
func (k *Keeper) spend(ctx context.Context, s snapshot, a ask, allowances []policy.Allowance, now time.Time) (policy.Allowance, string, error) {
	reason := reasonCount
	for _, allowed := range allowances {
		g, n := allowed.Grant, uint64(a.count)
		if !k.budgets.takeRate(g, n, now) {
			reason = reasonRate
			continue
		}
		ok, err := k.budgets.take(ctx, grantSubject(g.ID), n, g.Conditions.Count)
		if err != nil {
			return allowed, "", err
		}
		if !ok {
			k.budgets.returnRate(g, n)
			continue
		}
		if a.op.Protects() {
			limit := s.key.key.Settings.MaxInvocations
			if ok, err = k.budgets.take(ctx, versionSubject(s.key.key.ID, allowed.Versions[0].Number), n, limit); err != nil {
				return allowed, "", err
			}
		}
		if ok {
			return allowed, "", nil
		}
		k.budgets.returnRate(g, n)
		k.budgets.put(ctx, grantSubject(g.ID), n)
		reason = reasonInvocations
	}
	return policy.Allowance{}, reason, nil
}

// fresh confirms the revision again. Where the state has changed it decides
// again: withdrawn is refused, replaced is Stale, and either is recorded. So is
// a state that cannot be confirmed any more.
func (k *Keeper) fresh(ctx context.Context, p permit, rec recorded) error {
	unknown := p.tally.invalid > 0 && k.moved(ctx, p.revision) // what is not valid may be of a version that is new
	at, err := k.asOf(ctx)
	if err == nil && at.Number <= p.revision {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordDeadline)
	defer cancel()
	s, err := k.snapshotOf(ctx, p)
	switch {
	case errors.Is(err, claviger.Stale):
		return k.drop(ctx, p, rec, err)
	case err != nil:
		err = claviger.Errorf(claviger.Unavailable, "it could not be confirmed that the use is still allowed", "try again").Wrap(err)
		return k.drop(ctx, p, rec, err)
	}
	by := p.by
	d := k.decideAgain(s, &by, p.ask, k.cfg.Now())
	if !d.Allowed {
		return k.drop(ctx, p, rec, refusal(d))
	}
	if p.ask.session != nil {
		return nil
	}
	for _, allowed := range d.Allowances {
		if unknown && s.key != p.state {
			break
		}
		if allowed.Grant.ID == p.allowed.Grant.ID && covers(allowed.Versions, p.tally.versions) {
			return nil
		}
	}
	return k.drop(ctx, p, rec, claviger.Errorf(claviger.Stale, "the key or the grant was replaced meanwhile", "try again"))
}

// covers reports whether every version that was used is among those permitted.
func covers(permitted []*claviger.Version, versions []used) bool {
	for _, u := range versions {
		if !slices.ContainsFunc(permitted, func(v *claviger.Version) bool { return v.Number == u.version }) {
			return false
		}
	}
	return true
}

// refusal is the error that the caller of a refused request sees.
func refusal(d policy.Decision) error {
	switch d.Reason {
	case reasonPrincipal:
		return claviger.Errorf(d.Code, "the principal or its certificate is unknown or revoked", "ask an operator; a new enrolment code brings a new certificate")
	case reasonBinding:
		return claviger.Errorf(d.Code, "the device that the principal is bound to is not trusted any more: its state was copied or rolled back",
			"an operator looks into it with 'claviger principal show', and makes a new enrolment code for a device that can be trusted")
	case reasonNoKey:
		return claviger.Errorf(d.Code, "there is no key of that name", "check the name with 'claviger key list'")
	case reasonRate:
		return claviger.Errorf(d.Code, "the grant's rate is used up", "slow down and try again")
	case reasonCount:
		return claviger.Errorf(d.Code, "the grant's count is used up", "ask an operator for a new grant")
	case reasonInvocations:
		return claviger.Errorf(d.Code, "the version has reached its invocation limit", "rotate the key")
	}
	if err := sessionRefusal(d); err != nil {
		return err
	}
	return d.Err()
}
