package harden

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	threads "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"claviger.dev"
	"claviger.dev/internal/hazmat"
)

// Options says what the key process needs and what may be missing.
type Options struct {
	// Keep lists the inherited descriptors that stay open, beside 0, 1 and 2.
	Keep []int
	// Relax names steps that may fail. For development only: what they leave
	// open is in the report and lowers the level of every key.
	Relax []string
}

// KeyProcess is a process on its way to being sealed.
type KeyProcess struct {
	relax    []string
	measures []Measure
}

// errLacking is the error of a step that this kernel or build has no means
// for, as opposed to one that was refused.
var errLacking = errors.New("not available here")

// Before is the first phase, to be called first thing in main: it closes
// unknown descriptors, clears the environment and makes the process unreadable
// by its own uid. Then the caller makes its arena, and seals. An error is
// claviger.Unavailable and names the step; the process must then end.
//
// The parent's death kills the process. To the kernel the parent is the thread
// that started it, so the supervisor must not let that thread end.
func Before(o Options) (*KeyProcess, error) {
	p := &KeyProcess{relax: o.Relax}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return p, p.apply(
		step{Descriptors, func() (string, error) { return closeOthers(o.Keep) }},
		step{NoEnvironment, clearEnvironment},
		step{NoTracebacks, noTracebacks},
		step{NotDumpable, notDumpable},
		step{NoCore, noCore},
		step{ParentDeath, dieWithParent},
	)
}

// Seal is the second phase: it confines the process to reading and writing
// the descriptors that it has. Only then may keys come in. The caller's own
// measures, such as OwnUID, join the report. An error is claviger.Unavailable
// and names the step; the process must then end.
//
// A kernel without Landlock is not an error, since the system call filter
// denies by itself what Landlock would; the report says unavailable. Landlock
// that is there and refuses is an error. Every other step must hold.
func (p *KeyProcess) Seal(arena *hazmat.Arena, own ...Measure) (Report, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.apply(
		step{SecretPages, func() (string, error) { return secretPages(arena) }},
		step{SecretErasure, secretErasure},
		step{NoNewPrivs, noNewPrivs},
		step{Landlock, restrictLandlock},
		step{Seccomp, filterCalls},
	)
	return Report{Measures: slices.Concat(p.measures, own)}, err
}

// Server hardens a process that holds no keys: not dumpable, no core, no new
// privileges for this and every later thread it starts, umask 077. It is to be
// called first thing in main.
func Server() (Report, error) {
	p := &KeyProcess{}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Umask(0o077)
	err := p.apply(
		step{NotDumpable, notDumpable},
		step{NoCore, noCore},
		step{NoNewPrivs, noNewPrivs},
	)
	return Report{Measures: p.measures}, err
}

// step is one step of hardening: run does it, reads it back and says what it
// saw.
type step struct {
	name string
	run  func() (detail string, err error)
}

// apply runs steps in order and records a measure for each, until one fails
// that is neither relaxed nor lacking.
func (p *KeyProcess) apply(steps ...step) error {
	for _, s := range steps {
		detail, err := s.run()
		m := Measure{Name: s.name, State: On, Detail: detail}
		if err != nil {
			m = Measure{Name: s.name, State: Off, Detail: err.Error(), Gain: gain(s.name)}
		}
		if errors.Is(err, errLacking) {
			m.State = Unavailable
		}
		p.measures = append(p.measures, m)
		if m.State == Off && !slices.Contains(p.relax, s.name) {
			return claviger.Errorf(claviger.Unavailable, "the process cannot be hardened: "+s.name,
				"see docs/hardening.md for what the step needs").Wrap(err)
		}
	}
	return nil
}

// closeOthers closes every descriptor but 0, 1, 2, the kept ones and those of
// the runtime's own poller.
func closeOthers(keep []int) (string, error) {
	// The runtime holds a cgroup file open and reads it now and then, unless
	// the number of processors was set by hand.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	open, err := descriptors(keep)
	if err != nil {
		return "", err
	}
	for _, fd := range open {
		if err := unix.CloseRange(uint(fd), uint(fd), 0); err != nil {
			return "", fmt.Errorf("close descriptor %d: %w", fd, err)
		}
	}
	if open, err = descriptors(keep); err != nil {
		return "", err
	}
	if len(open) > 0 {
		return "", fmt.Errorf("descriptors %v stay open", open)
	}
	return fmt.Sprintf("only 0, 1, 2 and %v", keep), nil
}

// descriptors lists the open descriptors that are not to be kept.
func descriptors(keep []int) ([]int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("list descriptors: %w", err)
	}
	var unknown []int
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("list descriptors: %w", err)
		}
		if fd <= 2 || slices.Contains(keep, fd) {
			continue
		}
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if errors.Is(err, os.ErrNotExist) {
			continue // the listing's own
		}
		if link != "anon_inode:[eventpoll]" && link != "anon_inode:[eventfd]" {
			unknown = append(unknown, fd)
		}
	}
	return unknown, nil
}

