package keeper

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/store"
)

// counts gathers how often keys, versions and grants were used, and by whom.
// Run writes them each second and Close at the end; a crash loses at most what
// was gathered since. What was used stands in the audit log in any case.
type counts struct {
	store *store.DB
	node  string

	flushing turn // held across a flush, so that a reader sees each use once

	mu      sync.Mutex // guards what follows
	pending map[subject]Count
	seen    map[sighted]*store.Sighting
	uses    map[claviger.ID]store.SessionUse // of sessions
	written map[claviger.ID]store.SessionUse // of sessions, by the last flush, which may be under way
	tokens  map[tokenCount]uint64            // since the start of the server, for metrics
}

// sighted is what must be equal for two uses to be one sighting.
type sighted struct {
	key, principal claviger.ID
	version        uint32
	host           netip.Addr
	others         bool // of hosts beyond maxSeen
	what           string
}

// maxSeen bounds how many sightings are gathered between two flushes; hosts
// beyond it are store.OtherHosts.
const maxSeen = 4096

func newCounts(db *store.DB, node string) *counts {
	return &counts{store: db, node: node, flushing: newTurn(), tokens: map[tokenCount]uint64{}}
}

// subject is what uses are counted of: a key, one version of it, or a grant.
type subject struct {
	kind    string // "key", "version", "grant", "client" or "session"
	id      claviger.ID
	version uint32 // 0 but of a version
}

func keySubject(id claviger.ID) subject   { return subject{kind: "key", id: id} }
func grantSubject(id claviger.ID) subject { return subject{kind: "grant", id: id} }
func versionSubject(id claviger.ID, number uint32) subject {
	return subject{kind: "version", id: id, version: number}
}

// String is the subject's name in the store.
func (s subject) String() string {
	if s.version == 0 {
		return s.kind + ":" + string(s.id)
	}
	return s.kind + ":" + string(s.id) + "/" + strconv.FormatUint(uint64(s.version), 10)
}

// addUse counts a use that is released.
func (c *counts) addUse(p permit, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := uint64(p.ask.count)
	if p.ask.session != nil {
		c.addSession(p, now)
		return
	}
	c.add(keySubject(p.state.key.ID), n, now)
	c.add(grantSubject(p.allowed.Grant.ID), n, now)
	for _, u := range p.tally.versions {
		c.add(versionSubject(p.state.key.ID, u.version), u.n, now)
		c.see(p, u.version, u.n, now)
	}
}

// see notes who used a version, and how.
func (c *counts) see(p permit, number uint32, n uint64, now time.Time) {
	what := string(p.ask.format)
	if what == "" {
		what = string(p.state.key.Algorithm.Protects())
	} else {
		c.tokens[tokenCount{p.state.key.ID, number, p.ask.op}] += n
	}
	id := sighted{key: p.state.key.ID, principal: p.by.ID, version: number, host: p.by.Facts.Source, what: what}
	s := c.seen[id]
	if s == nil && len(c.seen) >= maxSeen && id.host.IsValid() {
		id.host, id.others = netip.Addr{}, true
		s = c.seen[id]
	}
	if s == nil {
		if c.seen == nil {
			c.seen = map[sighted]*store.Sighting{}
		}
		s = &store.Sighting{Key: id.key, Version: number, Node: c.node, Principal: id.principal, What: what, First: now}
		if id.host.IsValid() {
			s.Host = id.host.String()
		} else if id.others {
			s.Host = store.OtherHosts
		}
		c.seen[id] = s
	}
	if s.Last = now; p.ask.op.Protects() {
		s.Made += n
	} else {
		s.Checked += n
	}
}

// addSession counts an open, an issue or a use of a session's key.
func (c *counts) addSession(p permit, now time.Time) {
	if p.allowed.Grant != nil {
		c.add(grantSubject(p.allowed.Grant.ID), 1, now)
	}
	c.add(subject{kind: "client", id: p.on.client.ID}, 1, now)
	if s := p.on.session; s != nil {
		s.used(now)
		c.addUses(s.session.ID, 1, now)
	}
}

