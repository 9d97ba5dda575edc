package ops_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/p11d/p11dtest"
	"claviger.dev/internal/tpm/tpmtest"
)

// chip is a software TPM that every uid reaches.
type chip struct {
	*tpmtest.TPM
	t *testing.T
}

func newChip(t *testing.T) *chip {
	t.Helper()
	c := &chip{tpmtest.Start(t), t}
	check(t, os.Chmod(filepath.Dir(c.Socket), 0o755))
	check(t, os.Chmod(c.Socket, 0o777))
	return c
}

// back plugs it in again.
func (c *chip) back() {
	c.t.Helper()
	c.Restart(c.t)
	check(c.t, os.Chmod(c.Socket, 0o777))
}

// extend changes a platform register.
func (c *chip) extend(pcr uint32) {
	c.t.Helper()
	conn, err := net.Dial("unix", c.Socket)
	check(c.t, err)
	defer conn.Close()
	digest := sha256.Sum256([]byte("another kernel"))
	_, err = tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(transport.FromReadWriter(conn))
	check(c.t, err)
}

// lock has the TPM in lockout, by wrong authorisations of a key that counts
// them.
func (c *chip) lock() {
	c.t.Helper()
	conn, err := net.Dial("unix", c.Socket)
	check(c.t, err)
	defer conn.Close()
	to := transport.FromReadWriter(conn)
	template := tpm2.ECCSRKTemplate
	template.ObjectAttributes.NoDA = false
	made, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte("right")}}},
	}.Execute(to)
	check(c.t, err)
	create := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: made.ObjectHandle, Name: made.Name, Auth: tpm2.PasswordAuth([]byte("wrong"))},
		InPublic:     tpm2.New2B(tpm2.ECCSRKTemplate),
	}
	for range 40 {
		if _, err = create.Execute(to); errors.Is(err, tpm2.TPMRCLockout) {
			_, err = tpm2.FlushContext{FlushHandle: made.ObjectHandle}.Execute(to)
			check(c.t, err)
			return
		}
	}
	c.t.Fatalf("no lockout: %v", err)
}

func (c *chip) config() string { return fmt.Sprintf("\n[tpm]\ndevice = %q\n", c.Device()) }

// newToken is a SoftHSM token that the uid of claviger-p11d alone may use.
func newToken(t *testing.T) *p11dtest.Token {
	t.Helper()
	k := p11dtest.NewToken(t)
	check(t, os.Chmod(filepath.Dir(k.Dir), 0o755))
	give(t, k)
	return k
}

// give gives the token's files to the uid of claviger-p11d.
func give(t *testing.T, k *p11dtest.Token) {
	t.Helper()
	check(t, filepath.WalkDir(k.Dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, p11UID, p11UID))
	}))
}

func tokenConfig(k *p11dtest.Token) string {
	return fmt.Sprintf("\n[pkcs11]\nuri = %q\nenvironment = { SOFTHSM2_CONF = %q }\n", k.URI(""), k.Config)
}

// held makes a key in a custodian.
func (s *site) held(name string, in claviger.Custodian) *pb.Key {
	s.t.Helper()
	k, err := s.op.CreateKey(s.t.Context(), &pb.CreateKeyRequest{Name: name, Algorithm: string(claviger.ECDSAP256), Custodian: string(in)})
	check(s.t, err)
	return k
}

// finds waits until evidence has a finding of each key.
func (s *site) finds(keys ...*pb.Key) {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	for _, k := range keys {
		for k.Versions[0].Finding == "" {
			now, err := s.op.GetKey(s.t.Context(), k.Name)
			check(s.t, err)
			if k = now; time.Now().After(deadline) {
				s.t.Fatalf("nothing is found of %s", k.Name)
			}
		}
	}
}

