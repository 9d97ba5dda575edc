// Package hunt searches files, archives and the memory of processes for the
// private halves of keys of which it knows only the public halves.
//
// It owns the search: which windows of bytes can be a private key at all, what
// each says about the public keys, how archives and encodings are opened, and
// what could not be searched. It promises that a window that holds a key whole
// is skipped with a probability below 2^-40 (see model), that everything which
// was not searched is reported, and that a search which does not find a key
// planted for the purpose is called broken, never clean. It must never print,
// log, store or return the bytes that it finds: only where they are.
package hunt

import (
	"cmp"
	"context"
	"hash/maphash"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"claviger.dev"
)

// Config says what to hunt for and how.
type Config struct {
	Keys      []Key          // asymmetric; at least one, unless there is Symmetric
	Names     []string       // that stand in what is searched, besides those of the keys: they make it quicker
	EveryByte bool           // test windows at every byte; slow on what looks random
	Workers   int            // goroutines that scan; 0 for one a processor
	Unpacked  int64          // most bytes unpacked from one file; 0 for 16 GiB
	State     string         // file to resume from and to save to; "" for none
	Progress  func(Progress) // called now and then from one goroutine; nil for none

	// Symmetric says which symmetric keys a haystack of at most MaxHaystack bytes
	// has. It is given, decoded, what could be one, and nothing else. It is called
	// by several goroutines. Nil: none is looked for.
	Symmetric func(ctx context.Context, haystack []byte) ([]Hit, error)

	model *model // of what is skipped; nil for ownModel
}

// Target is one thing to search: a path, or the memory of a process.
type Target struct {
	Path string
	PID  int   // when Path is ""
	At   int64 // of a process: only the mapping that has this address; 0 for all
}

// Place is where something is: in a file, and there perhaps in a member of an
// archive; or in a mapping of a process.
type Place struct {
	File    string `json:"file,omitempty"`
	Member  string `json:"member,omitempty"` // members within members are separated by "!"
	PID     int    `json:"pid,omitempty"`
	Mapping string `json:"mapping,omitempty"` // as the kernel names it
}

// Finding says that a private half is at a place. It never has the bytes.
type Finding struct {
	Key         string               `json:"key"`
	Fingerprint claviger.Fingerprint `json:"fingerprint"`
	Place
	Offset   int64  `json:"offset"`   // of its first byte in the file or member; the address in memory
	Encoding string `json:"encoding"` // raw, DER, base64, hex, or several from the outside in
	Form     string `json:"form"`     // scalar, seed, prime factor, ...
}

// Gap is something that was not searched, and why.
type Gap struct {
	Place
	Reason string `json:"reason"`
}

// Verdict sums a hunt up.
type Verdict string

// The verdicts.
const (
	Found       Verdict = "found"         // a private half is there
	Nothing     Verdict = "nothing found" // in what was searched; Gaps says what was not
	NotSearched Verdict = "not searched"  // nothing was found, and of some target nothing could be searched
	Broken      Verdict = "broken"        // the hunt missed the key that was planted for it, and so says nothing
)

// Control says whether the keys planted for this run were found.
type Control struct {
	Algorithm claviger.Algorithm `json:"algorithm"`
	Planted   int                `json:"planted"`
	Found     int                `json:"found"`
}

// Searched counts what was searched.
type Searched struct {
	Files     int   `json:"files"`
	Members   int   `json:"members"`
	Processes int   `json:"processes"`
	Mappings  int   `json:"mappings"`
	Bytes     int64 `json:"bytes"` // unpacked
}

// Report is the result of a hunt.
type Report struct {
	Verdict  Verdict        `json:"verdict"`
	Findings []Finding      `json:"findings"` // at most 10000
	More     int            `json:"more_findings,omitempty"`
	Controls []Control      `json:"controls"`
	Searched Searched       `json:"searched"`
	Gaps     []Gap          `json:"not_searched"` // the first 100 of each reason
	GapCount map[string]int `json:"not_searched_count"`
	Every    bool           `json:"every_byte"`
}

// Progress is how far a hunt is.
type Progress struct {
	Bytes    int64 // searched, unpacked
	Place    Place // being read
	Findings int
}

const (
	maxFindings = 10000
	maxGaps     = 100 // listed for each reason; all are counted
)

// Run hunts for the keys in the targets, in their order. It fails only where
// nothing can be said at all: a symmetric key, a state file of another hunt, a
// context that ended. What cannot be read is a Gap of the report.
func Run(ctx context.Context, c Config, targets []Target) (*Report, error) {
	if len(c.Keys) == 0 && c.Symmetric == nil || len(targets) == 0 {
		return nil, claviger.Errorf(claviger.Invalid, "there is nothing to hunt for or nowhere to look", "name a public key and a path or a process")
	}
	h, controls, err := newHunt(ctx, c)
	if err != nil {
		return nil, err
	}
	defer h.stop()
	if err := h.resume(targets); err != nil {
		return nil, err
	}
	planted, err := h.control(ctx, controls, slices.ContainsFunc(targets, func(t Target) bool { return t.Path == "" }))
	if err != nil {
		return nil, err
	}
	for i := h.state.Target; i < len(targets); i++ {
		before, gaps := h.state.Report.Searched, h.gaps
		if err := h.target(ctx, targets[i]); err != nil {
			return nil, err
		}
		if h.state.Report.Searched == before && h.gaps > gaps {
			h.state.Unsearched = true
		}
		h.state.Target, h.state.Done, h.state.Offset = i+1, "", 0
		if err := h.checkpoint(ctx, true); err != nil {
			return nil, err
		}
	}
	return h.finish(planted), ctx.Err()
}

