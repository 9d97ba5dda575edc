package keyd

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"unicode/utf16"
	"unicode/utf8"

	"claviger.dev/internal/frames"
	"claviger.dev/internal/hazmat"
	"claviger.dev/internal/recipe"
)

// find tells whether a buffer contains the slot's own material, whole.
func (p *Process) find(req *frames.FindRequest) (*frames.FindResponse, error) {
	v, err := p.slots.get(req.Use)
	if err != nil {
		return nil, err
	}
	resp := &frames.FindResponse{Fingerprint: v.fingerprint}
	err = v.secret.Use(hazmat.Token{}, func(key []byte) error {
		var n needles
		defer n.clear()
		if err := n.add(0, v.binding, key); err != nil {
			return err
		}
		resp.Found = len(n.search(req.Haystack)) > 0
		return nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// search tells which of the items' material a buffer contains, whole, in one
// pass for all of them. An item that cannot be opened fails it: a search that
// left one out would look like one that did not find it.
func (p *Process) search(req *frames.SearchRequest) (*frames.SearchResponse, error) {
	r, err := p.rooted()
	if err != nil {
		return nil, err
	}
	resp, n := &frames.SearchResponse{}, &needles{}
	defer n.clear()
	for i, item := range req.Items {
		err := r.unwrap(item.Binding, item.Blob, func(m material) error {
			if m.fingerprint != item.Fingerprint {
				return errBlob
			}
			return n.add(i, item.Binding, m.secret)
		})
		if err != nil {
			return nil, err
		}
	}
	hazmat.Do(func() { resp.Found = n.search(req.Haystack) })
	return resp, nil
}

// maxHits bounds the answer to a search. It takes the keys themselves to make
// a buffer with more. A request has no more items than that, and the first
// place of each is always told.
const maxHits = 1000

// hits gathers where items were found.
type hits struct {
	list   []frames.Hit
	again  []bool // for each of list: the item was found before
	found  map[int]bool
	others int // of list that are again
}

// done says that nothing more about an item would be told.
func (h *hits) done(item int) bool { return h.others == maxHits && h.found[item] }

func (h *hits) add(item int, at uint32, encoding string) {
	again := h.found[item]
	if again {
		h.others++
	} else if h.found == nil {
		h.found = map[int]bool{}
	}
	h.found[item] = true
	h.list, h.again = append(h.list, frames.Hit{Item: uint32(item), Offset: at, Encoding: encoding}), append(h.again, again)
}

// told returns at most maxHits: what is left out is the last of those again.
func (h *hits) told() (list []frames.Hit) {
	room := max(0, maxHits-len(h.found))
	for i, hit := range h.list {
		if h.again[i] {
			if room == 0 {
				continue
			}
			room--
		}
		list = append(list, hit)
	}
	return list
}

// needle is one text of an item's material.
type needle struct {
	text []byte
	item int
}

// needles are the usual texts of some material. They are made and used inside
// Do, and cleared after.
type needles struct {
	raw, wide, hex, base64 []needle

	// Allocations inside Do are dear, so texts are cut from slabs.
	slabs [][]byte
}

// cut returns n bytes of a slab.
func (n *needles) cut(size int) []byte {
	const slab = 64 << 10
	last := len(n.slabs) - 1
	if last < 0 || cap(n.slabs[last])-len(n.slabs[last]) < size {
		n.slabs, last = append(n.slabs, make([]byte, 0, slab)), last+1
	}
	from := len(n.slabs[last])
	n.slabs[last] = n.slabs[last][:from+size]
	return n.slabs[last][from : from+size : from+size]
}

func (n *needles) clear() {
	for _, slab := range n.slabs {
		clear(slab)
	}
}

// add appends the texts of a secret: the bytes, and their UTF-16 where they are
// text; hexadecimal in both cases; and
// base64 at each of the three places it can have in a larger text, without the
// outermost characters that depend on neighbours. Of an RSA key either prime
// is the secret, and of a machine key each of its parts.
func (n *needles) add(item int, b frames.Binding, secret []byte) error {
	secrets := recipe.Set(b.Recipe).Parts(secret)
	if _, ok := b.Algorithm.RSA(); ok {
		k, err := decodeRSA(secret)
		if err != nil {
			return err
		}
		secrets = [][]byte{k.Primes[0].Bytes(), k.Primes[1].Bytes()}
	}
	for _, s := range secrets {
		raw, lower, upper := n.cut(len(s)), n.cut(2*len(s)), n.cut(2*len(s))
		copy(raw, s)
		n.addWide(item, s)
		hex.Encode(lower, s)
		for i, c := range lower {
			if upper[i] = c; c >= 'a' {
				upper[i] = c - 'a' + 'A'
			}
		}
		n.raw = append(n.raw, needle{raw, item})
		n.hex = append(n.hex, needle{lower, item}, needle{upper, item})
		padded := n.cut(2 + len(s))
		copy(padded[2:], s)
		for shift := range 3 {
			text := n.cut(base64.RawStdEncoding.EncodedLen(shift + len(s)))
			base64.RawStdEncoding.Encode(text, padded[2-shift:])
			if (shift+len(s))%3 != 0 {
				text = text[:len(text)-1]
			}
			if shift > 0 {
				text = text[shift+1:]
			}
			n.base64 = append(n.base64, needle{text, item})
		}
	}
	return nil
}

// addWide appends the UTF-16 of a secret that is text, in both byte orders. A
// zero at either end is left out: without it, ASCII is one text in both.
func (n *needles) addWide(item int, secret []byte) {
	if !utf8.Valid(secret) {
		return
	}
	units := 0
	for at := 0; at < len(secret); {
		r, size := utf8.DecodeRune(secret[at:])
		at, units = at+size, units+utf16.RuneLen(r)
	}
	little, big := n.cut(2 * units)[:0], n.cut(2 * units)[:0]
	for at := 0; at < len(secret); {
		r, size := utf8.DecodeRune(secret[at:])
		first, second := r, rune(-1)
		if at += size; r > 0xffff {
			first, second = utf16.EncodeRune(r)
		}
		for _, unit := range [2]rune{first, second} {
			if unit >= 0 {
				little = binary.LittleEndian.AppendUint16(little, uint16(unit))
				big = binary.BigEndian.AppendUint16(big, uint16(unit))
			}
		}
	}
	little, big = bytes.TrimSuffix(little, []byte{0}), bytes.TrimPrefix(big, []byte{0})
	n.wide = append(n.wide, needle{little, item})
	if subtle.ConstantTimeCompare(little, big) == 0 {
		n.wide = append(n.wide, needle{big, item})
	}
}

// search returns where the haystack contains a needle. Text is often wrapped in
// lines, or in UTF-16, so what is encoded is looked for without white space and
// zeros; and base64 in both alphabets as in the standard one.
func (n *needles) search(haystack []byte) []frames.Hit {
	var h hits
	for _, verbatim := range []struct {
		name    string
		needles []needle
	}{{"raw", n.raw}, {"utf-16", n.wide}} {
		eachMatch(haystack, verbatim.needles, h.done, func(item, at int) { h.add(item, uint32(at), verbatim.name) })
	}
	text, origin := make([]byte, 0, len(haystack)), make([]uint32, 0, len(haystack))
	for i, b := range haystack {
		switch b {
		case '\n', '\r', ' ', '\t', 0:
			continue
		case '-':
			b = '+'
		case '_':
			b = '/'
		}
		text, origin = append(text, b), append(origin, uint32(i))
	}
	for _, encoded := range []struct {
		name    string
		needles []needle
	}{{"hex", n.hex}, {"base64", n.base64}} {
		eachMatch(text, encoded.needles, h.done, func(item, at int) { h.add(item, origin[at], encoded.name) })
	}
	return h.told()
}

// eachMatch looks for all needles at once, by a rolling hash of as much as the
// shortest of them has, and compares whole and in constant time where the hash
// agrees. The multiplier is random. A search that stopped at the first byte
// that differs would tell its caller by its duration how much of a needle was
// guessed; this one tells of a guess of the shortest needle's length, of 16
// bytes of material or more. Needles of items that are done are passed over.
func eachMatch(haystack []byte, needles []needle, done func(item int) bool, yield func(item, at int)) {
	if len(needles) == 0 {
		return
	}
	width := len(slices.MinFunc(needles, func(a, b needle) int { return len(a.text) - len(b.text) }).text)
	if width == 0 || len(haystack) < width {
		return
	}
	var seed [8]byte
	_, _ = rand.Read(seed[:])
	m := binary.LittleEndian.Uint64(seed[:]) | 1
	hash := func(b []byte) (h uint64) {
		for _, c := range b[:width] {
			h = h*m + uint64(c)
		}
		return h
	}
	leading := uint64(1) // m^width
	for range width {
		leading *= m
	}
	// Most places are dismissed by a bit of a table that stays in the cache.
	const bits = 18
	var marked [1 << bits / 64]uint64
	known, next := make(map[uint64]int, len(needles)), make([]int, len(needles)) // from 1; 0 is none
	for i, n := range needles {
		h := hash(n.text)
		known[h], next[i] = i+1, known[h]
		marked[h>>(64-bits+6)] |= 1 << (h >> (64 - bits) & 63)
	}
	have := hash(haystack)
	for i := width; ; i++ {
		if marked[have>>(64-bits+6)]>>(have>>(64-bits)&63)&1 != 0 {
			for k := known[have]; k > 0; k = next[k-1] {
				n, at := needles[k-1], i-width
				if at+len(n.text) <= len(haystack) && !done(n.item) && subtle.ConstantTimeCompare(haystack[at:at+len(n.text)], n.text) == 1 {
					yield(n.item, at)
				}
			}
		}
		if i == len(haystack) {
			return
		}
		have = have*m + uint64(haystack[i]) - leading*uint64(haystack[i-width])
	}
}
