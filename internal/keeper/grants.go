package keeper

import (
	"context"
	"errors"
	"slices"

	"claviger.dev"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/state"
	"claviger.dev/internal/store"
)

// CreateGrant grants.
func (k *Keeper) CreateGrant(ctx context.Context, by claviger.Principal, req CreateGrant) (GrantView, error) {
	selector, err := claviger.ParseSelector(req.Selector)
	if err != nil {
		return GrantView{}, err
	}
	for _, name := range req.Conditions.Formats {
		if !slices.Contains(state.Formats(), state.Format(name)) {
			return GrantView{}, claviger.Errorf(claviger.Invalid, "there is no such format", "list the formats with 'claviger state formats'")
		}
	}
	now := k.cfg.Now().UTC()
	g := claviger.Grant{
		ID: claviger.NewID(now), Selector: selector, Conditions: req.Conditions, Reason: req.Reason,
		Created: now, CreatedBy: by.ID, Revision: 1,
	}
	for _, text := range req.Operations {
		op, err := claviger.ParseOperation(text)
		if err != nil {
			return GrantView{}, err
		}
		g.Operations = append(g.Operations, op)
	}
	var name string
	err = k.change(ctx, by, change{op: claviger.ManageGrants, action: "grant.create", on: selector, reason: req.Reason, apply: func(tx *store.Tx, e *effect) error {
		principal, err := tx.Principal(req.Principal)
		if err != nil {
			return err
		}
		if !principal.Revoked.IsZero() {
			return claviger.Errorf(claviger.Invalid, "the principal is revoked", "grant to another one")
		}
		if env := selector.Environment(); !mayUse(principal, env) {
			return claviger.Errorf(claviger.Invalid, "the principal may use no keys of the environment '"+env+"'", "grant to one that was made with this environment")
		}
		g.Principal, name = principal.ID, principal.Name
		if err := policy.Validate(g); err != nil {
			return err
		}
		e.record.Grant, e.touched = g.ID, append(e.touched, principal.ID)
		e.detail("principal", name)
		e.detail("operations", joinOperations(g.Operations))
		return tx.InsertGrant(g)
	}})
	if err != nil {
		return GrantView{}, err
	}
	return GrantView{Grant: g, PrincipalName: name}, nil
}

// mayUse reports whether a grant on an environment, or on "*", could ever
// allow the principal anything.
func mayUse(p claviger.PrincipalRecord, env string) bool {
	return env == "*" && len(p.Environments) > 0 || slices.Contains(p.Environments, env) || slices.Contains(p.Environments, "*")
}

func joinOperations(ops []claviger.Operation) string {
	text := ""
	for i, op := range ops {
		if i > 0 {
			text += ","
		}
		text += string(op)
	}
	return text
}

// grant reads a grant and its principal's name.
func (k *Keeper) grant(ctx context.Context, id string) (g claviger.Grant, name string, err error) {
	if _, err := claviger.ParseID(id); err != nil {
		return g, "", err
	}
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		var err error
		if g, err = tx.Grant(claviger.ID(id)); err != nil {
			return err
		}
		principal, err := tx.Principal(string(g.Principal))
		name = principal.Name
		return err
	})
	return g, name, outward(err)
}

// Grant returns a grant.
func (k *Keeper) Grant(ctx context.Context, by claviger.Principal, id string) (GrantView, error) {
	// Who may not see it learns nothing of whether it is there.
	view, err := k.grantView(ctx, id)
	if err != nil && !errors.Is(err, claviger.NotFound) {
		return GrantView{}, err
	}
	if err := k.read(ctx, &by, change{op: claviger.ManageGrants, action: "grant.read", on: view.Selector}); err != nil {
		return GrantView{}, err
	}
	return view, err
}

// Grants lists the grants that the caller may manage, one page at a time. A
// page may be shorter than asked for although more follow.
func (k *Keeper) Grants(ctx context.Context, by claviger.Principal, q store.GrantQuery) (grants []GrantView, next string, err error) {
	s, err := k.snapshot(ctx, string(by.ID), "")
	if err != nil {
		return nil, "", outward(err)
	}
	if s.principal.admit(&by) != "" || by.Kind != claviger.Operator && !grantsAny(s.principal.grants, claviger.ManageGrants) {
		return nil, "", k.deny(ctx, k.newRecord(by, "grant.list"), policy.Decision{Code: claviger.Denied, Reason: policy.ReasonNoGrant})
	}
	var subjects []subject
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		var found []claviger.Grant
		var err error
		grants, subjects = nil, nil
		if found, next, err = tx.Grants(q); err != nil {
			return err
		}
		names := map[claviger.ID]string{}
		for _, g := range found {
			if !k.decideChange(s, &by, change{op: claviger.ManageGrants, on: g.Selector}).Allowed {
				continue
			}
			if _, ok := names[g.Principal]; !ok {
				principal, err := tx.Principal(string(g.Principal))
				if err != nil {
					return err
				}
				names[g.Principal] = principal.Name
			}
			grants = append(grants, GrantView{Grant: g, PrincipalName: names[g.Principal]})
			subjects = append(subjects, grantSubject(g.ID))
		}
		return nil
	})
	if err != nil {
		return nil, "", outward(err)
	}
	uses, err := k.counts.of(ctx, subjects...)
	for i := range grants {
		grants[i].Use = uses[subjects[i]]
	}
	return grants, next, outward(err)
}

// RevokeGrant revokes a grant. When it has returned, no use rests on the grant
// any more.
func (k *Keeper) RevokeGrant(ctx context.Context, by claviger.Principal, id, reason string) (GrantView, error) {
	if err := checkText("reason", reason); err != nil {
		return GrantView{}, err
	}
	// The selector decides who may revoke it, and never changes.
	g, _, err := k.grant(ctx, id)
	if err != nil && !errors.Is(err, claviger.NotFound) {
		return GrantView{}, err
	}
	err = k.change(ctx, by, change{op: claviger.ManageGrants, action: "grant.revoke", on: g.Selector, reason: reason, apply: func(tx *store.Tx, e *effect) error {
		g, err := tx.Grant(claviger.ID(id))
		if err != nil {
			return err
		}
		if !g.Revoked.IsZero() {
			return claviger.Errorf(claviger.Conflict, "the grant is revoked already", "nothing is left to do")
		}
		g.Revoked, g.RevokeReason = k.cfg.Now().UTC(), reason
		e.record.Grant, e.touched = g.ID, append(e.touched, g.Principal)
		failpoint.Hit(failpoint.RevokeGrant)
		return tx.UpdateGrant(g)
	}})
	if err != nil {
		return GrantView{}, err
	}
	return k.grantView(ctx, id)
}

func (k *Keeper) grantView(ctx context.Context, id string) (GrantView, error) {
	g, name, err := k.grant(ctx, id)
	if err != nil {
		return GrantView{}, err
	}
	uses, err := k.counts.of(ctx, grantSubject(g.ID))
	return GrantView{Grant: g, PrincipalName: name, Use: uses[grantSubject(g.ID)]}, outward(err)
}
