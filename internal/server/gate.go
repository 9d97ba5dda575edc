package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/semaphore"

	"claviger.dev"
	"claviger.dev/internal/proof"
)

// answerTimeout is how long the caller may take to read an answer, or one part
// of a stream.
const answerTimeout = time.Minute

// bodyMemory is how many bytes of large request bodies may be held at once.
const bodyMemory = 256 << 20

// gate stands before every method: it holds the row's limits, identifies the
// caller, and turns whatever goes wrong into an answer.
type gate struct {
	prover   *proof.Prover
	log      *slog.Logger
	now      func() time.Time
	classes  map[class]*buckets
	bodies   *semaphore.Weighted // of bodyMemory
	metrics  *metrics
	loopback bool            // receivers on this host may be registered
	stopping context.Context // done when the server begins to stop
	errors   *connect.ErrorWriter
}

// call is what the gate knows of one request. It travels to the handlers of
// this package in the request's context and no further.
type call struct {
	by       claviger.Principal
	facts    claviger.Facts // of a caller that has no principal yet
	notAfter time.Time      // of the client certificate
	id       string
	code     claviger.Code // of the answer; "" for success
	patient  func()        // lets the request outlive the server's timeouts, once it is read; nil where it must not
}

// read notes that the request has arrived whole.
func (c *call) read() {
	if c.patient != nil {
		c.patient()
	}
}

// Keys of values in contexts, private to this package.
type (
	callKey struct{}
	peerKey struct{}
)

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// caller is the principal of a request, for the keeper's parameter.
func caller(ctx context.Context) claviger.Principal { return callOf(ctx).by }

// guard puts the limits of a row before a method's handler.
func (g *gate) guard(row route, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := g.now()
		c := &call{id: string(claviger.NewID(start))}
		out := &answer{ResponseWriter: w, call: c}
		w.Header().Set(headerRequestID, c.id)
		if row.stream || row.deadline > answerTimeout/2 {
			out.patience(row)
		}
		defer func() {
			if p := recover(); p != nil {
				g.recovered(out, r, c, row, p)
			}
			g.metrics.observe(row.procedure, c.code, g.now().Sub(start))
		}()
		ctx, cancel := g.deadline(r.Context(), row)
		defer cancel()
		ctx = context.WithValue(ctx, callKey{}, c)
		r = r.WithContext(ctx)
		if err := g.admit(ctx, row, r, c); err != nil {
			g.refuse(out, r, c, row, err)
			return
		}
		in := &body{ReadCloser: r.Body, left: row.body + envelope, memory: g.bodies}
		defer in.release()
		r.Body = in
		next.ServeHTTP(out, r)
	})
}

