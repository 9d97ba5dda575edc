package keeper

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/store"
	"claviger.dev/pubkey"
)

// sessionState is a session with what its uses need.
type sessionState struct {
	session claviger.Session // as read; read-only
	last    atomic.Int64     // milliseconds: of the last use through this server

	mu       sync.Mutex // guards material
	material *custody.Material
}

// current returns the session with its last use as this server knows it.
func (s *sessionState) current() claviger.Session {
	session := s.session
	if last := time.UnixMilli(s.last.Load()).UTC(); last.After(session.LastUsed) {
		session.LastUsed = last
	}
	return session
}

// used notes a use.
func (s *sessionState) used(now time.Time) {
	for at := now.UnixMilli(); ; {
		last := s.last.Load() // 0, which is 1970, while there was none
		if last >= at || s.last.CompareAndSwap(last, at) {
			return
		}
	}
}

// sessionSnapshot returns what a decision about a session or a client rests
// on, current as of a revision that was read after the call began. An empty
// client is that of the session, and an empty principal the one that opened it,
// or without a session that of the client.
func (k *Keeper) sessionSnapshot(ctx context.Context, principal claviger.ID, client string, session claviger.ID) (snapshot, error) {
	at, err := k.asOf(ctx)
	if err != nil {
		return snapshot{}, err
	}
	s, ok := k.cache.lookSession(at.Number, principal, client, session)
	if ok {
		return s, nil
	}
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		revision, err := k.revision(tx, at)
		if err != nil {
			return err
		}
		s, err = k.readSession(tx, principal, client, session)
		s.revision = revision
		return err
	})
	if err != nil {
		return snapshot{}, err
	}
	k.cache.keepSession(s, client)
	return s, nil
}

func (k *Keeper) readSession(tx *store.Tx, principal claviger.ID, client string, session claviger.ID) (s snapshot, err error) {
	if session != "" {
		found, err := tx.Session(session)
		switch {
		case err == nil:
			s.session = &sessionState{session: found}
			s.session.used(k.counts.sessionUse(session).Last)
			client, principal = orText(client, string(found.Client)), orText(principal, found.Principal)
		case !errors.Is(err, claviger.NotFound):
			return s, err
		}
	}
	if client != "" {
		found, err := tx.Client(client)
		switch {
		case err == nil:
			s.client, principal = &found, orText(principal, found.Principal)
		case !errors.Is(err, claviger.NotFound) && !errors.Is(err, claviger.Invalid):
			return s, err
		}
	}
	if principal != "" {
		s.principal, err = loadPrincipal(tx, string(principal))
	}
	return s, err
}

func orText[T ~string](text, otherwise T) T {
	if text == "" {
		return otherwise
	}
	return text
}

// lookSession returns what the cache has; ok is false when anything must be
// read.
func (c *cache) lookSession(revision uint64, principal claviger.ID, client string, session claviger.ID) (s snapshot, ok bool) {
	s.revision = revision
	c.mu.RLock()
	known := c.known
	if known >= revision {
		s.revision = known
		if session != "" {
			if s.session = c.sessions[session]; s.session != nil {
				client, principal = orText(client, string(s.session.session.Client)), orText(principal, s.session.session.Principal)
			}
		}
		if s.client = c.clients[c.clientRefs[client]]; s.client != nil {
			principal = orText(principal, s.client.Principal)
		}
		s.principal = c.principals[principal]
	}
	c.mu.RUnlock()
	if known < revision {
		c.forgetBefore(revision)
	}
	return s, (s.session != nil || session == "") && (s.client != nil || client == "") && (s.principal != nil || principal == "")
}

// keepSession puts what was read into the cache, unless the cache has moved on.
func (c *cache) keepSession(s snapshot, client string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known != s.revision {
		return
	}
	if s.session != nil {
		makeRoom(c.sessions)
		if have := c.sessions[s.session.session.ID]; have != nil {
			s.session.used(time.UnixMilli(have.last.Load()))
		}
		c.sessions[s.session.session.ID] = s.session
	}
	if s.client != nil {
		makeRoom(c.clients)
		makeRoom(c.clientRefs)
		c.clients[s.client.ID] = s.client
		c.clientRefs[string(s.client.ID)] = s.client.ID
		if client != "" {
			c.clientRefs[client] = s.client.ID
		}
	}
	if s.principal != nil {
		makeRoom(c.principals)
		c.principals[s.principal.record.ID] = s.principal
	}
}

// forgetSession has a session read again.
func (c *cache) forgetSession(id claviger.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, id)
}

// materialOf returns what the custodian needs to use a session's key.
func (k *Keeper) materialOf(ctx context.Context, s *sessionState) (custody.Material, error) {
	s.mu.Lock()
	m := s.material
	s.mu.Unlock()
	if m != nil {
		return *m, nil
	}
	made, err := sessionMaterial(&s.session)
	if err != nil {
		return custody.Material{}, err
	}
	m = &made
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		m.Blob, _, err = tx.SessionBlob(s.session.ID)
		return err
	})
	if err != nil {
		return custody.Material{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.material = m
	return *m, nil
}

// sessionMaterial is what the custodian needs to use a session's key, without
// its blob. The reply to each use must carry the fingerprint.
func sessionMaterial(s *claviger.Session) (custody.Material, error) {
	key, err := pubkey.FromSPKI(s.Algorithm, s.Public)
	if err != nil {
		return custody.Material{}, claviger.Errorf(claviger.Internal, "the stored public half is damaged", "open the session again").Wrap(err)
	}
	return custody.Material{Binding: sessionBinding(s), Fingerprint: key.Fingerprint()}, nil
}

// sessionBinding is what the wrapped key of a session is bound to: the session
// as its only version.
func sessionBinding(s *claviger.Session) frames.Binding {
	return frames.Binding{KeyID: s.ID, Version: 1, Algorithm: s.Algorithm, Recipe: claviger.PlainRecipe, Origin: claviger.Generated}
}
