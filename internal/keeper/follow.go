package keeper

import (
	"context"
	"errors"
	"strconv"
	"time"

	"claviger.dev"
	"claviger.dev/internal/follow"
	"claviger.dev/internal/store"
)

// following is what the follower of a shared store stands on.
func (k *Keeper) following() follow.Config {
	return follow.Config{Store: k.cfg.Store, Node: k.cfg.Node, Mark: k.cfg.Mark, Now: k.cfg.BootTime, Log: k.cfg.Log,
		Apply: k.cache.advance, Accepted: k.accepted}
}

func (k *Keeper) unfollow(ctx context.Context) error {
	if k.follow == nil {
		return nil
	}
	return k.follow.Close(ctx)
}

// asOf returns a revision that every change is part of which returned
// before the call, of this server, and that every other change is part of which
// was committed longer ago than the lease. When it cannot it is claviger.Stale.
func (k *Keeper) asOf(ctx context.Context) (store.Position, error) {
	if k.follow == nil {
		revision, err := k.cfg.Store.Revision(ctx)
		return store.Position{Number: revision}, err
	}
	return k.follow.Confirmed(ctx)
}

// moved asks a shared store for what is newer than a revision, and reports
// whether there is any: what is to be refused may have been allowed through
// another server a moment ago. A question for each refusal is no more than its
// record costs.
func (k *Keeper) moved(ctx context.Context, revision uint64) bool {
	return k.follow != nil && k.follow.Poll(ctx) == nil && k.follow.Status().Number > revision
}

// revision returns that of a transaction, which must be of a history that holds
// what was confirmed: the database may be another since.
func (k *Keeper) revision(tx *store.Tx, at store.Position) (uint64, error) {
	if k.follow == nil {
		return tx.Revision()
	}
	head, holds, err := tx.Position(at)
	if err == nil && !holds {
		err = errParted
	}
	return head.Number, err
}

var errParted = claviger.Errorf(claviger.Stale, "the database does not hold what this server has seen", "try again; 'claviger doctor' says more if it stays so")

// updateShared runs one transaction on a shared store. It is decided on the
// database's own state, of a history that holds what was confirmed here. Where
// the change cannot be confirmed afterwards it stands, but promises nothing.
func (k *Keeper) updateShared(ctx context.Context, fn func(*store.Tx) ([]claviger.ID, error)) error {
	at, err := k.follow.Confirmed(ctx)
	if err != nil {
		return err
	}
	err = k.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		if _, err := k.revision(tx, at); err != nil {
			return err
		}
		_, err := fn(tx)
		return err
	})
	if err != nil {
		return err
	}
	if err := k.follow.Poll(context.WithoutCancel(ctx)); err != nil {
		return claviger.Errorf(claviger.Unavailable, "the change was made, but this server cannot confirm it", "look before you try again").Wrap(err)
	}
	return nil
}

// accepted records that an operator accepted another history of the database,
// in which revocations may be missing.
func (k *Keeper) accepted(from, to store.Position) {
	ctx, cancel := context.WithTimeout(context.Background(), recordDeadline)
	defer cancel()
	r := k.newRecord(k.self(), "server.accept-database")
	addDetailText(r, "from", strconv.FormatUint(from.Number, 10))
	addDetailText(r, "to", strconv.FormatUint(to.Number, 10))
	k.attempt("record that a database was accepted", k.append(ctx, r))
}

// Settle returns when every server of the store refuses what was withdrawn
// before the call, or refuses everything, which takes two seconds at most. Any
// caller may ask.
func (k *Keeper) Settle(ctx context.Context, by claviger.Principal) (follow.Settled, error) {
	s, err := k.snapshot(ctx, string(by.ID), "")
	if err != nil {
		return follow.Settled{}, outward(err)
	}
	if reason := s.principal.admit(&by); reason != "" {
		return follow.Settled{}, claviger.Errorf(claviger.Denied, "the principal or its certificate is unknown or revoked", "ask an operator")
	}
	if k.follow == nil {
		return follow.Settled{Number: s.revision, Servers: []follow.Standing{{Node: k.cfg.Node, Confirmed: true}}}, nil
	}
	settled, err := k.follow.Settle(ctx)
	return settled, outward(err)
}

// Following is how this server follows a shared store.
type Following = follow.Status

// Following returns how this server follows a shared store; ok is false where
// the store is not shared.
func (k *Keeper) Following() (s Following, ok bool) {
	if k.follow == nil {
		return Following{}, false
	}
	return k.follow.Status(), true
}

// examineFollowing says whether this server may release anything.
func (k *Keeper) examineFollowing() []Measure {
	s, ok := k.Following()
	if !ok {
		return nil
	}
	detail := "change " + strconv.FormatUint(s.Number, 10) + ", confirmed " + s.Confirmed.Round(time.Millisecond).String() + " ago"
	if s.Trouble != nil {
		detail += ": " + troubleText(s.Trouble)
	}
	return []Measure{measure("store", "confirms that nothing was revoked", s.Trouble == nil && s.Confirmed < follow.Lease, detail,
		"nothing; but every use is refused as stale", follow.Hint(s.Trouble))}
}

// troubleText is what may be shown of why nothing is confirmed.
func troubleText(err error) string {
	if e, ok := asError(err); ok {
		return e.Msg
	}
	if follow.Parted(err) {
		return err.Error()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "the store does not answer in time"
	}
	return "the store does not answer"
}
