package hunt

import (
	"bytes"
	"encoding/hex"
	"math"
	"slices"
)

// job is a piece of a stream to scan. Windows that start in buf[from:to] are
// this job's; the rest of buf is there so that they, and encodings around them,
// can be read whole.
type job struct {
	at       Place
	buf      []byte
	base     int64 // offset of buf[0] in the stream
	from, to int
	stride   int
}

// scanner searches one buffer at a time. It is one goroutine's own.
type scanner struct {
	matchers []matcher
	model    *model          // of bytes
	words    *model          // of text, and of the characters of base64
	mixed    *mixture        // of windows
	mixed64  *mixture        // of the characters of base64
	public   map[string]bool // raw public halves of the keys
	oracle   *oracle         // nil where no symmetric key is looked for
	every    bool
	report   func(at Place, offset int64, key int, encoding, form string)

	before map[int][]header // by the width of what follows

	job      job
	sums     [maxNesting + 1][]uint32
	decoded  [maxNesting + 1][4][]byte // of base64 by phase; of hex the first
	narrow   [maxNesting + 1][]byte    // text that was UTF-16
	textSums [maxNesting + 1][]uint32
}

// maxNesting is how many encodings may stand within each other, as a PEM file
// within the base64 of a Kubernetes secret.
const maxNesting = 3

// layer is one level of decoding: bytes, and where each stood in the job's buffer.
type layer struct {
	buf      []byte
	origin   func(i int) int // index in the job's buffer of where byte i comes from
	encoding string          // "" for the stream itself
	depth    int
	first    int // alignment of windows: (i+first) % stride == 0
	stride   int
	cut      bool // buf begins where the job's buffer does
	whole    bool // buf is one decoded value from its beginning to its end
	der      bool // and is one DER value
	// cheap reports whether the characters of a window, in the encoding, show
	// that it is not a key. Nil where there is no encoding.
	cheap func(i, width int, limit uint32) bool
}

func (s *scanner) scan(j job) {
	if blank(j.buf) {
		return
	}
	s.job = j
	stride := j.stride
	if j.base == 0 && !s.every && isDER(j.buf) {
		stride = 8
	}
	s.layer(layer{buf: j.buf, origin: func(i int) int { return i }, first: int(j.base % 8), stride: stride, cut: true})
}

// blank reports whether the buffer is one byte repeated.
func blank(buf []byte) bool { return len(buf) == 0 || bytes.Equal(buf[1:], buf[:len(buf)-1]) }

func (s *scanner) layer(l layer) {
	s.sums[l.depth] = s.model.sums(l.buf, s.sums[l.depth])
	for _, m := range s.matchers {
		s.raw(l, m)
		s.structured(l, m)
	}
	s.regions(l, false)
	if l.depth < maxNesting {
		s.base64(l)
		s.hex(l)
		s.utf16(l)
	}
}

// raw tests windows at the layer's stride, and at every byte where a decoded
// run begins and ends.
func (s *scanner) raw(l layer, m matcher) {
	if m.sparse() {
		if l.whole && len(l.buf) >= m.width() && len(l.buf) <= m.width()+2 {
			s.try(l, m, 0, false, "")
		}
		return
	}
	w, most, sums := m.width(), limit(m.width(), m.bias()), s.sums[l.depth]
	i, end := 0, len(l.buf)-w
	if l.depth == 0 {
		i, end = l.aligned(s.job.from), min(end, s.job.to-1)
	}
	for i <= end {
		if sums[i+w]-sums[i] > most {
			s.try(l, m, i, l.stride == 1 || (i+l.first)%4 == 0, "")
		}
		i = l.next(i+1, end)
	}
}

// next returns the first index from i on at which a window is tested, where the
// last one starts at end.
func (l layer) next(i, end int) int {
	switch near := min(i, end-i); {
	case l.depth == 0 || l.der || near > edge:
		return l.aligned(i)
	case near > fineEdge && l.stride > 4:
		return min((i+3)&^3, max(i, end-fineEdge))
	}
	return i
}

// aligned returns the first index from i on at which the stride has a window.
func (l layer) aligned(i int) int { return i + (l.stride-(i+l.first)%l.stride)%l.stride }

