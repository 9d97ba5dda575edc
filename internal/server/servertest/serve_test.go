package servertest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/server"
	"claviger.dev/internal/server/servertest"
)

// kids are the key ids of a key set.
func kids(t *testing.T, a answer) (out []string) {
	t.Helper()
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal(a.body, &set); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	for _, k := range set.Keys {
		for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "k", "priv"} {
			if _, ok := k[private]; ok {
				t.Errorf("a published key has the private member %q", private)
			}
		}
		out = append(out, k["kid"].(string))
	}
	return out
}

func TestKeySetAcrossARotation(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	operator := s.Local(t)
	remote := s.Remote(t, nil) // verifiers need no certificate
	const path = "/jwks/prod/billing"
	if got := send(t, remote, "GET", path, nil, nil); got.status != 404 || got.header.Get("Claviger-Code") != "not_found" {
		t.Errorf("before there is a key: %d %v", got.status, got.header)
	}
	s.Key(t, "prod/billing/cookie", claviger.HMACSHA256)
	if got := send(t, remote, "GET", path, nil, nil); got.status != 404 {
		t.Errorf("with a symmetric key alone: %d %s", got.status, got.body)
	}
	first := s.Key(t, "prod/billing/token", claviger.ECDSAP256)
	s.Key(t, "prod/other/token", claviger.Ed25519)

	one := send(t, remote, "GET", path, nil, nil)
	if diff := cmp.Diff([]string{first.Versions[0].Kid}, kids(t, one)); diff != "" {
		t.Errorf("key ids (-want +got):\n%s", diff)
	}
	tag := one.header.Get("ETag")
	if one.status != 200 || one.header.Get("Content-Type") != "application/jwk-set+json" || !strings.HasPrefix(tag, `"`) ||
		!strings.HasPrefix(one.header.Get("Cache-Control"), "public, max-age=") {
		t.Errorf("%d %v", one.status, one.header)
	}
	if got := send(t, remote, "GET", path, map[string]string{"If-None-Match": tag}, nil); got.status != 304 || len(got.body) != 0 || got.header.Get("ETag") != tag {
		t.Errorf("the same again: %d %v %s", got.status, got.header, got.body)
	}
	rotated, err := operator.RotateKey(t.Context(), connect.NewRequest(&clavigerv1.RotateKeyRequest{Key: "prod/billing/token", Reason: "test"}))
	if err != nil {
		t.Fatal(err)
	}
	both := send(t, remote, "GET", path, map[string]string{"If-None-Match": tag}, nil)
	got := kids(t, both)
	for _, v := range rotated.Msg.Versions {
		if !strings.Contains(strings.Join(got, " "), v.Kid) {
			t.Errorf("after the rotation version %d (%s) is missing in %v", v.Number, v.State, got)
		}
	}
	if both.status != 200 || both.header.Get("ETag") == tag || len(got) != 2 {
		t.Errorf("after the rotation: %d, %v, %v", both.status, both.header, got)
	}
	if _, err := operator.ChangeState(t.Context(), connect.NewRequest(&clavigerv1.ChangeStateRequest{
		Key: "prod/billing/token", Version: 1, State: string(claviger.Compromised), Reason: "test",
	})); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{rotated.Msg.Versions[1].Kid}, kids(t, send(t, remote, "GET", path, nil, nil))); diff != "" {
		t.Errorf("key ids without the compromised one (-want +got):\n%s", diff)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keyd, gone := filepath.Join(dir, "keyd"), filepath.Join(dir, "gone")
	built, err := servertest.Keyd()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(built)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyd, program, 0o700); err != nil {
		t.Fatal(err)
	}
	s := servertest.Start(t, servertest.Options{Keyd: keyd})
	local := s.Local(t)
	until := func(path string, status int) answer {
		again := time.NewTicker(20 * time.Millisecond)
		defer again.Stop()
		for limit := time.Now().Add(20 * time.Second); ; <-again.C {
			got := send(t, local, "GET", path, nil, nil)
			if got.status == status {
				return got
			}
			if time.Now().After(limit) {
				t.Fatalf("%s: %d %s, want %d", path, got.status, got.body, status)
			}
		}
	}
	until("/readyz", 200)
	if err := errors.Join(os.Rename(keyd, gone), s.Process.Signal(syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if got := until("/readyz", 503); got.header.Get("Claviger-Code") != "unavailable" || got.header.Get("Claviger-Hint") == "" || got.code() != "unavailable" {
		t.Errorf("without a key process: %v %s", got.header, got.body)
	}
	if got := send(t, local, "GET", "/livez", nil, nil); got.status != 200 {
		t.Errorf("alive without a key process: %d", got.status)
	}
	if err := os.Rename(gone, keyd); err != nil {
		t.Fatal(err)
	}
	until("/readyz", 200)
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	s.Key(t, "prod/secretapp/token", claviger.Ed25519)
	wantCode(t, sign(t.Context(), s.Local(t), "prod/secretapp/token"), claviger.Denied)
	if n := metric(t, s, `claviger_requests_total{code="ok",method="/claviger.v1.KeyService/CreateKey"}`); n != 1 {
		t.Errorf("%v keys were made, want 1", n)
	}
	if n := metric(t, s, `claviger_session_events_total{event="volume"}`); n != 0 {
		t.Errorf("%v events of sessions that there are not", n)
	}
	if n := metric(t, s, `claviger_requests_total{code="denied",method="/claviger.v1.UseService/Sign"}`); n != 1 {
		t.Errorf("%v uses were denied, want 1", n)
	}
	operator := s.Local(t)
	key, err := operator.CreateKey(t.Context(), connect.NewRequest(&clavigerv1.CreateKeyRequest{Name: "dev/secretapp/cookie", Algorithm: "machine-key", Recipe: "django"}))
	if err != nil {
		t.Fatal(err)
	}
	me, err := operator.WhoAmI(t.Context(), connect.NewRequest(&clavigerv1.WhoAmIRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	s.Allow(t, me.Msg.Principal.Name, "dev/secretapp/*", nil, claviger.Protect, claviger.Unprotect)
	made, err := operator.Protect(t.Context(), connect.NewRequest(&clavigerv1.ProtectRequest{Key: "dev/secretapp/cookie", Format: "django.signer", Payloads: [][]byte{{1}, {2}}}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := operator.Unprotect(t.Context(), connect.NewRequest(&clavigerv1.UnprotectRequest{Key: "dev/secretapp/cookie", Format: "django.signer", Tokens: append(made.Msg.Tokens, []byte("x"))})); err != nil {
		t.Fatal(err)
	}
	for _, operation := range []string{"protect", "unprotect"} {
		if n := metric(t, s, fmt.Sprintf("claviger_version_tokens_total{key=%q,operation=%q,version=\"1\"}", key.Msg.Id, operation)); n != 2 {
			t.Errorf("%v tokens of %s, want 2", n, operation)
		}
	}
	page := scrape(t, s)
	if strings.Contains(page, "secretapp") {
		t.Error("the metrics name a key")
	}
	for _, name := range []string{"claviger_request_seconds_bucket", "claviger_connections", "process_cpu_seconds_total", "go_goroutines"} {
		if !strings.Contains(page, name) {
			t.Errorf("there is no series %s", name)
		}
	}
}

// TestStop stops while a stream waits for more and a connection is idle.
func TestStop(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	operator := s.Local(t)
	stream, err := operator.Query(t.Context(), connect.NewRequest(&clavigerv1.QueryRequest{Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	s.Key(t, "dev/app/token", claviger.Ed25519)
	if !stream.Receive() {
		t.Fatalf("nothing follows: %v", stream.Err())
	}
	if !bytes.HasPrefix(stream.Msg().Line, []byte("{")) || stream.Msg().Writer == "" {
		t.Errorf("a record is %v", stream.Msg())
	}
	serving(t, s)
	begun := time.Now()
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > time.Duration(s.Config.Drain)-time.Second {
		t.Errorf("the stop took %v: something was waited for to the last", took)
	}
	for stream.Receive() {
		continue
	}
	if err := stream.Err(); connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("a stream that was cut off ends with %v", err)
	}
	if _, err := net.Dial("unix", s.Socket); err == nil {
		t.Error("the socket still takes connections")
	}
	if _, err := os.Stat(s.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// TestStreamsOutliveTimeouts follows the record for longer than a request may
// take to arrive.
func TestStreamsOutliveTimeouts(t *testing.T) {
	t.Parallel()
	const body = 100 * time.Millisecond
	s := servertest.Start(t, servertest.Options{Change: func(c *server.Config) {
		c.Limits.HeaderTimeout, c.Limits.BodyTimeout = claviger.Duration(body), claviger.Duration(body)
	}})
	operator := s.Local(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := operator.Query(ctx, connect.NewRequest(&clavigerv1.QueryRequest{Action: "key.create", Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	timer := time.NewTimer(5 * body)
	defer timer.Stop()
	<-timer.C
	s.Key(t, "dev/app/token", claviger.Ed25519)
	if !stream.Receive() {
		t.Fatalf("the stream ended: %v", stream.Err())
	}
}

func TestSocketFile(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "clv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	first, err := server.ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("mode %v, %v; want 0666", info.Mode(), err)
	}
	if _, err := server.ListenSocket(path); !errors.Is(err, claviger.Conflict) {
		t.Errorf("a second server: got %v, want conflict", err)
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first server lost its socket: %v", err)
	} else {
		conn.Close()
	}
	first.Close()

	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}) // of another program, without a lock
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if _, err := server.ListenSocket(path); !errors.Is(err, claviger.Conflict) {
		t.Errorf("where another program listens: got %v, want conflict", err)
	}
	stale.Close()
	again, err := server.ListenSocket(path)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	again.Close()

	for name, occupy := range map[string]func() error{
		"a file":          func() error { return os.WriteFile(path, []byte("precious"), 0o600) },
		"a directory":     func() error { return os.Mkdir(path, 0o700) },
		"a dangling link": func() error { return os.Symlink(filepath.Join(dir, "none"), path) },
	} {
		if err := occupy(); err != nil {
			t.Fatal(err)
		}
		if _, err := server.ListenSocket(path); !errors.Is(err, claviger.Conflict) {
			t.Errorf("%s: got %v, want conflict", name, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := server.ListenSocket(filepath.Join(dir, "none", "s")); err == nil {
		t.Error("a socket in no directory")
	}
}

// BenchmarkTLSSign signs end to end over TLS 1.3 and HTTP/1.1, 64 at once, with
// the durable record on.
func BenchmarkTLSSign(b *testing.B) {
	for _, algorithm := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256} {
		b.Run(string(algorithm), func(b *testing.B) {
			s := servertest.Start(b, servertest.Options{})
			cert, _ := s.Enrol(b, "web")
			s.Key(b, "prod/web/tls", algorithm)
			s.Allow(b, "web", "prod/web/*", nil, claviger.Sign)
			c := s.Remote(b, cert)
			c.HTTP.Transport.(*http.Transport).MaxConnsPerHost = 64
			work := make(chan struct{})
			failed := make(chan error, 64)
			b.ResetTimer()
			for range 64 {
				go func() {
					var err error
					for range work {
						if err == nil {
							err = sign(b.Context(), c, "prod/web/tls")
						}
					}
					failed <- err
				}()
			}
			for b.Loop() {
				work <- struct{}{}
			}
			close(work)
			for range 64 {
				if err := <-failed; err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sign/s")
		})
	}
}
