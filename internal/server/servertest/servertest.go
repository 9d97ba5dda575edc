// Package servertest starts whole servers for tests: a real key process, the
// embedded store, audit segments, the keeper and the server on a loopback port
// and a socket. It is for tests alone; no program imports it.
package servertest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/api/claviger/v1/clavigerv1connect"
	"claviger.dev/internal/audit/segment"
	"claviger.dev/internal/broker/guard"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/rootkey"
	"claviger.dev/internal/server"
	"claviger.dev/internal/store/sqlite"
)

// Keyd builds the key process at its first call and returns its path. Main
// sets it before any test runs.
var Keyd func() (string, error)

// Main runs the tests of a package and removes the key process after them:
//
//	func TestMain(m *testing.M) { os.Exit(servertest.Main(m)) }
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "servertest")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	Keyd = sync.OnceValues(func() (string, error) { return custodytest.Build(dir, false) })
	return m.Run()
}

// Options change what Start starts.
type Options struct {
	Change   func(*server.Config) // changes the configuration; nil leaves it
	Log      io.Writer            // of the server; nil drops it
	Now      func() time.Time     // of keeper and server; nil is time.Now
	Dir      string               // data directory; empty makes a fresh one
	Root     *rootkey.Bundle      // root key; nil makes a fresh one
	Webhooks *http.Client         // posts checkpoints; nil is the usual one
	Keyd     string               // path of the key process; empty is the one of Keyd
}

// Server is a running server.
type Server struct {
	Config  server.Config
	Socket  string         // path
	Address string         // of TLS, host:port
	Metrics string         // host:port
	Roots   *x509.CertPool // of the own CA
	Keeper  *keeper.Keeper // for what has no API
	Process *custodytest.Starter
	Root    *rootkey.Bundle

	stop    context.CancelFunc
	stopped chan struct{}
	err     error
	closing []func()
}

// Start starts a server whose operator is the uid of the test, and stops it
// when the test ends. It returns once the server takes connections.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.Root == nil {
		o.Root = &rootkey.Bundle{Generations: []rootkey.Generation{{Number: 1}}}
		_, _ = rand.Read(o.Root.Identity[:])
		_, _ = rand.Read(o.Root.Generations[0].Key[:])
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	cfg, err := server.Parse(fmt.Appendf(nil, "data_dir = %q\nlisten = \"127.0.0.1:0\"\nnames = [\"127.0.0.1\", \"localhost\"]\nmetrics_listen = \"127.0.0.1:0\"\n", o.Dir))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Socket = socketPath(t)
	cfg.Limits.Enroll = 10000
	if o.Change != nil {
		o.Change(&cfg)
	}
	s := &Server{Config: cfg, Root: o.Root, stopped: make(chan struct{})}
	t.Cleanup(func() { // before the parts are made: they may fail
		if err := s.Stop(); err != nil {
			t.Errorf("stop server: %v", err)
		}
	})
	s.open(t, o)
	serving := make(chan server.Addresses, 1)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	s.stop = stop
	go func() {
		defer close(s.stopped)
		s.err = server.Run(ctx, server.Parts{
			Config: cfg, Keeper: s.Keeper, Log: slog.New(slog.NewTextHandler(o.Log, nil)), Now: o.Now,
			Serving: func(a server.Addresses) { serving <- a },
		})
	}()
	select {
	case a := <-serving:
		s.Socket, s.Address, s.Metrics = a.Socket, a.TLS, a.Metrics
	case <-s.stopped:
		t.Fatal(s.err)
	}
	s.Roots = x509.NewCertPool()
	for _, root := range s.Keeper.Roots() {
		s.Roots.AddCert(root)
	}
	return s
}

