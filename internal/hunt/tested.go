package hunt

import (
	"hash/maphash"
	"sync/atomic"
)

// tested is a matcher that remembers windows that are no key, so that what
// stands in many places (a table of constants, a page of a database in its log
// and in a cache) is tested once. A window is known by two keyed hashes: one for
// its place in the table, and one of 64 bits that is compared. So a key is taken
// for a window that was tested with a probability of 2^-64. It is safe for
// concurrent use.
type tested struct {
	matcher
	place, mark maphash.Seed
	marks       []atomic.Uint64
}

// rememberedWindows is how many windows a matcher remembers, in 8 bytes each,
// which take memory once they are written to.
const rememberedWindows = 1 << 21

func newTested(m matcher) *tested {
	return &tested{matcher: m, place: maphash.MakeSeed(), mark: maphash.MakeSeed(), marks: make([]atomic.Uint64, rememberedWindows)}
}

func remembering(all []matcher) (out []matcher) {
	for _, m := range all {
		out = append(out, newTested(m))
	}
	return out
}

// match implements matcher.
func (t *tested) match(window []byte, both bool) (int, string) {
	at, mark := maphash.Bytes(t.place, window)%rememberedWindows, maphash.Bytes(t.mark, window)
	if both {
		mark = ^mark
	}
	if t.marks[at].Load() == mark {
		return -1, ""
	}
	key, form := t.matcher.match(window, both)
	if key < 0 {
		t.marks[at].Store(mark)
	}
	return key, form
}
