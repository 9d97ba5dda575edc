package supervise_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"claviger.dev/internal/supervise"
	"github.com/google/go-cmp/cmp"
)

// withDevices gives a world a TPM and a token.
func withDevices(w *world) {
	report := w.cfg.KeydArgs
	w.cfg.Devices = []supervise.Device{
		{Name: "tpm", Program: "claviger-tpmd", Args: report},
		{Name: "p11", Program: "claviger-p11d", Args: report},
	}
}

// devices starts a supervisor with two devices, all of whose processes answer.
func devices(t *testing.T) (w *world, server, keyd, tpmd, p11d *child) {
	t.Helper()
	w, server, keyd = up(t, withDevices)
	tpmd, p11d = w.expect("claviger-tpmd"), w.expect("claviger-p11d")
	server.do("next:tpm", "next")
	server.do("next:p11", "next")
	server.answers("tpm", tpmd)
	server.answers("p11", p11d)
	return w, server, keyd, tpmd, p11d
}

// answers checks that a process answers the server over its own socket.
func (c *child) answers(name string, from *child) {
	c.t.Helper()
	c.do("echo:"+name+" hello", strconv.Itoa(from.PID)+" hello")
}

func TestKilledDeviceProcessIsReplacedAlone(t *testing.T) {
	t.Parallel()
	w, server, keyd, tpmd, p11d := devices(t)
	for range 3 {
		p11d.kill(syscall.SIGKILL)
		p11d = w.expect("claviger-p11d")
		server.do("next:p11", "next")
		server.answers("p11", p11d)
		server.echo(keyd)
		server.answers("tpm", tpmd)
	}
	tpmd.kill(syscall.SIGKILL)
	tpmd = w.expect("claviger-tpmd")
	server.do("next:tpm", "next")
	server.answers("tpm", tpmd)
	server.answers("p11", p11d)
	server.echo(keyd)
}

func TestHangingDeviceProcessIsReplacedWhenAsked(t *testing.T) {
	t.Parallel()
	w, server, keyd, tpmd, p11d := devices(t)
	tpmd.kill(syscall.SIGSTOP)
	server.do("next:tpm", "next") // only possible when the stopped one was ended
	server.answers("tpm", w.expect("claviger-tpmd"))
	server.answers("p11", p11d)
	server.echo(keyd)
	for tpmd.line() != "" {
	}
}

func TestReplacingTheKeyProcessLeavesDevices(t *testing.T) {
	t.Parallel()
	w, server, _, tpmd, p11d := devices(t)
	w.hup()
	keyd, _ := w.key()
	server.do("next", "next")
	server.echo(keyd)
	server.answers("tpm", tpmd)
	server.answers("p11", p11d)
}

func TestServerThatDiesGetsNewDeviceProcesses(t *testing.T) {
	t.Parallel()
	w, server, _, tpmd, p11d := devices(t)
	server.kill(syscall.SIGKILL)
	server = w.expect("claviger")
	tpmd.want("")
	p11d.want("")
	for name, program := range map[string]string{"tpm": "claviger-tpmd", "p11": "claviger-p11d"} {
		server.do("next:"+name, "next")
		server.answers(name, w.expect(program))
	}
}

// TestDeviceThatNeedsAPerson shows that a refused PIN is tried once for each
// SIGHUP, whatever else is restarted meanwhile.
func TestDeviceThatNeedsAPerson(t *testing.T) {
	t.Parallel()
	pin := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(pin, []byte("0000"), 0o400); err != nil {
		t.Fatal(err)
	}
	w, server, keyd := up(t, func(w *world) {
		withDevices(w)
		p11 := &w.cfg.Devices[1]
		p11.Args, p11.Credential = append(slices.Clone(p11.Args), "--credential", "--refuse"), pin
	})
	refused := w.expect("claviger-p11d")
	refused.want("PIN 0000")
	refused.want("refusing")
	refused.want("")
	server.kill(syscall.SIGKILL)
	server = w.expect("claviger")
	keyd.want("serving")
	server.do("next:tpm", "next")
	server.do("impatient:p11", "impatient context deadline exceeded")
	w.hup()
	w.expect("claviger-p11d").want("PIN 0000")
	server.do("next", "next")
	if n := len(w.started("claviger-p11d")); n != 0 {
		t.Errorf("%d more processes tried the PIN", n)
	}
}

