package proof_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"claviger.dev"
	"claviger.dev/internal/proof"
)

// TestMain is also the program at the other end of the socket: it connects and
// does what its arguments say.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "peer" {
		if err := peer(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// peer connects to the socket and says so on its standard output. Then it
// waits for its standard input to end: "wait" just so, "vanish" having removed
// its own file before, "exec" as another program, which is told from the end of
// the output.
func peer(socket, then string) error {
	if then == "vanish" {
		if err := os.Remove(os.Args[0]); err != nil {
			return err
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0) // inherited on exec
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return err
	}
	fmt.Println("connected")
	if then == "exec" {
		cat, err := exec.LookPath("cat")
		if err != nil {
			return err
		}
		null, err := unix.Open(os.DevNull, unix.O_WRONLY, 0)
		if err != nil {
			return err
		}
		out, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 10) // closed by the exec, and by nothing before
		if err != nil || out < 10 {
			return err
		}
		if err := unix.Dup2(null, 1); err != nil {
			return err
		}
		return unix.Exec(cat, []string{"cat"}, nil)
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// other is a running program at the other end.
type other struct {
	cmd  *exec.Cmd
	in   io.Closer
	out  *bufio.Reader
	peer *proof.Peer
}

// connect runs a program that connects, and reads who it is.
func connect(t *testing.T, program, then string, attr *syscall.SysProcAttr) other {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command(program, "peer", l.Addr().String(), then)
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	o := other{cmd: cmd, in: in, out: bufio.NewReader(out)}
	if line, err := o.out.ReadString('\n'); err != nil || line != "connected\n" {
		t.Fatalf("the program said %q, %v", line, err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if o.peer, err = proof.NewPeer(conn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.peer.Close)
	return o
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// base are the facts that the kernel recorded at connect.
func base() claviger.Facts {
	return claviger.Facts{Method: "peer", UID: os.Getuid(), GID: os.Getgid()}
}

func diffFacts(want, got claviger.Facts) string {
	return cmp.Diff(fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got))
}

func TestPeerFacts(t *testing.T) {
	t.Parallel()
	o := connect(t, self(t), "wait", nil)
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	want := base()
	want.PID, want.Executable, want.Cgroup = o.cmd.Process.Pid, self(t), proof.ParseCgroup(string(cgroup))
	want.Unit = proof.UnitOf(want.Cgroup)
	if diff := diffFacts(want, o.peer.Facts()); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

// TestPeerCopy is the control: the same program under another path is another
// executable.
func TestPeerCopy(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "copy")
	copyFile(t, path)
	if got := connect(t, path, "wait", nil).peer.Facts().Executable; got != path {
		t.Errorf("executable is %q, want %q", got, path)
	}
}

func TestPeerGone(t *testing.T) {
	t.Parallel()
	o := connect(t, self(t), "wait", nil)
	o.in.Close()
	if err := o.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if diff := diffFacts(base(), o.peer.Facts()); diff != "" {
		t.Errorf("facts of a process that is gone (-want +got):\n%s", diff)
	}
}

func TestPeerBecameAnotherProgram(t *testing.T) {
	t.Parallel()
	o := connect(t, self(t), "exec", nil)
	if rest, err := io.ReadAll(o.out); err != nil || len(rest) != 0 { // ends when the other program runs
		t.Fatalf("the program said %q, %v", rest, err)
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", o.cmd.Process.Pid))
	if err != nil || exe == self(t) {
		t.Fatalf("the process runs %q, %v; want another program", exe, err)
	}
	if got := o.peer.Facts().Executable; got == self(t) {
		t.Error("a connection that was taken over by an exec still counts as its opener's")
	}
}

func TestPeerReplacedProgram(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "program")
	copyFile(t, path)
	o := connect(t, path, "wait", nil)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := o.peer.Facts().Executable; got != path {
		t.Errorf("executable is %q while the opened program runs on, want %q", got, path)
	}
}

func TestPeerWithoutFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "program")
	copyFile(t, path)
	if got := connect(t, path, "vanish", nil).peer.Facts().Executable; got != "" {
		t.Errorf("executable is %q, want none: the path leads nowhere", got)
	}
}

// TestPeerInAnotherMountNamespace gives another program the path of a trusted
// one, in a mount namespace that only it sees.
func TestPeerInAnotherMountNamespace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	trusted, hostile := filepath.Join(dir, "trusted"), filepath.Join(dir, "hostile")
	copyFile(t, trusted)
	copyFile(t, hostile)
	script := filepath.Join(dir, "run.sh")
	syscall.ForkLock.RLock()
	err := os.WriteFile(script, []byte("#!/bin/sh\nset -e\nmount --bind "+hostile+" "+trusted+"\nexec "+trusted+" \"$@\"\n"), 0o700)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	o := connect(t, script, "wait", &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	})
	shown, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", o.cmd.Process.Pid))
	if err != nil || shown != trusted {
		t.Fatalf("the kernel shows %q, %v; the attempt needs it to show %q", shown, err, trusted)
	}
	if got := o.peer.Facts().Executable; got != "" {
		t.Errorf("executable is %q, want none", got)
	}
}

