package segment

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	blockBytes = 256 << 10 // a mark is set about this often
	maxNames   = 4096      // more different keys or principals than this are not listed
	maxIndex   = 4 << 20   // bytes of an index file
)

// index says what a segment holds, so that queries can pass over it. It is
// derived from the lines alone: the same lines give the same index.
type index struct {
	Marks      []mark   `json:"marks"` // starts of blocks
	Size       int64    `json:"size"`  // bytes of the segment
	Last       uint64   `json:"last"`  // seq of the last record
	Names      []string `json:"names"` // keys, key ids and principals that occur, sorted; empty with Many
	Many       bool     `json:"many"`  // too many to list
	collection map[string]struct{}
}

// mark is the start of a block of lines.
type mark struct {
	Seq  uint64    `json:"seq"` // of its first record
	At   int64     `json:"at"`  // byte offset
	From time.Time `json:"from"`
	To   time.Time `json:"to"` // least and greatest time in the block
}

// add takes the next record, whose line has size bytes with its newline.
func (x *index) add(seq uint64, at time.Time, size int, names ...string) {
	if n := len(x.Marks); n == 0 || x.Size-x.Marks[n-1].At >= blockBytes {
		x.Marks = append(x.Marks, mark{Seq: seq, At: x.Size, From: at, To: at})
	}
	m := &x.Marks[len(x.Marks)-1]
	if at.Before(m.From) {
		m.From = at
	}
	if at.After(m.To) {
		m.To = at
	}
	x.Size += int64(size)
	x.Last = seq
	if x.Many {
		return
	}
	if x.collection == nil {
		x.collection = make(map[string]struct{})
	}
	for _, name := range names {
		if name != "" {
			x.collection[name] = struct{}{}
		}
	}
	if len(x.collection) > maxNames {
		x.Many, x.collection = true, nil
	}
}

// holds reports whether a record with the name may be in the segment.
func (x *index) holds(name string) bool {
	if name == "" || x.Many {
		return true
	}
	if x.collection != nil {
		_, ok := x.collection[name]
		return ok
	}
	_, ok := slices.BinarySearch(x.Names, name)
	return ok
}

// encode returns the index file: a line of JSON and a line with its SHA-256.
func (x *index) encode() []byte {
	out := *x
	if x.collection != nil {
		out.Names = slices.Sorted(maps.Keys(x.collection))
	}
	body, _ := json.Marshal(out) // plain values always marshal
	sum := sha256.Sum256(body)
	return append(hex.AppendEncode(append(body, '\n'), sum[:]), '\n')
}

func decodeIndex(raw []byte) (*index, error) {
	body, rest, _ := bytes.Cut(raw, []byte("\n"))
	sum := sha256.Sum256(body)
	if string(rest) != hex.EncodeToString(sum[:])+"\n" {
		return nil, errors.New("the index is damaged")
	}
	var x index
	if err := json.Unmarshal(body, &x); err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	return &x, nil
}
