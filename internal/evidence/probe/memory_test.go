package probe_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/evidence/probe"
	"claviger.dev/internal/hunt"
)

// process starts a program that anybody of its user can read, with something in
// its memory, as the user of key processes.
func process(t testing.TB, variable string) int {
	t.Helper()
	cmd := exec.Command("cat")
	cmd.Env = []string{"PATH=/bin:/usr/bin", "IN_MEMORY=" + variable}
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	in, err := cmd.StdinPipe()
	if err = errors.Join(err, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

// TestServerMemory: what lies in the memory of a server that its own user can
// read is found, knowing the public half or by asking for the symmetric keys;
// one that cannot be read holds, and the control is found in memory that can.
func TestServerMemory(t *testing.T) {
	t.Parallel()
	p256, _ := plantedKeys(t)
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	symmetric := func(_ context.Context, haystack []byte) (hits []probe.Hit, _ error) {
		if at := bytes.Index(haystack, secret); at >= 0 {
			hits = append(hits, probe.Hit{Key: "test/symmetric", Offset: at, Encoding: "raw"})
		}
		return hits, nil
	}
	keyd := func(t testing.TB) int { return keyProcess(t, uid, "claviger-keyd") }
	in := func(variable string) func(testing.TB) int {
		return func(t testing.TB) int { return process(t, variable) }
	}
	for name, test := range map[string]struct {
		server func(testing.TB) int
		config probe.Config
		want   claviger.Verdict
		result string
		as     string
	}{
		"not readable":  {keyd, probe.Config{Keys: []hunt.Key{p256.Key}, Symmetric: symmetric}, claviger.Held, "cannot be read", "the weak process: its key was found in its memory"},
		"clean":         {in("nothing"), probe.Config{Keys: []hunt.Key{p256.Key}, Symmetric: symmetric}, claviger.Held, "1 keys and the symmetric ones", "planted were found"},
		"asymmetric":    {in(base64.StdEncoding.EncodeToString(p256.der)), probe.Config{Keys: []hunt.Key{p256.Key}}, claviger.Leaked, "copies", "planted were found"},
		"symmetric":     {in(hex.EncodeToString(secret)), probe.Config{Symmetric: symmetric}, claviger.Leaked, "and the symmetric ones", "planted were found"},
		"nothing asked": {in("nothing"), probe.Config{}, claviger.NotAttempted, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := test.config
			c.KeydPID, c.ServerPID = keyProcess(t, uid, "claviger-keyd"), test.server(t)
			a := soft(t, c)["soft.server-memory"]
			if a.Verdict != test.want || !strings.Contains(a.Result, test.result) || !strings.Contains(a.Control, test.as) {
				t.Errorf("%+v", a)
			}
		})
	}
}
