package custody_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/rootkey"
)

func TestKilledUnderLoad(t *testing.T) {
	c, s := start(t)
	keys := []custodytest.Key{custodytest.Generate(t, c, claviger.Ed25519), custodytest.Generate(t, c, claviger.ECDSAP256)}
	const callers, kills = 16, 5
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan struct{}, 1024)
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			k := keys[i%len(keys)]
			for n := 0; ctx.Err() == nil; n++ {
				message := []byte{byte(i), byte(n)}
				sigs, err := c.Sign(t.Context(), k.Material, [][]byte{message}, false)
				if err != nil || !custodytest.Verify(k.Binding.Algorithm, k.Public, message, sigs[0]) {
					t.Errorf("caller %d, request %d: %v", i, n, err)
					return
				}
				select {
				case done <- struct{}{}:
				default:
				}
			}
		})
	}
	for range kills {
		for range 200 {
			<-done
		}
		if err := s.Signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	for range 200 {
		<-done
	}
	stop()
	group.Wait()
	if s.Started() < kills+1 {
		t.Errorf("%d processes, want at least %d", s.Started(), kills+1)
	}
}

// A key process that dies while somebody writes to it is replaced for whoever
// comes next, too.
func TestBrokenWriteIsADeath(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	theirs.Close()
	if err := custody.AskBroken(t.Context(), ours, &frames.IdentityRequest{}); !errors.Is(err, custody.ErrDied) {
		t.Errorf("asked after a failed write: %v", err)
	}
}

func TestStoppedIsReplaced(t *testing.T) {
	const timeout = 500 * time.Millisecond
	s := &custodytest.Starter{}
	_, first := start(t)
	s.Path, s.Message = first.Path, first.Message
	c := custody.New(custody.Config{Source: s, Timeout: timeout})
	t.Cleanup(s.Close)
	t.Cleanup(c.Close)
	k := custodytest.Generate(t, c, claviger.Ed25519)
	sign := func() error {
		_, err := c.Sign(t.Context(), k.Material, [][]byte{nil}, false)
		return err
	}
	if err := sign(); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	// The caller is refused, or served by the next process when that is there in time.
	if err := sign(); claviger.CodeOf(err) != claviger.Unavailable && (err != nil || s.Started() != 2) {
		t.Errorf("while stopped: %v, from process %d", err, s.Started())
	}
	if took := time.Since(before); took > 4*timeout {
		t.Errorf("refused after %v", took)
	}
	within(t, sign)
	if s.Started() != 2 {
		t.Errorf("%d processes", s.Started())
	}
	// A verb that may take long is no way to wait on a hung process for long.
	if err := s.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	custodytest.Generate(t, c, claviger.Ed25519)
	if s.Started() != 3 {
		t.Errorf("%d processes after generating on a hung one", s.Started())
	}
}

// within repeats f while it is unavailable, for at most 10 s.
func within(t *testing.T, f func() error) {
	t.Helper()
	limit := time.Now().Add(10 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if claviger.CodeOf(err) != claviger.Unavailable || time.Now().After(limit) {
			t.Fatal(err)
		}
	}
}

// sequence gives what each function gives, then what the last source gives.
type sequence struct {
	mu    sync.Mutex
	peers []func(net.Conn) // each plays one key process
	then  custody.Source
}

func (s *sequence) Next(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.peers) == 0 {
		if s.then == nil {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return s.then.Next(ctx)
	}
	play := s.peers[0]
	s.peers = s.peers[1:]
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		play(theirs)
	}()
	return ours, nil
}

