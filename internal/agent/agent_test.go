package agent_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/agent"
	"claviger.dev/internal/p11d/p11dtest"
	"claviger.dev/internal/tpm/tpmtest"
)

// bin has the custodians' programs.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "claviger-agent")
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
	for experiment, programs := range map[string][]string{
		"": {"claviger.dev/cmd/claviger-unseal", "claviger.dev/cmd/claviger-tpmd"}, "runtimesecret": {"claviger.dev/cmd/claviger-keyd"},
	} {
		cmd := exec.Command("go", append([]string{"build", "-o", dir + "/"}, programs...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOEXPERIMENT="+experiment)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %v: %w\n%s", programs, err, out)
		}
	}
	_, err := p11dtest.Build(dir)
	return err
}

func enrolled(t *testing.T, s agent.Settings) (*agent.Agent, []agent.Passed, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "config", "agent")
	s.BinDir = bin
	a, passed, err := agent.Make(t.Context(), dir, s)
	if err != nil {
		t.Fatal(err, passed)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	if agent.Is(dir) {
		t.Error("there is an agent before it was kept")
	}
	bound := &pb.PrincipalBinding{Custodian: string(a.Status().Custodian), Level: "isolated", Root: "bench", TestRoot: true}
	if err := a.Keep(dir, &client.Profile{Address: "https://localhost:1"}, bound); err != nil {
		t.Fatal(err)
	}
	return a, passed, dir
}

func wantSigner(t *testing.T, key crypto.Signer) {
	t.Helper()
	digest := sha256.Sum256([]byte("text"))
	signature, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil || !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), digest[:], signature) {
		t.Errorf("a signature that does not verify, %v", err)
	}
	if _, err := key.Sign(nil, make([]byte, 48), crypto.SHA384); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("another hash: %v", err)
	}
	if _, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		t.Error(err)
	}
}

func TestCustodians(t *testing.T) {
	t.Parallel()
	machine := tpmtest.Start(t)
	for name, tc := range map[string]struct {
		settings agent.Settings
		want     claviger.Custodian
		passed   []claviger.Custodian
	}{
		"a TPM":                {agent.Settings{TPM: machine.Device()}, claviger.TPM, nil},
		"the TPM is forced":    {agent.Settings{Custodian: claviger.TPM, TPM: machine.Device()}, claviger.TPM, nil},
		"nothing but software": {agent.Settings{TPM: "unix:/nowhere"}, claviger.Soft, []claviger.Custodian{claviger.TPM, claviger.P11}},
		"software is forced":   {agent.Settings{Custodian: claviger.Soft, TPM: machine.Device()}, claviger.Soft, nil},
		"no program for it":    {agent.Settings{TPM: "unix:/nowhere", PKCS11: "pkcs11:token=x?module-path=/m&pin-source=file:/p"}, claviger.Soft, []claviger.Custodian{claviger.TPM, claviger.P11}},
	} {
		a, passed, dir := enrolled(t, tc.settings)
		var over []claviger.Custodian
		for _, p := range passed {
			if p.Err == nil {
				t.Errorf("%s: no word why not %s", name, p.Custodian)
			}
			over = append(over, p.Custodian)
		}
		if s := a.Status(); s.Custodian != tc.want || fmt.Sprint(over) != fmt.Sprint(tc.passed) || !s.Device.Software || s.Bound == nil || !s.Bound.TestRoot {
			t.Errorf("%s: %+v after %v", name, s, over)
		}
		wantSigner(t, a)
		again, err := agent.Open(t.Context(), dir, bin)
		if err != nil {
			t.Fatal(err)
		}
		wantSigner(t, again)
		if err := again.Check(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
		if _, _, err := agent.Make(t.Context(), dir, tc.settings); claviger.CodeOf(err) != claviger.Conflict {
			t.Errorf("%s: over another agent: %v", name, err)
		}
		closed(t, dir)
	}
}

// closed insists that what lies in the directory is for its owner alone.
func closed(t *testing.T, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %v, %v", name, info.Mode(), err)
		}
		files++
		return nil
	})
	if err != nil || files < 4 {
		t.Errorf("%d files, %v", files, err)
	}
	beside, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(beside) != 1 {
		t.Errorf("left beside it: %v, %v", beside, err)
	}
}

func TestForeignAndGone(t *testing.T) {
	t.Parallel()
	machine, other := tpmtest.Start(t), tpmtest.Start(t)
	_, _, dir := enrolled(t, agent.Settings{TPM: machine.Device()})
	name := filepath.Join(dir, "agent.json")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	moved := strings.ReplaceAll(string(text), machine.Socket, other.Socket)
	if err := os.WriteFile(name, []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func() error {
		a, err := agent.Open(t.Context(), dir, bin)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		return a.Check(t.Context())
	}
	if err := check(); !errors.Is(err, agent.ErrForeign) || claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("on another host: %v", err)
	}
	other.Kill()
	if err := check(); errors.Is(err, agent.ErrForeign) || claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("without its device: %v", err)
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	token, other := p11dtest.NewToken(t), p11dtest.NewToken(t)
	a, _, dir := enrolled(t, agent.Settings{
		TPM: "unix:/nowhere", Variables: []string{"SOFTHSM2_CONF=" + token.Config},
		PKCS11: "pkcs11:token=" + url.PathEscape(token.Label) + "?module-path=" + p11dtest.Module + "&pin-source=file:" + token.PINFile,
	})
	if s := a.Status(); s.Custodian != claviger.P11 || !s.Device.Software {
		t.Errorf("%+v", s)
	}
	wantSigner(t, a)
	check := func() error {
		a, err := agent.Open(t.Context(), dir, bin)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		return a.Check(t.Context())
	}
	if err := check(); err != nil {
		t.Error(err)
	}
	token.SetPIN(t, "00000000")
	if err := check(); errors.Is(err, agent.ErrForeign) || claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("with a wrong PIN: %v", err)
	}
	name := filepath.Join(dir, "agent.json")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(strings.ReplaceAll(string(text), token.Dir, other.Dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := check(); !errors.Is(err, agent.ErrForeign) {
		t.Errorf("with another token of the same name: %v", err)
	}
}

func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "agent")
	a, _, err := agent.Make(t.Context(), dir, agent.Settings{Custodian: claviger.Soft, BinDir: bin})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	for name, s := range map[string]agent.Settings{
		"no such custodian": {Custodian: "yubikey"}, "no token": {Custodian: claviger.P11}, "no TPM": {Custodian: claviger.TPM, TPM: "unix:/nowhere"},
		"a PIN in the URI": {PKCS11: "pkcs11:token=a?pin-value=1234"}, "no programs": {Custodian: claviger.Soft, BinDir: t.TempDir()},
	} {
		if s.BinDir == "" {
			s.BinDir = bin
		}
		if _, _, err := agent.Make(t.Context(), dir, s); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	for name, text := range map[string]string{"empty": "", "another field": `{"pin":"1"}`, "no key": "{}", "large": strings.Repeat(" ", 1<<17)} {
		bad := t.TempDir()
		if err := os.WriteFile(filepath.Join(bad, "agent.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := agent.Open(t.Context(), bad, bin); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%s state: %v", name, err)
		}
	}
	if _, err := agent.Open(t.Context(), dir, bin); claviger.CodeOf(err) != claviger.NotFound {
		t.Errorf("no state: %v", err)
	}
}
