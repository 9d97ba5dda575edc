package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"claviger.dev"
)

// Kind says what Verify found.
type Kind string

// The kinds of faults.
const (
	Altered      Kind = "altered"                  // the record is not what was written
	Removed      Kind = "removed"                  // the record is missing
	Reordered    Kind = "reordered"                // the record stands in another place
	Duplicated   Kind = "duplicated"               // the record stands twice
	Torn         Kind = "torn"                     // the last line has no end; it was never acknowledged
	CutTail      Kind = "cut-tail"                 // the chain ends before what a checkpoint saw
	RolledBack   Kind = "rolled-back"              // the chain is another than the one a checkpoint saw
	BadSignature Kind = "bad-checkpoint-signature" // a checkpoint is not signed as it should be, or not about this chain
)

// Fault is one thing that is wrong with one record, or with a run of them. It
// is an error so that a home can hand one over as Line.Err.
type Fault struct {
	Writer string `json:"writer"`
	Seq    uint64 `json:"seq"`  // the first record concerned
	Last   uint64 `json:"last"` // the last one; Seq for a single record
	Kind   Kind   `json:"kind"`
	Detail string `json:"detail"`
}

// Error implements error.
func (f Fault) Error() string {
	return fmt.Sprintf("record %d to %d of %s: %s: %s", f.Seq, f.Last, f.Writer, f.Kind, f.Detail)
}

// MaxFaults is the number of faults that a report names.
const MaxFaults = 10000

// Report is what Verify found. No faults mean that every chain is whole and
// agrees with the checkpoints that were given.
type Report struct {
	Records     uint64  `json:"records"`
	Checkpoints uint64  `json:"checkpoints"` // sound ones inside the log
	Heads       []Head  `json:"heads"`
	Faults      []Fault `json:"faults"`
	More        uint64  `json:"more,omitempty"` // faults beyond MaxFaults, counted only
}

// VerifyOptions are what the log is held against.
type VerifyOptions struct {
	// Checkpoints that were kept elsewhere. Only these show a cut tail or a
	// log that was rolled back.
	Checkpoints []Checkpoint
	// CheckSignature checks a checkpoint's Signature over its Statement, for
	// those given and those in the log. With nil no signature is checked.
	CheckSignature func(Checkpoint) error
}

// Verify walks everything, recomputes every hash and names each fault; it
// does not stop at the first. Its error says only that the log could not be
// read.
func Verify(ctx context.Context, log Source, opts VerifyOptions) (Report, error) {
	v := verifier{opts: opts, chains: make(map[string]*chain)}
	for _, c := range opts.Checkpoints {
		if opts.CheckSignature != nil {
			if err := opts.CheckSignature(c); err != nil {
				v.fault(c.Writer, c.Seq, c.Seq, BadSignature, "the checkpoint that was given is not signed by the key")
				continue
			}
		}
		v.kept = append(v.kept, c)
	}
	if err := log.Iterate(ctx, Query{Damaged: true}, v.line); err != nil {
		return v.report, fmt.Errorf("read audit log: %w", err)
	}
	if v.orphans != nil {
		v.chain("").damaged = v.orphans
	}
	for _, c := range v.order {
		v.end(c)
	}
	v.tails()
	if err := v.lookUp(ctx, log); err != nil {
		return v.report, fmt.Errorf("read audit log: %w", err)
	}
	slices.SortStableFunc(v.report.Faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Writer, b.Writer), cmp.Compare(a.Seq, b.Seq))
	})
	return v.report, nil
}

type verifier struct {
	opts    VerifyOptions
	kept    []Checkpoint // those of opts whose signature is good
	far     []Checkpoint // in the log, about records too far back to remember
	report  Report
	chains  map[string]*chain
	order   []*chain
	last    *chain   // of the last sound line: a damaged line is taken to be its
	orphans []damage // damaged lines before any sound one
}

// remembered is the number of line hashes of each chain that are kept for the
// checkpoints in the log; those about older records are looked up afterwards.
const remembered = 4096

// chain is what is known of one writer while walking.
type chain struct {
	writer  string
	next    uint64 // the Seq that should come
	prev    Hash   // of record next-1, when known
	known   bool
	newest  time.Time
	damaged []damage         // lines since the last sound one
	gaps    []gap            // runs that are missing so far
	jumped  bool             // the last line made the last gap
	early   map[uint64]Line  // sound records that stand too early, without Raw
	hashes  [remembered]Head // of the latest records, at Seq modulo remembered
}

type damage struct {
	seq    uint64 // as the line itself says; 0 when unreadable
	kind   Kind
	detail string
}

// gap is a run of missing records, with the hashes that its neighbours fix.
type gap struct {
	first, last uint64
	before      Hash // of record first-1
	known       bool // whether before is
	after       Hash // of record last
}

func (v *verifier) fault(writer string, first, last uint64, kind Kind, detail string) {
	if len(v.report.Faults) >= MaxFaults {
		v.report.More++
		return
	}
	v.report.Faults = append(v.report.Faults, Fault{Writer: writer, Seq: first, Last: last, Kind: kind, Detail: detail})
}

