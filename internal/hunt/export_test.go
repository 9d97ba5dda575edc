package hunt

import (
	"bytes"
	"io"
	"math"
	"os"
)

// Filters are those of a hunt for keys of some names.
type Filters struct {
	model, words   *model
	mixed, mixed64 *mixture
}

// NewFilters makes the filters.
func NewFilters(names ...string) *Filters {
	m, words, known := ownModel(false), ownModel(true), namesModel(nil, names)
	return &Filters{m, words, newMixture(m, words, known, nil), newMixture(m, words, known, &base64Alphabet)}
}

// Skip reports whether the filters skip a window of a kind of material.
func (f *Filters) Skip(window []byte, bias int) bool {
	most := limit(len(window), bias)
	return f.model.cost(window) <= most || text(window) || f.words.cost(window) <= most || f.mixed.within(window, most)
}

// SkipBase64 reports the same of the base64 characters of a window.
func (f *Filters) SkipBase64(characters []byte, width, bias int) bool {
	most := limit(width, bias)
	return f.words.cost(characters) <= most || hexOnly(characters) || f.mixed64.within(characters, most)
}

// SkipShifted reports the same of a window of the bytes that characters hold,
// for where they are decoded from another character on.
func (f *Filters) SkipShifted(characters []byte, i, width, bias int) bool {
	s := &scanner{words: f.words, mixed: f.mixed}
	var phases [4][]byte
	s.phases(characters, &phases)
	return s.shifted(&phases, 0, i, width, limit(width, bias))
}

// SourceSums returns what the rows of a mixture's sources sum up to.
func (f *Filters) SourceSums() (out []float64) {
	for _, m := range []*mixture{f.mixed, f.mixed64} {
		for _, source := range m.sources {
			for _, row := range source {
				sum := 0.0
				for _, p := range row {
					sum += p
				}
				out = append(out, sum)
			}
		}
	}
	return out
}

// Probability is what a mixture gives to a window: 2 to the power of -limit for
// the least limit, in bits, to which it is within.
func (f *Filters) Probability(window []byte) float64 {
	low, high := uint32(0), uint32(1<<20)
	for low < high {
		if mid := (low + high) / 2; f.mixed.within(window, mid) {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return math.Exp2(-float64(low) / costUnit)
}

// Model is the model of the filters.
type Model model

// OwnModel trains on the running program, TrainOn on a file.
func OwnModel(words bool) *Model { return (*Model)(ownModel(words)) }

// TrainOn trains on a file.
func TrainOn(name string) (*Model, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return (*Model)(train(f, info.Size(), false)), nil
}

// Costs returns a row of the model.
func (m *Model) Costs(before byte) [256]uint8 { return m[before] }

// Blind makes a hunt that skips every window.
func Blind(c Config) Config {
	c.model = new(model)
	return c
}

// ReadTable unpacks a LevelDB table, up to 64 MiB of it.
func ReadTable(b []byte) ([]byte, error) {
	t, err := newTable(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(t, maxBlock))
}
