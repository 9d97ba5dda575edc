// Package p11dtest starts SoftHSM tokens and real PKCS#11 device processes for
// tests.
//
// It is for tests alone; no program imports it.
package p11dtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"claviger.dev/internal/custody"
)

// The PINs of a token.
const (
	PIN        = "74391820"
	OfficerPIN = "50172963"
)

// Module is where Debian has SoftHSM.
const Module = "/usr/lib/softhsm/libsofthsm2.so"

// Build compiles claviger-p11d into dir and returns its path.
func Build(dir string) (string, error) {
	path := filepath.Join(dir, "claviger-p11d")
	cmd := exec.Command("go", "build", "-o", path, "claviger.dev/cmd/claviger-p11d")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build claviger-p11d: %w\n%s", err, out)
	}
	return path, errors.Join(os.Chmod(path, 0o755), os.Chmod(dir, 0o755))
}

// Token is a SoftHSM token in a directory of its own.
type Token struct {
	Dir     string // of everything
	Config  string // what SOFTHSM2_CONF has to be
	Label   string
	PINFile string
}

// NewToken initialises a token.
func NewToken(t testing.TB) *Token {
	t.Helper()
	dir := t.TempDir()
	k := &Token{Dir: dir, Config: filepath.Join(dir, "softhsm2.conf"), Label: "claviger test", PINFile: filepath.Join(dir, "pin")}
	if err := os.Mkdir(k.Files(), 0o700); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", k.Files())
	if err := os.WriteFile(k.Config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	k.SetPIN(t, PIN)
	k.Tool(t, "softhsm2-util", "--init-token", "--free", "--label", k.Label, "--so-pin", OfficerPIN, "--pin", PIN)
	return k
}

// Files is SoftHSM's token directory.
func (k *Token) Files() string { return filepath.Join(k.Dir, "tokens") }

// SetPIN replaces the PIN file.
func (k *Token) SetPIN(t testing.TB, pin string) {
	t.Helper()
	fresh := k.PINFile + ".new"
	if err := errors.Join(os.WriteFile(fresh, []byte(pin+"\n"), 0o600), os.Rename(fresh, k.PINFile)); err != nil {
		t.Fatal(err)
	}
}

// Tool runs a program on the token and returns its standard output.
func (k *Token) Tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+k.Config)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s%s", name, args, err, out, stderr.String())
	}
	return string(out)
}

// URI names the token; an empty module is SoftHSM's.
func (k *Token) URI(module string) string {
	if module == "" {
		module = Module
	}
	return "pkcs11:token=" + strings.ReplaceAll(k.Label, " ", "%20") + "?module-path=" + module + "&pin-source=file:" + k.PINFile
}

// Args are the flags that a device process needs.
func (k *Token) Args(module string) []string {
	return []string{"-env", "SOFTHSM2_CONF=" + k.Config, "-uri", k.URI(module)}
}

// Starter is a custody.Source that starts a device process each time it is
// asked, ending the one before.
type Starter struct {
	Path string
	Args []string
	Env  []string // of the process, nothing else

	mu      sync.Mutex
	process *exec.Cmd
	stderr  strings.Builder
	started int
}

// Next implements custody.Source.
func (s *Starter) Next(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.end()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	cmd := exec.Command(s.Path, s.Args...)
	cmd.Env = append([]string{}, s.Env...)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = &s.stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.process = cmd
	s.started++
	return net.FileConn(ours)
}

// PID returns the present process's id.
func (s *Starter) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.Process.Pid
}

// Started returns how many processes there have been.
func (s *Starter) Started() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started
}

// Close ends the present process and returns what all have said.
func (s *Starter) Close() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end()
	return s.stderr.String()
}

func (s *Starter) end() {
	if s.process != nil {
		_ = s.process.Process.Kill()
		_ = s.process.Wait()
		s.process = nil
	}
}

// Client returns a client of device processes with the flags.
func Client(t testing.TB, path string, args ...string) (*custody.Client, *Starter) {
	t.Helper()
	s := &Starter{Path: path, Args: args}
	c := custody.New(custody.Config{Source: s, Timeout: 5 * time.Second, Device: true})
	t.Cleanup(func() {
		if said := s.Close(); said != "" {
			t.Logf("the device processes said:\n%s", said)
		}
	})
	t.Cleanup(c.Close)
	return c, s
}
