package broker

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"claviger.dev"
	"claviger.dev/dpop"
)

// The error codes that this server answers with, of RFC 6749 (4.1.2.1 and
// 5.2), 7009, 8693, 8707, 9126 and 9449 and OpenID Connect.
const (
	InvalidRequest       = "invalid_request"
	InvalidClient        = "invalid_client"
	InvalidGrant         = "invalid_grant"
	UnauthorizedClient   = "unauthorized_client"
	UnsupportedGrantType = "unsupported_grant_type"
	InvalidScope         = "invalid_scope"
	InvalidTarget        = "invalid_target"
	InvalidToken         = "invalid_token"
	AccessDenied         = "access_denied"
	ServerError          = "server_error"
	TooMany              = "slow_down"
)

// Error is a refusal, as it goes to the client. Its text names the rule and no
// secret.
type Error struct {
	Code   string
	Msg    string
	Status int   // of HTTP
	Err    error // the cause, for the log alone; nil for most
}

// Error implements error.
func (e *Error) Error() string { return e.Code + ": " + e.Msg }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func refuse(code, format string, args ...any) *Error {
	e := &Error{Code: code, Msg: fmt.Sprintf(format, args...), Status: http.StatusBadRequest}
	if code == InvalidClient {
		e.Status = http.StatusUnauthorized // RFC 6749, 5.2
	}
	return e
}

func (e *Error) because(err error) *Error {
	e.Err = err
	return e
}

// Outward makes any error one that may leave: those of proofs and of the door
// have their counterparts, and what is not known is server_error.
func Outward(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if e, ok := errors.AsType[*dpop.Error](err); ok {
		status := http.StatusBadRequest // at this server (RFC 9449, 5 and 8)
		if e.Code == dpop.Unavailable {
			status = http.StatusServiceUnavailable
		}
		return &Error{Code: e.Code, Msg: e.Msg, Status: status, Err: e.Err}
	}
	msg := "it cannot be done"
	if e, ok := errors.AsType[*claviger.Error](err); ok {
		msg = e.Msg
	}
	switch claviger.CodeOf(err) {
	case claviger.Denied:
		return &Error{AccessDenied, msg, http.StatusForbidden, err}
	case claviger.Unauthenticated:
		return &Error{InvalidClient, msg, http.StatusUnauthorized, err}
	case claviger.Exhausted:
		return &Error{TooMany, msg, http.StatusTooManyRequests, err}
	case claviger.Invalid, claviger.TooLarge, claviger.Unsupported:
		return &Error{InvalidRequest, msg, http.StatusBadRequest, err}
	case claviger.NotFound, claviger.Conflict:
		return &Error{InvalidGrant, msg, http.StatusBadRequest, err}
	case claviger.Unavailable, claviger.Stale, claviger.Deadline:
		return &Error{dpop.Unavailable, "it cannot be done now: try again", http.StatusServiceUnavailable, err}
	}
	return &Error{ServerError, "an error of the server, whose log has it by the request id", http.StatusInternalServerError, err}
}

// Refused records a refusal of this package's own. The door records its own,
// and a client that has to come again with a nonce was not refused.
func (b *Broker) Refused(ctx context.Context, r *Request, err error) error {
	_, rule := errors.AsType[*Error](err)
	_, proof := errors.AsType[*dpop.Error](err)
	e := Outward(err)
	if !rule && !proof || e.Code == dpop.UseNonce || e.Code == TooMany || e.Status >= http.StatusInternalServerError {
		return nil
	}
	var name claviger.Name
	if id := r.Form.Get("client_id"); id != "" && len(id) <= 256 {
		if c, err := b.Door.Client(ctx, id); err == nil {
			name = c.Name
		}
	}
	return b.Door.TokenRefused(ctx, claviger.Principal{Facts: r.Facts}, name, e.Code)
}