// after reads one request and answers it with what f makes of it.
func after(f func(frames.Frame) []byte) func(net.Conn) {
	return func(c net.Conn) {
		fr, err := frames.Read(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = c.Write(f(fr))
		_, _ = io.Copy(io.Discard, c)
	}
}

func identityFrame(id uint64) []byte {
	b, err := frames.AppendResponse(nil, id, &frames.IdentityResponse{Generation: 666})
	if err != nil {
		panic(err)
	}
	return b
}

func TestGarbage(t *testing.T) {
	_, real := start(t)
	for name, peer := range map[string]func(net.Conn){
		"closes":           func(net.Conn) {},
		"closes when read": func(c net.Conn) { _, _ = frames.Read(bufio.NewReader(c)) },
		"text":             after(func(frames.Frame) []byte { return []byte("HTTP/1.1 400 Bad Request\r\n\r\n") }),
		"unasked":          func(c net.Conn) { _, _ = c.Write(identityFrame(77)); _, _ = io.Copy(io.Discard, c) },
		"cut":              func(c net.Conn) { f, _ := frames.Read(bufio.NewReader(c)); _, _ = c.Write(identityFrame(f.ID)[:20]) },
		"oversized":        after(func(frames.Frame) []byte { return []byte{0xff, 0xff, 0xff, 0xff, 0, 0} }),
		"other verb": after(func(f frames.Frame) []byte {
			b, _ := frames.AppendResponse(nil, f.ID, &frames.UnloadResponse{})
			return b
		}),
		"other id":       after(func(f frames.Frame) []byte { return identityFrame(f.ID + 1) }),
		"body left over": after(func(f frames.Frame) []byte { b := append(identityFrame(f.ID), 0); b[3]++; return b }),
		"unknown status": after(func(f frames.Frame) []byte { b := identityFrame(f.ID); b[13] = 99; return b }),
		"silence":        func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"drip":           after(func(f frames.Frame) []byte { return identityFrame(f.ID)[:3] }),
	} {
		t.Run(name, func(t *testing.T) {
			s := &custodytest.Starter{Path: real.Path, Message: real.Message}
			defer s.Close()
			c := custody.New(custody.Config{Source: &sequence{peers: []func(net.Conn){peer}, then: s}, Timeout: 400 * time.Millisecond})
			defer c.Close()
			within(t, func() error {
				who, err := c.Identity(t.Context())
				if err == nil && who.Generation != 1 {
					t.Error("believed garbage")
				}
				return err
			})
			if s.Started() != 1 {
				t.Errorf("%d processes", s.Started())
			}
		})
	}
}

// liar answers every load with its slot and every use with another fingerprint
// or another number of results.
func liar(resp func(frames.Use) frames.Response) func(net.Conn) {
	return func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			f, err := frames.Read(in)
			if err != nil {
				return
			}
			var out frames.Response = &frames.LoadResponse{Fingerprint: claviger.Fingerprint{1}}
			if req, err := frames.ParseRequest(f); err == nil {
				if r, ok := req.(*frames.SignRequest); ok {
					out = resp(r.Use)
				}
			}
			b, _ := frames.AppendResponse(nil, f.ID, out)
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
}

func TestResultsOfOtherMaterialAreDropped(t *testing.T) {
	m := custody.Material{Binding: custodytest.Binding(claviger.Ed25519, claviger.Generated), Blob: []byte("b"), Fingerprint: claviger.Fingerprint{1}}
	for name, test := range map[string]struct {
		resp func(frames.Use) frames.Response
		want claviger.Code
	}{
		"honest": {func(u frames.Use) frames.Response {
			return &frames.SignResponse{Fingerprint: u.Fingerprint, Signatures: make([][]byte, 1)}
		}, ""},
		"other fingerprint": {func(frames.Use) frames.Response {
			return &frames.SignResponse{Fingerprint: claviger.Fingerprint{2}, Signatures: make([][]byte, 1)}
		}, claviger.Internal},
		"other count": {func(u frames.Use) frames.Response {
			return &frames.SignResponse{Fingerprint: u.Fingerprint, Signatures: make([][]byte, 2)}
		}, claviger.Internal},
	} {
		c := custody.New(custody.Config{Source: &sequence{peers: []func(net.Conn){liar(test.resp)}}})
		sigs, err := c.Sign(t.Context(), m, make([][]byte, 1), false)
		if claviger.CodeOf(err) != test.want || (err != nil) != (sigs == nil) {
			t.Errorf("%s: %v, %d signatures", name, err, len(sigs))
		}
		c.Close()
	}
}

func TestContext(t *testing.T) {
	c := custody.New(custody.Config{Source: &sequence{}})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Identity(ctx); claviger.CodeOf(err) != claviger.Deadline {
		t.Errorf("without a process: %v", err)
	}
	silent := custody.New(custody.Config{Source: &sequence{peers: []func(net.Conn){func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }}}})
	defer silent.Close()
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := silent.Identity(ctx); !errors.Is(err, context.Canceled) || claviger.CodeOf(err) != claviger.Deadline {
		t.Errorf("cancelled: %v", err)
	}
}

func TestWithoutAProcess(t *testing.T) {
	c := custody.New(custody.Config{Source: &sequence{}, Timeout: 20 * time.Millisecond})
	if _, err := c.Identity(t.Context()); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("no process: %v", err)
	}
	c.Close()
	if _, err := c.Identity(t.Context()); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("closed: %v", err)
	}
}

func TestNoGoroutineIsLeft(t *testing.T) {
	s := &custodytest.Starter{Path: shipped, Message: rootkey.Message{Kind: rootkey.Deliver, Bundle: bundle(1)}}
	defer s.Close()
	running := func() int {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		return strings.Count(string(buf), "custody.(*conn)") + strings.Count(string(buf), "custody.(*Client).run")
	}
	c := custody.New(custody.Config{Source: s})
	custodytest.Generate(t, c, claviger.Ed25519)
	if running() == 0 {
		t.Error("the count does not see goroutines")
	}
	c.Close()
	for limit := time.Now().Add(5 * time.Second); running() > 0; runtime.Gosched() {
		if time.Now().After(limit) {
			t.Fatalf("%d goroutines are left", running())
		}
	}
}

func TestEvictionAndReload(t *testing.T) {
	c, _ := start(t, func(s *custodytest.Starter) { s.Args = []string{"-arena", "20480"} }) // five pages
	var keys []custodytest.Key
	for i := range 300 {
		a := claviger.Ed25519
		if i%10 == 0 {
			a = claviger.ECDSAP384
		}
		keys = append(keys, custodytest.Generate(t, c, a))
	}
	for _, a := range []claviger.Algorithm{"rsa-2048-pss-sha256", "rsa-2048-pkcs1-sha256"} {
		keys = append(keys, custodytest.Generate(t, c, a))
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for i := range 2 * len(keys) {
				k := keys[i*7%len(keys)]
				sigs, err := c.Sign(t.Context(), k.Material, [][]byte{{1}}, false)
				if err != nil || !custodytest.Verify(k.Binding.Algorithm, k.Public, []byte{1}, sigs[0]) {
					t.Errorf("key %d: %v", i, err)
				}
			}
		})
	}
	group.Wait()
}