// process is the newest process of a device that the supervisor started.
func (s *site) process(program string) int {
	s.t.Helper()
	lines, _ := s.log.since(0)
	found := 0
	for _, line := range lines {
		if m := regexp.MustCompile(`msg="started the device's process" .*program=` + program + ` .*pid=(\d+)`).FindStringSubmatch(line); m != nil {
			found, _ = strconv.Atoi(m[1])
		}
	}
	if found == 0 {
		s.t.Fatalf("no %s was started", program)
	}
	return found
}

// all is every custodian.
var all = []claviger.Custodian{claviger.Soft, claviger.TPM, claviger.P11}

// holding is a caller and a key of each custodian.
type holding struct {
	s      *site
	caller *client.Client
	keys   map[claviger.Custodian]*pb.Key
}

func (h *holding) signs(in ...claviger.Custodian) {
	h.s.t.Helper()
	for _, kind := range in {
		if err := sign(h.s.t.Context(), h.caller, h.keys[kind]); err != nil {
			h.s.t.Errorf("%s: %v", kind, err)
		}
	}
}

func (h *holding) refuses(in claviger.Custodian, why string) {
	h.s.t.Helper()
	err := sign(h.s.t.Context(), h.caller, h.keys[in])
	if e, ok := errors.AsType[*claviger.Error](err); !ok || e.Code != claviger.Unavailable || !strings.Contains(e.Msg, why) || e.Hint == "" {
		h.s.t.Errorf("%s: %v, want unavailable, a hint and %q", in, err, why)
	}
}

// kernelAndPIN starts another kernel, which the TPM's slot refuses, and then
// with a wrong PIN, which no slot needs.
func (h *holding) kernelAndPIN(c *chip, k *p11dtest.Token) {
	s, t := h.s, h.s.t
	t.Helper()
	s.stop()
	c.extend(16)
	mark := s.mark()
	s.up()
	s.wait(mark, `not opened: slot 1 \(tpm\): .*platform registers`)
	h.signs(all...)

	s.stop()
	c.back() // which resets the register
	k.SetPIN(t, "00000000")
	give(t, k)
	s.up()
	h.refuses(claviger.P11, "PIN is wrong")
	h.signs(claviger.Soft, claviger.TPM)
	k.SetPIN(t, p11dtest.PIN)
	give(t, k)
	for deadline := time.Now().Add(patience); sign(t.Context(), h.caller, h.keys[claviger.P11]) != nil; { // it looks again after a pause
		if time.Now().After(deadline) {
			t.Fatal("the right PIN does not help")
		}
	}
	h.signs(all...)
}

