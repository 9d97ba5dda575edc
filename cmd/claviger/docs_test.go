package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// run starts a development server in a short directory, and stops it when the
// test ends. It returns the fields of the line that says where it serves, and
// how long it took to be ready.
func run(t *testing.T) (serves map[string]string, took time.Duration) {
	t.Helper()
	dir, err := os.MkdirTemp("", "clv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	began := time.Now()
	p, err := start(dir, os.Environ(), "dev", "--dir", filepath.Join(dir, "s"), "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("stop server: %v", err)
		}
	})
	if _, err := wait(p.stdout, "key sign"); err != nil {
		t.Fatal(err)
	}
	took = time.Since(began)
	line, err := wait(p.stderr, "msg=serving")
	if err != nil {
		t.Fatal(err)
	}
	serves = map[string]string{}
	for field := range strings.FieldsSeq(line) {
		name, value, _ := strings.Cut(field, "=")
		serves[name] = value
	}
	return serves, took
}

// Every example of docs/api.md works as it stands.
func TestAPIExamples(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	script := "set -eu\n"
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	for i, block := range blocks {
		script += fmt.Sprintf("echo '== block %d' >&2\n%s", i+1, block[1])
	}
	if len(blocks) < 8 {
		t.Fatalf("docs/api.md has %d examples", len(blocks))
	}
	serves, _ := run(t)
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "bash", "-o", "pipefail", "-xc", script)
	cmd.Dir = home
	cmd.Env = append(os.Environ(), "HOME="+home, "PATH="+bin+":"+os.Getenv("PATH"), "CLAVIGER_ADDR=unix://"+serves["socket"],
		"SOCKET="+serves["socket"], "TLS=https://"+serves["tls"], "METRICS=http://"+serves["metrics"])
	cmd.WaitDelay = patience
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the examples: %v\n%s", err, out)
	}
}

// docs/cli is what the commands say of themselves.
func TestReferenceIsFresh(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.Command(filepath.Join(bin, "claviger"), "docs", "--dir", dir)
	cmd.Env = []string{"HOME=" + dir}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("write the reference: %v\n%s", err, out)
	}
	want, got := pages(t, dir), pages(t, "../../docs/cli")
	if len(want) < 40 {
		t.Fatalf("the reference has %d pages", len(want))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/cli is stale, run 'make docs' (-want +got):\n%s", diff)
	}
}

func pages(t *testing.T, dir string) map[string]string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(name)] = string(text)
	}
	return all
}

// A development server prints three lines to try, which work, and is ready in
// less than two seconds on a machine that has time for it.
func TestDevelopmentServer(t *testing.T) {
	var fastest time.Duration
	for range 3 {
		_, took := run(t)
		if fastest == 0 || took < fastest {
			fastest = took
		}
		if fastest < 2*time.Second {
			break
		}
	}
	if fastest >= 2*time.Second {
		t.Errorf("ready after %v", fastest)
	}
	t.Logf("ready after %v", fastest)
	dir, err := os.MkdirTemp("", "clv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p, err := start(dir, os.Environ(), "dev", "--dir", filepath.Join(dir, "s"), "--listen", "")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for len(lines) < 3 {
		line, err := wait(p.stdout, "")
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	cmd := exec.Command("sh", "-ec", strings.Join(lines, "\n"))
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the lines to try %q: %v\n%s", lines, err, out)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	for line := range p.stdout {
		t.Errorf("a fourth line: %q", line)
	}
}