func TestDeviceThatFailsIsTriedAgain(t *testing.T) {
	t.Parallel()
	w, server, keyd, tpmd, p11d := devices(t)
	for range 4 {
		fmt.Fprintln(tpmd.conn, "1") // such as a device that is not there
		tpmd = w.expect("claviger-tpmd")
		server.do("next:tpm", "next")
	}
	server.answers("tpm", tpmd)
	server.answers("p11", p11d)
	server.echo(keyd)
}

func TestDeviceProgramThatIsMissing(t *testing.T) {
	t.Parallel()
	w, server, keyd := up(t, func(w *world) {
		withDevices(w)
		if err := os.Remove(filepath.Join(w.cfg.BinDir, "claviger-p11d")); err != nil {
			t.Fatal(err)
		}
	})
	server.do("next:tpm", "next")
	server.answers("tpm", w.expect("claviger-tpmd"))
	server.do("impatient:p11", "impatient context deadline exceeded")
	server.echo(keyd)
}

// TestDevicesGetNothingElse checks descriptors, environment and uids.
func TestDevicesGetNothingElse(t *testing.T) {
	t.Parallel()
	uids := map[string]int{"claviger-tpmd": os.Getuid(), "claviger-p11d": os.Getuid()}
	w, server, keyd := up(t, func(w *world) {
		withDevices(w)
		if os.Geteuid() != 0 {
			return
		}
		for i := range w.cfg.Devices {
			d, uid := &w.cfg.Devices[i], uint32(61004+i)
			d.User, uids[d.Program] = supervise.User{UID: uid, GID: uid}, int(uid)
		}
	})
	others := keyd.Args[slices.Index(keyd.Args, "--others")+1]
	for _, program := range []string{"claviger-tpmd", "claviger-p11d"} {
		c := w.expect(program)
		if diff := cmp.Diff([]string{"0", "1", "2", "3"}, c.FDs); diff != "" {
			t.Errorf("descriptors of %s (-want +got):\n%s", program, diff)
		}
		if len(c.Env) != 0 {
			t.Errorf("%s has an environment: %q", program, c.Env)
		}
		if c.UID != uids[program] || c.GID != c.UID && os.Geteuid() == 0 {
			t.Errorf("%s runs as uid %d, gid %d", program, c.UID, c.GID)
		}
		if !strings.Contains(others+",", ","+strconv.Itoa(uids[program])+",") {
			t.Errorf("the key process is told of the uids %s, without that of %s", others, program)
		}
	}
	if diff := cmp.Diff([]string{"0", "1", "2", "3", "4", "5"}, server.FDs); diff != "" {
		t.Errorf("descriptors of the server (-want +got):\n%s", diff)
	}
}

// TestTokenBesideUnseal shows that what serves the token's slots lives as long
// as the claviger-unseal beside it, and is another each time.
func TestTokenBesideUnseal(t *testing.T) {
	t.Parallel()
	pin := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(pin, []byte("1234"), 0o400); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.cfg.Token = &supervise.Device{Program: "claviger-p11d", Args: append(slices.Clone(w.cfg.KeydArgs), "-unseal", "--credential"), Credential: pin}
	w.cfg.UnsealArgs = append(w.cfg.UnsealArgs, "--hold")
	w.start()
	server := w.expect("claviger")
	for range 2 {
		keyd, unseal := w.key()
		token := w.expect("claviger-p11d")
		token.want("PIN 1234")
		i := slices.Index(unseal.Args, "--token-fd")
		if i < 0 || unseal.Args[i+1] != "4" {
			t.Fatalf("claviger-unseal got %q", unseal.Args)
		}
		fmt.Fprintln(unseal.conn, "token 4") // is answered by the process at the other end
		unseal.want(strconv.Itoa(token.PID) + " open")
		fmt.Fprintln(unseal.conn, "go")
		token.want("")
		server.do("next", "next")
		server.echo(keyd)
		keyd.kill(syscall.SIGKILL)
	}
}
