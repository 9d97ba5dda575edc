// Package guard judges the uses of a session's key by the session's own past:
// a key that cannot be exported can still be used by whatever runs in the page
// or the process that has its handle.
//
// It owns the rules that raise the events of sessions, and what is remembered of a
// session, which is of one size however long the session lasts. It promises
// that a judgement rests on nothing but the session, its past and the use, and
// that one event of a session is raised at most once a minute, however often
// its rule is broken. It must never do anything about a use: it says what
// should be done, and whoever asked does it.
package guard

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/keeper"
)

// The rules' numbers.
const (
	// stalePerMinute is how many proofs with an old nonce a page may well send
	// in a minute: after a rest, all its first requests together have one.
	stalePerMinute = 20
	// UsualVolume is how many uses in a minute are nothing to speak of, whatever
	// the session's past, where its client does not say otherwise.
	UsualVolume = 300
	// surge is how often its own usual volume a session may have in a minute.
	surge = 8
	// memory is over how many minutes a session's usual volume is taken.
	memory = 8
	// sources is how many addresses of a session are known at once: a device
	// comes by its home, its telephone network and its office.
	sources = 4
)

// past is what is remembered of a session.
type past struct {
	minute int64   // that count and stale are of
	count  uint64  // uses
	stale  uint64  // proofs with an old nonce
	usual  float64 // uses a minute, the older the less they weigh

	uses    uint64 // over the session's life
	last    time.Time
	tokens  float64 // of the rate's bucket
	filled  time.Time
	seen    [sources]netip.Addr
	raised  map[claviger.SessionEvent]int64 // the minute in which each was; as many as there are events
	started bool
}

// Guard remembers the pasts of sessions. The zero Guard is ready; its methods
// may be called by many goroutines at once.
type Guard struct {
	Sessions int // that are remembered at most; 0: 100 000, of about 500 bytes each

	mu       sync.Mutex // guards what follows
	now, old map[claviger.ID]*past
}

// Judge says what should be done about a use, and remembers it. A session that
// was forgotten, because too many others were used since, begins a new past.
func (g *Guard) Judge(session claviger.Session, u keeper.SessionUse) keeper.UseVerdict {
	s := &session
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.past(s.ID)
	if !p.started {
		p.begin(s, u.At)
	}
	return p.judge(s, u)
}

// past finds a session's past. Half of what may be remembered is dropped at
// once, the half that was used less recently.
func (g *Guard) past(id claviger.ID) *past {
	if p, ok := g.now[id]; ok {
		return p
	}
	limit := g.Sessions
	if limit <= 0 {
		limit = 100_000
	}
	if g.now == nil || len(g.now) >= max(limit/2, 1) {
		g.old, g.now = g.now, map[claviger.ID]*past{}
	}
	p, ok := g.old[id]
	if !ok {
		p = &past{raised: map[claviger.SessionEvent]int64{}}
	}
	delete(g.old, id)
	g.now[id] = p
	return p
}

func (p *past) begin(s *claviger.Session, at time.Time) {
	p.started = true
	p.minute, p.uses, p.last, p.filled = minuteOf(at), s.Uses, s.LastUsed, at
	if s.Rate != nil {
		p.tokens = float64(s.Rate.Burst)
	}
	if s.Source.Address.IsValid() {
		p.seen[0] = s.Source.Address.Unmap()
	}
}

func minuteOf(at time.Time) int64 { return at.Unix() / 60 }

