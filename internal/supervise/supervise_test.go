package supervise_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger.dev/internal/supervise"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// up starts a supervisor and waits until the server holds a key process.
func up(t *testing.T, change func(*world)) (w *world, server, keyd *child) {
	t.Helper()
	w = newWorld(t)
	if change != nil {
		change(w)
	}
	w.start()
	server = w.expect("claviger")
	keyd, _ = w.key()
	server.do("next", "next")
	server.echo(keyd)
	return w, server, keyd
}

func TestKilledKeyProcessIsReplaced(t *testing.T) {
	t.Parallel()
	w, server, keyd := up(t, nil)
	for round := range 3 {
		killed := time.Now()
		keyd.kill(syscall.SIGKILL)
		keyd, _ = w.key()
		server.do("next", "next")
		server.echo(keyd)
		if took := time.Since(killed); took > 2*time.Second {
			t.Errorf("round %d: %v from the kill to an answer", round, took)
		}
	}
}

func TestHangingKeyProcessIsReplacedWhenAsked(t *testing.T) {
	t.Parallel()
	w, server, keyd := up(t, nil)
	keyd.kill(syscall.SIGSTOP)
	server.do("next", "next") // only possible when the stopped one was ended
	fresh, _ := w.key()
	server.echo(fresh)
	for keyd.line() != "" {
	}
}

func TestReplacementIsHandedOverFirst(t *testing.T) {
	t.Parallel()
	w, server, old := up(t, nil)
	old.want("serving")
	w.hup()
	fresh, _ := w.key()
	fresh.want("serving")
	old.want("told to stop")
	old.want("")
	server.do("echo x", "closed")
	server.do("next", "next") // was there already: nobody is ended for it
	server.echo(fresh)
}

func TestReplacementThatFailsLeavesTheOldOne(t *testing.T) {
	t.Parallel()
	w, server, old := up(t, func(w *world) {
		r, pipe, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(pipe, "a passphrase for one start")
		_ = pipe.Close()
		t.Cleanup(func() { _ = r.Close() })
		w.cfg.PassphraseFrom = r
		w.cfg.UnsealArgs = append(w.cfg.UnsealArgs, "--ask")
	})
	w.hup()
	keyd, unseal := w.key()
	unseal.want("nobody")
	fmt.Fprintln(unseal.conn, "go")
	keyd.want("")
	server.echo(old)
}

func TestNeedsAPerson(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.UnsealArgs = append(w.cfg.UnsealArgs, "--ask")
	w.start()
	server := w.expect("claviger")
	for range 2 { // again at SIGHUP, and never without
		keyd, unseal := w.key()
		unseal.want("nobody")
		fmt.Fprintln(unseal.conn, "go")
		keyd.want("")
		server.do("impatient", "impatient context deadline exceeded")
		w.hup()
	}
	w.key()
}

func TestServerThatDiesIsRestartedWithACleanKeyProcess(t *testing.T) {
	t.Parallel()
	w, server, old := up(t, nil)
	server.kill(syscall.SIGKILL)
	fresh := w.expect("claviger")
	old.want("serving")
	old.want("")
	fresh.do("next", "next")
	fmt.Fprintln(fresh.conn, "echo hello")
	pid, _, _ := strings.Cut(fresh.line(), " ")
	for strconv.Itoa(w.expect("claviger-keyd").PID) != pid {
		// One may have been started for the dead server, and ended with it.
	}
}

func TestArriveUsesFramesBeforeTheRootKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.Arrive = []string{"join", "--identity", strings.Repeat("00", 32)}
	w.start()
	server := w.expect("claviger")
	keyd, unseal := w.key()
	if unseal.Args[0] != "join" {
		t.Fatalf("claviger-unseal got %q", unseal.Args)
	}
	server.do("next", "next")
	server.echo(keyd) // the line that the joining fake serves without a root key
	keyd.want("serving")
	unseal.want("")
	server.echo(keyd)
	keyd.kill(syscall.SIGKILL)
	keyd, unseal = w.key()
	if unseal.Args[0] != "open" {
		t.Fatalf("after it joined, claviger-unseal got %q", unseal.Args)
	}
	server.do("next", "next")
	server.echo(keyd)
}

func TestImpatientQuestionsEndNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.UnsealArgs = append(w.cfg.UnsealArgs, "--hold")
	w.start()
	server := w.expect("claviger")
	keyd, unseal := w.key()
	for range 3 {
		server.do("impatient", "impatient context deadline exceeded")
	}
	fmt.Fprintln(unseal.conn, "go")
	server.do("next", "next")
	server.echo(keyd)
}

