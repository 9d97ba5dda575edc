package harden_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"claviger.dev"
	"claviger.dev/internal/harden"
)

// uid is that of victims and of their attackers.
const uid = 61001

// order, fault, target and answer are those of testdata/victim.
type order struct {
	Attack              *target
	Server, Plain, Fork bool
	Relax               []string
	Faults              []fault
}

type fault struct {
	Call  uint32
	Arg   int
	Value uint32
	Errno uint16
}

type target struct {
	PID               int
	ArenaAddr, HeapAt uint64
}

type answer struct {
	Target                target
	Err, Level            string
	Measures              []harden.Measure
	Inside, Forked, Leaks map[string]string
}

// binary is testdata/victim as claviger-keyd is built: without cgo, and so
// without the race detector, whose runtime makes other system calls.
var binary string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "harden")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "victim")
	build := exec.Command("go", "build", "-o", binary, "./testdata/victim")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s\n", out)
		return 1
	}
	return m.Run()
}

// victim is a running process of testdata/victim.
type victim struct {
	answer
	cmd *exec.Cmd
	io  *os.File
}

// start runs a victim, under uid where the test may choose, and waits for its
// answer.
func start(t *testing.T, o order) *victim {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "mine"), os.NewFile(uintptr(fds[1]), "theirs")
	stray, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer stray.Close()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{cmd: exec.Command(binary, string(text)), io: mine}
	var stderr strings.Builder
	v.cmd.Stderr = &stderr
	v.cmd.ExtraFiles = []*os.File{theirs, stray}
	v.cmd.Env = []string{"MARK=environment"}
	v.cmd.Dir = t.TempDir()
	if os.Getuid() == 0 {
		v.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		open(t, v.cmd.Dir)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(func() { v.cmd.Process.Kill(); v.cmd.Wait(); mine.Close() })
	mine.SetReadDeadline(time.Now().Add(time.Minute))
	if err := json.NewDecoder(mine).Decode(&v.answer); err != nil {
		v.cmd.Process.Kill()
		v.cmd.Wait()
		t.Fatalf("no answer: %v\n%s", err, stderr.String())
	}
	return v
}

// open gives dir to uid, and lets it pass through the parent.
func open(t *testing.T, dir string) {
	t.Helper()
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
}

func attempts(outcome string) map[string]string {
	all := map[string]string{}
	for _, name := range []string{"process_vm_readv arena", "process_vm_readv heap", "mem arena", "mem heap",
		"ptrace arena", "ptrace heap", "environ", "maps", "pidfd_getfd", "root"} {
		all[name] = outcome
	}
	return all
}

