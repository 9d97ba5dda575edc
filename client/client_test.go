package client_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/api/claviger/v1/clavigerv1connect"
	"claviger.dev/client"
)

// fake answers as the server does. A method without an answer is refused.
type fake struct {
	clavigerv1connect.UnimplementedKeyServiceHandler
	clavigerv1connect.UnimplementedUseServiceHandler
	clavigerv1connect.UnimplementedAuditServiceHandler
	clavigerv1connect.UnimplementedPrincipalServiceHandler
	clavigerv1connect.UnimplementedServerServiceHandler

	mu    sync.Mutex // guards all below
	calls int
	seen  []*http.Request

	getKey      func() (*clavigerv1.Key, error)
	createKey   func() (*clavigerv1.Key, error)
	beginImport func() (*clavigerv1.OneTimeKey, error)
	importKey   func(*clavigerv1.ImportKeyRequest) (*clavigerv1.Key, error)
	sign        func(context.Context, *clavigerv1.SignRequest) (*clavigerv1.SignResponse, error)
	enroll      func(*clavigerv1.EnrollRequest) (*clavigerv1.Certificate, error)
	renew       func(*clavigerv1.RenewRequest) (*clavigerv1.Certificate, error)
	open        func(*clavigerv1.OpenRequest) (*clavigerv1.OpenResponse, error)
}

func respond[A any](answer *A, err error) (*connect.Response[A], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

func (f *fake) GetKey(context.Context, *connect.Request[clavigerv1.GetKeyRequest]) (*connect.Response[clavigerv1.Key], error) {
	return respond(f.getKey())
}

func (f *fake) CreateKey(context.Context, *connect.Request[clavigerv1.CreateKeyRequest]) (*connect.Response[clavigerv1.Key], error) {
	return respond(f.createKey())
}

func (f *fake) BeginImport(context.Context, *connect.Request[clavigerv1.BeginImportRequest]) (*connect.Response[clavigerv1.OneTimeKey], error) {
	return respond(f.beginImport())
}

func (f *fake) ImportKey(_ context.Context, r *connect.Request[clavigerv1.ImportKeyRequest]) (*connect.Response[clavigerv1.Key], error) {
	return respond(f.importKey(r.Msg))
}

func (f *fake) Sign(ctx context.Context, r *connect.Request[clavigerv1.SignRequest]) (*connect.Response[clavigerv1.SignResponse], error) {
	return respond(f.sign(ctx, r.Msg))
}

func (f *fake) Open(_ context.Context, r *connect.Request[clavigerv1.OpenRequest]) (*connect.Response[clavigerv1.OpenResponse], error) {
	return respond(f.open(r.Msg))
}

func (f *fake) Enroll(_ context.Context, r *connect.Request[clavigerv1.EnrollRequest]) (*connect.Response[clavigerv1.Certificate], error) {
	return respond(f.enroll(r.Msg))
}

func (f *fake) Renew(_ context.Context, r *connect.Request[clavigerv1.RenewRequest]) (*connect.Response[clavigerv1.Certificate], error) {
	return respond(f.renew(r.Msg))
}

func (f *fake) Backup(_ context.Context, _ *connect.Request[clavigerv1.BackupRequest], out *connect.ServerStream[clavigerv1.BackupChunk]) error {
	for _, part := range []string{"a", "b"} {
		if err := out.Send(&clavigerv1.BackupChunk{Data: []byte(part)}); err != nil {
			return err
		}
	}
	return refuse(claviger.Unavailable)
}

func (f *fake) Query(_ context.Context, r *connect.Request[clavigerv1.QueryRequest], out *connect.ServerStream[clavigerv1.AuditRecord]) error {
	for seq := range uint64(r.Msg.Last) {
		if err := out.Send(&clavigerv1.AuditRecord{Seq: seq}); err != nil {
			return err
		}
	}
	return refuse(claviger.Denied)
}

func (f *fake) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(clavigerv1connect.NewKeyServiceHandler(f))
	mux.Handle(clavigerv1connect.NewUseServiceHandler(f))
	mux.Handle(clavigerv1connect.NewAuditServiceHandler(f))
	mux.Handle(clavigerv1connect.NewPrincipalServiceHandler(f))
	mux.Handle(clavigerv1connect.NewServerServiceHandler(f))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.calls++
		f.seen = append(f.seen, r.Clone(context.Background()))
		f.mu.Unlock()
		mux.ServeHTTP(w, r)
	})
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// refuse is an error as the server writes it.
func refuse(code claviger.Code) error {
	err := connect.NewError(connect.Code(claviger.Mappings[code].RPC), errors.New("what is wrong"))
	err.Meta().Set("Claviger-Code", string(code))
	err.Meta().Set("Claviger-Hint", "what to do")
	err.Meta().Set("Claviger-Request-Id", "r1")
	return err
}

