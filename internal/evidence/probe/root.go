package probe

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"claviger.dev"
)

// asRoot adds what only root can try without acting on the process: reads of the
// secret pages, what is open, and a hunt in everything else that can be read.
func (p *prober) asRoot(s subject, weak *standing, holdsKeys bool) {
	const all = "read secret pages, list descriptors and hunt for keys in memory, as root"
	switch {
	case !p.AsRoot:
		p.leave(s.prefix+"as-root", all+" ("+s.name+")", "only when asked for")
		return
	case os.Geteuid() != 0:
		p.leave(s.prefix+"as-root", all+" ("+s.name+")", "this is not root")
		return
	}
	if holdsKeys {
		p.secretPages(s, weak)
		got, err := openDescriptors(s.pid)
		control, controlErr := openDescriptors(weak.PID)
		if err = errors.Join(err, controlErr); err != nil {
			p.add(claviger.Attempt{Probe: "soft.root-descriptors", Tried: "list what the key process has open", Verdict: claviger.Broken, Reason: err.Error()})
		} else {
			got, control = strays(got), strays(control)
			p.try("soft.root-descriptors", "list what the key process has open beyond its sockets", list(got), len(got) > 0, "the weak process: "+list(control), len(control) > 0)
		}
	}
	symmetric := p.Symmetric
	if holdsKeys {
		symmetric = nil
	}
	p.memory(s.prefix+"root-memory", "hunt for the keys in all readable memory of "+s.name+" as root", s.pid, symmetric)
}

// strays are the descriptors that a key process should not have: it has those
// of the standard streams, and two sockets.
func strays(open []string) (out []string) {
	for _, o := range open {
		number, name, _ := strings.Cut(o, " ")
		if fd, err := strconv.Atoi(number); err != nil || fd > 4 || fd > 2 && !strings.HasPrefix(name, "socket:") {
			out = append(out, o)
		}
	}
	return out
}

// secretPages reads the pages of memfd_secret(2) in the ways that run no code in
// the process. The control reads the weak process's key in the same ways.
func (p *prober) secretPages(s subject, weak *standing) {
	at, err := secretMapping(s.pid)
	if err != nil || at == "" {
		a := claviger.Attempt{Probe: "soft.root-secret-mem", Tried: "read the secret pages of the key process", Verdict: claviger.Leaked, Result: "it has none: its keys are in ordinary memory, which root reads"}
		if err != nil {
			a.Verdict, a.Result, a.Reason = claviger.Broken, "", err.Error()
		}
		p.add(a)
		return
	}
	start, _, _ := strings.Cut(at, "-")
	address, err := strconv.ParseUint(start, 16, 64)
	if err != nil {
		p.add(claviger.Attempt{Probe: "soft.root-secret-mem", Tried: "read the secret pages of the key process", Verdict: claviger.Broken, Reason: err.Error()})
		return
	}
	dir := "/proc/" + strconv.Itoa(s.pid) + "/"
	// Only what is there is read: a page that answers at all has leaked.
	readMem := func(pid int, at uint64) error {
		f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/mem")
		if err != nil {
			return err
		}
		defer f.Close()
		b := make([]byte, 32)
		defer clear(b)
		_, err = f.ReadAt(b, int64(at))
		return err
	}
	readv := func(pid int, at uint64) error {
		b := make([]byte, 32)
		defer clear(b)
		local := []unix.Iovec{{Base: &b[0]}}
		local[0].SetLen(len(b))
		_, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
		return err
	}
	for _, way := range []struct {
		name, tried string
		read        func(int, uint64) error
	}{{"soft.root-secret-mem", "/proc/PID/mem", readMem}, {"soft.root-secret-readv", "process_vm_readv", readv}} {
		got, control := way.read(s.pid, address), way.read(weak.PID, weak.Address)
		p.try(way.name, "read the secret pages of the key process by "+way.tried+" as root", met(got), got == nil, "the weak process's key: "+met(control), control == nil)
	}
	got := openOnce(dir + "map_files/" + at)
	control := errors.New("it has no mapping")
	if own, err := firstMapping(weak.PID); err == nil {
		control = openOnce("/proc/" + strconv.Itoa(weak.PID) + "/map_files/" + own)
	}
	p.try("soft.root-secret-map-files", "open the secret pages of the key process by /proc/PID/map_files as root", met(got), got == nil, "a mapping of the weak process: "+met(control), control == nil)
}

