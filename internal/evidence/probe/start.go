package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"claviger.dev/internal/evidence/probe/within"
)

// patience is how long a child may take for one answer.
const patience = 20 * time.Second

// stage starts children as one user. All are started by one thread, which lives
// as long as the stage: to the kernel that thread is their parent, whose death
// they follow.
type stage struct {
	ctx      context.Context
	uid, gid int
	dir      string // the children's own
	starts   chan func()
}

// newStage makes a stage for a user: the caller's own, or any where the caller is
// root. A user of uid 0 has no capabilities there.
func newStage(ctx context.Context, uid, gid int) (*stage, error) {
	dir, err := os.MkdirTemp("", "claviger-probe-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the attempts: %w", err)
	}
	s := &stage{ctx: ctx, uid: uid, gid: gid, dir: dir, starts: make(chan func())}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, uid, gid); err != nil {
			return nil, errors.Join(fmt.Errorf("make a directory for the attempts: %w", err), s.close())
		}
	}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the stage
		var err error
		if uid == 0 {
			err = dropBounding()
		}
		ready <- err
		for start := range s.starts {
			start()
		}
	}()
	if err := <-ready; err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// dropBounding lets no program that this thread starts have a capability.
func dropBounding() error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("give up capabilities for the attempts: %w", err)
		}
	}
	return nil
}

func (s *stage) close() error {
	close(s.starts)
	return os.RemoveAll(s.dir)
}

// child is a process of one's own.
type child struct {
	cmd    *exec.Cmd
	talk   net.Conn
	answer *json.Decoder
}

// start runs a program with a socket as its descriptors in.
func (s *stage) start(command []string, asStdio bool) (*child, error) {
	// The user may not be able to reach the program by its name, so it is opened
	// here. The number is out of the way of those that the child is given.
	program, err := os.Open(command[0])
	if err != nil {
		return nil, fmt.Errorf("open the program: %w", err)
	}
	defer program.Close()
	high, err := unix.FcntlInt(program.Fd(), unix.F_DUPFD_CLOEXEC, 200)
	if err != nil {
		return nil, fmt.Errorf("open the program: %w", err)
	}
	defer unix.Close(high)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "mine"), os.NewFile(uintptr(fds[1]), "theirs")
	defer mine.Close()
	defer theirs.Close()
	c := &child{cmd: exec.CommandContext(s.ctx, "/proc/self/fd/"+strconv.Itoa(high))}
	c.cmd.Args, c.cmd.Dir, c.cmd.Env = command, s.dir, []string{"CLAVIGER_PROBE=1", "GOTRACEBACK=none"}
	if asStdio {
		c.cmd.Stdin, c.cmd.Stdout = theirs, theirs
	} else {
		c.cmd.ExtraFiles = []*os.File{theirs}
	}
	if os.Geteuid() == 0 {
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(s.uid), Gid: uint32(s.gid)}}
	}
	started := make(chan error)
	s.starts <- func() { started <- c.cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", command[0], err)
	}
	if c.talk, err = net.FileConn(mine); err != nil {
		return nil, errors.Join(fmt.Errorf("talk to %s: %w", command[0], err), c.cmd.Process.Kill(), c.cmd.Wait())
	}
	c.answer = json.NewDecoder(c.talk)
	return c, nil
}

// receive reads one answer.
func (c *child) receive(v any) error {
	if err := c.talk.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	return c.answer.Decode(v)
}

// end kills the child and waits for it.
func (c *child) end() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	c.talk.Close()
}

// standing is a child that reported and waits.
type standing struct {
	*child
	within.Report
}

// weak starts the weak process.
func (s *stage) weak(command []string) (*standing, error) {
	c, err := s.start(command, true)
	if err != nil {
		return nil, err
	}
	if _, err := c.talk.Write([]byte("{}\n")); err != nil {
		c.end()
		return nil, fmt.Errorf("order the weak process: %w", err)
	}
	return c.stand("the weak process")
}

func (c *child) stand(name string) (*standing, error) {
	s := &standing{child: c}
	if err := c.receive(&s.Report); err != nil {
		c.end()
		return nil, fmt.Errorf("hear from %s: %w", name, err)
	}
	return s, nil
}

// twin starts the key process's twin, with the flags of the key process.
func (s *stage) twin(program string, flags []string) (*standing, error) {
	c, err := s.start(append(append([]string{program}, flags...), "-twin", "-arena", "65536"), false)
	if err != nil {
		return nil, err
	}
	return c.stand("the twin of the key process")
}

// attack has the attacker attempt everything on all targets.
func (s *stage) attack(command []string, targets []target) ([][]outcome, error) {
	c, err := s.start(command, true)
	if err != nil {
		return nil, err
	}
	defer c.end()
	line, err := json.Marshal(order{targets})
	if err == nil {
		_, err = c.talk.Write(append(line, '\n'))
	}
	var answers [][]outcome
	if err == nil {
		err = c.receive(&answers)
	}
	if err == nil && len(answers) != len(targets) {
		err = errors.New("it answered for fewer")
	}
	if err != nil {
		return nil, fmt.Errorf("hear from the attacker: %w", err)
	}
	return answers, nil
}

// abort has the child end by SIGABRT and reports whether the kernel dumped it.
func (s *standing) abort() (dumped bool, err error) {
	if _, err := s.talk.Write([]byte("abort")); err != nil {
		return false, err
	}
	hung := time.AfterFunc(patience, func() { _ = s.cmd.Process.Kill() })
	defer hung.Stop()
	_ = s.cmd.Wait()
	state, ok := s.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || state.Signal() != syscall.SIGABRT {
		return false, fmt.Errorf("it ended by %v", s.cmd.ProcessState)
	}
	return state.CoreDump(), nil
}