// deadline is the context of one call.
func (g *gate) deadline(ctx context.Context, row route) (context.Context, context.CancelFunc) {
	if !row.stream {
		return context.WithTimeout(ctx, row.deadline)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	release := context.AfterFunc(g.stopping, func() { cancel(errStopping) })
	return ctx, func() { release(); cancel(nil) }
}

// admit checks the outside of a request and finds its caller.
func (g *gate) admit(ctx context.Context, row route, r *http.Request, c *call) error {
	if err := checkShape(row, r); err != nil {
		return err
	}
	return g.meter(row, c, g.now(), g.identify(ctx, row, r, c))
}

// meter counts a call against its rate class. err is what became of the
// identification, and is returned when there is room.
func (g *gate) meter(row route, c *call, now time.Time, err error) error {
	class := g.classes[row.class]
	if err != nil {
		class = g.classes[classEnroll] // whoever cannot be identified is a stranger
	}
	if class == nil {
		return err
	}
	who := string(c.by.ID)
	if who == "" {
		who = source(c.facts)
	}
	if !class.allow(who, now) {
		return claviger.Errorf(claviger.Exhausted, "too many calls", "slow down and try again")
	}
	return err
}

// source names an unidentified caller for its token bucket.
func source(f claviger.Facts) string {
	if f.Method == proof.MethodPeer {
		return "uid:" + strconv.Itoa(f.UID)
	}
	if f.Source.Is6() && !f.Source.Is4In6() { // one customer holds a whole /64
		p, _ := f.Source.Prefix(64)
		return p.String()
	}
	return f.Source.String()
}

// identify asks for the proof that the row wants.
func (g *gate) identify(ctx context.Context, row route, r *http.Request, c *call) (err error) {
	if peer, ok := ctx.Value(peerKey{}).(*proof.Peer); ok {
		if row.auth == authNone {
			c.facts = peer.Facts()
			c.facts.RequestID = c.id
			return nil
		}
		if row.auth == authMTLS {
			c.facts = peer.Facts()
			return claviger.Errorf(claviger.Unauthenticated, "this method wants a client certificate", "call it over TLS with the certificate")
		}
		c.by, err = g.prover.Peer(ctx, peer, c.id)
		return err
	}
	addr, _ := netip.ParseAddrPort(r.RemoteAddr)
	c.facts = claviger.Facts{Source: addr.Addr().Unmap(), UID: -1, GID: -1, RequestID: c.id}
	if row.auth == authNone {
		return nil
	}
	if c.by, err = g.prover.Certificate(ctx, r.TLS, c.facts.Source, c.id); err == nil {
		c.notAfter = r.TLS.PeerCertificates[0].NotAfter
	}
	return err
}

// checkShape refuses what no client of the API sends.
func checkShape(row route, r *http.Request) error {
	switch {
	case r.Method != http.MethodPost:
		return claviger.Errorf(claviger.Unsupported, "methods are called with POST", "send the request's message as the body of a POST")
	case !knownContentType(r):
		return claviger.Errorf(claviger.Invalid, "the content type is not one of the API", "send Content-Type: application/json")
	case !identity(r.Header.Get("Content-Encoding")), !identity(r.Header.Get("Connect-Content-Encoding")), !identity(r.Header.Get("Grpc-Encoding")):
		return claviger.Errorf(claviger.Unsupported, "compressed requests are not taken", "send the body uncompressed")
	case !milliseconds(r.Header.Get("Connect-Timeout-Ms")):
		return claviger.Errorf(claviger.Invalid, "Connect-Timeout-Ms is not a number of milliseconds", "send at most ten digits, or leave it out")
	case r.ContentLength > row.body+envelope:
		return tooLarge()
	}
	return nil
}

// milliseconds reports a timeout that can be kept, or none.
func milliseconds(timeout string) bool {
	if timeout == "" {
		return true
	}
	_, err := strconv.ParseUint(timeout, 10, 34)
	return err == nil && len(timeout) <= 10
}

func identity(encoding string) bool { return encoding == "" || strings.EqualFold(encoding, "identity") }

func tooLarge() *claviger.Error {
	return claviger.Errorf(claviger.TooLarge, "the body is over the method's limit", "split the request into smaller batches")
}

// refuse answers a request that does not reach Connect.
func (g *gate) refuse(w http.ResponseWriter, r *http.Request, c *call, row route, err error) {
	out := outward(r.Context(), g.log, row.procedure, c.id, err)
	c.code = codeOf(out)
	_ = g.errors.Write(w, r, out) // the caller went away
}

// recovered answers for a handler that panicked. Nothing of the panic leaves.
func (g *gate) recovered(w *answer, r *http.Request, c *call, row route, p any) {
	if p == http.ErrAbortHandler {
		panic(p)
	}
	g.log.ErrorContext(r.Context(), "panic", "method", row.procedure, "request", c.id, "panic", p, "stack", string(debug.Stack()))
	c.code = claviger.Internal
	if !w.wrote {
		_ = g.errors.Write(w, r, outwardError(internalError(c.id)))
	}
}

// interceptor is the inner side of the gate, where messages are decoded: it
// refuses those that did not decode and makes errors fit to leave.
type interceptor struct{ g *gate }

// WrapUnary implements [connect.Interceptor].
func (i interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		callOf(ctx).read()
		err := decoded(req.Any())
		var res connect.AnyResponse
		if err == nil {
			res, err = next(ctx, req)
		}
		if err != nil {
			return nil, i.outward(ctx, req.Spec().Procedure, err)
		}
		return res, nil
	}
}

// WrapStreamingClient implements [connect.Interceptor].
func (i interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements [connect.Interceptor].
func (i interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, strictConn{conn, callOf(ctx)}); err != nil {
			return i.outward(ctx, conn.Spec().Procedure, err)
		}
		return nil
	}
}

func (i interceptor) outward(ctx context.Context, procedure string, err error) error {
	c := callOf(ctx)
	out := outward(ctx, i.g.log, procedure, c.id, err)
	c.code = codeOf(out)
	return out
}