// try tests one window, and reports it if it is a key.
func (s *scanner) try(l layer, m matcher, i int, both bool, structure string) {
	s.tryAs(l, m, i, 0, both, structure)
}

// tryAs tests one window whose first bytes, as many as were cut off, are zero.
func (s *scanner) tryAs(l layer, m matcher, i, cut int, both bool, structure string) {
	window := l.buf[i : i+m.width()]
	most := limit(m.width(), m.bias())
	if sums := s.sums[l.depth]; sums[i+m.width()]-sums[i] <= most || text(window) || s.words.cost(window) <= most || l.cheap != nil && l.cheap(i, m.width(), most) || s.mixed.within(window, most) {
		return
	}
	if cut > 0 {
		window = bytes.Clone(window)
		clear(window[:cut])
	}
	from := l.origin(i + cut)
	if from < s.job.from || from >= s.job.to {
		return
	}
	key, form := m.match(window, both)
	if key < 0 {
		return
	}
	encoding := l.encoding + structure
	if encoding == "" {
		encoding = "raw"
	}
	s.report(s.job.at, s.job.base+int64(from), key, encoding, form)
}

// structured tests what DER or SSH says is a string or an integer of the right
// size, at every byte.
func (s *scanner) structured(l layer, m matcher) {
	for _, h := range s.headers(m.width()) {
		prefix, structure := h.prefix, h.name
		if l.encoding != "" {
			structure = " " + h.name
		}
		from := 0
		if l.depth == 0 {
			from = max(0, s.job.from-len(prefix))
		}
		for {
			n := bytes.Index(l.buf[from:], prefix)
			if n < 0 {
				break
			}
			i := from + n + len(prefix) - h.cut
			if i+m.width() > len(l.buf) || l.depth == 0 && i >= s.job.to {
				break
			}
			s.tryAs(l, m, i, h.cut, false, structure)
			from += n + 1
		}
	}
}

// headers are those of a width, made once.
func (s *scanner) headers(width int) []header {
	if s.before == nil {
		s.before = map[int][]header{}
	}
	if s.before[width] == nil {
		s.before[width] = headers(width)
	}
	return s.before[width]
}

// header is what an encoding puts before a value.
type header struct {
	name   string
	prefix []byte
	cut    int // leading zero bytes of the value that are not written
}

// headers are what stands before a value of width bytes: in DER as OCTET
// STRING, INTEGER, and INTEGER with a leading zero or one cut off (X.690, 8.1
// and 8.3); in SSH as string, mpint with a leading zero or one cut off (RFC
// 4251, section 5), and before an
// Ed25519 seed that its public half follows; and a length in one byte, as other
// encodings have it (CBOR, MessagePack, Protocol Buffers, LevelDB).
func headers(width int) []header {
	der := func(tag byte, n int) []byte {
		switch {
		case n < 128:
			return []byte{tag, byte(n)}
		case n < 256:
			return []byte{tag, 0x81, byte(n)}
		}
		return []byte{tag, 0x82, byte(n >> 8), byte(n)}
	}
	var length []header
	if width < 128 {
		length = []header{{"after its length", []byte{byte(width)}, 0}}
	}
	ssh := func(n int) []byte { return []byte{0, 0, byte(n >> 8), byte(n)} }
	return append([]header{
		{"DER", der(4, width), 0}, {"DER", der(2, width), 0}, {"DER", append(der(2, width+1), 0), 0}, {"DER", der(2, width-1), 1},
		{"SSH", ssh(width), 0}, {"SSH", append(ssh(width+1), 0), 0}, {"SSH", ssh(2 * width), 0}, {"SSH", ssh(width - 1), 1},
	}, length...)
}

// isDER reports whether buf is one DER SEQUENCE (X.690, 8.9) and at most two
// bytes more, as base64 with its padding cut off leaves. Its values are found by
// their headers.
func isDER(buf []byte) bool {
	var size int
	switch {
	case len(buf) > 4 && buf[0] == 0x30 && buf[1] == 0x82:
		size = 4 + int(buf[2])<<8 + int(buf[3])
	case len(buf) > 3 && buf[0] == 0x30 && buf[1] == 0x81:
		size = 3 + int(buf[2])
	}
	return size > 0 && size <= len(buf) && len(buf) <= size+2
}

