package claviger

import (
	"errors"
	"fmt"
)

// Code says what kind of error a caller got. It is itself an error, so
// errors.Is(err, claviger.Denied) holds across layers and across the API.
type Code string

// The codes. They are stable: programs may rely on them.
const (
	Invalid         Code = "invalid"         // the request is malformed or not allowed for this key
	Unauthenticated Code = "unauthenticated" // no principal could be established
	Denied          Code = "denied"          // policy refuses
	NotFound        Code = "not_found"       // no such thing, or none that the caller may see
	Conflict        Code = "conflict"        // it exists already, or changed meanwhile
	Exhausted       Code = "exhausted"       // a budget, a rate or an invocation limit is used up
	TooLarge        Code = "too_large"       // over a size limit
	Unsupported     Code = "unsupported"     // the custodian or key cannot do this
	Stale           Code = "stale"           // freshness cannot be confirmed
	Unavailable     Code = "unavailable"     // cannot be used or recorded now; trying again may help
	Deadline        Code = "deadline"        // the deadline passed
	Internal        Code = "internal"        // a fault of ours; the request id finds it in the log
)

// Error implements error.
func (c Code) Error() string { return string(c) }

// Mapping is what one code becomes outside: the Connect (gRPC) code number,
// the HTTP status and the exit status of the command line.
type Mapping struct {
	RPC  uint32
	HTTP int
	Exit int
}

// Mappings is the one table that maps codes outward.
var Mappings = map[Code]Mapping{
	Invalid:         {RPC: 3, HTTP: 400, Exit: 1},
	Unauthenticated: {RPC: 16, HTTP: 401, Exit: 3},
	Denied:          {RPC: 7, HTTP: 403, Exit: 3},
	NotFound:        {RPC: 5, HTTP: 404, Exit: 4},
	Conflict:        {RPC: 9, HTTP: 409, Exit: 2},
	Exhausted:       {RPC: 8, HTTP: 429, Exit: 3},
	TooLarge:        {RPC: 11, HTTP: 413, Exit: 1},
	Unsupported:     {RPC: 12, HTTP: 501, Exit: 2},
	Stale:           {RPC: 10, HTTP: 503, Exit: 5},
	Unavailable:     {RPC: 14, HTTP: 503, Exit: 5},
	Deadline:        {RPC: 4, HTTP: 504, Exit: 5},
	Internal:        {RPC: 13, HTTP: 500, Exit: 2},
}

// Error is an error that may be shown to a caller. Msg says what is wrong and
// Hint the next thing to do; both are safe texts. Err is the cause, for the
// log alone, and never leaves the process.
type Error struct {
	Code Code
	Msg  string
	Hint string
	Err  error
}

// Errorf returns an error with a code, a safe message and a hint.
func Errorf(code Code, msg, hint string) *Error { return &Error{Code: code, Msg: msg, Hint: hint} }

// Wrap returns a copy of e that carries a cause for the log.
func (e *Error) Wrap(err error) *Error { c := *e; c.Err = err; return &c }

// Error implements error. It includes the cause and so is for logs; callers
// are shown Code, Msg and Hint.
func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Msg, e.Err)
	}
	return string(e.Code) + ": " + e.Msg
}

// Unwrap makes errors.Is see both the code and the cause.
func (e *Error) Unwrap() []error {
	if e.Err != nil {
		return []error{e.Code, e.Err}
	}
	return []error{e.Code}
}

// CodeOf returns the code of an error, Internal for one that has none, and ""
// for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	if c, ok := errors.AsType[Code](err); ok {
		return c
	}
	return Internal
}