// serve starts a TLS server that would rather speak HTTP/2, and a client.
func serve(t *testing.T, f *fake, config client.Config) *client.Client {
	t.Helper()
	s := httptest.NewUnstartedServer(f.handler())
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	config.Address, config.Roots = s.URL, x509.NewCertPool()
	config.Roots.AddCert(s.Certificate())
	c, err := client.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestTransport(t *testing.T) {
	t.Parallel()
	f := &fake{getKey: func() (*clavigerv1.Key, error) { return &clavigerv1.Key{Id: "x"}, nil }}
	c := serve(t, f, client.Config{})
	for range 10 {
		if _, err := c.GetKey(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range f.seen {
		h := r.Header
		if r.ProtoMajor != 1 || r.RemoteAddr != f.seen[0].RemoteAddr || h.Get("Content-Type") != "application/proto" ||
			strings.Contains(h.Get("Accept-Encoding"), "gzip") || h.Get("Content-Encoding") != "" || h.Get("Connect-Timeout-Ms") == "" {
			t.Fatalf("%s from %s with %v", r.Proto, r.RemoteAddr, h)
		}
	}
}

func TestSocket(t *testing.T) {
	t.Parallel()
	f := &fake{getKey: func() (*clavigerv1.Key, error) { return &clavigerv1.Key{Id: "x"}, nil }}
	path := filepath.Join(t.TempDir(), "claviger.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: f.handler(), ReadHeaderTimeout: time.Second}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	c, err := client.New(client.Config{Address: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	if k, err := c.GetKey(t.Context(), "x"); err != nil || k.Id != "x" {
		t.Errorf("GetKey: %v, %v", k, err)
	}
}

func TestRetries(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		create bool // a call that changes something
		code   claviger.Code
		fails  int
		calls  int
		want   claviger.Code
	}{
		{"again", false, claviger.Unavailable, 2, 3, ""},
		{"bounded", false, claviger.Unavailable, 99, 5, claviger.Unavailable},
		{"denied", false, claviger.Denied, 99, 1, claviger.Denied},
		{"stale", false, claviger.Stale, 99, 1, claviger.Stale},
		{"exhausted", false, claviger.Exhausted, 99, 1, claviger.Exhausted},
		{"a change", true, claviger.Unavailable, 99, 1, claviger.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := &fake{}
			f.getKey = func() (*clavigerv1.Key, error) {
				if f.count() <= test.fails {
					return nil, refuse(test.code)
				}
				return &clavigerv1.Key{}, nil
			}
			f.createKey = f.getKey
			c := serve(t, f, client.Config{})
			var err error
			if test.create {
				_, err = c.CreateKey(t.Context(), &clavigerv1.CreateKeyRequest{})
			} else {
				_, err = c.GetKey(t.Context(), "x")
			}
			if got := claviger.CodeOf(err); got != test.want || f.count() != test.calls {
				t.Errorf("code %q after %d calls; want %q after %d", got, f.count(), test.want, test.calls)
			}
		})
	}
}

// A change is sent again when there was no connection, and no other time.
func TestRetryUnsent(t *testing.T) {
	t.Parallel()
	f := &fake{createKey: func() (*clavigerv1.Key, error) { return &clavigerv1.Key{}, nil }}
	c := serve(t, f, client.Config{})
	dials := 0
	c.WrapDial(func() error {
		if dials++; dials <= 2 {
			return &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}
		return nil
	})
	if _, err := c.CreateKey(t.Context(), &clavigerv1.CreateKeyRequest{}); err != nil || dials != 3 || f.count() != 1 {
		t.Errorf("%v after %d dials and %d calls", err, dials, f.count())
	}
	broken := &fake{createKey: func() (*clavigerv1.Key, error) { panic(http.ErrAbortHandler) }}
	c = serve(t, broken, client.Config{})
	if _, err := c.CreateKey(t.Context(), &clavigerv1.CreateKeyRequest{}); !errors.Is(err, claviger.Unavailable) || broken.count() != 1 {
		t.Errorf("a broken connection: %v after %d calls", err, broken.count())
	}
}

// A server that dies in the middle resets the connection.
func TestReset(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var calls atomic.Int64
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			calls.Add(1)
			_, _ = conn.Read(make([]byte, 1)) // closed with more to read, a socket is reset
			conn.Close()
		}
	}()
	c, err := client.New(client.Config{Address: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if _, err := c.CreateKey(t.Context(), &clavigerv1.CreateKeyRequest{}); !errors.Is(err, claviger.Unavailable) || calls.Swap(0) != 1 {
		t.Errorf("a change: %v", err)
	}
	if _, err := c.Sign(t.Context(), &clavigerv1.SignRequest{}); !errors.Is(err, claviger.Unavailable) || calls.Load() != 5 {
		t.Errorf("a use: %v after %d calls", err, calls.Load())
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for code := range claviger.Mappings {
		f := &fake{createKey: func() (*clavigerv1.Key, error) { return nil, refuse(code) }}
		_, err := serve(t, f, client.Config{}).CreateKey(t.Context(), &clavigerv1.CreateKeyRequest{})
		e, ok := errors.AsType[*claviger.Error](err)
		if !ok || e.Code != code || e.Msg != "what is wrong" || e.Hint != "what to do" || client.RequestID(err) != "r1" {
			t.Errorf("%s came back as %v", code, err)
		}
	}
	lying := connect.NewError(connect.CodePermissionDenied, errors.New("no"))
	lying.Meta().Set("Claviger-Code", "unheard-of")
	f := &fake{createKey: func() (*clavigerv1.Key, error) { return nil, lying }}
	if _, err := serve(t, f, client.Config{}).CreateKey(t.Context(), &clavigerv1.CreateKeyRequest{}); !errors.Is(err, claviger.Denied) {
		t.Errorf("an unknown code came back as %v", err)
	}
}

func TestTextThatIsNotUTF8IsInvalid(t *testing.T) {
	t.Parallel()
	f := &fake{createKey: func() (*clavigerv1.Key, error) { return &clavigerv1.Key{}, nil }}
	c := serve(t, f, client.Config{})
	for name, do := range map[string]func() error{
		"a field": func() error {
			_, err := c.CreateKey(t.Context(), &clavigerv1.CreateKeyRequest{Owner: "caf\xe9"})
			return err
		},
		"a name": func() error { _, err := c.GetKey(t.Context(), "prod/app/\xff"); return err },
	} {
		e, ok := errors.AsType[*claviger.Error](do())
		if !ok || e.Code != claviger.Invalid || !strings.Contains(e.Hint, "UTF-8") {
			t.Errorf("%s that is not UTF-8 came back as %v", name, e)
		}
	}
	if _, err := c.CreateKey(t.Context(), &clavigerv1.CreateKeyRequest{Owner: "café"}); err != nil {
		t.Errorf("UTF-8: %v", err)
	}
	// A server that answers with the same words is not the encoder.
	f = &fake{createKey: func() (*clavigerv1.Key, error) {
		return nil, connect.NewError(connect.CodeInternal, errors.New("marshal message: no"))
	}}
	if _, err := serve(t, f, client.Config{}).CreateKey(t.Context(), &clavigerv1.CreateKeyRequest{}); !errors.Is(err, claviger.Internal) {
		t.Errorf("the server's own words came back as %v", err)
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	f := &fake{sign: func(ctx context.Context, _ *clavigerv1.SignRequest) (*clavigerv1.SignResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	c := serve(t, f, client.Config{Timeout: 50 * time.Millisecond})
	if _, err := c.Sign(t.Context(), &clavigerv1.SignRequest{}); !errors.Is(err, claviger.Deadline) {
		t.Errorf("no deadline was set: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Sign(ctx, &clavigerv1.SignRequest{}); !errors.Is(err, claviger.Deadline) {
		t.Errorf("a cancelled call: %v", err)
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	c := serve(t, &fake{}, client.Config{})
	var seqs []uint64
	var last error
	for record, err := range c.Audit(t.Context(), &clavigerv1.QueryRequest{Last: 3}) {
		if last = err; err == nil {
			seqs = append(seqs, record.Seq)
		}
	}
	if len(seqs) != 3 || !errors.Is(last, claviger.Denied) {
		t.Errorf("records %v, error %v", seqs, last)
	}
	for range c.Audit(t.Context(), &clavigerv1.QueryRequest{Last: 3}) {
		break // ends the call
	}
	var archive bytes.Buffer
	if err := c.Backup(t.Context(), &clavigerv1.BackupRequest{}, &archive); !errors.Is(err, claviger.Unavailable) || archive.String() != "ab" {
		t.Errorf("backup %q, error %v", archive.String(), err)
	}
}

func TestUntrusted(t *testing.T) {
	t.Parallel()
	f := &fake{getKey: func() (*clavigerv1.Key, error) { return &clavigerv1.Key{}, nil }}
	s := httptest.NewUnstartedServer(f.handler())
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0) // the handshake is refused on purpose
	s.StartTLS()
	t.Cleanup(s.Close)
	c, err := client.New(client.Config{Address: s.URL, Roots: x509.NewCertPool()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.GetKey(t.Context(), "x"); !errors.Is(err, claviger.Unauthenticated) || f.count() != 0 {
		t.Errorf("GetKey: %v after %d calls", err, f.count())
	}
}

func TestNewRefusals(t *testing.T) {
	t.Parallel()
	for _, config := range []client.Config{
		{}, {Address: "localhost:1"}, {Address: "http://localhost:1"}, {Address: "https://localhost"}, {Address: "unix://relative"},
		{Address: "https://localhost:1/path"}, {Address: "https://user@localhost:1"},
		{Address: "https://localhost:1", CAFile: "/nonexistent"}, {Address: "https://localhost:1", CAFile: "/dev/null"},
		{Address: "https://localhost:1", CertFile: "/dev/null", KeyFile: "/dev/null"},
	} {
		if _, err := client.New(config); !errors.Is(err, claviger.Invalid) {
			t.Errorf("New(%+v): %v", config, err)
		}
	}
	c, err := client.New(client.Config{Address: "unix:///nonexistent/claviger.sock"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WhoAmI(t.Context()); !errors.Is(err, claviger.Unavailable) {
		t.Errorf("no server: %v", err)
	}
}

// TestTap shows that a tap sees every answer as it came, refusals too.
func TestTap(t *testing.T) {
	t.Parallel()
	f := &fake{getKey: func() (*clavigerv1.Key, error) { return &clavigerv1.Key{Name: "prod/app/tapped"}, nil }}
	var mu sync.Mutex
	seen := map[string]string{}
	c := serve(t, f, client.Config{Tap: func(path string, body []byte) {
		mu.Lock()
		defer mu.Unlock()
		seen[path] += string(body)
	}})
	if k, err := c.GetKey(t.Context(), "prod/app/tapped"); err != nil || k.Name != "prod/app/tapped" {
		t.Fatalf("GetKey = %v, %v", k, err)
	}
	if _, err := c.RotateKey(t.Context(), &clavigerv1.RotateKeyRequest{Key: "prod/app/tapped"}); err == nil {
		t.Fatal("the fake has no RotateKey")
	}
	mu.Lock()
	defer mu.Unlock()
	if got := seen["/claviger.v1.KeyService/GetKey"]; !strings.Contains(got, `"prod/app/tapped"`) {
		t.Errorf("GetKey was tapped as %q", got)
	}
	if got := seen["/claviger.v1.KeyService/RotateKey"]; !strings.Contains(got, "unimplemented") {
		t.Errorf("the refusal was tapped as %q", got)
	}
}

// TestMakingTakesLonger: a call that makes a key may take longer than others,
// but for a caller that says how long a call may take.
func TestMakingTakesLonger(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ timeout, read, make time.Duration }{
		{0, client.DefaultTimeout, client.MakeTimeout}, {client.DefaultTimeout, client.DefaultTimeout, client.MakeTimeout}, {5 * time.Second, 5 * time.Second, 5 * time.Second},
	} {
		made := func() (*clavigerv1.Key, error) { return &clavigerv1.Key{}, nil }
		f := &fake{getKey: made, createKey: made}
		c := serve(t, f, client.Config{Timeout: test.timeout})
		_, err1 := c.GetKey(t.Context(), "a/b/c")
		_, err2 := c.CreateKey(t.Context(), &clavigerv1.CreateKeyRequest{})
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		for i, want := range []time.Duration{test.read, test.make} {
			got, err := strconv.Atoi(f.seen[i].Header.Get("Connect-Timeout-Ms"))
			if told := time.Duration(got) * time.Millisecond; err != nil || told > want || told < want-4*time.Second {
				t.Errorf("with %v call %d may take %v, %v; want %v", test.timeout, i, told, err, want)
			}
		}
	}
}