func TestChildrenGetNothingElse(t *testing.T) {
	t.Parallel()
	var leak [2]int
	if err := unix.Pipe2(leak[:], 0); err != nil { // open to children, as from a careless parent
		t.Fatal(err)
	}
	defer unix.Close(leak[0])
	defer unix.Close(leak[1])
	credential := filepath.Join(t.TempDir(), "credential")
	if err := os.WriteFile(credential, []byte("x"), 0o400); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	self := supervise.User{}
	uids := map[string]int{"claviger": os.Getuid(), "claviger-keyd": os.Getuid(), "claviger-unseal": os.Getuid()}
	if os.Geteuid() == 0 {
		w.cfg.Users = supervise.Users{Server: supervise.User{UID: 61001, GID: 61001}, Keyd: supervise.User{UID: 61002, GID: 61002}, Unseal: supervise.User{UID: 61003, GID: 61003}}
		uids = map[string]int{"claviger": 61001, "claviger-keyd": 61002, "claviger-unseal": 61003}
	} else if w.cfg.Users.Server != self {
		t.Fatal("users without root")
	}
	w.cfg.Credential = credential
	w.start()
	server := w.expect("claviger")
	keyd, unseal := w.key()
	fds := map[string][]string{"claviger": {"0", "1", "2", "3"}, "claviger-keyd": {"0", "1", "2", "3", "4"}, "claviger-unseal": {"0", "1", "2", "3", "4"}}
	for _, c := range []*child{server, keyd, unseal} {
		if diff := cmp.Diff(fds[c.Role], c.FDs); diff != "" {
			t.Errorf("descriptors of %s (-want +got):\n%s", c.Role, diff)
		}
		if len(c.Env) != 0 {
			t.Errorf("%s has an environment: %q", c.Role, c.Env)
		}
		if c.UID != uids[c.Role] {
			t.Errorf("%s runs as uid %d, want %d", c.Role, c.UID, uids[c.Role])
		}
		if os.Geteuid() == 0 && (c.GID != c.UID || slices.ContainsFunc(c.Groups, func(g int) bool { return g != c.GID })) {
			t.Errorf("%s has gid %d and groups %v", c.Role, c.GID, c.Groups)
		}
	}
	if i := slices.Index(unseal.Args, "--credential-fd"); i < 0 || unseal.Args[i+1] != "4" {
		t.Errorf("claviger-unseal got %q", unseal.Args)
	}
	for name, uid := range map[string]int{"unseal": uids["claviger-unseal"], "server": uids["claviger"]} {
		info, err := os.Stat(filepath.Join(w.cfg.DataDir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Sys().(*syscall.Stat_t).Uid; int(got) != uid || info.Mode().Perm() != 0o700 {
			t.Errorf("%s belongs to %d with mode %v", name, got, info.Mode())
		}
	}
}

func TestGracefulStopIsServerFirst(t *testing.T) {
	t.Parallel()
	w, server, keyd := up(t, nil)
	keyd.want("serving")
	w.signals <- syscall.SIGTERM
	server.want("")
	if line := keyd.line(); line != "" && line != "told to stop" {
		t.Errorf("the key process said %q", line)
	}
	w.stop()
}

func TestServerThatDoesNotStopIsEnded(t *testing.T) {
	t.Parallel()
	w, server, _ := up(t, func(w *world) { w.cfg.Grace = 10 * time.Millisecond })
	server.kill(syscall.SIGSTOP)
	w.stop()
}

func TestChildrenDieWithTheSupervisor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cmd := exec.Command(filepath.Join(w.cfg.BinDir, "supervisor"), w.cfg.KeydArgs[0], w.cfg.BinDir, w.cfg.DataDir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	w.expect("supervisor")
	server := w.expect("claviger")
	keyd, _ := w.key()
	server.do("next", "next")
	server.echo(keyd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	keyd.want("serving")
	keyd.want("")
	server.want("")
}

func TestProgramsThatAreMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.BinDir = t.TempDir()
	w.start()
	w.hup() // still there, and retrying
	w.stop()
}

func TestUsers(t *testing.T) {
	t.Parallel()
	if _, err := supervise.LookupUser("no such user"); err == nil {
		t.Error("found a user that is not")
	}
	if u, err := supervise.LookupUser("root"); err != nil || u != (supervise.User{}) {
		t.Errorf("root is %v: %v", u, err)
	}
	if os.Geteuid() != 0 {
		return // users are ignored
	}
	w := newWorld(t)
	w.cfg.Users.Server = supervise.User{UID: 61001}
	if err := supervise.Run(t.Context(), w.cfg); err == nil {
		t.Error("started a server in root's group")
	}
}
