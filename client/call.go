package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
)

// Retries of one call: at most four more attempts, after up to 50, 100, 200 and
// 400 milliseconds.
const (
	attempts  = 5
	firstWait = 50 * time.Millisecond
)

// repeatable says whether a call may be sent again when it may have been
// processed.
type repeatable bool

const (
	once  repeatable = false // it changes something
	again repeatable = true  // it changes nothing, or uses a key: a use that was not released is void
)

// call makes one call: deadline, renewal of the own certificate, retries, and
// the error in Claviger's terms.
func call[Q, A any](ctx context.Context, c *Client, r repeatable, method func(context.Context, *connect.Request[Q]) (*connect.Response[A], error), request *Q) (*A, error) {
	return callWithin(ctx, c, c.timeout, r, method, request)
}

// callWithin is call with a time limit of its own.
func callWithin[Q, A any](ctx context.Context, c *Client, limit time.Duration, r repeatable, method func(context.Context, *connect.Request[Q]) (*connect.Response[A], error), request *Q) (*A, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c.renewIfDue(ctx)
	wait := firstWait
	var before *claviger.Error
	for attempt := 1; ; attempt++ {
		answer, err := method(ctx, connect.NewRequest(request))
		if err == nil {
			return answer.Msg, nil
		}
		out := fromConnect(err)
		if before != nil && out.Code == claviger.Deadline {
			return nil, before // why there was another attempt says more
		}
		before = out
		if attempt == attempts || out.Code != claviger.Unavailable || !bool(r) && !unsent(err) {
			return nil, out
		}
		select {
		case <-ctx.Done():
			return nil, out
		case <-time.After(rand.N(wait)):
			wait *= 2
		}
	}
}

// unsent reports whether the call certainly did not reach the server: there was
// no connection.
func unsent(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// fromConnect returns the error as the server meant it. The code and hint
// travel as metadata; an answer without them comes from something in between,
// or from no server at all.
func fromConnect(err error) *claviger.Error {
	var meta interface{ Get(string) string }
	msg, code := err.Error(), claviger.Internal
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		// Connect takes these for a caller that went away. Here it is the server.
		return claviger.Errorf(claviger.Unavailable, "the connection to the server broke", "try again").Wrap(err)
	}
	if ce, ok := errors.AsType[*connect.Error](err); ok {
		msg = ce.Message()
		if ce.Code() == connect.CodeInternal && !connect.IsWireError(err) && strings.HasPrefix(msg, "marshal message") {
			return claviger.Errorf(claviger.Invalid, "the request cannot be encoded: a text in it is not UTF-8", "send text as UTF-8, and bytes where the API takes bytes").Wrap(err)
		}
		for known, mapping := range claviger.Mappings {
			if mapping.RPC == uint32(ce.Code()) {
				code = known
			}
		}
		meta = ce.Meta()
		if named := claviger.Code(meta.Get("Claviger-Code")); claviger.Mappings[named].RPC == uint32(ce.Code()) {
			return claviger.Errorf(named, clip(msg), clip(meta.Get("Claviger-Hint"))).Wrap(requestID(meta.Get("Claviger-Request-Id")))
		}
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return claviger.Errorf(claviger.Unauthenticated, "the server's certificate is not trusted", "check the address, and that the CA is the server's").Wrap(err)
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return claviger.Errorf(claviger.Unauthenticated, "the server's certificate is for another name", "check the address").Wrap(err)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return claviger.Errorf(claviger.Deadline, "the call was cancelled", "").Wrap(err)
	case errors.Is(err, context.DeadlineExceeded) || code == claviger.Deadline:
		return claviger.Errorf(claviger.Deadline, "the deadline passed", "try again, or allow more time").Wrap(err)
	case unsent(err):
		return claviger.Errorf(claviger.Unavailable, "the server cannot be reached", "check that it runs and that the address is right").Wrap(err)
	case code == claviger.Unavailable:
		return claviger.Errorf(claviger.Unavailable, "the connection to the server broke", "try again").Wrap(err)
	}
	return claviger.Errorf(code, clip(msg), "check that the address is a Claviger server's").Wrap(err)
}

// requestID is the cause of an error of the server: the id by which its log
// and its audit record know the request.
type requestID string

func (id requestID) Error() string { return "request " + string(id) }

// RequestID returns the id of the request that an error answers, or "".
func RequestID(err error) string {
	id, _ := errors.AsType[requestID](err)
	return string(id)
}

// clip bounds a text that another program sent.
func clip(s string) string { return s[:min(len(s), 1024)] }
