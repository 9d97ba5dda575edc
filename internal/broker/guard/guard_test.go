package guard_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/broker/guard"
	"claviger.dev/internal/keeper"
)

var start = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return start.Add(d) }

// session returns a live session that is used for one API from one address.
func session(change func(*claviger.Session)) *claviger.Session {
	s := &claviger.Session{
		ID: "ses_1", State: claviger.SessionLive, Created: start, Ends: at(12 * time.Hour), Idle: claviger.Duration(time.Hour),
		Audiences: []string{"https://api.example/*"}, SourceChanges: claviger.SourceAllowed,
		Source: claviger.Source{Address: netip.MustParseAddr("192.0.2.1")},
	}
	if change != nil {
		change(s)
	}
	return s
}

var (
	home   = netip.MustParseAddr("192.0.2.1")
	abroad = netip.MustParseAddr("203.0.113.9")
)

const api = "https://api.example/orders"

// TestRules gives each rule one use that it is about, and one beside it that it
// must let pass.
func TestRules(t *testing.T) {
	t.Parallel()
	type events = []claviger.SessionEvent
	all := func(s *claviger.Session) { s.SuspendOn = claviger.SessionEvents }
	for _, tt := range []struct {
		name   string
		change func(*claviger.Session)
		use    keeper.SessionUse
		want   keeper.UseVerdict
	}{
		{"nothing of note", all, keeper.SessionUse{At: at(0), Audiences: []string{api}, Method: "GET", Source: claviger.Source{Address: home}}, keeper.UseVerdict{}},
		{"an audience that it is not for", all, keeper.SessionUse{At: at(0), Audiences: []string{"https://elsewhere.example/"}},
			keeper.UseVerdict{Refuse: claviger.UseForeignAudience, Events: events{claviger.UseForeignAudience}, Suspend: claviger.UseForeignAudience}},
		{"a method that it is not for", func(s *claviger.Session) { s.Methods = []string{"GET"} }, keeper.SessionUse{At: at(0), Audiences: []string{api}, Method: "DELETE"},
			keeper.UseVerdict{Refuse: claviger.UseForeignMethod, Events: events{claviger.UseForeignMethod}}},
		{"one of its methods", func(s *claviger.Session) { s.Methods = []string{"GET", "POST"} }, keeper.SessionUse{At: at(0), Audiences: []string{api}, Method: "POST"}, keeper.UseVerdict{}},
		{"just before it is idle for too long", nil, keeper.SessionUse{At: at(time.Hour - 1)}, keeper.UseVerdict{}},
		{"after it was idle", nil, keeper.SessionUse{At: at(time.Hour)}, keeper.UseVerdict{Refuse: claviger.UseAfterIdle, Events: events{claviger.UseAfterIdle}}},
		{"idle begins with the last use", func(s *claviger.Session) { s.LastUsed = at(time.Hour) }, keeper.SessionUse{At: at(2*time.Hour - 1)}, keeper.UseVerdict{}},
		{"after logout", func(s *claviger.Session) { s.State = claviger.SessionEnded; s.SuspendOn = claviger.SessionEvents }, keeper.SessionUse{At: at(0), Audiences: []string{"x"}},
			keeper.UseVerdict{Refuse: claviger.UseAfterEnd, Events: events{claviger.UseAfterEnd}}},
		{"after its last moment", func(s *claviger.Session) { s.Idle = claviger.Duration(24 * time.Hour) }, keeper.SessionUse{At: at(12 * time.Hour)},
			keeper.UseVerdict{Refuse: claviger.UseAfterEnd, Events: events{claviger.UseAfterEnd}}},
		{"the last of its budget", func(s *claviger.Session) { s.MaxUses, s.Uses = 10, 7 }, keeper.SessionUse{At: at(0), Count: 3}, keeper.UseVerdict{}},
		{"beyond its budget", func(s *claviger.Session) { s.MaxUses, s.Uses = 10, 7 }, keeper.SessionUse{At: at(0), Count: 4},
			keeper.UseVerdict{Refuse: claviger.UseOverBudget, Events: events{claviger.UseOverBudget}}},
		{"as fast as it may", func(s *claviger.Session) { s.Rate = &claviger.Rate{PerSecond: 1, Burst: 5} }, keeper.SessionUse{At: at(0), Count: 5}, keeper.UseVerdict{}},
		{"faster", func(s *claviger.Session) { s.Rate = &claviger.Rate{PerSecond: 1, Burst: 5} }, keeper.SessionUse{At: at(0), Count: 6},
			keeper.UseVerdict{Refuse: claviger.UseOverRate, Events: events{claviger.UseOverRate}}},
		{"another address is an event", all, keeper.SessionUse{At: at(0), Source: claviger.Source{Address: abroad}}, keeper.UseVerdict{Events: events{claviger.UseSourceChange}, Suspend: claviger.UseSourceChange}},
		{"the same address, as IPv6 writes it", nil, keeper.SessionUse{At: at(0), Source: claviger.Source{Address: netip.MustParseAddr("::ffff:192.0.2.1")}}, keeper.UseVerdict{}},
		{"another address is refused", func(s *claviger.Session) { s.SourceChanges = claviger.SourceRefused }, keeper.SessionUse{At: at(0), Source: claviger.Source{Address: abroad}},
			keeper.UseVerdict{Refuse: claviger.UseSourceChange, Events: events{claviger.UseSourceChange}}},
		{"another address ends it", func(s *claviger.Session) { s.SourceChanges = claviger.SourceEnds }, keeper.SessionUse{At: at(0), Source: claviger.Source{Address: abroad}},
			keeper.UseVerdict{Refuse: claviger.UseSourceChange, Events: events{claviger.UseSourceChange}, End: true}},
		{"as many as nobody minds", all, keeper.SessionUse{At: at(0), Count: guard.UsualVolume}, keeper.UseVerdict{}},
		{"in bulk", all, keeper.SessionUse{At: at(0), Count: guard.UsualVolume + 1}, keeper.UseVerdict{Events: events{claviger.UseVolume}, Suspend: claviger.UseVolume}},
		{"in bulk, where its client allows that", func(s *claviger.Session) { s.Volume = 1000 }, keeper.SessionUse{At: at(0), Count: 1000}, keeper.UseVerdict{}},
		{"a page that wakes up", all, keeper.SessionUse{At: at(0), Count: 20, Stale: true}, keeper.UseVerdict{}},
		{"proofs minted ahead of time", all, keeper.SessionUse{At: at(0), Count: 21, Stale: true}, keeper.UseVerdict{Events: events{claviger.UseStaleNonce}, Suspend: claviger.UseStaleNonce}},
		{"a suspended one is not suspended again", func(s *claviger.Session) { s.State = claviger.SessionSuspended; s.SuspendOn = claviger.SessionEvents },
			keeper.SessionUse{At: at(0), Count: 1000}, keeper.UseVerdict{Events: events{claviger.UseVolume}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := new(guard.Guard)
			if d := cmp.Diff(tt.want, g.Judge(*session(tt.change), tt.use)); d != "" {
				t.Errorf("verdict (-want +got):\n%s", d)
			}
		})
	}
}