// judge applies every rule to a use. A use that is refused counts towards the
// volume, since that is what was tried, and towards nothing else.
func (p *past) judge(s *claviger.Session, u keeper.SessionUse) (v keeper.UseVerdict) {
	n := max(u.Count, 1)
	p.pass(minuteOf(u.At))
	if u.Stale {
		p.stale += n
	}
	p.count += n
	refuse := func(e claviger.SessionEvent, broken bool) {
		if broken {
			p.raise(&v, s, e)
			if v.Refuse == "" {
				v.Refuse = e
			}
		}
	}
	refuse(claviger.UseAfterEnd, s.State == claviger.SessionEnded || !u.At.Before(s.Ends))
	if v.Refuse != "" {
		return v // of an ended session nothing else matters
	}
	refuse(claviger.UseAfterIdle, !u.At.Before(p.idleEnd(s)))
	refuse(claviger.UseForeignAudience, slices.ContainsFunc(u.Audiences, func(audience string) bool { return !s.Permits(audience, "") }))
	refuse(claviger.UseForeignMethod, u.Method != "" && len(s.Methods) > 0 && !slices.Contains(s.Methods, u.Method))
	refuse(claviger.UseOverBudget, s.MaxUses > 0 && p.uses+n > s.MaxUses)
	p.source(&v, s, u.Source.Address)
	if p.count > p.ceiling(s) {
		p.raise(&v, s, claviger.UseVolume)
	}
	if p.stale > stalePerMinute {
		p.raise(&v, s, claviger.UseStaleNonce)
	}
	if v.Refuse == "" {
		refuse(claviger.UseOverRate, !p.take(s.Rate, float64(n), u.At))
	}
	if v.Refuse != "" || u.Stale {
		return v
	}
	p.uses += n
	if u.At.After(p.last) {
		p.last = u.At
	}
	return v
}

// pass closes the minutes that are over.
func (p *past) pass(minute int64) {
	if minute <= p.minute {
		return // also where a report comes late, or the clock was set back
	}
	p.usual += (float64(p.count) - p.usual) / memory
	for range min(minute-p.minute-1, 64) { // after so many without a use nothing is left
		p.usual -= p.usual / memory
	}
	p.minute, p.count, p.stale = minute, 0, 0
}

// ceiling is how many uses this minute may have.
func (p *past) ceiling(s *claviger.Session) uint64 {
	floor := s.Volume
	if floor == 0 {
		floor = UsualVolume
	}
	return max(floor, uint64(surge*p.usual))
}

func (p *past) idleEnd(s *claviger.Session) time.Time {
	known := *s
	if p.last.After(known.LastUsed) {
		known.LastUsed = p.last
	}
	return known.IdleEnd()
}

// take takes from the bucket of a rate. A clock that was set back adds nothing.
func (p *past) take(rate *claviger.Rate, n float64, at time.Time) bool {
	if rate == nil {
		return true
	}
	if passed := at.Sub(p.filled); passed > 0 {
		p.tokens = min(p.tokens+passed.Seconds()*rate.PerSecond, float64(rate.Burst))
		p.filled = at
	}
	if p.tokens < n {
		return false
	}
	p.tokens -= n
	return true
}

// source looks at where a use came from. The session's own rule says what
// becomes of one from elsewhere than where it was opened.
func (p *past) source(v *keeper.UseVerdict, s *claviger.Session, from netip.Addr) {
	if !from.IsValid() {
		return
	}
	from = from.Unmap()
	opened := s.Source.Address.Unmap()
	if opened.IsValid() && from != opened {
		switch s.SourceChanges {
		case claviger.SourceRefused:
			p.raise(v, s, claviger.UseSourceChange)
			v.Refuse = claviger.UseSourceChange
			return
		case claviger.SourceEnds:
			p.raise(v, s, claviger.UseSourceChange)
			v.Refuse, v.End = claviger.UseSourceChange, true
			return
		}
	}
	i := slices.Index(p.seen[:], from)
	if i < 0 {
		if p.seen[0].IsValid() {
			p.raise(v, s, claviger.UseSourceChange)
		}
		i = sources - 1
	}
	copy(p.seen[1:i+1], p.seen[:i]) // the latest first
	p.seen[0] = from
}

// raise notes an event, for the record once a minute, and asks for the session
// to be suspended where its client wants that.
func (p *past) raise(v *keeper.UseVerdict, s *claviger.Session, e claviger.SessionEvent) {
	if last, ok := p.raised[e]; !ok || last != p.minute {
		p.raised[e] = p.minute
		v.Events = append(v.Events, e)
	}
	if v.Suspend == "" && s.State == claviger.SessionLive && slices.Contains(s.SuspendOn, e) {
		v.Suspend = e
	}
}