// TestAttacker attempts what a process of the same uid can do. The control
// shows that each attempt works on a process that is not hardened; its arena
// is of secret pages already, which such reads do not reach.
func TestAttacker(t *testing.T) {
	t.Parallel()
	control := attempts("leaked")
	for _, way := range []string{"process_vm_readv", "mem", "ptrace"} {
		control[way+" arena"] = "denied"
	}
	for _, tt := range []struct {
		name  string
		order order
		want  map[string]string
	}{
		{"control", order{Plain: true}, control},
		{"hardened", order{}, attempts("denied")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v := start(t, tt.order)
			if v.Err != "" {
				t.Fatal(v.Err)
			}
			a := start(t, order{Attack: &v.Target})
			if diff := cmp.Diff(tt.want, a.Leaks); diff != "" {
				t.Errorf("attempts (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRelaxedArena shows that the probe reads an arena that is not of secret
// pages, and that the report says so.
func TestRelaxedArena(t *testing.T) {
	t.Parallel()
	relax := []string{harden.SecretPages, harden.NotDumpable}
	v := start(t, order{Relax: relax, Faults: []fault{
		{unix.SYS_MEMFD_SECRET, -1, 0, uint16(unix.ENOSYS)},
		{unix.SYS_PRCTL, 0, unix.PR_SET_DUMPABLE, 0},
	}})
	if v.Err != "" {
		t.Fatal(v.Err)
	}
	a := start(t, order{Attack: &v.Target})
	if got := a.Leaks["mem arena"]; got != "leaked" {
		t.Errorf("reading a relaxed arena: %s, want leaked", got)
	}
	for _, name := range relax {
		if m := measure(t, v.Measures, name); m.State != harden.Off || m.Gain == "" || m.Detail == "" {
			t.Errorf("relaxed measure %+v, want off, with a gain and a detail", m)
		}
	}
	if v.Level != string(claviger.Exposed) {
		t.Errorf("level %s, want exposed", v.Level)
	}
}

// TestInside makes the denied calls from three threads: the first, one from
// before the filter and one from after it.
func TestInside(t *testing.T) {
	t.Parallel()
	hard, control := start(t, order{}), start(t, order{Plain: true})
	if hard.Err != "" || control.Err != "" {
		t.Fatal(hard.Err, control.Err)
	}
	if len(hard.Inside) < 60 || len(hard.Inside) != len(control.Inside) {
		t.Fatalf("%d and %d attempts", len(hard.Inside), len(control.Inside))
	}
	for name, errno := range hard.Inside {
		if errno != "EPERM" {
			t.Errorf("%s: %q, want EPERM", name, errno)
		}
	}
	// An unprivileged process is denied some of these by the kernel too.
	kernel := map[string]bool{"bpf": true, "userfaultfd": true, "unshare": true, "perf_event_open": true, "io_uring_setup": true}
	for name, errno := range control.Inside {
		_, call, found := strings.Cut(name, " ")
		if !found || strings.HasPrefix(name, "mmap") || strings.HasPrefix(name, "x32") {
			call = name
		}
		if errno == "EPERM" && !kernel[call] {
			t.Errorf("control: %s is denied without a filter; the probe shows nothing", name)
		}
	}
}

// TestThreads reads what the kernel says of each thread.
func TestThreads(t *testing.T) {
	t.Parallel()
	v := start(t, order{})
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", v.Target.PID))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread ended
		}
		if err != nil {
			t.Fatal(err)
		}
		seen++
		for _, want := range []string{"\nSeccomp:\t2\n", "\nNoNewPrivs:\t1\n"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s has no %q", path, want)
			}
		}
	}
	if seen < 3 {
		t.Errorf("%d threads, want 3 at least", seen)
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	v := start(t, order{})
	if v.Err != "" {
		t.Fatal(v.Err)
	}
	var names []string
	for _, m := range v.Measures {
		names = append(names, m.Name)
		lacking := m.Name == harden.SecretErasure || m.Name == harden.Landlock
		own := m.Name == harden.OwnUser && os.Getuid() != 0
		if m.State != harden.On && !(lacking && m.State == harden.Unavailable) && !own {
			t.Errorf("measure %+v", m)
		}
		if (m.State == harden.On) != (m.Gain == "") {
			t.Errorf("measure %+v: a gain belongs to what is not on", m)
		}
	}
	want := []string{harden.Descriptors, harden.NoEnvironment, harden.NoTracebacks, harden.NotDumpable, harden.NoCore,
		harden.ParentDeath, harden.SecretPages, harden.SecretErasure, harden.NoNewPrivs, harden.Landlock, harden.Seccomp, harden.OwnUser}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("measures (-want +got):\n%s", diff)
	}
	if got := harden.Level(v.Measures); got != claviger.Isolated {
		t.Errorf("level %s, want isolated", got)
	}
}

func TestLevel(t *testing.T) {
	t.Parallel()
	required := []string{harden.NotDumpable, harden.NoCore, harden.SecretPages, harden.NoNewPrivs, harden.Seccomp, harden.OwnUser}
	var all []harden.Measure
	for _, name := range required {
		all = append(all, harden.Measure{Name: name, State: harden.On})
	}
	if got := harden.Level(all); got != claviger.Isolated {
		t.Errorf("all on: %s", got)
	}
	for i, name := range required {
		without := append(append([]harden.Measure{}, all[:i]...), all[i+1:]...)
		if got := harden.Level(without); got != claviger.Exposed {
			t.Errorf("without %s: %s", name, got)
		}
		for _, state := range []harden.State{harden.Off, harden.Unavailable} {
			if got := harden.Level(append(without, harden.Measure{Name: name, State: state})); got != claviger.Exposed {
				t.Errorf("%s %s: %s", name, state, got)
			}
		}
	}
}

// TestFailClosed makes each step fail twice over: the kernel refuses, and the
// kernel says yes and does nothing. Both must be errors that name the step,
// and relaxed they must be reported as off.
func TestFailClosed(t *testing.T) {
	t.Parallel()
	raiseCore(t)
	for _, tt := range []struct {
		step  string
		fault fault
		also  []string // what falls with it
	}{
		{harden.Descriptors, fault{Call: unix.SYS_CLOSE_RANGE, Arg: -1}, nil},
		{harden.NoEnvironment, fault{Call: unix.SYS_PROCESS_VM_WRITEV, Arg: -1}, nil},
		{harden.NotDumpable, fault{Call: unix.SYS_PRCTL, Value: unix.PR_SET_DUMPABLE}, nil},
		{harden.NoCore, fault{Call: unix.SYS_PRLIMIT64, Arg: 1, Value: unix.RLIMIT_CORE}, nil},
		{harden.ParentDeath, fault{Call: unix.SYS_PRCTL, Value: unix.PR_SET_PDEATHSIG}, nil},
		{harden.SecretPages, fault{Call: unix.SYS_MEMFD_SECRET, Arg: -1}, nil},
		{harden.Landlock, fault{Call: unix.SYS_LANDLOCK_RESTRICT_SELF, Arg: -1}, nil},
		{harden.Seccomp, fault{Call: unix.SYS_SECCOMP, Arg: -1}, nil},
		{harden.NoNewPrivs, fault{Call: unix.SYS_PRCTL, Value: unix.PR_SET_NO_NEW_PRIVS}, []string{harden.Landlock}},
	} {
		for _, errno := range []syscall.Errno{unix.EPERM, 0} {
			if tt.step == harden.NoNewPrivs && errno == 0 {
				continue // the fault's own filter needs the flag: it is set already
			}
			t.Run(fmt.Sprintf("%s/%d", tt.step, errno), func(t *testing.T) {
				t.Parallel()
				f := tt.fault
				f.Errno = uint16(errno)
				v := start(t, order{Faults: []fault{f}})
				if tt.step == harden.SecretPages {
					if !strings.Contains(v.Err, "no secret memory") {
						t.Errorf("error %q, want no secret memory", v.Err)
					}
				} else if !strings.HasPrefix(v.Err, "unavailable: ") || !strings.Contains(v.Err, tt.step) {
					t.Errorf("error %q, want unavailable, naming %s", v.Err, tt.step)
				}
				v = start(t, order{Faults: []fault{f}, Relax: append([]string{tt.step}, tt.also...)})
				if v.Err != "" {
					t.Fatalf("relaxed: %s", v.Err)
				}
				if m := measure(t, v.Measures, tt.step); m.State != harden.Off || m.Gain == "" {
					t.Errorf("relaxed: %+v, want off and a gain", m)
				}
			})
		}
	}
}

// TestNoLandlock: a kernel without it is reported, and is no error.
func TestNoLandlock(t *testing.T) {
	t.Parallel()
	for _, errno := range []syscall.Errno{unix.ENOSYS, unix.EOPNOTSUPP} {
		v := start(t, order{Faults: []fault{{Call: unix.SYS_LANDLOCK_CREATE_RULESET, Arg: -1, Errno: uint16(errno)}}})
		if v.Err != "" {
			t.Fatal(v.Err)
		}
		if m := measure(t, v.Measures, harden.Landlock); m.State != harden.Unavailable || m.Gain == "" {
			t.Errorf("%v: %+v, want unavailable and a gain", errno, m)
		}
	}
	v := start(t, order{Faults: []fault{{Call: unix.SYS_LANDLOCK_CREATE_RULESET, Arg: -1, Errno: uint16(unix.EPERM)}}})
	if !strings.Contains(v.Err, harden.Landlock) {
		t.Errorf("landlock that refuses: %q, want an error", v.Err)
	}
}

// TestFork: a child made by fork alone has no arena; it has the heap, which
// shows that the probe reads.
func TestFork(t *testing.T) {
	t.Parallel()
	v := start(t, order{Plain: true, Fork: true})
	want := map[string]string{"arena": "EFAULT", "heap": "leaked"}
	if diff := cmp.Diff(want, v.Forked); diff != "" {
		t.Errorf("the child's view (-want +got):\n%s", diff)
	}
}

// TestCore crashes a victim of each kind.
func TestCore(t *testing.T) {
	t.Parallel()
	raiseCore(t)
	for _, tt := range []struct {
		name  string
		order order
		want  bool
	}{
		{"control", order{Plain: true}, true},
		{"hardened", order{}, false},
	} {
		v := start(t, tt.order)
		if _, err := io.WriteString(v.io, "abort"); err != nil {
			t.Fatal(err)
		}
		hung := time.AfterFunc(time.Minute, func() { v.cmd.Process.Kill() })
		v.cmd.Wait()
		hung.Stop()
		status := v.cmd.ProcessState.Sys().(syscall.WaitStatus)
		if status.Signal() != syscall.SIGABRT {
			t.Fatalf("%s: ended by %v", tt.name, v.cmd.ProcessState)
		}
		if status.CoreDump() != tt.want {
			t.Errorf("%s: core dumped is %v, want %v", tt.name, status.CoreDump(), tt.want)
		}
	}
}

// raiseCore lets processes that this one starts dump core.
func raiseCore(t *testing.T) {
	t.Helper()
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unlimited); err != nil {
		t.Fatalf("the test needs to raise the core limit: %v", err)
	}
}

func TestServer(t *testing.T) {
	t.Parallel()
	v := start(t, order{Server: true})
	if v.Err != "" {
		t.Fatal(v.Err)
	}
	a := start(t, order{Attack: &v.Target})
	if diff := cmp.Diff(attempts("denied"), a.Leaks); diff != "" {
		t.Errorf("attempts (-want +got):\n%s", diff)
	}
	for _, name := range []string{harden.NotDumpable, harden.NoCore, harden.NoNewPrivs} {
		if m := measure(t, v.Measures, name); m.State != harden.On {
			t.Errorf("measure %+v", m)
		}
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Fatal("the test starts processes under other uids and needs root")
	}
	hard, control := start(t, order{}), start(t, order{Plain: true})
	names := []string{harden.Seccomp, harden.NoNewPrivs, harden.NotDumpable, harden.NoCore, harden.NoCapabilities}
	got, plain := harden.Inspect(hard.Target.PID), harden.Inspect(control.Target.PID)
	for _, name := range names {
		if m := measure(t, got, name); m.State != harden.On {
			t.Errorf("hardened: %+v", m)
		}
		if m := measure(t, plain, name); m.State != harden.Off && name != harden.NoCapabilities && name != harden.NoCore {
			t.Errorf("control: %+v", m)
		}
	}
	if m := measure(t, got, harden.OwnUser); m.State != harden.Off {
		t.Errorf("two processes of one uid: %+v", m)
	}
	if m := measure(t, harden.Inspect(os.Getpid()), harden.NoCapabilities); m.State != harden.Off {
		t.Errorf("root: %+v", m)
	}
	for _, m := range harden.Inspect(1 << 30) {
		if m.State == "" || (m.State == harden.On) != (m.Gain == "") {
			t.Errorf("no such process: %+v", m)
		}
		if strings.Contains(strings.Join(append(names, harden.OwnUser), "|"), m.Name) && m.State != harden.Unavailable {
			t.Errorf("no such process: %+v", m)
		}
	}
}

func TestOwnUID(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		uid    int
		others []int
		want   harden.State
	}{
		{"alone", 5, []int{6, 7}, harden.On},
		{"shared", 5, []int{6, 5}, harden.Off},
		{"root", 0, nil, harden.Off},
	} {
		if got := harden.OwnUID(tt.uid, tt.others...).State; got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func measure(t *testing.T, all []harden.Measure, name string) harden.Measure {
	t.Helper()
	for _, m := range all {
		if m.Name == name {
			return m
		}
	}
	t.Fatalf("no measure %q in %+v", name, all)
	return harden.Measure{}
}
