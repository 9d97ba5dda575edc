package server

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"connectrpc.com/connect"

	"claviger.dev"
)

// Metadata that goes with every answer, in headers or trailers as the protocol
// has it.
const (
	headerCode      = "Claviger-Code"       // of an error
	headerHint      = "Claviger-Hint"       // the next thing to do
	headerRequestID = "Claviger-Request-Id" // finds the request in the log and in the audit record
)

// errStopping is the cause that ends the streams of a server that stops.
var errStopping = claviger.Errorf(claviger.Unavailable, "the server is stopping", "try again when it is back")

// outward turns an error into what a caller may see of it. Whatever is not a
// [claviger.Error], or is one of code internal, is logged with its cause and
// leaves as "internal" with the request's id.
func outward(ctx context.Context, log *slog.Logger, procedure, requestID string, err error) *connect.Error {
	if c, ok := errors.AsType[*connect.Error](err); ok {
		return c // made here already, or by Connect itself
	}
	known, ok := errors.AsType[*claviger.Error](err)
	switch {
	case errors.Is(err, context.Canceled) && context.Cause(ctx) == error(errStopping):
		known = errStopping
	case ok && known.Code != claviger.Internal:
		if known.Code == claviger.Unavailable && known.Err != nil {
			log.WarnContext(ctx, "unavailable", "method", procedure, "request", requestID, "error", err)
		}
	case errors.Is(err, context.DeadlineExceeded):
		known = claviger.Errorf(claviger.Deadline, "the deadline passed", "try again, or allow more time")
	case errors.Is(err, context.Canceled):
		known = claviger.Errorf(claviger.Deadline, "the caller went away", "try again")
	default:
		log.ErrorContext(ctx, "internal error", "method", procedure, "request", requestID, "error", err)
		known = internalError(requestID)
	}
	return outwardError(known)
}

func internalError(requestID string) *claviger.Error {
	return claviger.Errorf(claviger.Internal, "a fault of the server", "give the operator the request id "+requestID)
}

// outwardError writes an error in Connect's terms by the one table of codes.
func outwardError(e *claviger.Error) *connect.Error {
	mapping, ok := claviger.Mappings[e.Code]
	if !ok {
		mapping = claviger.Mappings[claviger.Internal]
	}
	c := connect.NewError(connect.Code(mapping.RPC), errors.New(e.Msg))
	c.Meta().Set(headerCode, string(e.Code))
	if e.Hint != "" {
		c.Meta().Set(headerHint, printable(e.Hint))
	}
	return c
}

// codeOf reads the code back from an error that outward made, or from one of
// Connect's own.
func codeOf(c *connect.Error) claviger.Code {
	if code := c.Meta().Get(headerCode); code != "" {
		return claviger.Code(code)
	}
	for code, mapping := range claviger.Mappings {
		if mapping.RPC == uint32(c.Code()) {
			return code
		}
	}
	return claviger.Internal
}

// printable makes a text fit for a header.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
