package ops_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"claviger.dev"
)

// status is a field of /proc/PID/status.
func status(t *testing.T, pid int, field string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	check(t, err)
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	t.Fatalf("process %d has no %s", pid, field)
	return ""
}

// as runs a command under a uid and reports whether it succeeded.
func as(uid uint32, name string, args ...string) bool {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd.Run() == nil
}

func TestOwnUIDs(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	out, talk, code := s.try(strings.Repeat("0123456789abcdef", 4), "init", "--config", s.config, "--kind", "credential")
	if code != 0 {
		t.Fatalf("init: %s", talk)
	}
	pin, err := os.ReadFile(filepath.Join(s.data, "identity"))
	check(t, err)
	if string(pin) != out || len(strings.TrimSpace(out)) != 64 {
		t.Errorf("identity file %q, printed %q", pin, out)
	}
	credentials := filepath.Join(s.dir, "credentials")
	check(t, os.Mkdir(credentials, 0o700))
	check(t, os.WriteFile(filepath.Join(credentials, "claviger-root"), []byte(strings.Repeat("0123456789abcdef", 4)), 0o400))
	// With no more than the unit's capabilities, and without new privileges.
	s.launchAs(nil, []string{"CREDENTIALS_DIRECTORY=" + credentials}, "setpriv", "--no-new-privs",
		"--bounding-set=-all,+setuid,+setgid,+kill", "--inh-caps=-all", filepath.Join(s.bin, "claviger"), "up", "--config", s.config)
	s.serving(0)

	server, keyd := s.pid("server"), s.pid("keyd")
	for pid, uid := range map[int]int{server: serverUID, keyd: keydUID} {
		if got, want := status(t, pid, "Uid"), fmt.Sprint(uid, uid, uid, uid); got != want {
			t.Errorf("process %d has uids %s, want %s", pid, got, want)
		}
		for _, field := range []string{"CapEff", "CapPrm", "Groups"} {
			if got := strings.Trim(status(t, pid, field), "0"); got != "" {
				t.Errorf("process %d has %s %s", pid, field, got)
			}
		}
	}
	for _, path := range []string{filepath.Join(s.data, "unseal"), filepath.Join(s.data, "unseal", "root.json"), fmt.Sprintf("/proc/%d/environ", keyd), fmt.Sprintf("/proc/%d/mem", keyd), fmt.Sprintf("/proc/%d/fd", keyd), fmt.Sprintf("/proc/%d/environ", server)} {
		for _, uid := range []uint32{serverUID, keydUID} {
			if as(uid, "ls", path+"/") || as(uid, "head", "-c1", path) {
				t.Errorf("uid %d reads %s", uid, path)
			}
		}
	}
	if !as(serverUID, "ls", filepath.Join(s.data, "server")) || as(keydUID, "ls", filepath.Join(s.data, "server")) {
		t.Error("the server's directory is not the server's alone")
	}
	for name, want := range map[string]fs.FileMode{"": 0o755, "unseal": 0o700, "server": 0o700, "run": 0o755, "identity": 0o644} {
		info, err := os.Stat(filepath.Join(s.data, name))
		check(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("%q has mode %v, want %v", name, info.Mode().Perm(), want)
		}
	}
	k := s.key("prod/shop/receipts")
	caller, _ := s.caller("shop", "prod/shop/*")
	check(t, sign(t.Context(), caller, k))
	if k.Level != string(claviger.Isolated) {
		t.Errorf("the key's level is %s", k.Level)
	}
	if out, _, code := s.try("", "doctor"); code != 0 {
		t.Errorf("doctor exits with %d:\n%s", code, out)
	}
}

// TestDoctorNames breaks one thing at a time, and doctor names it.
func TestDoctorNames(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, bin, config string
		kind              string
		spoil             func(*site) error
		want              []string // lines, as words that stand in them
		level             claviger.Level
	}{
		{name: "one uid for all", config: "[users]\nsingle = true\n", kind: "file",
			want: []string{"own uid off", "slots out of the server's reach off", "root key slots off INSECURE"}, level: claviger.Exposed},
		{name: "two share a uid", config: "[users]\nserver = \"61204\"\nkeyd = \"61204\"\nunseal = \"61203\"\n", kind: "file",
			want: []string{"own uid off"}, level: claviger.Exposed},
		{name: "without runtimesecret", bin: plain, kind: "file", want: []string{"secret erasure"}, level: claviger.Isolated},
		{name: "configuration that others write", kind: "file", spoil: func(s *site) error { return os.Chmod(s.config, 0o666) },
			want: []string{"configuration off"}, level: claviger.Isolated},
		{name: "server directory that others read", kind: "file",
			spoil: func(s *site) error { return os.Chmod(filepath.Join(s.data, "server"), 0o755) },
			want:  []string{"store and record off"}, level: claviger.Isolated},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, tc.config)
			if tc.bin != "" {
				s.bin = tc.bin
			}
			s.run("init", "--config", s.config, "--kind", tc.kind)
			s.up()
			if tc.spoil != nil {
				check(t, tc.spoil(s))
			}
			out, _, code := s.try("", "doctor")
			if code != 2 {
				t.Errorf("doctor exits with %d", code)
			}
			flat := strings.Join(strings.Fields(out), " ")
			for _, want := range tc.want {
				if !strings.Contains(flat, want) {
					t.Errorf("doctor does not say %q:\n%s", want, out)
				}
			}
			if k := s.key("prod/shop/receipts"); k.Level != string(tc.level) {
				t.Errorf("the key's level is %s, want %s", k.Level, tc.level)
			}
		})
	}
}
