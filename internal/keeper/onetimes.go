package keeper

import (
	"context"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// What may be presented once.
const (
	OneTimeCode      = "code"      // an authorization code
	OneTimePushed    = "par"       // a pushed authorization request (RFC 9126)
	OneTimeLogin     = "login"     // a login under way at an OpenID provider
	OneTimeAssertion = "assertion" // the jti of a client assertion
)

// PutOneTime stores something that may be presented once, by the SHA-256 of
// what is presented. It answers claviger.Conflict when it is there already,
// which for the id of an assertion is a replay.
func (k *Keeper) PutOneTime(ctx context.Context, o store.OneTime) error {
	return outward(k.writes.write(ctx, func(tx *store.Tx) error { return tx.PutOneTime(o, k.cfg.Now()) }))
}

// TakeOneTime takes it out of the store: the next one answers
// claviger.NotFound, as for one that is unknown or has ended.
func (k *Keeper) TakeOneTime(ctx context.Context, kind string, hash [32]byte) (o store.OneTime, err error) {
	err = k.writes.write(ctx, func(tx *store.Tx) (err error) {
		o, err = tx.TakeOneTime(kind, hash, k.cfg.Now())
		return err
	})
	return o, outward(err)
}

// PutRefresh stores a refresh token of a session that is live.
func (k *Keeper) PutRefresh(ctx context.Context, r store.Refresh) error {
	return outward(k.writes.write(ctx, func(tx *store.Tx) error {
		s, err := tx.Session(r.Session)
		if err != nil {
			return err
		}
		if s.State != claviger.SessionLive {
			return claviger.Errorf(claviger.Conflict, "the session is "+string(s.State), "log in again")
		}
		return tx.PutRefresh(r)
	}))
}

// refreshGrace is how long a refresh token may be presented again: its answer
// may get lost, and two pages may present it at once. Whoever presents it has
// the key that it is bound to.
const refreshGrace = 10 * time.Second

// TakeRefresh takes a refresh token, for the one use that it has, and returns
// its session. One that was used before, more than refreshGrace ago, was stolen:
// its session ends, and the answer is claviger.Denied.
func (k *Keeper) TakeRefresh(ctx context.Context, hash [32]byte) (claviger.Session, error) {
	var r store.Refresh
	now := k.cfg.Now().Truncate(time.Millisecond) // as the store has it
	err := k.writes.write(ctx, func(tx *store.Tx) (err error) {
		r, err = tx.UseRefresh(hash, now)
		return err
	})
	if err != nil {
		return claviger.Session{}, outward(err)
	}
	if now.Sub(r.Used) > refreshGrace {
		if err := k.EndSession(ctx, k.self(), r.Session, End{Reason: EndRefresh}); err != nil {
			return claviger.Session{}, err
		}
		return claviger.Session{}, claviger.Errorf(claviger.Denied, "the refresh token was used before, so its session has ended", "log in again")
	}
	if !now.Before(r.Ends) {
		return claviger.Session{}, claviger.Errorf(claviger.Denied, "the refresh token has expired", "log in again")
	}
	return k.SessionLive(ctx, r.Session)
}

// RevokeToken records that an access token is revoked, by its jti, until it
// ends by itself.
func (k *Keeper) RevokeToken(ctx context.Context, by claviger.Principal, jti string, ends time.Time) error {
	if err := checkText("id of the token", jti); err != nil || jti == "" {
		return claviger.Errorf(claviger.Invalid, "the token has no id, or not one that can be stored", "send the token itself").Wrap(err)
	}
	return outward(k.commit(ctx, by, change{action: "token.revoke", apply: func(tx *store.Tx, e *effect) error {
		e.detail("jti", jti)
		return tx.RevokeToken(jti, ends)
	}}, nil, nil))
}

// TokenRevoked reports whether an access token was revoked. It is as fresh as
// the door: a revocation is a change like any other.
func (k *Keeper) TokenRevoked(ctx context.Context, jti string) (revoked bool, err error) {
	at, err := k.asOf(ctx)
	if err != nil {
		return false, outward(err)
	}
	if k.unrevoked.has(at, jti) {
		return false, nil
	}
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		if _, err := k.revision(tx, at); err != nil {
			return err
		}
		revoked, err = tx.TokenRevoked(jti)
		return err
	})
	if err == nil && !revoked {
		k.unrevoked.keep(at, jti)
	}
	return revoked, outward(err)
}

// maxUnrevoked bounds the tokens that are remembered not to be revoked.
const maxUnrevoked = 20_000

// unrevoked are tokens that were looked up after a position of the change
// sequence and were not revoked: nothing can have revoked them until it moves.
type unrevoked struct {
	mu  sync.Mutex // guards all below
	at  store.Position
	ids map[string]struct{}
}

func (u *unrevoked) has(at store.Position, jti string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, ok := u.ids[jti]
	return ok && u.at == at
}

func (u *unrevoked) keep(at store.Position, jti string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ids == nil || u.at != at || len(u.ids) >= maxUnrevoked {
		u.at, u.ids = at, map[string]struct{}{}
	}
	u.ids[jti] = struct{}{}
}

// eventCounts counts events of sessions by name, for metrics.
type eventCounts struct {
	mu     sync.Mutex // guards counts
	counts map[string]uint64
}

func (e *eventCounts) add(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.counts == nil {
		e.counts = map[string]uint64{}
	}
	e.counts[name]++
}

// SessionEvents returns how many events of sessions there were since the start
// of the server, by name.
func (k *Keeper) SessionEvents() map[string]uint64 {
	k.events.mu.Lock()
	defer k.events.mu.Unlock()
	all := make(map[string]uint64, len(k.events.counts))
	for name, n := range k.events.counts {
		all[name] = n
	}
	return all
}