// clearEnvironment empties the environment and zeroes the block that the
// kernel shows as /proc/PID/environ.
func clearEnvironment() (string, error) {
	os.Clearenv()
	start, size, err := environmentBlock()
	if err != nil {
		return "", err
	}
	if size > 0 {
		buf := make([]byte, size)
		local := []unix.Iovec{{Base: &buf[0]}}
		local[0].SetLen(size)
		remote := []unix.RemoteIovec{{Base: start, Len: size}}
		if _, err := unix.ProcessVMWritev(os.Getpid(), local, remote, 0); err != nil {
			return "", fmt.Errorf("zero the environment block: %w", err)
		}
		if _, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0); err != nil {
			return "", fmt.Errorf("read the environment block: %w", err)
		}
		if slices.ContainsFunc(buf, func(b byte) bool { return b != 0 }) {
			return "", errors.New("the environment block is not zero")
		}
	}
	if n := len(os.Environ()); n > 0 {
		return "", fmt.Errorf("%d variables are left", n)
	}
	return fmt.Sprintf("empty; %d bytes zeroed", size), nil
}

// environmentBlock returns where the kernel put the environment at exec:
// fields 50 and 51 of /proc/PID/stat, see proc_pid_stat(5).
func environmentBlock() (start uintptr, size int, err error) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("find the environment block: %w", err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // the first is field 3
	if len(fields) < 49 {
		return 0, 0, fmt.Errorf("find the environment block: %d fields", len(fields))
	}
	from, err1 := strconv.ParseUint(fields[47], 10, 64)
	to, err2 := strconv.ParseUint(fields[48], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, fmt.Errorf("find the environment block: %w", err)
	}
	if to < from || from == 0 || to-from > 16<<20 {
		return 0, 0, fmt.Errorf("find the environment block: %#x to %#x", from, to)
	}
	return uintptr(from), int(to - from), nil
}

// noTracebacks cannot be read back: the runtime has no question for it.
func noTracebacks() (string, error) {
	debug.SetTraceback("none")
	return "set", nil
}

func notDumpable() (string, error) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return "", fmt.Errorf("set not dumpable: %w", err)
	}
	return readBack("PR_GET_DUMPABLE", unix.PR_GET_DUMPABLE, 0)
}

// readBack asks prctl for a state and insists on an answer.
func readBack(name string, option, want int) (string, error) {
	got, err := unix.PrctlRetInt(option, 0, 0, 0, 0)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if got != want {
		return "", fmt.Errorf("%s is %d, not %d", name, got, want)
	}
	return fmt.Sprintf("%s is %d", name, got), nil
}

func noCore() (string, error) {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return "", fmt.Errorf("set core limit: %w", err)
	}
	got := unix.Rlimit{Cur: 1, Max: 1}
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &got); err != nil {
		return "", fmt.Errorf("get core limit: %w", err)
	}
	if got != (unix.Rlimit{}) {
		return "", fmt.Errorf("core limit is %d/%d", got.Cur, got.Max)
	}
	return "RLIMIT_CORE is 0/0", nil
}

func dieWithParent() (string, error) {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return "", fmt.Errorf("set parent death signal: %w", err)
	}
	var got int32
	if err := unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&got)), 0, 0, 0); err != nil {
		return "", fmt.Errorf("get parent death signal: %w", err)
	}
	if got != int32(unix.SIGKILL) {
		return "", fmt.Errorf("parent death signal is %d", got)
	}
	return "SIGKILL", nil
}

func secretPages(arena *hazmat.Arena) (string, error) {
	if arena == nil {
		return "", errors.New("no arena")
	}
	if ok, why := arena.SecretPages(); !ok {
		return "", errors.New(why)
	}
	total, _ := arena.Size()
	return fmt.Sprintf("%d KiB of memfd_secret memory", total>>10), nil
}

func secretErasure() (string, error) {
	if !hazmat.SecretErasure {
		return "", fmt.Errorf("built without GOEXPERIMENT=runtimesecret: %w", errLacking)
	}
	return "built with runtime/secret", nil
}

// noNewPrivs reaches every thread: the kernel keeps the flag for each.
func noNewPrivs() (string, error) {
	if err := threads.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return "", fmt.Errorf("set no new privileges: %w", err)
	}
	return readBack("PR_GET_NO_NEW_PRIVS", unix.PR_GET_NO_NEW_PRIVS, 1)
}

// OwnUID is the measure of whether this process has a uid to itself: uid is
// its own, others are those of the server and of the unsealer. Uid 0 is never
// its own.
func OwnUID(uid int, others ...int) Measure {
	switch {
	case uid == 0:
		return Measure{Name: OwnUser, State: Off, Detail: "runs as uid 0", Gain: gain(OwnUser)}
	case slices.Contains(others, uid):
		return Measure{Name: OwnUser, State: Off, Detail: fmt.Sprintf("shares uid %d", uid), Gain: gain(OwnUser)}
	}
	return Measure{Name: OwnUser, State: On, Detail: fmt.Sprintf("uid %d", uid)}
}
