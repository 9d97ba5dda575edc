package main_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

// bin is the directory of the three programs, built once, and of exits, which
// runs a program and fails unless it ends with a certain status.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "claviger-bin")
		if err == nil {
			defer os.RemoveAll(dir)
			bin = dir
			err = build(dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

func build(dir string) error {
	for _, env := range []struct {
		experiment string
		programs   []string
	}{
		{"", []string{"claviger.dev/cmd/claviger", "claviger.dev/cmd/claviger-unseal", "claviger.dev/cmd/claviger-tpmd"}},
		{"GOEXPERIMENT=runtimesecret", []string{"claviger.dev/cmd/claviger-keyd"}},
		{"CGO_ENABLED=1", []string{"claviger.dev/cmd/claviger-p11d"}},
	} {
		cmd := exec.Command("go", append([]string{"build", "-trimpath", "-o", dir + "/"}, env.programs...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", env.experiment)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %v: %w\n%s", env.programs, err, out)
		}
	}
	exits := "#!/bin/sh\nwant=$1; shift\n\"$@\"; got=$?\n[ $got = $want ] && exit 0\necho \"exit status $got, want $want\" >&2\nexit 1\n"
	return os.WriteFile(filepath.Join(dir, "exits"), []byte(exits), 0o755)
}

// TestScripts runs the scripts of testdata/script: the real programs against
// each other, and against openssl, ssh-keygen and curl.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, scripts(t, "testdata/script"))
}

// scripts are the scripts of a directory with what they can call.
func scripts(t *testing.T, dir string) testscript.Params {
	root, err := os.MkdirTemp("", "clv") // short: a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	return testscript.Params{
		Dir: dir, WorkdirRoot: root, RequireUniqueNames: true, RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			servers := map[string]*process{}
			env.Values["servers"] = servers
			env.Defer(func() {
				for _, p := range servers {
					if err := p.stop(); err != nil {
						env.T().Log("stop server: ", err)
					}
				}
			})
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("BIN", bin)
			env.Setenv("UID", strconv.Itoa(os.Geteuid()))
			env.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			return os.Mkdir(filepath.Join(env.WorkDir, "home"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"server": cmdServer, "stop": cmdStop, "reload": cmdReload, "waitfor": cmdWaitFor, "get": cmdGet,
			"claims": cmdClaims, "x509tbs": cmdX509TBS, "sshtbs": cmdSSHTBS, "agekey": cmdAgeKey, "manykeys": cmdManyKeys,
		},
	}
}

// process is a running supervisor with what is below it.
type process struct {
	cmd    *exec.Cmd
	stdout chan string // lines
	stderr chan string // lines; the last ones are dropped when nobody reads
	once   sync.Once
	err    error
}

// patience is how long the scripts wait for an event.
const patience = 60 * time.Second

func start(dir string, env []string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(filepath.Join(bin, "claviger"), args...), stdout: make(chan string, 64), stderr: make(chan string, 4096)}
	p.cmd.Dir, p.cmd.Env = dir, env
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go lines(stdout, p.stdout)
	go lines(stderr, p.stderr)
	return p, nil
}

func lines(from io.Reader, to chan<- string) {
	defer close(to)
	for s := bufio.NewScanner(from); s.Scan(); {
		select {
		case to <- s.Text():
		default:
		}
	}
}

// wait returns the next line that holds text.
func wait(from <-chan string, text string) (string, error) {
	var seen []string
	late := time.After(patience)
	for {
		select {
		case line, open := <-from:
			if !open {
				return "", fmt.Errorf("the server ended without %q:\n%s", text, strings.Join(seen, "\n"))
			}
			if strings.Contains(line, text) {
				return line, nil
			}
			seen = append(seen, line)
		case <-late:
			return "", fmt.Errorf("no %q:\n%s", text, strings.Join(seen, "\n"))
		}
	}
}

func (p *process) stop() error {
	p.once.Do(func() {
		if p.err = p.cmd.Process.Signal(syscall.SIGTERM); p.err == nil {
			p.err = p.cmd.Wait()
		}
	})
	return p.err
}