// The ends of a decoded run, in bytes: windows that start within fineEdge of one
// are tested at every byte, within edge of one every 4 bytes, and between at the
// stride.
const (
	fineEdge = 16
	edge     = 512
)

// run is a stretch of characters of one alphabet, line breaks taken out.
type run struct {
	text     []byte
	segments []segment
	cut      bool // it is at the buffer's beginning, and may have begun before
}

// segment is where a part of a run stands: text[at] is buf[pos].
type segment struct{ at, pos int }

// origin returns where character i of the run stands in its buffer.
func (r *run) origin(i int) int {
	n, found := slices.BinarySearchFunc(r.segments, i, func(s segment, i int) int { return s.at - i })
	if !found {
		n--
	}
	return r.segments[n].pos + i - r.segments[n].at
}

// leastLine is the length from which on a line of base64 or hex may continue on
// the next.
const leastLine = 32

// eachRun calls yield for every run of at least least characters of the
// alphabet. Lines of leastLine characters or more continue over a line break,
// also one written as backslash n, while they are as long as the second of
// them; so lists of words are not taken for one run. Pairs continue over a colon.
func eachRun(buf []byte, alphabet *[256]bool, least int, yield func(run)) {
	var text []byte
	var segments []segment
	for i := 0; i < len(buf); {
		if !alphabet[buf[i]] {
			i++
			continue
		}
		text, segments = text[:0], segments[:0]
		start := i
		for {
			from := i
			for i < len(buf) && alphabet[buf[i]] {
				i++
			}
			segments = append(segments, segment{len(text), from})
			text = append(text, buf[from:i]...)
			next := i
			switch length := i - from; {
			case length == 2 && i < len(buf) && buf[i] == ':':
				next = skipBreak(buf, i+1)
			case length >= leastLine && !bytes.HasSuffix(buf[from:i], []byte("-----")) && (len(segments) < 3 || length == segments[2].at-segments[1].at):
				next = skipBreak(buf, i)
			}
			if next == i || next >= len(buf) || !alphabet[buf[next]] {
				break
			}
			i = next
		}
		if len(text) >= least {
			yield(run{text, segments, start == 0})
		}
	}
}

// skipBreak returns the index after a line break and indentation at i, or i.
func skipBreak(buf []byte, i int) int {
	next := i
	for _, b := range []string{"\r\n", "\n", `\r\n`, `\n`} {
		if bytes.HasPrefix(buf[i:], []byte(b)) {
			next = i + len(b)
			break
		}
	}
	if next > i {
		for next < len(buf) && (buf[next] == ' ' || buf[next] == '\t') {
			next++
		}
	}
	return next
}

var (
	base64Alphabet, base64Value = alphabet("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", map[byte]byte{'-': 62, '_': 63})
	hexAlphabet, _              = alphabet("0123456789abcdef", map[byte]byte{'A': 10, 'B': 11, 'C': 12, 'D': 13, 'E': 14, 'F': 15})
)

func alphabet(letters string, more map[byte]byte) (in [256]bool, value [256]byte) {
	for i := range len(letters) {
		in[letters[i]], value[letters[i]] = true, byte(i)
	}
	for b, v := range more {
		in[b], value[b] = true, v
	}
	return in, value
}

// least returns the smallest window, in bytes.
func (s *scanner) least() int {
	n := 1 << 16
	if s.oracle != nil {
		n = symmetricWidth
	}
	for _, m := range s.matchers {
		n = min(n, m.width())
	}
	return n
}

// base64 decodes the runs of a layer, standard and URL alphabet alike, from the
// beginnings of their first lines, and from where a run decodes to what is most
// like text. From the other alignments only what stands at the beginning, at the
// end or in DER is tested, unless every byte is asked for.
func (s *scanner) base64(l layer) {
	eachRun(l.buf, &base64Alphabet, (s.least()*8+5)/6, func(r run) {
		if s.worthless(l, &r) {
			return
		}
		phases := &s.decoded[l.depth]
		likely := s.phases(r.text, phases)
		for _, seg := range r.segments[:min(3, len(r.segments))] {
			likely[seg.at%4] = true
		}
		s.textSums[l.depth] = s.words.sums(r.text, s.textSums[l.depth])
		for phase := range 4 {
			inner := s.inner(l, r, phases[phase], "base64", func(i int) int { return phase + i*8/6 })
			inner.cheap = func(i, width int, limit uint32) bool {
				from, to := phase+i*8/6, min(len(r.text), phase+((i+width)*8+5)/6)
				return s.textSums[l.depth][to]-s.textSums[l.depth][from] <= limit || hexOnly(r.text[from:to]) || s.mixed64.within(r.text[from:to], limit) || s.shifted(phases, phase, i, width, limit)
			}
			s.run(inner, likely[phase] || r.cut || s.every)
		}
	})
}