// TestDevices keeps keys in a TPM and a token beside soft ones, opens the root
// key by both, and takes them away in turn.
func TestDevices(t *testing.T) {
	t.Parallel()
	c, k := newChip(t), newToken(t)
	s := newSite(t, c.config()+tokenConfig(k))
	s.run("init", "--config", s.config, "--kind", "tpm", "--pcr", "16")
	s.root("add", "--config", s.config, "--kind", "pkcs11")
	if out := s.root("list"); !strings.Contains(out, "tpm (SOFTWARE)") || !strings.Contains(out, "pkcs11 (SOFTWARE)") || !strings.Contains(out, "registers [16]") {
		t.Errorf("the slots:\n%s", out)
	}
	s.up()
	keys := map[claviger.Custodian]*pb.Key{}
	for _, in := range all {
		keys[in] = s.held("prod/shop/"+string(in), in)
		if keys[in].Level != string(claviger.Isolated) { // no device here is hardware
			t.Errorf("the level of %s is %s", keys[in].Name, keys[in].Level)
		}
	}
	caller, _ := s.caller("shop", "prod/shop/*")
	h := &holding{s, caller, keys}
	signs, refuses := h.signs, h.refuses
	signs(all...)
	if m := s.measure("keyd/root key slots"); m.State != "on" || !strings.Contains(m.Detail, "1 tpm (") || !strings.Contains(m.Detail, "2 pkcs11 (SoftHSM") || strings.Count(m.Detail, "SOFTWARE") != 2 {
		t.Errorf("doctor says of the slots: %v", m)
	}
	for _, name := range []string{"tpm/device answers", "p11/device answers"} {
		if m := s.measure(name); m.State != "on" || !strings.Contains(m.Detail, "software") {
			t.Errorf("doctor says: %v", m)
		}
	}

	// Everything anew, and nobody types. The evidence is refreshed at the start.
	s.stop()
	s.up()
	signs(all...)
	s.finds(keys[claviger.TPM], keys[claviger.P11])

	// The device goes away in the middle, and comes back.
	keyd := s.pid("keyd")
	c.Kill()
	refuses(claviger.TPM, "TPM does not answer")
	signs(claviger.Soft, claviger.P11)
	c.back()
	signs(all...)

	// The module dies: only its own process is another.
	p11d, tpmd := s.process("claviger-p11d"), s.process("claviger-tpmd")
	check(t, syscall.Kill(p11d, syscall.SIGKILL))
	signs(all...)
	if s.process("claviger-p11d") == p11d || s.process("claviger-tpmd") != tpmd || s.pid("keyd") != keyd {
		t.Error("more than the token's process was replaced, or not even that")
	}
	for pid, uid := range map[int]int{s.process("claviger-tpmd"): tpmUID, s.process("claviger-p11d"): p11UID} {
		if got, want := status(t, pid, "Uid"), fmt.Sprint(uid, uid, uid, uid); got != want {
			t.Errorf("process %d has uids %s, want %s", pid, got, want)
		}
	}

	h.kernelAndPIN(c, k)

	// None of this says that a key got out.
	for in, k := range keys {
		now, err := s.op.GetKey(t.Context(), k.Name)
		check(t, err)
		if now.Level != string(claviger.Isolated) || (in != claviger.Soft) != strings.Contains(now.Versions[0].Finding, "is software") {
			t.Errorf("the level of %s is %s: %s", k.Name, now.Level, now.Versions[0].Finding)
		}
	}
}

// TestTPMSlotAlone has no second slot: what is for a person waits for one, and
// what a device that returns settles goes on by itself.
func TestTPMSlotAlone(t *testing.T) {
	t.Parallel()
	c := newChip(t)
	s := newSite(t, c.config())
	s.run("init", "--config", s.config, "--kind", "tpm", "--pcr", "16")

	// Away at the start.
	c.Kill()
	s.launch(nil)
	s.wait(0, "TPM does not answer")
	c.back()
	s.serving(0)
	k := s.key("prod/shop/receipts")
	caller, _ := s.caller("shop", "prod/shop/*")
	check(t, sign(t.Context(), caller, k))

	// In lockout, which others on the host can bring about at any time: neither
	// the slot nor a key takes part in it.
	s.stop()
	c.lock()
	s.up()
	tpmKey := s.held("prod/shop/chip", claviger.TPM)
	check(t, sign(t.Context(), caller, k))
	check(t, sign(t.Context(), caller, tpmKey))

	// Another kernel: a key process that dies is not replaced, and the slot is
	// not tried without end.
	c.extend(16)
	mark := s.mark()
	check(t, syscall.Kill(s.pid("keyd"), syscall.SIGKILL))
	s.wait(mark, `error: no slot could be opened; slot 1 \(tpm\): .*platform registers`)
	s.wait(mark, "hint: .*another slot")
	s.wait(mark, "a person is needed")
	if err := sign(t.Context(), caller, k); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("without a key process: %v", err)
	}
	lines, _ := s.log.since(mark)
	if n := strings.Count(strings.Join(lines, "\n"), "no slot could be opened"); n != 1 {
		t.Errorf("the slot was tried %d times", n)
	}
	c.back()
	mark = s.mark()
	check(t, s.cmd.Process.Signal(syscall.SIGHUP))
	s.wait(mark, `msg="the key process serves"`)
	check(t, sign(t.Context(), caller, k))

	// Another TPM.
	s.stop()
	c.Kill()
	check(t, os.RemoveAll(c.State))
	check(t, os.Mkdir(c.State, 0o700))
	c.back()
	mark = s.mark()
	s.launch(nil)
	s.wait(mark, `slot 1 \(tpm\): .*storage root key is not the one`)
	s.wait(mark, "a person is needed")
}

