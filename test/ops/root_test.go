package ops_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/sqlite"
)

// terminal makes a terminal: our end, and the one that a program gets.
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	check(t, err)
	t.Cleanup(func() { ours.Close() })
	check(t, unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	check(t, err)
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	check(t, err)
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

const passphrase = "six words that nobody else knows"

// TestTypedPassphrase has a slow person at the terminal.
func TestTypedPassphrase(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	if _, talk, code := s.try(passphrase+"\n", "init", "--config", s.config, "--kind", "passphrase"); code != 0 {
		t.Fatalf("init: %s", talk)
	}
	ours, theirs := terminal(t)
	typed := func(text string) {
		t.Helper()
		_, err := ours.WriteString(text + "\n")
		check(t, err)
	}
	s.launch(theirs)
	s.wait(0, "Passphrase of the root key: ")
	s.wait(0, `msg="waiting for the key process"`) // longer than a server waits for a key process
	typed(passphrase)
	s.serving(0)
	k := s.key("prod/shop/receipts")
	caller, _ := s.caller("shop", "prod/shop/*")
	check(t, sign(t.Context(), caller, k))

	mark := s.mark()
	check(t, syscall.Kill(s.pid("keyd"), syscall.SIGKILL))
	s.wait(mark, "Passphrase of the root key: ")
	hurry, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if err := sign(hurry, caller, k); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("while nobody has typed the passphrase: %v", err)
	}
	if code := s.ready(); code != http.StatusServiceUnavailable {
		t.Errorf("readyz answers %d without a key process", code)
	}
	typed("six words that nobody knows")
	s.wait(mark, "a person is needed")
	mark = s.mark()
	check(t, s.cmd.Process.Signal(syscall.SIGHUP))
	s.wait(mark, "Passphrase of the root key: ")
	typed(passphrase)
	s.wait(mark, `msg="the key process serves"`)
	check(t, sign(t.Context(), caller, k))
}

// TestPipedPassphrase starts where there is no terminal.
func TestPipedPassphrase(t *testing.T) {
	t.Parallel()
	s := newSite(t, "\n[root]\nsource = \"passphrase\"\n")
	if _, talk, code := s.try(passphrase+"\n", "init", "--config", s.config, "--kind", "passphrase"); code != 0 {
		t.Fatalf("init: %s", talk)
	}
	theirs, ours, err := os.Pipe()
	check(t, err)
	defer theirs.Close()
	_, err = ours.WriteString(passphrase + "\n")
	check(t, err)
	check(t, ours.Close())
	s.launch(theirs)
	s.serving(0)
	if m := s.measure("keyd/root key slots"); m.State != "on" {
		t.Errorf("slots: %v", m)
	}
}

// swap puts another copy of the server's directory in place.
func (s *site) swap(from, to string) {
	s.t.Helper()
	server := filepath.Join(s.data, "server")
	check(s.t, os.Rename(server, filepath.Join(s.dir, to)))
	check(s.t, os.Rename(filepath.Join(s.dir, from), server))
}

