package probe

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"claviger.dev/internal/evidence/probe/within"
)

// target is a process to attack.
type target struct {
	PID int `json:"pid"`
	// Address and Digest are where a throw-away key is, and its SHA-256; zero of
	// a process that holds others' keys. There the attempt is over as soon as
	// something can be read.
	Address uint64   `json:"address,omitempty"`
	Digest  [32]byte `json:"digest"`
}

// outcome is what an attempt met.
type outcome struct {
	Probe  string `json:"probe"`
	Tried  string `json:"tried"`
	Result string `json:"result"`
	Leaked bool   `json:"leaked"`
}

// attack attempts what a process of the same user can do to a target. Of each
// attempt it says what the kernel answered; it never keeps what was read.
func attack(t target) []outcome {
	path := "/proc/" + strconv.Itoa(t.PID) + "/"
	out := []outcome{
		t.outcome("proc-mem", "read the memory through /proc/PID/mem", t.procMem(path)),
		t.outcome("vm-readv", "read the memory by process_vm_readv", t.vmReadv()),
		t.outcome("ptrace-seize", "trace it by PTRACE_SEIZE and read the memory", t.trace(unix.PtraceSeize)),
		t.outcome("ptrace-attach", "trace it by PTRACE_ATTACH and read the memory", t.trace(unix.PtraceAttach)),
		t.outcome("pidfd-getfd", "take every descriptor by pidfd_getfd", t.takeDescriptors()),
	}
	for _, name := range []string{"maps", "environ", "pagemap", "auxv", "syscall", "stack"} {
		out = append(out, t.outcome("proc-"+name, "read /proc/PID/"+name, readSome(path+name)))
	}
	return append(out,
		t.outcome("proc-map-files", "list /proc/PID/map_files", listSome(path+"map_files", false)),
		t.outcome("proc-fd", "list /proc/PID/fd and read what one is", listSome(path+"fd", true)))
}

func (t target) outcome(probe, tried string, err error) outcome {
	o := outcome{Probe: probe, Tried: tried, Result: "allowed", Leaked: err == nil}
	if err != nil {
		o.Result = "refused: " + errorName(err)
	}
	return o
}

// errorName is the kernel's name of an error, or its text.
func errorName(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// errOther is the error of a throw-away key that was not where it should be.
var errOther = errors.New("something else than the key was read")

// check accepts what was read: the throw-away key, or anything at all where
// there is none.
func (t target) check(read []byte) error {
	defer clear(read)
	if t.Address != 0 && sha256.Sum256(read) != t.Digest {
		return errOther
	}
	return nil
}

// where is an address that the process can read: the throw-away key, its first
// readable mapping, or where programs usually start.
func (t target) where() int64 {
	if t.Address != 0 {
		return int64(t.Address)
	}
	if maps, err := os.ReadFile("/proc/" + strconv.Itoa(t.PID) + "/maps"); err == nil {
		for line := range strings.Lines(string(maps)) {
			from, rest, _ := strings.Cut(line, "-")
			if _, perms, _ := strings.Cut(rest, " "); strings.HasPrefix(perms, "r") {
				if at, err := strconv.ParseInt(from, 16, 64); err == nil {
					return at
				}
			}
		}
	}
	return 0x400000
}

func (t target) procMem(path string) error {
	f, err := os.Open(path + "mem")
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 32)
	if _, err := f.ReadAt(b, t.where()); err != nil && t.Address != 0 {
		return err
	}
	return t.check(b) // what can be opened can be read somewhere
}

func (t target) vmReadv() error {
	b := make([]byte, 32)
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	_, err := unix.ProcessVMReadv(t.PID, local, []unix.RemoteIovec{{Base: uintptr(t.where()), Len: len(b)}}, 0)
	if err != nil && (t.Address != 0 || !errors.Is(err, unix.EFAULT)) {
		return err
	}
	return t.check(b) // EFAULT: allowed, and nothing there
}

// trace attaches to a process, reads a key where there is one to read, and lets
// it go. A process that can be traced stands still for that moment.
func (t target) trace(attach func(int) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := attach(t.PID); err != nil {
		return err
	}
	_, _, _ = unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_INTERRUPT, uintptr(t.PID), 0, 0, 0, 0) // of no effect after PTRACE_ATTACH
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(t.PID, &status, unix.WALL, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	defer func() { _ = unix.PtraceDetach(t.PID) }()
	if t.Address == 0 {
		return nil
	}
	b := make([]byte, 32)
	if _, err := unix.PtracePeekData(t.PID, uintptr(t.Address), b); err != nil {
		return err
	}
	return t.check(b)
}

// takeDescriptors tries every descriptor up to the highest that is known, and
// reads the throw-away key from any.
func (t target) takeDescriptors() error {
	pidfd, err := unix.PidfdOpen(t.PID, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	var refused error
	missed := false
	for fd := range 1024 {
		got, err := unix.PidfdGetfd(pidfd, fd, 0)
		if errors.Is(err, unix.EBADF) {
			continue // allowed, and nothing there
		}
		if err != nil {
			refused = err
			continue
		}
		b := make([]byte, 32)
		_, err = unix.Pread(got, b, 0)
		unix.Close(got)
		if t.Address == 0 || err == nil && t.check(b) == nil {
			return nil
		}
		missed = true
	}
	switch {
	case refused != nil:
		return refused
	case missed:
		return errOther
	}
	return unix.EBADF
}

func readSome(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.Read(make([]byte, 64)); errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func listSome(path string, follow bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	entries, err := f.ReadDir(1)
	if err == nil && follow {
		_, err = os.Readlink(path + "/" + entries[0].Name())
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// status is what /proc/PID/status and its neighbours tell anyone.
type status struct {
	pid, uid, gid int
	fields        map[string]string
	core          string // soft limit of core files
	arguments     []string
}

// readStatus reads it; the error says that there is no such process.
func readStatus(pid int) (status, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	s := status{pid: pid, fields: map[string]string{}}
	text, err := os.ReadFile(dir + "/status")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		s.fields[name] = strings.TrimSpace(value)
	}
	if _, err := fmt.Sscan(s.fields["Uid"], new(int), &s.uid); err != nil {
		return s, fmt.Errorf("read uid: %w", err)
	}
	if _, err := fmt.Sscan(s.fields["Gid"], new(int), &s.gid); err != nil {
		return s, fmt.Errorf("read gid: %w", err)
	}
	limits, _ := os.ReadFile(dir + "/limits")
	for line := range strings.Lines(string(limits)) {
		if rest, ok := strings.CutPrefix(line, "Max core file size"); ok {
			s.core, _, _ = strings.Cut(strings.TrimSpace(rest), " ")
		}
	}
	if line, err := os.ReadFile(dir + "/cmdline"); err == nil && len(line) > 0 {
		for _, a := range bytes.Split(bytes.TrimSuffix(line, []byte{0}), []byte{0})[1:] {
			s.arguments = append(s.arguments, string(a))
		}
	}
	return s, nil
}

// openDescriptors lists what root sees open in a process, but for the poller.
func openDescriptors(pid int) (names []string, err error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name, err := os.Readlink(dir + "/" + e.Name())
		if err == nil && !within.Poller(name) {
			names = append(names, e.Name()+" "+name)
		}
	}
	return names, nil
}
