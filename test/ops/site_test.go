package ops_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/pubkey"
)

// The uids of the processes. There are no such accounts.
const serverUID, keydUID, unsealUID, tpmUID, p11UID = 61201, 61202, 61203, 61205, 61206

// patience bounds every wait of these tests.
const patience = 30 * time.Second

// site is one machine with one server.
type site struct {
	t       *testing.T
	dir     string // of everything
	data    string
	config  string
	bin     string
	address string // of TLS, host:port

	cmd   *exec.Cmd
	ended chan error
	log   *journal
	op    *client.Client // the operator, over the local socket
}

// journal is what the processes of a site said.
type journal struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed and replaced when there is a line
}

func (j *journal) take(r io.Reader) {
	in := bufio.NewScanner(r)
	in.Split(linesAndPrompts)
	for in.Scan() {
		j.mu.Lock()
		j.lines = append(j.lines, in.Text())
		close(j.more)
		j.more = make(chan struct{})
		j.mu.Unlock()
	}
}

func linesAndPrompts(data []byte, end bool) (int, []byte, error) {
	if !bytes.ContainsRune(data, '\n') && bytes.HasSuffix(data, []byte(": ")) {
		return len(data), data, nil
	}
	return bufio.ScanLines(data, end)
}

func (j *journal) since(n int) (lines []string, more chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lines[n:], j.more
}

// mark is the present end of the journal.
func (s *site) mark() int {
	lines, _ := s.log.since(0)
	return len(lines)
}

// wait returns the submatches of the first line after the mark that matches.
func (s *site) wait(mark int, pattern string) []string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		lines, more := s.log.since(mark)
		for _, line := range lines {
			if m := re.FindStringSubmatch(line); m != nil {
				return m
			}
		}
		select {
		case <-more:
		case <-late.C:
			s.t.Fatalf("nobody said %q:\n%s", pattern, strings.Join(lines, "\n"))
		}
	}
}

// newSite makes the directory and the configuration of a server.
func newSite(t *testing.T, more string) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "site")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	check(t, os.Chmod(dir, 0o755))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	check(t, l.Close())
	s := &site{t: t, dir: dir, data: filepath.Join(dir, "data"), config: filepath.Join(dir, "claviger.toml"), bin: bin, address: l.Addr().String()}
	text := fmt.Sprintf("data_dir = %q\nlisten = %q\noperators = [0]\n", s.data, s.address)
	if !strings.Contains(more, "[users]") {
		more += fmt.Sprintf("\n[users]\nserver = \"%d\"\nkeyd = \"%d\"\nunseal = \"%d\"\ntpm = \"%d\"\np11 = \"%d\"\n", serverUID, keydUID, unsealUID, tpmUID, p11UID)
	}
	check(t, os.WriteFile(s.config, []byte(text+more), 0o644))
	check(t, os.Chmod(s.config, 0o644))
	return s
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program returns a command of the site; stdin is what is piped to it.
func (s *site) program(stdin string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, "claviger"), args...)
	cmd.Env = []string{"HOME=" + s.dir, "CLAVIGER_ADDR=unix://" + filepath.Join(s.data, "run", "claviger.sock")}
	cmd.Stdin = strings.NewReader(stdin)
	return cmd
}

// try runs a command and returns what it wrote and its exit status.
func (s *site) try(stdin string, args ...string) (stdout, stderr string, status int) {
	s.t.Helper()
	cmd := s.program(stdin, args...)
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	return out.String(), talk.String(), cmd.ProcessState.ExitCode()
}

// run runs a command that has to succeed.
func (s *site) run(args ...string) string {
	s.t.Helper()
	out, talk, status := s.try("", args...)
	if status != 0 {
		s.t.Fatalf("claviger %q: exit status %d\n%s%s", args, status, out, talk)
	}
	return strings.TrimSpace(out)
}

// root runs 'claviger root' on the site's slots.
func (s *site) root(args ...string) string {
	s.t.Helper()
	return s.run(append([]string{"root", args[0], "--dir", filepath.Join(s.data, "unseal")}, args[1:]...)...)
}

// launch starts 'claviger up' and does not wait for it. stdin may be nil.
func (s *site) launch(stdin *os.File, flags ...string) {
	s.t.Helper()
	s.launchAs(stdin, nil, append([]string{filepath.Join(s.bin, "claviger"), "up", "--config", s.config}, flags...)...)
}

func (s *site) launchAs(stdin *os.File, env []string, args ...string) {
	s.t.Helper()
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	if stdin != nil {
		s.cmd.Stdin = stdin
	}
	ours, theirs, err := os.Pipe()
	check(s.t, err)
	s.cmd.Stdout, s.cmd.Stderr = theirs, theirs
	check(s.t, s.cmd.Start())
	check(s.t, theirs.Close())
	if s.log == nil {
		s.log = &journal{more: make(chan struct{})}
	}
	go func() {
		defer ours.Close()
		s.log.take(ours)
	}()
	ended := make(chan error, 1)
	s.ended = ended
	go func(cmd *exec.Cmd) { ended <- cmd.Wait() }(s.cmd)
	s.t.Cleanup(s.stop)
}

// up starts everything and waits until it serves.
func (s *site) up(flags ...string) {
	s.t.Helper()
	mark := 0
	if s.log != nil {
		mark = s.mark()
	}
	s.launch(nil, flags...)
	s.serving(mark)
}

