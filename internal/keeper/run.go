package keeper

import (
	"context"
	"errors"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/store"
)

const (
	tick         = time.Second      // between two looks at what is due
	tickDeadline = 30 * time.Second // of one look
	settle       = 10 * time.Minute // schedules wait this long after the clock was set
	sweepEvery   = 10 * time.Second // between two looks for sessions that are over; the door refuses them at once
	cleanEvery   = time.Hour        // between two clean-ups
	keepExpired  = 30 * 24 * time.Hour
	keepRuns     = 90 * 24 * time.Hour // statements of evidence; the last one stays
	keepSeen     = 400 * 24 * time.Hour
	keepMinutes  = 48 * time.Hour // flows by minutes; those by hours go with the sightings
	// Of one principal with one key: so many versions, hosts and formats are told apart, the last ones.
	maxSightingsOf = 1000
	dueAtOnce      = 100 // keys that are attended to in one look
)

// Run does what time brings, until ctx ends: scheduled rotations and expiries,
// counts and aggregated records each second, checkpoints, the renewal of the
// server's certificate, the refresh of evidence, what other servers of the store
// change; it carries checkpoints and notices out. What fails is logged and tried again.
func (k *Keeper) Run(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var delivery sync.WaitGroup
	delivery.Go(func() { k.exports.run(ctx, k) })
	delivery.Go(func() { k.notices.run(ctx, k) })
	delivery.Go(func() { k.refreshes(ctx) })
	if k.follow != nil {
		delivery.Go(func() { k.follow.Run(ctx) })
	}
	defer delivery.Wait()
	r := rounds{k: k, last: k.cfg.Now()}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			r.round(ctx)
		}
	}
}

// rounds is what Run remembers from one look to the next.
type rounds struct {
	k          *Keeper
	last       time.Time
	settled    time.Time // schedules wait until then
	drained    time.Time
	cleaned    time.Time
	checkpoint time.Time
	trimmed    time.Time
	swept      time.Time
}

func (r *rounds) round(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, tickDeadline)
	defer cancel()
	k, now := r.k, r.k.cfg.Now()
	if moved := clockMoved(r.last, now); moved.Abs() > clockSlack {
		// A deactivation cannot be undone: do not do ten years of them because
		// somebody mistyped a date. Uses are judged by the clock all the same.
		k.cfg.Log.Warn("the clock was set; scheduled changes wait", "by", moved, "for", settle)
		r.settled = now.Add(settle)
	}
	r.last = now
	k.attempt("flush", k.Flush(ctx))
	k.attempt("renew server certificate", k.system.renewLeaf(ctx))
	if now.After(r.settled) {
		k.attempt("keep schedules", k.keepSchedules(ctx, now))
	}
	if now.Sub(r.drained).Abs() > drainAge {
		r.drained = now
		k.attempt("drain outbox", k.drain(ctx, drainAge))
	}
	if now.After(r.settled) && now.Sub(r.swept).Abs() > sweepEvery {
		r.swept = now
		k.attempt("sweep sessions", k.sweepSessions(ctx, now))
		k.budgets.prune(now)
	}
	if now.Sub(r.trimmed).Abs() > trimEvery {
		r.trimmed = now
		k.attempt("trim the record of issued tokens", k.trimIssued(ctx, now))
		k.attempt("fold sightings", k.foldSightings(ctx))
	}
	if now.Sub(r.cleaned).Abs() > cleanEvery {
		r.cleaned = now
		k.attempt("drop expired certificates", k.dropExpired(ctx, now))
		k.attempt("drop old statements", k.dropStatements(ctx, now))
		k.attempt("drop old sightings", k.dropSightings(ctx, now))
		if now.Sub(k.started) > cleanEvery { // what waited for this server is tried once
			k.attempt("give old deliveries up", k.expireDeliveries(ctx, now))
		}
	}
	if now.Sub(r.checkpoint).Abs() > k.cfg.Checkpoints {
		r.checkpoint = now
		list, err := k.checkpoints(ctx, k.self())
		k.attempt("checkpoint the audit log", err)
		if len(list) > 0 {
			k.exports.offer(list)
		}
	}
}

func (k *Keeper) attempt(what string, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		k.cfg.Log.Error(what, "error", err)
	}
}

// Flush writes what is gathered in memory: aggregated records, counts, and the
// outbox rows that are done with.
func (k *Keeper) Flush(ctx context.Context) error {
	return outward(errors.Join(k.verified.flush(ctx), k.handled.flush(ctx), k.counts.flush(ctx), k.dropDone(ctx)))
}

// keepSchedules rotates the keys whose time has come, and deactivates versions
// at the end of their originator period.
func (k *Keeper) keepSchedules(ctx context.Context, now time.Time) error {
	var due []claviger.Key
	err := k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		var err error
		due, err = tx.Scheduled(now, dueAtOnce)
		return err
	})
	if err != nil {
		return err
	}
	for _, key := range due {
		if err := k.attend(ctx, key, now); err != nil && !errors.Is(err, claviger.Conflict) {
			return err // the custodian or the store is away; later
		}
	}
	return nil
}

// attend does what one key is due for.
func (k *Keeper) attend(ctx context.Context, key claviger.Key, now time.Time) error {
	for i := range key.Versions {
		if v := &key.Versions[i]; store.Retiring(v) && !now.Before(v.Retires) {
			return k.commit(ctx, k.self(), k.endOfGrace(string(key.ID), v.Number), &key, nil)
		}
	}
	if every := time.Duration(key.Settings.RotateEvery); every > 0 && !now.Before(key.Versions[len(key.Versions)-1].Created.Add(every)) {
		return k.commit(ctx, k.self(), k.rotation(string(key.ID), "", "scheduled", 0), &key, nil)
	}
	active := key.ActiveVersion()
	period := time.Duration(key.Settings.OriginatorPeriod)
	if active == nil || period == 0 || now.Before(active.Activated.Add(period)) {
		return nil
	}
	c := change{action: "key.state", key: string(key.ID), reason: "end of the originator period", apply: func(tx *store.Tx, e *effect) error {
		_, err := k.applyState(ctx, tx, e, active.Number, claviger.Deactivated, "", "end of the originator period")
		return err
	}}
	return k.commit(ctx, k.self(), c, &key, nil)
}

// dropExpired forgets certificates that expired long ago; they are refused
// without a row as well.
func (k *Keeper) dropExpired(ctx context.Context, now time.Time) error {
	return k.update(ctx, func(tx *store.Tx) ([]claviger.ID, error) {
		_, err := tx.DropCertificates(now.Add(-keepExpired))
		return nil, err
	})
}

// dropStatements forgets statements that are long superseded. Who needs them
// for longer has them: they are handed to whoever submits a run.
func (k *Keeper) dropStatements(ctx context.Context, now time.Time) error {
	return k.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.DropRuns(now.Add(-keepRuns))
		return err
	})
}

// foldSightings bounds what is kept of one principal with one key.
func (k *Keeper) foldSightings(ctx context.Context) error {
	var crowded bool
	err := k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		crowded, err = tx.CrowdedSightings(maxSightingsOf)
		return err
	})
	if err != nil || !crowded {
		return err
	}
	return k.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.FoldSightings(maxSightingsOf)
		return err
	})
}

// dropSightings forgets who used what long ago.
func (k *Keeper) dropSightings(ctx context.Context, now time.Time) error {
	return k.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		return tx.DropSightings(now.Add(-keepSeen), now.Add(-keepMinutes))
	})
}
