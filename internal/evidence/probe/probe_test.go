package probe_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"claviger.dev"
	"claviger.dev/internal/evidence/probe"
	"claviger.dev/internal/evidence/probe/within"
	"claviger.dev/internal/hunt"
	"claviger.dev/pubkey"
)

// uid is that of key processes of the tests.
const uid = 61007

// programs are where keyd and victim are, built without cgo as they are shipped.
var programs string

// TestMain is also the process that Soft starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "probe-child" {
		if err := probe.Child(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if programs, err = os.MkdirTemp("", "probe"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(programs)
	if err := os.Chmod(programs, 0o755); err != nil {
		panic(err)
	}
	build := exec.Command("go", "build", "-o", programs, "./testdata/victim", "claviger.dev/cmd/claviger-keyd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s\n", out)
		return 1
	}
	return m.Run()
}

func child() []string { return []string{os.Args[0], "probe-child"} }

// keyProcess starts a program that stands in for the key process.
func keyProcess(t testing.TB, id int, name string, args ...string) int {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "mine"), os.NewFile(uintptr(fds[1]), "theirs")
	cmd := exec.Command(filepath.Join(programs, name), append(args, "-twin")...)
	cmd.ExtraFiles, cmd.Dir = []*os.File{theirs}, "/"
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(id), Gid: uint32(id)}}
	}
	if err := onThread(t, cmd.Start); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); mine.Close() })
	var r within.Report
	if err := json.NewDecoder(mine).Decode(&r); err != nil || r.Err != "" {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("%v %s %s", err, r.Err, stderr.String())
	}
	return cmd.Process.Pid
}

// onThread starts a process on a thread that stays until the test ends: a key
// process dies with the thread that started it, and the attempts end threads.
func onThread(t testing.TB, start func() error) error {
	started, over := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		started <- start()
		<-over
	}()
	t.Cleanup(func() { close(over) })
	return <-started
}

func soft(t testing.TB, c probe.Config) map[string]claviger.Attempt {
	t.Helper()
	c.Child = child()
	attempts, err := probe.Soft(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]claviger.Attempt{}
	for _, a := range attempts {
		if _, twice := all[a.Probe]; twice || a.Probe == "" || a.Tried == "" || a.Verdict == "" {
			t.Errorf("%+v", a)
		}
		all[a.Probe] = a
	}
	return all
}

