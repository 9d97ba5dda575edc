package supervise

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	handOverWait = time.Second     // for the server's end to take a socket
	keydGrace    = 5 * time.Second // for a key process to finish what it has and stop
	steady       = 5 * time.Second // a process that lived so long is restarted at once
	needsPerson  = 3               // exit status of claviger-unseal when no secret was to be had, or a wrong one
)

// supervisor is the state of one Run. All of it belongs to the goroutine of
// run; the channels are how others reach it.
type supervisor struct {
	cfg     Config
	spawner chan func()
	exits   chan *process
	asks    chan *net.UnixConn // the control socket on which the server asked
	due     chan *device       // to be started now
	over    chan struct{}

	server  *process
	keys    line      // the server's control socket for key processes
	devices []*device // each with the control socket of its own

	serving  *key // its unsealing is done
	coming   *key // its unsealing is under way
	arrived  bool // cfg.Arrive has been done
	opened   bool // this server has had a key process with its root key
	stopping map[*process]bool

	serverTimer, keyTimer *time.Timer
	serverPause, keyPause pause
}

// line is the control socket of one custodian with the present server. The
// zero line is closed.
type line struct {
	conn   *net.UnixConn
	asked  uint64 // times that this server asked for a process
	handed uint64 // times that it was handed one
}

// asks counts a question and reports whether it says that the process handed
// over last is of no use any more; else the next is on its way already.
func (l *line) asks() bool {
	l.asked++
	return l.asked > l.handed
}

// hand gives the server its end of a process's frames socket, and returns
// which hand-over it was. The socket stays the caller's to close.
func (l *line) hand(frames *os.File) (uint64, error) {
	oob := unix.UnixRights(int(frames.Fd()))
	_ = l.conn.SetWriteDeadline(time.Now().Add(handOverWait))
	if _, _, err := l.conn.WriteMsgUnix([]byte{handOver}, oob, nil); err != nil {
		return 0, err // the process sees its socket closed, and exits
	}
	l.handed++
	return l.handed, nil
}

// key is one key process with the run of claviger-unseal that feeds it.
type key struct {
	keyd, unseal *process
	token        *process // what serves the token's slots to unseal; nil: no token
	frames       *os.File // the server's end, until it is handed over
	handed       uint64   // which hand-over it was; 0 not yet
	dead         bool     // keyd exited before unseal did
}

// pause counts quick deaths: the first restart is immediate, further ones
// wait twice as long each time.
type pause struct{ deaths int }

func (p *pause) next(lived, most time.Duration) time.Duration {
	if lived >= steady {
		p.deaths = 0
	}
	p.deaths++
	if p.deaths == 1 {
		return 0
	}
	return min(25*time.Millisecond<<min(p.deaths, 16), most)
}

func newSupervisor(cfg Config) *supervisor {
	s := &supervisor{
		cfg: cfg, spawner: make(chan func()), exits: make(chan *process), asks: make(chan *net.UnixConn),
		due: make(chan *device), over: make(chan struct{}), stopping: map[*process]bool{},
		serverTimer: time.NewTimer(0), keyTimer: time.NewTimer(0),
	}
	s.keyTimer.Stop() // a key process starts with its server
	for _, d := range cfg.Devices {
		s.devices = append(s.devices, s.newDevice(d))
	}
	go s.serveThread()
	return s
}

func (s *supervisor) run(ctx context.Context) error {
	defer s.stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case sig := <-s.cfg.Signals:
			if sig != syscall.SIGHUP {
				s.cfg.Log.Info("stopping", "signal", sig.String())
				return nil
			}
			s.cfg.Log.Info("replacing the key process")
			s.replaceKey()
			for _, d := range s.devices {
				d.person = false
			}
			s.startDevices()
		case <-s.serverTimer.C:
			s.startServer()
		case <-s.keyTimer.C:
			s.replaceKey()
		case conn := <-s.asks:
			s.serverAsked(conn)
		case d := <-s.due:
			s.startDevice(d)
		case p := <-s.exits:
			s.exited(p)
		}
	}
}

func (s *supervisor) startServer() {
	theirs, err := s.controls()
	if err == nil {
		s.server, err = s.start(spawn{
			name: "claviger", args: s.serverArgs(), user: s.cfg.Users.Server,
			files: theirs, group: true, death: syscall.SIGTERM,
		})
		closeAll(theirs)
	}
	if err != nil {
		s.cfg.Log.Error("the server does not start", "error", err)
		s.hangUp()
		s.serverTimer.Reset(s.serverPause.next(0, 30*time.Second))
		return
	}
	s.cfg.Log.Info("started the server", "pid", s.server.cmd.Process.Pid)
	for _, l := range s.lines() {
		go s.listen(l.conn)
	}
	s.replaceKey()
}