func TestPeerCloseThenFacts(t *testing.T) {
	t.Parallel()
	o := connect(t, self(t), "wait", nil)
	o.peer.Close()
	o.peer.Close()
	if diff := diffFacts(base(), o.peer.Facts()); diff != "" {
		t.Errorf("facts after close (-want +got):\n%s", diff)
	}
}

func TestPeerOfNoUnixSocket(t *testing.T) {
	t.Parallel()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "closed")
	c, err := net.FileConn(f)
	if err := errors.Join(err, f.Close(), unix.Close(fds[1])); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := proof.NewPeer(c.(*net.UnixConn)); err == nil {
		t.Error("a closed connection has a peer")
	}
}

func copyFile(t *testing.T, to string) {
	t.Helper()
	in, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	// A process that another test starts meanwhile would hold the file open for
	// writing, for the moment until it is another program: nobody could run it.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(to, in, 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestParseCgroup(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"0::/system.slice/a.service\n":        "/system.slice/a.service",
		"4:memory:/x\n0::/\n":                 "/",
		"1:name=systemd:/a\n":                 "",
		"":                                    "",
		"0::/a (deleted)\n":                   "",
		"0::/../../other\n":                   "",
		"0::relative\n":                       "",
		"0::/a/..b/c\n":                       "/a/..b/c",
		"7:cpu:/evil\n0::/good\n0::/second\n": "/good",
		"10:x:/\n0::/a.slice/b.scope\n":       "/a.slice/b.scope",
	} {
		if got := proof.ParseCgroup(file); got != want {
			t.Errorf("cgroup of %q is %q, want %q", file, got, want)
		}
	}
}

func TestUnitOf(t *testing.T) {
	t.Parallel()
	for cgroup, want := range map[string]string{
		"":                              "",
		"/":                             "",
		"/init.scope":                   "init.scope",
		"/system.slice/billing.service": "billing.service",
		"/system.slice/system-getty.slice/getty@tty1.service":                          "getty@tty1.service",
		"/system.slice/docker.service/billing.service":                                 "docker.service",
		"/user.slice/user-1000.slice/session-3.scope":                                  "session-3.scope",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/billing.service":      "user@1000.service/billing.service",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/a.scope/b.service":    "user@1000.service/a.scope",
		"/user.slice/user-1000.slice/user@1000.service/init.scope":                     "user@1000.service/init.scope",
		"/user.slice/user-1000.slice/user@1000.service":                                "user@1000.service",
		"/user.slice/user-1000.slice/user@1000.service/user@0.service/billing.service": "user@1000.service/user@0.service",
		"/kubepods/burstable/billing.service":                                          "",
	} {
		if got := proof.UnitOf(cgroup); got != want {
			t.Errorf("unit of %q is %q, want %q", cgroup, got, want)
		}
	}
}
