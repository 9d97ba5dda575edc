package main_test

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"claviger.dev/internal/p11d/p11dtest"
	"claviger.dev/internal/tpm/tpmtest"
)

// TestAgent runs the script of testdata/agent with software TPMs and a SoftHSM
// token.
func TestAgent(t *testing.T) {
	t.Parallel()
	machine, authority := tpmtest.Certified(t)
	other := tpmtest.Start(t)
	token := p11dtest.NewToken(t)
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	params := scripts(t, "testdata/agent")
	setup := params.Setup
	params.Setup = func(env *testscript.Env) error {
		env.Setenv("TPM", machine.Device())
		env.Setenv("OTHER_TPM", other.Device())
		env.Setenv("TPM_ROOT", root)
		env.Setenv("TOKEN", "pkcs11:token="+url.PathEscape(token.Label)+"?module-path="+p11dtest.Module+"&pin-source=file:"+token.PINFile)
		env.Setenv("TOKEN_CONF", token.Config)
		return setup(env)
	}
	params.Cmds["clone"] = func(ts *testscript.TestScript, _ bool, _ []string) {
		ts.Setenv("CLONE_TPM", machine.Copy(t).Device())
	}
	testscript.Run(t, params)
}

// TestDevices runs the script of testdata/devices with a software TPM and a
// SoftHSM token that has a key from elsewhere.
func TestDevices(t *testing.T) {
	t.Parallel()
	machine, authority := tpmtest.Certified(t)
	token := p11dtest.NewToken(t)
	params := scripts(t, "testdata/devices")
	setup := params.Setup
	params.Setup = func(env *testscript.Env) error {
		root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Raw})
		config := fmt.Sprintf("data_dir = %q\nlisten = \"127.0.0.1:0\"\nnames = [\"127.0.0.1\"]\n[users]\nsingle = true\n"+
			"[tpm]\ndevice = %q\n[[tpm.roots]]\nname = \"workbench\"\nbundle = %q\ntest = true\n"+
			"[pkcs11]\nuri = %q\nenvironment = { SOFTHSM2_CONF = %q }\n",
			filepath.Join(env.WorkDir, "u"), machine.Device(), filepath.Join(env.WorkDir, "root.pem"), token.URI(""), token.Config)
		env.Setenv("SOFTHSM2_CONF", token.Config)
		env.Setenv("LABEL", token.Label)
		env.Setenv("PIN", p11dtest.PIN)
		return errors.Join(setup(env), os.WriteFile(filepath.Join(env.WorkDir, "root.pem"), root, 0o644),
			os.WriteFile(filepath.Join(env.WorkDir, "u.toml"), []byte(config), 0o644))
	}
	testscript.Run(t, params)
}

// BenchmarkAgentEnroll is the whole command, from the start of the program to
// its end: a fresh key in the TPM, attested under a root for tests. It fails
// where one takes 2 s or more.
func BenchmarkAgentEnroll(b *testing.B) {
	machine, authority := tpmtest.Certified(b)
	dir, err := os.MkdirTemp("", "clv")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "u.toml")
	text := fmt.Sprintf("data_dir = \"%[1]s/u\"\nlisten = \"127.0.0.1:0\"\nnames = [\"127.0.0.1\"]\n[users]\nsingle = true\n[limits]\nenroll_per_minute = 100000\n"+
		"[[tpm.roots]]\nname = \"bench\"\nbundle = \"%[1]s/root.pem\"\ntest = true\n", dir)
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Raw})
	if err := errors.Join(os.WriteFile(config, []byte(text), 0o644), os.WriteFile(filepath.Join(dir, "root.pem"), root, 0o644)); err != nil {
		b.Fatal(err)
	}
	run := func(args ...string) string {
		cmd := exec.CommandContext(b.Context(), filepath.Join(bin, "claviger"), args...)
		cmd.Env = append(os.Environ(), "HOME="+dir, "CLAVIGER_ADDR=")
		out, err := cmd.Output()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			b.Fatalf("%v: %v\n%s", args, err, exit.Stderr)
		}
		return string(out)
	}
	run("init", "--config", config, "--kind", "file")
	server, err := start(dir, os.Environ(), "up", "--config", config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.stop() })
	line, err := wait(server.stderr, "msg=serving")
	if err != nil {
		b.Fatal(err)
	}
	_, tls, _ := strings.Cut(line, " tls=")
	tls, _, _ = strings.Cut(tls, " ")
	local, code := "unix://"+filepath.Join(dir, "u", "run", "claviger.sock"), filepath.Join(dir, "code")
	run("--address", local, "principal", "create", "edge", "--kind", "service-account", "--bound")
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		if err := os.WriteFile(code, []byte(run("--address", local, "principal", "code", "edge")), 0o600); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		began := time.Now()
		out := run("agent", "enroll", "--profile", fmt.Sprint("edge", n), "--address", "https://"+tls, "--code-file", code, "--tpm", machine.Device())
		if took := time.Since(began); took >= 2*time.Second || !strings.Contains(out, "attested by root bench (TEST ROOT") {
			b.Fatalf("after %v:\n%s", took, out)
		}
	}
}
