package client_test

import (
	"context"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/client"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker/status"
)

// sessions are what a server knows, and how often it was asked.
type sessions struct {
	ended sync.Map
	dark  atomic.Bool
	asked atomic.Int64 // requests
	of    atomic.Int64 // tokens
	hold  chan struct{}

	mu   sync.Mutex // guards what follows
	uses map[status.Use]uint64
	told chan struct{} // of each report; nil: nobody
}

func (s *sessions) report(_ context.Context, uses []status.Use) (int, error) {
	s.mu.Lock()
	for _, u := range uses {
		n := u.Count
		u.Count = 0
		if s.uses == nil {
			s.uses = map[status.Use]uint64{}
		}
		s.uses[u] += n
	}
	s.mu.Unlock()
	if s.told != nil {
		s.told <- struct{}{}
	}
	return len(uses), nil
}

func (s *sessions) SessionLive(_ context.Context, id claviger.ID) (claviger.Session, error) {
	s.of.Add(1)
	if s.dark.Load() {
		return claviger.Session{}, claviger.Errorf(claviger.Stale, "stale", "")
	}
	if _, ended := s.ended.Load(string(id)); ended {
		return claviger.Session{}, claviger.Errorf(claviger.Denied, "ended", "")
	}
	return claviger.Session{ID: id}, nil
}

func (s *sessions) ClientLive(_ context.Context, ref string) (claviger.Client, error) {
	if ref == "disabled" {
		return claviger.Client{}, claviger.Errorf(claviger.Denied, "disabled", "")
	}
	return claviger.Client{}, nil
}

func (s *sessions) TokenRevoked(context.Context, string) (bool, error) { return false, nil }

// statusOf is a resource server's Status, at a clock that the test moves.
func statusOf(t *testing.T, s *sessions) (st *client.Status, advance func(time.Duration)) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	h := &status.Handler{Door: s, Report: s.report}
	mux := http.NewServeMux()
	mux.HandleFunc(status.Path, func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if s.hold != nil {
			<-s.hold
		}
		h.ServeHTTP(w, r)
	})
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	c, err := client.New(client.Config{Address: "unix://" + socket})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	return &client.Status{Client: c, Now: func() time.Time { return now }}, func(d time.Duration) { now = now.Add(d) }
}

func accessOf(session string) dpop.Access {
	return dpop.Access{Claims: &dpop.Token{ID: "token of " + session, Session: session, Ends: time.Now().Add(time.Hour)}}
}

// TestStatusBound checks that a logout is heard of within MaxAge, that an
// answer is relied on until then, and that an ended session is not asked about
// again.
func TestStatusBound(t *testing.T) {
	t.Parallel()
	s := &sessions{}
	st, advance := statusOf(t, s)
	check := func(session string, live bool, asked int64) {
		t.Helper()
		err := st.Check(t.Context(), accessOf(session))
		if (err == nil) != live || dpop.CodeOf(err) != "" || s.asked.Load() != asked {
			t.Errorf("%s lives %t after %d questions, want %t after %d: %v", session, err == nil, s.asked.Load(), live, asked, err)
		}
	}
	check("a", true, 1)
	check("a", true, 1)
	check("b", true, 2)
	s.ended.Store("a", true)
	advance(999 * time.Millisecond)
	check("a", true, 2)
	advance(time.Millisecond)
	check("a", false, 3)
	advance(time.Minute)
	check("a", false, 4)
	check("b", true, 5)
	for client, live := range map[string]bool{"stands": true, "disabled": false} {
		err := st.Check(t.Context(), dpop.Access{Claims: &dpop.Token{ID: "of no session", Client: client, Ends: time.Now().Add(time.Hour)}})
		if (err == nil) != live {
			t.Errorf("a token of no session, of a client that %s: %v", client, err)
		}
	}
}

