package keyd

import (
	"container/list"
	"errors"
	"math/bits"
	"sync"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/hazmat"
)

// ownEviction is how many slots of a size there must be before making room for
// another of that size takes the oldest of them. Below it, room comes from the
// oldest slots of any size, so that a few large keys do not starve.
const ownEviction = 8

// slot is loaded material. It does not change once it is in the table.
type slot struct {
	number      uint64
	binding     frames.Binding
	fingerprint claviger.Fingerprint
	public      []byte // where the algorithm needs it to sign
	secret      hazmat.Secret
	derived     derived
	used        uint64 // guarded by slots.mu; the table's clock at the last use
	place       *list.Element
}

// slots is the table of loaded material: as much as the arena holds, the least
// recently used given up for the next.
type slots struct {
	arena *hazmat.Arena
	epoch uint64

	mu     sync.Mutex
	next   uint64
	clock  uint64
	table  map[uint64]*slot
	recent map[int]*list.List // of *slot, most recent first, by size class
}

func newSlots(arena *hazmat.Arena, epoch uint64) *slots {
	return &slots{arena: arena, epoch: epoch, table: map[uint64]*slot{}, recent: map[int]*list.List{}}
}

// sizeClass is the exponent of the power of two that holds n bytes, as in the arena.
func sizeClass(n int) int { return max(6, bits.Len(uint(n-1))) }

// room puts a secret of n bytes into the arena, giving up slots if it must.
func (s *slots) room(n int, fill func([]byte) error) (hazmat.Secret, error) {
	for {
		secret, err := s.arena.New(hazmat.Token{}, n, fill)
		if !errors.Is(err, claviger.Exhausted) || !s.evict(sizeClass(n)) {
			return secret, err
		}
	}
}

// evict gives up one slot and reports whether there was any.
func (s *slots) evict(class int) bool {
	s.mu.Lock()
	var victim *slot
	if own := s.recent[class]; own != nil && own.Len() >= ownEviction {
		victim = own.Back().Value.(*slot)
	} else {
		for _, l := range s.recent {
			if b := l.Back(); b != nil && (victim == nil || b.Value.(*slot).used < victim.used) {
				victim = b.Value.(*slot)
			}
		}
	}
	if victim != nil {
		s.remove(victim)
	}
	s.mu.Unlock()
	if victim == nil {
		return false
	}
	victim.release() // waits for uses under way, so not under mu
	return true
}

func (s *slots) remove(v *slot) {
	delete(s.table, v.number)
	s.recent[sizeClass(v.secret.Len())].Remove(v.place)
}

// add puts material into the table and returns its name.
func (s *slots) add(v *slot) frames.Slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.number = s.next
	s.next++
	s.clock++
	v.used = s.clock
	class := sizeClass(v.secret.Len())
	if s.recent[class] == nil {
		s.recent[class] = list.New()
	}
	v.place = s.recent[class].PushFront(v)
	s.table[v.number] = v
	return frames.Slot{Epoch: s.epoch, Number: v.number}
}

// get returns the material of a use, if it is loaded and is what the caller
// thinks it is.
func (s *slots) get(u frames.Use) (*slot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.table[u.Slot.Number]
	if v == nil || u.Slot.Epoch != s.epoch {
		return nil, frames.ErrNotLoaded
	}
	if v.fingerprint != u.Fingerprint {
		return nil, claviger.Errorf(claviger.Invalid, "the slot holds other material than was authorised", "nothing was done; report this with the request id")
	}
	s.clock++
	v.used = s.clock
	s.recent[sizeClass(v.secret.Len())].MoveToFront(v.place)
	return v, nil
}

// drop empties a slot, if it is there.
func (s *slots) drop(name frames.Slot) {
	s.mu.Lock()
	v := s.table[name.Number]
	if v == nil || name.Epoch != s.epoch {
		s.mu.Unlock()
		return
	}
	s.remove(v)
	s.mu.Unlock()
	v.release()
}

// release gives up the material and what was derived from it.
func (v *slot) release() {
	v.secret.Release()
	v.derived.close()
}
