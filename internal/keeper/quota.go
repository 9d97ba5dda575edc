package keeper

import (
	"sync"
	"time"

	"claviger.dev"
)

// Statements are kept for keepRuns, within these bounds: the store is for keys.
const (
	maxStatements = 1 << 30   // bytes of all that are kept; the oldest go first, the newest stays
	maxSubmitted  = 256 << 20 // bytes of the statements of one principal in an hour
)

// submissions counts what principals have had stated in the present hour, since
// the start of this server.
type submissions struct {
	mu    sync.Mutex // guards all below
	hour  time.Time
	bytes map[claviger.ID]int
}

// take counts a statement, or refuses it.
func (s *submissions) take(by claviger.ID, size int, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if hour := now.Truncate(time.Hour); !hour.Equal(s.hour) {
		s.hour, s.bytes = hour, map[claviger.ID]int{}
	}
	if s.bytes[by]+size > maxSubmitted {
		return claviger.Errorf(claviger.Exhausted, "the statements of this hour are larger than 256 MiB together", "submit the run in the next hour, or run evidence on fewer keys")
	}
	s.bytes[by] += size
	return nil
}
