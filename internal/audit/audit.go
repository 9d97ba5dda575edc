// Package audit owns the record of what was done: what a record says, how it
// is written as one line, how lines are chained, checkpointed, verified and
// exported, and what a home for them (package segment: files; package pglog:
// PostgreSQL) has to promise.
//
// It promises that a line has exactly one encoding, that every line names its
// predecessor by hash, and that Verify names each record that was removed,
// altered or reordered. It must never hold key material, plaintext or inputs
// of an operation (a record carries their digest), never drop a record to
// save space, and never repair what is broken without saying so.
package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"

	"claviger.dev"
)

// Limits of a line and its parts, in bytes.
const (
	MaxLine       = 16 << 10               // one line without its newline
	MaxText       = claviger.MaxTextLength // a text member; longer texts are cut and end in "…"
	MaxExecutable = 512                    // Record.Executable
	MaxAction     = 64                     // Record.Action
	MaxDetails    = 16                     // entries of Record.Detail
	MaxDetailName = 32                     // a name in Record.Detail
	MaxDetailText = 1024                   // a value in Record.Detail
	MaxDetailSum  = 3072                   // all values of Record.Detail together; what is over is cut
	MaxWriter     = 64                     // a writer's id
)

// Outcome says how a request ended.
type Outcome string

// The outcomes.
const (
	Allowed Outcome = "allowed" // it was done
	Denied  Outcome = "denied"  // policy, proof or a budget refused
	Failed  Outcome = "failed"  // it was allowed and did not succeed
)

// The actions that the log itself writes.
const (
	ActionStart      = "audit.start"      // a writer opened its chain, or continues it after a restart
	ActionCheckpoint = "audit.checkpoint" // see Checkpoint.Record
)

// Record is one entry: who asked for what, with which key, and how it ended.
// Texts may come from outside: invalid UTF-8 and control characters are
// replaced by U+FFFD, and what is longer than its limit is cut.
type Record struct {
	Writer string    // set by Append: the chain the record stands in
	Seq    uint64    // set by Append: its place there, from 1, without gaps
	Time   time.Time // of the decision, kept in UTC to the microsecond

	Action  string // what was asked: "use.sign", "key.create", "grant.revoke"; a-z, 0-9, '.', '-'
	Outcome Outcome
	Code    claviger.Code // empty when allowed
	Reason  string        // why it was refused or failed, or what the caller gave as reason

	Principal     claviger.ID // empty when nobody could be identified
	PrincipalName string
	PrincipalKind string
	Method        string // how the caller was identified: claviger.Facts.Method
	Source        string // address of the connection
	Executable    string
	Unit          string
	UID           int // -1 when not observed
	RequestID     string

	Key         claviger.Name
	KeyID       claviger.ID
	Version     uint32
	Algorithm   claviger.Algorithm
	Fingerprint claviger.Fingerprint
	Count       int    // operations in a batch; 0 where counting has no sense
	Digest      string // SHA-256 over the inputs, each length-prefixed, hex
	Grant       claviger.ID

	Detail map[string]string // further facts; names are a-z, 0-9, '_', '-', '.'
}

// Hash is a SHA-256: of a whole line without its newline, when it identifies
// a record.
type Hash [sha256.Size]byte

// String returns the hash as 64 lower-case hex digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It takes lower-case hex only.
func (h *Hash) UnmarshalText(b []byte) error {
	raw, err := hex.DecodeString(string(b))
	if err != nil || len(raw) != len(h) || hex.EncodeToString(raw) != string(b) {
		return claviger.Errorf(claviger.Invalid, "a hash is 64 lower-case hex digits", "copy it from an export")
	}
	copy(h[:], raw)
	return nil
}

// Head is the end of one writer's chain: its last record. A writer that has
// written nothing has Seq 0 and a zero Hash.
type Head struct {
	Writer string `json:"writer"`
	Seq    uint64 `json:"seq"`
	Hash   Hash   `json:"hash"` // of the last line
}

// Line is one stored record. Raw has no newline and is valid only during the
// call that hands it over.
type Line struct {
	Writer string // as the home files it; empty when it cannot tell
	Seq    uint64 // as the home files it; 0 when it cannot tell
	Raw    []byte
	Batch  uint64 // Seq of the first record that was made durable together with this one
	Prev   Hash   // of the line before in this chain
	Record Record
	Err    error // only with Query.Damaged: why Raw is no sound record, ErrTorn when its end is missing; or a Fault
}