// open makes the parts of which the server is made.
func (s *Server) open(t testing.TB, o Options) {
	t.Helper()
	ctx := t.Context()
	if o.Keyd == "" {
		path, err := Keyd()
		if err != nil {
			t.Fatal(err)
		}
		o.Keyd = path
	}
	s.Process = &custodytest.Starter{Path: o.Keyd, Message: rootkey.Message{Kind: rootkey.Deliver, Bundle: o.Root}}
	s.closing = append(s.closing, s.Process.Close)
	keys := custody.New(custody.Config{Source: supervised{s.Process}})
	s.closing = append(s.closing, keys.Close)
	dir := filepath.Join(o.Dir, "server")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	records, err := sqlite.Open(ctx, filepath.Join(dir, "claviger.db"))
	if err != nil {
		t.Fatal(err)
	}
	s.closing = append(s.closing, func() { records.Close() })
	log, err := segment.Open(ctx, segment.Config{Dir: filepath.Join(dir, "audit"), SegmentBytes: s.Config.Audit.SegmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	s.closing = append(s.closing, func() { log.Close() })
	s.Keeper, err = keeper.Open(ctx, keeper.Config{
		Store: records, Audit: log, Custodian: keys, Now: o.Now, Log: slog.New(slog.NewTextHandler(o.Log, nil)),
		Operators: s.Config.Operators, TrustDomain: s.Config.TrustDomain, Names: s.Config.Names, Version: "test", StoreName: "sqlite", SessionGuard: new(guard.Guard).Judge,
		Dev: s.Config.Dev, Leaf: time.Duration(s.Config.Certificates.Lifetime), Checkpoints: time.Duration(s.Config.Checkpoint.Every), Export: s.Config.Checkpoint.Exporter(o.Webhooks),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// supervised starts key processes as a supervisor does: until one runs.
type supervised struct{ *custodytest.Starter }

// Next implements custody.Source.
func (s supervised) Next(ctx context.Context) (net.Conn, error) {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := s.Starter.Next(ctx)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-again.C:
		}
	}
}

// socketPath is short enough for a socket, wherever the temporary directory is.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "clv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "claviger.sock")
}

// Stop stops the server and what it stands on, and returns what Run returned.
func (s *Server) Stop() error {
	if s.stop != nil {
		s.stop()
		<-s.stopped
	}
	for i := len(s.closing) - 1; i >= 0; i-- {
		s.closing[i]()
	}
	s.closing = nil
	return s.err
}

// Client calls every service as one caller.
type Client struct {
	clavigerv1connect.UseServiceClient
	clavigerv1connect.KeyServiceClient
	clavigerv1connect.GrantServiceClient
	clavigerv1connect.PrincipalServiceClient
	clavigerv1connect.AuditServiceClient
	clavigerv1connect.ServerServiceClient
	clavigerv1connect.EvidenceServiceClient
	clavigerv1connect.StateServiceClient
	clavigerv1connect.SessionServiceClient
	clavigerv1connect.ClientServiceClient
	clavigerv1connect.ReceiverServiceClient
	HTTP *http.Client
	Base string // address of the server, "https://host:port"
}

// NewClient calls the server at base.
func NewClient(h *http.Client, base string, options ...connect.ClientOption) *Client {
	return &Client{
		clavigerv1connect.NewUseServiceClient(h, base, options...), clavigerv1connect.NewKeyServiceClient(h, base, options...),
		clavigerv1connect.NewGrantServiceClient(h, base, options...), clavigerv1connect.NewPrincipalServiceClient(h, base, options...),
		clavigerv1connect.NewAuditServiceClient(h, base, options...), clavigerv1connect.NewServerServiceClient(h, base, options...),
		clavigerv1connect.NewEvidenceServiceClient(h, base, options...), clavigerv1connect.NewStateServiceClient(h, base, options...),
		clavigerv1connect.NewSessionServiceClient(h, base, options...), clavigerv1connect.NewClientServiceClient(h, base, options...),
		clavigerv1connect.NewReceiverServiceClient(h, base, options...),
		h, base,
	}
}

// Local calls over the socket, as the uid of the test: an operator.
func (s *Server) Local(t testing.TB, options ...connect.ClientOption) *Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.Socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return NewClient(&http.Client{Transport: transport}, "http://claviger", options...)
}

// Remote calls over TLS with a client certificate, or without one.
func (s *Server) Remote(t testing.TB, certificate *tls.Certificate, options ...connect.ClientOption) *Client {
	cfg := &tls.Config{RootCAs: s.Roots}
	if certificate != nil {
		cfg.Certificates = []tls.Certificate{*certificate}
	}
	transport := &http.Transport{TLSClientConfig: cfg, MaxIdleConnsPerHost: 256}
	t.Cleanup(transport.CloseIdleConnections)
	return NewClient(&http.Client{Transport: transport}, "https://"+s.Address, options...)
}

// Enrol makes a principal in all environments and enrols it.
func (s *Server) Enrol(t testing.TB, name string) (*tls.Certificate, *clavigerv1.Principal) {
	t.Helper()
	operator := s.Local(t)
	p, err := operator.CreatePrincipal(t.Context(), connect.NewRequest(&clavigerv1.CreatePrincipalRequest{
		Name: name, Kind: string(claviger.Workload), Environments: []string{"*"}, Owner: "test",
	}))
	if err != nil {
		t.Fatal(err)
	}
	code, err := operator.IssueCode(t.Context(), connect.NewRequest(&clavigerv1.IssueCodeRequest{Principal: name}))
	if err != nil {
		t.Fatal(err)
	}
	key, csr := Request(t)
	cert, err := s.Remote(t, nil).Enroll(t.Context(), connect.NewRequest(&clavigerv1.EnrollRequest{Code: code.Msg.Code, Csr: csr}))
	if err != nil {
		t.Fatal(err)
	}
	return Certificate(cert.Msg, key), p.Msg
}

// Request makes a key and a certificate request for it.
func Request(t testing.TB) (key crypto.Signer, csr []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

// Certificate is an issued certificate with its key, for crypto/tls.
func Certificate(issued *clavigerv1.Certificate, key crypto.Signer) *tls.Certificate {
	return &tls.Certificate{Certificate: issued.Chain, PrivateKey: key}
}

// Allow grants a principal operations on the keys that a selector chooses.
func (s *Server) Allow(t testing.TB, principal, selector string, conditions *clavigerv1.Conditions, operations ...claviger.Operation) *clavigerv1.Grant {
	t.Helper()
	req := &clavigerv1.CreateGrantRequest{Principal: principal, Selector: selector, Conditions: conditions, Reason: "test"}
	for _, op := range operations {
		req.Operations = append(req.Operations, string(op))
	}
	g, err := s.Local(t).CreateGrant(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	return g.Msg
}

// Key makes a key.
func (s *Server) Key(t testing.TB, name string, algorithm claviger.Algorithm) *clavigerv1.Key {
	t.Helper()
	k, err := s.Local(t).CreateKey(t.Context(), connect.NewRequest(&clavigerv1.CreateKeyRequest{Name: name, Algorithm: string(algorithm), Owner: "test"}))
	if err != nil {
		t.Fatal(err)
	}
	return k.Msg
}
