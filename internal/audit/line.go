package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"claviger.dev"
)

// ErrTorn says of a line that its end is missing: the write that made it was
// cut short, so it was never acknowledged.
var ErrTorn = errors.New("the line is incomplete")

const (
	timeLayout = "2006-01-02T15:04:05.000000Z"
	hashMember = `,"hash":"`
	hashSuffix = len(hashMember) + 2*sha256.Size + len(`"}`)
)

// Body checks and cleans the record and appends the part of its line that does
// not depend on its place in a chain. The record itself is not changed. What
// only the program can get wrong is claviger.Invalid; texts are cleaned.
func (r *Record) Body(dst []byte) ([]byte, error) {
	c := codec{buf: dst}
	members(&c, r)
	if c.err != nil {
		return nil, claviger.Errorf(claviger.Invalid, "the audit record breaks a rule of its form", "this is a fault of the program; report it").Wrap(c.err)
	}
	return c.buf, nil
}

// Extend appends one whole line with its newline to dst and moves the head to
// it. batch is the Seq of the first record of the same sync.
func (h *Head) Extend(dst, body []byte, batch uint64) []byte {
	start := len(dst)
	h.Seq++
	c := codec{buf: dst}
	header(&c, &Line{Batch: batch, Prev: h.Hash, Record: Record{Writer: h.Writer, Seq: h.Seq}})
	dst = append(c.buf, body...)
	digest := sha256.New()
	_, _ = digest.Write(dst[start:]) // never fails
	var sum Hash
	digest.Sum(sum[:0])
	end := len(dst)
	dst = append(dst, hashMember...)
	dst = hex.AppendEncode(dst, sum[:])
	dst = append(dst, `"}`...)
	_, _ = digest.Write(dst[end:]) // goes on from the member's hash to the line's
	digest.Sum(h.Hash[:0])
	return append(dst, '\n')
}

// Decode reads one line without its newline. It accepts exactly what Extend
// writes: what it accepts encodes to the same bytes, and its hash is right.
func Decode(raw []byte) (Line, error) {
	l := Line{Raw: raw, Record: Record{UID: -1}}
	if len(raw) > MaxLine || len(raw) < hashSuffix {
		return l, errors.New("the line is longer or shorter than a record can be")
	}
	cut := len(raw) - hashSuffix
	c := codec{buf: raw[:cut], decoding: true}
	header(&c, &l)
	members(&c, &l.Record)
	if c.err == nil && len(c.buf) > 0 {
		c.fail("an unknown, repeated or misplaced member at %.40q", c.buf)
	}
	if c.err != nil {
		return l, c.err
	}
	l.Writer, l.Seq = l.Record.Writer, l.Record.Seq
	sum := sha256.Sum256(raw[:cut])
	tail := hex.AppendEncode([]byte(hashMember), sum[:])
	if !bytes.Equal(append(tail, `"}`...), raw[cut:]) {
		return l, errors.New("the hash does not fit the record")
	}
	again := codec{buf: make([]byte, 0, len(raw))}
	header(&again, &l)
	members(&again, &l.Record)
	if again.err != nil || !bytes.Equal(again.buf, raw[:cut]) {
		return l, errors.New("the line is not in its one form")
	}
	return l, nil
}

// LineHash returns the hash by which the next line names this one.
func LineHash(raw []byte) Hash { return sha256.Sum256(raw) }

// header and members are the one list of the members of a line, in order, for
// writing and for reading.
func header(c *codec, l *Line) {
	c.literal(`{"v":1`)
	required(c, "writer", &l.Record.Writer, MaxWriter)
	number(c, "seq", &l.Record.Seq, 1<<63-1, true)
	number(c, "batch", &l.Batch, 1<<63-1, true)
	c.bytes("prev", l.Prev[:], true)
}

func members(c *codec, r *Record) {
	c.time(&r.Time)
	required(c, "action", &r.Action, MaxAction)
	c.require(isWord(r.Action), "the action is made of a-z, 0-9, '.' and '-'")
	required(c, "outcome", &r.Outcome, MaxText)
	c.require(r.Outcome == Allowed || r.Outcome == Denied || r.Outcome == Failed, "the outcome is one of three")
	text(c, "code", &r.Code, MaxText)
	if r.Code != "" {
		_, known := claviger.Mappings[r.Code]
		c.require(known, "the code is known")
	}
	text(c, "reason", &r.Reason, MaxText)
	text(c, "principal", &r.Principal, MaxText)
	text(c, "principal_name", &r.PrincipalName, MaxText)
	text(c, "principal_kind", &r.PrincipalKind, MaxText)
	text(c, "method", &r.Method, MaxText)
	text(c, "source", &r.Source, MaxText)
	text(c, "executable", &r.Executable, MaxExecutable)
	text(c, "unit", &r.Unit, MaxText)
	c.uid(&r.UID)
	text(c, "request_id", &r.RequestID, MaxText)
	text(c, "key", &r.Key, MaxText)
	text(c, "key_id", &r.KeyID, MaxText)
	number(c, "version", &r.Version, 1<<32-1, false)
	text(c, "algorithm", &r.Algorithm, MaxText)
	c.bytes("fingerprint", r.Fingerprint[:], false)
	number(c, "count", &r.Count, 1<<31-1, false)
	text(c, "digest", &r.Digest, MaxText)
	text(c, "grant", &r.Grant, MaxText)
	c.detail(&r.Detail)
}
