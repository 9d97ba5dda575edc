package supervise

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one child. done is closed when it has been waited for.
type process struct {
	name    string
	cmd     *exec.Cmd
	started time.Time
	done    chan struct{}
}

// status is the exit status, -1 after a signal. It is settled once done is closed.
func (p *process) status() int { return p.cmd.ProcessState.ExitCode() }

func (p *process) signal(sig syscall.Signal) {
	if p != nil {
		_ = p.cmd.Process.Signal(sig)
	}
}

// end asks the process to stop and ends it when it has not within the grace.
func (p *process) end(grace time.Duration) {
	if p == nil {
		return
	}
	p.signal(syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.signal(syscall.SIGKILL)
		<-p.done
	}
}

// spawn describes a child to start.
type spawn struct {
	name   string
	args   []string
	user   User
	groups []uint32 // supplementary, with the user
	env    []string
	stdin  *os.File
	files  []*os.File // from descriptor 3
	group  bool       // of its own, so that a Ctrl-C on the terminal reaches the supervisor alone
	death  syscall.Signal
}

// start starts a child on the thread that lives as long as the supervisor:
// the kernel sends the death signal when the starting thread ends.
func (s *supervisor) start(sp spawn) (*process, error) {
	cmd := exec.Command(filepath.Join(s.cfg.BinDir, sp.name), sp.args...)
	cmd.Env = sp.env
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would inherit the supervisor's
	}
	cmd.Stdin = nil
	if sp.stdin != nil {
		cmd.Stdin = sp.stdin
	}
	cmd.Stdout, cmd.Stderr = s.cfg.Stderr, s.cfg.Stderr
	cmd.ExtraFiles = sp.files
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: sp.death, Setpgid: sp.group}
	if sp.user != (User{}) {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: sp.user.UID, Gid: sp.user.GID, Groups: append([]uint32{}, sp.groups...)}
	}
	failed := make(chan error)
	s.spawner <- func() { failed <- cmd.Start() }
	if err := <-failed; err != nil {
		return nil, fmt.Errorf("start %s: %w", sp.name, err)
	}
	p := &process{name: sp.name, cmd: cmd, started: time.Now(), done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
		select {
		case s.exits <- p:
		case <-s.over:
		}
	}()
	return p, nil
}

// serveThread runs what it is sent on one thread until the supervisor is over.
func (s *supervisor) serveThread() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		select {
		case f := <-s.spawner:
			f()
		case <-s.over:
			return
		}
	}
}

// pair makes a socketpair whose ends are closed on exec.
func pair(kind int) (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}

// control makes the control socket: our end, and the server's.
func control() (*net.UnixConn, *os.File, error) {
	ours, theirs, err := pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, nil, err
	}
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("use the control socket: %w", err)
	}
	return c.(*net.UnixConn), theirs, nil
}
