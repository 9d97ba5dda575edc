package proxy

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"time"
)

// upstream asks the application. Most requests send nothing but a head: these
// are asked on the goroutine that they came with, and all others by an
// [http.Transport].
type upstream struct {
	lines
	others *http.Transport
	wait   time.Duration // for the head of an answer
}

// maxHead is the most bytes of all heads of one answer.
const maxHead = 256 << 10

var errProtocol = errors.New("the application changes the protocol, and was not asked to")

// RoundTrip implements http.RoundTripper.
func (u *upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || r.Body != nil && r.Body != http.NoBody ||
		r.ContentLength != 0 || len(r.TransferEncoding) > 0 || r.Trailer != nil || r.Header["Upgrade"] != nil || r.Header["Expect"] != nil {
		return u.others.RoundTrip(r)
	}
	for {
		l, used, err := u.take(r.Context())
		if err != nil {
			return nil, err
		}
		stop := context.AfterFunc(r.Context(), func() { l.Close() })
		res, err := l.ask(r, u.wait)
		if err == nil {
			res.Body = &download{ReadCloser: res.Body, upstream: u, line: l, response: res, stop: stop}
			return res, nil
		}
		stop()
		l.Close()
		switch {
		case r.Context().Err() != nil:
			return nil, r.Context().Err()
		case !used || l.heard || errors.Is(err, os.ErrDeadlineExceeded):
			return nil, err
		}
		// A connection that was kept was closed before the request came there,
		// and what only asks may be asked twice.
	}
}

// ask writes a request and reads the head of the answer.
func (l *line) ask(r *http.Request, wait time.Duration) (*http.Response, error) {
	_ = l.SetDeadline(time.Now().Add(wait))
	if err := errors.Join(r.Write(l.out), l.out.Flush()); err != nil {
		return nil, err
	}
	l.left = maxHead
	for {
		res, err := http.ReadResponse(l.in, r)
		switch {
		case err != nil:
			return nil, err
		case res.StatusCode == http.StatusSwitchingProtocols:
			return nil, errProtocol
		case res.StatusCode >= 200:
			l.left = math.MaxInt64
			_ = l.SetDeadline(time.Time{})
			return res, nil
		}
		if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.Got1xxResponse != nil {
			if err := trace.Got1xxResponse(res.StatusCode, textproto.MIMEHeader(res.Header)); err != nil {
				return nil, err
			}
		}
	}
}

// download is the body of an answer. Its connection is kept when it was read to
// its end.
type download struct {
	io.ReadCloser
	upstream *upstream
	line     *line // nil when the body has ended
	response *http.Response
	stop     func() bool
}

// Read implements io.Reader.
func (d *download) Read(b []byte) (int, error) {
	n, err := d.ReadCloser.Read(b)
	if err != nil {
		if gone := d.response.Request.Context().Err(); gone != nil && err != io.EOF {
			err = gone
		}
		d.end(err == io.EOF)
	}
	return n, err
}

// Close implements io.Closer. What is left is not waited for.
func (d *download) Close() error {
	d.end(false)
	return nil
}

func (d *download) end(whole bool) {
	l := d.line
	if l == nil {
		return
	}
	d.line = nil
	if d.stop() && whole && !d.response.Close {
		d.upstream.keep(l)
	} else {
		l.Close()
	}
}
