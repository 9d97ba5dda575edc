package keeper

import (
	"context"
	"errors"
	"sync"

	"claviger.dev"
	"claviger.dev/internal/store"
	"claviger.dev/pubkey"
)

// maxCached bounds the keys, and the principals, that are kept in memory.
const maxCached = 1 << 14

// cache holds keys and principals as of one revision of the store. Everything
// in it is read-only but for the blobs and public halves that are filled in.
//
// A look-up confirms a revision first. When the cache is as of that one or a
// later one, entries are current. What drops them: the Keeper's own changes say
// what they touched, and while one of them is under way look-ups go past the
// cache; of a shared store, the follower says what any change touched.
type cache struct {
	mu         sync.RWMutex // guards what follows
	known      uint64
	own        int // changes of this Keeper under way
	principals map[claviger.ID]*principalState
	keys       map[claviger.ID]*keyState
	refs       map[string]claviger.ID // of keys: names, former names, and ids
	names      map[string]claviger.ID // of principals: names, and ids
	sessions   map[claviger.ID]*sessionState
	clients    map[claviger.ID]*claviger.Client
	clientRefs map[string]claviger.ID // names and ids
}

func newCache() *cache {
	c := new(cache)
	c.empty()
	return c
}

// snapshot is what one decision rests on.
type snapshot struct {
	revision  uint64
	principal *principalState // nil: unknown
	key       *keyState       // nil: unknown
	client    *claviger.Client
	session   *sessionState
}

// principalState is a principal with its grants and certificates.
type principalState struct {
	record claviger.PrincipalRecord
	grants []claviger.Grant
	certs  map[string]store.Certificate // by serial
}

// admit says why the caller is not let in, "" when it is: a principal that
// stands, through a certificate that stands, whose device is trusted. It brings
// its kind and environments up to date.
func (s *principalState) admit(by *claviger.Principal) (reason string) {
	if s == nil || !s.record.Revoked.IsZero() {
		return reasonPrincipal
	}
	if cert, ok := s.certs[by.Facts.CertSerial]; ok && !cert.Revoked.IsZero() {
		return reasonPrincipal
	}
	by.Name, by.Kind, by.Environments, by.Binding = s.record.Name, s.record.Kind, s.record.Environments, s.record.Binding
	if by.Binding != nil && by.Binding.Finding != "" {
		return reasonBinding
	}
	return ""
}

// keyState is a key with what its uses need.
type keyState struct {
	key *claviger.Key

	mu      sync.Mutex // guards what follows
	blobs   map[uint32][]byte
	publics map[uint32]publicHalf
}

type publicHalf struct {
	key pubkey.Key
	kid string
}

// snapshot returns the state that a decision rests on, current as of a
// revision that was read after the call began.
func (k *Keeper) snapshot(ctx context.Context, principal, ref string) (snapshot, error) {
	at, err := k.asOf(ctx)
	if err != nil {
		return snapshot{}, err
	}
	s, ok := k.cache.look(at.Number, principal, ref)
	if ok {
		return s, nil
	}
	return k.load(ctx, at, s, principal, ref)
}

// look returns what the cache has; ok is false when anything must be read.
func (c *cache) look(revision uint64, principal, ref string) (snapshot, bool) {
	s := snapshot{revision: revision}
	c.mu.RLock()
	known := c.known
	if known >= revision {
		s.revision, s.principal, s.key = known, c.principals[c.names[principal]], c.keys[c.refs[ref]]
	}
	c.mu.RUnlock()
	if known < revision {
		c.forgetBefore(revision)
	}
	return s, s.principal != nil && (s.key != nil || ref == "")
}

// forgetBefore empties the cache when a change came from elsewhere.
func (c *cache) forgetBefore(revision uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.own == 0 && revision > c.known {
		c.known = revision
		c.empty()
	}
}

func (c *cache) empty() {
	c.principals, c.keys = map[claviger.ID]*principalState{}, map[claviger.ID]*keyState{}
	c.refs, c.names = map[string]claviger.ID{}, map[string]claviger.ID{}
	c.sessions, c.clients, c.clientRefs = map[claviger.ID]*sessionState{}, map[claviger.ID]*claviger.Client{}, map[string]claviger.ID{}
}