func (h *hunt) finish(controls []Control) *Report {
	h.drain()
	r := &h.state.Report
	r.Controls, r.Every = controls, h.config.EveryByte
	r.Findings, r.Gaps = append([]Finding{}, r.Findings...), append([]Gap{}, r.Gaps...) // never null outside
	slices.SortFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.PID, b.PID), cmp.Compare(a.Member, b.Member), cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Key, b.Key))
	})
	missed := slices.ContainsFunc(controls, func(c Control) bool { return c.Planted == 0 || c.Found < c.Planted })
	switch {
	case len(r.Findings) > 0: // each was checked against the public key: true whatever the control says
		r.Verdict = Found
	case missed:
		r.Verdict = Broken
	case h.state.Unsearched:
		r.Verdict = NotSearched
	default:
		r.Verdict = Nothing
	}
	return r
}

// hunt is one run.
type hunt struct {
	config  Config
	keys    []Key // the caller's, then the control's
	jobs    chan job
	free    chan []byte // buffers
	flying  sync.WaitGroup
	workers sync.WaitGroup
	oracles []*oracle // of the workers; theirs while anything is in flight
	bytes   atomic.Int64
	gaps    int // noted in this run; of the goroutine that reads, like the times
	lastTick,
	lastSave time.Time

	mu      sync.Mutex // guards what follows
	state   state
	seen    map[seen]bool
	planted map[Place]map[int][]int64 // where keys of the control were found
}

// seen tells findings apart: one place is found once, however often windows of
// several strides and encodings meet there.
type seen struct {
	Place
	offset int64
	key    int
}

func newHunt(ctx context.Context, c Config) (*hunt, []controlKey, error) {
	if c.Workers <= 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	if c.Unpacked <= 0 {
		c.Unpacked = 16 << 30
	}
	controls, err := controlKeys(c)
	if err != nil {
		return nil, nil, err
	}
	h := &hunt{config: c, keys: slices.Clone(c.Keys), jobs: make(chan job, c.Workers), free: make(chan []byte, 2*c.Workers+3),
		seen: map[seen]bool{}, planted: map[Place]map[int][]int64{}}
	for _, k := range controls {
		if k.secret == nil {
			h.keys = append(h.keys, Key{Public: k.public})
		}
	}
	all, err := matchers(h.keys)
	if err != nil {
		return nil, nil, err
	}
	for range cap(h.free) {
		h.free <- nil
	}
	model, words := c.model, c.model
	if model == nil {
		model, words = ownModel(false), ownModel(true)
	}
	names := namesModel(h.keys, c.Names)
	mixed, mixed64 := newMixture(model, words, names, nil), newMixture(model, words, names, &base64Alphabet)
	all, public := remembering(all), map[string]bool{}
	for _, k := range h.keys {
		public[string(k.Public.Raw())] = true
	}
	for range c.Workers {
		s := &scanner{matchers: all, public: public, model: model, words: words, mixed: mixed, mixed64: mixed64, every: c.EveryByte, report: h.found}
		if c.Symmetric != nil {
			last := len(controls) - 1
			s.oracle = &oracle{hunt: h, ctx: ctx, control: controls[last].secret, index: last, seed: maphash.MakeSeed(), clean: map[uint64]struct{}{}}
			h.oracles = append(h.oracles, s.oracle)
		}
		h.workers.Go(func() {
			for j := range h.jobs {
				s.scan(j)
				h.bytes.Add(int64(j.to - j.from))
				h.free <- j.buf[:cap(j.buf)]
				h.flying.Done()
			}
		})
	}
	return h, controls, nil
}

// stop ends the workers and forgets what they read.
func (h *hunt) stop() {
	close(h.jobs)
	h.workers.Wait()
	for range len(h.free) {
		clear(<-h.free)
	}
}

// drain waits until everything that was read is scanned.
func (h *hunt) drain() {
	h.flying.Wait()
	for _, o := range h.oracles {
		o.ask()
		for _, g := range o.failed {
			h.gap(g.Place, g.Reason)
			h.state.Unsearched = true
		}
		o.failed = nil
	}
	h.mu.Lock()
	h.state.Report.Searched.Bytes += h.bytes.Swap(0)
	h.mu.Unlock()
}

func (h *hunt) found(at Place, offset int64, key int, encoding, form string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if key >= len(h.config.Keys) {
		if h.planted[at] == nil {
			h.planted[at] = map[int][]int64{}
		}
		control := key - len(h.config.Keys)
		h.planted[at][control] = append(h.planted[at][control], offset)
		return
	}
	mark := seen{at, offset, key}
	if h.seen[mark] {
		return
	}
	h.seen[mark] = true
	h.note(Finding{Key: h.keys[key].Name, Fingerprint: h.keys[key].Public.Fingerprint(), Place: at, Offset: offset, Encoding: encoding, Form: form})
}

// note adds a finding while there is room.
func (h *hunt) note(f Finding) {
	r := &h.state.Report
	if len(r.Findings) == maxFindings {
		r.More++
		return
	}
	r.Findings = append(r.Findings, f)
}

// gap notes what was not searched.
func (h *hunt) gap(at Place, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gaps++
	r := &h.state.Report
	if r.GapCount == nil {
		r.GapCount = map[string]int{}
	}
	if r.GapCount[reason]++; r.GapCount[reason] <= maxGaps {
		r.Gaps = append(r.Gaps, Gap{at, reason})
	}
}

// tick reports progress a few times a second.
func (h *hunt) tick(at Place) {
	if h.config.Progress == nil || time.Since(h.lastTick) < 200*time.Millisecond {
		return
	}
	h.lastTick = time.Now()
	h.mu.Lock()
	p := Progress{Bytes: h.state.Report.Searched.Bytes + h.bytes.Load(), Place: at, Findings: len(h.state.Report.Findings)}
	h.mu.Unlock()
	h.config.Progress(p)
}
