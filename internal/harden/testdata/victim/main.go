// Command victim is a key process for tests: it holds a marker in its arena
// and on its heap, hardened or not, and can turn attacker on another one.
package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"claviger.dev/internal/harden"
	"claviger.dev/internal/hazmat"
)

// Order is what the test tells a victim, in its first argument.
type Order struct {
	Attack *Target  // be an attacker on this
	Server bool     // harden as the server does
	Plain  bool     // do not harden: the control
	Fork   bool     // read the arena in a child
	Relax  []string // steps that may fail
	Faults []Fault  // calls that fail, or do nothing
}

// Fault makes a system call answer Errno (0 is success without effect) where
// its argument Arg is Value.
type Fault struct {
	Call  uint32
	Arg   int // -1 is any
	Value uint32
	Errno uint16
}

// Target is where a victim keeps its marker.
type Target struct {
	PID               int
	ArenaAddr, HeapAt uint64
}

// Answer is what a victim reports on descriptor 3.
type Answer struct {
	Target   Target
	Err      string
	Measures []harden.Measure
	Level    string
	Inside   map[string]string // attempts from inside, by thread and name
	Forked   map[string]string
	Leaks    map[string]string // an attacker's finds
}

func main() {
	var o Order
	if err := json.Unmarshal([]byte(os.Args[1]), &o); err != nil {
		panic(err)
	}
	out := os.NewFile(3, "test")
	var a Answer
	if o.Attack != nil {
		a.Leaks = attack(*o.Attack)
	} else {
		a = stand(o)
	}
	if err := json.NewEncoder(out).Encode(a); err != nil {
		os.Exit(3)
	}
	if o.Attack != nil || a.Err != "" {
		return
	}
	command := make([]byte, 16)
	n, _ := out.Read(command)
	if string(command[:n]) == "abort" {
		// As the kernel does it, not as the Go runtime does: all zero is SIG_DFL.
		var action [64]byte
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGABRT), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
		unix.Kill(unix.Getpid(), unix.SIGABRT)
		select {}
	}
	os.Exit(7)
}

// marker is made at run time, so that the binary's own data does not hold it.
func marker(b []byte) {
	for i := range b {
		b[i] = byte(0xa0 ^ i*7)
	}
}

var heap = new([32]byte)

func stand(o Order) (a Answer) {
	fail := func(err error) Answer { a.Err = err.Error(); return a }
	if len(o.Faults) > 0 {
		install(o.Faults)
	}
	if o.Server {
		r, err := harden.Server()
		if err != nil {
			return fail(err)
		}
		a.Measures, a.Target.PID = r.Measures, os.Getpid()
		return a
	}
	// A thread from before the filter, to see that the filter reaches it.
	early := thread()
	var p *harden.KeyProcess
	var err error
	if !o.Plain {
		if p, err = harden.Before(harden.Options{Keep: []int{3}, Relax: o.Relax}); err != nil {
			return fail(err)
		}
	}
	arena, err := hazmat.NewArena(hazmat.Config{Relaxed: slices.Contains(o.Relax, harden.SecretPages)})
	if err != nil {
		return fail(err)
	}
	s, err := arena.New(hazmat.Token{}, 32, func(b []byte) error {
		marker(b)
		a.Target.ArenaAddr = uint64(uintptr(unsafe.Pointer(&b[0])))
		return nil
	})
	if err != nil {
		return fail(err)
	}
	marker(heap[:])
	a.Target.PID, a.Target.HeapAt = os.Getpid(), uint64(uintptr(unsafe.Pointer(heap)))
	if o.Fork {
		a.Forked = map[string]string{}
		s.Use(hazmat.Token{}, func(b []byte) error { a.Forked["arena"] = forked(b); return nil })
		a.Forked["heap"] = forked(heap[:])
	}
	if p != nil {
		r, err := p.Seal(arena, harden.OwnUID(os.Getuid(), 0))
		a.Measures, a.Level = r.Measures, string(harden.Level(r.Measures))
		if err != nil {
			return fail(err)
		}
	}
	a.Inside = map[string]string{}
	for name, run := range map[string]func(func()){"early ": early, "late ": thread(), "": func(f func()) { f() }} {
		run(func() {
			for k, v := range inside() {
				a.Inside[name+k] = v
			}
		})
	}
	work()
	return a
}

// thread starts a thread of its own and returns what runs a function on it.
func thread() func(func()) {
	todo, done := make(chan func()), make(chan bool)
	ready := make(chan bool)
	go func() {
		runtime.LockOSThread()
		close(ready)
		for f := range todo {
			f()
			done <- true
		}
	}()
	<-ready
	return func(f func()) { todo <- f; <-done }
}

