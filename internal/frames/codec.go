package frames

import (
	"encoding/binary"
	"fmt"

	claviger "claviger.dev"
)

// message is a body. walk names its fields in wire order; the codec either
// appends or consumes each, so that both directions are one description and
// cannot drift apart.
type message interface{ walk(*codec) }

// codec holds the bytes yet to be consumed, or those appended so far. After
// the first error it does nothing.
type codec struct {
	buf      []byte
	decoding bool
	err      error
}

var errTooLarge = claviger.Errorf(claviger.TooLarge, "the request is over a limit of the key process", "split the batch: at most 1000 items, 1 MiB each and 4 MiB together")

func (c *codec) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format+": %w", append(args, ErrMalformed)...)
	}
}

// take consumes n bytes, or fails and returns nil.
func (c *codec) take(n int) []byte {
	if c.err != nil {
		return nil
	}
	if n > len(c.buf) {
		c.fail("%d bytes missing", n-len(c.buf))
		return nil
	}
	b := c.buf[:n:n]
	c.buf = c.buf[n:]
	return b
}

func (c *codec) u8(v *uint8) {
	if !c.decoding {
		c.buf = append(c.buf, *v)
	} else if b := c.take(1); b != nil {
		*v = b[0]
	}
}

func (c *codec) u32(v *uint32) {
	if !c.decoding {
		c.buf = binary.BigEndian.AppendUint32(c.buf, *v)
	} else if b := c.take(4); b != nil {
		*v = binary.BigEndian.Uint32(b)
	}
}

func (c *codec) u64(v *uint64) {
	if !c.decoding {
		c.buf = binary.BigEndian.AppendUint64(c.buf, *v)
	} else if b := c.take(8); b != nil {
		*v = binary.BigEndian.Uint64(b)
	}
}

func (c *codec) bool(v *bool) {
	var b uint8
	if *v {
		b = 1
	}
	if c.u8(&b); b > 1 {
		c.fail("boolean %d", b)
	}
	*v = b == 1
}

// array carries exactly len(v) bytes, with no length before them.
func (c *codec) array(v []byte) {
	if !c.decoding {
		c.buf = append(c.buf, v...)
	} else if b := c.take(len(v)); b != nil {
		copy(v, b)
	}
}

// bytes carries at most max bytes. An empty value decodes to nil.
func (c *codec) bytes(v *[]byte, max int) {
	n := uint32(len(*v))
	if !c.decoding && len(*v) > max {
		c.err = errTooLarge
		return
	}
	if c.u32(&n); c.err == nil && int64(n) > int64(max) {
		c.err = errTooLarge
	}
	if c.err != nil {
		return
	}
	if !c.decoding {
		c.buf = append(c.buf, *v...)
	} else if *v = nil; n > 0 {
		*v = c.take(int(n))
	}
}

func (c *codec) text(v *string, max int) {
	b := []byte(*v)
	if c.bytes(&b, max); c.decoding {
		*v = string(b)
	}
}

// list carries a count of 1 to MaxItems and then what each appends or
// consumes for every item. min is the least size of an item, so that a count
// cannot make the decoder allocate more than the frame holds.
func list[T any](c *codec, v *[]T, least, min int, each func(*T)) {
	n := uint32(len(*v))
	if !c.decoding && len(*v) > MaxItems {
		c.err = errTooLarge
		return
	}
	if c.u32(&n); c.err == nil && n > MaxItems {
		c.err = errTooLarge
	}
	if c.err == nil && (int(n) < least || c.decoding && int(n)*min > len(c.buf)) {
		c.fail("count %d", n)
	}
	if c.err != nil {
		return
	}
	if c.decoding {
		*v = nil
		if n > 0 {
			*v = make([]T, n)
		}
	}
	for i := range *v {
		each(&(*v)[i])
	}
}

// batch carries 1 to MaxItems byte strings.
func (c *codec) batch(v *[][]byte) {
	list(c, v, 1, 4, func(b *[]byte) { c.bytes(b, MaxInput) })
}
