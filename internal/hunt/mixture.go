package hunt

import "math"

// mixture is a second code, for windows that are no one thing throughout: an
// identifier beside a name, a digest beside the header of a record. Each byte
// comes from one of some sources, and the source changes now and then. What a
// window costs is the probability that all ways of changing give it together,
// so this is a code in the sense of Kraft as each source is: see model.
type mixture struct {
	sources [sources][256]*[256]float64 // by the byte before: the probability of the next
}

// The sources: what programs hold, what they say, the names of the keys, digits,
// hexadecimal, the characters of identifiers (base32 as Crockford writes it,
// lower-case), the characters of names, and anything.
const sources = 8

// A source goes on with goOn; each other one follows with the same share of the rest.
const goOn = 31.0 / 32

// newMixture makes a mixture of what was trained and of fixed alphabets. anything
// is the alphabet of the source that gives whatever there is: all bytes where it
// is nil.
func newMixture(bytes, words, names *model, anything *[256]bool) *mixture {
	m := new(mixture)
	for i, trained := range []*model{bytes, words, names} {
		for before := range trained {
			row := new([256]float64)
			for b, cost := range trained[before] {
				row[b] = math.Exp2(-float64(cost) / costUnit)
			}
			m.sources[i][before] = row
		}
	}
	var all [256]bool
	for b := range all {
		all[b] = true
	}
	if anything == nil {
		anything = &all
	}
	for i, in := range []*[256]bool{letters("0123456789"), letters("0123456789abcdef"), letters("0123456789abcdefghjkmnpqrstvwxyz"),
		letters("0123456789abcdefghijklmnopqrstuvwxyz-_./:"), anything} {
		row, size := new([256]float64), 0.0
		for _, is := range in {
			if is {
				size++
			}
		}
		for b, is := range in {
			if is {
				row[b] = 1 / size
			}
		}
		for before := range 256 {
			m.sources[3+i][before] = row
		}
	}
	return m
}

func letters(s string) *[256]bool {
	in, _ := alphabet(s, nil)
	return &in
}

// within reports whether a window costs at most limit, its first byte as after
// a zero.
func (m *mixture) within(window []byte, limit uint32) bool {
	// A number below 2^-1000 is kept as itself times 2^scale.
	const least, step = 0x1p-600, 500
	bits, scale := -float64(limit)/costUnit, 0.0
	var p [sources]float64
	for i := range p {
		p[i] = 1.0 / sources
	}
	total := 1.0
	var before byte
	for _, b := range window {
		other, sum := total*((1-goOn)/(sources-1)), 0.0
		for i := range p {
			p[i] = (p[i]*(goOn-(1-goOn)/(sources-1)) + other) * m.sources[i][before][b]
			sum += p[i]
		}
		if total, before = sum, b; total < least {
			for i := range p {
				p[i] *= 0x1p500
			}
			total, scale = total*0x1p500, scale+step
		}
	}
	return math.Log2(total)-scale > bits
}
