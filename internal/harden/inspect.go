package harden

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// The names of what Inspect adds about the process and the host.
const (
	NoCapabilities  = "no capabilities"
	CoreHandler     = "no core handler"
	PtraceScope     = "ptrace scope"
	NoSwap          = "no swap"
	Lockdown        = "kernel lockdown"
	UnprivilegedBPF = "no unprivileged bpf"
)

// Inspect reports the measures of another process, as far as /proc shows them
// to anyone, and those of the host. What cannot be seen is unavailable. What
// only the process itself can tell (its secret pages, Landlock) is not here.
func Inspect(pid int) []Measure {
	dir := "/proc/" + strconv.Itoa(pid)
	status, err := statusOf(dir)
	if err != nil {
		status = nil
	}
	return []Measure{
		judge(Seccomp, field(status, "Seccomp"), func(v string) bool { return v == "2" }),
		judge(NoNewPrivs, field(status, "NoNewPrivs"), func(v string) bool { return v == "1" }),
		judge(NoCapabilities, field(status, "CapEff"), func(v string) bool { return strings.Trim(v, "0") == "" }),
		inspectDumpable(dir, status),
		judge(NoCore, coreLimit(dir), func(v string) bool { return v == "0/0" }),
		inspectOwner(pid, status),
		judge(CoreHandler, file("/proc/sys/kernel/core_pattern"), func(v string) bool { return !strings.HasPrefix(v, "|") }),
		judge(PtraceScope, file("/proc/sys/kernel/yama/ptrace_scope"), func(v string) bool { return v != "0" }),
		judge(NoSwap, swaps, func(v string) bool { return v == "none" }),
		judge(Lockdown, file("/sys/kernel/security/lockdown"), func(v string) bool { return !strings.Contains(v, "[none]") }),
		judge(UnprivilegedBPF, file("/proc/sys/kernel/unprivileged_bpf_disabled"), func(v string) bool { return v != "0" }),
	}
}

// judge makes a measure of a value: on if good says so.
func judge(name string, read func() (string, error), good func(string) bool) Measure {
	v, err := read()
	switch {
	case err != nil:
		return Measure{Name: name, State: Unavailable, Detail: err.Error(), Gain: gain(name)}
	case good(v):
		return Measure{Name: name, State: On, Detail: v}
	}
	return Measure{Name: name, State: Off, Detail: v, Gain: gain(name)}
}

// statusOf reads the fields of /proc/PID/status.
func statusOf(dir string) (map[string]string, error) {
	text, err := os.ReadFile(dir + "/status")
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields, nil
}

func field(status map[string]string, name string) func() (string, error) {
	return func() (string, error) {
		v, ok := status[name]
		if !ok {
			return "", errors.New("the process does not show it")
		}
		return v, nil
	}
}

func file(path string) func() (string, error) {
	return func() (string, error) {
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return "", errors.New("not in this kernel")
		}
		return strings.TrimSpace(string(b)), err
	}
}

// effectiveUID returns the second of the four numbers of Uid.
func effectiveUID(status map[string]string) (int, error) {
	ids := strings.Fields(status["Uid"])
	if len(ids) != 4 {
		return 0, errors.New("the process does not show it")
	}
	return strconv.Atoi(ids[1])
}

// inspectDumpable goes by proc(5): what is not dumpable has its directory in
// /proc owned by root. Of a process of uid 0 that says nothing.
func inspectDumpable(dir string, status map[string]string) Measure {
	return judge(NotDumpable, func() (string, error) {
		uid, err := effectiveUID(status)
		if err != nil {
			return "", err
		}
		if uid == 0 {
			return "", errors.New("cannot be told of a process of uid 0")
		}
		info, err := os.Stat(dir + "/mem")
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("owned by uid %d", info.Sys().(*syscall.Stat_t).Uid), nil
	}, func(v string) bool { return v == "owned by uid 0" })
}

// coreLimit reads "soft/hard" of the core limit.
func coreLimit(dir string) func() (string, error) {
	return func() (string, error) {
		text, err := os.ReadFile(dir + "/limits")
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "Max core file size"); ok {
				if f := strings.Fields(rest); len(f) >= 2 {
					return f[0] + "/" + f[1], nil
				}
			}
		}
		return "", errors.New("the process does not show it")
	}
}

// inspectOwner looks for other processes under the uid.
func inspectOwner(pid int, status map[string]string) Measure {
	unseen := func(err error) Measure {
		return Measure{Name: OwnUser, State: Unavailable, Detail: err.Error(), Gain: gain(OwnUser)}
	}
	uid, err := effectiveUID(status)
	if err != nil {
		return unseen(err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return unseen(err)
	}
	var others []int
	for _, e := range entries {
		other, err := strconv.Atoi(e.Name())
		if err != nil || other == pid {
			continue
		}
		s, err := statusOf("/proc/" + e.Name())
		if err != nil {
			continue // ended meanwhile
		}
		if id, err := effectiveUID(s); err == nil {
			others = append(others, id)
		}
	}
	return OwnUID(uid, others...)
}

// swaps names the swap areas, or "none".
func swaps() (string, error) {
	text, err := file("/proc/swaps")()
	if err != nil {
		return "", err
	}
	var areas []string
	for i, line := range strings.Split(text, "\n") {
		if f := strings.Fields(line); i > 0 && len(f) > 0 {
			areas = append(areas, f[0])
		}
	}
	if len(areas) == 0 {
		return "none", nil
	}
	return strings.Join(areas, " "), nil
}
