package proxy

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// answer is where an answer is written to. A peer that takes nothing for as long
// as stall is given up.
type answer struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
	stalled atomic.Bool // the body of the request did not come
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader keeps the application's cookies out of hints that come before the
// answer.
func (a *answer) WriteHeader(status int) {
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		a.Header().Del("Set-Cookie")
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *answer) Write(b []byte) (int, error) {
	defer a.deadline(a.control.SetWriteDeadline)()
	return a.ResponseWriter.Write(b)
}

// FlushError is what http.ResponseController calls.
func (a *answer) FlushError() error {
	defer a.deadline(a.control.SetWriteDeadline)()
	return a.control.Flush()
}

// deadline sets one that ends with the call: between two, streams may rest.
// Where the connection has none, as in a test, there is none.
func (a *answer) deadline(set func(time.Time) error) (end func()) {
	if set(time.Now().Add(a.stall)) != nil {
		return func() {}
	}
	return func() { _ = set(time.Time{}) }
}

// upload is the body of a request. A peer that sends nothing for as long as
// stall while it is waited for is given up.
type upload struct {
	io.ReadCloser
	answer  *answer
	request *http.Request
}

// Read implements io.Reader.
func (u *upload) Read(b []byte) (int, error) {
	end := u.answer.deadline(u.answer.control.SetReadDeadline)
	n, err := u.ReadCloser.Read(b)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		u.answer.stalled.Store(true)
		return n, err // the deadline stays: nobody waits for what is left
	case err == io.EOF:
		delete(u.request.Trailer, "Cookie") // a cookie is a header, and was checked as one
	}
	end()
	return n, err
}

// leave bounds the time that the server takes to read what nobody has read.
func (u *upload) leave() {
	if !u.answer.stalled.Load() {
		u.answer.deadline(u.answer.control.SetReadDeadline)
	}
}

// buffers are for copying bodies.
type buffers struct{ pool *sync.Pool }

func newBuffers() buffers {
	return buffers{&sync.Pool{New: func() any { return new([32 << 10]byte) }}}
}

// Get implements httputil.BufferPool.
func (b buffers) Get() []byte { return b.pool.Get().(*[32 << 10]byte)[:] }

// Put implements httputil.BufferPool.
func (b buffers) Put(buf []byte) { b.pool.Put((*[32 << 10]byte)(buf)) }