// phases decodes a run from each of its first four characters on, and says from
// which of them it costs least.
func (s *scanner) phases(text []byte, out *[4][]byte) (likely [4]bool) {
	best, least := 0, uint32(math.MaxUint32)
	for phase := range 4 {
		out[phase] = decode64(text[phase:], out[phase])
		if cost := s.words.cost(out[phase][:(len(text)-3)*6/8]); cost < least {
			best, least = phase, cost
		}
	}
	likely[best] = true
	return likely
}

// shiftMargin is by how many bits more a window must be cheap in another phase:
// there are three of those.
const shiftMargin = 3

// shifted reports whether a window of a phase is cheap where its characters are
// decoded in another: it is text that was taken up at the wrong character. All
// but the window's first and last few bits are whole bytes there.
func (s *scanner) shifted(phases *[4][]byte, phase, i, width int, limit uint32) bool {
	for other, decoded := range phases {
		from := (6*(phase-other) + 8*i + 7) >> 3 // the first of those bytes
		if to := from + width - 1; other != phase && from >= 0 && to <= len(decoded) && s.mixed.within(decoded[from:to], limit-(8+shiftMargin)*costUnit) {
			return true
		}
	}
	return false
}

// worthless reports whether no window of a run can start in this job's part. It
// clears cut where nothing can have stood before the buffer.
func (s *scanner) worthless(l layer, r *run) bool {
	r.cut = r.cut && l.cut && s.job.base > 0
	return l.origin(r.origin(0)) >= s.job.to || l.origin(r.origin(len(r.text)-1)) < s.job.from
}

func decode64(text, out []byte) []byte {
	out = out[:0]
	var bits, n uint32
	for _, c := range text {
		bits, n = bits<<6|uint32(base64Value[c]), n+6
		if n >= 8 {
			n -= 8
			out = append(out, byte(bits>>n))
		}
	}
	return out
}

// hex decodes the runs of a layer, of either case, also with colons.
func (s *scanner) hex(l layer) {
	eachRun(l.buf, &hexAlphabet, 2*s.least(), func(r run) {
		if s.worthless(l, &r) {
			return
		}
		for phase := range 2 {
			even := r.text[phase:]
			even = even[:len(even)&^1]
			decoded := slices.Grow(s.decoded[l.depth][0][:0], len(even)/2)[:len(even)/2]
			s.decoded[l.depth][0] = decoded
			if _, err := hex.Decode(decoded, even); err != nil {
				continue // cannot be: a run has hex digits alone
			}
			inner := s.inner(l, r, decoded, "hex", func(i int) int { return phase + 2*i })
			s.run(inner, phase == 0 || r.cut || s.every)
		}
	})
}

func (s *scanner) inner(l layer, r run, decoded []byte, name string, char func(i int) int) layer {
	encoding := name
	if l.encoding != "" {
		encoding = l.encoding + " " + name
	}
	stride := 8
	if s.every {
		stride = 1
	}
	return layer{
		buf: decoded, encoding: encoding, depth: l.depth + 1, stride: stride, whole: !r.cut, der: isDER(decoded),
		origin: func(i int) int { return l.origin(r.origin(char(i))) },
	}
}

// run searches a decoded run: fully, or only its beginning, its end and DER.
func (s *scanner) run(l layer, fully bool) {
	if s.public[string(l.buf)] {
		return // a public half, alone
	}
	if fully {
		s.layer(l)
		return
	}
	s.sums[l.depth] = s.model.sums(l.buf, s.sums[l.depth])
	for _, m := range s.matchers {
		last := len(l.buf) - m.width()
		if last >= 0 && !m.sparse() {
			s.try(l, m, 0, false, "")
			s.try(l, m, last, false, "")
		}
		s.structured(l, m)
	}
	s.regions(l, true)
}