// strictConn is a stream whose request must have decoded.
type strictConn struct {
	connect.StreamingHandlerConn
	call *call
}

// Receive implements [connect.StreamingHandlerConn].
func (s strictConn) Receive(message any) error {
	if err := s.StreamingHandlerConn.Receive(message); err != nil {
		return err
	}
	s.call.read()
	return decoded(message)
}

// envelope is what gRPC and Connect's streams put before a message, in bytes.
const envelope = 5

// body is a request's body with its cap, its deadline and its share of the
// memory for bodies. It fails with errors that Connect hands on as they are.
type body struct {
	io.ReadCloser
	left   int64 // bytes until the cap
	read   int64
	held   int64 // of memory
	memory *semaphore.Weighted
	failed error // of an earlier Read; it stays
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.failed != nil {
		return 0, b.failed
	}
	n, err := b.take(p)
	if err != nil {
		b.failed = err
	}
	return n, err
}

func (b *body) take(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return 0, outwardError(tooLarge())
	}
	if b.read += int64(n); b.read > small { // small ones are bounded by the number of connections
		if !b.memory.TryAcquire(int64(n)) {
			return 0, outwardError(claviger.Errorf(claviger.Unavailable, "too many large requests at once", "try again"))
		}
		b.held += int64(n)
	}
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		err = outwardError(claviger.Errorf(claviger.Deadline, "the body did not arrive in time", "send it faster, or in smaller batches"))
	}
	return n, err
}

func (b *body) release() { b.memory.Release(b.held) }

// answer is a response that carries a code whoever wrote it: the few errors
// that Connect makes by itself get theirs from the HTTP status.
type answer struct {
	http.ResponseWriter
	call   *call
	wrote  bool
	rolled bool // each write has a deadline of its own
}

// patience exempts a long answer from the server's timeouts: the read deadline
// falls once the request has been read, since net/http ends a request whose
// read deadline passes, and each write gets its own time.
func (a *answer) patience(row route) {
	control := http.NewResponseController(a.ResponseWriter)
	a.call.patient = func() { _ = control.SetReadDeadline(time.Time{}) } // every connection of ours can
	if a.rolled = row.stream; !a.rolled {
		_ = control.SetWriteDeadline(time.Now().Add(row.deadline + answerTimeout))
	}
}

// WriteHeader implements [http.ResponseWriter].
func (a *answer) WriteHeader(status int) {
	if !a.wrote && status >= 400 {
		if a.Header().Get(headerCode) == "" {
			e := codeOfStatus(status)
			a.Header().Set(headerCode, string(e.Code))
			a.Header().Set(headerHint, e.Hint)
		}
		a.call.code = claviger.Code(a.Header().Get(headerCode))
	}
	a.wrote = true
	a.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (a *answer) Write(p []byte) (int, error) {
	a.wrote = true
	if a.rolled {
		_ = http.NewResponseController(a.ResponseWriter).SetWriteDeadline(time.Now().Add(answerTimeout))
	}
	return a.ResponseWriter.Write(p)
}

// Flush implements [http.Flusher], which Connect asks for in streams.
func (a *answer) Flush() { _ = http.NewResponseController(a.ResponseWriter).Flush() }

// Unwrap is for [http.ResponseController].
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func codeOfStatus(status int) *claviger.Error {
	switch status {
	case http.StatusTooManyRequests:
		return claviger.Errorf(claviger.Exhausted, "", "slow down and try again")
	case http.StatusNotFound:
		return claviger.Errorf(claviger.NotFound, "", "check the path against the documentation")
	case http.StatusNotImplemented, http.StatusMethodNotAllowed, http.StatusHTTPVersionNotSupported:
		return claviger.Errorf(claviger.Unsupported, "", "call the method as the documentation shows")
	case http.StatusServiceUnavailable:
		return claviger.Errorf(claviger.Unavailable, "", "try again")
	case http.StatusGatewayTimeout, 499:
		return claviger.Errorf(claviger.Deadline, "", "try again, or allow more time")
	}
	if status >= 500 {
		return claviger.Errorf(claviger.Internal, "", "give the operator the request id")
	}
	return claviger.Errorf(claviger.Invalid, "", "call the method as the documentation shows")
}
