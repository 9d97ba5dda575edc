// Package frames is the wire between the server and a key process: length-
// prefixed frames over an inherited socket, pipelined by request id.
//
// It owns the encoding of every request and response. The encoding is strict
// and bijective: what Parse accepts encodes to the same bytes again, unknown
// verbs, unknown values, bytes left over and sizes over the caps are refused.
// It does no input or output beyond one io.Reader and holds no state.
//
// No response type has a field that could carry private material, and none may
// ever get one: a test walks the types.
//
// A frame is, in order and big-endian:
//
//	u32 length of what follows | u64 request id | u8 verb | u8 status | body
//
// The status of a request is 0.
package frames

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	claviger "claviger.dev"
)

// The caps. A frame over MaxFrame loses the stream; the others answer too_large
// or invalid.
const (
	MaxFrame = 4<<20 + 256<<10 // bytes after the length: 4 MiB of items, and what goes with them
	MaxInput = 1 << 20         // bytes of one input
	MaxItems = 1000            // items of one batch

	headerSize = 4 + 8 + 1 + 1
)

// DeviceGeneration is the generation of a blob that a device wraps, or that
// names what lies in one: no root wraps it, and no rotation of the root
// concerns it.
const DeviceGeneration = 1<<32 - 1

// ErrMalformed is in the chain of every error about bytes that are no frame.
var ErrMalformed = errors.New("malformed frame")

// Verb is what a request asks for.
type Verb uint8

// The verbs. Their numbers are the wire format.
const (
	VerbIdentity Verb = iota + 1
	VerbGenerate
	VerbOneTimeKey
	VerbAdopt
	VerbLoad
	VerbUnload
	VerbSign
	VerbMAC
	VerbVerifyMAC
	VerbSeal
	VerbOpen
	VerbRewrap
	VerbShares
	VerbVerifyShares
	VerbRestore
	VerbJoinKey
	VerbJoin
	VerbAdmit
	VerbFind
	VerbEvidence
	VerbRecipe
	VerbDevice
	VerbBind
	VerbAttest
	VerbEndorse
	VerbActivate
	VerbProbe
	VerbSearch
	VerbDestroy
)

// Status says how a request ended.
type Status uint8

// The statuses. NotLoaded means that the slot is of another process or was
// evicted: load the blob again. The others but OK stand for a claviger.Code.
const (
	OK Status = iota
	NotLoaded
	Invalid
	Denied
	NotFound
	Conflict
	Exhausted
	TooLarge
	Unsupported
	Unavailable
	Internal
)

var codes = [...]claviger.Code{
	NotLoaded: claviger.Unavailable, Invalid: claviger.Invalid, Denied: claviger.Denied,
	NotFound: claviger.NotFound, Conflict: claviger.Conflict, Exhausted: claviger.Exhausted,
	TooLarge: claviger.TooLarge, Unsupported: claviger.Unsupported,
	Unavailable: claviger.Unavailable, Internal: claviger.Internal,
}

// Code returns the code that a status stands for, "" for OK.
func (s Status) Code() claviger.Code {
	if int(s) < len(codes) {
		return codes[s]
	}
	return claviger.Internal
}

// StatusOf returns the status that stands for an error's code.
func StatusOf(err error) Status {
	code := claviger.CodeOf(err)
	for s := Invalid; s <= Internal; s++ {
		if codes[s] == code {
			return s
		}
	}
	return Internal
}

// Frame is one frame off the wire. Body is its own and may be kept.
type Frame struct {
	ID     uint64
	Verb   Verb
	Status Status
	Body   []byte
}

