//go:build failpoints

package chaos_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/server/servertest"
	"claviger.dev/pubkey"
)

const (
	callers      = 6               // at once
	longestWait  = 2 * time.Second // of a caller while a key process is replaced
	signingKey   = "dev/chaos/signing"
	playDeadline = 60 * time.Second
)

// TestPrograms runs the real programs under load, kills and stops their
// processes, and finds everything that was acknowledged afterwards.
func TestPrograms(t *testing.T) {
	bin := buildPrograms(t)
	ctx, cancel := context.WithTimeout(t.Context(), playDeadline)
	defer cancel()
	d := startDev(ctx, t, bin)
	key, err := d.client.CreateKey(ctx, connect.NewRequest(&pb.CreateKeyRequest{Name: signingKey, Algorithm: string(claviger.Ed25519), Owner: "chaos"}))
	if err != nil {
		t.Fatal(err)
	}
	l := &load{T: t, d: d, came: make(chan struct{}, 1)}
	loading, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	for n := range callers {
		group.Go(func() { l.sign(loading, n) })
	}
	group.Go(func() { l.change(loading) })
	disruptions := []struct {
		name    string
		process string
		signal  syscall.Signal
		wait    time.Duration // the longest that a caller may wait
	}{
		{"the key process is killed", "claviger-keyd", syscall.SIGKILL, longestWait},
		{"the server is killed", "claviger", syscall.SIGKILL, readyWithin},
		{"the key process hangs", "claviger-keyd", syscall.SIGSTOP, readyWithin},
		{"the key process is killed again", "claviger-keyd", syscall.SIGKILL, longestWait},
		{"the server is killed again", "claviger", syscall.SIGKILL, readyWithin},
	}
	for _, it := range disruptions {
		l.atWork(ctx)
		l.forget()
		at := time.Now()
		back := l.recovers(ctx, d.end(it.process, it.signal)).Sub(at)
		slowest := l.slowest()
		t.Logf("%s: used again after %v; the slowest call took %v", it.name, back, slowest)
		if back > readyWithin {
			t.Errorf("%s: used again only after %v", it.name, back)
		}
		if slowest > it.wait {
			t.Errorf("%s: a caller waited for %v", it.name, slowest)
		}
	}
	stop()
	group.Wait()
	l.verify(ctx, key.Msg)
}

// dev is a running "claviger dev".
type dev struct {
	*testing.T
	pid    int
	client *servertest.Client
}

// buildPrograms puts the programs, without points, into one directory.
func buildPrograms(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	if err := os.Symlink(keyd, filepath.Join(bin, "claviger-keyd")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "claviger.dev/cmd/claviger", "claviger.dev/cmd/claviger-unseal")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

func startDev(ctx context.Context, t *testing.T, bin string) *dev {
	t.Helper()
	dir, err := os.MkdirTemp("", "clv") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "claviger"), "dev", "--dir", dir, "--listen", "", "--quiet")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("stderr:\n%s", stderr.String())
		}
	})
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil { // it says what to try once it is ready
		t.Fatalf("claviger dev: %v\n%s", err, stderr.String())
	}
	transport := &http.Transport{MaxIdleConnsPerHost: callers + 1, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, "run", "claviger.sock"))
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &dev{T: t, pid: cmd.Process.Pid, client: servertest.NewClient(&http.Client{Transport: transport}, "http://claviger")}
}

// child returns the supervisor's child of that name.
func (d *dev) child(name string) int {
	d.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		d.Fatal(err)
	}
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		before, after, _ := strings.Cut(string(text), " (")
		command, rest, _ := strings.Cut(after, ") ")
		if fields := strings.Fields(rest); command == name && len(fields) > 1 && fields[1] == strconv.Itoa(d.pid) && fields[0] != "Z" {
			pid, err := strconv.Atoi(before)
			if err != nil {
				d.Fatal(err)
			}
			return pid
		}
	}
	d.Fatalf("no process %s", name)
	return 0
}

// end sends a signal to the supervisor's child of that name, and returns when
// the child has ended, be it by the signal or because it hung.
func (d *dev) end(name string, signal syscall.Signal) time.Time {
	d.Helper()
	pid := d.child(name)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		d.Fatal(err)
	}
	defer unix.Close(fd)
	if err := syscall.Kill(pid, signal); err != nil {
		d.Fatal(err)
	}
	for until := time.Now().Add(10 * time.Second); ; { // poll may be interrupted
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(time.Until(until), 0).Milliseconds()))
		if n == 1 {
			return time.Now()
		}
		if err != unix.EINTR {
			d.Fatalf("%s did not end: %v", name, err)
		}
	}
}

// load is what callers do and see.
type load struct {
	*testing.T
	d    *dev
	came chan struct{} // something succeeded

	mu      sync.Mutex // guards what follows
	signed  []call
	keys    []string           // acknowledged changes
	longest time.Duration      // of a call since forget
	last    [callers]time.Time // when the last call that succeeded began, by caller
}