// TestStatusDark checks that nobody passes while the server does not know, and
// that what it did not say is not kept.
func TestStatusDark(t *testing.T) {
	t.Parallel()
	s := &sessions{}
	st, advance := statusOf(t, s)
	s.dark.Store(true)
	if err := st.Check(t.Context(), accessOf("a")); dpop.CodeOf(err) != dpop.Unavailable {
		t.Error(err)
	}
	s.dark.Store(false)
	if err := st.Check(t.Context(), accessOf("a")); err != nil {
		t.Error(err)
	}
	s.dark.Store(true)
	advance(time.Second)
	if err := st.Check(t.Context(), accessOf("a")); dpop.CodeOf(err) != dpop.Unavailable {
		t.Error(err)
	}
	if err := st.Check(t.Context(), dpop.Access{Claims: "orders"}); err == nil {
		t.Error("claims of another kind passed")
	}
	gone, err := client.New(client.Config{Address: "unix:///nowhere/at/all"})
	if err != nil {
		t.Fatal(err)
	}
	if err := (&client.Status{Client: gone}).Check(t.Context(), accessOf("a")); dpop.CodeOf(err) != dpop.Unavailable {
		t.Error(err)
	}
}

// TestStatusGathers has many ask while the first question is under way.
func TestStatusGathers(t *testing.T) {
	t.Parallel()
	s := &sessions{hold: make(chan struct{})}
	st, _ := statusOf(t, s)
	var wg sync.WaitGroup
	for range 50 {
		for _, session := range []string{"a", "b", "c"} {
			wg.Go(func() {
				if err := st.Check(t.Context(), accessOf(session)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	close(s.hold)
	wg.Wait()
	if s.of.Load() > 30 {
		t.Errorf("%d tokens were asked for in %d questions, by 150 calls about three", s.of.Load(), s.asked.Load())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := st.Check(ctx, accessOf("d")); dpop.CodeOf(err) != dpop.Unavailable && err != nil {
		t.Error(err)
	}
}

// TestStatusReports checks that each use is told of, once, with the questions
// that are asked in any case, and that the uses of a session that is not asked
// about any more are told of too.
func TestStatusReports(t *testing.T) {
	t.Parallel()
	s := &sessions{told: make(chan struct{}, 100)}
	st, advance := statusOf(t, s)
	use := func(session, method string) dpop.Access {
		a := accessOf(session)
		a.Use = dpop.Use{Method: method, URL: "https://api.example/orders", Source: netip.MustParseAddr("192.0.2.1")}
		return a
	}
	if err := st.Check(t.Context(), use("a", "GET")); err != nil || len(s.uses) > 0 {
		t.Fatalf("without an audience: %v, %v", err, s.uses)
	}
	st.Audience = "https://api.example"
	for range 10 {
		if err := st.Check(t.Context(), use("a", "GET")); err != nil {
			t.Fatal(err)
		}
	}
	advance(time.Second)
	if err := st.Check(t.Context(), use("a", "POST")); err != nil {
		t.Fatal(err)
	}
	<-s.told
	s.ended.Store("a", true)
	advance(time.Second)
	_ = st.Check(t.Context(), use("a", "GET")) // hears that it has ended
	<-s.told
	advance(time.Second)
	if err := st.Check(t.Context(), use("a", "DELETE")); err == nil {
		t.Error("an ended session lives")
	}
	<-s.told // of a use after the end, which asks nothing
	advance(time.Second)
	st.Stale(t.Context(), use("b", "GET"))
	<-s.told
	of := func(session, method string, stale bool) status.Use {
		return status.Use{Session: claviger.ID(session), Audience: "https://api.example", Method: method, Address: netip.MustParseAddr("192.0.2.1"), Stale: stale}
	}
	want := map[status.Use]uint64{of("a", "GET", false): 11, of("a", "POST", false): 1, of("a", "DELETE", false): 1, of("b", "GET", true): 1}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !maps.Equal(s.uses, want) {
		t.Errorf("told %v, want %v", s.uses, want)
	}
}
