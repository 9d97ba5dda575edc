// Package custodytest holds every custodian to one conformance suite, and
// starts real key processes for tests.
//
// It is for tests alone; no program imports it.
package custodytest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"claviger.dev/internal/rootkey"
)

// Build compiles claviger-keyd into dir as any user may run it, and returns
// its path. With erasure it is built as it ships, with runtime/secret.
func Build(dir string, erasure bool) (string, error) {
	path := filepath.Join(dir, fmt.Sprintf("claviger-keyd-%t", erasure))
	cmd := exec.Command("go", "build", "-o", path, "claviger.dev/cmd/claviger-keyd")
	experiment := "noruntimesecret"
	if erasure {
		experiment = "runtimesecret"
	}
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOEXPERIMENT="+experiment)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build claviger-keyd: %w\n%s", err, out)
	}
	return path, errors.Join(os.Chmod(path, 0o755), os.Chmod(dir, 0o755))
}

// Starter is a custody.Source that starts a key process each time it is asked,
// ending the one before.
type Starter struct {
	Path    string
	Args    []string
	Message rootkey.Message // what claviger-unseal would say first
	UID     uint32          // of the process; 0 is that of the test

	mu      sync.Mutex
	process *exec.Cmd
	talk    *os.File // the end of claviger-unseal
	started int
	shown   [32]byte
}

// Next implements custody.Source.
func (s *Starter) Next(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.end()
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	defer theirs.Close()
	talk, theirTalk, err := pair()
	if err != nil {
		return nil, err
	}
	defer theirTalk.Close()
	s.talk = talk
	cmd := exec.Command(s.Path, s.Args...)
	cmd.ExtraFiles = []*os.File{theirs, theirTalk}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if s.UID != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: s.UID, Gid: s.UID}}
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.process = cmd
	s.started++
	theirTalk.Close()
	if err := s.unseal(); err != nil {
		s.end()
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	return net.FileConn(ours)
}

func (s *Starter) unseal() error {
	if err := s.talk.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if err := rootkey.Send(s.talk, s.Message); err != nil {
		return err
	}
	want := s.Message.Kind // which a process without a root repeats, with a fingerprint
	if want == rootkey.Deliver {
		want = rootkey.Done
	}
	m, err := rootkey.Receive(s.talk)
	if err == nil && m.Kind != want {
		err = fmt.Errorf("the key process answered %q", byte(m.Kind))
	}
	if err != nil || want == rootkey.Done {
		return err
	}
	s.shown = m.Pin
	return s.talk.SetDeadline(time.Time{})
}

// pair returns the ends of a socket pair. The first is ready for deadlines.
func pair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs"), nil
}

// PID returns the present process's id.
func (s *Starter) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.Process.Pid
}

// Started returns how many processes there have been.
func (s *Starter) Started() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started
}

// Shown returns the fingerprint that a process without a root told
// claviger-unseal: of its join key, or of its identity for the while.
func (s *Starter) Shown() [32]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown
}

// Talk returns the end of claviger-unseal.
func (s *Starter) Talk() *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.talk
}

// Signal sends a signal to the present process.
func (s *Starter) Signal(sig os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.process.Process.Signal(sig); err != nil || sig != syscall.SIGSTOP {
		return err
	}
	// It has stopped when its last thread has, not when the signal was sent.
	return unix.Waitid(unix.P_PID, s.process.Process.Pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil)
}

// Close ends the present process.
func (s *Starter) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end()
}

func (s *Starter) end() {
	if s.process != nil {
		_ = s.process.Process.Kill()
		_ = s.process.Wait()
		s.talk.Close()
		s.process = nil
	}
}
