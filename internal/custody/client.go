package custody

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
)

// slowLimit bounds the wait for a verb that may take seconds, and many of them
// where others have the machine (an RSA-4096 key).
const slowLimit = 2 * time.Minute

// Client is the server's side of one chain of key processes, each replacing
// the one before. It is safe for concurrent use.
type Client struct {
	log     *slog.Logger
	timeout time.Duration
	device  bool
	stop    context.CancelFunc
	done    chan struct{}

	mu      sync.Mutex
	current *conn         // nil while there is no key process
	changed chan struct{} // closed and replaced when current changes
	closed  bool
	pace    map[claviger.Algorithm]int // items of a request, as a device last showed
}

var (
	errNoProcess = claviger.Errorf(claviger.Unavailable, "there is no key process", "try again; if it lasts, look at the supervisor's log ('claviger doctor')")
	errHung      = claviger.Errorf(claviger.Unavailable, "the key process did not answer in time", "try again; it is being replaced")
	errClosed    = claviger.Errorf(claviger.Unavailable, "the server is shutting down", "try again on another server")
	errDeadline  = claviger.Errorf(claviger.Deadline, "the deadline passed while waiting for the key process", "allow more time")
)

// New returns a client and starts taking sockets from the source.
func New(cfg Config) *Client {
	ctx, stop := context.WithCancel(context.Background())
	c := &Client{
		log: cfg.Log, timeout: cfg.Timeout, device: cfg.Device, stop: stop,
		done: make(chan struct{}), changed: make(chan struct{}), pace: map[claviger.Algorithm]int{},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.timeout <= 0 {
		c.timeout = 2 * time.Second
	}
	go c.run(ctx, cfg.Source)
	return c
}

// Close closes the socket, fails the calls in flight and waits until the
// client's goroutines have ended.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	<-c.done
}

// run takes one socket after the other.
func (c *Client) run(ctx context.Context, source Source) {
	defer close(c.done)
	for ctx.Err() == nil {
		socket, err := source.Next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				c.log.Error("no more key processes", "err", err)
			}
			break
		}
		k := newConn(socket, c.timeout)
		c.set(k)
		err = k.serve(ctx)
		c.set(nil)
		if ctx.Err() == nil {
			c.log.Warn("key process is gone", "err", err)
		}
	}
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.set(nil)
}

func (c *Client) set(k *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = k
	close(c.changed)
	c.changed = make(chan struct{})
}

// connection returns the present connection, or waits for the next.
func (c *Client) connection(ctx context.Context, until time.Time) (*conn, error) {
	for {
		c.mu.Lock()
		k, changed, closed := c.current, c.changed, c.closed
		c.mu.Unlock()
		if closed {
			return nil, errClosed
		}
		if k != nil && !k.isDead() {
			return k, nil
		}
		if err := wait(ctx, changed, until); err != nil {
			return nil, err
		}
	}
}

// wait waits for the event until the time.
func wait(ctx context.Context, event <-chan struct{}, until time.Time) error {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-event:
		return nil
	case <-timer.C:
		return errNoProcess
	case <-ctx.Done():
		return ended(ctx)
	}
}

func ended(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errDeadline
	}
	return errDeadline.Wrap(ctx.Err())
}

// attempt runs f on one connection after the other while connections die under
// it. That is safe for every verb: what was not answered was not released.
func attempt[R frames.Response](ctx context.Context, c *Client, limit time.Duration, f func(*conn, time.Time) (frames.Response, error)) (r R, err error) {
	until := time.Now().Add(limit)
	for {
		k, err := c.connection(ctx, until)
		if err != nil {
			return r, err
		}
		got, err := f(k, until)
		if errors.Is(err, errDied) {
			continue
		}
		if err != nil {
			return r, err
		}
		r, ok := got.(R)
		if !ok {
			k.fail(frames.ErrMalformed)
			return r, errHung
		}
		return r, nil
	}
}

func fast[R frames.Response](ctx context.Context, c *Client, req frames.Request) (R, error) {
	return attempt[R](ctx, c, c.timeout, func(k *conn, until time.Time) (frames.Response, error) {
		return k.call(ctx, req, until)
	})
}
