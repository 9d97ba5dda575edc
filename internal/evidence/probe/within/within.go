// Package within makes the attempts that take code inside of a process: what a
// fault in it would let an attacker do. It runs in a twin of the key process,
// never in one that holds keys, and in a weak process as the control.
//
// It owns the attempts and their words. Its calls do no harm where they
// succeed; it must never be reachable from the serving of requests.
package within

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"claviger.dev/internal/harden"
)

// Report is what a process saw of itself.
type Report struct {
	PID         int               `json:"pid"`
	Err         string            `json:"err,omitempty"` // why it could not be hardened
	Measures    []harden.Measure  `json:"measures,omitempty"`
	Forked      string            `json:"forked"`      // what a child made by fork alone met at the key: Leaked, or an error's name
	Calls       map[string]string `json:"calls"`       // by Names: Allowed, or an error's name
	Descriptors []string          `json:"descriptors"` // left open
	Address     uint64            `json:"address"`     // of the throw-away key
	Digest      [32]byte          `json:"digest"`      // SHA-256 of it
	Public      []byte            `json:"public"`      // of it as a P-256 scalar (SEC 1, uncompressed), where it is one
}

// What an attempt met where it succeeded.
const (
	Leaked  = "leaked"
	Allowed = "allowed"
)

// Names are the calls that are attempted, in order.
func Names() []string {
	return []string{"open", "socket", "connect", "exec", "ptrace", "process_vm_readv", "pidfd_getfd", "memfd_create", "memfd_secret", "io_uring_setup", "bpf", "perf_event_open", "userfaultfd", "prctl"}
}

// Calls attempts each, and says what came back.
func Calls() map[string]string {
	got := map[string]string{}
	// met makes the words: an error that the kernel gives after it has let the
	// call in, such as EFAULT for an argument left out, is a success.
	met := func(name string, call uintptr, args ...uintptr) {
		var x [6]uintptr
		copy(x[:], args)
		r, _, errno := syscall.Syscall6(call, x[0], x[1], x[2], x[3], x[4], x[5])
		switch errno {
		case 0:
			switch name {
			case "open", "socket", "memfd_create", "memfd_secret", "userfaultfd":
				unix.Close(int(r))
			}
			got[name] = Allowed
		case unix.EPERM, unix.EACCES, unix.ENOSYS:
			got[name] = unix.ErrnoName(errno)
		default:
			got[name] = Allowed
		}
	}
	here := unix.AT_FDCWD
	address := func(text string) uintptr { return uintptr(unsafe.Pointer(&[]byte(text + "\x00")[0])) }
	met("open", unix.SYS_OPENAT, uintptr(here), address("/"), unix.O_RDONLY|unix.O_CLOEXEC)
	met("socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	met("connect", unix.SYS_CONNECT, ^uintptr(0))
	met("exec", unix.SYS_EXECVE, address("/nowhere"))
	met("ptrace", unix.SYS_PTRACE, unix.PTRACE_CONT, 1<<22)
	met("process_vm_readv", unix.SYS_PROCESS_VM_READV, 1<<23)
	met("pidfd_getfd", unix.SYS_PIDFD_GETFD, ^uintptr(0))
	met("memfd_create", unix.SYS_MEMFD_CREATE, address("probe"), unix.MFD_CLOEXEC)
	met("memfd_secret", unix.SYS_MEMFD_SECRET, unix.O_CLOEXEC)
	met("io_uring_setup", unix.SYS_IO_URING_SETUP, 1)
	met("bpf", unix.SYS_BPF, 1<<20)
	met("perf_event_open", unix.SYS_PERF_EVENT_OPEN)
	met("userfaultfd", unix.SYS_USERFAULTFD, unix.O_CLOEXEC|1)
	met("prctl", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 9) // no such value
	return got
}

// Descriptors lists what the descriptors above the first kept ones are, by the
// kernel's names, but for those of the runtime's own poller. It must be called
// before calls are filtered.
func Descriptors(kept int) (open []string) {
	for fd := kept; fd < 1024; fd++ {
		name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if err == nil && !Poller(name) {
			open = append(open, name)
		}
	}
	return open
}

// Poller reports whether a descriptor is one of those that the Go runtime waits
// by, from which nothing can be read.
func Poller(name string) bool {
	return name == "anon_inode:[eventpoll]" || name == "anon_inode:[eventfd]"
}

// Fork says what a child made by fork alone, without exec, meets at b: Leaked,
// or the name of the error. It must be called before calls are filtered.
func Fork(b []byte) string {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return err.Error()
	}
	defer unix.Close(fds[0])
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return err.Error()
	}
	at, n := uintptr(unsafe.Pointer(&b[0])), uintptr(len(b))
	pid, errno := clone(uintptr(fds[1]), at, n)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	unix.Close(fds[1])
	if errno != 0 {
		return unix.ErrnoName(errno)
	}
	got := make([]byte, len(b))
	k, _ := unix.Read(fds[0], got)
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(int(pid), &status, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	same := k == len(b) && string(got) == string(b)
	clear(got)
	if same {
		return Leaked
	}
	return unix.ErrnoName(syscall.Errno(status.ExitStatus()))
}

// clone makes the child, which makes system calls only: nothing else works
// there. It writes n bytes at an address and ends with the error as its status.
//
//go:norace
func clone(to, at, n uintptr) (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		_, _, e := syscall.RawSyscall(unix.SYS_WRITE, to, at, n)
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(e), 0, 0)
	}
	return pid, errno
}

// Address is where b is.
func Address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

// Stand reports on control and does what comes back: "abort" ends the process
// by SIGABRT as the kernel does it, anything else just ends it.
func Stand(control io.ReadWriter, r Report) error {
	if err := json.NewEncoder(control).Encode(r); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	command := make([]byte, 16)
	n, err := control.Read(command)
	if err != nil && err != io.EOF {
		return fmt.Errorf("wait for the command: %w", err)
	}
	if string(command[:n]) != "abort" {
		return nil
	}
	var action [64]byte // all zero is SIG_DFL
	_, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGABRT), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	if errno == 0 {
		_ = unix.Kill(unix.Getpid(), unix.SIGABRT)
	}
	select {}
}