// inside makes the calls that the filter is there for. Those that would change
// the control are made with arguments that fail otherwise.
func inside() map[string]string {
	got := map[string]string{}
	try := func(name string, call uintptr, args ...uintptr) {
		var x [6]uintptr
		copy(x[:], args)
		_, _, errno := syscall.Syscall6(call, x[0], x[1], x[2], x[3], x[4], x[5])
		got[name] = unix.ErrnoName(errno)
	}
	here := unix.AT_FDCWD
	root, bin := []byte("/\x00"), []byte("/nowhere\x00")
	addr := func(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }
	try("openat", unix.SYS_OPENAT, uintptr(here), addr(root), unix.O_RDONLY)
	try("socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0)
	try("connect", unix.SYS_CONNECT, ^uintptr(0))
	try("sendto", unix.SYS_SENDTO, ^uintptr(0))
	try("sendmsg", unix.SYS_SENDMSG, ^uintptr(0))
	try("execve", unix.SYS_EXECVE, addr(bin))
	try("ptrace", unix.SYS_PTRACE, unix.PTRACE_CONT, 1<<22)
	try("process_vm_readv", unix.SYS_PROCESS_VM_READV, 1<<23)
	try("process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, 1<<23)
	try("pidfd_getfd", unix.SYS_PIDFD_GETFD, ^uintptr(0))
	try("memfd_create", unix.SYS_MEMFD_CREATE)
	try("memfd_secret", unix.SYS_MEMFD_SECRET, 1<<20)
	try("io_uring_setup", unix.SYS_IO_URING_SETUP, 1)
	try("bpf", unix.SYS_BPF, 1<<20)
	try("userfaultfd", unix.SYS_USERFAULTFD, 1<<20)
	try("perf_event_open", unix.SYS_PERF_EVENT_OPEN)
	try("prctl", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 9)
	try("clone", unix.SYS_CLONE, unix.CLONE_THREAD)
	try("clone3", unix.SYS_CLONE3)
	try("kill another", unix.SYS_KILL, 1<<23, 0)
	try("tgkill another", unix.SYS_TGKILL, 1<<23, 1<<23, 0)
	try("mmap executable", unix.SYS_MMAP, 0, 0, unix.PROT_EXEC)
	try("mprotect", unix.SYS_MPROTECT, 1, 0, 0)
	try("dup", unix.SYS_DUP, ^uintptr(0))
	try("unshare", unix.SYS_UNSHARE, 1)
	try("x32 read", 0x40000000)
	return got
}

// work makes the runtime do what it does: threads, timers, collections, stack
// growth, randomness and deferred panics.
func work() {
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			defer func() { _ = recover() }()
			b := make([][]byte, 0, 64)
			for range 64 {
				b = append(b, make([]byte, 16<<10))
				runtime.Gosched()
			}
			rand.Read(b[0])
			time.Sleep(time.Millisecond)
			if i%8 == 0 {
				runtime.LockOSThread()
				runtime.GC()
				debug.FreeOSMemory()
				panic(fmt.Sprint(len(b)))
			}
		})
	}
	wg.Wait()
}

// forked says what a child made by fork alone finds at b. The child makes
// system calls only: nothing else works there.
func forked(b []byte) string {
	var fds [2]int
	if err := unix.Pipe(fds[:]); err != nil {
		return err.Error()
	}
	defer unix.Close(fds[0])
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old)
	at, n := uintptr(unsafe.Pointer(&b[0])), uintptr(len(b))
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		_, _, e := syscall.RawSyscall(unix.SYS_WRITE, uintptr(fds[1]), at, n)
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(e), 0, 0)
	}
	unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	unix.Close(fds[1])
	if errno != 0 {
		return errno.Error()
	}
	got := make([]byte, len(b))
	k, _ := unix.Read(fds[0], got)
	var status unix.WaitStatus
	unix.Wait4(int(pid), &status, 0, nil)
	if k == len(b) && string(got) == string(b) {
		return "leaked"
	}
	return unix.ErrnoName(syscall.Errno(status.ExitStatus()))
}

// install makes calls fail by a filter of its own, below that of the package
// under test.
func install(faults []Fault) {
	p := []bpf.Instruction{}
	for _, f := range faults {
		ret := bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(f.Errno)}
		check := []bpf.Instruction{ret}
		if f.Arg >= 0 {
			check = []bpf.Instruction{
				bpf.LoadAbsolute{Off: 16 + 8*uint32(f.Arg), Size: 4},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: f.Value, SkipTrue: 1},
				ret,
			}
		}
		p = append(p, bpf.LoadAbsolute{Off: 0, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: f.Call, SkipTrue: uint8(len(check))})
		p = append(p, check...)
	}
	raw, err := bpf.Assemble(append(p, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}))
	if err != nil {
		panic(err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		panic(errno)
	}
}

// attack tries what a process of the same uid can do to another.
func attack(t Target) map[string]string {
	want := make([]byte, 32)
	marker(want)
	got := map[string]string{}
	note := func(name string, b []byte, err error) {
		switch {
		case err != nil:
			got[name] = "denied"
		case strings.Contains(string(b), string(want)):
			got[name] = "leaked"
		default:
			got[name] = "nothing"
		}
	}
	for place, at := range map[string]uint64{"arena": t.ArenaAddr, "heap": t.HeapAt} {
		b := make([]byte, 32)
		local := []unix.Iovec{{Base: &b[0]}}
		local[0].SetLen(len(b))
		_, err := unix.ProcessVMReadv(t.PID, local, []unix.RemoteIovec{{Base: uintptr(at), Len: 32}}, 0)
		note("process_vm_readv "+place, b, err)

		b = make([]byte, 32)
		mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", t.PID))
		if err == nil {
			_, err = mem.ReadAt(b, int64(at))
			mem.Close()
		}
		note("mem "+place, b, err)

		b = make([]byte, 32)
		note("ptrace "+place, b, peek(t.PID, uintptr(at), b))
	}
	for _, name := range []string{"environ", "maps"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", t.PID, name))
		if err == nil && len(b) > 0 {
			b = want // there is something to see
		}
		note(name, b, err)
	}
	pidfd, err := unix.PidfdOpen(t.PID, 0)
	if err == nil {
		_, err = unix.PidfdGetfd(pidfd, 3, 0)
	}
	note("pidfd_getfd", want, err)
	_, err = os.Open(fmt.Sprintf("/proc/%d/root", t.PID))
	note("root", want, err)
	return got
}

func peek(pid int, at uintptr, b []byte) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceAttach(pid); err != nil {
		return err
	}
	defer unix.PtraceDetach(pid)
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil {
		return err
	}
	_, err := unix.PtracePeekData(pid, at, b)
	return err
}
