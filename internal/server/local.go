package server

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"claviger.dev"
)

// local is the listener of the local socket. It answers the briefs by itself,
// where a request is of the form that readHead takes: what net/http does for a
// request costs more than to check a token. At the first request of any other
// form a connection goes to net/http with every byte that was read, for good;
// so there is one judge of everything unusual.
//
// Limits and timeouts are those of the HTTP server that accepts from it.
type local struct {
	net.Listener
	gate    *gate
	methods map[string]*localMethod
	server  *http.Server // behind; set before Accept

	begin   sync.Once
	others  chan net.Conn // for the HTTP server
	failed  chan error    // of the socket's Accept
	closing atomic.Bool
	closed  chan struct{}

	mu    sync.Mutex // guards conns
	conns map[*localConn]struct{}
	ended sync.WaitGroup // of conns
}

// localMethod is a brief with its limits and numbers.
type localMethod struct {
	row     route
	call    brief
	ok      prometheus.Counter
	seconds prometheus.Observer
}

func newLocal(l net.Listener, g *gate, table []route, short map[string]brief) *local {
	all := &local{Listener: l, gate: g, methods: map[string]*localMethod{}, others: make(chan net.Conn), failed: make(chan error),
		closed: make(chan struct{}), conns: map[*localConn]struct{}{}}
	for _, row := range table {
		if call, ok := short[row.procedure]; ok {
			all.methods[row.procedure] = &localMethod{row: row, call: call,
				ok: g.metrics.requests.WithLabelValues(row.procedure, "ok"), seconds: g.metrics.seconds.WithLabelValues(row.procedure)}
		}
	}
	return all
}

// Accept returns the next connection that is for net/http.
func (l *local) Accept() (net.Conn, error) {
	l.begin.Do(func() { go l.accept() })
	select {
	case conn := <-l.others:
		return conn, nil
	case err := <-l.failed:
		return nil, err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *local) accept() {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			select {
			case l.failed <- err: // the HTTP server waits, or gives up
				continue
			case <-l.closed:
				return
			}
		}
		peer, ok := conn.(*peerConn)
		if !ok {
			l.pass(conn)
			continue
		}
		c := &localConn{peerConn: peer, on: l}
		l.mu.Lock()
		if l.closing.Load() {
			l.mu.Unlock()
			conn.Close()
			return
		}
		l.conns[c] = struct{}{}
		l.ended.Add(1)
		l.mu.Unlock()
		go c.serve()
	}
}

// pass gives a connection to net/http.
func (l *local) pass(conn net.Conn) {
	select {
	case l.others <- conn:
	case <-l.closed:
		conn.Close()
	}
}

// Close stops accepting, and has the connections end that wait for a request.
func (l *local) Close() error {
	if l.closing.Swap(true) {
		return nil
	}
	close(l.closed)
	err := l.Listener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
	return err
}