// verdicts lists the probes that have a verdict.
func verdicts(all map[string]claviger.Attempt, want claviger.Verdict) (names []string) {
	for name, a := range all {
		if a.Verdict == want {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// TestHardened: nothing leaks from the key process as it is shipped, and every
// control leaks.
func TestHardened(t *testing.T) {
	t.Parallel()
	keyd := filepath.Join(programs, "claviger-keyd")
	for _, id := range []int{uid, 0} {
		t.Run(fmt.Sprint(id), func(t *testing.T) {
			all := soft(t, probe.Config{KeydPID: keyProcess(t, id, "claviger-keyd"), Keyd: keyd, AsRoot: true, Keys: []hunt.Key{newKey(t)}})
			want := []string(nil)
			if id == 0 && os.Getuid() == 0 {
				want = []string{"soft.capabilities"} // a key process of uid 0 has the powers of root
			}
			if got := verdicts(all, claviger.Leaked); !slices.Equal(got, want) {
				t.Errorf("leaked: %v", got)
			}
			if got := verdicts(all, claviger.Broken); len(got) > 0 {
				for _, name := range got {
					t.Errorf("broken: %+v", all[name])
				}
			}
			for _, name := range []string{
				"soft.proc-mem", "soft.vm-readv", "soft.ptrace-seize", "soft.ptrace-attach", "soft.pidfd-getfd", "soft.proc-maps", "soft.proc-environ",
				"soft.proc-fd", "soft.proc-map-files", "soft.proc-pagemap", "soft.proc-auxv", "soft.proc-syscall", "soft.seccomp", "soft.no-new-privileges",
				"soft.core-settings", "soft.fork", "soft.descriptors", "soft.landlock", "soft.secret-pages", "soft.within-open", "soft.within-socket", "soft.within-exec",
				"soft.within-ptrace", "soft.within-memfd_create", "soft.root-secret-mem", "soft.root-secret-readv", "soft.root-secret-map-files", "soft.root-descriptors", "soft.root-memory",
			} {
				if a := all[name]; a.Verdict != claviger.Held || a.Control == "" {
					t.Errorf("%s: %+v", name, a)
				}
			}
			if n := len(verdicts(all, claviger.NotAttempted)); n < 10 {
				t.Errorf("%d are named as not attempted", n)
			}
		})
	}
}

// TestMisconfigured builds each misconfiguration, and expects it to be caught.
func TestMisconfigured(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		fault, relax string
		root         bool
		want         []string // leaked
	}{
		{"dumpable", "not dumpable", false, []string{"soft.core-file", "soft.core-settings", "soft.pidfd-getfd", "soft.proc-auxv", "soft.proc-environ", "soft.proc-fd", "soft.proc-map-files",
			"soft.proc-maps", "soft.proc-mem", "soft.proc-pagemap", "soft.proc-syscall", "soft.ptrace-attach", "soft.ptrace-seize", "soft.vm-readv"}},
		{"descriptors", "descriptors", true, []string{"soft.descriptors", "soft.root-descriptors"}},
		{"landlock", "landlock", false, []string{"soft.landlock"}},
		{"seccomp", "seccomp", false, []string{"soft.within-socket", "soft.within-memfd_create", "soft.within-ptrace"}},
		{"secret pages", "secret pages", true, []string{"soft.secret-pages", "soft.root-secret-mem"}},
	} {
		t.Run(test.fault, func(t *testing.T) {
			pid := keyProcess(t, uid, "victim", "-fault", test.fault, "-relax", test.relax)
			all := soft(t, probe.Config{KeydPID: pid, Keyd: filepath.Join(programs, "victim"), AsRoot: test.root})
			got := verdicts(all, claviger.Leaked)
			for _, name := range test.want {
				// With a core limit of 0, which this one has, only a handler is given the dump.
				if (name == "soft.core-file" || name == "soft.core-settings") && !strings.HasPrefix(all["host.core-pattern"].Result, "|") {
					continue
				}
				if name == "soft.core-file" {
					name = "soft.core-pipe"
				}
				if !slices.Contains(got, name) {
					t.Errorf("%s is not caught: %+v", name, all[name])
				}
			}
			for _, name := range got {
				if !slices.Contains(test.want, name) && !(test.fault == "seccomp" && strings.HasPrefix(name, "soft.within-")) && name != "soft.core-pipe" {
					t.Errorf("false alarm: %+v", all[name])
				}
			}
			if broken := verdicts(all, claviger.Broken); len(broken) > 0 {
				t.Errorf("broken: %v", broken)
			}
		})
	}
}

// TestCoreHandler gives the memory of what crashes to a program, as most
// distributions do: it is given the weak process and a key process that is
// dumpable, in spite of its limit of 0, and never the key process as it is.
// The pattern is one for the whole machine, so nothing else of this package
// runs meanwhile, and it is put back.
func TestCoreHandler(t *testing.T) {
	const setting = "/proc/sys/kernel/core_pattern"
	before, err := os.ReadFile(setting)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "core")
	if err != nil {
		t.Fatal(err)
	}
	handler := filepath.Join(dir, "handler")
	script := "#!/bin/sh\n/usr/bin/wc -c >" + dir + "/$1.$2\n"
	if err := os.WriteFile(handler, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(setting, []byte("|"+handler+" %u %p"), 0); err != nil {
		t.Fatalf("this test sets the machine's core pattern for a moment: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(os.WriteFile(setting, before, 0), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	for _, test := range []struct {
		program string
		flags   []string
		want    claviger.Verdict
		dumps   int
	}{
		{"claviger-keyd", nil, claviger.Held, 1},
		{"victim", []string{"-fault", "dumpable", "-relax", "not dumpable"}, claviger.Leaked, 2},
	} {
		pid := keyProcess(t, uid, test.program, test.flags...)
		all := soft(t, probe.Config{KeydPID: pid, Keyd: filepath.Join(programs, test.program)})
		if a := all["soft.core-pipe"]; a.Verdict != test.want || a.Control != "the weak process: dumped" {
			t.Errorf("%s: %+v", test.program, a)
		}
		if a := all["soft.core-file"]; a.Verdict != claviger.NotAttempted {
			t.Errorf("%s: %+v", test.program, a)
		}
		dumps, err := filepath.Glob(filepath.Join(dir, fmt.Sprint(uid, ".*")))
		if err != nil || len(dumps) != test.dumps {
			t.Errorf("%s: the handler was given %v, %v; want %d", test.program, dumps, err, test.dumps)
		}
		for _, name := range dumps {
			if size, err := os.ReadFile(name); err != nil || len(size) < 5 { // 10 000 bytes and a newline
				t.Errorf("%s: a dump of %q bytes, %v", test.program, size, err)
			}
			_ = os.Remove(name)
		}
	}
}

// TestUnhardened: a process that protects itself in nothing leaks everywhere.
func TestUnhardened(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("cat")
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	in, err := cmd.StdinPipe()
	if err = errors.Join(err, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	all := soft(t, probe.Config{KeydPID: cmd.Process.Pid, ServerPID: cmd.Process.Pid})
	for _, name := range []string{"soft.proc-mem", "soft.vm-readv", "soft.ptrace-seize", "soft.ptrace-attach", "soft.pidfd-getfd", "soft.seccomp", "soft.no-new-privileges", "soft.server-proc-mem", "soft.server-pidfd-getfd"} {
		if all[name].Verdict != claviger.Leaked {
			t.Errorf("%+v", all[name])
		}
	}
	if a := all["soft.twin"]; a.Verdict != claviger.NotAttempted || a.Reason == "" {
		t.Errorf("%+v", a)
	}
}

func TestNoProcess(t *testing.T) {
	t.Parallel()
	if _, err := probe.Soft(t.Context(), probe.Config{KeydPID: 1 << 30, Child: child()}); !errors.Is(err, claviger.NotFound) {
		t.Error(err)
	}
	if _, err := probe.Soft(t.Context(), probe.Config{KeydPID: os.Getpid()}); !errors.Is(err, claviger.Invalid) {
		t.Error(err)
	}
	if err := probe.Child(strings.NewReader("no order"), &strings.Builder{}); err == nil {
		t.Error("accepted")
	}
}

func newKey(t testing.TB) hunt.Key {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := pubkey.FromStd(claviger.ECDSAP256, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return hunt.Key{Name: "test/probe/key", Public: public}
}

// BenchmarkSoft measures all attempts on a key process, without a hunt.
func BenchmarkSoft(b *testing.B) {
	pid := keyProcess(b, uid, "claviger-keyd")
	for b.Loop() {
		soft(b, probe.Config{KeydPID: pid, Keyd: filepath.Join(programs, "claviger-keyd")})
	}
}
