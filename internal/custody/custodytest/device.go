package custodytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/frames"
)

// Device is a custodian over a device, and how its suite can be run.
type Device struct {
	Kind       claviger.Custodian
	Open       func(t *testing.T) *custody.Client // a client of a fresh device
	Algorithms []claviger.Algorithm               // to be tried; the device must offer them; with ecdsa-p256-sha256 and a MAC
	// Overwrite puts the key other where the device holds the victim, behind
	// the custodian's back, as far as whoever has the store and the device can,
	// and returns what the store would now have for the victim.
	Overwrite func(t *testing.T, victim, other Key) custody.Material
}

// RunDevice holds a custodian over a device to the suite.
func RunDevice(t *testing.T, d Device) {
	for name, test := range map[string]func(*testing.T, *custody.Client, Device){
		"sign":               testDeviceSign,
		"mac":                testDeviceMAC,
		"overwritten":        testOverwritten,
		"other verbs":        testDeviceVerbs,
		"offer":              testOffer,
		"binding":            func(t *testing.T, c *custody.Client, _ Device) { testDeviceBinding(t, c) },
		"damaged blob":       func(t *testing.T, c *custody.Client, _ Device) { testDeviceDamage(t, c) },
		"fingerprint":        func(t *testing.T, c *custody.Client, _ Device) { testDeviceFingerprint(t, c) },
		"caps":               func(t *testing.T, c *custody.Client, d Device) { testDeviceCaps(t, c, d) },
		"unload":             func(t *testing.T, c *custody.Client, _ Device) { testDeviceUnload(t, c) },
		"destroy":            func(t *testing.T, c *custody.Client, _ Device) { testDeviceDestroy(t, c) },
		"many keys at once":  func(t *testing.T, c *custody.Client, _ Device) { testDeviceMany(t, c) },
		"generate is strict": func(t *testing.T, c *custody.Client, _ Device) { testGenerateStrict(t, c) },
	} {
		t.Run(name, func(t *testing.T) { test(t, d.Open(t), d) })
	}
}

func testDeviceSign(t *testing.T, c *custody.Client, d Device) {
	for _, a := range d.Algorithms {
		if !a.Asymmetric() {
			continue
		}
		k := Generate(t, c, a)
		messages := [][]byte{nil, []byte("one"), bytes.Repeat([]byte("x"), 5000)}
		sigs, err := c.Sign(t.Context(), k.Material, messages, false)
		if err != nil {
			t.Errorf("%s: %v", a, err)
			continue
		}
		for i := range messages {
			if !Verify(a, k.Public, messages[i], sigs[i]) {
				t.Errorf("%s: signature %d does not verify", a, i)
			}
			if Verify(a, k.Public, append(messages[i], 0), sigs[i]) {
				t.Errorf("%s: signature %d verifies another message", a, i)
			}
		}
		if a.Hash() == 0 {
			continue
		}
		h := a.Hash().New()
		h.Write(messages[1])
		digest := h.Sum(nil)
		if sigs, err = c.Sign(t.Context(), k.Material, [][]byte{digest}, true); err != nil || !Verify(a, k.Public, messages[1], sigs[0]) {
			t.Errorf("%s: the signature of a digest: %v", a, err)
		}
		if _, err := c.Sign(t.Context(), k.Material, [][]byte{digest[1:]}, true); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%s: wrong digest: %v", a, err)
		}
	}
}

func testDeviceMAC(t *testing.T, c *custody.Client, d Device) {
	for _, a := range d.Algorithms {
		if a.Protects() != claviger.MAC {
			continue
		}
		k, other := Generate(t, c, a), Generate(t, c, a)
		if len(k.Public) > 0 || k.Fingerprint.IsZero() || k.Fingerprint == other.Fingerprint {
			t.Errorf("%s: a public half, or no fingerprint of its own", a)
		}
		inputs := [][]byte{[]byte("a"), nil, bytes.Repeat([]byte("b"), 3000)}
		macs, err := c.MAC(t.Context(), k.Material, inputs)
		if err != nil {
			t.Errorf("%s: %v", a, err)
			continue
		}
		again, err := c.MAC(t.Context(), k.Material, inputs)
		if diff := cmp.Diff(macs, again); err != nil || diff != "" {
			t.Errorf("%s: %v, again (-want +got):\n%s", a, err, diff)
		}
		others, err := c.MAC(t.Context(), other.Material, inputs)
		if err != nil || bytes.Equal(macs[0], others[0]) || len(macs[0]) != a.Hash().Size() {
			t.Errorf("%s: %v, or another key's code is the same", a, err)
		}
		wrong := [][]byte{macs[0], macs[1][:16], others[2]}
		valid, err := c.VerifyMAC(t.Context(), k.Material, inputs, wrong)
		if diff := cmp.Diff([]bool{true, false, false}, valid); err != nil || diff != "" {
			t.Errorf("%s: %v: right, cut, another key's (-want +got):\n%s", a, err, diff)
		}
	}
}