func (v *verifier) chain(writer string) *chain {
	c := v.chains[writer]
	if c == nil {
		c = &chain{writer: writer, next: 1, known: true, early: make(map[uint64]Line)}
		v.chains[writer] = c
		v.order = append(v.order, c)
	}
	return c
}

// line takes the next stored line.
func (v *verifier) line(l Line) error {
	if f, ok := errors.AsType[Fault](l.Err); ok {
		v.fault(f.Writer, f.Seq, f.Last, f.Kind, f.Detail)
		return nil
	}
	v.report.Records++
	if l.Err != nil {
		v.damagedLine(l)
		return nil
	}
	c := v.chain(l.Record.Writer)
	v.last = c
	c.damaged = append(v.orphans, c.damaged...)
	v.orphans = nil
	v.place(c, l)
	return nil
}

func (v *verifier) damagedLine(l Line) {
	c := v.last
	if l.Writer != "" {
		c = v.chain(l.Writer)
	}
	d := damage{seq: l.Seq, kind: Altered, detail: l.Err.Error()}
	if errors.Is(l.Err, ErrTorn) {
		d.kind = Torn
	}
	if c == nil {
		v.orphans = append(v.orphans, d)
		return
	}
	if d.seq == 0 && l.Record.Writer == c.writer {
		d.seq = l.Record.Seq
	}
	c.damaged = append(c.damaged, d)
	c.jumped = false
}

// place puts a sound line into its chain.
func (v *verifier) place(c *chain, l Line) {
	seq, hash := l.Record.Seq, LineHash(l.Raw)
	if e, ok := c.early[c.next]; ok && seq != c.next {
		delete(c.early, c.next)
		v.link(c, e.Seq, e.Prev, e.Record.Time, Hash(e.Raw))
	}
	jumped := c.jumped
	c.jumped = false
	switch {
	case seq == c.next:
		v.resolve(c, seq)
		v.link(c, seq, l.Prev, l.Record.Time, hash)
	case seq > c.next:
		c.gaps = append(c.gaps, gap{first: c.next, last: seq - 1, before: c.prev, known: c.known, after: l.Prev})
		c.jumped = len(c.damaged) == 0
		c.next, c.known = seq, false
		v.resolve(c, seq)
		v.link(c, seq, l.Prev, l.Record.Time, hash)
	default:
		v.late(c, l, hash, jumped)
	}
	v.checkpoint(l)
}

// link takes record seq, which is the next.
func (v *verifier) link(c *chain, seq uint64, prev Hash, at time.Time, hash Hash) {
	if c.known && prev != c.prev {
		which, detail := seq-1, "the record after it names another hash"
		if seq == 1 {
			which, detail = 1, "the first record names a predecessor"
		}
		v.fault(c.writer, which, which, Altered, detail)
	}
	c.next, c.prev, c.known, c.newest = seq+1, hash, true, at
	c.hashes[seq%remembered] = Head{Seq: seq, Hash: hash}
	for _, k := range v.kept {
		if k.Writer == c.writer && k.Seq == seq && k.Hash != hash {
			v.fault(c.writer, seq, seq, RolledBack, "the checkpoint of "+k.Time.Format(time.RFC3339)+" saw another record here: the log was rolled back and went on, or rewritten")
		}
	}
}

// late places a sound record whose Seq has been passed.
func (v *verifier) late(c *chain, l Line, hash Hash, jumped bool) {
	seq := l.Record.Seq
	if n := len(c.gaps); jumped && c.gaps[n-1].first == seq && (!c.gaps[n-1].known || c.gaps[n-1].before == l.Prev) {
		// The line before stood too early, not this one too late.
		g := c.gaps[n-1]
		moved := Line{Seq: g.last + 1, Prev: g.after, Raw: slices.Clone(c.prev[:]), Record: Record{Time: c.newest}}
		v.fault(c.writer, moved.Seq, moved.Seq, Reordered, fmt.Sprintf("it stands before record %d", seq))
		c.early[moved.Seq] = moved
		c.gaps = c.gaps[:n-1]
		c.next, c.prev, c.known = g.first, g.before, g.known
		v.link(c, seq, l.Prev, l.Record.Time, hash)
		return
	}
	i := slices.IndexFunc(c.gaps, func(g gap) bool { return g.first <= seq && seq <= g.last })
	if i < 0 {
		v.fault(c.writer, seq, seq, Duplicated, fmt.Sprintf("it stands again after record %d", c.next-1))
		return
	}
	g := c.gaps[i]
	v.fault(c.writer, seq, seq, Reordered, fmt.Sprintf("it stands after record %d", c.next-1))
	if seq == g.first && g.known && g.before != l.Prev || seq == g.last && g.after != hash {
		v.fault(c.writer, seq, seq, Altered, "its neighbours name another record")
	}
	var rest []gap
	if g.first < seq {
		rest = append(rest, gap{first: g.first, last: seq - 1, before: g.before, known: g.known, after: l.Prev})
	}
	if seq < g.last {
		rest = append(rest, gap{first: seq + 1, last: g.last, before: hash, known: true, after: g.after})
	}
	c.gaps = slices.Replace(c.gaps, i, i+1, rest...)
}

