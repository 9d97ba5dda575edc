package rootkey_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"claviger.dev/internal/rootkey"
	"github.com/google/go-cmp/cmp"
)

// program runs claviger-unseal in process.
type program struct {
	t     *testing.T
	dir   string
	root  rootkey.Socket
	creds string
	vault func(rootkey.SlotKind, string, int) (rootkey.Vault, error)
}

func (p *program) run(stdin string, args ...string) (status int, out, talk string) {
	p.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.WriteString(w, stdin); err != nil {
		p.t.Fatal(err)
	}
	_ = w.Close()
	var stdout, stderr bytes.Buffer
	u := &rootkey.Unseal{Stdin: r, Stdout: &stdout, Stderr: &stderr, Root: p.root, CredentialsDir: p.creds, Vault: p.vault, Now: time.Now}
	if len(args) > 0 {
		args = append([]string{args[0], "--dir", p.dir}, args[1:]...)
	}
	status = u.Run(p.t.Context(), args)
	return status, stdout.String(), stderr.String()
}

func (p *program) must(stdin string, args ...string) string {
	p.t.Helper()
	status, out, talk := p.run(stdin, args...)
	if status != 0 {
		p.t.Fatalf("%q exits %d: %s", args, status, talk)
	}
	return out
}

// sockets makes the two ends of a root socket.
func sockets(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs = os.NewFile(uintptr(fds[0]), "root"), os.NewFile(uintptr(fds[1]), "root")
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	return ours, theirs
}

func newProgram(t *testing.T) *program {
	return &program{t: t, dir: filepath.Join(t.TempDir(), "unseal")}
}

func TestCommands(t *testing.T) {
	t.Parallel()
	p := newProgram(t)
	p.creds = t.TempDir()
	if err := os.WriteFile(filepath.Join(p.creds, "root"), []byte(credential), 0o400); err != nil {
		t.Fatal(err)
	}
	pin := strings.TrimSpace(p.must("", "init", "--kind", "credential", "--credential", "root"))
	if raw, err := hex.DecodeString(pin); err != nil || len(raw) != 32 {
		t.Fatalf("init printed %q", pin)
	}
	p.must(phrase+"\n", "add", "--kind", "passphrase")
	_, out, talk := p.run("", "add", "--kind", "file")
	if !strings.Contains(talk, "INSECURE") || out != "" {
		t.Errorf("a file slot was added in silence: %q", talk)
	}
	if table := p.must("", "list"); !strings.Contains(table, "file (INSECURE)") || strings.Count(table, "\n") != 4 {
		t.Errorf("list:\n%s", table)
	}
	var rows []map[string]any
	if err := json.Unmarshal([]byte(p.must("", "list", "--format", "json")), &rows); err != nil || len(rows) != 3 || rows[2]["insecure"] != true || rows[0]["insecure"] != false {
		t.Errorf("list: %v, %v", rows, err)
	}
	p.must("", "remove", "3")
	p.must("", "rotate")
	p.must(phrase+"\n", "rotate", "--slot", "2")
	p.must("", "retire", "2")
	p.must("", "admit", strings.Repeat("ab", 32))
	if out := p.must("", "holders"); out != "threshold 0 of 0\n" {
		t.Errorf("holders: %q", out)
	}
	ours, theirs := sockets(t)
	p.root = ours
	got := make(chan *rootkey.Bundle, 1)
	go func() {
		m, err := rootkey.Receive(theirs)
		if err == nil {
			err = rootkey.Send(theirs, rootkey.Message{Kind: rootkey.Done})
		}
		if err != nil {
			t.Error(err)
		}
		got <- m.Bundle
	}()
	p.must("", "open")
	b := <-got
	if sum := b.Pin(); hex.EncodeToString(sum[:]) != pin || len(b.Generations) != 2 || b.Newest().Number != 3 || len(b.Joiners) != 1 {
		t.Errorf("the key process got %d generations up to %d", len(b.Generations), b.Newest().Number)
	}
}

func TestExitStatus(t *testing.T) {
	t.Parallel()
	p := newProgram(t)
	p.must(phrase+"\n", "init", "--kind", "passphrase")
	empty := newProgram(t)
	for name, tt := range map[string]struct {
		p      *program
		stdin  string
		args   []string
		status int
	}{
		"no command":           {p, "", nil, 1},
		"unknown command":      {p, "", []string{"burn"}, 1},
		"unknown flag":         {p, "", []string{"list", "--passphrase", "x"}, 1},
		"surplus argument":     {p, "", []string{"rotate", "now"}, 1},
		"nobody there":         {p, "", []string{"rotate"}, 3},
		"wrong passphrase":     {p, "not the right one\n", []string{"rotate"}, 3},
		"endless passphrase":   {p, strings.Repeat("x", 2000), []string{"rotate"}, 3},
		"last slot":            {p, phrase + "\n", []string{"remove", "1"}, 1},
		"no number":            {p, phrase + "\n", []string{"remove", "one"}, 1},
		"init again":           {p, phrase + "\n", []string{"init", "--kind", "passphrase"}, 2},
		"nothing there":        {empty, "", []string{"open"}, 4},
		"list nothing":         {empty, "", []string{"list"}, 4},
		"short join key":       {p, phrase + "\n", []string{"admit", "abcd"}, 1},
		"unknown format":       {p, "", []string{"list", "--format", "xml"}, 1},
		"join without pin":     {empty, "", []string{"join", "--kind", "file"}, 1},
		"restore over a root":  {p, "", []string{"restore", "--kind", "file"}, 2},
		"credential elsewhere": {newProgram(t), "", []string{"init", "--kind", "credential", "--credential", "../../etc/hostname"}, 4},
		"holder without key":   {p, phrase + "\n", []string{"holders", "--threshold", "2", "ann", "bob"}, 1},
		"holders and none":     {p, phrase + "\n", []string{"holders", "--none", "ann=age1x"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			tt.p.t = t
			status, out, talk := tt.p.run(tt.stdin, tt.args...)
			if status != tt.status || out != "" {
				t.Errorf("exits %d, want %d; printed %q; said %q", status, tt.status, out, talk)
			}
			lines := strings.Split(strings.TrimSpace(talk), "\n")
			if n := len(lines); n < 2 || !strings.HasPrefix(lines[n-2], "error: ") || !strings.HasPrefix(lines[n-1], "hint: ") {
				t.Errorf("said %q", talk)
			}
			if strings.Contains(talk, phrase) || strings.Contains(talk, "not the right one") {
				t.Error("a passphrase was printed")
			}
		})
	}
}

