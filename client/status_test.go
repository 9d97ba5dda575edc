package client_test

import (
	"context"
	"net"
	"net/http"
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
	h := &status.Handler{Door: s}
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
	check("a", false, 3)
	check("b", true, 4)
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
	if s.of.Load() > 100 {
		t.Errorf("%d tokens were asked for in %d questions, by 150 calls about three", s.of.Load(), s.asked.Load())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := st.Check(ctx, accessOf("d")); dpop.CodeOf(err) != dpop.Unavailable && err != nil {
		t.Error(err)
	}
}
