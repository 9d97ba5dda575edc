package hunt

import (
	"encoding/binary"
	"errors"
	"io"
)

// Browsers keep what pages store in LevelDB: the newest in a log, which is
// searched as it is, the rest in tables, whose blocks are compressed by Snappy.
// There the bytes that announce a key may stand once for several keys.

const (
	tableFooter = 48       // bytes
	maxBlock    = 64 << 20 // unpacked, in bytes
	tableMagic  = "\x57\xfb\x80\x8b\x24\x75\x47\xdb"
)

var (
	errTable = errors.New("no LevelDB table")
	errBlock = errors.New("a block that is compressed in another way")
)

// isTable recognises a LevelDB table by its last bytes.
func isTable(r io.ReaderAt, size int64) bool {
	end := make([]byte, len(tableMagic))
	if size < tableFooter {
		return false
	}
	_, err := r.ReadAt(end, size-int64(len(end)))
	return err == nil && string(end) == tableMagic
}

// table reads the blocks of a LevelDB table, unpacked, one after the other.
type table struct {
	file   *io.SectionReader
	index  []byte // entries whose values say where the next blocks are
	unread []byte // of the present block
}

func newTable(file *io.SectionReader) (*table, error) {
	footer := make([]byte, tableFooter)
	if _, err := file.ReadAt(footer, file.Size()-tableFooter); err != nil {
		return nil, err
	}
	_, rest, err := place(footer) // of an index of what describes the table
	if err != nil {
		return nil, err
	}
	at, _, err := place(rest)
	if err != nil {
		return nil, err
	}
	t := &table{file: file}
	if t.index, err = t.block(at); err != nil {
		return nil, err
	}
	// At its end are 32-bit offsets of restarts, and how many there are.
	if len(t.index) < 4 {
		return nil, errTable
	}
	restarts := int64(binary.LittleEndian.Uint32(t.index[len(t.index)-4:]))
	if end := int64(len(t.index)) - 4 - 4*restarts; end >= 0 {
		t.index = t.index[:end]
		return t, nil
	}
	return nil, errTable
}

// Read implements io.Reader.
func (t *table) Read(p []byte) (int, error) {
	for len(t.unread) == 0 {
		if len(t.index) == 0 {
			return 0, io.EOF
		}
		// An entry: how much of the key is that of the one before, how long the
		// rest and the value are, then both.
		var sizes [3]uint64
		for i := range sizes {
			n, used := binary.Uvarint(t.index)
			if used <= 0 || n > maxBlock {
				return 0, errTable
			}
			sizes[i], t.index = n, t.index[used:]
		}
		if sizes[1]+sizes[2] > uint64(len(t.index)) {
			return 0, errTable
		}
		at, _, err := place(t.index[sizes[1] : sizes[1]+sizes[2]])
		if err != nil {
			return 0, err
		}
		t.index = t.index[sizes[1]+sizes[2]:]
		if t.unread, err = t.block(at); err != nil {
			return 0, err
		}
	}
	n := copy(p, t.unread)
	t.unread = t.unread[n:]
	return n, nil
}

// place reads where a block is.
func place(b []byte) (at [2]int64, rest []byte, err error) {
	for i := range at {
		n, used := binary.Uvarint(b)
		if used <= 0 || n > 1<<62 {
			return at, nil, errTable
		}
		at[i], b = int64(n), b[used:]
	}
	return at, b, nil
}

// block reads and unpacks a block. Behind it are its form and a checksum.
func (t *table) block(at [2]int64) ([]byte, error) {
	if at[1] > maxBlock || at[0] > t.file.Size()-at[1]-1 {
		return nil, errTable
	}
	b := make([]byte, at[1]+1)
	if _, err := t.file.ReadAt(b, at[0]); err != nil {
		return nil, err
	}
	form, b := b[at[1]], b[:at[1]]
	switch form {
	case 0:
		return b, nil
	case 1:
		return unsnappy(b)
	}
	return nil, errBlock
}

// unsnappy unpacks a block of Snappy: a length, then literals, and copies of
// what came before.
func unsnappy(b []byte) ([]byte, error) {
	size, used := binary.Uvarint(b)
	if used <= 0 || size > maxBlock {
		return nil, errTable
	}
	b = b[used:]
	out := make([]byte, 0, size)
	number := func(n int) (v int) { // little-endian, of what follows
		for i := range n {
			v |= int(b[i]) << (8 * i)
		}
		b = b[n:]
		return v
	}
	for len(b) > 0 {
		tag := int(b[0])
		b = b[1:]
		more := [4]int{max(0, tag>>2-59), 1, 2, 4}[tag&3] // bytes of the number after the tag
		if more > len(b) {
			return nil, errTable
		}
		n, length, offset := number(more), tag>>2+1, 0
		switch tag & 3 {
		case 0:
			if more > 0 {
				length = n + 1
			}
			if length > len(b) || uint64(len(out)+length) > size {
				return nil, errTable
			}
			out, b = append(out, b[:length]...), b[length:]
			continue
		case 1:
			length, offset = tag>>2&7+4, tag>>5<<8|n
		default:
			offset = n
		}
		if offset <= 0 || offset > len(out) || uint64(len(out)+length) > size {
			return nil, errTable
		}
		for length > 0 { // a copy may reach into itself
			part := out[len(out)-offset:]
			part = part[:min(len(part), length)]
			out, length = append(out, part...), length-len(part)
		}
	}
	if uint64(len(out)) != size {
		return nil, errTable
	}
	return out, nil
}
