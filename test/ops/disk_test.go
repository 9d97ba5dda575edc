package ops_test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

// TestSecondSupervisor starts another one on the same data directory.
func TestSecondSupervisor(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.run("init", "--config", s.config, "--kind", "file")
	s.up()
	k := s.key("prod/shop/receipts")
	caller, _ := s.caller("shop", "prod/shop/*")
	other := &site{t: t, dir: s.dir, data: s.data, config: s.config, bin: s.bin}
	other.launch(nil)
	other.wait(0, "error: .*another")
	other.wait(0, "hint: ")
	other.stop()
	check(t, sign(t.Context(), caller, k))
}

// small puts the data directory on a file system of its own.
func (s *site) small(size string) {
	s.t.Helper()
	check(s.t, os.Mkdir(s.data, 0o755))
	check(s.t, syscall.Mount("claviger-test", s.data, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=0755,size="+size))
	s.t.Cleanup(func() { check(s.t, syscall.Unmount(s.data, 0)) })
}

// until calls f until it is true.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(patience); !f(); <-tick.C {
		if time.Now().After(late) {
			t.Fatalf("%s: not in %v", what, patience)
		}
	}
}

// refuses checks that nothing can be used, and that the server says why.
func (s *site) refuses(c *client.Client, k *pb.Key) {
	s.t.Helper()
	until(s.t, "a refusal", func() bool { return sign(s.t.Context(), c, k) != nil })
	if err := sign(s.t.Context(), c, k); claviger.CodeOf(err) != claviger.Unavailable {
		s.t.Errorf("the use is answered with %v", err)
	}
	until(s.t, "readyz says no", func() bool { return s.ready() == http.StatusServiceUnavailable })
}

// works waits until everything does, by itself.
func (s *site) works(c *client.Client, k *pb.Key) {
	s.t.Helper()
	until(s.t, "a signature", func() bool { return sign(s.t.Context(), c, k) == nil })
	until(s.t, "readyz says yes", func() bool { return s.ready() == http.StatusOK })
	if _, err := s.op.RotateKey(s.t.Context(), &pb.RotateKeyRequest{Key: k.Name, Reason: "test"}); err != nil {
		s.t.Errorf("rotate: %v", err)
	}
	s.run("audit", "verify")
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.small("16m")
	s.run("init", "--config", s.config, "--kind", "file")
	s.up()
	k := s.key("prod/shop/receipts")
	caller, _ := s.caller("shop", "prod/shop/*")
	check(t, sign(t.Context(), caller, k))
	ballast := filepath.Join(s.data, "ballast")
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+ballast, "bs=4k").CombinedOutput(); !strings.Contains(string(out), "No space left") {
		t.Fatalf("the disk does not fill: %v\n%s", err, out)
	}
	s.refuses(caller, k)
	pid := s.pid("server")
	check(t, os.Remove(ballast))
	s.works(caller, k)
	if s.pid("server") != pid {
		t.Error("the server did not live through it")
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.small("32m")
	s.run("init", "--config", s.config, "--kind", "file")
	s.up()
	k := s.key("prod/shop/receipts")
	caller, _ := s.caller("shop", "prod/shop/*")
	check(t, sign(t.Context(), caller, k))
	s.stop() // a file that is open for writing keeps the kernel from it
	check(t, syscall.Mount("", s.data, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	mark := s.mark()
	s.launch(nil)
	s.wait(mark, "error: ")
	s.wait(mark, "the server exited")
	check(t, syscall.Mount("", s.data, "", syscall.MS_REMOUNT, "mode=0755,size=32m"))
	s.serving(mark)
	s.works(caller, k)
}