// TestPast uses one session for an hour, and then as its past does not explain.
func TestPast(t *testing.T) {
	t.Parallel()
	hour := func(perMinute int) (*guard.Guard, *claviger.Session) {
		g, s := new(guard.Guard), session(nil)
		for m := range 60 {
			for range perMinute {
				if v := g.Judge(*s, keeper.SessionUse{At: at(time.Duration(m) * time.Minute), Audiences: []string{api}, Source: claviger.Source{Address: home}}); len(v.Events) > 0 || v.Refuse != "" {
					t.Fatalf("minute %d of %d uses: %+v", m, perMinute, v)
				}
			}
		}
		return g, s
	}
	for perMinute, want := range map[int]int{10: guard.UsualVolume, 100: 8*100 - 1} { // an average that approaches 100 from below
		g, s := hour(perMinute)
		n := 0
		for ; n < 10_000; n++ {
			if v := g.Judge(*s, keeper.SessionUse{At: at(time.Hour), Audiences: []string{api}, Source: claviger.Source{Address: home}}); len(v.Events) > 0 {
				break
			}
		}
		if n != want {
			t.Errorf("after an hour at %d a minute: %d uses in a minute before the event, want %d", perMinute, n, want)
		}
	}
	t.Run("a rest weighs too", func(t *testing.T) {
		t.Parallel()
		g, s := hour(100)
		v := g.Judge(*s, keeper.SessionUse{At: at(time.Hour + 50*time.Minute), Count: guard.UsualVolume + 1, Audiences: []string{api}, Source: claviger.Source{Address: home}})
		if !slices.Contains(v.Events, claviger.UseVolume) {
			t.Errorf("50 minutes of rest left the volume of before: %+v", v)
		}
	})
}

// TestEventOnceAMinute: a rule that is broken a thousand times leaves one
// record a minute, and is answered each time.
func TestEventOnceAMinute(t *testing.T) {
	t.Parallel()
	g, s := new(guard.Guard), session(func(s *claviger.Session) { s.SuspendOn = []claviger.SessionEvent{claviger.UseForeignAudience} })
	raised := 0
	for i := range 1000 {
		v := g.Judge(*s, keeper.SessionUse{At: at(time.Duration(i) * 120 * time.Millisecond), Audiences: []string{"https://elsewhere.example/"}})
		if v.Refuse != claviger.UseForeignAudience || v.Suspend != claviger.UseForeignAudience {
			t.Fatalf("use %d: %+v", i, v)
		}
		if slices.Contains(v.Events, claviger.UseForeignAudience) {
			raised++
		}
	}
	if raised != 2 {
		t.Errorf("%d events in two minutes, want 2", raised)
	}
}

