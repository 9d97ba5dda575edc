package ops_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

// load is callers that sign without pause.
type load struct {
	t      *testing.T
	key    *pb.Key
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu       sync.Mutex
	signed   []int // acknowledged, by caller
	longest  time.Duration
	failures map[claviger.Code]int
	progress chan struct{} // closed and replaced at each signature
}

// start has each client sign with the key until the load is stopped.
func start(t *testing.T, k *pb.Key, callers ...*client.Client) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{t: t, key: k, cancel: cancel, signed: make([]int, len(callers)), failures: map[claviger.Code]int{}, progress: make(chan struct{})}
	for i, c := range callers {
		l.group.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				err := sign(context.WithoutCancel(ctx), c, k) // what is sent is waited for
				l.note(i, time.Since(began), err)
			}
		})
	}
	t.Cleanup(l.stop)
	return l
}

func (l *load) note(caller int, took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest = max(l.longest, took)
	if err != nil {
		e, ok := errors.AsType[*claviger.Error](err)
		if !ok {
			l.t.Errorf("sign: %v", err)
			return
		}
		l.failures[e.Code]++
		return
	}
	l.signed[caller]++
	close(l.progress)
	l.progress = make(chan struct{})
}

// through waits until every caller has signed n times more, forgets what was
// measured before, and returns what was measured meanwhile.
func (l *load) through(n int) (longest time.Duration, failures map[claviger.Code]int) {
	l.t.Helper()
	l.mu.Lock()
	want := make([]int, len(l.signed))
	for i, done := range l.signed {
		want[i] = done + n
	}
	l.mu.Unlock()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		l.mu.Lock()
		done, progress := true, l.progress
		for i := range want {
			done = done && l.signed[i] >= want[i]
		}
		if done {
			longest, failures = l.longest, l.failures
			l.longest, l.failures = 0, map[claviger.Code]int{}
		}
		l.mu.Unlock()
		if done {
			return longest, failures
		}
		select {
		case <-progress:
		case <-late.C:
			l.t.Fatal("a caller does not get through")
		}
	}
}

func (l *load) stop() {
	l.cancel()
	l.group.Wait()
}

// recorded counts the signatures with the key that the record allows.
func (s *site) recorded(key string) (n int) {
	s.t.Helper()
	for r, err := range s.op.Audit(s.t.Context(), &pb.QueryRequest{Key: key, Action: "use.sign", Outcome: "allowed"}) {
		check(s.t, err)
		var line struct{ Count int }
		check(s.t, json.Unmarshal(r.Line, &line))
		n += max(line.Count, 1)
	}
	return n
}

// TestFaultsUnderLoad stops the processes in every way while callers sign.
func TestFaultsUnderLoad(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.run("init", "--config", s.config, "--kind", "file")
	s.up()
	k := s.key("prod/shop/receipts")
	var callers []*client.Client
	for _, name := range []string{"one", "two", "three"} {
		c, _ := s.caller(name, "prod/shop/*")
		callers = append(callers, c)
	}
	me, err := s.op.WhoAmI(t.Context())
	check(t, err)
	_, err = s.op.CreateGrant(t.Context(), &pb.CreateGrantRequest{Principal: me.Principal.Id, Selector: "prod/*/*", Operations: []string{"sign"}, Reason: "test"})
	check(t, err)
	l := start(t, k, append(callers, s.op)...)
	l.through(20)

	for range 3 {
		check(t, syscall.Kill(s.pid("keyd"), syscall.SIGKILL))
		longest, failures := l.through(50)
		t.Logf("key process killed: longest wait %v, refused %v", longest, failures)
		if longest > 2*time.Second || len(failures) > 0 {
			t.Errorf("a killed key process shows: longest wait %v, refused %v", longest, failures)
		}
	}
	old := s.pid("keyd")
	check(t, syscall.Kill(old, syscall.SIGSTOP))
	longest, failures := l.through(50)
	t.Logf("key process stopped: longest wait %v, refused %v", longest, failures)
	if longest > 4*time.Second {
		t.Errorf("with a key process that hangs, somebody waited %v", longest)
	}
	for code := range failures {
		if code != claviger.Unavailable {
			t.Errorf("with a key process that hangs, callers see %s", code)
		}
	}
	if s.pid("keyd") == old {
		t.Error("the key process that hung is still in use")
	}
	for range 2 {
		s.hup()
		if longest, failures := l.through(20); longest > 2*time.Second || len(failures) > 0 {
			t.Errorf("a hand-over shows: longest wait %v, refused %v", longest, failures)
		} else {
			t.Logf("hand-over: longest wait %v", longest)
		}
	}
	mark := s.mark()
	check(t, syscall.Kill(s.pid("server"), syscall.SIGKILL))
	killed := time.Now()
	s.serving(mark)
	back := time.Since(killed)
	longest, failures = l.through(50)
	t.Logf("server killed: serving again after %v, longest wait %v, refused %v", back, longest, failures)
	for code := range failures {
		if code != claviger.Unavailable {
			t.Errorf("without a server, callers see %s", code)
		}
	}
	l.stop()
	acknowledged := 0
	for _, n := range l.signed {
		acknowledged += n
	}
	if n := s.recorded(k.Name); n < acknowledged {
		t.Errorf("%d signatures were acknowledged and %d are recorded", acknowledged, n)
	} else {
		t.Logf("%d signatures acknowledged, %d recorded", acknowledged, n)
	}
	s.run("audit", "verify")
}