func met(err error) string {
	if err == nil {
		return "allowed"
	}
	return "refused: " + errorName(err)
}

func openOnce(path string) error {
	f, err := os.Open(path)
	if err == nil {
		f.Close()
	}
	return err
}

// secretMapping is the first mapping of memfd_secret(2) pages, as the kernel
// writes its range; "" when there is none.
func secretMapping(pid int) (string, error) {
	return mappingOf(pid, func(fields []string) bool {
		return strings.HasPrefix(strings.Join(fields[5:], " "), "/secretmem")
	})
}

// firstMapping is the first mapping of a file.
func firstMapping(pid int) (string, error) {
	return mappingOf(pid, func(fields []string) bool { return len(fields) > 5 && fields[5][0] == '/' })
}

func mappingOf(pid int, is func(fields []string) bool) (string, error) {
	maps, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/maps")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(maps)) {
		if fields := strings.Fields(line); len(fields) >= 5 && is(fields) {
			from, to, _ := strings.Cut(fields[0], "-")
			return strings.TrimLeft(from, "0") + "-" + strings.TrimLeft(to, "0"), nil // as map_files has it
		}
	}
	return "", nil
}

// residual names what an active root can do and no software can close.
func residual() (out []claviger.Attempt) {
	for _, r := range []struct{ name, tried string }{
		{"soft.residual-ptrace", "inject registers by ptrace, and have the key process write its pages, as root"},
		{"soft.residual-mem-write", "overwrite code of the key process through /proc/PID/mem, as root"},
		{"soft.residual-uprobe", "set a uprobe in the key process that fetches the key, as root"},
		{"soft.residual-pidfd-getfd", "take the sockets of the key process by pidfd_getfd and use keys through them, as root"},
	} {
		out = append(out, claviger.Attempt{Probe: r.name, Tried: r.tried, Verdict: claviger.NotAttempted, Reason: "residual, software cannot close it"})
	}
	return out
}

func corePattern() string { return oneLine("/proc/sys/kernel/core_pattern") }

// yamaScope is kernel.yama.ptrace_scope, one digit; "" where there is no Yama.
func yamaScope() string { return oneLine("/proc/sys/kernel/yama/ptrace_scope") }

func oneLine(path string) string {
	text, _ := os.ReadFile(path)
	return strings.TrimSpace(string(text))
}

// host adds what the settings of the host mean. They are findings and no
// attempts: nothing is held or leaked by them alone.
func host() (out []claviger.Attempt) {
	or := func(value, none string) string {
		if value == "" {
			return none
		}
		return value
	}
	_, areas, _ := strings.Cut(oneLine("/proc/swaps"), "\n")
	tracing := "not mounted"
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		if openOnce(dir+"/uprobe_events") == nil {
			tracing = dir + " can be used by this user"
		} else if _, err := os.Stat(dir + "/uprobe_events"); err == nil || errors.Is(err, os.ErrPermission) {
			tracing = dir + " is there for root"
		}
	}
	for _, f := range []struct{ name, tried, result, reason string }{
		{"host.swap", "see whether memory can reach a disk", or(areas, "no swap"), "heap memory may be swapped; secret pages never are"},
		{"host.hibernation", "see whether memory can be written out whole", or(oneLine("/sys/power/disk"), "not in this kernel"), "the kernel refuses to hibernate while there are secret pages"},
		{"host.core-pattern", "see what becomes of a crash", or(corePattern(), "unknown"), "a handler, marked by a bar, is given the memory of every dumpable process whatever its limit"},
		{"host.yama", "see who may trace", or(yamaScope(), "no Yama"), "without it, or at 0, a process may trace the others of its user that are dumpable"},
		{"host.lockdown", "see whether root may change the kernel", or(oneLine("/sys/kernel/security/lockdown"), "not in this kernel"), "without it root reads kernel memory, and with it secret pages"},
		{"host.tracefs", "see who may set uprobes", tracing, "a uprobe reads registers and memory of any process: see soft.residual-uprobe"},
	} {
		out = append(out, claviger.Attempt{Probe: f.name, Tried: f.tried, Result: f.result, Verdict: claviger.NotAttempted, Reason: "a finding about the host: " + f.reason})
	}
	return out
}