// observe counts uses of a session that passed elsewhere.
func (c *counts) observe(s *sessionState, n uint64, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.used(now)
	c.addUses(s.session.ID, n, now)
}

func (c *counts) addUses(session claviger.ID, n uint64, last time.Time) {
	if c.uses == nil {
		c.uses = map[claviger.ID]store.SessionUse{}
	}
	u := c.uses[session]
	u.Session, u.Count = session, u.Count+n
	if last.After(u.Last) {
		u.Last = last
	}
	c.uses[session] = u
}

// sessionUse is what is not yet written of the uses of a session. Its last use
// may be written or not: a session must not end for what is on its way there.
func (c *counts) sessionUse(id claviger.ID) store.SessionUse {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.uses[id]
	if w := c.written[id]; w.Last.After(u.Last) {
		u.Last = w.Last
	}
	return u
}

// addSystem counts a use of a system key.
func (c *counts) addSystem(key claviger.ID, number uint32, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(keySubject(key), 1, now)
	c.add(versionSubject(key, number), 1, now)
}

func (c *counts) add(of subject, n uint64, now time.Time) {
	if c.pending == nil {
		c.pending = map[subject]Count{}
	}
	have := c.pending[of]
	have.Count += n
	if now.After(have.Last) {
		have.Last = now
	}
	c.pending[of] = have
}

// flush writes what was gathered. What cannot be written is kept.
func (c *counts) flush(ctx context.Context) error {
	if err := c.flushing.take(ctx); err != nil {
		return err
	}
	defer c.flushing.give()
	c.mu.Lock()
	batch, seen, used := c.pending, c.seen, c.uses
	c.pending, c.seen, c.uses, c.written = nil, nil, nil, used
	c.mu.Unlock()
	if len(batch) == 0 && len(used) == 0 {
		return nil
	}
	failpoint.Hit(failpoint.CountsFlush)
	uses := make([]store.Use, 0, len(batch))
	for of, n := range batch {
		uses = append(uses, store.Use{Subject: of.String(), Count: n.Count, Last: n.Last})
	}
	sightings := make([]store.Sighting, 0, len(seen))
	for _, s := range seen {
		sightings = append(sightings, *s)
	}
	err := c.store.Update(ctx, func(tx *store.Tx) error {
		return errors.Join(tx.AddUses(uses), tx.AddSightings(sightings), tx.AddSessionUses(slices.Collect(maps.Values(used))))
	})
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.seeAgain(seen)
		for id, u := range used {
			c.addUses(id, u.Count, u.Last)
		}
		for of, n := range batch {
			c.add(of, n.Count, n.Last)
		}
	}
	return err
}

// seeAgain keeps what could not be written.
func (c *counts) seeAgain(seen map[sighted]*store.Sighting) {
	for id, newer := range c.seen {
		if s := seen[id]; s != nil {
			s.Made, s.Checked, s.Last = s.Made+newer.Made, s.Checked+newer.Checked, newer.Last
		} else {
			seen[id] = newer
		}
	}
	c.seen = seen
}

// of returns the counts of subjects: what is stored, and what is not yet.
func (c *counts) of(ctx context.Context, subjects ...subject) (map[subject]Count, error) {
	// No flush may move counts from one side to the other meanwhile.
	if err := c.flushing.take(ctx); err != nil {
		return nil, err
	}
	defer c.flushing.give()
	names, all := make([]string, len(subjects)), map[subject]Count{}
	for i, of := range subjects {
		names[i] = of.String()
	}
	err := c.store.View(ctx, func(tx *store.Tx) error {
		stored, err := tx.UsesOf(names...)
		for i, of := range subjects {
			if use, ok := stored[names[i]]; ok {
				all[of] = Count{Count: use.Count, Last: use.Last}
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range subjects {
		if n, ok := c.pending[of]; ok {
			have := all[of]
			have.Count += n.Count
			if n.Last.After(have.Last) {
				have.Last = n.Last
			}
			all[of] = have
		}
	}
	return all, nil
}
