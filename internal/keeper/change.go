package keeper

import (
	"context"
	"encoding/json"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/store"
)

// outboxDetail is the detail of a record that carries the unique id of its
// outbox row. A crash between the append and the dropping of the row can leave
// a record twice in the audit log; equal ids show that it is one change.
const outboxDetail = "change"

// change is one administrative change: what policy is asked, what the
// custodian does for it, and what it writes.
type change struct {
	op     claviger.Operation
	action string            // of the record
	key    string            // the key it is on, as the caller names it
	stub   *claviger.Key     // for a key that is not there yet: its name
	on     claviger.Selector // for what is on no key; empty is everything
	reason string

	// prepare asks the custodian. It runs once, authorised, before the
	// transaction. Nil does nothing.
	prepare func(ctx context.Context, key claviger.Key) error
	// apply writes. It may run more than once.
	apply func(tx *store.Tx, e *effect) error
}

// effect is what a change works on and leaves.
type effect struct {
	key     claviger.Key // as this transaction reads it
	record  *audit.Record
	touched []claviger.ID // keys, principals, clients and sessions to be read again
}

func (e *effect) detail(name, text string) { addDetailText(e.record, name, text) }

// change makes a change on behalf of a caller: authorised before the custodian
// is asked and again inside the transaction, committed together with its
// record, and recorded before it returns.
func (k *Keeper) change(ctx context.Context, by claviger.Principal, c change) error {
	key, err := k.permitChange(ctx, &by, c)
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.ChangeBegin)
	var denied *policy.Decision
	err = k.commit(ctx, by, c, key, func(tx *store.Tx, e *effect) error {
		denied = nil
		principal, err := loadPrincipal(tx, string(by.ID))
		if err != nil {
			return err
		}
		if d := k.decideChange(snapshot{principal: principal, key: &keyState{key: &e.key}}, &by, c); !d.Allowed {
			denied = &d
			return refusal(d)
		}
		return nil
	})
	if denied != nil {
		return k.deny(ctx, k.changeRecord(by, c, key), *denied)
	}
	if err == nil || claviger.CodeOf(err) == claviger.Unavailable {
		return outward(err)
	}
	return k.failed(ctx, k.changeRecord(by, c, key), outward(err))
}

// permitChange decides whether a caller may make a change, and takes the
// budgets of the grant that allows it. It returns the key that the change is on.
func (k *Keeper) permitChange(ctx context.Context, by *claviger.Principal, c change) (*claviger.Key, error) {
	s, err := k.snapshot(ctx, string(by.ID), c.key)
	if err != nil {
		return nil, outward(err)
	}
	d := k.decideChange(s, by, c)
	if !d.Allowed && k.moved(ctx, s.revision) {
		if s, err = k.snapshot(ctx, string(by.ID), c.key); err != nil {
			return nil, outward(err)
		}
		d = k.decideChange(s, by, c)
	}
	var key *claviger.Key
	if s.key != nil {
		key = s.key.key
	}
	if !d.Allowed {
		return nil, k.deny(ctx, k.changeRecord(*by, c, key), d)
	}
	if d.Grant != nil {
		_, reason, err := k.spend(ctx, s, ask{op: c.op, count: 1}, d.Allowances, k.cfg.Now())
		if err != nil {
			return nil, outward(err)
		}
		if reason != "" {
			return nil, k.deny(ctx, k.changeRecord(*by, c, key), policy.Decision{Code: claviger.Exhausted, Reason: reason, Grant: d.Grant})
		}
	}
	return key, nil
}

// decideChange asks policy about a change.
func (k *Keeper) decideChange(s snapshot, by *claviger.Principal, c change) policy.Decision {
	if c.key != "" {
		return k.decide(s, by, ask{op: c.op, key: c.key, count: 1}, k.cfg.Now())
	}
	if reason := s.principal.admit(by); reason != "" {
		return policy.Decision{Code: claviger.Denied, Reason: reason}
	}
	return k.policy.Decide(policy.Input{
		Principal: *by, Grants: s.principal.grants, Operation: c.op,
		Key: c.stub, Selector: c.on, Count: 1, Now: k.cfg.Now(), MaxAge: k.cfg.MaxAge,
	})
}

// changeRecord starts the record of a change.
func (k *Keeper) changeRecord(by claviger.Principal, c change, key *claviger.Key) *audit.Record {
	r := k.newRecord(by, c.action)
	r.Reason = c.reason
	if key == nil {
		key = c.stub
	}
	if key != nil {
		r.Key, r.KeyID, r.Algorithm = key.Name, key.ID, key.Algorithm
	} else if c.key != "" {
		addDetailText(r, "asked", c.key)
	}
	if c.on != "" {
		addDetailText(r, "selector", string(c.on))
	}
	return r
}

