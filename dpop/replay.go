package dpop

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Replays remembers the proofs that were used. Burn records one, by its key and
// its jti, and reports whether it was not there: of two calls with one proof,
// on whatever server, one gets true. It is remembered until the time given at
// least. An error means that nothing is known, and the proof is refused.
type Replays interface {
	Burn(ctx context.Context, thumbprint, jti string, until time.Time) (fresh bool, err error)
}

// idOf is what stands for a proof: a hash, so that what a client chose takes
// no more room than another's. The key is in it, so that nobody can use up
// another's jti.
func idOf(thumbprint, jti string) [sha256.Size]byte {
	return sha256.Sum256([]byte(thumbprint + "\x00" + jti))
}

// ErrFull is the error of a Memory that has no room: proofs are refused until
// older ones have ended.
var ErrFull = errors.New("the record of used proofs is full")

// Memory is Replays in the memory of one process, for one server. After a
// restart it knows nothing, so that a proof can be used once more within its
// time, unless its nonce ended with the process (Nonces.Epoch).
type Memory struct {
	Limit  int              // proofs at most; 0: 1 000 000, of about 150 bytes each
	PerKey int              // proofs of one key at most; 0: a sixteenth of Limit
	Now    func() time.Time // time.Now if nil

	mu    sync.Mutex
	used  map[[sha256.Size]byte]struct{}
	byKey map[string]int
	ends  map[int64][]burnt // by the second after which they are forgotten
	swept int64             // the seconds before it are done with
}

type burnt struct {
	id  [sha256.Size]byte
	key string
}

// Burn implements Replays.
func (m *Memory) Burn(_ context.Context, thumbprint, jti string, until time.Time) (bool, error) {
	now := time.Now()
	if m.Now != nil {
		now = m.Now()
	}
	limit := m.Limit
	if limit == 0 {
		limit = 1_000_000
	}
	perKey := m.PerKey
	if perKey == 0 {
		perKey = max(limit/16, 1)
	}
	id := idOf(thumbprint, jti)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.used == nil {
		m.used, m.byKey, m.ends, m.swept = map[[sha256.Size]byte]struct{}{}, map[string]int{}, map[int64][]burnt{}, now.Unix()
	}
	m.sweep(now.Unix())
	if _, ok := m.used[id]; ok {
		return false, nil
	}
	if len(m.used) >= limit || m.byKey[thumbprint] >= perKey {
		return false, ErrFull
	}
	m.used[id] = struct{}{}
	m.byKey[thumbprint]++
	end := max(until.Unix()+1, m.swept) // a part of a second counts as a whole
	m.ends[end] = append(m.ends[end], burnt{id, thumbprint})
	return true, nil
}

// sweep forgets what ended before now. It looks at each second once, and after
// a long rest at each that has proofs.
func (m *Memory) sweep(now int64) {
	if now-m.swept > int64(len(m.ends)) {
		for end := range m.ends {
			if end < now {
				m.forget(end)
			}
		}
		m.swept = now
	}
	for ; m.swept < now; m.swept++ {
		m.forget(m.swept)
	}
}

func (m *Memory) forget(end int64) {
	for _, b := range m.ends[end] {
		delete(m.used, b.id)
		if m.byKey[b.key]--; m.byKey[b.key] == 0 {
			delete(m.byKey, b.key)
		}
	}
	delete(m.ends, end)
}

// Redis is Replays in a Redis server that several servers share. It keeps
// nothing else there, and needs a server that does not evict keys which have a
// time to live: maxmemory-policy noeviction.
type Redis struct {
	// SetNX sets a key that is not there, for a time, and reports whether it did:
	// SET key 1 NX PX ttl, in the words of any client.
	SetNX  func(ctx context.Context, key string, ttl time.Duration) (bool, error)
	Prefix string           // of keys; "": "dpop:"
	Now    func() time.Time // time.Now if nil
}

// Burn implements Replays.
func (r *Redis) Burn(ctx context.Context, thumbprint, jti string, until time.Time) (bool, error) {
	now := time.Now()
	if r.Now != nil {
		now = r.Now()
	}
	prefix := r.Prefix
	if prefix == "" {
		prefix = "dpop:"
	}
	id := idOf(thumbprint, jti)
	// A second more, because this clock and that one's do not tick together.
	return r.SetNX(ctx, prefix+hex.EncodeToString(id[:]), max(until.Sub(now), 0)+time.Second)
}

// SQL is Replays in a table that several servers share, on PostgreSQL or
// SQLite. Create the table with Schema.
type SQL struct {
	DB    *sql.DB
	Limit int64 // rows at most, as counted by Purge; 0: 10 000 000

	mu   sync.Mutex
	full bool // as Purge saw it
}

// Schema makes the table of SQL where it is not there.
const Schema = `CREATE TABLE IF NOT EXISTS dpop_used (id TEXT PRIMARY KEY, ends BIGINT NOT NULL)`

// Burn implements Replays.
func (s *SQL) Burn(ctx context.Context, thumbprint, jti string, until time.Time) (bool, error) {
	s.mu.Lock()
	full := s.full
	s.mu.Unlock()
	if full {
		return false, ErrFull
	}
	id := idOf(thumbprint, jti)
	result, err := s.DB.ExecContext(ctx, `INSERT INTO dpop_used (id, ends) VALUES ($1, $2) ON CONFLICT DO NOTHING`,
		hex.EncodeToString(id[:]), until.Unix()+1)
	if err != nil {
		return false, fmt.Errorf("record proof: %w", err)
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

// Purge removes what has ended, and counts the rest against Limit. Call it each
// minute or so, on one of the servers at least.
func (s *SQL) Purge(ctx context.Context, now time.Time) error {
	if _, err := s.DB.ExecContext(ctx, `DELETE FROM dpop_used WHERE ends < $1`, now.Unix()); err != nil {
		return fmt.Errorf("purge proofs: %w", err)
	}
	var n int64
	if err := s.DB.QueryRowContext(ctx, `SELECT count(*) FROM dpop_used`).Scan(&n); err != nil {
		return fmt.Errorf("count proofs: %w", err)
	}
	limit := s.Limit
	if limit == 0 {
		limit = 10_000_000
	}
	s.mu.Lock()
	s.full = n >= limit
	s.mu.Unlock()
	return nil
}
