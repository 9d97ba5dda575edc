package ops_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"claviger.dev/internal/server"
)

const packaging = "../../packaging/systemd"

// TestUnit has systemd read the unit, with the programs where it expects them.
func TestUnit(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(packaging, "claviger.service"))
	check(t, err)
	operate, err := os.ReadFile("../../docs/operate.md")
	check(t, err)
	var program string
	for line := range strings.Lines(string(text)) {
		if command, ok := strings.CutPrefix(line, "ExecStart="); ok {
			program = strings.Fields(command)[0]
		}
	}
	if !strings.Contains(string(operate), filepath.Dir(program)+"/\n") {
		t.Errorf("docs/operate.md installs nothing into %s", filepath.Dir(program))
	}
	unit := filepath.Join(t.TempDir(), "claviger.service")
	check(t, os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), program, filepath.Join(bin, "claviger"))), 0o644))
	check(t, os.Mkdir(unit+".d", 0o755))
	for _, name := range []string{"claviger-tpm.conf", "claviger-pkcs11.conf"} {
		text, err := os.ReadFile(filepath.Join(packaging, name))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(unit+".d", name), text, 0o644))
	}
	cmd := exec.Command("systemd-analyze", "verify", "--man=no", unit)
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "claviger.service") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestAgentUnits has systemd read the units of the agent.
func TestAgentUnits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	service := filepath.Join(dir, "claviger-agent.service")
	for _, name := range []string{"claviger-agent.service", "claviger-agent.timer"} {
		text, err := os.ReadFile(filepath.Join(packaging, name))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(string(text), "/usr/local/bin/claviger ", filepath.Join(bin, "claviger")+" ")), 0o644))
	}
	cmd := exec.Command("systemd-analyze", "verify", "--man=no", service, filepath.Join(dir, "claviger-agent.timer"))
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "claviger-agent") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestAccountsAndDirectories checks that the accounts, the directories, the
// usual configuration and the manual speak of the same.
func TestAccountsAndDirectories(t *testing.T) {
	t.Parallel()
	cfg, err := server.Parse([]byte("data_dir = \"/var/lib/claviger\"\n"))
	check(t, err)
	fields := func(name, kind string) (rows [][]string) {
		f, err := os.Open(filepath.Join(packaging, name))
		check(t, err)
		defer f.Close()
		for in := bufio.NewScanner(f); in.Scan(); {
			if row := strings.Fields(in.Text()); len(row) > 1 && row[0] == kind {
				rows = append(rows, row)
			}
		}
		return rows
	}
	accounts := map[string]bool{"root": true}
	for _, row := range fields("claviger.sysusers", "u") {
		accounts[row[1]] = true
	}
	for _, name := range []string{cfg.Users.Server, cfg.Users.Keyd, cfg.Users.Unseal, cfg.Users.TPM, cfg.Users.P11} {
		if !accounts[name] {
			t.Errorf("no account %s is made", name)
		}
	}
	want := map[string]string{
		cfg.DataDir: "0755 root", filepath.Join(cfg.DataDir, "server"): "0700 claviger",
		filepath.Join(cfg.DataDir, "unseal"): "0700 claviger-unseal", filepath.Dir(cfg.Socket): "0755 claviger",
	}
	operate, err := os.ReadFile("../../docs/operate.md")
	check(t, err)
	for _, row := range fields("claviger.tmpfiles", "d") {
		if want[row[1]] != row[2]+" "+row[3] || row[3] != row[4] {
			t.Errorf("directory %v, want %q", row, want[row[1]])
		}
		delete(want, row[1])
		if !strings.Contains(string(operate), "`"+row[1]+"/`") {
			t.Errorf("docs/operate.md does not speak of %s", row[1])
		}
	}
	if len(want) > 0 {
		t.Errorf("directories that nothing makes: %v", want)
	}
	for _, name := range []string{"claviger.service", "claviger.sysusers", "claviger.tmpfiles", "claviger-tpm.conf", "claviger-pkcs11.conf"} {
		if !strings.Contains(string(operate), "packaging/systemd/"+name) {
			t.Errorf("docs/operate.md does not install %s", name)
		}
	}
}