// TestDeviceProgramMissing is a site where nobody had a C compiler.
func TestDeviceProgramMissing(t *testing.T) {
	t.Parallel()
	s := newSite(t, tokenConfig(newToken(t)))
	s.bin = plain // has no programs for devices
	_, talk, code := s.try("", "init", "--config", s.config, "--kind", "file")
	if code != 1 || !strings.Contains(talk, "claviger-p11d is not in") || !strings.Contains(talk, "hint:") || !strings.Contains(talk, "C compiler") {
		t.Errorf("exit status %d: %s", code, talk)
	}
}

// TestPINFromCredential has a PIN that only the supervisor may read.
func TestPINFromCredential(t *testing.T) {
	t.Parallel()
	k := newToken(t)
	uri, _, _ := strings.Cut(k.URI(""), "&pin-source=")
	s := newSite(t, fmt.Sprintf("\n[pkcs11]\nuri = %q\npin_credential = \"pin\"\nenvironment = { SOFTHSM2_CONF = %q }\n", uri, k.Config))
	credentials := filepath.Join(s.dir, "credentials")
	check(t, os.Mkdir(credentials, 0o700))
	check(t, os.WriteFile(filepath.Join(credentials, "pin"), []byte(p11dtest.PIN), 0o400))
	if _, talk, code := s.try("", "init", "--config", s.config, "--kind", "pkcs11"); code != 1 || !strings.Contains(talk, "LoadCredential") {
		t.Errorf("without the credential: exit status %d: %s", code, talk)
	}
	env := []string{"CREDENTIALS_DIRECTORY=" + credentials}
	cmd := exec.Command(filepath.Join(s.bin, "claviger"), "init", "--config", s.config, "--kind", "pkcs11")
	cmd.Env = append([]string{"HOME=" + s.dir}, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	s.launchAs(nil, env, "setpriv", "--no-new-privs", "--bounding-set=-all,+setuid,+setgid,+kill", "--inh-caps=-all",
		filepath.Join(s.bin, "claviger"), "up", "--config", s.config)
	s.serving(0)
	key := s.held("prod/shop/receipts", claviger.P11)
	caller, _ := s.caller("shop", "prod/shop/*")
	check(t, sign(t.Context(), caller, key))
}

// TestDevWithDevices tries devices out as one does first.
func TestDevWithDevices(t *testing.T) {
	t.Parallel()
	c, k := newChip(t), p11dtest.NewToken(t)
	dir := filepath.Join(filepath.Dir(c.Socket), "dev")
	cmd := exec.Command(filepath.Join(bin, "claviger"), "dev", "--dir", dir, "--listen", "", "--quiet",
		"--tpm", c.Device(), "--pkcs11", k.URI(""), "--pkcs11-env", "SOFTHSM2_CONF="+k.Config)
	out, err := cmd.StdoutPipe()
	check(t, err)
	var talk strings.Builder
	cmd.Stderr = &talk
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if n, err := out.Read(make([]byte, 1)); n == 0 {
		t.Fatalf("dev does not start: %v\n%s", err, talk.String())
	}
	for _, in := range []string{"tpm", "p11"} {
		cmd := exec.Command(filepath.Join(bin, "claviger"), "key", "create", "dev/demo/"+in, "--algorithm", "ecdsa-p256-sha256", "--custodian", in)
		cmd.Env = []string{"HOME=" + dir, "CLAVIGER_ADDR=unix://" + filepath.Join(dir, "run", "claviger.sock")}
		text, err := cmd.CombinedOutput()
		if err != nil || !regexp.MustCompile(`(?m)^custodian +`+in+`$`).Match(text) {
			t.Errorf("%v\n%s", err, text)
		}
	}
}
