// Package tpmtest starts software TPMs (swtpm) for tests, ends them, copies
// them and certifies them.
//
// It is for tests alone; no program imports it.
package tpmtest

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TPM is a software TPM in a process of its own.
type TPM struct {
	State  string // directory of its state
	Socket string // at which it answers

	process *exec.Cmd
	output  bytes.Buffer
}

// Start starts a fresh TPM, which ends with the test.
func Start(t testing.TB) *TPM {
	t.Helper()
	s := create(t)
	s.Restart(t)
	return s
}

func create(t testing.TB) *TPM {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	s := &TPM{State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "s")}
	if err := os.Mkdir(s.State, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Kill()
		_ = os.RemoveAll(dir)
	})
	return s
}

// Device is what claviger-tpmd -device takes.
func (s *TPM) Device() string { return "unix:" + s.Socket }

// Kill takes the TPM away, as unplugging does.
func (s *TPM) Kill() {
	if s.process != nil {
		_ = s.process.Process.Kill()
		_ = s.process.Wait()
		s.process = nil
	}
}

// Restart brings the TPM back, with what it had persisted.
func (s *TPM) Restart(t testing.TB) {
	t.Helper()
	s.Kill()
	_ = os.Remove(s.Socket)
	s.process = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+s.State,
		"--server", "type=unixio,path="+s.Socket, "--flags", "not-need-init,startup-clear")
	s.process.Stdout, s.process.Stderr = &s.output, &s.output
	if err := s.process.Start(); err != nil {
		t.Fatalf("start swtpm: %v", err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		conn, err := net.Dial("unix", s.Socket)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("swtpm does not answer: %v\n%s", err, s.output.Bytes())
		}
	}
}

// Copy starts another TPM over a copy of the state, which is a clone. The
// original keeps running.
func (s *TPM) Copy(t testing.TB) *TPM {
	t.Helper()
	c := create(t)
	if err := os.CopyFS(filepath.Join(c.State, "copy"), os.DirFS(s.State)); err != nil {
		t.Fatal(err)
	}
	c.State = filepath.Join(c.State, "copy")
	c.Restart(t)
	return c
}

// Certified starts a fresh TPM whose endorsement key has a certificate of a
// test authority, and returns the authority that issued it, to be pinned: as of
// most TPMs, what stands above that does not come with the TPM.
func Certified(t testing.TB) (*TPM, *x509.Certificate) {
	t.Helper()
	s := create(t)
	ca := filepath.Join(filepath.Dir(s.State), "ca")
	if err := os.Mkdir(ca, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		path := filepath.Join(ca, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	localca := write("localca.conf", fmt.Sprintf("statedir = %[1]s\nsigningkey = %[1]s/signkey.pem\nissuercert = %[1]s/issuercert.pem\ncertserial = %[1]s/certserial\n", ca))
	options := write("localca.options", "--platform-manufacturer Test\n--platform-version 1\n--platform-model Test\n")
	tool, err := exec.LookPath("swtpm_localca")
	if err != nil {
		t.Fatal(err)
	}
	setup := write("setup.conf", fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\n", tool, localca, options))
	out, err := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", s.State, "--create-ek-cert", "--config", setup).CombinedOutput()
	if err != nil {
		t.Fatalf("swtpm_setup: %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(ca, "issuercert.pem"))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no certificate in %s", text)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	s.Restart(t)
	return s, root
}