// TestRefusedUsesSpendNothing: what is refused does not keep a session from
// being idle, and spends none of its budget.
func TestRefusedUsesSpendNothing(t *testing.T) {
	t.Parallel()
	g, s := new(guard.Guard), session(func(s *claviger.Session) { s.MaxUses = 2 })
	for m := range 59 {
		g.Judge(*s, keeper.SessionUse{At: at(time.Duration(m) * time.Minute), Audiences: []string{"https://elsewhere.example/"}})
	}
	if v := g.Judge(*s, keeper.SessionUse{At: at(59 * time.Minute), Audiences: []string{api}, Count: 2}); v.Refuse != "" {
		t.Errorf("refused uses spent the budget: %+v", v)
	}
	if v := g.Judge(*s, keeper.SessionUse{At: at(119 * time.Minute), Audiences: []string{api}}); v.Refuse != claviger.UseAfterIdle {
		t.Errorf("after an hour of nothing: %+v", v)
	}
}

// TestAddresses: those of one person's devices are no news each time.
func TestAddresses(t *testing.T) {
	t.Parallel()
	g, s := new(guard.Guard), session(nil)
	events := 0
	for i := range 100 {
		from := netip.AddrFrom4([4]byte{198, 51, 100, byte(i % 3)})
		v := g.Judge(*s, keeper.SessionUse{At: at(time.Duration(i) * time.Minute), Audiences: []string{api}, Source: claviger.Source{Address: from}})
		events += len(v.Events)
	}
	if events != 3 {
		t.Errorf("%d events of three addresses by turns, want one for each", events)
	}
}

// TestLateReports: a resource server that tells late, or a clock that was set
// back, neither empties a minute nor fills a bucket.
func TestLateReports(t *testing.T) {
	t.Parallel()
	g, s := new(guard.Guard), session(func(s *claviger.Session) { s.Rate = &claviger.Rate{PerSecond: 1, Burst: 10} })
	now := at(10 * time.Minute)
	if v := g.Judge(*s, keeper.SessionUse{At: now, Count: 10}); v.Refuse != "" {
		t.Fatal(v)
	}
	if v := g.Judge(*s, keeper.SessionUse{At: now.Add(-5 * time.Minute)}); v.Refuse != claviger.UseOverRate {
		t.Errorf("an earlier time filled the bucket: %+v", v)
	}
	if v := g.Judge(*s, keeper.SessionUse{At: now.Add(-5 * time.Minute), Count: 300, Stale: true}); !slices.Contains(v.Events, claviger.UseVolume) {
		t.Errorf("an earlier minute began the count anew: %+v", v)
	}
}

// TestMemory holds what is remembered to its bound, however many sessions there
// are and whatever is done with one.
func TestMemory(t *testing.T) {
	g := &guard.Guard{Sessions: 1000}
	grow := func(n int) {
		for i := range n {
			s := session(func(s *claviger.Session) { s.ID = claviger.ID(fmt.Sprintf("ses_%d", i)) })
			for j := range 10 {
				g.Judge(*s, keeper.SessionUse{At: at(time.Duration(i+j) * time.Second), Audiences: []string{fmt.Sprintf("https://%d.example/", i)}, Method: fmt.Sprintf("M%d", j),
					Source: claviger.Source{Address: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(j)})}, Count: 400})
			}
		}
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	grow(2000)
	before := heap()
	grow(20_000)
	if after := heap(); after > before+1<<20 {
		t.Errorf("18 000 sessions more took %d KiB more", (after-before)>>10)
	}
	runtime.KeepAlive(g)
	// A session that is used is not the one that is forgotten.
	g = &guard.Guard{Sessions: 100}
	mine := session(func(s *claviger.Session) { s.MaxUses = 1000 })
	for i := range 1000 {
		if v := g.Judge(*mine, keeper.SessionUse{At: at(0), Audiences: []string{api}}); v.Refuse != "" {
			t.Fatal(v)
		}
		g.Judge(*session(func(s *claviger.Session) { s.ID = claviger.ID(fmt.Sprintf("ses_other_%d", i)) }), keeper.SessionUse{At: at(0)})
	}
	if v := g.Judge(*mine, keeper.SessionUse{At: at(0), Audiences: []string{api}}); v.Refuse != claviger.UseOverBudget {
		t.Errorf("the past of a session in use was forgotten: %+v", v)
	}
}