// listen counts the server's questions. What they say is not looked at.
func (s *supervisor) listen(conn *net.UnixConn) {
	var ignored [1]byte
	for {
		if n, err := conn.Read(ignored[:]); err != nil || n == 0 {
			return
		}
		select {
		case s.asks <- conn:
		case <-s.over:
			return
		}
	}
}

// serverAsked ends the key process that the server holds when it asks for yet
// another: it found that one hung or senseless.
func (s *supervisor) serverAsked(conn *net.UnixConn) {
	for _, d := range s.devices {
		if conn == d.line.conn {
			d.asked()
			return
		}
	}
	if conn != s.keys.conn || !s.keys.asks() {
		return // of a server that is gone, or the next one is on its way to it already
	}
	for _, k := range []*key{s.serving, s.coming} {
		if k != nil && k.handed != 0 && k.handed == s.keys.handed {
			k.keyd.signal(syscall.SIGKILL)
		}
	}
}

// replaceKey starts a key process and a claviger-unseal for it, in place of
// one that is still being unsealed.
func (s *supervisor) replaceKey() {
	if s.server == nil {
		return // one starts with the server
	}
	s.keyTimer.Stop()
	s.drop(s.coming)
	s.coming = nil
	k, err := s.startKey()
	if err != nil {
		s.cfg.Log.Error("the key process does not start", "error", err)
		s.retryKey(0)
		return
	}
	s.coming = k
	if s.arriving() {
		s.hand(k) // it gets its root key through the server, as ciphertext
	}
}

func (s *supervisor) arriving() bool { return len(s.cfg.Arrive) > 0 && !s.arrived }

func (s *supervisor) startKey() (*key, error) {
	frames, keydFrames, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer keydFrames.Close()
	keydRoot, unsealRoot, err := pair(unix.SOCK_STREAM)
	if err != nil {
		_ = frames.Close()
		return nil, err
	}
	defer keydRoot.Close()
	defer unsealRoot.Close()
	k := &key{frames: frames}
	k.keyd, err = s.start(spawn{
		name: "claviger-keyd", args: s.cfg.keydArgs(), user: s.cfg.Users.Keyd,
		files: []*os.File{keydFrames, keydRoot}, group: true, death: syscall.SIGKILL,
	})
	if err == nil {
		err = s.startUnseal(k, unsealRoot)
	}
	if err != nil {
		s.drop(k)
		return nil, err
	}
	return k, nil
}

// startUnseal starts claviger-unseal. It stays in the terminal's foreground
// group, so that it may ask for a passphrase.
func (s *supervisor) startUnseal(k *key, root *os.File) error {
	args := []string{"open"}
	if s.arriving() {
		args = append([]string(nil), s.cfg.Arrive...)
	}
	args = append(args, "--dir", filepath.Join(s.cfg.DataDir, "unseal"))
	args = append(args, s.cfg.UnsealArgs...)
	files := []*os.File{root}
	if s.cfg.Credential != "" {
		f, err := os.Open(s.cfg.Credential)
		if err != nil {
			return err
		}
		defer f.Close()
		files, args = append(files, f), append(args, "--credential-fd", "4")
	}
	if s.cfg.Token != nil {
		p, socket, err := s.startToken()
		if err != nil { // other slots may still open
			s.cfg.Log.Error("what serves the token's root slots does not start", "program", s.cfg.Token.Program, "error", err)
		} else {
			defer socket.Close()
			k.token = p
			args = append(args, "--token-fd", strconv.Itoa(3+len(files)))
			files = append(files, socket)
		}
	}
	var err error
	k.unseal, err = s.start(spawn{
		name: "claviger-unseal", args: args, user: s.cfg.Users.Unseal, groups: GroupsOf(s.cfg.Users.Unseal),
		stdin: s.cfg.PassphraseFrom, files: files, death: syscall.SIGKILL,
	})
	return err
}

// hand gives the server its end of the key process's frames socket.
func (s *supervisor) hand(k *key) {
	defer k.frames.Close()
	var err error
	if k.handed, err = s.keys.hand(k.frames); err != nil {
		s.cfg.Log.Error("the server does not take the key process", "error", err)
	}
}

