package supervise_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger.dev/internal/rootkey"
	"claviger.dev/internal/supervise"
)

// TestMain makes the test binary play the processes when it is started under
// their names. They leave by syscall.Exit, since os.Exit takes a second under
// the race detector.
func TestMain(m *testing.M) {
	roles := map[string]func(*report){
		"claviger": fakeServer, "claviger-keyd": fakeKeyd, "claviger-unseal": fakeUnseal, "supervisor": fakeSupervisor,
		"claviger-tpmd": fakeDevice, "claviger-p11d": fakeDevice,
	}
	if play, ok := roles[filepath.Base(os.Args[0])]; ok {
		play(dial())
		syscall.Exit(0)
	}
	os.Exit(m.Run())
}

// hello is what a fake says of itself before anything else.
type hello struct {
	Role          string
	PID, UID, GID int
	Groups        []int
	Args, Env     []string
	FDs           []string
}

// report is a fake's line to the test.
type report struct {
	conn  net.Conn
	lines *bufio.Scanner
}

func dial() *report {
	h := hello{Role: filepath.Base(os.Args[0]), PID: os.Getpid(), UID: os.Getuid(), GID: os.Getgid(), Args: os.Args[1:], Env: os.Environ()}
	h.Groups, _ = os.Getgroups()
	for fd := range 1024 { // not by listing the directory, which would open more
		to, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if err == nil && !strings.HasPrefix(to, "/sys/fs/cgroup/") { // the Go runtime's own
			h.FDs = append(h.FDs, strconv.Itoa(fd))
		}
	}
	path := ""
	for _, a := range os.Args[1:] {
		if p, ok := strings.CutPrefix(a, "--report="); ok {
			path = p
		}
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		fail(err)
	}
	line, _ := json.Marshal(h)
	r := &report{conn: conn, lines: bufio.NewScanner(conn)}
	r.say(string(line))
	return r
}

func (r *report) say(line string) { fmt.Fprintln(r.conn, line) }

func fail(err error) {
	fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0]), err)
	syscall.Exit(2)
}

// fakeServer does what the test says: take the next process of a custodian,
// or have the present one echo. Without a custodian's name it is keyd.
func fakeServer(r *report) {
	held := map[string]*custodian{"": custodianAt(supervise.ControlFD)}
	for i, a := range os.Args {
		if name, ok := strings.CutSuffix(a, "-fd"); ok {
			fd, _ := strconv.Atoi(os.Args[i+1])
			held[strings.TrimPrefix(name, "--")] = custodianAt(uintptr(fd))
		}
	}
	for r.lines.Scan() {
		verb, arg, _ := strings.Cut(r.lines.Text(), " ")
		verb, name, _ := strings.Cut(verb, ":")
		c := held[name]
		switch verb {
		case "next":
			next := c.next()
			if c.conn != nil {
				_ = c.conn.Close()
			}
			c.conn, c.in = next, bufio.NewScanner(next)
			r.say("next")
		case "relay": // give the test the key process's socket
			next := c.next()
			far, err := net.Dial("unix", arg)
			if err != nil {
				fail(err)
			}
			go join(next, far)
			go join(far, next)
		case "impatient":
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			_, err := c.source.Next(ctx)
			cancel()
			r.say(fmt.Sprint("impatient ", err))
		case "echo":
			fmt.Fprintln(c.conn, arg)
			if !c.in.Scan() {
				r.say("closed")
				continue
			}
			r.say(c.in.Text())
		}
	}
}

// custodian is what a fake server holds of one.
type custodian struct {
	source *supervise.Source
	conn   net.Conn
	in     *bufio.Scanner
}

func custodianAt(fd uintptr) *custodian {
	source, err := supervise.FromSupervisor(fd)
	if err != nil {
		fail(err)
	}
	return &custodian{source: source}
}

func (c *custodian) next() net.Conn {
	next, err := c.source.Next(context.Background())
	if err != nil {
		fail(err)
	}
	return next
}

// fakeDevice echoes with its pid until its socket closes, or exits with the
// status that the test names.
func fakeDevice(r *report) {
	if slices.Contains(os.Args, "--credential") {
		pin, _ := io.ReadAll(os.NewFile(4, "credential"))
		r.say("PIN " + string(pin))
	}
	if slices.Contains(os.Args, "--refuse") {
		r.say("refusing")
		syscall.Exit(3)
	}
	go func() {
		if r.lines.Scan() {
			status, _ := strconv.Atoi(r.lines.Text())
			syscall.Exit(status)
		}
	}()
	serve(os.NewFile(3, "frames"), -1)
}

