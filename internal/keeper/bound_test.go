package keeper_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"claviger.dev"
	"claviger.dev/internal/audit/segment"
	"claviger.dev/internal/follow"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store/postgres"
	"claviger.dev/internal/store/postgres/pgtest"
)

// The revocation bound as a linearizability test. A handle is a principal with
// a grant; it is live until it is revoked. Uses through the server that revokes
// are linearizable with that; through another they may be as of two seconds
// before they began.

// boundServer is one server behind a proxy and with a clock of its own. Its
// record is local, so that a server that is cut off can still release.
type boundServer struct {
	*world
	proxy  *pgtest.Proxy
	ahead  atomic.Int64 // of its lease's clock
	frozen atomic.Int64 // where that clock stands, as one does that ignores suspend; 0 when it goes
	mark   string
	halt   func() // ends its background work
}

func newBoundServer(t testing.TB, dsn, node string) *boundServer {
	t.Helper()
	s := &boundServer{
		world: &world{TB: t, dir: t.TempDir(), keys: &watched{Custodian: custodian(t)}},
		proxy: pgtest.NewProxy(t, dsn),
	}
	var err error
	if s.db, err = postgres.Open(t.Context(), postgres.Config{DSN: s.proxy.DSN(), Writers: 2, Readers: 2}); err != nil {
		t.Fatal(err)
	}
	log, err := segment.Open(t.Context(), segment.Config{Dir: filepath.Join(s.dir, "audit")})
	if err != nil {
		t.Fatal(err)
	}
	s.log = &watchedLog{Log: log}
	s.mark = filepath.Join(s.dir, "mark")
	s.launch(node)
	if s.op, err = s.ByUID(t.Context(), claviger.Facts{UID: operatorUID, RequestID: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.proxy.Hold(false)
		s.halt()
		s.close()
	})
	return s
}

// launch opens a keeper and lets it run.
func (s *boundServer) launch(node string) {
	s.Helper()
	cfg := s.config()
	cfg.Node, cfg.Mark = node, s.mark
	cfg.BootTime = func() time.Duration {
		if at := s.frozen.Load(); at != 0 {
			return time.Duration(at)
		}
		return follow.BootTime() + time.Duration(s.ahead.Load())
	}
	k, err := keeper.Open(s.Context(), cfg)
	if err != nil {
		s.Fatal(err)
	}
	s.Keeper = k
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error)
	go func() { ran <- k.Run(ctx) }()
	s.halt = sync.OnceFunc(func() {
		stop()
		if err := <-ran; err != nil {
			s.Error(err)
		}
	})
}

// stand stops the clock of the lease, or lets it go.
func (s *boundServer) stand(still bool) {
	var at time.Duration
	if still {
		at = follow.BootTime() + time.Duration(s.ahead.Load())
	}
	s.frozen.Store(int64(at))
}

// handle is something that is revoked once.
type handle struct {
	by    claviger.Principal
	grant claviger.ID
}

const boundKey = "prod/bound/key"

// handles makes n of them.
func (s *boundServer) handles(prefix string, n int) ([]handle, error) {
	list := make([]handle, n)
	for i := range list {
		name := fmt.Sprintf("%s-%d", prefix, i)
		p, err := s.CreatePrincipal(s.Context(), s.op, keeper.CreatePrincipal{Name: name, Kind: claviger.Workload, Environments: []string{"prod"}, Owner: "tests"})
		if err != nil {
			return nil, err
		}
		g, err := s.CreateGrant(s.Context(), s.op, keeper.CreateGrant{Principal: string(p.ID), Selector: boundKey, Operations: []string{string(claviger.Sign)}, Reason: "test"})
		if err != nil {
			return nil, err
		}
		list[i] = handle{claviger.Principal{ID: p.ID, Facts: claviger.Facts{Method: "peer", UID: 7, RequestID: "test"}}, g.ID}
	}
	return list, nil
}

// use uses a handle; the code is "" for a success.
func (s *boundServer) use(h handle) claviger.Code {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := s.Sign(ctx, h.by, keeper.SignRequest{Key: boundKey, Inputs: [][]byte{[]byte("message")}})
	return claviger.CodeOf(err)
}

