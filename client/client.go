// Package client is the Go SDK of Claviger: it calls the API, and gives keys
// in custody as crypto.Signer and crypto.MessageSigner by handle.
//
// It promises that every call has a deadline, that a call which may have
// changed something is never sent twice, that every error is a
// *claviger.Error, and that material to import leaves the process only sealed
// to the pinned key process. It holds the caller's own key and never one in
// custody.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"claviger.dev"
	"claviger.dev/api/claviger/v1/clavigerv1connect"
)

// Defaults of a Config.
const (
	DefaultTimeout     = 10 * time.Second
	MakeTimeout        = 140 * time.Second // of a call that makes a key: RSA takes seconds, and longer on a busy machine
	DefaultConnections = 128
)

// The longest answers that are read, in bytes. A statement names every version
// that it is about.
const (
	maxMessage   = 8 << 20
	maxStatement = 64 << 20
)

// Config says where the server is and who asks.
type Config struct {
	// Address is "unix:///path/of/claviger.sock" or "https://host:port".
	Address string
	// Roots are the CAs that may vouch for the server. Nil: those of CAFile, and
	// without it those of the system.
	Roots *x509.CertPool
	// CAFile is a PEM file of such CAs. Empty: none.
	CAFile string
	// Certificate is the caller's own. Nil: the one of CertFile and KeyFile, and
	// without them none, which is enough for the local socket.
	Certificate *tls.Certificate
	// CertFile and KeyFile are PEM files of the caller's certificate and key.
	CertFile, KeyFile string
	// Reload returns the caller's certificate as it stands now, where others
	// renew it. It is asked at most once a minute, before a call; an error keeps
	// the one that there is. Nil: it stays.
	Reload func() (*tls.Certificate, error)
	// Timeout is the longest that one call may take, retries included, when its
	// context allows more. Zero or DefaultTimeout: that, and MakeTimeout where a
	// key is made.
	Timeout time.Duration
	// Connections is the most that are open at once. Zero: DefaultConnections.
	Connections int
	// Tap is given the body of every answer as it came, in JSON, for a caller
	// that searches answers for what must not be in them. The path is that of
	// the call, such as "/claviger.v1.KeyService/GetKey". It is called from many
	// goroutines. Nil: none, and answers are binary.
	Tap func(path string, body []byte)
}

// Client calls one server. It may be used concurrently. Connections are kept
// alive and reused: make one Client and keep it.
type Client struct {
	any        func(procedure string) *connect.Client[dynamicpb.Message, emptypb.Empty]
	keys       clavigerv1connect.KeyServiceClient
	use        clavigerv1connect.UseServiceClient
	grants     clavigerv1connect.GrantServiceClient
	principals clavigerv1connect.PrincipalServiceClient
	audit      clavigerv1connect.AuditServiceClient
	server     clavigerv1connect.ServerServiceClient
	evidence   clavigerv1connect.EvidenceServiceClient
	state      clavigerv1connect.StateServiceClient
	receivers  clavigerv1connect.ReceiverServiceClient
	sessions   clavigerv1connect.SessionServiceClient
	clients    clavigerv1connect.ClientServiceClient

	base      string
	transport *http.Transport
	direct    *direct // to the local socket, for tokens; nil elsewhere
	timeout   time.Duration
	making    time.Duration // of a call that makes a key
	now       func() time.Time
	renewal   renewal

	mu          sync.Mutex // guards certificate
	certificate *tls.Certificate
}

// New returns a client. It does not connect yet.
func New(config Config) (*Client, error) {
	c := &Client{timeout: config.Timeout, certificate: config.Certificate, now: time.Now}
	if c.timeout <= 0 {
		c.timeout = DefaultTimeout
	}
	if c.making = c.timeout; c.making == DefaultTimeout {
		c.making = MakeTimeout
	}
	if config.Connections <= 0 {
		config.Connections = DefaultConnections
	}
	if c.certificate == nil && (config.CertFile != "" || config.KeyFile != "") {
		cert, err := tls.LoadX509KeyPair(config.CertFile, config.KeyFile)
		if err != nil {
			return nil, claviger.Errorf(claviger.Invalid, "the client certificate cannot be read", "check that both files are PEM and belong together").Wrap(err)
		}
		c.certificate = &cert
	}
	if config.Roots == nil && config.CAFile != "" {
		pem, err := os.ReadFile(config.CAFile)
		if err != nil {
			return nil, claviger.Errorf(claviger.Invalid, "the CA file cannot be read", "check its path and permissions").Wrap(err)
		}
		config.Roots = x509.NewCertPool()
		if !config.Roots.AppendCertsFromPEM(pem) {
			return nil, claviger.Errorf(claviger.Invalid, "the CA file holds no certificate", "put the server's CA certificate into it as PEM")
		}
	}
	base, err := c.dial(config)
	if err != nil {
		return nil, err
	}
	c.base = base
	c.connect(base, config.Tap)
	c.renewal.reload = config.Reload
	return c, nil
}

