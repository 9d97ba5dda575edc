package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Device is the process that serves one device. It gets its frames socket as
// descriptor 3 and ends when that closes. It says by exit status 3 that a
// person has to do something first, such as correct a PIN: it is then not
// started again before SIGHUP, so that no try is wasted.
type Device struct {
	Name    string // what the server is told it by: the flag --NAME-fd takes the descriptor of its control socket
	Program string // in BinDir
	Args    []string
	User    User // as of Users: used only when the supervisor runs as root
	// Credential is the path of a PIN that only the supervisor can read; the
	// process gets it as descriptor 4. Empty: none.
	Credential string
}

// deviceRest is the longest time until a device's process is started again:
// what was unplugged is found soon after it is back.
const deviceRest = 2 * time.Second

// device is one Device under one supervisor. All of it belongs to the
// goroutine of run.
type device struct {
	Device
	line    line
	process *process // nil while there is none
	handed  uint64   // which hand-over it was
	timer   *time.Timer
	pause   pause
	person  bool // somebody is needed; cleared by SIGHUP
}

func (s *supervisor) newDevice(of Device) *device {
	d := &device{Device: of}
	d.timer = time.AfterFunc(time.Hour, func() {
		select {
		case s.due <- d:
		case <-s.over:
		}
	})
	d.timer.Stop() // it starts with its server
	return d
}

// startDevice starts the process and hands its socket to the server, unless
// there is one, somebody is needed first, or the key process is to be first.
func (s *supervisor) startDevice(d *device) {
	if !s.opened || d.process != nil || d.person {
		return
	}
	d.timer.Stop()
	log := s.cfg.Log.With("program", d.Program)
	frames, theirs, err := pair(unix.SOCK_STREAM)
	if err == nil {
		d.process, err = s.spawnDevice(d.Device, theirs)
		_ = theirs.Close()
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		log.Error("the device's process does not start: something that it needs is missing. See to it, and send SIGHUP", "error", err)
		d.person = true
	case err != nil:
		log.Error("the device's process does not start", "error", err)
		d.timer.Reset(d.pause.next(0, deviceRest))
	default:
		log.Info("started the device's process", "pid", d.process.cmd.Process.Pid)
		if d.handed, err = d.line.hand(frames); err != nil {
			log.Error("the server does not take the device's process", "error", err)
		}
	}
	if frames != nil {
		_ = frames.Close()
	}
}

func (s *supervisor) spawnDevice(d Device, socket *os.File) (*process, error) {
	files := []*os.File{socket}
	if d.Credential != "" {
		f, err := os.Open(d.Credential)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		files = append(files, f)
	}
	return s.start(spawn{
		name: d.Program, args: d.Args, user: d.User, groups: GroupsOf(d.User),
		files: files, group: true, death: syscall.SIGKILL,
	})
}

// startToken starts what serves the token's root slots to a claviger-unseal,
// and returns that one's end of the socket.
func (s *supervisor) startToken() (*process, *os.File, error) {
	ours, theirs, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	p, err := s.spawnDevice(*s.cfg.Token, theirs)
	if err != nil {
		_ = ours.Close()
		return nil, nil, err
	}
	s.stopping[p] = true // it ends with the claviger-unseal beside it
	return p, ours, nil
}

// deviceOf is the device that a process served last; nil when it is none's.
func (s *supervisor) deviceOf(p *process) *device {
	i := slices.IndexFunc(s.devices, func(d *device) bool { return d.process == p })
	if i < 0 {
		return nil
	}
	return s.devices[i]
}

func (s *supervisor) deviceExited(d *device) {
	p := d.process
	d.process = nil
	log := s.cfg.Log.With("program", d.Program, "status", p.cmd.ProcessState.String())
	if p.status() == needsPerson {
		log.Error("the device's process needs a person: see what it says, and send SIGHUP. Nothing else is affected")
		d.person = true
		return
	}
	if s.stopping[p] {
		s.startDevice(d)
		return
	}
	log.Warn("the device's process exited")
	d.timer.Reset(d.pause.next(time.Since(p.started), deviceRest))
}

// deviceAsked ends the process that the server holds when it asks for another.
func (d *device) asked() {
	if d.line.asks() && d.process != nil && d.handed == d.line.handed {
		d.process.signal(syscall.SIGKILL)
	}
}

// serverArgs tells the server where the control sockets of the devices are.
func (s *supervisor) serverArgs() []string {
	args := slices.Clone(s.cfg.ServerArgs)
	for i, d := range s.devices {
		args = append(args, "--"+d.Name+"-fd", strconv.Itoa(ControlFD+1+i))
	}
	return args
}

// controls makes the control sockets of a new server: one for the key process
// and one for each device, in this order. The server's ends are returned.
func (s *supervisor) controls() (theirs []*os.File, err error) {
	for _, l := range s.lines() {
		ours, end, err := control()
		if err != nil {
			s.hangUp()
			closeAll(theirs)
			return nil, err
		}
		*l = line{conn: ours}
		theirs = append(theirs, end)
	}
	return theirs, nil
}

func (s *supervisor) lines() []*line {
	all := []*line{&s.keys}
	for _, d := range s.devices {
		all = append(all, &d.line)
	}
	return all
}

// hangUp closes the control sockets of a server that is gone.
func (s *supervisor) hangUp() {
	for _, l := range s.lines() {
		if l.conn != nil {
			_ = l.conn.Close()
		}
		*l = line{}
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// StartToken starts what serves the token's root slots to a claviger-unseal
// that somebody runs by hand, and returns the other end of its socket. The
// process ends when every copy of that is closed; what it says goes to stderr.
func (cfg *Config) StartToken(stderr *os.File) (*os.File, error) {
	ours, theirs, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(filepath.Join(cfg.BinDir, cfg.Token.Program), cfg.Token.Args...)
	cmd.Env, cmd.Stderr, cmd.ExtraFiles = []string{}, stderr, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if u := cfg.Token.User; u != (User{}) && os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: append([]uint32{}, GroupsOf(u)...)}
	}
	if cfg.Token.Credential != "" {
		pin, err := os.Open(cfg.Token.Credential)
		if err != nil {
			return nil, errors.Join(err, ours.Close())
		}
		defer pin.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, pin)
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", cfg.Token.Program, err), ours.Close())
	}
	go func() { _ = cmd.Wait() }()
	return ours, nil
}