func (s *boundServer) revoke(h handle, principal bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var err error
	if principal {
		_, err = s.RevokePrincipal(ctx, s.op, string(h.by.ID), "test")
	} else {
		_, err = s.RevokeGrant(ctx, s.op, string(h.grant), "test")
	}
	return err
}

// TestTheCheckSees histories that must not be, so that the others mean something.
func TestTheCheckSees(t *testing.T) {
	t.Parallel()
	ms := time.Millisecond
	revoked := event{revoke: true, call: 10 * ms, done: 20 * ms}
	for name, test := range map[string]struct {
		use  event
		want porcupine.CheckResult
	}{
		"the same server, before":         {event{call: 5 * ms, done: 30 * ms}, porcupine.Ok},
		"the same server, after":          {event{call: 21 * ms, done: 30 * ms}, porcupine.Illegal},
		"refused before":                  {event{call: 1 * ms, done: 5 * ms, code: claviger.Denied}, porcupine.Illegal},
		"refused after":                   {event{call: 25 * ms, done: 30 * ms, code: claviger.Denied}, porcupine.Ok},
		"another server, within":          {event{server: 1, call: 2000 * ms, done: 2100 * ms}, porcupine.Ok},
		"another server, too late":        {event{server: 1, call: 2021 * ms, done: 2100 * ms}, porcupine.Illegal},
		"another server, too late, stale": {event{server: 1, call: 2021 * ms, done: 2100 * ms, code: claviger.Stale}, porcupine.Ok},
	} {
		if got := check([]event{revoked, test.use}); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}

// cluster is two servers on one database.
type cluster struct {
	t       *testing.T
	dsn     string
	servers [2]*boundServer
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dsn: pgtest.Start(t)}
	for i := range c.servers {
		c.servers[i] = newBoundServer(t, c.dsn, strconv.Itoa(i))
	}
	c.servers[0].key(boundKey, claviger.Ed25519)
	return c
}

// pause waits; it is no synchronisation, but the pace of a history.
func pause(d time.Duration) { <-time.After(d) }

// span is when a server had a fault.
type span struct{ from, to time.Duration }

// fault makes one fault at a server, and mends it.
func (s *boundServer) fault(r *rand.Rand) {
	for_ := time.Duration(100+r.IntN(2500)) * time.Millisecond
	switch r.IntN(5) {
	case 0, 1: // cut off; and stopped or suspended meanwhile
		s.proxy.Hold(true)
		pause(for_)
		if r.IntN(2) == 0 {
			s.ahead.Add(int64(time.Duration(r.IntN(20)) * time.Second))
		}
		s.proxy.Hold(false)
	case 2:
		s.proxy.Cut()
	case 3:
		s.proxy.Delay(time.Duration(1+r.IntN(300)) * time.Millisecond)
		pause(for_ / 2)
		s.proxy.Delay(0)
	case 4:
		s.ahead.Add(int64(time.Duration(r.IntN(20)) * time.Second))
	}
}

// run makes a history with the faults of a seed, and returns it by handles, and
// when each server had faults.
func (c *cluster) run(seed uint64, n int) ([][]event, [2][]span, error) {
	var faults [2][]span
	list, err := c.servers[0].handles(fmt.Sprintf("s%d", seed), n)
	if err != nil {
		return nil, faults, err
	}
	h := &history{start: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var current atomic.Int64
	var working, breaking sync.WaitGroup
	for i, s := range c.servers {
		for w := range 2 {
			working.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(10+2*i+w)))
				for ; ctx.Err() == nil; pause(4 * time.Millisecond) {
					at := int(current.Load()) - r.IntN(2) // the one that is revoked next, or was just now
					if r.IntN(4) == 0 {
						at = r.IntN(n)
					}
					at = min(max(at, 0), n-1)
					h.note(event{handle: at, server: i}, func() claviger.Code { return s.use(list[at]) })
				}
			})
		}
		if seed%3 == 0 {
			continue // health, for comparison
		}
		breaking.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for pause(time.Duration(r.IntN(1200)) * time.Millisecond); ctx.Err() == nil; pause(time.Duration(300+r.IntN(1200)) * time.Millisecond) {
				from := time.Since(h.start)
				s.fault(r)
				faults[i] = append(faults[i], span{from, time.Since(h.start)})
			}
		})
	}
	r := rand.New(rand.NewPCG(seed, 99))
	for i := range list {
		pause(time.Duration(40+r.IntN(60)) * time.Millisecond)
		by, principal := r.IntN(2), r.IntN(2) == 0
		h.note(event{handle: i, server: by, revoke: true}, func() claviger.Code { return claviger.CodeOf(c.servers[by].revoke(list[i], principal)) })
		pause(40 * time.Millisecond)
		current.Store(int64(i + 1))
	}
	pause(follow.Bound + 200*time.Millisecond)
	cancel()
	working.Wait()
	breaking.Wait()
	parts := make([][]event, n)
	for _, e := range h.list {
		parts[e.handle] = append(parts[e.handle], e)
	}
	return parts, faults, nil
}

