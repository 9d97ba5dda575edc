package frames

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// maxBacklog is the most that a Writer holds for a peer that does not read.
const maxBacklog = 32 << 20

// ErrBroken is in the chain of what Add returns once a write has failed.
var ErrBroken = errors.New("the stream is broken")

// Writer coalesces frames: what is added while a write is under way goes out
// in the next one. It is safe for concurrent use.
type Writer struct {
	w io.Writer

	mu    sync.Mutex
	out   []byte // guarded by mu
	spare []byte // guarded by mu; the buffer of the last write
	busy  bool   // guarded by mu; somebody is in Write
	err   error  // guarded by mu; sticky
}

// NewWriter returns a Writer that writes to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Add has f append one frame, and reports how many bytes wait. It writes
// nothing. An error of f leaves the stream as it was; after an error of an
// earlier write nothing is added, and that is returned with ErrBroken.
func (w *Writer) Add(f func([]byte) ([]byte, error)) (waiting int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, fmt.Errorf("%w: %w", ErrBroken, w.err)
	}
	if len(w.out) > maxBacklog {
		return len(w.out), errBusy
	}
	out, err := f(w.out)
	if err == nil {
		w.out = out
	}
	return len(w.out), err
}

// Flush writes what waits, unless another call is writing: that one takes it
// along. So at most one caller is ever in Write.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy {
		return w.err
	}
	w.busy = true
	for w.err == nil && len(w.out) > 0 {
		out := w.out
		w.out = w.spare[:0]
		w.mu.Unlock()
		_, err := w.w.Write(out)
		w.mu.Lock()
		if w.err == nil {
			w.err = err
		}
		if w.spare = out; cap(out) > 1<<20 {
			w.spare = nil // a rare large batch is not kept for ever
		}
	}
	w.busy = false
	return w.err
}
