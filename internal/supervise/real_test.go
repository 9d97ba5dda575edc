package supervise_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/supervise"
	"filippo.io/age"
)

// site is one machine: the real claviger-unseal and claviger-keyd under a
// supervisor, and a server that relays the frames to the test.
type site struct {
	*world
	client *custody.Client
	server *child
	unseal string // directory of the slots
	pin    string
}

// relay is the custody source of a site.
type relay struct {
	s    *site
	l    *net.UnixListener
	path string
}

func (r *relay) Next(ctx context.Context) (net.Conn, error) {
	fmt.Fprintln(r.s.server.conn, "relay "+r.path)
	stop := context.AfterFunc(ctx, func() { _ = r.l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return r.l.Accept()
}

// programs builds the real programs once.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir, "claviger.dev/cmd/claviger-keyd", "claviger.dev/cmd/claviger-unseal")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as they are shipped
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return dir
}

func newSite(t *testing.T, built string) *site {
	t.Helper()
	w := newWorld(t)
	for _, name := range []string{"claviger-keyd", "claviger-unseal"} {
		data, err := os.ReadFile(filepath.Join(built, name))
		if err == nil {
			err = os.Remove(filepath.Join(w.cfg.BinDir, name))
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(w.cfg.BinDir, name), data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	w.cfg.KeydArgs, w.cfg.UnsealArgs = nil, nil
	if os.Geteuid() == 0 {
		w.cfg.Users = supervise.Users{Server: supervise.User{UID: 61001, GID: 61001}, Keyd: supervise.User{UID: 61002, GID: 61002}, Unseal: supervise.User{UID: 61003, GID: 61003}}
	}
	if err := os.MkdirAll(w.cfg.DataDir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &site{world: w, unseal: filepath.Join(w.cfg.DataDir, "unseal")}
	if err := os.Mkdir(s.unseal, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(s.unseal, 61003, 61003); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// run runs claviger-unseal as its own uid and returns what it printed.
func (s *site) run(args ...string) string {
	s.t.Helper()
	args = append([]string{args[0], "--dir", s.unseal}, args[1:]...)
	cmd := exec.Command(filepath.Join(s.cfg.BinDir, "claviger-unseal"), args...)
	var talk bytes.Buffer
	cmd.Stderr = &talk
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 61003, Gid: 61003}}
	}
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("claviger-unseal %q: %v\n%s", args, err, talk.String())
	}
	return strings.TrimSpace(string(out))
}

// up starts the supervisor and a custody client.
func (s *site) up() {
	s.t.Helper()
	s.start()
	s.server = s.expect("claviger")
	path := filepath.Join(filepath.Dir(s.cfg.BinDir), "frames")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = l.Close() })
	if err := os.Chmod(path, 0o777); err != nil {
		s.t.Fatal(err)
	}
	s.client = custody.New(custody.Config{Source: &relay{s: s, l: l, path: path}, Timeout: 15 * time.Second})
	s.t.Cleanup(s.client.Close)
}

// sign signs until there is a key process again, at the latest after a while.
func (s *site) sign(k custodytest.Key) {
	s.t.Helper()
	sigs, err := s.client.Sign(s.t.Context(), k.Material, [][]byte{[]byte("m")}, false)
	if err != nil || !custodytest.Verify(k.Binding.Algorithm, k.Public, []byte("m"), sigs[0]) {
		s.t.Fatalf("sign: %v", err)
	}
}

func (s *site) pid() int {
	s.t.Helper()
	e, err := s.client.Evidence(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return e.PID
}

// replaced waits until another key process answers than the one with the pid.
func (s *site) replaced(old int) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); s.pid() == old; {
		if time.Now().After(deadline) {
			s.t.Fatal("the key process was not replaced")
		}
	}
}

func TestRealProcesses(t *testing.T) {
	t.Parallel()
	built := programs(t)
	first := newSite(t, built)
	first.pin = first.run("init", "--kind", "file")
	var ids []age.Identity
	held := []string{"--threshold", "2"}
	for _, name := range []string{"ann", "bob", "eve"} {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		ids, held = append(ids, id), append(held, name+"="+id.Recipient().String())
	}
	first.run(append([]string{"holders"}, held...)...)
	first.up()
	k := custodytest.Generate(t, first.client, claviger.ECDSAP256)
	first.sign(k)

	pid, killed := first.pid(), time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	first.sign(k)
	if took := time.Since(killed); took > 2*time.Second {
		t.Errorf("%v from the kill to a signature", took)
	} else {
		t.Logf("%v from the kill to a signature", took)
	}

	pid = first.pid()
	first.run("rotate")
	first.hup()
	first.replaced(pid)
	if who, err := first.client.Identity(t.Context()); err != nil || who.Generation != 2 {
		t.Fatalf("after the rotation: generation %d, %v", who.Generation, err)
	}
	first.sign(k)

	joins(t, built, first, k)
	restores(t, built, first, ids, k)
}

// joins has a second key process get the root key from the first.
func joins(t *testing.T, built string, first *site, k custodytest.Key) {
	t.Helper()
	second := newSite(t, built)
	second.cfg.Arrive = []string{"join", "--identity", first.pin, "--kind", "file"}
	second.up()
	joinKey, err := second.client.JoinKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.client.Admit(t.Context(), joinKey); err == nil {
		t.Fatal("wrapped the root key to a key that nobody admitted")
	}
	sum, pid := sha256.Sum256(joinKey), first.pid()
	first.run("admit", hex.EncodeToString(sum[:]))
	first.hup()
	first.replaced(pid)
	wrapped, err := first.client.Admit(t.Context(), joinKey)
	if err != nil {
		t.Fatal(err)
	}
	who, err := first.client.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := second.client.Join(t.Context(), wrapped, who.Public); err != nil {
		t.Fatal(err)
	}
	second.sign(k)
	if err := syscall.Kill(second.pid(), syscall.SIGKILL); err != nil { // and from its own slots file
		t.Fatal(err)
	}
	second.sign(k)
}

// restores makes recovery shares and brings the root key back from two.
func restores(t *testing.T, built string, first *site, ids []age.Identity, k custodytest.Key) {
	t.Helper()
	made, err := first.client.Shares(t.Context())
	if err != nil || len(made.Shares) != len(ids) {
		t.Fatalf("%d shares: %v", len(made.Shares), err)
	}
	var shares [][]byte
	for i, s := range made.Shares {
		r, err := age.Decrypt(bytes.NewReader(s.Encrypted), ids[i])
		if err != nil {
			t.Fatal(err)
		}
		share, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		shares = append(shares, share)
	}
	seal := func(c *custody.Client, shares ...[]byte) (id string, sealed [][]byte) {
		key, err := c.OneTimeKey(t.Context(), onetime.Share, frames.Binding{})
		if err != nil {
			t.Fatal(err)
		}
		for _, share := range shares {
			text, err := key.Seal(share)
			if err != nil {
				t.Fatal(err)
			}
			sealed = append(sealed, text)
		}
		return key.ID, sealed
	}
	id, sealed := seal(first.client, shares[1:]...)
	if ok, _, _, err := first.client.VerifyShares(t.Context(), id, sealed); err != nil || !ok {
		t.Fatalf("two shares restore: %v, %v", ok, err)
	}
	third := newSite(t, built)
	third.cfg.Arrive = []string{"restore", "--identity", first.pin, "--kind", "file"}
	third.up()
	id, sealed = seal(third.client, shares[:2]...)
	if err := third.client.Restore(t.Context(), id, sealed); err != nil {
		t.Fatal(err)
	}
	third.sign(k)
}
