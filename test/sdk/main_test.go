// Package sdk_test runs real applications whose secret is in custody, with the
// adapters of sdk/. It needs root: the applications have a uid of their own, and
// their memory is searched.
package sdk_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"claviger.dev/internal/custody/custodytest"
)

// application is the uid under which applications run: no operator, and nobody
// whose processes share anything with the server's.
const application = 61234

// bin has the programs.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "test/sdk starts applications under their own uid and searches their memory: run it as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "sdk")
	if err == nil {
		defer os.RemoveAll(dir)
		bin = dir
		err = build()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func build() error {
	keyd, err := custodytest.Build(bin, true)
	if err != nil {
		return err
	}
	if err := os.Rename(keyd, filepath.Join(bin, "claviger-keyd")); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-o", bin, "claviger.dev/cmd/claviger", "claviger.dev/cmd/claviger-unseal", "claviger.dev/cmd/claviger-tpmd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// custody is a server, which may be stopped and started again.
type custody struct {
	t      testing.TB
	dir    string
	socket string
	server *exec.Cmd
}

// newCustody starts a server and lets the applications' uid use its machine keys.
func newCustody(t testing.TB) *custody {
	t.Helper()
	dir := openDir(t)
	c := &custody{t: t, dir: dir, socket: filepath.Join(dir, "run", "claviger.sock")}
	c.start()
	t.Cleanup(c.stop)
	user := fmt.Sprintf("uid:%d", application)
	c.run("", "principal", "create", user, "--environment", "dev")
	c.run("", "grant", "create", user, "dev/shop/*", "protect,unprotect")
	return c
}

// openDir returns a directory that every uid reaches.
func openDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	check(t, os.Chmod(filepath.Dir(dir), 0o755))
	return dir
}

func (c *custody) start() {
	c.t.Helper()
	c.server = exec.Command(filepath.Join(bin, "claviger"), "dev", "--dir", c.dir, "--listen", "", "--quiet")
	c.server.Stderr = os.Stderr
	out, err := c.server.StdoutPipe()
	check(c.t, err)
	check(c.t, c.server.Start())
	if _, err := out.Read(make([]byte, 1)); err != nil { // it says how to use it once it is ready
		c.t.Fatalf("the server did not start: %v", err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
}

func (c *custody) stop() {
	if c.server != nil {
		_ = c.server.Process.Signal(syscall.SIGTERM)
		_ = c.server.Wait()
		c.server = nil
	}
}

// outage stops custody, and starts it again after during. The application has to
// outlive it, and to have written what was the matter.
func (c *custody) outage(p *process, says string, during func()) {
	c.t.Helper()
	c.stop()
	during()
	if !p.log.says(says) {
		c.t.Errorf("the log does not say %q:\n%s", says, tail(p.log.String()))
	}
	c.start()
	if err := p.cmd.Process.Signal(syscall.Signal(0)); err != nil {
		c.t.Errorf("the application did not outlive custody's absence: %v", err)
	}
}

// destroy ends the first version of a key that was rotated. The server refuses that
// until it has written down, as it does each second, that whoever used the version
// was seen with the newest.
func (c *custody) destroy(key string) {
	c.t.Helper()
	late, again := time.After(30*time.Second), time.NewTicker(100*time.Millisecond)
	defer again.Stop()
	for {
		out, err := c.try("", "key", "state", key, "destroyed", "--version", "1", "--reason", "drained")
		if err == nil {
			return
		}
		if !strings.Contains(out, "was not seen with the active one") {
			c.t.Fatalf("destroy: %v\n%s", err, out)
		}
		select {
		case <-again.C:
		case <-late:
			c.t.Fatalf("destroy: %s", out)
		}
	}
}

// run runs the CLI as the operator.
func (c *custody) run(stdin string, args ...string) string {
	c.t.Helper()
	out, err := c.try(stdin, args...)
	if err != nil {
		c.t.Fatalf("claviger %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *custody) try(stdin string, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(bin, "claviger"), args...)
	cmd.Env = append(os.Environ(), "CLAVIGER_ADDR=unix://"+c.socket, "HOME="+c.dir)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// adopt moves a secret into custody.
func (c *custody) adopt(key, set, secret string) {
	c.t.Helper()
	pin, err := os.ReadFile(filepath.Join(c.dir, "identity"))
	check(c.t, err)
	c.run(secret, "state", "adopt", key, "--set", set, "--pin", strings.TrimSpace(string(pin)))
}

// process is an application that runs.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	base string // of its URLs
	log  *log
}

// log gathers what a process writes.
type log struct {
	mu    sync.Mutex
	text  bytes.Buffer
	grown chan struct{} // closed when there is more
}

func newLog() *log { return &log{grown: make(chan struct{})} }

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.grown)
	l.grown = make(chan struct{})
	return l.text.Write(p)
}

// says waits until a text is there: it comes by a pipe, and may come after the
// answer to the request that it is about.
func (l *log) says(text string) bool {
	late := time.After(5 * time.Second)
	for {
		l.mu.Lock()
		there, grown := bytes.Contains(l.text.Bytes(), []byte(text)), l.grown
		l.mu.Unlock()
		if there {
			return true
		}
		select {
		case <-grown:
		case <-late:
			return false
		}
	}
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// within returns as whom and where applications run: in CLAVIGER_SDK_ROOT, if it is
// set, which is a folder with other versions of the frameworks.
func within() (attr *syscall.SysProcAttr, dir string) {
	attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: application, Gid: application}, Chroot: os.Getenv("CLAVIGER_SDK_ROOT")}
	if attr.Chroot != "" {
		dir = "/"
	}
	return attr, dir
}

// launch starts an application that writes its port first. stdin may be empty.
func launch(t testing.TB, stdin string, environment []string, name string, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	p := &process{t: t, log: newLog(), cmd: exec.CommandContext(ctx, name, args...)}
	p.cmd.Env = append([]string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8"}, environment...)
	p.cmd.Stdin, p.cmd.Stderr = strings.NewReader(stdin), p.log
	p.cmd.SysProcAttr, p.cmd.Dir = within()
	out, err := p.cmd.StdoutPipe()
	check(t, err)
	check(t, p.cmd.Start())
	t.Cleanup(p.kill)
	var port int
	if _, err := fmt.Fscan(out, &port); err != nil {
		t.Fatalf("%s did not start: %v\n%s", filepath.Base(name), err, p.log)
	}
	p.base = fmt.Sprintf("http://127.0.0.1:%d", port)
	return p
}

// holds checks that the search finds the secrets of a process that has them.
func (p *process) holds(secrets ...string) {
	p.t.Helper()
	if found := searchProcess(p.t, p.cmd.Process.Pid, secrets...); len(found) != len(secrets) {
		p.t.Fatalf("the search finds %d of the %d secrets that the process has", len(found), len(secrets))
	}
}

// apart checks that none of the secrets is in the process. control is a text that
// the application keeps: a search that does not find it proves nothing.
func (p *process) apart(control string, secrets ...string) {
	p.t.Helper()
	found := searchProcess(p.t, p.cmd.Process.Pid, append(secrets, control)...)
	if !slices.Contains(found, control) {
		p.t.Errorf("the search does not find %q, which the process has", control)
	}
	for i, secret := range secrets {
		if slices.Contains(found, secret) {
			p.t.Errorf("secret %d of %d is in the application's process", i+1, len(secrets))
		}
	}
}

func (p *process) kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}
