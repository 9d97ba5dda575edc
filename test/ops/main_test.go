// Package ops_test operates the real programs as docs/operate.md says: under
// uids of their own, with every kind of slot, through faults, with a second
// server and with recovery. It needs root, as the supervisor does.
package ops_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/p11d/p11dtest"
)

// bin has the programs as they are shipped; plain has a key process that was
// built without runtimesecret.
var bin, plain string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "test/ops starts processes under several uids: run it as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "ops")
	if err == nil {
		defer os.RemoveAll(dir)
		bin, plain = filepath.Join(dir, "bin"), filepath.Join(dir, "plain")
		err = build()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func build() error {
	for dir, erasure := range map[string]bool{bin: true, plain: false} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		keyd, err := custodytest.Build(dir, erasure)
		if err != nil {
			return err
		}
		if err := os.Rename(keyd, filepath.Join(dir, "claviger-keyd")); err != nil {
			return err
		}
	}
	if _, err := p11dtest.Build(bin); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-o", bin, "claviger.dev/cmd/claviger", "claviger.dev/cmd/claviger-unseal", "claviger.dev/cmd/claviger-tpmd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	for _, name := range []string{"claviger", "claviger-unseal"} {
		if err := os.Link(filepath.Join(bin, name), filepath.Join(plain, name)); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Dir(bin), 0o755)
}
