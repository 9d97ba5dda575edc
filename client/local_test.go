package client_test

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/api/claviger/v1/clavigerv1connect"
	"claviger.dev/client"
)

// tokens serves StateService on a Unix socket, and counts connections.
type tokens struct {
	clavigerv1connect.UnimplementedStateServiceHandler
	hold chan struct{} // a call for the key "slow" waits for it

	mu    sync.Mutex
	conns int
}

func (s *tokens) Unprotect(_ context.Context, r *connect.Request[clavigerv1.UnprotectRequest]) (*connect.Response[clavigerv1.UnprotectResponse], error) {
	if r.Msg.Key == "slow" {
		<-s.hold
	}
	out := &clavigerv1.UnprotectResponse{}
	for _, t := range r.Msg.Tokens {
		out.Items = append(out.Items, &clavigerv1.Unprotected{Ok: true, Payload: t})
	}
	return connect.NewResponse(out), nil
}

func (s *tokens) serve(t *testing.T, path string) *http.Server {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(clavigerv1connect.NewStateServiceHandler(s))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute, ConnState: func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.mu.Lock()
			s.conns++
			s.mu.Unlock()
		}
	}}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return server
}

func (s *tokens) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// Calls about tokens on the local socket keep their connections, go on when the
// server was replaced, and end with their context.
func TestTokensOnTheLocalSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	s := &tokens{hold: make(chan struct{})}
	first := s.serve(t, path)
	t.Cleanup(func() { close(s.hold) })
	c, err := client.New(client.Config{Address: "unix://" + path, Connections: 2, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	ask := func(ctx context.Context, key string, size int) error {
		token := make([]byte, size)
		answer, err := c.Unprotect(ctx, &clavigerv1.UnprotectRequest{Key: key, Tokens: [][]byte{token}})
		if err == nil && len(answer.Items[0].Payload) != size {
			t.Errorf("%d bytes became %d", size, len(answer.Items[0].Payload))
		}
		return err
	}
	for _, size := range []int{1, 5000, 1 << 20, 0} {
		if err := ask(t.Context(), "k", size); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.connections(); n != 1 {
		t.Errorf("one after the other, and %d connections", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := ask(ctx, "slow", 1); claviger.CodeOf(err) != claviger.Deadline {
		t.Errorf("a call that was given 50 ms: %v", err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := ask(t.Context(), "k", 100); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := s.connections(); n > 4 {
		t.Errorf("eight at once, two allowed, and %d connections", n)
	}
	first.Close()
	s.serve(t, path)
	for range 4 {
		if err := ask(t.Context(), "k", 1); err != nil {
			t.Fatalf("the server was replaced: %v", err)
		}
	}
}
