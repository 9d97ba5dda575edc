package harden

import (
	"fmt"
	"os"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// restrictLandlock allows nothing that Landlock knows to forbid, on all
// threads: no file, no TCP port, no signal or abstract socket outside.
func restrictLandlock() (string, error) {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch errno {
	case 0:
	case unix.ENOSYS, unix.EOPNOTSUPP:
		return "", fmt.Errorf("landlock: %w", errLacking)
	default:
		return "", fmt.Errorf("ask landlock for its version: %w", errno)
	}
	if err := landlock.V11.BestEffort().Restrict(); err != nil {
		return "", fmt.Errorf("restrict by landlock: %w", err)
	}
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	if err != unix.EACCES {
		return "", fmt.Errorf("opening / under landlock: %v instead of EACCES", err)
	}
	return fmt.Sprintf("ABI %d, nothing allowed", abi), nil
}

// filterCalls installs the system call filter on all threads and tries what it
// denies.
func filterCalls() (string, error) {
	filter, err := program(auditArch, os.Getpid())
	if err != nil {
		return "", fmt.Errorf("assemble filter: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return "", fmt.Errorf("install filter: %w", errno)
	}
	if tid != 0 {
		return "", fmt.Errorf("install filter: thread %d refuses it", tid)
	}
	if err := tryDenied(); err != nil {
		return "", err
	}
	return readBack("PR_GET_SECCOMP", unix.PR_GET_SECCOMP, unix.SECCOMP_MODE_FILTER)
}

// tryDenied makes calls that fail otherwise, or do no harm, and insists that
// the filter answers.
func tryDenied() error {
	root := [2]byte{'/'}
	path := uintptr(unsafe.Pointer(&root[0]))
	here := int(unix.AT_FDCWD)
	for _, c := range []struct {
		name       string
		call       uintptr
		a1, a2, a3 uintptr
	}{
		{"openat", unix.SYS_OPENAT, uintptr(here), path, unix.O_PATH | unix.O_CLOEXEC},
		{"socket", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0},
		{"connect", unix.SYS_CONNECT, ^uintptr(0), 0, 0},
		{"execve", unix.SYS_EXECVE, 0, 0, 0},
		{"clone", unix.SYS_CLONE, unix.CLONE_THREAD, 0, 0},
		{"ptrace", unix.SYS_PTRACE, unix.PTRACE_PEEKUSR, 0, 0},
		{"process_vm_readv", unix.SYS_PROCESS_VM_READV, 0, 0, 0},
		{"memfd_create", unix.SYS_MEMFD_CREATE, 0, 0, 0},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, 0, 0, 0},
		{"bpf", unix.SYS_BPF, ^uintptr(0), 0, 0},
		{"prctl", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1, 0},
	} {
		if r, _, errno := unix.Syscall(c.call, c.a1, c.a2, c.a3); errno != unix.EPERM {
			return fmt.Errorf("under the filter %s answers %d, %v instead of EPERM", c.name, r, errno)
		}
	}
	return nil
}
