package server

import (
	"container/list"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"claviger.dev"
	"claviger.dev/internal/proof"
)

// socket is the local listener. Its file can be connected to by everybody
// (0666): what a caller may do is decided by grants, and by default nothing.
// It holds a lock beside the file for as long as it lives, so that of two
// servers exactly one has the path.
type socket struct {
	*net.UnixListener
	lock *os.File
}

// ListenSocket opens the local socket. A file that a dead server left there is
// replaced; where a server lives, the error is [claviger.Conflict].
func ListenSocket(path string) (net.Listener, error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of socket: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, socketTaken().Wrap(err)
	}
	l, err := bindSocket(path)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &socket{UnixListener: l, lock: lock}, nil
}

func bindSocket(path string) (*net.UnixListener, error) {
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode().Type() != fs.ModeSocket:
		return nil, claviger.Errorf(claviger.Conflict, "the path of the socket is a file of another kind", "move it away, or configure another socket")
	case err == nil:
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			conn.Close()
			return nil, socketTaken()
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("probe socket: %w", err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove stale socket: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("look at socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on socket: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("open socket to everybody: %w", err)
	}
	return l, nil
}

func socketTaken() *claviger.Error {
	return claviger.Errorf(claviger.Conflict, "another server has the socket", "stop it first, or configure another socket")
}

// Accept returns the next connection together with who opened it.
func (s *socket) Accept() (net.Conn, error) {
	for {
		conn, err := s.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if peer, err := proof.NewPeer(conn); err == nil {
			return &peerConn{UnixConn: conn, peer: peer}, nil
		}
		conn.Close() // nobody to be known: gone again, or not ours to serve
	}
}

// Close removes the socket and then gives its lock back.
func (s *socket) Close() error {
	err := s.UnixListener.Close()
	s.lock.Close()
	return err
}

// peerConn is a connection of the local socket.
type peerConn struct {
	*net.UnixConn
	peer   *proof.Peer
	before []byte // read already, and to be read again
}

// Read implements [net.Conn].
func (c *peerConn) Read(b []byte) (int, error) {
	if len(c.before) > 0 {
		n := copy(b, c.before)
		c.before = c.before[n:]
		return n, nil
	}
	return c.UnixConn.Read(b)
}

// Close implements [net.Conn].
func (c *peerConn) Close() error {
	c.peer.Close()
	return c.UnixConn.Close()
}

// withPeer hands the peer of a local connection to the gate.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(*peerConn); ok {
		return context.WithValue(ctx, peerKey{}, c.peer)
	}
	return ctx
}

// connections bounds how many connections of one listener are open. Past the
// bound the one that has waited longest without a request is closed, whether it
// is kept alive, in its handshake or dripping headers, so that idle ones never
// keep new callers out.
type connections struct {
	limit   int
	gauge   prometheus.Gauge
	evicted prometheus.Counter

	mu      sync.Mutex // owns all below
	open    int
	waiting *list.List // of net.Conn, longest first
	places  map[net.Conn]*list.Element
}

func newConnections(limit int, listener string, m *metrics) *connections {
	return &connections{limit: limit, waiting: list.New(), places: make(map[net.Conn]*list.Element),
		gauge: m.connections.WithLabelValues(listener), evicted: m.evicted.WithLabelValues(listener)}
}

// track is the ConnState hook of an [http.Server].
func (c *connections) track(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if place, ok := c.places[conn]; ok {
		c.waiting.Remove(place)
		delete(c.places, conn)
	}
	switch state {
	case http.StateNew:
		c.open++
		c.places[conn] = c.waiting.PushBack(conn)
		if c.open > c.limit {
			c.evicted.Inc()
			abandon(c.waiting.Front().Value.(net.Conn))
			c.waiting.MoveToBack(c.waiting.Front()) // its own goroutine reports it closed
		}
	case http.StateIdle:
		c.places[conn] = c.waiting.PushBack(conn)
	case http.StateClosed, http.StateHijacked:
		c.open--
	case http.StateActive:
	}
	c.gauge.Set(float64(c.open))
}

// abandon closes a connection without the farewell of TLS, which could wait
// for the peer.
func abandon(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	_ = conn.Close() // there is nobody to tell
}

// tlsConfig serves with the server's certificate, whose key is in custody. A
// client certificate is asked for and must verify when it is given. Session
// tickets are off: their keys would lie in the server's memory and reach back
// over all that was said; keeping connections alive saves more.
func tlsConfig(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), own func() []*x509.Certificate, external map[string][]*x509.Certificate, now func() time.Time) *tls.Config {
	base := &tls.Config{
		Time:                   now,
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         certificate,
		ClientAuth:             tls.VerifyClientCertIfGiven,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2", "http/1.1"},
	}
	served := base.Clone()
	served.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := base.Clone()
		c.ClientCAs = x509.NewCertPool()
		for _, root := range own() {
			c.ClientCAs.AddCert(root)
		}
		for _, roots := range external {
			for _, root := range roots {
				c.ClientCAs.AddCert(root)
			}
		}
		return c, nil
	}
	return served
}
