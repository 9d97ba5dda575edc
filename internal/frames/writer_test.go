package frames_test

import (
	"errors"
	"io"
	"sync"
	"testing"

	"claviger.dev/internal/frames"
)

// gate lets one write through each time it is opened.
type gate struct {
	open    chan struct{}
	mu      sync.Mutex
	written []string
}

func (g *gate) Write(b []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	g.written = append(g.written, string(b))
	return len(b), nil
}

func add(t *testing.T, w *frames.Writer, text string) {
	t.Helper()
	if _, err := w.Add(func(b []byte) ([]byte, error) { return append(b, text...), nil }); err != nil {
		t.Fatal(err)
	}
}

func TestWriterCoalesces(t *testing.T) {
	t.Parallel()
	g := &gate{open: make(chan struct{})}
	w := frames.NewWriter(g)
	add(t, w, "a")
	done := make(chan error, 1)
	go func() { done <- w.Flush() }()
	g.open <- struct{}{} // the first write has begun, with a alone
	for _, text := range []string{"b", "c", "d"} {
		add(t, w, text)
	}
	select {
	case g.open <- struct{}{}:
	case err := <-done: // the first flush ended before b was added
		if err != nil {
			t.Fatal(err)
		}
		go func() { done <- w.Flush() }()
		g.open <- struct{}{}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	all := ""
	for _, s := range g.written {
		all += s
	}
	if all != "abcd" || len(g.written) > 3 {
		t.Errorf("wrote %q", g.written)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestWriterKeepsItsError(t *testing.T) {
	t.Parallel()
	w := frames.NewWriter(broken{})
	refused := errors.New("refused")
	if _, err := w.Add(func([]byte) ([]byte, error) { return nil, refused }); !errors.Is(err, refused) || errors.Is(err, frames.ErrBroken) {
		t.Error(err)
	}
	if err := w.Flush(); err != nil {
		t.Errorf("nothing to write: %v", err)
	}
	add(t, w, "a")
	if err := w.Flush(); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
	if _, err := w.Add(func(b []byte) ([]byte, error) { return append(b, 'b'), nil }); !errors.Is(err, io.ErrClosedPipe) || !errors.Is(err, frames.ErrBroken) {
		t.Errorf("add after an error: %v", err)
	}
}
