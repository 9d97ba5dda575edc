// Package serve is the process's side of frames: it reads requests off the
// socket, has them answered and writes the answers, for every custodian alike.
//
// It promises that requests which arrive together are answered together, that
// slow ones do not stop the others, and that only errors with a code are told.
package serve

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
)

const (
	flushBytes = 64 << 10               // answers go out when so many bytes wait,
	flushAfter = 100 * time.Microsecond // or when the last went out so long ago
	maxSlow    = 128                    // slow requests that may wait
)

// Config says how requests are answered.
type Config struct {
	// Handle answers one request. frames.ErrNotLoaded tells that a slot is not
	// there; other errors without a code are told as internal.
	Handle  func(frames.Request) (frames.Response, error)
	Slow    func(frames.Verb) bool // may take long, and is done one at a time beside the others; nil: none
	Workers int                    // requests answered at once; the number of processors when zero
	Guard   func()                 // deferred by every goroutine; nil: none
}

// server moves frames between the socket and the handler.
//
// Each worker reads a request, answers it, and reads the next; one at a time
// reads. So a request meets no hand-over between goroutines, and requests that
// arrive together are answered together.
type server struct {
	cfg    Config
	socket io.ReadWriter
	writer *frames.Writer
	slow   chan frames.Frame

	reading sync.Mutex
	in      *bufio.Reader // guarded by reading
	idle    atomic.Bool   // the reader waits for the peer, so answers go out at once
	flushed atomic.Int64  // when answers last went out, in ns since start
	start   time.Time
}

// Frames answers requests until the socket ends, which is no error: nobody is
// left to serve.
func Frames(socket io.ReadWriter, cfg Config) error {
	if cfg.Workers == 0 {
		cfg.Workers = runtime.GOMAXPROCS(0)
	}
	if cfg.Guard == nil {
		cfg.Guard = func() {}
	}
	s := &server{
		cfg: cfg, socket: socket, writer: frames.NewWriter(socket),
		slow: make(chan frames.Frame, maxSlow), start: time.Now(),
	}
	s.in = bufio.NewReaderSize(source{s}, 64<<10)
	ended := make(chan error, 1)
	for range cfg.Workers {
		go func() {
			defer cfg.Guard()
			err := s.work()
			select {
			case ended <- err:
			default:
			}
		}()
	}
	go func() {
		defer cfg.Guard()
		s.workSlow()
	}()
	if err := <-ended; !errors.Is(err, io.EOF) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// source is the socket as the reader sees it: before it waits for the peer,
// what the peer waits for goes out.
type source struct{ *server }

func (s source) Read(b []byte) (int, error) {
	s.idle.Store(true)
	defer s.idle.Store(false)
	if err := s.flush(); err != nil {
		return 0, err
	}
	return s.socket.Read(b)
}

func (s *server) flush() error {
	s.flushed.Store(int64(time.Since(s.start)))
	return s.writer.Flush()
}

func (s *server) work() error {
	for {
		s.reading.Lock()
		f, err := frames.Read(s.in)
		s.reading.Unlock()
		if err != nil {
			return err
		}
		if s.cfg.Slow != nil && s.cfg.Slow(f.Verb) {
			select {
			case s.slow <- f:
				continue
			default:
				if err := s.refuse(f, errCrowded); err != nil {
					return err
				}
				continue
			}
		}
		if err := s.answer(f); err != nil {
			return err
		}
	}
}

var errCrowded = claviger.Errorf(claviger.Unavailable, "too many keys are being made at once", "try again in a moment")

func (s *server) workSlow() {
	for f := range s.slow {
		if s.answer(f) != nil {
			return // a worker sees it too, and ends the process
		}
	}
}

// answer does what a frame asks and queues the answer.
func (s *server) answer(f frames.Frame) error {
	req, err := frames.ParseRequest(f)
	if err != nil {
		return s.refuse(f, err)
	}
	resp, err := s.cfg.Handle(req)
	if err != nil {
		return s.refuse(f, err)
	}
	waiting, err := s.writer.Add(func(b []byte) ([]byte, error) { return frames.AppendResponse(b, f.ID, resp) })
	if err != nil {
		return s.refuse(f, err)
	}
	return s.sent(waiting)
}

// refuse queues a refusal. Only errors with a code are told; the rest is internal.
func (s *server) refuse(f frames.Frame, err error) error {
	status, fault := frames.StatusOf(err), frames.Fault{}
	var known *claviger.Error
	switch {
	case errors.Is(err, frames.ErrNotLoaded):
		status = frames.NotLoaded
	case errors.Is(err, frames.ErrMalformed):
		status = frames.Invalid
		fault.Message, fault.Hint = "the request is malformed", "use a server and a key process of one release"
	case errors.As(err, &known):
		fault.Message, fault.Hint = known.Msg, known.Hint
	default:
		fault.Message, fault.Hint = "the key process failed", "report this with the request id"
	}
	waiting, err := s.writer.Add(func(b []byte) ([]byte, error) {
		return frames.AppendFault(b, f.ID, f.Verb, status, fault)
	})
	if err != nil {
		return err
	}
	return s.sent(waiting)
}

// sent lets answers go out when there are enough, when they have waited, or
// when no request is left to be done first.
func (s *server) sent(waiting int) error {
	if s.idle.Load() || waiting >= flushBytes || time.Since(s.start)-time.Duration(s.flushed.Load()) >= flushAfter {
		return s.flush()
	}
	return nil
}