// drain waits for the requests under way, and cuts them off when ctx ends.
func (l *local) drain(ctx context.Context) error {
	_ = l.Close() // done already, or the HTTP server never came to it
	done := make(chan struct{})
	go func() { l.ended.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	for c := range l.conns {
		_ = c.Close()
	}
	l.mu.Unlock()
	return ctx.Err()
}

// localConn is one connection, owned by the goroutine in serve.
type localConn struct {
	*peerConn
	on      *local
	in      []byte    // read, and not yet served
	body    []byte    // of the last answer, to be used again
	out     []byte    // the last answer, likewise
	date    []byte    // the header of second
	second  int64     // since 1970
	reading time.Time // the read deadline
	writing time.Time // the write deadline
}

// maxKept is the largest buffer that a connection keeps for its next request.
const maxKept = 16 << 10

// serve answers one request after the other.
func (c *localConn) serve() {
	track := c.on.server.ConnState
	track(c.peerConn, http.StateNew)
	var fate fate
	for wait := c.on.server.ReadHeaderTimeout; fate == served; wait = c.on.server.IdleTimeout {
		var h head
		if h, fate = c.receive(wait); fate != served {
			break
		}
		track(c.peerConn, http.StateActive)
		end := h.size + h.body
		if !c.answer(c.on.methods[string(h.path)], c.in[h.size:end]) {
			fate = over
			break
		}
		if c.in = append(c.in[:0], c.in[end:]...); cap(c.in) > maxKept {
			c.in = bytes.Clone(c.in)
		}
		track(c.peerConn, http.StateIdle)
	}
	if fate == passed {
		track(c.peerConn, http.StateHijacked) // to net/http it is a new one
		c.before = c.in
		_ = c.SetDeadline(time.Time{})
		c.on.pass(c.peerConn)
	} else {
		track(c.peerConn, http.StateClosed)
		_ = c.Close() // there is nobody to tell
	}
	c.on.mu.Lock()
	delete(c.on.conns, c)
	c.on.mu.Unlock()
	c.on.ended.Done()
}

// fate is what becomes of a connection.
type fate int

const (
	served fate = iota // its request is here
	passed             // net/http goes on with it
	over
)

// receive reads a request whole, whose first byte comes within a time. That
// time may be up to a quarter shorter: to set it anew for each request costs.
func (c *localConn) receive(within time.Duration) (head, fate) {
	if len(c.in) == 0 {
		if left := time.Until(c.reading); left < within*3/4 || left > within {
			c.reading = time.Now().Add(within)
			_ = c.SetReadDeadline(c.reading)
		}
		if !c.read(0) {
			return head{}, over
		}
	}
	for parts := 0; ; parts++ {
		h, ok := readHead(c.in)
		switch {
		case !ok || h.whole && c.on.methods[string(h.path)] == nil:
			return h, passed
		case h.whole && len(c.in) >= h.size+h.body:
			return h, served
		case parts == 0:
			c.reading = time.Now().Add(c.on.server.ReadTimeout)
			_ = c.SetReadDeadline(c.reading)
		}
		if !c.read(h.size + h.body) {
			if c.on.closing.Load() {
				return h, over
			}
			return h, passed // which says what is wrong
		}
	}
}

// read reads what there is, with room for a request of size bytes.
func (c *localConn) read(size int) bool {
	if c.on.closing.Load() { // whoever closes sets the deadline after this is true
		return false
	}
	if room := max(size-len(c.in), answerSize); cap(c.in)-len(c.in) < room {
		c.in = append(make([]byte, 0, len(c.in)+room), c.in...)
	}
	n, err := c.peerConn.Read(c.in[len(c.in):cap(c.in)])
	c.in = c.in[:len(c.in)+n]
	return err == nil && n > 0
}

// answer calls a method and writes its answer. It reports whether the
// connection can go on.
func (c *localConn) answer(m *localMethod, body []byte) bool {
	start := c.on.gate.now()
	k := &call{id: string(claviger.NewID(start))}
	answer, err := c.call(m, k, start, body)
	if err != nil {
		c.refuse(m, k, start, err)
		c.on.gate.metrics.observe(m.row.procedure, k.code, c.on.gate.now().Sub(start))
	} else {
		c.out = append(c.out[:0], "HTTP/1.1 200 OK\r\n"+headerRequestID+": "...)
		c.out = append(append(c.out, k.id...), "\r\nContent-Type: "+jsonType+"\r\n"...)
		c.out, c.body = c.finish(c.out, start, answer), answer
		m.ok.Inc()
		m.seconds.Observe(c.on.gate.now().Sub(start).Seconds())
	}
	if now := time.Now(); c.writing.Sub(now) < answerTimeout/2 {
		c.writing = now.Add(answerTimeout)
		_ = c.SetWriteDeadline(c.writing)
	}
	_, err = c.peerConn.Write(c.out)
	if max(cap(c.out), cap(c.body)) > maxKept {
		c.out, c.body = nil, nil
	}
	return err == nil && !c.on.closing.Load()
}

// finish ends a head and appends the body.
func (c *localConn) finish(out []byte, now time.Time, body []byte) []byte {
	if second := now.Unix(); second != c.second {
		c.second, c.date = second, now.UTC().AppendFormat(append(c.date[:0], "Date: "...), http.TimeFormat)
	}
	out = append(out, c.date...)
	if c.on.closing.Load() {
		out = append(out, "\r\nConnection: close"...)
	}
	out = strconv.AppendInt(append(out, "\r\nContent-Length: "...), int64(len(body)), 10)
	return append(append(out, "\r\n\r\n"...), body...)
}

// call identifies the caller and calls the method within the limits of its row.
func (c *localConn) call(m *localMethod, k *call, start time.Time, body []byte) (answer []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), m.row.deadline)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack()) // for the log: what is not known is told as internal
		}
	}()
	k.by, err = c.on.gate.prover.Peer(ctx, c.peer, k.id)
	if err := c.on.gate.meter(m.row, k, start, err); err != nil {
		return nil, err
	}
	return m.call(ctx, k.by, c.body[:0], body)
}

// refuse makes the answer of an error, as Connect writes it.
func (c *localConn) refuse(m *localMethod, k *call, now time.Time, err error) {
	w := &refusal{header: http.Header{headerRequestID: {k.id}}}
	r := &http.Request{Method: http.MethodPost, Header: http.Header{"Content-Type": {jsonType}}}
	c.on.gate.refuse(w, r, k, m.row, err)
	head := bytes.NewBufferString("HTTP/1.1 " + strconv.Itoa(w.status) + " " + http.StatusText(w.status) + "\r\n")
	_ = w.header.Write(head) // into memory
	c.out = c.finish(head.Bytes(), now, w.body.Bytes())
}

// refusal is the answer of an error, in memory.
type refusal struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements [http.ResponseWriter].
func (w *refusal) Header() http.Header { return w.header }

// WriteHeader implements [http.ResponseWriter].
func (w *refusal) WriteHeader(status int) { w.status = status }

// Write implements [http.ResponseWriter].
func (w *refusal) Write(p []byte) (int, error) { return w.body.Write(p) }
