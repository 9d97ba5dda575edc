package harden

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// TestProgram runs the filter itself on calls that a test process cannot make:
// those of another architecture would kill it.
func TestProgram(t *testing.T) {
	t.Parallel()
	const (
		allowed = unix.SECCOMP_RET_ALLOW
		denied  = unix.SECCOMP_RET_ERRNO | int(unix.EPERM)
		killed  = unix.SECCOMP_RET_KILL_PROCESS
		i386    = unix.AUDIT_ARCH_I386
		pid     = 1234
		threads = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM |
			unix.CLONE_THREAD | unix.CLONE_SETTLS // as the Go runtime does
	)
	for _, tt := range []struct {
		name string
		arch uint32
		call uint32
		arg  int
		val  uint32
		want int
	}{
		{"read", auditArch, unix.SYS_READ, 0, 0, allowed},
		{"read of another architecture", i386, unix.SYS_READ, 0, 0, killed},
		{"denied call of another architecture", i386, unix.SYS_SOCKET, 0, 0, killed},
		{"x32 read", auditArch, x32Bit | unix.SYS_READ, 0, 0, denied},
		{"x32 exec", auditArch, x32Bit | 520, 0, 0, denied},
		{"call -1", auditArch, ^uint32(0), 0, 0, denied},
		{"exec", auditArch, unix.SYS_EXECVE, 0, 0, denied},
		{"sendmsg", auditArch, unix.SYS_SENDMSG, 0, 0, denied},
		{"last of the list", auditArch, unix.SYS_EXIT_GROUP, 0, 0, allowed},
		{"thread", auditArch, unix.SYS_CLONE, 0, threads, allowed},
		{"fork", auditArch, unix.SYS_CLONE, 0, uint32(unix.SIGCHLD), denied},
		{"vfork", auditArch, unix.SYS_CLONE, 0, unix.CLONE_VM | unix.CLONE_VFORK, denied},
		{"thread in a namespace", auditArch, unix.SYS_CLONE, 0, threads | unix.CLONE_NEWUSER, denied},
		{"traced thread", auditArch, unix.SYS_CLONE, 0, threads | unix.CLONE_PTRACE, denied},
		{"own signal", auditArch, unix.SYS_TGKILL, 0, pid, allowed},
		{"signal to another", auditArch, unix.SYS_TGKILL, 0, pid + 1, denied},
		{"signal to all", auditArch, unix.SYS_KILL, 0, ^uint32(0), denied},
		{"memory", auditArch, unix.SYS_MMAP, 2, unix.PROT_READ | unix.PROT_WRITE, allowed},
		{"executable memory", auditArch, unix.SYS_MMAP, 2, unix.PROT_READ | unix.PROT_EXEC, denied},
		{"asking for dumpable", auditArch, unix.SYS_PRCTL, 0, unix.PR_GET_DUMPABLE, allowed},
		{"setting dumpable", auditArch, unix.SYS_PRCTL, 0, unix.PR_SET_DUMPABLE, denied},
		{"descriptor flags", auditArch, unix.SYS_FCNTL, 1, unix.F_GETFL, allowed},
		{"duplicate", auditArch, unix.SYS_FCNTL, 1, unix.F_DUPFD_CLOEXEC, denied},
	} {
		if got := verdict(t, tt.arch, tt.call, tt.arg, tt.val, pid); got != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, got, tt.want)
		}
	}
}

// verdict runs the filter. The virtual machine loads big-endian words, so the
// record is written that way.
func verdict(t *testing.T, arch, call uint32, arg int, val uint32, pid int) int {
	t.Helper()
	filter, err := program(auditArch, pid)
	if err != nil {
		t.Fatal(err)
	}
	var p []bpf.Instruction
	for _, f := range filter {
		p = append(p, bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}.Disassemble())
	}
	vm, err := bpf.NewVM(p)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offsetCall:], call)
	binary.BigEndian.PutUint32(data[offsetArch:], arch)
	binary.BigEndian.PutUint32(data[offsetArgs+8*arg:], val)
	got, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return got
}
