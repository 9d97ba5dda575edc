package server

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxBuckets is how many callers of one class are told apart at once.
const maxBuckets = 8192

// buckets are the token buckets of one rate class, one for each caller. When
// there are too many, the older half is forgotten: whoever is active moves to
// the younger half at each call, so that only idle callers start anew.
type buckets struct {
	limit rate.Limit
	burst int

	mu    sync.Mutex // owns the maps
	young map[string]*rate.Limiter
	old   map[string]*rate.Limiter
}

// newBuckets allows perSecond calls a second on average and burst at once.
func newBuckets(perSecond float64, burst int) *buckets {
	return &buckets{limit: rate.Limit(perSecond), burst: burst, young: make(map[string]*rate.Limiter)}
}

// spent reports whether a caller's bucket is empty, and takes nothing.
func (b *buckets) spent(caller string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok := b.young[caller]
	if !ok {
		l, ok = b.old[caller]
	}
	return ok && l.TokensAt(now) < 1
}

// allow takes one token of the caller's bucket. A nil class has no limit.
func (b *buckets) allow(caller string, now time.Time) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	l, ok := b.young[caller]
	if !ok {
		if l, ok = b.old[caller]; !ok {
			l = rate.NewLimiter(b.limit, b.burst)
		}
		if len(b.young) >= maxBuckets/2 {
			b.old, b.young = b.young, make(map[string]*rate.Limiter)
		}
		b.young[caller] = l
	}
	b.mu.Unlock()
	return l.AllowN(now, 1)
}
