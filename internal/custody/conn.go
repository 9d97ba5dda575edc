package custody

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
)

// errDied says that the connection ended before the answer came.
var errDied = errors.New("key process died")

// maxSlots bounds the memory of which blobs are loaded. Beyond it the client
// forgets all and loads anew; the key process evicts what is no longer used.
const maxSlots = 1 << 16

// conn is the socket of one key process.
type conn struct {
	socket  net.Conn
	timeout time.Duration
	writer  *frames.Writer
	dead    chan struct{} // closed by fail
	heard   atomic.Int64  // when the last frame came, in ns since start
	start   time.Time

	mu    sync.Mutex
	next  uint64                // guarded by mu
	calls map[uint64]*call      // guarded by mu; nil once dead
	slots map[loadable]*loading // guarded by mu
	cause error                 // guarded by mu; why dead
}

// call is one request in flight. Whoever removes it from calls answers it.
type call struct {
	verb    frames.Verb
	sent    time.Duration // since the connection's start
	until   time.Duration // then the caller waits no longer
	patient bool          // silence is no sign of a hang
	reply   chan frames.Frame
}

// loadable is what makes two blobs the same material.
type loadable struct {
	binding     frames.Binding
	fingerprint claviger.Fingerprint
}

// loading is a slot, once ready is closed.
type loading struct {
	ready chan struct{}
	slot  frames.Slot
	err   error
}

func newConn(socket net.Conn, timeout time.Duration) *conn {
	return &conn{
		socket: socket, timeout: timeout, writer: frames.NewWriter(socket),
		dead: make(chan struct{}), start: time.Now(),
		calls: map[uint64]*call{}, slots: map[loadable]*loading{},
	}
}

// serve moves frames until the connection ends, and returns why it did. Its
// goroutines have ended by then.
func (k *conn) serve(ctx context.Context) error {
	var group sync.WaitGroup
	group.Go(k.watch)
	stop := context.AfterFunc(ctx, func() { k.fail(ctx.Err()) })
	defer stop()
	k.fail(k.read())
	group.Wait()
	return k.cause
}

// fail ends the connection and every call on it, once.
func (k *conn) fail(cause error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.calls == nil {
		return
	}
	k.cause = cause
	for _, c := range k.calls {
		close(c.reply)
	}
	k.calls = nil
	close(k.dead)
	k.socket.Close()
}

func (k *conn) isDead() bool {
	select {
	case <-k.dead:
		return true
	default:
		return false
	}
}

func (k *conn) read() error {
	r := bufio.NewReaderSize(k.socket, 64<<10)
	for {
		f, err := frames.Read(r)
		if err != nil {
			return fmt.Errorf("read from key process: %w", err)
		}
		k.heard.Store(int64(time.Since(k.start)))
		k.mu.Lock()
		c := k.calls[f.ID]
		delete(k.calls, f.ID)
		k.mu.Unlock()
		if c == nil || c.verb != f.Verb {
			if c != nil {
				close(c.reply)
			}
			if c == nil && f.ID < k.issued() {
				continue // its caller has gone
			}
			return fmt.Errorf("answer to nothing that was asked: %w", frames.ErrMalformed)
		}
		c.reply <- f
	}
}

func (k *conn) issued() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.next
}

// write has what waits written, by this caller or by the one that writes now.
// Where others are under way, those that can go on may add to it first: one
// write carries the requests of all.
func (k *conn) write(alone bool) {
	if !alone {
		runtime.Gosched()
	}
	if err := k.writer.Flush(); err != nil {
		k.fail(fmt.Errorf("write to key process: %w", err))
	}
}

// watch ends a connection on which somebody waits and nothing comes.
func (k *conn) watch() {
	tick := time.NewTicker(max(k.timeout/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-k.dead:
			return
		}
		if k.silent() {
			k.fail(errHung)
			return
		}
	}
}

// silent gives up the calls whose time is over, and reports whether the
// process has been silent for too long while one of them waited.
func (k *conn) silent() bool {
	now, heard := time.Since(k.start), time.Duration(k.heard.Load())
	k.mu.Lock()
	defer k.mu.Unlock()
	silent := false
	for id, c := range k.calls {
		if !c.patient && now-max(c.sent, heard) >= k.timeout {
			silent = true
		}
		if now >= c.until {
			delete(k.calls, id)
			close(c.reply)
		}
	}
	return silent
}

// call sends one request and waits for its answer. It returns errDied when the
// connection ended first and there is time to repeat on another, and errHung
// when there is none.
func (k *conn) call(ctx context.Context, req frames.Request, until time.Time) (frames.Response, error) {
	return k.roundTrip(ctx, req, until, false)
}

func (k *conn) roundTrip(ctx context.Context, req frames.Request, until time.Time, patient bool) (frames.Response, error) {
	c := &call{
		verb: req.Verb(), sent: time.Since(k.start), until: until.Sub(k.start), patient: patient,
		reply: make(chan frames.Frame, 1),
	}
	k.mu.Lock()
	if k.calls == nil {
		k.mu.Unlock()
		return nil, errDied
	}
	id := k.next
	k.next++
	k.calls[id] = c
	alone := len(k.calls) == 1
	k.mu.Unlock()
	if _, err := k.writer.Add(func(b []byte) ([]byte, error) { return frames.AppendRequest(b, id, req) }); err != nil {
		k.forget(id)
		if k.isDead() || errors.Is(err, frames.ErrBroken) {
			k.fail(err) // whose write it was is about to do the same
			return nil, errDied
		}
		return nil, err
	}
	k.write(alone)
	select {
	case f, ok := <-c.reply:
		if !ok {
			if time.Now().Before(until) {
				return nil, errDied
			}
			return nil, errHung
		}
		resp, err := frames.ParseResponse(f)
		if errors.Is(err, frames.ErrMalformed) {
			k.fail(err)
			return nil, errDied
		}
		return resp, err
	case <-ctx.Done():
		k.forget(id)
		return nil, ended(ctx)
	}
}

func (k *conn) forget(id uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.calls, id)
}
