package keyd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/hazmat"
)

const (
	flushBytes = 64 << 10               // answers go out when so many bytes wait,
	flushAfter = 100 * time.Microsecond // or when the last went out so long ago
	maxSlow    = 128                    // slow requests that may wait
)

// server moves frames between the socket and the process.
//
// Each worker reads a request, answers it, and reads the next; one at a time
// reads. So a request meets no hand-over between goroutines, and requests that
// arrive together are answered together.
type server struct {
	process *Process
	socket  io.ReadWriter
	writer  *frames.Writer
	slow    chan frames.Frame

	reading sync.Mutex
	in      *bufio.Reader // guarded by reading
	idle    atomic.Bool   // the reader waits for the peer, so answers go out at once
	flushed atomic.Int64  // when answers last went out, in ns since start
	start   time.Time
}

// Serve answers requests until the socket ends, which is no error: nobody is
// left to serve.
func (p *Process) Serve(socket io.ReadWriter) error {
	s := &server{
		process: p, socket: socket, writer: frames.NewWriter(socket),
		slow: make(chan frames.Frame, maxSlow), start: time.Now(),
	}
	s.in = bufio.NewReaderSize(source{s}, 64<<10)
	ended := make(chan error, 1)
	for range runtime.GOMAXPROCS(0) {
		go func() {
			defer p.guard()
			err := s.work()
			select {
			case ended <- err:
			default:
			}
		}()
	}
	go func() {
		defer p.guard()
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
		if isSlow(f.Verb) {
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

// isSlow says that a verb may take long. Such requests are done one at a time
// beside the others, so that no use waits for the making of a key.
func isSlow(v frames.Verb) bool {
	switch v {
	case frames.VerbGenerate, frames.VerbAdopt, frames.VerbShares, frames.VerbVerifyShares,
		frames.VerbRestore, frames.VerbJoin, frames.VerbJoinKey, frames.VerbAdmit, frames.VerbOneTimeKey:
		return true
	}
	return false
}

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
	resp, err := s.process.handle(req)
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
	case errors.Is(err, frames.ErrNotLoaded), errors.Is(err, hazmat.ErrGone): // given up between the look-up and the use
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

// handle does what a request asks.
func (p *Process) handle(req frames.Request) (frames.Response, error) {
	switch r := req.(type) {
	case *frames.SignRequest:
		return answer(p.sign(r))
	case *frames.MACRequest:
		return answer(p.computeMAC(r))
	case *frames.VerifyMACRequest:
		return answer(p.verifyMAC(r))
	case *frames.SealRequest:
		return answer(p.seal(r))
	case *frames.OpenRequest:
		return answer(p.open(r))
	case *frames.LoadRequest:
		return answer(p.load(r))
	case *frames.UnloadRequest:
		p.slots.drop(r.Slot)
		return &frames.UnloadResponse{}, nil
	case *frames.RewrapRequest:
		return answer(p.rewrap(r))
	case *frames.FindRequest:
		return answer(p.find(r))
	case *frames.GenerateRequest:
		return answer(p.generate(r))
	case *frames.OneTimeKeyRequest:
		return answer(p.oneTimeKey(r))
	case *frames.AdoptRequest:
		return answer(p.adopt(r))
	case *frames.SharesRequest:
		return answer(p.shares())
	case *frames.VerifySharesRequest:
		return answer(p.verifyShares(r))
	case *frames.RestoreRequest:
		return answer(p.restore(r))
	case *frames.JoinKeyRequest:
		return answer(p.newJoinKey())
	case *frames.JoinRequest:
		return answer(p.join(r))
	case *frames.AdmitRequest:
		return answer(p.admit(r))
	case *frames.IdentityRequest:
		return p.identity(), nil
	case *frames.EvidenceRequest:
		return &frames.EvidenceResponse{PID: uint32(os.Getpid()), Level: p.level, Measures: p.measures}, nil
	}
	return nil, claviger.Errorf(claviger.Unsupported, "the key process does not do this", "use a server and a key process of one release")
}

// answer makes a response of any type a Response, keeping nil errors nil.
func answer[R frames.Response](r R, err error) (frames.Response, error) {
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (p *Process) identity() *frames.IdentityResponse {
	resp := &frames.IdentityResponse{Joining: true}
	if r := p.root.Load(); r != nil {
		resp.Public = r.public
		if n := len(r.generations); n > 0 {
			resp.Generation, resp.Joining = r.generations[n-1].number, false
		}
	}
	return resp
}