// join copies until either side ends, and then ends the other.
func join(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.Close()
	_ = from.Close()
}

// fakeKeyd takes its root key and echoes with its pid until its socket closes.
func fakeKeyd(r *report) {
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, syscall.SIGTERM)
	frames, root := os.NewFile(3, "frames"), os.NewFile(4, "root")
	m, err := rootkey.Receive(root)
	if err != nil {
		fail(err)
	}
	if m.Kind != rootkey.Deliver { // joining: the frames are used before there is a root key
		serve(frames, 1)
		if err := rootkey.Send(root, rootkey.Message{Kind: rootkey.Deliver, Bundle: bundle()}); err != nil {
			fail(err)
		}
		if _, err := rootkey.Receive(root); err != nil {
			fail(err)
		}
	} else if err := rootkey.Send(root, rootkey.Message{Kind: rootkey.Done}); err != nil {
		fail(err)
	}
	r.say("serving")
	go func() {
		<-terms
		r.say("told to stop")
		syscall.Exit(0)
	}()
	serve(frames, -1)
}

func serve(frames *os.File, lines int) {
	for in := bufio.NewScanner(frames); lines != 0 && in.Scan(); lines-- {
		fmt.Fprintf(frames, "%d %s\n", os.Getpid(), in.Text())
	}
}

func bundle() *rootkey.Bundle {
	return &rootkey.Bundle{Generations: []rootkey.Generation{{Number: 1}}}
}

// fakeUnseal gives a bundle, after a line of standard input when "--ask" says so.
func fakeUnseal(r *report) {
	root := os.NewFile(3, "root")
	if slices.Contains(os.Args, "--ask") {
		var one [1]byte
		for one[0] != '\n' {
			if n, _ := os.Stdin.Read(one[:]); n == 0 {
				r.say("nobody")
				r.lines.Scan() // until the test says go
				syscall.Exit(3)
			}
		}
	}
	for hold := slices.Contains(os.Args, "--hold"); hold; { // until the test says go
		if !r.lines.Scan() {
			syscall.Exit(2)
		}
		var fd uintptr
		_, err := fmt.Sscanf(r.lines.Text(), "token %d", &fd)
		if hold = err == nil; hold {
			token := os.NewFile(fd, "token")
			fmt.Fprintln(token, "open")
			in := bufio.NewScanner(token)
			in.Scan()
			r.say(in.Text())
		}
	}
	if os.Args[1] == "join" {
		if err := rootkey.Send(root, rootkey.Message{Kind: rootkey.Join}); err != nil {
			fail(err)
		}
		if _, err := rootkey.Receive(root); err != nil {
			fail(err)
		}
		if err := rootkey.Send(root, rootkey.Message{Kind: rootkey.Done}); err != nil {
			fail(err)
		}
		return
	}
	if err := rootkey.Send(root, rootkey.Message{Kind: rootkey.Deliver, Bundle: bundle()}); err != nil {
		fail(err)
	}
	if _, err := rootkey.Receive(root); err != nil {
		fail(err)
	}
}

// fakeSupervisor runs the real supervisor as a process of its own.
func fakeSupervisor(*report) {
	flag := os.Args[1]
	cfg := supervise.Config{BinDir: os.Args[2], DataDir: os.Args[3], ServerArgs: []string{flag}, KeydArgs: []string{flag}, UnsealArgs: []string{flag}}
	if err := supervise.Run(context.Background(), cfg); err != nil {
		fail(err)
	}
}

// world is one supervisor with its fakes.
type world struct {
	t        *testing.T
	cfg      supervise.Config
	signals  chan os.Signal
	children chan *child
	cancel   context.CancelFunc
	result   chan error
	waiting  []*child // that nobody expected yet
	pids     []int
}

// child is the test's end of a fake.
type child struct {
	hello
	t     *testing.T
	conn  net.Conn
	lines chan string // closed when the process is gone
}

const patience = 20 * time.Second

