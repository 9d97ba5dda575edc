package hunt

import (
	"io"
	"math"
	"os"
	"strings"
)

// model says what a byte costs after the byte before it, in sixteenths of a
// bit, rounded up. Each row is a code in the sense of Kraft: the sum of
// 2^(-cost/16) over a row is at most 1. Hence at most 2^L of the strings of a
// given length cost L bits or less, whatever the model was trained on, and a
// uniformly random window of w bytes costs at most 8w-k bits with probability
// at most 2^-k. That is what makes it safe to skip cheap windows.
type model [256][256]uint8

// costUnit is the number of cost units in a bit.
const costUnit = 16

// margin is k above: the bits that a window must save before it is skipped.
const margin = 43

// maxTraining is how much of the training input is used, in bytes.
const maxTraining = 8 << 20

// train makes a model of what memory and programs usually hold from up to
// maxTraining bytes spread over r. It is trained on the hunter's own program,
// before anything is searched, so that it owes nothing to what is searched. An
// empty input gives 8 bits for every byte, and nothing is skipped. Where words is
// true only pairs within stretches of text count: a model of identifiers and
// prose, for telling them from base64.
func train(r io.ReaderAt, size int64, words bool) *model {
	const piece = 64 << 10
	var counts [256][256]float64
	var totals [256]float64
	buf := make([]byte, piece)
	step := max(piece, size/(maxTraining/piece))
	for at := int64(0); at < size; at += step {
		n, _ := r.ReadAt(buf, at)
		for i, run := 1, 0; i < n; i++ {
			if run++; !text(buf[i-1 : i+1]) {
				run = 0
			}
			if words && run < leastText {
				continue
			}
			counts[buf[i-1]][buf[i]]++
			totals[buf[i-1]]++
		}
	}
	m := new(model)
	const smooth = 0.25 // of an occurrence, for pairs that were not seen
	for a := range m {
		for b := range m[a] {
			p := (counts[a][b] + smooth) / (totals[a] + 256*smooth)
			// 2^(-255/16) x 256 < 1/200: capping costs the code nothing that the smoothing does not leave.
			m[a][b] = uint8(min(255, math.Ceil(-math.Log2(p*0.995)*costUnit)))
		}
	}
	return m
}

// leastText is the length from which on a stretch of text is learnt as words.
const leastText = 6

// ownModel trains on the running program. Where that cannot be read nothing is
// skipped: slow, and right.
func ownModel(words bool) *model {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return train(nil, 0, words)
	}
	defer f.Close()
	size := int64(0)
	if info, err := f.Stat(); err == nil {
		size = info.Size()
	}
	return train(f, size, words)
}

// namesModel trains on the names of the keys and on others, which stand all over
// what a server wrote. They are given, and say nothing about the keys.
func namesModel(keys []Key, more []string) *model {
	var text strings.Builder
	for _, name := range more {
		text.WriteString(name)
		text.WriteByte(0)
	}
	for _, k := range keys {
		text.WriteString(k.Name)
		text.WriteByte(0)
	}
	return train(strings.NewReader(text.String()), int64(text.Len()), false)
}

// sums fills out with the running cost of buf: out[j]-out[i] is what buf[i:j]
// costs after what stands before it.
func (m *model) sums(buf []byte, out []uint32) []uint32 {
	out = append(out[:0], 0)
	var sum uint32
	var before byte
	for _, b := range buf {
		sum += uint32(m[before][b])
		out = append(out, sum)
		before = b
	}
	return out
}

// cost is what one window costs, its first byte as after a zero.
func (m *model) cost(window []byte) (sum uint32) {
	var before byte
	for _, b := range window {
		sum += uint32(m[before][b])
		before = b
	}
	return sum
}

// hexOnly reports whether characters are hex digits throughout: 22 of the 64 of
// base64, so (22/64)^43 < 2^-66 for the 43 characters of a random window of 32
// bytes.
func hexOnly(characters []byte) bool {
	for _, c := range characters {
		if !hexAlphabet[c] {
			return false
		}
	}
	return true
}

// limit is the cost, in units, up to which a window of width bytes is skipped,
// for material whose distribution is at most 2^bias times as dense anywhere as
// the uniform one.
func limit(width, bias int) uint32 { return uint32(8*width-margin-bias) * costUnit }

// text reports whether a window is printable ASCII throughout: 98 of 256
// values, so (98/256)^32 < 2^-44 for a random window of 32 bytes.
func text(window []byte) bool {
	for _, b := range window {
		if (b < ' ' || b > '~') && b != '\n' && b != '\r' && b != '\t' {
			return false
		}
	}
	return true
}
