package client

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

// direct carries small calls over a local socket on the goroutine of whoever
// calls. http.Transport hands each call to two goroutines and back, which takes
// longer than the call. It is for calls whose request is sent whole before the
// answer is read.
type direct struct {
	dial  func(ctx context.Context) (net.Conn, error)
	open  chan struct{}    // a place for each connection that is in use
	ready chan *directConn // kept alive, and not in use
}

type directConn struct {
	net.Conn
	in *bufio.Reader
}

func newDirect(connections int, dial func(context.Context) (net.Conn, error)) *direct {
	return &direct{dial: dial, open: make(chan struct{}, connections), ready: make(chan *directConn, connections)}
}

// RoundTrip implements http.RoundTripper.
func (d *direct) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	select {
	case d.open <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for {
		conn, kept, err := d.take(ctx)
		if err != nil {
			<-d.open
			return nil, err
		}
		resp, err := d.exchange(ctx, conn, r)
		if err == nil {
			return resp, nil
		}
		conn.Close()
		// The server closes connections that are idle. A kept one may be gone
		// before it was used, a new one not.
		if again := r.GetBody; kept && again != nil && ctx.Err() == nil {
			r = r.Clone(ctx)
			if r.Body, err = again(); err == nil {
				continue
			}
		}
		<-d.open
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
}

func (d *direct) take(ctx context.Context) (conn *directConn, kept bool, err error) {
	select {
	case conn = <-d.ready:
		return conn, true, nil
	default:
	}
	c, err := d.dial(ctx)
	if err != nil {
		return nil, false, err
	}
	return &directConn{c, bufio.NewReader(c)}, false, nil
}

// exchange sends a request and reads the head of its answer. The context's end
// breaks the connection, until the answer has been read.
func (d *direct) exchange(ctx context.Context, conn *directConn, r *http.Request) (*http.Response, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := r.Write(conn)
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(conn.in, r)
	}
	if err != nil {
		stop()
		return nil, err
	}
	resp.Body = &directBody{ReadCloser: resp.Body, end: func(whole bool) {
		if stop() && whole && !resp.Close && conn.in.Buffered() == 0 {
			select {
			case d.ready <- conn:
				conn = nil
			default:
			}
		}
		if conn != nil {
			conn.Close()
		}
		<-d.open
	}}
	return resp, nil
}

// directBody is the body of an answer; its end frees the connection.
type directBody struct {
	io.ReadCloser
	end   func(whole bool)
	ended bool
}

// Read implements io.Reader.
func (b *directBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !b.ended {
		b.ended = true
		b.end(errors.Is(err, io.EOF))
	}
	return n, err
}

// Close implements io.Closer.
func (b *directBody) Close() error {
	if !b.ended {
		b.ended = true
		b.end(false)
	}
	return nil
}

// closeIdle closes the connections that are not in use.
func (d *direct) closeIdle() {
	for {
		select {
		case conn := <-d.ready:
			conn.Close()
		default:
			return
		}
	}
}
