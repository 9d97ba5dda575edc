// Demo runs Claviger's main job on the embedded store in a temporary
// directory, step by step, with the same programs that a user runs. It exits
// with 1 when any step is not as said.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	bin := flag.String("bin", "bin", "directory of the programs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	err := demo(ctx, *bin)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\nNOT as said: %v\n", err)
		os.Exit(1)
	}
	fmt.Println("\nEvery step was as said.")
}

// stage is where the demo plays: a server, and two callers of it.
type stage struct {
	ctx    context.Context
	bin    string // absolute
	dir    string
	socket string // the operator's way in
	tls    string // the workload's way in
	server *exec.Cmd
	steps  int
}

func demo(ctx context.Context, bin string) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "claviger-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &stage{ctx: ctx, bin: bin, dir: dir}
	defer s.stop()
	for _, act := range []func() error{s.start, s.enrol, s.makeKeys, s.sign, s.seal, s.rotate, s.steal, s.evidence, s.revoke, s.record} {
		if err := act(); err != nil {
			return err
		}
	}
	return nil
}

// step announces what comes next.
func (s *stage) step(title string) {
	s.steps++
	fmt.Printf("\n%d. %s\n", s.steps, title)
}

func (s *stage) note(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

// result is what a command printed and how it ended.
type result struct {
	stdout, stderr string
	exit           int
}

// command runs a program to its end and shows it.
func (s *stage) command(env []string, input []byte, name string, args ...string) (result, error) {
	shown := filepath.Base(name) + " " + strings.ReplaceAll(strings.Join(args, " "), s.dir+"/", "")
	fmt.Printf("   $ %s\n", shown)
	cmd := exec.CommandContext(s.ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = bytes.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := result{stdout: stdout.String(), stderr: stderr.String(), exit: cmd.ProcessState.ExitCode()}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return r, fmt.Errorf("%s: %w", shown, err)
	}
	return r, nil
}

// operator runs the command line over the local socket; workload runs it over
// TLS as the enrolled principal.
func (s *stage) operator(args ...string) (result, error) {
	return s.command([]string{"CLAVIGER_ADDR=" + s.socket, "HOME=" + s.path("operator")}, nil, filepath.Join(s.bin, "claviger"), args...)
}

func (s *stage) workload(input []byte, args ...string) (result, error) {
	return s.command([]string{"CLAVIGER_ADDR=", "HOME=" + s.path("workload")}, input, filepath.Join(s.bin, "claviger"), args...)
}

// ok insists that a command succeeded and returns what it printed.
func ok(r result, err error) (string, error) {
	if err == nil && r.exit != 0 {
		err = fmt.Errorf("exit status %d: %s", r.exit, strings.TrimSpace(r.stderr))
	}
	return r.stdout, err
}

// refused insists that a command ended with the status, and shows its words.
func (s *stage) refused(r result, err error, exit int) error {
	if err == nil && r.exit != exit {
		err = fmt.Errorf("exit status %d where %d was due: %s%s", r.exit, exit, r.stdout, r.stderr)
	}
	if err == nil {
		first, _, _ := strings.Cut(strings.TrimSpace(r.stderr), "\n")
		s.note("refused, exit status %d: %s", r.exit, first)
	}
	return err
}

func (s *stage) start() error {
	s.step("A server starts on the embedded store. No secret is typed, no C compiler was needed.")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := free.Addr().String()
	free.Close()
	s.tls = "https://" + address
	s.socket = "unix://" + s.path("data/run/claviger.sock")
	began := time.Now()
	log, err := os.Create(s.path("server.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	s.server = exec.CommandContext(s.ctx, filepath.Join(s.bin, "claviger"), "dev", "--dir", s.path("data"), "--listen", address)
	s.server.Cancel = func() error { return s.server.Process.Signal(syscall.SIGTERM) }
	s.server.WaitDelay = 10 * time.Second
	s.server.Stderr = log
	out, err := s.server.StdoutPipe()
	if err != nil {
		return err
	}
	fmt.Printf("   $ claviger dev --dir data --listen %s\n", address)
	if err := s.server.Start(); err != nil {
		return err
	}
	// The server prints lines to try once it is ready.
	if _, err := out.Read(make([]byte, 1)); err != nil {
		said, _ := os.ReadFile(log.Name())
		return fmt.Errorf("the server did not start: %s", said)
	}
	go io.Copy(io.Discard, out)
	s.note("ready after %d ms", time.Since(began).Milliseconds())
	return nil
}

func (s *stage) stop() {
	if s.server != nil && s.server.Process != nil {
		s.server.Process.Signal(syscall.SIGTERM)
		s.server.Wait()
	}
}

func (s *stage) enrol() error {
	s.step("A workload makes its own key and enrols with a one-time code that pins the server's CA.")
	if _, err := ok(s.operator("principal", "create", "shop-web", "--environment", "dev", "--owner", "team-shop")); err != nil {
		return err
	}
	code, err := ok(s.operator("principal", "code", "shop-web"))
	if err != nil {
		return err
	}
	if _, err := ok(s.workload([]byte(code), "principal", "enroll", "--address", s.tls)); err != nil {
		return err
	}
	who, err := ok(s.workload(nil, "principal", "whoami"))
	if err == nil && !strings.Contains(who, "shop-web") {
		err = fmt.Errorf("the server takes the workload for %s", who)
	}
	if err != nil {
		return err
	}
	s.note("a code works once:")
	r, err := s.workload([]byte(code), "--profile", "thief", "principal", "enroll", "--address", s.tls)
	return s.refused(r, err, 3)
}

func (s *stage) makeKeys() error {
	s.step("Keys are made inside the key process. Nobody may use them until a grant says so.")
	for _, k := range [][2]string{{"receipts", "ecdsa-p256-sha256"}, {"vault", "aes-256-gcm"}} {
		if _, err := ok(s.operator("key", "create", "dev/shop/"+k[0], "--algorithm", k[1], "--owner", "team-shop")); err != nil {
			return err
		}
	}
	r, err := s.workload([]byte("early"), "key", "sign", "dev/shop/receipts")
	if err := s.refused(r, err, 3); err != nil {
		return err
	}
	grant, err := ok(s.operator("grant", "create", "shop-web", "dev/shop/*", "sign,verify,seal,open,read-key", "--rate", "1000:1000"))
	s.note("granted: %s", strings.Fields(grant)[1])
	return err
}

func (s *stage) sign() error {
	s.step("The workload signs by handle; openssl alone checks the signature.")
	if err := os.WriteFile(s.path("order"), []byte("order 17: two keys\n"), 0o600); err != nil {
		return err
	}
	if _, err := ok(s.workload(nil, "key", "sign", "dev/shop/receipts", "--in", s.path("order"), "--out", s.path("order.sig"), "--encoding", "raw")); err != nil {
		return err
	}
	pem, err := ok(s.workload(nil, "key", "public", "dev/shop/receipts"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.path("v1.pem"), []byte(pem), 0o600); err != nil {
		return err
	}
	return s.openssl("v1.pem", "order.sig", true)
}

// openssl checks a signature without Claviger, and insists on the outcome.
func (s *stage) openssl(public, signature string, valid bool) error {
	r, err := s.command(nil, nil, "openssl", "dgst", "-sha256", "-verify", s.path(public), "-signature", s.path(signature), s.path("order"))
	if err == nil && (r.exit == 0) != valid {
		err = fmt.Errorf("openssl says: %s%s", r.stdout, r.stderr)
	}
	if err == nil {
		s.note("openssl: %s", strings.TrimSpace(r.stdout))
	}
	return err
}

func (s *stage) seal() error {
	s.step("It seals a record and opens it again; with other associated data nothing opens.")
	plain := []byte("card ending 4242")
	for name, text := range map[string]string{"ad": "customer 9", "other": "customer 8"} {
		if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if _, err := ok(s.workload(plain, "key", "seal", "dev/shop/vault", "--associated-data", s.path("ad"), "--out", s.path("sealed"))); err != nil {
		return err
	}
	opened, err := ok(s.workload(nil, "key", "open", "dev/shop/vault", "--in", s.path("sealed"), "--associated-data", s.path("ad")))
	if err == nil && opened != string(plain) {
		err = fmt.Errorf("opened to %q", opened)
	}
	if err != nil {
		return err
	}
	s.note("opened: %s", opened)
	r, err := s.workload(nil, "key", "open", "dev/shop/vault", "--in", s.path("sealed"), "--associated-data", s.path("other"))
	return s.refused(r, err, 3)
}

func (s *stage) rotate() error {
	s.step("The key is rotated: the old version still verifies, and no longer signs.")
	if _, err := ok(s.operator("key", "rotate", "dev/shop/receipts", "--reason", "demo")); err != nil {
		return err
	}
	out, err := ok(s.workload(nil, "key", "verify", "dev/shop/receipts", "--in", s.path("order"), "--signature-file", s.path("order.sig"), "--encoding", "raw"))
	if err == nil && !strings.Contains(out, "version 1") {
		err = fmt.Errorf("verified with %s", out)
	}
	if err != nil {
		return err
	}
	s.note("%s", strings.TrimSpace(out))
	r, err := s.workload(nil, "key", "sign", "dev/shop/receipts", "--in", s.path("order"), "--out", s.path("new.sig"), "--encoding", "raw")
	if _, err := ok(r, err); err != nil {
		return err
	}
	s.note("%s", strings.TrimSpace(r.stderr))
	if !strings.Contains(r.stderr, "version 2") {
		return errors.New("the old version signed")
	}
	return s.openssl("v1.pem", "new.sig", false)
}

func (s *stage) revoke() error {
	s.step("The grants are withdrawn: the next use is denied.")
	list, err := ok(s.operator("grant", "list", "--principal", "shop-web"))
	if err != nil {
		return err
	}
	for _, line := range strings.Split(strings.TrimSpace(list), "\n")[1:] {
		if _, err := ok(s.operator("grant", "revoke", strings.Fields(line)[0], "--reason", "demo")); err != nil {
			return err
		}
	}
	r, err := s.workload(nil, "key", "sign", "dev/shop/receipts", "--in", s.path("order"))
	return s.refused(r, err, 3)
}

func (s *stage) evidence() error {
	s.step("Every way out is attempted, and what was seen is signed. Anybody with the root checks it, offline.")
	statement, roots := s.path("statement.json"), s.path("ca.pem")
	r, err := s.operator("evidence", "run", "--out", statement)
	// 2 is for a host on which the demo is root: its key process has root's
	// powers then, and the run says so.
	if err == nil && r.exit != 0 && (r.exit != 2 || os.Geteuid() != 0) {
		_, err = ok(r, nil)
	}
	if err != nil {
		return err
	}
	held, controls := strings.Count(r.stdout, " held "), strings.Count(r.stdout, " control ")
	s.note("%d attempts held, and each was seen to work on a weak key or process: %d controls", held, controls)
	if held == 0 || controls < held || strings.Contains(r.stdout, " broken ") {
		return errors.New("the attempts are not as said")
	}
	pem, err := ok(s.operator("server", "roots"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(roots, []byte(pem), 0o600); err != nil {
		return err
	}
	if _, err := ok(s.workload(nil, "evidence", "verify", statement, "--roots", roots)); err != nil {
		return err
	}
	text, err := os.ReadFile(statement)
	if err != nil {
		return err
	}
	text[len(text)/2] ^= 1 // in the payload
	if err := os.WriteFile(statement, text, 0o600); err != nil {
		return err
	}
	r, err = s.workload(nil, "evidence", "verify", statement, "--roots", roots)
	if err == nil && r.exit == 0 {
		err = errors.New("a statement that was changed was believed")
	}
	s.note("the same statement with one bit changed is refused")
	return err
}

func (s *stage) record() error {
	s.step("Everything was recorded before it was answered, the denials too, and the chain is whole.")
	tail, err := ok(s.operator("audit", "tail", "--last", "3"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(tail) {
		s.note("%s", strings.TrimRight(line, "\n"))
	}
	if !strings.Contains(tail, "denied") {
		return errors.New("the denial is not in the record")
	}
	out, err := ok(s.operator("audit", "verify"))
	if err == nil && !strings.Contains(out, "whole") {
		err = errors.New(out)
	}
	s.note("%s", strings.Join(strings.Fields(out), " "))
	return err
}