// TestRootKeyChanges rotates the root key while serving, and shows that with
// the old generation the old blobs die.
func TestRootKeyChanges(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.run("init", "--config", s.config, "--kind", "file")
	s.up()
	k, gone := s.key("prod/shop/receipts"), s.key("prod/shop/old")
	caller, _ := s.caller("shop", "prod/shop/*")
	check(t, sign(t.Context(), caller, gone))
	s.stop()
	out, err := exec.Command("cp", "-a", filepath.Join(s.data, "server"), filepath.Join(s.dir, "old")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.up()
	for _, state := range []string{"deactivated", "destroyed"} {
		_, err := s.op.ChangeState(t.Context(), &pb.ChangeStateRequest{Key: gone.Name, Version: 1, State: state, Reason: "test"})
		check(t, err)
	}
	l := start(t, k, caller)
	l.through(5)
	s.root("rotate")
	s.hup()
	if m := s.measure("root/newest root key everywhere"); m.State != "off" {
		t.Errorf("before the rewrap: %v", m)
	}
	s.run("server", "rewrap")
	if m := s.measure("root/newest root key everywhere"); m.State != "on" {
		t.Errorf("after the rewrap: %v", m)
	}
	if info, err := s.op.Info(t.Context()); err != nil || info.RootGeneration != "2" {
		t.Errorf("generation %v, %v", info, err)
	}
	if _, failures := l.through(5); len(failures) > 0 {
		t.Errorf("the rotation shows: %v", failures)
	}
	l.stop()
	if err := sign(t.Context(), caller, gone); err == nil {
		t.Error("a destroyed version signs")
	}

	// The control: until the old generation is retired, an old copy still opens.
	s.stop()
	s.swap("old", "new")
	s.up()
	check(t, sign(t.Context(), caller, gone))
	s.stop()
	s.swap("new", "old")
	s.up()
	s.root("retire", "2")
	s.hup()
	check(t, sign(t.Context(), caller, k))
	s.stop()
	s.swap("old", "new")
	mark := s.mark()
	s.launch(nil)
	s.wait(mark, "error: the stored key is wrapped under a root generation that the key process does not have")
	s.stop()
	s.swap("new", "old")
	s.up()
	check(t, sign(t.Context(), caller, k))
}

// TestSlots changes the ways in while the server runs.
func TestSlots(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	secret := filepath.Join(s.dir, "secret")
	check(t, os.WriteFile(secret, []byte("0123456789abcdefghijklmnopqrstuvwxyz"), 0o400))
	check(t, os.Chown(secret, unsealUID, unsealUID))
	s.run("init", "--config", s.config, "--kind", "file")
	s.up()
	k := s.key("prod/shop/receipts")
	caller, _ := s.caller("shop", "prod/shop/*")
	s.root("add", "--kind", "credential", "--credential", secret)
	unseal := filepath.Join(s.data, "unseal")
	if _, talk, code := s.try(passphrase+"\n", "root", "add", "--dir", unseal, "--kind", "passphrase"); code != 0 {
		t.Fatalf("add: %s", talk)
	}
	if got := s.root("list"); !strings.Contains(got, "file (INSECURE)") || !strings.Contains(got, "passphrase") || !strings.Contains(got, "credential") {
		t.Errorf("slots:\n%s", got)
	}
	s.root("remove", "1")
	s.hup() // opened by the credential now, since nobody is there to type
	check(t, sign(t.Context(), caller, k))
	if m := s.measure("keyd/root key slots"); m.State != "on" {
		t.Errorf("without the file slot: %v", m)
	}
	s.root("remove", "3")
	if _, talk, code := s.try("", "root", "remove", "--dir", unseal, "2"); code == 0 || !strings.Contains(talk, "last") {
		t.Errorf("the last slot was removed: exit status %d, %s", code, talk)
	}
	if entries, err := filepath.Glob(filepath.Join(unseal, "*.key")); err != nil || len(entries) > 0 {
		t.Errorf("a removed file slot left %v", entries)
	}
	s.hup()
	check(t, sign(t.Context(), caller, k))
	// With another descriptor than standard input.
	f, err := os.Open(secret)
	check(t, err)
	defer f.Close()
	cmd := s.program("", "root", "rotate", "--dir", unseal, "--credential-fd", "3")
	cmd.ExtraFiles = []*os.File{f}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("rotate with the credential on a descriptor: %v\n%s", err, out)
	}
}

// TestDamagedBlob shows that one damaged blob keeps a rewrap from nothing else,
// and that it is said.
func TestDamagedBlob(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.run("init", "--config", s.config, "--kind", "file")
	s.up()
	damaged, k := s.key("prod/shop/damaged"), s.key("prod/shop/receipts")
	caller, _ := s.caller("shop", "prod/shop/*")
	check(t, sign(t.Context(), caller, k))
	s.stop()
	db, err := sqlite.Open(t.Context(), filepath.Join(s.data, "server", "claviger.db"))
	check(t, err)
	check(t, db.Update(t.Context(), func(tx *store.Tx) error {
		blob, generation, err := tx.Blob(claviger.ID(damaged.Id), 1)
		if err != nil {
			return err
		}
		blob[len(blob)-1] ^= 1
		return tx.PutBlob(claviger.ID(damaged.Id), 1, generation, blob)
	}))
	check(t, db.Close())
	s.up()
	s.root("rotate")
	s.hup()
	mark := s.mark()
	out, talk, status := s.try("", "server", "rewrap")
	if status != 2 || !regexp.MustCompile(`(?m)^damaged +1$`).MatchString(out) || !strings.Contains(talk, "server's log") {
		t.Errorf("exit status %d\n%s%s", status, out, talk)
	}
	s.wait(mark, damaged.Id)
	check(t, sign(t.Context(), caller, k))
	if m := s.measure("root/newest root key everywhere"); m.State != "off" {
		t.Errorf("while a blob is damaged: %v", m)
	}
	for _, state := range []string{"deactivated", "destroyed"} {
		_, err := s.op.ChangeState(t.Context(), &pb.ChangeStateRequest{Key: damaged.Name, Version: 1, State: state, Reason: "damaged"})
		check(t, err)
	}
	s.run("server", "rewrap")
	s.root("retire", "2")
	s.hup()
	check(t, sign(t.Context(), caller, k))
}