// serving waits until the server says that it takes connections.
func (s *site) serving(mark int) {
	s.t.Helper()
	s.wait(mark, "msg=serving")
	if s.op == nil {
		c, err := client.New(client.Config{Address: "unix://" + filepath.Join(s.data, "run", "claviger.sock")})
		check(s.t, err)
		s.t.Cleanup(c.Close)
		s.op = c
	}
}

// stop ends everything and sees that nothing is left.
func (s *site) stop() {
	if s.cmd == nil {
		return
	}
	cmd := s.cmd
	s.cmd = nil
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("the supervisor: %v", err)
		}
	case <-time.After(patience):
		s.t.Error("the supervisor does not stop")
		_ = cmd.Process.Kill()
		<-s.ended
	}
	if s.t.Failed() {
		lines, _ := s.log.since(0)
		s.t.Logf("journal:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
}

// kill ends the whole site at once.
func (s *site) kill() {
	s.t.Helper()
	cmd := s.cmd
	s.cmd = nil
	check(s.t, cmd.Process.Kill())
	<-s.ended
}

func (s *site) hup() {
	s.t.Helper()
	old, mark := s.pid("keyd"), s.mark()
	check(s.t, s.cmd.Process.Signal(syscall.SIGHUP))
	s.wait(mark, `msg="the key process serves"`)
	s.replaced(old)
}

// replaced waits until the server uses another key process.
func (s *site) replaced(old int) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); s.pid("keyd") == old; {
		if time.Now().After(deadline) {
			s.t.Fatal("the key process is not replaced")
		}
	}
}

// pid is the process id of the server, or of the key process that it uses.
func (s *site) pid(role string) int {
	s.t.Helper()
	if role == "server" {
		lines, _ := s.log.since(0)
		found := 0
		for _, line := range lines {
			if m := regexp.MustCompile(`msg="started the server".* pid=(\d+)`).FindStringSubmatch(line); m != nil {
				found, _ = strconv.Atoi(m[1])
			}
		}
		return found
	}
	m := s.measure("keyd/answers")
	pid, err := strconv.Atoi(strings.TrimPrefix(m.Detail, "process "))
	if err != nil {
		s.t.Fatalf("no process id in %v", m)
	}
	return pid
}

// measure returns one of doctor's.
func (s *site) measure(name string) *pb.Measure {
	s.t.Helper()
	report, err := s.op.Doctor(s.t.Context())
	check(s.t, err)
	for _, m := range report.Measures {
		if m.Part+"/"+m.Name == name {
			return m
		}
	}
	s.t.Fatalf("doctor says nothing of %s", name)
	return nil
}

// key makes an ECDSA key.
func (s *site) key(name string) *pb.Key {
	s.t.Helper()
	k, err := s.op.CreateKey(s.t.Context(), &pb.CreateKeyRequest{Name: name, Algorithm: string(claviger.ECDSAP256)})
	check(s.t, err)
	return k
}

// caller enrols a workload that may sign with the keys, over TLS.
func (s *site) caller(name, selector string) (*client.Client, *pb.Grant) {
	s.t.Helper()
	ctx := s.t.Context()
	_, err := s.op.CreatePrincipal(ctx, &pb.CreatePrincipalRequest{Name: name, Kind: "workload", Environments: []string{"prod"}})
	check(s.t, err)
	g, err := s.op.CreateGrant(ctx, &pb.CreateGrantRequest{Principal: name, Selector: selector, Operations: []string{"sign", "verify", "read-key"}, Reason: "test"})
	check(s.t, err)
	code, err := s.op.IssueCode(ctx, &pb.IssueCodeRequest{Principal: name, Lifetime: durationpb.New(time.Minute)})
	check(s.t, err)
	profile, err := client.Enroll(ctx, "https://"+s.address, code.Code, filepath.Join(s.dir, name))
	check(s.t, err)
	return s.connect(profile.Config()), g
}

func (s *site) connect(cfg client.Config) *client.Client {
	s.t.Helper()
	c, err := client.New(cfg)
	check(s.t, err)
	s.t.Cleanup(c.Close)
	return c
}

// sign signs with a key and checks the signature by its public half.
func sign(ctx context.Context, c *client.Client, k *pb.Key) error {
	message := []byte("message")
	resp, err := c.Sign(ctx, &pb.SignRequest{Key: k.Name, Inputs: [][]byte{message}})
	if err != nil {
		return err
	}
	for _, v := range k.Versions {
		public, err := pubkey.Parse(claviger.Algorithm(k.Algorithm), v.Public)
		if err != nil {
			return err
		}
		if v.Number == resp.Version && public.Verify(message, resp.Signatures[0], pubkey.ASN1) {
			return nil
		}
	}
	return fmt.Errorf("the signature is not of version %d", resp.Version)
}

// ready is the status of /readyz on the local socket.
func (s *site) ready() int {
	s.t.Helper()
	c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.data, "run", "claviger.sock"))
	}}}
	resp, err := c.Get("http://local/readyz")
	check(s.t, err)
	check(s.t, resp.Body.Close())
	return resp.StatusCode
}

// pinSum is the pin of an identity key.
func pinSum(public []byte) [32]byte { return sha256.Sum256(public) }

// reach returns the configuration of an enrolled caller for another server.
func reach(t *testing.T, profile, address string) client.Config {
	t.Helper()
	p, err := client.LoadProfile(profile)
	check(t, err)
	p.Address = "https://" + address
	return p.Config()
}
