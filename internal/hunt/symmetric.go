package hunt

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"

	"claviger.dev"
)

// Hit says that the material of a symmetric key lies in a haystack.
type Hit struct {
	Key         string
	Fingerprint claviger.Fingerprint
	Offset      int    // of its first byte
	Encoding    string // "raw", "hex", "base64"
}

// MaxHaystack is the most that is asked about at once, in bytes.
const MaxHaystack = 1 << 20

// symmetricWidth is the size of the windows that decide what is asked about, in
// bytes: keys are of this size or larger, but for imported codes.
const symmetricWidth = 32

// oracle collects what could be a symmetric key, decoded, to ask about it by the
// megabyte. A scanner adds to it; it asks when it is full and when the hunt is
// drained.
type oracle struct {
	hunt    *hunt
	ctx     context.Context
	control []byte // the throw-away secret that is to reach it
	index   int    // of its control

	pending []byte
	spans   []span
	seed    maphash.Seed
	clean   map[uint64]struct{} // regions that have no key
	failed  []Gap               // what could not be asked about
}

// maxClean is how many regions are remembered to have no key. Two different ones
// are taken for one with a probability of 2^-64 for each.
const maxClean = 1 << 18

// span is a region of what is asked about, and where it came from.
type span struct {
	at       Place
	from     int     // in pending
	offset   int64   // of the first byte, in the stream
	origins  []int64 // of every byte, where it was decoded; else it is as it was
	encoding string
	hash     uint64
}

// regions adds the windows of a layer that could be a key, those that overlap as
// one. Where only the ends are of interest, the windows there alone.
func (s *scanner) regions(l layer, ends bool) {
	if s.oracle == nil || len(l.buf) < symmetricWidth {
		return
	}
	sums, most := s.sums[l.depth], limit(symmetricWidth, 0)
	from, to := 0, len(l.buf)-symmetricWidth
	if l.depth == 0 {
		from, to = s.job.from, min(to, s.job.to-1)
	}
	start, end := -1, -1 // of the region, before its end
	for i := from; i <= to; i++ {
		if ends && i > 0 && i < to {
			i = to
		}
		if sums[i+symmetricWidth]-sums[i] <= most || !s.likely(l, i, most) {
			continue
		}
		if start >= 0 && i > end {
			s.oracle.add(s.job, l, start, end)
			start = -1
		}
		if start < 0 {
			start = i
		}
		end = i + symmetricWidth
	}
	if start >= 0 {
		s.oracle.add(s.job, l, start, end)
	}
}

// likely is the part of the filter of try that the sums do not decide.
func (s *scanner) likely(l layer, i int, most uint32) bool {
	window := l.buf[i : i+symmetricWidth]
	if text(window) || s.words.cost(window) <= most || l.cheap != nil && l.cheap(i, symmetricWidth, most) {
		return false
	}
	if l.depth == 0 {
		return true
	}
	at := l.origin(i)
	return at >= s.job.from && at < s.job.to
}

// add takes a region of a layer.
func (o *oracle) add(j job, l layer, start, end int) {
	region := l.buf[start:end]
	hash := maphash.Bytes(o.seed, region)
	if _, known := o.clean[hash]; known {
		return
	}
	if len(o.pending)+len(region) > MaxHaystack {
		o.ask()
	}
	sp := span{at: j.at, from: len(o.pending), offset: j.base + int64(l.origin(start)), encoding: l.encoding, hash: hash}
	if l.depth > 0 {
		for i := start; i < end; i++ {
			sp.origins = append(sp.origins, j.base+int64(l.origin(i)))
		}
	}
	o.pending, o.spans = append(o.pending, region...), append(o.spans, sp)
}

// ask asks about what is pending.
func (o *oracle) ask() {
	if len(o.pending) == 0 {
		return
	}
	hits, err := o.hunt.config.Symmetric(o.ctx, o.pending)
	if err != nil {
		o.failed = append(o.failed, Gap{o.spans[0].at, fmt.Sprintf("not searched for symmetric keys: %v", err)})
	}
	controls := 0
	for from := 0; ; from++ {
		n := bytes.Index(o.pending[from:], o.control)
		if n < 0 {
			break
		}
		controls, from = controls+1, from+n
		sp, offset := o.place(from)
		o.hunt.found(sp.at, offset, len(o.hunt.config.Keys)+o.index, "", "")
	}
	if err == nil && len(hits)+controls == 0 && len(o.clean)+len(o.spans) <= maxClean {
		for _, sp := range o.spans {
			o.clean[sp.hash] = struct{}{}
		}
	}
	for _, h := range hits {
		if h.Offset < 0 || h.Offset >= len(o.pending) {
			continue // no place of what was asked about
		}
		sp, offset := o.place(h.Offset)
		encoding := sp.encoding
		switch {
		case encoding == "":
			encoding = h.Encoding
		case h.Encoding != "raw":
			encoding += " " + h.Encoding
		}
		o.hunt.foundSymmetric(sp.at, offset, h, encoding)
	}
	clear(o.pending)
	clear(o.spans)
	o.pending, o.spans = o.pending[:0], o.spans[:0]
}

// place returns the region of a byte of what is pending, and where the byte was.
func (o *oracle) place(at int) (span, int64) {
	i := len(o.spans) - 1
	for i > 0 && o.spans[i].from > at {
		i--
	}
	sp, within := o.spans[i], at-o.spans[i].from
	if sp.origins != nil {
		return sp, sp.origins[within]
	}
	return sp, sp.offset + int64(within)
}

// foundSymmetric notes what the key process said.
func (h *hunt) foundSymmetric(at Place, offset int64, hit Hit, encoding string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	mark := seen{at, offset, -1}
	if h.seen[mark] {
		return
	}
	h.seen[mark] = true
	h.note(Finding{Key: hit.Key, Fingerprint: hit.Fingerprint, Place: at, Offset: offset, Encoding: encoding, Form: "symmetric key"})
}