// arriving runs join or restore while the bundle arrives, and returns the
// status and whether the key process was told to serve.
func arriving(t *testing.T, p *program, b *rootkey.Bundle, args ...string) (status int, served bool, talk string) {
	t.Helper()
	ours, theirs := sockets(t)
	p.root = ours
	told := make(chan bool, 1)
	go func() {
		m, err := rootkey.Receive(theirs)
		if err != nil || m.Kind != rootkey.Join && m.Kind != rootkey.Restore {
			told <- false
			return
		}
		_ = rootkey.Send(theirs, rootkey.Message{Kind: m.Kind, Pin: [32]byte(bytes.Repeat([]byte{0xab}, 32))})
		_ = rootkey.Send(theirs, rootkey.Message{Kind: rootkey.Deliver, Bundle: b})
		m, err = rootkey.Receive(theirs)
		told <- err == nil && m.Kind == rootkey.Done
	}()
	status, _, talk = p.run("", args...)
	_ = ours.Close()
	return status, <-told, talk
}

func TestJoin(t *testing.T) {
	t.Parallel()
	other := create(t, newDir(t), rootkey.NewSlot{Kind: rootkey.File}, answers{})
	sum := other.Bundle.Pin()
	pin := hex.EncodeToString(sum[:])
	if err := other.Admit([32]byte{1}); err != nil {
		t.Fatal(err)
	}
	p := newProgram(t)
	status, served, talk := arriving(t, p, other.Bundle, "join", "--kind", "file", "--identity", strings.Repeat("00", 32))
	if status != 3 || served {
		t.Errorf("another identity than named: exits %d, served %v: %s", status, served, talk)
	}
	if _, err := os.Stat(filepath.Join(p.dir, rootkey.SlotsName)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a refused root key was written: %v", err)
	}
	if status, served, talk = arriving(t, p, other.Bundle, "join", "--kind", "file", "--identity", pin); status != 0 || !served {
		t.Fatalf("exits %d, served %v: %s", status, served, talk)
	}
	if want := "root admit': " + strings.Repeat("ab", 32); !strings.Contains(talk, want) {
		t.Errorf("said %q, want the join key as the key process told it", talk)
	}
	d := &rootkey.Dir{Path: p.dir, Now: time.Now}
	got, err := open(t, d, 0, answers{})
	if err != nil {
		t.Fatal(err)
	}
	want := plain(other.Bundle)
	want["joiners"] = [][32]byte{} // whom the other admitted is its own affair
	if diff := cmp.Diff(want, plain(got.Bundle)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// After a rotation there, the same slots take the new bundle.
	if _, err := other.Rotate(); err != nil {
		t.Fatal(err)
	}
	if status, served, talk = arriving(t, p, other.Bundle, "join", "--identity", pin); status != 0 || !served {
		t.Fatalf("again: exits %d, served %v: %s", status, served, talk)
	}
	if got, err = open(t, d, 0, answers{}); err != nil || got.Bundle.Newest().Number != 2 {
		t.Errorf("after the second join: %v", err)
	}
	// A root key of another identity does not replace it.
	stranger := create(t, newDir(t), rootkey.NewSlot{Kind: rootkey.File}, answers{})
	sum = stranger.Bundle.Pin()
	if status, served, _ = arriving(t, p, stranger.Bundle, "join", "--identity", hex.EncodeToString(sum[:])); status != 1 || served {
		t.Errorf("a stranger's: exits %d, served %v", status, served)
	}
}

func TestRestoreWritesWhatArrived(t *testing.T) {
	t.Parallel()
	b := sample()
	p := newProgram(t)
	if status, served, talk := arriving(t, p, b, "restore", "--kind", "file"); status != 0 || !served {
		t.Fatalf("exits %d, served %v: %s", status, served, talk)
	} else if want := "seal --pin': " + strings.Repeat("ab", 32); !strings.Contains(talk, want) {
		t.Errorf("said %q, want the pin as the key process told it", talk)
	}
	if got, err := open(t, &rootkey.Dir{Path: p.dir, Now: time.Now}, 0, answers{}); err != nil || got.Bundle.Pin() != sample().Pin() {
		t.Errorf("restored: %v", err)
	}
}

func TestWaitEnds(t *testing.T) {
	t.Parallel()
	p := newProgram(t)
	ours, _ := sockets(t)
	p.root = ours
	if status, _, talk := p.run("", "join", "--kind", "file", "--identity", strings.Repeat("00", 32), "--wait", "10ms"); status != 5 {
		t.Errorf("exits %d: %s", status, talk)
	}
}