// newWorld prepares directories that other uids can reach.
func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "supervise")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	bin, sock := filepath.Join(dir, "bin"), filepath.Join(dir, "report")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.Chmod(dir, 0o755))
	check(os.Mkdir(bin, 0o755))
	self, err := os.ReadFile("/proc/self/exe")
	check(err)
	check(os.WriteFile(filepath.Join(bin, "self"), self, 0o755))
	for _, name := range []string{"claviger", "claviger-keyd", "claviger-unseal", "claviger-tpmd", "claviger-p11d", "supervisor"} {
		check(os.Symlink("self", filepath.Join(bin, name)))
	}
	l, err := net.Listen("unix", sock)
	check(err)
	check(os.Chmod(sock, 0o777))
	w := &world{t: t, signals: make(chan os.Signal), children: make(chan *child, 64), result: make(chan error, 1)}
	go w.accept(l)
	t.Cleanup(func() { _ = l.Close() })
	flag := "--report=" + sock
	w.cfg = supervise.Config{
		BinDir: bin, DataDir: filepath.Join(dir, "data"), Signals: w.signals, Grace: 5 * time.Second,
		ServerArgs: []string{flag}, KeydArgs: []string{flag}, UnsealArgs: []string{flag},
	}
	return w
}

func (w *world) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			in := bufio.NewScanner(conn)
			c := &child{t: w.t, conn: conn, lines: make(chan string, 64)}
			if in.Scan() && json.Unmarshal(in.Bytes(), &c.hello) == nil {
				w.children <- c
			}
			for in.Scan() {
				c.lines <- in.Text()
			}
			close(c.lines)
		}()
	}
}

// start runs the supervisor until the test ends.
func (w *world) start() {
	ctx, cancel := context.WithCancel(w.t.Context())
	w.cancel = cancel
	go func() { w.result <- supervise.Run(ctx, w.cfg) }()
	w.t.Cleanup(w.stop)
}

// stop ends the supervisor and sees that no child is left.
func (w *world) stop() {
	if w.cancel == nil {
		return
	}
	w.cancel()
	w.cancel = nil
	select {
	case err := <-w.result:
		if err != nil {
			w.t.Errorf("Run: %v", err)
		}
	case <-time.After(patience):
		w.t.Error("the supervisor does not stop")
	}
	for {
		select {
		case c := <-w.children:
			w.pids = append(w.pids, c.PID)
			continue
		default:
		}
		break
	}
	for _, pid := range w.pids {
		if err := syscall.Kill(pid, 0); err == nil {
			w.t.Errorf("process %d outlived its supervisor", pid)
		}
	}
}

// expect returns the next process of the role.
func (w *world) expect(role string) *child {
	w.t.Helper()
	for late := time.After(patience); ; {
		if i := slices.IndexFunc(w.waiting, func(c *child) bool { return c.Role == role }); i >= 0 {
			c := w.waiting[i]
			w.waiting = slices.Delete(w.waiting, i, i+1)
			return c
		}
		select {
		case c := <-w.children:
			w.pids = append(w.pids, c.PID)
			w.waiting = append(w.waiting, c)
		case <-late:
			w.t.Fatalf("no %s started", role)
		}
	}
}

// key returns the next key process and what feeds it.
func (w *world) key() (keyd, unseal *child) {
	w.t.Helper()
	return w.expect("claviger-keyd"), w.expect("claviger-unseal")
}

func (w *world) hup() {
	w.t.Helper()
	select {
	case w.signals <- syscall.SIGHUP:
	case <-time.After(patience):
		w.t.Fatal("the supervisor takes no signal")
	}
}

// line is the next line of the fake; "" when the process is gone.
func (c *child) line() string {
	c.t.Helper()
	select {
	case s := <-c.lines:
		return s
	case <-time.After(patience):
		c.t.Fatalf("%s says nothing", c.Role)
	}
	return ""
}

func (c *child) want(line string) {
	c.t.Helper()
	if got := c.line(); got != line {
		c.t.Fatalf("%s said %q, want %q", c.Role, got, line)
	}
}

// do tells the fake something and checks its answer.
func (c *child) do(command, answer string) {
	c.t.Helper()
	fmt.Fprintln(c.conn, command)
	c.want(answer)
}

func (c *child) echo(keyd *child) {
	c.t.Helper()
	c.do("echo hello", strconv.Itoa(keyd.PID)+" hello")
}

func (c *child) kill(sig syscall.Signal) {
	c.t.Helper()
	if err := syscall.Kill(c.PID, sig); err != nil {
		c.t.Fatal(err)
	}
}

// started returns the processes of the role that started and were not expected.
func (w *world) started(role string) (list []*child) {
	for {
		select {
		case c := <-w.children:
			w.pids = append(w.pids, c.PID)
			w.waiting = append(w.waiting, c)
			continue
		default:
		}
		break
	}
	for _, c := range w.waiting {
		if c.Role == role {
			list = append(list, c)
		}
	}
	return list
}
