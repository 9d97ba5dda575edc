package harden

import (
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data, and the bit that marks an x32 call.
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16
	x32Bit     = 0x40000000
)

// rule allows one system call. Where check is not nil it decides by the
// arguments, and ends in a verdict on every path.
type rule struct {
	call  uint32
	check []bpf.Instruction
}

// rules are the calls that the Go runtime makes once it runs (without cgo),
// and read, write and close on descriptors that are open already. Busy ones
// come first. What is not here answers EPERM: opening, sockets, exec, fork,
// tracing, and every way to get a new descriptor but the poller's.
func rules(pid int) []rule {
	return []rule{
		{call: unix.SYS_READ},
		{call: unix.SYS_WRITE},
		{call: unix.SYS_FUTEX},
		{call: unix.SYS_EPOLL_PWAIT},
		{call: unix.SYS_NANOSLEEP},
		{call: unix.SYS_TGKILL, check: only(0, uint32(pid))}, // preemption
		{call: unix.SYS_RT_SIGRETURN},
		{call: unix.SYS_MADVISE},
		{call: unix.SYS_MMAP, check: without(2, unix.PROT_EXEC)},
		{call: unix.SYS_MUNMAP},
		{call: unix.SYS_SCHED_YIELD},
		{call: unix.SYS_CLOCK_GETTIME}, // where the vDSO has no clock
		{call: unix.SYS_GETRANDOM},
		{call: unix.SYS_EPOLL_CTL},
		{call: unix.SYS_EPOLL_CREATE1},
		{call: unix.SYS_EVENTFD2},
		{call: unix.SYS_FCNTL, check: only(1, unix.F_GETFL, unix.F_SETFL)},
		{call: unix.SYS_CLOSE},
		{call: unix.SYS_CLONE, check: masked(0, cloneBits, unix.CLONE_VM|unix.CLONE_THREAD)},
		{call: unix.SYS_RT_SIGPROCMASK},
		{call: unix.SYS_RT_SIGACTION},
		{call: unix.SYS_SIGALTSTACK},
		{call: unix.SYS_GETPID},
		{call: unix.SYS_GETTID},
		{call: unix.SYS_KILL, check: only(0, uint32(pid))}, // dying of a signal
		{call: unix.SYS_PRCTL, check: only(0, unix.PR_GET_DUMPABLE, unix.PR_GET_NO_NEW_PRIVS, unix.PR_GET_SECCOMP)},
		{call: unix.SYS_RESTART_SYSCALL},
		{call: unix.SYS_EXIT},
		{call: unix.SYS_EXIT_GROUP},
	}
}

// cloneBits must say "a thread of this process, in its namespaces, traced by
// nobody new".
const cloneBits = unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_PTRACE | unix.CLONE_UNTRACED |
	unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// argument loads the low half of an argument; the kernel takes no more of the
// ones tested here, and both architectures are little-endian.
func argument(i uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: offsetArgs + 8*i, Size: 4} }

// only allows the values listed of argument i.
func only(i uint32, values ...uint32) []bpf.Instruction {
	check := []bpf.Instruction{argument(i)}
	for _, v := range values {
		check = append(check, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: v, SkipTrue: 1}, allow())
	}
	return append(check, deny())
}

// without allows argument i if none of the bits is set.
func without(i, bits uint32) []bpf.Instruction { return masked(i, bits, 0) }

// masked allows argument i if its bits under mask are want.
func masked(i, mask, want uint32) []bpf.Instruction {
	return []bpf.Instruction{
		argument(i),
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: want, SkipTrue: 1},
		allow(),
		deny(),
	}
}

func allow() bpf.Instruction { return bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW} }

func deny() bpf.Instruction {
	return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
}

// program assembles the filter of a process for an architecture, a value of
// linux/audit.h. A call made in the way of another architecture kills the
// process, an x32 call is denied.
func program(arch uint32, pid int) ([]unix.SockFilter, error) {
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arch, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
		bpf.LoadAbsolute{Off: offsetCall, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32Bit, SkipTrue: 1},
		deny(),
	}
	for _, r := range rules(pid) {
		check := r.check
		if check == nil {
			check = []bpf.Instruction{allow()}
		}
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: r.call, SkipTrue: uint8(len(check))})
		p = append(p, check...)
	}
	raw, err := bpf.Assemble(append(p, deny()))
	if err != nil {
		return nil, err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, ins := range raw {
		filter[i] = unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}
	}
	return filter, nil
}