// resolve names the damaged lines that stood before record seq, out of the
// gap that they left.
func (v *verifier) resolve(c *chain, seq uint64) {
	damaged := c.damaged
	c.damaged = nil
	if len(damaged) == 0 {
		return
	}
	n := len(c.gaps)
	if n == 0 || c.gaps[n-1].last+1 != seq {
		v.fault(c.writer, seq, seq, Altered, "bytes that are no record stand before it")
		return
	}
	g := c.gaps[n-1]
	c.gaps = c.gaps[:n-1]
	taken := assign(damaged, g)
	from := g.first
	for _, at := range slices.Sorted(maps.Keys(taken)) {
		v.removed(c, from, at-1)
		v.fault(c.writer, at, at, taken[at].kind, taken[at].detail)
		from = at + 1
	}
	v.removed(c, from, g.last)
}

func (v *verifier) removed(c *chain, first, last uint64) {
	if first <= last {
		v.fault(c.writer, first, last, Removed, "no such record stands in the log")
	}
}

// end reports what is open when the walk is over.
func (v *verifier) end(c *chain) {
	for e, ok := c.early[c.next]; ok; e, ok = c.early[c.next] {
		delete(c.early, c.next)
		v.link(c, e.Seq, e.Prev, e.Record.Time, Hash(e.Raw))
	}
	for seq := range c.early {
		v.fault(c.writer, seq, seq, Altered, "no record leads to it")
	}
	for i, d := range c.damaged {
		v.fault(c.writer, c.next+uint64(i), c.next+uint64(i), d.kind, d.detail)
	}
	for _, g := range c.gaps {
		v.removed(c, g.first, g.last)
	}
	head := Head{Writer: c.writer, Seq: c.next - 1}
	if c.known {
		head.Hash = c.prev
	}
	v.report.Heads = append(v.report.Heads, head)
}

// assign finds for each damaged line its place in the gap: the one that it
// names itself, or the lowest that is left.
func assign(damaged []damage, g gap) map[uint64]damage {
	taken := make(map[uint64]damage)
	var nameless []damage
	for _, d := range damaged {
		if _, used := taken[d.seq]; used || d.seq < g.first || d.seq > g.last {
			nameless = append(nameless, d)
			continue
		}
		taken[d.seq] = d
	}
	at := g.first
	for _, d := range nameless {
		for _, used := taken[at]; used; _, used = taken[at] {
			at++
		}
		if at <= g.last {
			taken[at] = d
		}
	}
	return taken
}

// tails holds the ends of the chains against the checkpoints kept elsewhere.
func (v *verifier) tails() {
	for _, k := range v.kept {
		c := v.chains[k.Writer]
		switch {
		case c == nil:
			v.fault(k.Writer, 1, k.Seq, CutTail, "no record of this writer stands in the log")
		case c.next > k.Seq:
		case c.newest.After(k.Time):
			v.fault(k.Writer, c.next, k.Seq, RolledBack, "the checkpoint saw records up to here, and the log went on without them")
		default:
			v.fault(k.Writer, c.next, k.Seq, CutTail, "the checkpoint saw records up to here")
		}
	}
}

// checkpoint checks a checkpoint that stands in the log.
func (v *verifier) checkpoint(l Line) {
	if l.Record.Action != ActionCheckpoint {
		return
	}
	bad := func(detail string) {
		v.fault(l.Record.Writer, l.Record.Seq, l.Record.Seq, BadSignature, detail)
	}
	k, err := checkpointFrom(l.Record.Detail)
	if err != nil {
		bad("the record holds no checkpoint")
		return
	}
	if v.opts.CheckSignature != nil {
		if err := v.opts.CheckSignature(k); err != nil {
			bad("the checkpoint is not signed by the key")
			return
		}
	}
	c := v.chains[k.Writer]
	if c == nil || k.Seq == 0 || c.hashes[k.Seq%remembered].Seq != k.Seq {
		v.far = append(v.far, k)
		return
	}
	v.compare(k, c.hashes[k.Seq%remembered].Hash)
}

func (v *verifier) compare(k Checkpoint, hash Hash) {
	if k.Hash != hash {
		v.fault(k.Writer, k.Seq, k.Seq, Altered, "a checkpoint in the log saw another record here")
		return
	}
	v.report.Checkpoints++
}

// lookUp compares the checkpoints about records that were not remembered. A
// record that is missing has been named already.
func (v *verifier) lookUp(ctx context.Context, log Source) error {
	found := errors.New("found")
	for _, k := range v.far {
		q := Query{Writer: k.Writer, After: []Head{{Writer: k.Writer, Seq: max(k.Seq, 1) - 1}}}
		err := log.Iterate(ctx, q, func(l Line) error {
			if l.Record.Seq == k.Seq {
				v.compare(k, LineHash(l.Raw))
			}
			return found
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, found) && claviger.CodeOf(err) != claviger.Internal {
			return err
		}
	}
	return nil
}