// load reads what the snapshot lacks, and the rest again when the store moved
// on meanwhile, so that all of it is of one revision, at or after the one that
// was confirmed.
func (k *Keeper) load(ctx context.Context, at store.Position, s snapshot, principal, ref string) (snapshot, error) {
	err := k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		revision, err := k.revision(tx, at)
		if err != nil {
			return err
		}
		if revision != s.revision {
			s = snapshot{revision: revision}
		}
		if s.principal == nil {
			if s.principal, err = loadPrincipal(tx, principal); err != nil {
				return err
			}
		}
		if s.key == nil && ref != "" {
			s.key, err = loadKey(tx, ref)
		}
		return err
	})
	if err != nil {
		return snapshot{}, err
	}
	k.cache.keep(s, principal, ref)
	return s, nil
}

// loadPrincipal reads a principal by id or name; nil when there is none.
func loadPrincipal(tx *store.Tx, ref string) (*principalState, error) {
	record, err := tx.Principal(ref)
	if errors.Is(err, claviger.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &principalState{record: record, certs: map[string]store.Certificate{}}
	if s.grants, err = tx.GrantsOf(record.ID); err != nil {
		return nil, err
	}
	certs, err := tx.Certificates(record.ID)
	for _, cert := range certs {
		s.certs[cert.Serial] = cert
	}
	return s, err
}

// loadKey reads a key by name, alias or id; nil when there is none.
func loadKey(tx *store.Tx, ref string) (*keyState, error) {
	key, err := tx.Key(ref)
	if errors.Is(err, claviger.NotFound) || errors.Is(err, claviger.Invalid) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return newKeyState(key, map[uint32][]byte{}), nil
}

func newKeyState(key claviger.Key, blobs map[uint32][]byte) *keyState {
	return &keyState{key: &key, blobs: blobs, publics: map[uint32]publicHalf{}}
}

// keep puts what was read into the cache, unless the cache has moved on.
func (c *cache) keep(s snapshot, principal, ref string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known != s.revision {
		return
	}
	if s.principal != nil {
		makeRoom(c.principals)
		makeRoom(c.names)
		c.principals[s.principal.record.ID] = s.principal
		c.names[principal] = s.principal.record.ID
	}
	if s.key != nil {
		makeRoom(c.keys)
		makeRoom(c.refs)
		c.keys[s.key.key.ID] = s.key
		c.refs[ref] = s.key.key.ID
	}
}

// makeRoom drops some entry, whichever comes first, when the map is full.
func makeRoom[K comparable, V any](m map[K]V) {
	for id := range m {
		if len(m) < maxCached {
			return
		}
		delete(m, id)
	}
}

// begin says that a change of this Keeper is under way.
func (c *cache) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own++
}

// end says that it ended, with the store at a revision, and what it touched.
// When more than that one change came between, everything is dropped.
func (c *cache) end(before, after uint64, touched []claviger.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own--
	switch {
	case after <= c.known:
	case c.known == before && after == before+1:
		c.drop(touched)
		c.known = after
	default:
		c.empty()
		c.known = after
	}
}

// advance drops what was touched up to a revision of a shared store, which may
// be lower than the last one where an operator accepted that.
func (c *cache) advance(revision uint64, touched []claviger.ID, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if all {
		c.empty()
	}
	c.drop(touched)
	c.known = revision
}

func (c *cache) drop(touched []claviger.ID) {
	for _, id := range touched {
		delete(c.principals, id)
		delete(c.keys, id)
		delete(c.sessions, id)
		delete(c.clients, id)
	}
}

// blob returns the wrapped material of a version.
func (k *Keeper) blob(ctx context.Context, s *keyState, number uint32) ([]byte, error) {
	s.mu.Lock()
	blob, ok := s.blobs[number]
	s.mu.Unlock()
	if ok {
		return blob, nil
	}
	err := k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		var err error
		blob, _, err = tx.Blob(s.key.ID, number)
		return err
	})
	if errors.Is(err, claviger.NotFound) {
		return nil, claviger.Errorf(claviger.Unavailable, "the version's wrapped material is not there", "check the version's state; if it is not destroyed, restore a backup").Wrap(err)
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[number] = blob
	return blob, nil
}

// public returns the public half of a version and its key id.
func (s *keyState) public(v *claviger.Version) (pubkey.Key, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if half, ok := s.publics[v.Number]; ok {
		return half.key, half.kid, nil
	}
	key, err := pubkey.Parse(s.key.Algorithm, v.Public)
	if err != nil {
		return pubkey.Key{}, "", claviger.Errorf(claviger.Internal, "the stored public half is damaged", "run 'claviger doctor', and restore a backup").Wrap(err)
	}
	half := publicHalf{key: key, kid: key.Thumbprint()}
	s.publics[v.Number] = half
	return half.key, half.kid, nil
}