// dial sets the transport up: HTTP/1.1 kept alive, which costs half of what
// HTTP/2 does for small messages.
func (c *Client) dial(config Config) (base string, err error) {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	c.transport = &http.Transport{
		Protocols:           protocols,
		DisableCompression:  true,
		MaxIdleConns:        config.Connections,
		MaxIdleConnsPerHost: config.Connections,
		MaxConnsPerHost:     config.Connections,
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: 5 * time.Second,
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	if path, ok := strings.CutPrefix(config.Address, "unix://"); ok && filepath.IsAbs(path) {
		socket := func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) }
		c.transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return socket(ctx) }
		c.direct = newDirect(config.Connections, socket)
		return "http://claviger", nil
	}
	host, ok := strings.CutPrefix(config.Address, "https://")
	if _, _, err := net.SplitHostPort(host); !ok || err != nil || strings.ContainsAny(host, "/?#@") {
		return "", claviger.Errorf(claviger.Invalid, "the server's address has a form that is not understood", "use unix:///path/of/claviger.sock or https://host:port")
	}
	c.transport.DialContext = dialer.DialContext
	c.transport.TLSClientConfig = &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    config.Roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.certificate == nil {
				return new(tls.Certificate), nil
			}
			return c.certificate, nil
		},
	}
	return config.Address, nil
}

// connect makes the clients of all services: binary protobuf, not compressed.
func (c *Client) connect(base string, to func(string, []byte)) {
	h := &http.Client{Transport: c.transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	opts := connect.WithClientOptions(connect.WithAcceptCompression("gzip", nil, nil), connect.WithReadMaxBytes(maxMessage))
	if to != nil {
		h.Transport = tap{c.transport, to}
		opts = connect.WithClientOptions(opts, connect.WithProtoJSON())
	}
	c.any = func(procedure string) *connect.Client[dynamicpb.Message, emptypb.Empty] {
		return connect.NewClient[dynamicpb.Message, emptypb.Empty](h, base+procedure, opts)
	}
	c.keys = clavigerv1connect.NewKeyServiceClient(h, base, opts)
	c.use = clavigerv1connect.NewUseServiceClient(h, base, opts)
	c.grants = clavigerv1connect.NewGrantServiceClient(h, base, opts)
	c.principals = clavigerv1connect.NewPrincipalServiceClient(h, base, opts)
	c.audit = clavigerv1connect.NewAuditServiceClient(h, base, opts)
	c.server = clavigerv1connect.NewServerServiceClient(h, base, opts)
	c.evidence = clavigerv1connect.NewEvidenceServiceClient(h, base, opts, connect.WithReadMaxBytes(maxStatement))
	c.receivers = clavigerv1connect.NewReceiverServiceClient(h, base, opts)
	c.sessions = clavigerv1connect.NewSessionServiceClient(h, base, opts)
	c.clients = clavigerv1connect.NewClientServiceClient(h, base, opts)
	if c.direct != nil && to == nil {
		h = &http.Client{Transport: c.direct, CheckRedirect: h.CheckRedirect}
	}
	c.state = clavigerv1connect.NewStateServiceClient(h, base, opts)
}

// tap hands the bodies of answers to a function when they have been read.
type tap struct {
	next http.RoundTripper
	to   func(path string, body []byte)
}

// RoundTrip implements http.RoundTripper.
func (t tap) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err == nil {
		resp.Body = &tapped{ReadCloser: resp.Body, to: func(body []byte) { t.to(r.URL.Path, body) }}
	}
	return resp, err
}

type tapped struct {
	io.ReadCloser
	body []byte
	to   func([]byte)
	once sync.Once
}

// Read implements io.Reader.
func (t *tapped) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.body = append(t.body, p[:n]...)
	if err == io.EOF {
		t.once.Do(func() { t.to(t.body) })
	}
	return n, err
}

// Close implements io.Closer.
func (t *tapped) Close() error {
	t.once.Do(func() { t.to(t.body) })
	return t.ReadCloser.Close()
}

// Close closes the connections that are idle. Calls that run end by themselves.
func (c *Client) Close() {
	c.transport.CloseIdleConnections()
	if c.direct != nil {
		c.direct.closeIdle()
	}
}
