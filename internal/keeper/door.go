package keeper

import (
	"context"
	"errors"
	"time"

	"claviger.dev"
	"claviger.dev/internal/failpoint"
)

// attempts is how often a use is tried when the key or the grant it rests on
// is replaced while it runs, as by a rotation.
const attempts = 3

// recordDeadline bounds the writing of a record. It does not end with the
// caller: who hangs up does not escape the record.
const recordDeadline = 10 * time.Second

// pass takes one use through the door. There is no other way to a result:
// authorise alone makes a permit, and use takes nothing else.
func pass[T any](ctx context.Context, k *Keeper, by claviger.Principal, a ask, do operation[T]) (T, error) {
	var none T
	if err := a.context.check(); err != nil {
		return none, err
	}
	for range attempts {
		// 1. Decide. A refusal leaves its record, and nothing else happens.
		p, err := k.authorise(ctx, by, a)
		if err != nil {
			return none, err
		}
		failpoint.Hit(failpoint.UsePermitted)

		// 2. The custodian does it. Its reply carries the fingerprint that was
		// used, which must be the one that was authorised.
		result, failure := use(ctx, p, do)
		failpoint.Hit(failpoint.UseDone)

		// 3. Record, durably. What cannot be recorded is dropped.
		rec, err := k.record(ctx, p, failure)
		if err != nil {
			return none, err
		}
		failpoint.Hit(failpoint.UseRecorded)
		if failure != nil {
			return none, failure
		}

		// 4. Is what the decision rests on still so?
		switch err := k.fresh(ctx, p, rec); {
		case errors.Is(err, claviger.Stale):
			continue // replaced, not withdrawn: decide again
		case err != nil:
			return none, err
		}

		// 5. Release.
		k.counts.addUse(p, k.cfg.Now())
		return result, nil
	}
	return none, claviger.Errorf(claviger.Stale, "the key kept changing while it was used", "try again")
}

// operation is what is done under a permit.
type operation[T any] func(context.Context, permit) (T, error)

// use does an operation. It is the only function that runs one.
func use[T any](ctx context.Context, p permit, do operation[T]) (T, error) {
	result, err := do(ctx, p)
	if err != nil {
		var none T
		return none, outward(err)
	}
	return result, nil
}

// outward makes sure that an error carries a code: what has none becomes an
// internal error with its cause for the log.
func outward(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded) && claviger.CodeOf(err) == claviger.Internal:
		return claviger.Errorf(claviger.Deadline, "the deadline passed", "try again with more time").Wrap(err)
	case errors.Is(err, context.Canceled) && claviger.CodeOf(err) == claviger.Internal:
		return claviger.Errorf(claviger.Deadline, "the caller went away", "try again").Wrap(err)
	}
	if _, ok := errors.AsType[*claviger.Error](err); ok {
		return err
	}
	return claviger.Errorf(claviger.CodeOf(err), "the request could not be done", "look for the request id in the server's log").Wrap(err)
}
