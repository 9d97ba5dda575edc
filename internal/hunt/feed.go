package hunt

import (
	"context"
	"io"
)

// A stream is read in chunks. Each is scanned with what stands before and after
// it, so that a key or an encoding that crosses an end is seen whole: an RSA-4096
// key in PEM is 3.2 KB long, in hex 4.8 KB.
const (
	chunk = 256 << 10
	lead  = 8 << 10
	tail  = 16 << 10
)

// strideFor is the distance between tested windows, in bytes, for a stream that
// is at most a chunk long (whole) or longer. DER, base64 and hex are tested at
// every byte whatever it is.
func (h *hunt) strideFor(size int, whole bool) int {
	switch {
	case h.config.EveryByte || whole && size <= 4<<10:
		return 1
	case whole && size <= 64<<10:
		return 4
	}
	return 8
}

// feed scans a stream whose first byte has the offset start. A stride of 0 is
// chosen by the stream's size. It returns how much was read. An error other
// than the context's says that the rest could not be read.
func (h *hunt) feed(ctx context.Context, at Place, r io.Reader, start int64, stride int) (read int64, err error) {
	buf, err := h.buffer(ctx)
	if err != nil {
		return 0, err
	}
	source := &failing{Reader: r}
	base, from, filled := start, 0, 0
	for {
		h.tick(at)
		n, err := io.ReadFull(source, buf[filled:])
		filled += n
		read += int64(n)
		if stride == 0 {
			stride = h.strideFor(filled, err != nil)
		}
		if err != nil {
			h.send(job{at, buf[:filled], base, from, filled, stride})
			return read, source.err
		}
		next, err := h.buffer(ctx)
		if err != nil {
			h.release(buf)
			return read, err
		}
		to := filled - tail
		keep := max(0, to-lead)
		kept := copy(next, buf[keep:filled])
		h.send(job{at, buf[:filled], base, from, to, stride})
		base += int64(keep)
		buf, from, filled = next, to-keep, kept
	}
}

// buffer takes a buffer from the pool, which bounds the memory of the hunt.
func (h *hunt) buffer(ctx context.Context) ([]byte, error) {
	select {
	case buf := <-h.free:
		if buf == nil {
			buf = make([]byte, lead+chunk+tail)
		}
		return buf[:cap(buf)], ctx.Err()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h *hunt) release(buf []byte) { h.free <- buf }

func (h *hunt) send(j job) {
	h.flying.Add(1)
	h.jobs <- j
}

// failing remembers the error of a reader that is not its end: io.ReadFull
// makes an end and a truncation look alike.
type failing struct {
	io.Reader
	err error
}

// Read implements io.Reader.
func (f *failing) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}