// call is one signature that was released.
type call struct {
	message   []byte
	signature []byte
}

func (l *load) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest = 0
}

func (l *load) slowest() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.longest
}

// sign signs without a pause and without retries.
func (l *load) sign(ctx context.Context, n int) {
	for i := 0; ctx.Err() == nil; i++ {
		message := fmt.Appendf(nil, "message %d of caller %d", i, n)
		began := time.Now()
		answer, err := l.d.client.Sign(ctx, connect.NewRequest(&pb.SignRequest{Key: signingKey, Inputs: [][]byte{message}}))
		l.mu.Lock()
		if ctx.Err() == nil {
			l.longest = max(l.longest, time.Since(began))
		}
		if err == nil {
			l.signed = append(l.signed, call{message, answer.Msg.Signatures[0]})
			l.last[n] = began
		}
		l.mu.Unlock()
		switch {
		case err == nil:
			select {
			case l.came <- struct{}{}:
			default:
			}
		case ctx.Err() == nil && !away(err):
			l.Errorf("sign: %v", err)
		}
	}
}

// change makes keys, one after the other.
func (l *load) change(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("dev/chaos/key-%d", i)
		_, err := l.d.client.CreateKey(ctx, connect.NewRequest(&pb.CreateKeyRequest{Name: name, Algorithm: string(claviger.HMACSHA256), Owner: "chaos"}))
		if err == nil {
			l.mu.Lock()
			l.keys = append(l.keys, name)
			l.mu.Unlock()
		} else if ctx.Err() == nil && !away(err) {
			l.Errorf("create a key: %v", err)
		}
	}
}

// atWork waits until a few hundred more calls have succeeded.
func (l *load) atWork(ctx context.Context) {
	l.Helper()
	for range 300 {
		select {
		case <-l.came:
		case <-ctx.Done():
			l.Fatal("there is no load")
		}
	}
}

// away reports whether an error says that the server is not there. Connect
// calls a connection that was reset cancelled.
func away(err error) bool {
	return connect.CodeOf(err) == connect.CodeUnavailable || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// recovers waits until every caller has made a call that began after the
// moment and succeeded, and returns when that is so.
func (l *load) recovers(ctx context.Context, after time.Time) time.Time {
	l.Helper()
	for {
		l.mu.Lock()
		oldest := slices.MinFunc(l.last[:], time.Time.Compare)
		l.mu.Unlock()
		if oldest.After(after) {
			return time.Now()
		}
		select {
		case <-l.came:
		case <-ctx.Done():
			l.Fatal("the server did not come back")
		}
	}
}

// verify looks for everything that was acknowledged.
func (l *load) verify(ctx context.Context, key *pb.Key) {
	l.Helper()
	if len(l.signed) == 0 || len(l.keys) == 0 {
		l.Fatal("nothing was acknowledged")
	}
	public, err := pubkey.Parse(claviger.Ed25519, key.Versions[0].Public)
	if err != nil {
		l.Fatal(err)
	}
	stream, err := l.d.client.Query(ctx, connect.NewRequest(&pb.QueryRequest{Action: "use.sign", Outcome: "allowed"}))
	if err != nil {
		l.Fatal(err)
	}
	recorded := map[string]int{}
	for stream.Receive() {
		var r struct {
			Digest string `json:"digest"`
		}
		if err := json.Unmarshal(stream.Msg().Line, &r); err != nil {
			l.Fatal(err)
		}
		recorded[r.Digest]++
	}
	if err := stream.Err(); err != nil {
		l.Fatal(err)
	}
	for _, c := range l.signed {
		if !public.Verify(c.message, c.signature, pubkey.ASN1) {
			l.Errorf("%s: the signature is not genuine", c.message)
		}
		sum := sha256.Sum256(append(binary.BigEndian.AppendUint64(nil, uint64(len(c.message))), c.message...))
		if recorded[hex.EncodeToString(sum[:])] == 0 {
			l.Errorf("%s: signed and not recorded", c.message)
		}
	}
	for _, name := range l.keys {
		if _, err := l.d.client.GetKey(ctx, connect.NewRequest(&pb.GetKeyRequest{Key: name})); err != nil {
			l.Errorf("%s was acknowledged: %v", name, err)
		}
	}
	report, err := l.d.client.VerifyAudit(ctx, connect.NewRequest(&pb.VerifyAuditRequest{}))
	if err != nil {
		l.Fatal(err)
	}
	if !report.Msg.Ok {
		l.Errorf("audit log: %v", report.Msg.Faults)
	}
	l.Logf("%d signatures and %d keys were acknowledged, and are there; %d records", len(l.signed), len(l.keys), report.Msg.Records)
}
