package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Child is one custodian that runs as a child of this process and under its
// uid, for a program that needs a key of its own and no server. It is a source
// of one socket: a child that has died is not replaced.
type Child struct {
	frames  net.Conn
	process *exec.Cmd
	stderr  *tail
	exited  chan struct{}

	mu    sync.Mutex // guards taken
	taken bool
}

// ChildConfig says what to start.
type ChildConfig struct {
	BinDir  string   // where the programs are; empty is beside this one
	Program string   // such as "claviger-tpmd"
	Args    []string // of the program
	User    User     // of the child; only root may name another than its own
	// Unseal is a directory of claviger-unseal's: the child gets its root key
	// from there. One that does not exist is made, with a slot in a file of its
	// own: INSECURE against who reads the directory. Empty: it needs none.
	Unseal string
}

// unsealWait bounds the hand-over of the root key.
const unsealWait = 20 * time.Second

// StartChild starts a custodian. What it writes to standard error is kept for
// Err.
func StartChild(ctx context.Context, cfg ChildConfig) (*Child, error) {
	if cfg.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the programs: %w", err)
		}
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return nil, fmt.Errorf("find the programs: %w", err)
		}
		cfg.BinDir = filepath.Dir(self)
	}
	ours, theirs, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	defer theirs.Close()
	c := &Child{stderr: new(tail), exited: make(chan struct{})}
	files := []*os.File{theirs}
	var root *os.File // of claviger-unseal
	if cfg.Unseal != "" {
		var childRoot *os.File
		if childRoot, root, err = pair(unix.SOCK_STREAM); err != nil {
			return nil, err
		}
		defer childRoot.Close()
		defer root.Close()
		files = append(files, childRoot)
	}
	if c.frames, err = net.FileConn(ours); err != nil {
		return nil, fmt.Errorf("use the socket of %s: %w", cfg.Program, err)
	}
	c.process = c.command(context.WithoutCancel(ctx), filepath.Join(cfg.BinDir, cfg.Program), cfg.Args, files)
	if cfg.User != (User{}) {
		c.process.SysProcAttr.Credential = &syscall.Credential{Uid: cfg.User.UID, Gid: cfg.User.GID, Groups: []uint32{}}
	}
	if err := c.process.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", cfg.Program, err), c.frames.Close())
	}
	go func() {
		_ = c.process.Wait() // Err tells how it ended
		close(c.exited)
	}()
	if cfg.Unseal != "" {
		if err := c.openRoot(ctx, cfg, root); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// openRoot has claviger-unseal hand the root key to the child.
func (c *Child) openRoot(ctx context.Context, cfg ChildConfig, root *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, unsealWait)
	defer cancel()
	unseal := filepath.Join(cfg.BinDir, "claviger-unseal")
	if _, err := os.Stat(cfg.Unseal); errors.Is(err, fs.ErrNotExist) {
		if err := c.command(ctx, unseal, []string{"init", "--dir", cfg.Unseal, "--kind", "file"}, nil).Run(); err != nil {
			return fmt.Errorf("make a root key: %w: %s", err, c.stderr)
		}
	}
	if err := c.command(ctx, unseal, []string{"open", "--dir", cfg.Unseal}, []*os.File{root}).Run(); err != nil {
		return fmt.Errorf("open the root key: %w: %s", err, c.stderr)
	}
	return nil
}

// command describes a child that hears nothing of a Ctrl-C at the terminal.
func (c *Child) command(ctx context.Context, program string, args []string, files []*os.File) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{}
	cmd.Stderr = c.stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// Next returns the child's socket, once.
func (c *Child) Next(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	taken := c.taken
	c.taken = true
	c.mu.Unlock()
	if !taken {
		return c.frames, nil
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.exited:
		return nil, c.Err()
	}
}

// Err says how the child ended, with what it wrote last. It is nil while the
// child runs.
func (c *Child) Err() error {
	select {
	case <-c.exited:
		return fmt.Errorf("%s: %s: %s", filepath.Base(c.process.Path), c.process.ProcessState, c.stderr)
	default:
		return nil
	}
}

// Close ends the child and waits for it.
func (c *Child) Close() error {
	err := c.frames.Close() // upon which a custodian ends by itself
	timer := time.NewTimer(keydGrace)
	defer timer.Stop()
	select {
	case <-c.exited:
	case <-timer.C:
		err = errors.Join(err, c.process.Process.Kill())
		<-c.exited
	}
	if errors.Is(err, net.ErrClosed) {
		return nil // whoever took the socket has closed it
	}
	return err
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex // guards text
	text []byte
}

const maxTail = 1 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-maxTail):]
	return len(p), nil
}

// String returns what was written, on one line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ReplaceAll(strings.TrimSpace(string(t.text)), "\n", "; ")
}