// failed records that something was allowed and did not succeed.
func (k *Keeper) failed(ctx context.Context, r *audit.Record, err error) error {
	r.Outcome, r.Code = audit.Failed, claviger.CodeOf(err)
	if r.Code == claviger.Denied {
		r.Outcome = audit.Denied
	}
	addDetailText(r, "error", safeText(err))
	if recordErr := k.append(ctx, r); recordErr != nil {
		return recordErr
	}
	return err
}

// commit makes a change that is decided: the custodian's part, then one
// transaction that holds the change and its record as an outbox row, then the
// record in the audit log. again runs first inside the transaction; nil for
// the Keeper's own changes.
//
// When the change is committed and the audit log fails, the answer is
// claviger.Unavailable: the change stands, its record waits in the outbox and
// Run brings it to the log.
func (k *Keeper) commit(ctx context.Context, by claviger.Principal, c change, key *claviger.Key, again func(*store.Tx, *effect) error) error {
	if c.prepare != nil {
		var now claviger.Key
		if key != nil {
			now = *key
		}
		if err := c.prepare(ctx, now); err != nil {
			return err
		}
	}
	var seq uint64
	var record *audit.Record
	err := k.update(ctx, func(tx *store.Tx) ([]claviger.ID, error) {
		e := &effect{}
		if c.key != "" {
			var err error
			if e.key, err = tx.Key(c.key); err != nil {
				return nil, err
			}
			e.touched = append(e.touched, e.key.ID)
			key = &e.key
		}
		e.record = k.changeRecord(by, c, key)
		if again != nil {
			if err := again(tx, e); err != nil {
				return nil, err
			}
		}
		if err := c.apply(tx, e); err != nil {
			return nil, err
		}
		record = e.record
		addDetailText(record, outboxDetail, string(claviger.NewID(record.Time)))
		line, err := json.Marshal(record)
		if err != nil {
			return nil, err
		}
		seq, err = tx.PushOutbox(line)
		failpoint.Hit(failpoint.ChangeOutbox)
		return e.touched, err
	})
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.ChangeCommitted)
	if err := k.append(ctx, record); err != nil {
		return claviger.Errorf(claviger.Unavailable, "the change was made, but could not be recorded yet",
			"look before you try again; it is recorded as soon as the audit log recovers").Wrap(err)
	}
	failpoint.Hit(failpoint.ChangeRecorded)
	k.outbox.done(seq)
	failpoint.Hit(failpoint.ChangeDropped)
	return nil
}

// update runs one transaction that may change what the cache holds. When it
// returns nil, this server refuses what was withdrawn.
func (k *Keeper) update(ctx context.Context, fn func(*store.Tx) ([]claviger.ID, error)) error {
	if err := k.changing.take(ctx); err != nil {
		return err
	}
	defer k.changing.give()
	if k.follow != nil {
		return k.updateShared(ctx, fn)
	}
	before, err := k.cfg.Store.Revision(ctx)
	if err != nil {
		return err
	}
	k.cache.begin()
	var touched []claviger.ID
	err = k.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		var err error
		touched, err = fn(tx)
		return err
	})
	after, revisionErr := k.cfg.Store.Revision(context.WithoutCancel(ctx))
	if revisionErr != nil {
		after = 0 // the next look-up sees another revision and starts anew
	}
	k.cache.end(before, after, touched)
	return err
}

// administer does something that changes no state here: decided, done,
// recorded, and only then answered.
func (k *Keeper) administer(ctx context.Context, by claviger.Principal, c change, do func(ctx context.Context, key *claviger.Key, r *audit.Record) error) error {
	key, err := k.permitChange(ctx, &by, c)
	if err != nil {
		return err
	}
	if c.op == claviger.ManageKey && key == nil { // an operator may manage every key, the one of no name too
		return claviger.Errorf(claviger.Invalid, "the request names no key", "send the id or the name of one")
	}
	r := k.changeRecord(by, c, key)
	if err := do(ctx, key, r); err != nil {
		return k.failed(ctx, r, outward(err))
	}
	return k.append(ctx, r)
}

// read lets a caller read. Only a refusal is recorded.
func (k *Keeper) read(ctx context.Context, by *claviger.Principal, c change) error {
	_, err := k.permitChange(ctx, by, c)
	return err
}

// self is the Keeper as the author of its own changes and uses.
func (k *Keeper) self() claviger.Principal {
	return claviger.Principal{Name: "claviger", Kind: "system", Facts: claviger.Facts{UID: -1, GID: -1}}
}

// drainAge is how old an outbox row must be before another server than its
// author appends its record.
const drainAge = 30 * time.Second