// late returns how long after a revocation through one server the last use began
// that the other let through; ok is false when the revocation failed.
func late(list []event) (last time.Duration, at event, ok bool) {
	for _, e := range list {
		if e.revoke && e.code == "" {
			at, ok = e, true
		}
	}
	for _, e := range list {
		if ok && !e.revoke && e.code == "" && e.server != at.server {
			last = max(last, e.call-at.done)
		}
	}
	return last, at, ok
}

// boundRuns is how many seeded histories there are.
func boundRuns(t *testing.T) int {
	text := os.Getenv("CLAVIGER_BOUND_RUNS")
	if text == "" {
		return 30
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// outcome sums up what many histories have shown.
type boundOutcome struct {
	mu             sync.Mutex // guards what follows
	uses, stale    int
	revoked        int
	faulty, health []time.Duration
}

func (o *boundOutcome) add(parts [][]event, faults [2][]span) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, list := range parts {
		for _, e := range list {
			if !e.revoke {
				o.uses++
			}
			if e.code == claviger.Stale {
				o.stale++
			}
		}
		last, at, ok := late(list)
		if !ok {
			continue
		}
		o.revoked++
		touched := func(s span) bool {
			return s.from < at.done+follow.Every && s.to > at.call-4*follow.Every // a lapsed server catches up meanwhile
		}
		if slices.ContainsFunc(faults[0], touched) || slices.ContainsFunc(faults[1], touched) {
			o.faulty = append(o.faulty, last)
		} else {
			o.health = append(o.health, last)
		}
	}
}

func percentile(list []time.Duration, p float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(len(list)-1, int(p*float64(len(list))))]
}

// TestRevocationBound makes seeded histories with faults on two servers, and
// checks each with Porcupine.
func TestRevocationBound(t *testing.T) {
	t.Parallel()
	const clusters = 10
	seeds := make(chan uint64, 1<<16)
	for seed := range boundRuns(t) {
		seeds <- uint64(seed + 1)
	}
	close(seeds)
	var out boundOutcome
	var working sync.WaitGroup
	for range clusters {
		c := newCluster(t)
		working.Go(func() {
			for seed := range seeds {
				parts, faults, err := c.run(seed, 16)
				if err != nil {
					t.Errorf("seed %d: %v", seed, err)
					continue
				}
				for i, list := range parts {
					if got := check(list); got != porcupine.Ok {
						last, at, _ := late(list)
						t.Errorf("seed %d, handle %d: %s; revoked by server %d at %v, last use %v after; faults %v; %+v", seed, i, got, at.server, at.done, last, faults, telling(list))
					}
				}
				out.add(parts, faults)
			}
		})
	}
	working.Wait()
	p99, worst := percentile(out.health, 0.99), percentile(append(slices.Clone(out.health), out.faulty...), 1)
	t.Logf("%d uses (%d stale), %d revocations; the last use at the other server began after: in health (%d) p50 %v, p99 %v; with faults (%d) p99 %v; at most %v",
		out.uses, out.stale, out.revoked, len(out.health), percentile(out.health, 0.5), p99, len(out.faulty), percentile(out.faulty, 0.99), worst)
	if p99 > 250*time.Millisecond || worst > follow.Bound {
		t.Errorf("p99 %v, at most %v: want under 250ms and %v", p99, worst, follow.Bound)
	}
	if len(out.health) < out.revoked/10 || len(out.faulty) == 0 || out.stale == 0 {
		t.Errorf("of %d revocations %d were in health and %d were not, %d uses were stale: the faults do not fit", out.revoked, len(out.health), len(out.faulty), out.stale)
	}
}

