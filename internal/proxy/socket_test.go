package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/proxy"
)

// socketServer answers each request on a Unix socket with what answer writes,
// and counts the connections. A nil answer closes without one.
func socketServer(t *testing.T, answer func(body string) string) (path string, connections chan struct{}) {
	t.Helper()
	dir, err := os.MkdirTemp("", "clv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	connections = make(chan struct{}, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			connections <- struct{}{}
			go func() {
				defer conn.Close()
				for in := bufio.NewReader(conn); ; {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					body, _ := io.ReadAll(r.Body)
					text := answer(r.URL.Path + " " + string(body))
					if _, _ = io.WriteString(conn, text); text == "" {
						return
					}
				}
			}()
		}
	}()
	return path, connections
}

func httpAnswer(status int, header, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s", status, header, len(body), body)
}

func TestSocket(t *testing.T) {
	t.Parallel()
	path, connections := socketServer(t, func(string) string {
		return httpAnswer(200, "", `{"items":[{"ok":true,"payload":"cGF5bG9hZA==","version":2,"renew":true,"later":1}]}`)
	})
	s := proxy.NewSocket(path)
	defer s.Close()
	for range 3 {
		got, err := s.Unprotect(t.Context(), &pb.UnprotectRequest{Key: "k", Format: "f", Tokens: [][]byte{[]byte("x")}})
		want := &pb.UnprotectResponse{Items: []*pb.Unprotected{{Ok: true, Payload: []byte("payload"), Version: 2, Renew: true}}}
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("got %v, %v", got, err)
		}
	}
	if n := len(connections); n != 1 {
		t.Errorf("%d connections for calls one after the other", n)
	}
}

// TestSocketErrors gives what custody and whoever stands in its place may answer.
func TestSocketErrors(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer string
		want   claviger.Code
	}{
		"refused":        {httpAnswer(403, "Claviger-Code: denied\r\nClaviger-Hint: ask\r\n", `{"code":"permission_denied","message":"no"}`), claviger.Denied},
		"away":           {httpAnswer(503, "Claviger-Code: unavailable\r\n", `{}`), claviger.Unavailable},
		"other code":     {httpAnswer(500, "Claviger-Code: what\r\n", `{}`), claviger.Internal},
		"no code":        {httpAnswer(404, "", `not found`), claviger.Internal},
		"no message":     {httpAnswer(200, "", `<html>`), claviger.Internal},
		"no HTTP":        {"SSH-2.0-OpenSSH\r\n", claviger.Unavailable},
		"closed":         {"", claviger.Unavailable},
		"body that ends": {"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{}", claviger.Deadline},
		"no answer":      {"HTTP/1.1", claviger.Deadline},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, _ := socketServer(t, func(string) string { return tc.answer })
			s := proxy.NewSocket(path)
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if _, err := s.Protect(ctx, &pb.ProtectRequest{Key: "k"}); claviger.CodeOf(err) != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
	t.Run("nobody", func(t *testing.T) {
		t.Parallel()
		_, err := proxy.NewSocket(filepath.Join(t.TempDir(), "s")).Protect(t.Context(), &pb.ProtectRequest{})
		if claviger.CodeOf(err) != claviger.Unavailable {
			t.Errorf("got %v", err)
		}
	})
}

// TestSocketAgain has the server close a connection that was idle: the next
// call takes another.
func TestSocketAgain(t *testing.T) {
	t.Parallel()
	calls := 0
	path, connections := socketServer(t, func(string) string {
		if calls++; calls == 2 {
			return ""
		}
		return httpAnswer(200, "", `{"tokens":["eA=="],"version":1}`)
	})
	s := proxy.NewSocket(path)
	defer s.Close()
	for range 2 {
		got, err := s.Protect(t.Context(), &pb.ProtectRequest{Key: "k", Payloads: [][]byte{{1}}})
		if err != nil || got.Version != 1 {
			t.Errorf("got %v, %v", got, err)
		}
	}
	if n := len(connections); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}