// Read reads one frame. The error is io.EOF exactly when the stream ended
// between frames; any other error means that the stream is lost. What of a
// frame a reader reads ahead is lost with it, so one stream has one.
func Read(r *bufio.Reader) (Frame, error) {
	h, err := r.Peek(4)
	if len(h) < 4 {
		if err == io.EOF && len(h) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	n := binary.BigEndian.Uint32(h)
	if n < headerSize-4 || n > MaxFrame {
		return Frame{}, fmt.Errorf("length %d: %w", n, ErrMalformed)
	}
	if h, err = r.Peek(headerSize); err != nil {
		return Frame{}, unexpected(err)
	}
	f := Frame{ID: binary.BigEndian.Uint64(h[4:]), Verb: Verb(h[12]), Status: Status(h[13])}
	_, _ = r.Discard(headerSize) // it is there
	if n -= headerSize - 4; n > 0 {
		f.Body = make([]byte, n)
		if _, err := io.ReadFull(r, f.Body); err != nil {
			return Frame{}, unexpected(err)
		}
	}
	return f, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// AppendRequest appends the frame of a request to dst. It fails, and returns
// dst as it was, when the request breaks a cap.
func AppendRequest(dst []byte, id uint64, r Request) ([]byte, error) {
	return appendFrame(dst, id, r.Verb(), OK, r)
}

// AppendResponse appends the frame of a successful response.
func AppendResponse(dst []byte, id uint64, r Response) ([]byte, error) {
	return appendFrame(dst, id, r.Verb(), OK, r)
}

// AppendFault appends the frame of a refusal. verb repeats the request's and
// need not be known.
func AppendFault(dst []byte, id uint64, verb Verb, status Status, f Fault) ([]byte, error) {
	if status == OK || status > Internal {
		return dst, fmt.Errorf("status %d of a fault: %w", status, ErrMalformed)
	}
	return appendFrame(dst, id, verb, status, &f)
}

func appendFrame(dst []byte, id uint64, verb Verb, status Status, m message) ([]byte, error) {
	start := len(dst)
	c := codec{buf: append(dst, make([]byte, headerSize)...)}
	m.walk(&c)
	n := len(c.buf) - start - 4
	if c.err == nil && n > MaxFrame {
		c.err = errTooLarge
	}
	if c.err != nil {
		return dst, c.err
	}
	h := c.buf[start:]
	binary.BigEndian.PutUint32(h, uint32(n))
	binary.BigEndian.PutUint64(h[4:], id)
	h[12], h[13] = byte(verb), byte(status)
	return c.buf, nil
}

// ParseRequest parses the request in a frame. The request refers to the
// frame's body. An unknown verb is a claviger.Unsupported error.
func ParseRequest(f Frame) (Request, error) {
	if f.Status != OK {
		return nil, fmt.Errorf("status of a request: %w", ErrMalformed)
	}
	r := newRequest(f.Verb)
	if r == nil {
		return nil, claviger.Errorf(claviger.Unsupported, "the key process does not know this verb", "use a server and a key process of one release")
	}
	return r, decode(f.Body, r)
}

// ParseResponse parses the response in a frame that answers a request with the
// verb of the frame; the response refers to the frame's body. A refusal is
// returned as an error with its code; NotLoaded alone as ErrNotLoaded.
func ParseResponse(f Frame) (Response, error) {
	if f.Status == OK {
		r := newResponse(f.Verb)
		if r == nil {
			return nil, fmt.Errorf("verb %d of a response: %w", f.Verb, ErrMalformed)
		}
		return r, decode(f.Body, r)
	}
	var fault Fault
	if err := ParseFault(f, &fault); err != nil {
		return nil, err
	}
	if f.Status == NotLoaded {
		return nil, ErrNotLoaded
	}
	return nil, claviger.Errorf(f.Status.Code(), fault.Message, fault.Hint)
}

// ParseFault parses the body of a frame whose status is not OK.
func ParseFault(f Frame, fault *Fault) error {
	if f.Status == OK || f.Status > Internal {
		return fmt.Errorf("status %d: %w", f.Status, ErrMalformed)
	}
	return decode(f.Body, fault)
}

var errBusy = claviger.Errorf(claviger.Unavailable, "too much is waiting for the key process", "try again later, with smaller batches")

// ErrNotLoaded is the answer to a use of a slot that the process does not have.
var ErrNotLoaded = errors.New("slot is not loaded")

func decode(body []byte, m message) error {
	c := codec{buf: body, decoding: true}
	m.walk(&c)
	if c.err == nil && len(c.buf) > 0 {
		c.err = fmt.Errorf("%d bytes left over: %w", len(c.buf), ErrMalformed)
	}
	return c.err
}
