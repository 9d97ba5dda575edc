package proxy

import (
	"bufio"
	"context"
	"errors"
	"math"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lines are the connections to one server, each for one call at a time and kept
// for the next. Whoever has one writes and reads on a goroutine of its own: an
// [http.Transport] hands each request to a second and each answer to a third,
// and that is most of what it costs.
type lines struct {
	dial func(context.Context) (net.Conn, error)
	rest time.Duration // at most, between two calls

	mu      sync.Mutex // guards what follows
	idle    []*line    // the one used last at the end
	reaping bool       // a timer runs
}

// line is one connection.
type line struct {
	net.Conn
	in    *bufio.Reader
	out   *bufio.Writer
	left  int64 // bytes that may still be read
	heard bool  // something was read since it was taken
	raw   syscall.RawConn
	since time.Time // at rest
}

// maxIdle is the most connections that are kept.
const maxIdle = 256

var errLong = errors.New("the answer is too long")

// Read implements io.Reader.
func (l *line) Read(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, errLong
	}
	n, err := l.Conn.Read(b[:min(int64(len(b)), l.left)])
	l.left -= int64(n)
	l.heard = l.heard || n > 0
	return n, err
}

// quiet reports whether a connection at rest is open, and nothing has come that
// nobody asked for: it would be taken for the answer to what is asked next.
func (l *line) quiet() bool {
	var err error
	failed := l.raw.Read(func(fd uintptr) bool {
		_, _, err = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return true
	})
	return failed == nil && errors.Is(err, unix.EAGAIN)
}

// take returns a connection, and whether it was used before. It may have been
// closed by the other side in the meantime.
func (s *lines) take(ctx context.Context) (l *line, used bool, err error) {
	for {
		s.mu.Lock()
		n := len(s.idle)
		if n > 0 {
			l, s.idle = s.idle[n-1], s.idle[:n-1]
		}
		s.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Since(l.since) < s.rest && l.quiet() {
			l.left, l.heard = math.MaxInt64, false
			return l, true, nil
		}
		l.Close()
	}
	conn, err := s.dial(ctx)
	if err != nil {
		return nil, false, err
	}
	l = &line{Conn: conn, out: bufio.NewWriter(conn), left: math.MaxInt64}
	l.in = bufio.NewReader(l)
	if l.raw, err = conn.(syscall.Conn).SyscallConn(); err != nil {
		conn.Close()
		return nil, false, err
	}
	return l, false, nil
}

// keep takes a connection back whose last answer was read to its end.
func (s *lines) keep(l *line) {
	if l.in.Buffered() > 0 {
		l.Close()
		return
	}
	l.since = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle) == maxIdle {
		l.Close()
		return
	}
	s.idle = append(s.idle, l)
	if !s.reaping {
		s.reaping = true
		time.AfterFunc(s.rest, s.reap)
	}
}

// reap closes what has rested for too long.
func (s *lines) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.idle) > 0 && time.Since(s.idle[0].since) >= s.rest {
		s.idle[0].Close()
		s.idle = s.idle[1:]
	}
	if s.reaping = len(s.idle) > 0; s.reaping {
		time.AfterFunc(s.rest, s.reap)
	}
}

// close closes the connections that no call uses.
func (s *lines) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.idle {
		l.Close()
	}
	s.idle = nil
}
