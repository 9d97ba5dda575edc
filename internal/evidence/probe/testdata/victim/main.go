// Command victim is claviger-keyd -twin with faults: hardening that does not
// take hold, as a misconfiguration or a defect would leave it.
package main

import (
	"flag"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"claviger.dev/internal/keyd"
)

// fault makes a system call answer errno (0 is success without effect) where
// its first argument is value, or always where value is -1.
type fault struct {
	call  uint32
	value int64
	errno uint32
}

var faults = map[string]fault{
	"dumpable":     {unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0},
	"descriptors":  {unix.SYS_CLOSE_RANGE, -1, 0},
	"landlock":     {unix.SYS_LANDLOCK_CREATE_RULESET, -1, uint32(unix.EPERM)},
	"no landlock":  {unix.SYS_LANDLOCK_CREATE_RULESET, -1, uint32(unix.ENOSYS)},
	"seccomp":      {unix.SYS_SECCOMP, -1, 0},
	"secret pages": {unix.SYS_MEMFD_SECRET, -1, uint32(unix.ENOSYS)},
}

func main() {
	var o keyd.Options
	var names string
	flag.Func("relax", "", o.SetRelax)
	flag.IntVar(&o.ArenaSize, "arena", 0, "")
	flag.Bool("twin", false, "")
	flag.StringVar(&names, "fault", "", "")
	flag.Parse()
	if names == "descriptors" {
		fd, err := unix.MemfdCreate("left", 0)
		if err != nil {
			panic(err)
		}
		unix.Write(fd, make([]byte, 32))
	}
	install(names)
	if err := keyd.Twin(o); err != nil {
		panic(err)
	}
}

func install(names string) {
	p := []bpf.Instruction{}
	for name := range strings.SplitSeq(names, ",") {
		f, ok := faults[name]
		if !ok {
			continue
		}
		ret := bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | f.errno}
		check := []bpf.Instruction{ret}
		if f.value >= 0 {
			check = []bpf.Instruction{bpf.LoadAbsolute{Off: 16, Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(f.value), SkipTrue: 1}, ret}
		}
		p = append(p, bpf.LoadAbsolute{Off: 0, Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: f.call, SkipTrue: uint8(len(check))})
		p = append(p, check...)
	}
	if len(p) == 0 {
		return
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
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		os.Exit(9)
	}
}