// drop ends a key process for good, without waiting.
func (s *supervisor) drop(k *key) {
	if k == nil {
		return
	}
	if k.handed == 0 {
		_ = k.frames.Close()
	}
	for _, p := range []*process{k.unseal, k.token, k.keyd} {
		if p != nil && !p.ended() {
			s.stopping[p] = true
			p.signal(syscall.SIGKILL)
		}
	}
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (s *supervisor) exited(p *process) {
	switch {
	case p == s.server:
		s.serverExited()
	case s.coming != nil && p == s.coming.unseal:
		s.unsealed()
	case s.coming != nil && p == s.coming.keyd:
		s.cfg.Log.Error("the key process exited before it served", "status", p.cmd.ProcessState.String())
		s.coming.dead = true
		// Its exit decides: it may have failed first, or be about to write what
		// arrived, and so it is not cut off in the middle.
		go s.coming.unseal.end(keydGrace)
	case s.serving != nil && p == s.serving.keyd:
		s.cfg.Log.Warn("the key process exited", "status", p.cmd.ProcessState.String())
		s.serving = nil
		s.retryKey(time.Since(p.started))
	default:
		if d := s.deviceOf(p); d != nil {
			s.deviceExited(d)
		}
	}
	delete(s.stopping, p)
}

// retryKey starts another key process, soon or at once, unless there is one.
func (s *supervisor) retryKey(lived time.Duration) {
	if s.serving != nil || s.coming != nil {
		return
	}
	most := 30 * time.Second
	if lived > 0 {
		most = time.Second // it had served: serve again well within two seconds
	}
	s.keyTimer.Reset(s.keyPause.next(lived, most))
}

// unsealed goes on after claviger-unseal exited.
func (s *supervisor) unsealed() {
	k := s.coming
	s.coming = nil
	status := k.unseal.status()
	s.arrived = s.arrived || status == 0 // what arrived is on disk, whatever became of the key process
	if status != 0 || k.dead {
		s.drop(k)
		switch {
		case s.serving != nil:
			s.cfg.Log.Error("the root key was not opened; the key process that serves stays", "status", status)
		case status == needsPerson:
			s.cfg.Log.Error("the root key was not opened: a person is needed. Nothing can be signed until then; see to the slot's secret and send SIGHUP", "status", status)
		default:
			s.cfg.Log.Error("the root key was not opened", "status", status)
			s.retryKey(0)
		}
		return
	}
	if k.handed == 0 {
		s.hand(k)
	}
	s.cfg.Log.Info("the key process serves", "pid", k.keyd.cmd.Process.Pid)
	if old := s.serving; old != nil {
		s.retire(old.keyd)
	}
	s.serving, s.opened = k, true
	k.token.signal(syscall.SIGKILL) // not every module bears two processes at once
	s.startDevices()
}

// startDevices starts what is not there. It follows the key process, which may
// need the same devices to get its root key.
func (s *supervisor) startDevices() {
	for _, d := range s.devices {
		s.startDevice(d)
	}
}

// retire lets an old key process finish what it was asked, and ends it when
// it does not stop.
func (s *supervisor) retire(p *process) {
	s.stopping[p] = true
	go p.end(keydGrace)
}

// serverExited ends the custodians' processes too: their frames broke off in
// the middle, and only new ones start from a clean socket.
func (s *supervisor) serverExited() {
	s.cfg.Log.Warn("the server exited", "status", s.server.cmd.ProcessState.String())
	lived := time.Since(s.server.started)
	s.hangUp()
	s.server, s.opened = nil, false
	s.drop(s.coming)
	s.drop(s.serving)
	s.coming, s.serving = nil, nil
	for _, d := range s.devices {
		d.timer.Stop()
		if d.process != nil {
			s.retire(d.process) // the next one starts when it is gone
		}
	}
	s.keyTimer.Stop()
	s.serverTimer.Reset(s.serverPause.next(lived, 30*time.Second))
}

// stop ends everything: first the server, which finishes its requests, then
// the custodians' processes. When it returns no child is left.
func (s *supervisor) stop() {
	s.serverTimer.Stop()
	s.keyTimer.Stop()
	for _, d := range s.devices {
		d.timer.Stop()
	}
	// Exits are still to be received while we wait for them.
	go func() {
		for {
			select {
			case <-s.exits:
			case <-s.asks:
			case <-s.due:
			case <-s.over:
				return
			}
		}
	}()
	s.server.end(s.cfg.Grace)
	s.hangUp()
	for _, d := range s.devices {
		d.process.end(keydGrace)
	}
	if s.coming != nil {
		s.drop(s.coming)
	}
	if s.serving != nil {
		s.serving.keyd.end(keydGrace)
	}
	for p := range s.stopping {
		p.signal(syscall.SIGKILL)
		<-p.done
	}
}