// TestAClockThatStands is why the lease is on a clock that counts suspend: with
// one that does not, the check sees a use that must not be.
func TestAClockThatStands(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for n, stands := range []bool{false, true} {
		want := porcupine.Ok
		if stands {
			want = porcupine.Illegal
		}
		for try := range 5 {
			list := c.cutOffHistory(t, fmt.Sprintf("h%d-%d", n, try), stands)
			if code := list[2].code; code != "" && code != claviger.Stale {
				continue // a key of its own changed meanwhile, so that it had to ask the database
			}
			if got := check(list); got != want {
				t.Errorf("with a clock that stands (%v): %s, want %s: %+v", stands, got, want, list)
			}
			want = "seen"
			break
		}
		if want != "seen" {
			t.Errorf("with a clock that stands (%v): it always had to ask the database", stands)
		}
	}
}

// cutOffHistory uses a handle at a server, cuts that off, revokes the handle
// through the other, and uses it again when no lease may hold any more.
func (c *cluster) cutOffHistory(t *testing.T, name string, stands bool) []event {
	t.Helper()
	there := c.servers[1]
	list, err := c.servers[0].handles(name, 1)
	if err != nil {
		t.Fatal(err)
	}
	h := &history{start: time.Now()}
	use := func() { h.note(event{server: 1}, func() claviger.Code { return there.use(list[0]) }) }
	c.servers[0].settle()
	use() // and keeps what it read
	if stands {
		there.stand(true)
		defer there.stand(false)
	}
	there.proxy.Hold(true)
	defer there.proxy.Hold(false)
	h.note(event{revoke: true}, func() claviger.Code { return claviger.CodeOf(c.servers[0].revoke(list[0], false)) })
	pause(follow.Bound + time.Millisecond)
	use()
	return h.list
}

// TestOlderCopy fails over to a copy from before a revocation: no server that has
// seen it lets the handle through again, before a restart or after. The control
// is the operator who accepts that copy.
func TestOlderCopy(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	list, err := c.servers[0].handles("h", 2)
	if err != nil {
		t.Fatal(err)
	}
	want := func(what string, h handle, want claviger.Code) {
		t.Helper()
		for i, s := range c.servers {
			if got := s.use(h); got != want {
				t.Errorf("%s, server %d: %q, want %q", what, i, got, want)
			}
		}
	}
	followed := func() {
		t.Helper()
		for _, s := range c.servers {
			for end := time.Now().Add(20 * time.Second); s.use(list[1]) != ""; pause(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("a server does not follow")
				}
			}
		}
	}
	const idle = 1100 * time.Millisecond // a connection that was idle for longer is tried before it is used
	pgtest.Copy(t, c.dsn)
	pause(idle)
	if err := c.servers[0].revoke(list[0], false); err != nil {
		t.Fatal(err)
	}
	c.servers[0].settle()
	want("revoked", list[0], claviger.Denied)
	pgtest.Restore(t, c.dsn)
	pause(idle)
	for _, s := range c.servers {
		s.ahead.Add(int64(follow.Lease)) // or wait for it
	}
	want("older copy, revoked", list[0], claviger.Stale)
	want("older copy, not revoked", list[1], claviger.Stale)
	for _, s := range c.servers {
		if _, err := s.CreateGrant(t.Context(), s.op, keeper.CreateGrant{Principal: string(list[0].by.ID), Selector: boundKey, Operations: []string{"sign"}, Reason: "test"}); claviger.CodeOf(err) != claviger.Stale {
			t.Errorf("a change on an older copy: %v", err)
		}
		if err := s.Ready(t.Context()); claviger.CodeOf(err) != claviger.Stale {
			t.Errorf("ready on an older copy: %v", err)
		}
	}
	again := c.servers[0]
	again.halt()
	if err := again.Close(context.Background()); err != nil {
		t.Logf("close: %v", err) // what it gathered may not be written
	}
	again.launch("0")
	want("older copy after a restart", list[0], claviger.Stale)
	for _, s := range c.servers {
		if _, _, _, err := follow.Accept(t.Context(), s.db, s.mark, false); err != nil {
			t.Fatal(err)
		}
	}
	followed()
	want("accepted: what was revoked since is good again", list[0], "")
	n := 0
	for _, r := range c.servers[1].records() {
		if r.Action == "server.accept-database" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d records of the acceptance", n)
	}
}