// Query chooses records. Zero fields choose everything. Records come in the
// order of their chain; with several writers, grouped by writer or merged by
// time as the home prefers.
type Query struct {
	From, To  time.Time     // From <= Time < To
	Key       claviger.Name // the key's name at the time of the record
	KeyID     claviger.ID
	Principal claviger.ID
	Session   claviger.ID // that the record is about
	Action    string      // prefix: "use." or "key.create"
	Outcome   Outcome
	Writer    string
	After     []Head // of each writer named, only records with a greater Seq; Hash is not looked at
	Last      int    // only the last so many that match, oldest first; 0 for all

	// Damaged hands over every line as it lies, in stored order, sound or not,
	// and as a Fault in Line.Err what is wrong around the lines (an index, a
	// file's name). Every other field is ignored. Without it a damaged line
	// ends the iteration with an error.
	Damaged bool
}

// Matches reports whether a record is chosen. It does not look at Last.
func (q *Query) Matches(r *Record) bool {
	switch {
	case !q.From.IsZero() && r.Time.Before(q.From),
		!q.To.IsZero() && !r.Time.Before(q.To),
		q.Key != "" && r.Key != q.Key,
		q.KeyID != "" && r.KeyID != q.KeyID,
		q.Principal != "" && r.Principal != q.Principal,
		q.Session != "" && r.Detail["session"] != string(q.Session),
		q.Outcome != "" && r.Outcome != q.Outcome,
		q.Writer != "" && r.Writer != q.Writer,
		!strings.HasPrefix(r.Action, q.Action):
		return false
	}
	return r.Seq > q.Floor(r.Writer)
}

// Floor returns the greatest Seq of the writer that After leaves out.
func (q *Query) Floor(writer string) uint64 {
	for _, h := range q.After {
		if h.Writer == writer {
			return h.Seq
		}
	}
	return 0
}

// Source is what can be read and verified: a Log, or files at rest.
type Source interface {
	// Iterate calls f for each record that the query chooses and stops at the
	// first error, which it returns. f may not call the log. A damaged line is
	// a claviger.Internal error, unless Query.Damaged asks for it.
	Iterate(ctx context.Context, q Query, f func(Line) error) error
}

// Log is a home of records. It is safe for concurrent use.
type Log interface {
	Source

	// Append makes the records durable, all in one sync, and sets their Writer
	// and Seq. Concurrent calls are gathered. On any error the caller must
	// act as if nothing was recorded, although a record may stand in the log
	// when the context ended first. Disk full, read-only, a lost connection or
	// a broken chain are claviger.Unavailable; all but the last heal by
	// themselves. A record that breaks a rule is claviger.Invalid.
	Append(ctx context.Context, records ...*Record) error

	// Head returns the durable end of every chain, by writer.
	Head(ctx context.Context) ([]Head, error)

	// Wait returns when some chain is longer than after says (a writer not
	// named there counts as 0), or with the context's error.
	Wait(ctx context.Context, after []Head) error

	// Close ends the log. Appends that were accepted finish first; later ones
	// are claviger.Unavailable.
	Close() error
}

// Follow hands over what the query chooses now and then every such record as
// it becomes durable, until the context ends or f returns an error.
func Follow(ctx context.Context, log Log, q Query, f func(Line) error) error {
	for {
		heads, err := log.Head(ctx)
		if err != nil {
			return err
		}
		err = log.Iterate(ctx, q, func(l Line) error {
			heads = advance(heads, l.Record.Writer, l.Record.Seq)
			return f(l)
		})
		if err != nil {
			return err
		}
		q.After, q.Last = heads, 0
		if err := log.Wait(ctx, heads); err != nil {
			return err
		}
	}
}

// advance raises the writer's entry to seq.
func advance(heads []Head, writer string, seq uint64) []Head {
	for i := range heads {
		if heads[i].Writer == writer {
			heads[i].Seq = max(heads[i].Seq, seq)
			return heads
		}
	}
	return append(heads, Head{Writer: writer, Seq: seq})
}

// Longer reports whether some head is past what after says of its writer.
func Longer(heads, after []Head) bool {
	q := Query{After: after}
	for _, h := range heads {
		if h.Seq > q.Floor(h.Writer) {
			return true
		}
	}
	return false
}