// testOverwritten checks that a handle whose key was overwritten in the device
// never signs.
func testOverwritten(t *testing.T, c *custody.Client, d Device) {
	for _, loaded := range []bool{false, true} {
		victim, other := Generate(t, c, claviger.ECDSAP256), Generate(t, c, claviger.ECDSAP256)
		one := [][]byte{[]byte("one")}
		if loaded {
			if _, err := c.Sign(t.Context(), victim.Material, one, false); err != nil {
				t.Fatal(err)
			}
		}
		m := d.Overwrite(t, victim, other)
		if !loaded || !bytes.Equal(m.Blob, victim.Blob) {
			if err := c.Unload(t.Context(), victim.Material); err != nil { // a store that changed is read anew
				t.Fatal(err)
			}
		}
		for _, batch := range []int{1, 2, 50} {
			inputs := make([][]byte, batch)
			if sigs, err := c.Sign(t.Context(), m, inputs, false); err == nil || sigs != nil {
				t.Errorf("loaded before: %v: %d signatures by an overwritten key: %v", loaded, len(sigs), err)
			}
		}
	}
}

// testDeviceVerbs checks that what a device cannot do is told as such.
func testDeviceVerbs(t *testing.T, c *custody.Client, d Device) {
	if _, err := c.Identity(t.Context()); err != nil {
		t.Errorf("identity: %v", err)
	}
	k := Generate(t, c, claviger.ECDSAP256)
	one := [][]byte{[]byte("x")}
	for name, f := range map[string]func() error{
		"MAC with ECDSA":   func() error { _, err := c.MAC(t.Context(), k.Material, one); return err },
		"check with ECDSA": func() error { _, err := c.VerifyMAC(t.Context(), k.Material, one, one); return err },
		"seal":             func() error { _, err := c.Seal(t.Context(), k.Material, make([]custody.Plain, 1)); return err },
		"open":             func() error { _, err := c.Open(t.Context(), k.Material, make([]custody.Sealed, 1)); return err },
		"rewrap":           func() error { _, _, err := c.Rewrap(t.Context(), k.Binding, k.Blob); return err },
		"find":             func() error { _, err := c.Find(t.Context(), k.Material, nil); return err },
		"one-time key": func() error {
			_, err := c.OneTimeKey(t.Context(), "import", Binding(claviger.ECDSAP256, claviger.Imported))
			return err
		},
		"adopt": func() error {
			_, err := c.Adopt(t.Context(), Binding(claviger.ECDSAP256, claviger.Imported), "x", []byte("x"))
			return err
		},
		"shares":   func() error { _, err := c.Shares(t.Context()); return err },
		"join key": func() error { _, err := c.JoinKey(t.Context()); return err },
		"seal key": func() error {
			_, err := c.Generate(t.Context(), Binding(claviger.MLDSA65, claviger.Generated))
			return err
		},
	} {
		if err := f(); claviger.CodeOf(err) != claviger.Unsupported {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, a := range d.Algorithms {
		if a.Protects() != claviger.MAC {
			continue
		}
		mac := Generate(t, c, a)
		if _, err := c.Sign(t.Context(), mac.Material, one, false); claviger.CodeOf(err) != claviger.Unsupported {
			t.Errorf("sign with %s: %v", a, err)
		}
	}
}

// testOffer checks that the device says what it is and offers.
func testOffer(t *testing.T, c *custody.Client, d Device) {
	info, err := c.Device(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.Kind != d.Kind || info.Manufacturer == "" {
		t.Errorf("%+v", info)
	}
	offered := fmt.Sprint(info.Algorithms)
	for _, a := range d.Algorithms {
		if !strings.Contains(offered, string(a)) {
			t.Errorf("%s is not among %s", a, offered)
		}
	}
	made, err := c.Generate(t.Context(), Binding(claviger.ECDSAP256, claviger.Generated))
	if err != nil {
		t.Fatal(err)
	}
	want := claviger.Hardware
	if info.Software {
		want = claviger.Isolated
	}
	if made.Level != want || made.Generation != frames.DeviceGeneration || made.Reference == "" {
		t.Errorf("level %s (want %s), generation %d, reference %q", made.Level, want, made.Generation, made.Reference)
	}
}

func testDeviceBinding(t *testing.T, c *custody.Client) {
	k := Generate(t, c, claviger.ECDSAP256)
	for name, change := range map[string]func(*frames.Binding){
		"key":       func(b *frames.Binding) { b.KeyID = claviger.NewID(time.Now()) },
		"version":   func(b *frames.Binding) { b.Version++ },
		"algorithm": func(b *frames.Binding) { b.Algorithm = claviger.ECDSAP384 },
		"origin":    func(b *frames.Binding) { b.Origin = claviger.Imported },
	} {
		m := k.Material
		change(&m.Binding)
		if sigs, err := c.Sign(t.Context(), m, [][]byte{nil}, false); claviger.CodeOf(err) != claviger.Invalid || sigs != nil {
			t.Errorf("another %s: %v, %d signatures", name, err, len(sigs))
		}
	}
	if _, err := c.Sign(t.Context(), k.Material, [][]byte{nil}, false); err != nil {
		t.Errorf("the right binding: %v", err)
	}
}

func testDeviceDamage(t *testing.T, c *custody.Client) {
	k := Generate(t, c, claviger.ECDSAP256)
	for i := range k.Blob {
		m := k.Material
		m.Blob = bytes.Clone(m.Blob)
		m.Blob[i] ^= 0x40
		if _, err := c.Sign(t.Context(), m, [][]byte{nil}, false); err == nil {
			t.Fatalf("signed with byte %d of the blob flipped", i)
		}
	}
	for _, n := range []int{0, 1, 5, len(k.Blob) / 2, len(k.Blob) - 1} {
		m := k.Material
		m.Blob = m.Blob[:n]
		if _, err := c.Sign(t.Context(), m, [][]byte{nil}, false); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("blob cut to %d: %v", n, err)
		}
	}
}

func testDeviceFingerprint(t *testing.T, c *custody.Client) {
	k := Generate(t, c, claviger.ECDSAP256)
	other := k.Material
	other.Fingerprint[0] ^= 1
	if sigs, err := c.Sign(t.Context(), other, [][]byte{nil}, false); claviger.CodeOf(err) != claviger.Internal || sigs != nil {
		t.Errorf("another fingerprint: %v, %d signatures", err, len(sigs))
	}
	if _, err := c.Sign(t.Context(), k.Material, [][]byte{nil}, false); err != nil {
		t.Errorf("the right fingerprint: %v", err)
	}
}

func testDeviceCaps(t *testing.T, c *custody.Client, d Device) {
	k := Generate(t, c, claviger.ECDSAP256)
	large := make([]byte, frames.MaxInput+1)
	for name, inputs := range map[string][][]byte{
		"items": make([][]byte, frames.MaxItems+1), "bytes": {large}, "together": slices5(large[1:]),
	} {
		if _, err := c.MAC(t.Context(), k.Material, inputs); claviger.CodeOf(err) != claviger.TooLarge {
			t.Errorf("too many %s: %v", name, err)
		}
	}
	if _, err := c.Sign(t.Context(), k.Material, nil, false); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("nothing: %v", err)
	}
	if sigs, err := c.Sign(t.Context(), k.Material, make([][]byte, frames.MaxItems), false); err != nil || len(sigs) != frames.MaxItems {
		t.Errorf("the most items: %v", err)
	}
}

func testDeviceUnload(t *testing.T, c *custody.Client) {
	k := Generate(t, c, claviger.ECDSAP256)
	for range 2 {
		if _, err := c.Sign(t.Context(), k.Material, [][]byte{nil}, false); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := c.Unload(t.Context(), k.Material); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func testDeviceDestroy(t *testing.T, c *custody.Client) {
	k, other := Generate(t, c, claviger.ECDSAP256), Generate(t, c, claviger.ECDSAP256)
	if _, err := c.Sign(t.Context(), k.Material, [][]byte{nil}, false); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if kept, err := c.Destroy(t.Context(), k.Material); err != nil || kept {
			t.Fatalf("destroy: kept %v, %v", kept, err)
		}
	}
	if _, err := c.Sign(t.Context(), other.Material, [][]byte{nil}, false); err != nil {
		t.Errorf("another key: %v", err)
	}
}

// testDeviceMany uses more keys at once than a device may hold.
func testDeviceMany(t *testing.T, c *custody.Client) {
	var group sync.WaitGroup
	defer group.Wait()
	for range 8 {
		k := Generate(t, c, claviger.ECDSAP256)
		group.Go(func() {
			for range 3 {
				sigs, err := c.Sign(t.Context(), k.Material, [][]byte{[]byte("m")}, false)
				if err != nil || !Verify(k.Binding.Algorithm, k.Public, []byte("m"), sigs[0]) {
					t.Errorf("sign: %v", err)
				}
			}
		})
	}
}

// Child is a custody.Source that starts a device process each time it is
// asked, ending the one before.
type Child struct {
	Path string
	Args []string

	mu      sync.Mutex
	process *exec.Cmd
}

// BuildProgram compiles a program of this module into dir and returns its path.
func BuildProgram(dir, name string, env ...string) (string, error) {
	path := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-o", path, "claviger.dev/cmd/"+name)
	cmd.Env = append(append(os.Environ(), "GOFLAGS="), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return path, errors.Join(os.Chmod(path, 0o755), os.Chmod(dir, 0o755))
}

// Next implements custody.Source.
func (s *Child) Next(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.end()
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	defer theirs.Close()
	cmd := exec.Command(s.Path, s.Args...)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.process = cmd
	return net.FileConn(ours)
}

// PID returns the present process's id, 0 before there was one.
func (s *Child) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return 0
	}
	return s.process.Process.Pid
}

// Close ends the present process.
func (s *Child) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end()
}

func (s *Child) end() {
	if s.process != nil {
		_ = s.process.Process.Kill()
		_ = s.process.Wait()
		s.process = nil
	}
}
