package keeper

import (
	"context"
	"errors"
	"strconv"
	"time"

	"claviger.dev"
	"claviger.dev/internal/store"
)

const (
	refreshAtOnce = 10_000           // versions that one transaction records
	refreshWithin = time.Hour        // of one whole round
	refreshAgain  = 10 * time.Minute // before another round where a custodian was away
)

// refreshes looks at what the custodians report, at the start and then every
// Config.Refresh, beside everything else.
func (k *Keeper) refreshes(ctx context.Context) {
	for {
		pause := k.cfg.Refresh
		err := k.RefreshEvidence(ctx)
		if k.attempt("refresh the evidence", err); err != nil {
			pause = min(pause, refreshAgain)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// RefreshEvidence asks every custodian what it reports of every version that is
// not destroyed, and records that: the gentle set. Nothing in it alarms a
// device. A custodian that is away keeps its versions' levels, which lapse in
// time, and is part of the error.
func (k *Keeper) RefreshEvidence(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, refreshWithin)
	defer cancel()
	r := &refresh{k: k, run: claviger.NewID(k.cfg.Now()), observers: k.newObservers(), keys: map[claviger.ID]*claviger.Key{}}
	q := store.KeyQuery{Limit: store.MaxLimit}
	for more := true; more; more = q.After != "" {
		var page []claviger.Key
		err := k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
			page, q.After, err = tx.Keys(q)
			return err
		})
		if err != nil {
			return outward(err)
		}
		for i := range page {
			if err := r.observe(ctx, &page[i]); err != nil {
				return outward(err)
			}
		}
	}
	return outward(errors.Join(r.flush(ctx, true), r.trouble()))
}

// refresh is one round.
type refresh struct {
	k         *Keeper
	run       claviger.ID
	observers *observers
	keys      map[claviger.ID]*claviger.Key // those of the list
	list      []Shown
	failed    int // versions of which nothing could be seen
	recorded  bool
}

// observe notes what is shown of a key's versions.
func (r *refresh) observe(ctx context.Context, key *claviger.Key) error {
	for i := range key.Versions {
		v := &key.Versions[i]
		if v.State == claviger.Destroyed {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := r.observers.observe(ctx, key, v)
		if err != nil {
			if r.failed++; r.observers.away[key.Custodian] == nil {
				r.k.cfg.Log.Warn("a version could not be examined", "key", key.Name, "version", v.Number, "error", err)
			}
			continue
		}
		r.keys[key.ID] = key
		r.list = append(r.list, s)
	}
	if len(r.list) < refreshAtOnce {
		return nil
	}
	return r.flush(ctx, false)
}

// flush records what was gathered; the last one of a round always does, so that
// each round leaves a record.
func (r *refresh) flush(ctx context.Context, last bool) error {
	if len(r.list) == 0 && (!last || r.recorded) {
		return nil
	}
	stayExposed(r.keys, r.list)
	o := outcome{action: "evidence.refresh", run: r.run, list: r.list, detail: map[string]string{}}
	for kind, err := range r.observers.away {
		o.detail[string(kind)] = "away: " + safeText(outward(err))
	}
	if r.failed > 0 {
		o.detail["unexamined"] = strconv.Itoa(r.failed)
	}
	if err := r.k.keep(ctx, r.k.self(), o, r.keys, nil); err != nil {
		return err
	}
	r.recorded, r.list, r.keys = true, nil, map[claviger.ID]*claviger.Key{}
	return nil
}

// trouble is why the round is not whole.
func (r *refresh) trouble() error {
	var all []error
	for _, err := range r.observers.away {
		all = append(all, err)
	}
	return errors.Join(all...)
}