// cmdServer starts 'claviger dev' on the directory NAME, or 'claviger up' when
// NAME.toml stands beside it, and waits until it serves. It sets CLAVIGER_ADDR,
// TLS and METRICS.
func cmdServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: server NAME [flags]")
	}
	name := ts.MkAbs(args[0])
	run := append([]string{"dev", "--dir", name, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"}, args[1:]...)
	_, err := os.Stat(name + ".toml")
	up := err == nil
	if up {
		run = append([]string{"up", "--config", name + ".toml"}, args[1:]...)
	}
	env := append(os.Environ(), "HOME="+ts.Getenv("HOME"))
	p, err := start(ts.MkAbs("."), env, run...)
	ts.Check(err)
	ts.Value("servers").(map[string]*process)[args[0]] = p
	line, err := wait(p.stderr, "msg=serving")
	ts.Check(err)
	if !up {
		_, err := wait(p.stdout, "key sign")
		ts.Check(err)
	}
	for field := range strings.FieldsSeq(line) {
		switch name, value, _ := strings.Cut(field, "="); name {
		case "socket":
			ts.Setenv("CLAVIGER_ADDR", "unix://"+value)
		case "tls":
			ts.Setenv("TLS", "https://"+value)
		case "metrics":
			ts.Setenv("METRICS", "http://"+value)
		}
	}
}

// cmdManyKeys makes keys dev/many/key-N of all kinds, as the operator.
func cmdManyKeys(ts *testscript.TestScript, neg bool, args []string) {
	count := 0
	if len(args) == 1 {
		count, _ = strconv.Atoi(args[0])
	}
	if neg || count < 1 {
		ts.Fatalf("usage: manykeys COUNT")
	}
	c, err := client.New(client.Config{Address: ts.Getenv("CLAVIGER_ADDR"), Timeout: time.Minute})
	ts.Check(err)
	defer c.Close()
	algorithms := []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.HMACSHA256, claviger.AES256GCM}
	for i := range count {
		_, err := c.CreateKey(context.Background(), &pb.CreateKeyRequest{Name: fmt.Sprintf("dev/many/key-%d", i), Algorithm: string(algorithms[i%len(algorithms)]), Owner: "test"})
		ts.Check(err)
	}
}

func named(ts *testscript.TestScript, args []string) *process {
	if len(args) == 1 {
		if p := ts.Value("servers").(map[string]*process)[args[0]]; p != nil {
			return p
		}
	}
	ts.Fatalf("no such server: %v", args)
	return nil
}

// cmdStop stops a server and waits for its end.
func cmdStop(ts *testscript.TestScript, _ bool, args []string) { ts.Check(named(ts, args).stop()) }

// cmdReload has the key process of a server replaced, and waits for the new one.
func cmdReload(ts *testscript.TestScript, _ bool, args []string) {
	p := named(ts, args)
	ts.Check(p.cmd.Process.Signal(syscall.SIGHUP))
	_, err := wait(p.stderr, "replacing the key process")
	ts.Check(err)
	_, err = wait(p.stderr, "the key process serves")
	ts.Check(err)
}

// cmdWaitFor waits until a file has content.
func cmdWaitFor(ts *testscript.TestScript, _ bool, args []string) {
	name := ts.MkAbs(args[0])
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		if info, err := os.Stat(name); err == nil && info.Size() > 0 {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			ts.Fatalf("%s did not come", args[0])
		}
	}
}

// cmdGet sets a variable from the JSON on the last standard output: get ID keys.0.id.
func cmdGet(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: get VARIABLE PATH")
	}
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	for step := range strings.SplitSeq(args[1], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[step]
		case []any:
			n, err := strconv.Atoi(step)
			if err != nil || n >= len(at) {
				ts.Fatalf("%s: no element %s of %d", args[1], step, len(at))
			}
			v = at[n]
		default:
			v = nil
		}
	}
	if v == nil {
		ts.Fatalf("%s is not there", args[1])
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}
