//go:build cgo

package p11d_test

import (
	"bytes"
	"crypto/sha256"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/p11"
	"claviger.dev/internal/p11d/p11dtest"
	"claviger.dev/pubkey"
)

// TestOpenSSL: another program agrees about public keys and signatures.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	c, _ := start(t)
	dir := t.TempDir()
	message := filepath.Join(dir, "message")
	must(t, os.WriteFile(message, []byte("a message"), 0o600))
	for a, args := range map[claviger.Algorithm][]string{
		claviger.ECDSAP256:      {"dgst", "-sha256"},
		claviger.ECDSAP384:      {"dgst", "-sha384"},
		"rsa-2048-pkcs1-sha256": {"dgst", "-sha256"},
		"rsa-2048-pss-sha256":   {"dgst", "-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"},
		claviger.Ed25519:        {"pkeyutl"},
	} {
		m, made := generate(t, c, a)
		sigs, err := c.Sign(t.Context(), m, [][]byte{[]byte("a message")}, false)
		must(t, err)
		k, err := pubkey.Parse(a, made.Public)
		must(t, err)
		public, sig := filepath.Join(dir, string(a)+".pem"), filepath.Join(dir, string(a)+".sig")
		must(t, os.WriteFile(public, k.PEM(), 0o600))
		must(t, os.WriteFile(sig, sigs[0], 0o600))
		args = append(slices.Clone(args), "-verify", public, "-signature", sig, message)
		if args[0] == "pkeyutl" {
			args = []string{"pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", message, "-sigfile", sig}
		}
		if out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", a, err, out)
		}
	}
}

// TestGenerateAgain: making a key again under its binding gives the same key,
// so that a lost answer costs nothing.
func TestGenerateAgain(t *testing.T) {
	t.Parallel()
	c, _ := start(t)
	for _, a := range []claviger.Algorithm{claviger.ECDSAP256, claviger.HMACSHA256} {
		m, made := generate(t, c, a)
		again, err := c.Generate(t.Context(), m.Binding)
		if err != nil || again.Fingerprint != made.Fingerprint || !bytes.Equal(again.Blob, made.Blob) {
			t.Errorf("%s: %v, or another key", a, err)
		}
	}
}

func TestBindRefuses(t *testing.T) {
	t.Parallel()
	c, k := start(t)
	_, made := generate(t, c, claviger.ECDSAP256)
	library(t, k, func(m *pkcs11.Ctx, s pkcs11.SessionHandle) {
		makePair(t, m, s, "twin", []byte{1}, nil)
		makePair(t, m, s, "twin", []byte{2}, nil)
	})
	for name, test := range map[string]struct {
		algorithm claviger.Algorithm
		reference string
		want      claviger.Code
	}{
		"two of the label":     {claviger.ECDSAP256, "pkcs11:object=twin", claviger.Conflict},
		"one by its id":        {claviger.ECDSAP256, "pkcs11:object=twin;id=%01", ""},
		"another curve":        {claviger.ECDSAP384, "pkcs11:id=%01", claviger.Invalid},
		"another kind":         {claviger.AES256GCM, "pkcs11:id=%01", claviger.NotFound},
		"another token":        {claviger.ECDSAP256, "pkcs11:token=elsewhere;id=%01", claviger.NotFound},
		"none":                 {claviger.ECDSAP256, "pkcs11:id=%03", claviger.NotFound},
		"all":                  {claviger.ECDSAP256, "pkcs11:type=private", claviger.Invalid},
		"with a PIN":           {claviger.ECDSAP256, "pkcs11:id=%01?pin-value=1", claviger.Invalid},
		"with a module":        {claviger.ECDSAP256, "pkcs11:id=%01?module-path=/lib/x.so", claviger.Invalid},
		"Claviger's own":       {claviger.ECDSAP256, made.Reference, claviger.Denied},
		"no URI":               {claviger.ECDSAP256, "twin", claviger.Invalid},
		"an unknown algorithm": {claviger.MLDSA65, "pkcs11:id=%01", claviger.Unsupported},
	} {
		if _, err := c.Bind(t.Context(), custodytest.Binding(test.algorithm, claviger.Generated), test.reference); claviger.CodeOf(err) != test.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := custodytest.Binding(claviger.ECDSAP256, claviger.Imported)
	bound, err := c.Bind(t.Context(), b, "pkcs11:id=%01")
	if err != nil || bound.Level != claviger.Exposed {
		t.Errorf("bound as imported: %s, %v", bound.Level, err)
	}
	m := custody.Material{Binding: b, Blob: bound.Blob, Fingerprint: bound.Fingerprint}
	if kept, err := c.Destroy(t.Context(), m); err != nil || !kept {
		t.Errorf("destroy what others made: kept %v, %v", kept, err)
	}
	if _, err := c.Sign(t.Context(), m, [][]byte{nil}, false); err != nil {
		t.Errorf("what was kept: %v", err)
	}
}

// unseal starts `claviger-p11d -unseal`.
func unseal(t *testing.T, k *p11dtest.Token) net.Conn {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	cmd := exec.Command(program, append(k.Args(""), "-unseal")...)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs}, os.Stderr
	must(t, cmd.Start())
	conn, err := net.FileConn(ours)
	must(t, err)
	must(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
	t.Cleanup(func() {
		conn.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the process ended with %v", err)
		}
	})
	return conn
}

func TestRootSlots(t *testing.T) {
	t.Parallel()
	c, k := start(t)
	_, made := generate(t, c, claviger.AES256GCM)
	secret := sha256.Sum256([]byte("slot"))
	talk := unseal(t, k)
	blob, reference, err := p11.Wrap(talk, secret[:])
	must(t, err)
	second, other, err := p11.Wrap(talk, secret[:])
	if err != nil || other == reference || bytes.Equal(blob, second) || bytes.Contains(blob, secret[:]) {
		t.Errorf("two slots share a key: %v", err)
	}
	again := unseal(t, k) // after a restart
	if got, err := p11.Unwrap(again, reference, blob); err != nil || !bytes.Equal(got, secret[:]) {
		t.Errorf("unwrapped %v", err)
	}
	damaged := bytes.Clone(blob)
	damaged[20] ^= 1
	for name, test := range map[string]struct {
		reference string
		blob      []byte
		want      claviger.Code
	}{
		"damaged":         {reference, damaged, claviger.Invalid},
		"cut":             {reference, blob[:40], claviger.Invalid},
		"another slot's":  {other, blob, claviger.Invalid},
		"a key of frames": {made.Reference, blob, claviger.NotFound},
		"no such":         {strings.Replace(reference, "root%20", "root%20x", 1), blob, claviger.NotFound},
		"not even a URI":  {"x", blob, claviger.Invalid},
	} {
		if got, err := p11.Unwrap(again, test.reference, test.blob); claviger.CodeOf(err) != test.want || got != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := p11.Remove(again, made.Reference); claviger.CodeOf(err) != claviger.NotFound {
		t.Errorf("removed a key of frames: %v", err)
	}
	// Nor does frames touch a root slot's key.
	if _, err := c.Bind(t.Context(), custodytest.Binding(claviger.AES256GCM, claviger.Generated), reference); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("bound a root slot's key: %v", err)
	}
	must(t, p11.Remove(again, reference))
	if _, err := p11.Unwrap(again, reference, blob); claviger.CodeOf(err) != claviger.NotFound {
		t.Errorf("after removal: %v", err)
	}
}

// TestWithoutC: a build without C says what is missing.
func TestWithoutC(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "go", "run", "claviger.dev/cmd/claviger-p11d", "-uri", "pkcs11:token=x")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "without a C compiler") || !strings.Contains(string(out), "hint: install gcc") {
		t.Errorf("%v\n%s", err, out)
	}
}

// BenchmarkSign compares signing in batches through custody and the device
// process with the library called directly, by as many callers at once.
func BenchmarkSign(b *testing.B) {
	const batch, callers = 50, 2
	k := p11dtest.NewToken(b)
	c, _ := p11dtest.Client(b, program, k.Args("")...)
	m, _ := generate(b, c, claviger.ECDSAP256)
	digest := sha256.Sum256([]byte("m"))
	inputs := slices.Repeat([][]byte{digest[:]}, batch)
	var through, direct float64
	b.Run("custody", func(b *testing.B) {
		through = rate(b, batch, callers, func(int) error { _, err := c.Sign(b.Context(), m, inputs, true); return err })
	})
	b.Run("library", func(b *testing.B) {
		library(b, k, func(module *pkcs11.Ctx, first pkcs11.SessionHandle) {
			_, o := makePair(b, module, first, "direct", []byte{9}, nil)
			slots, err := module.GetSlotList(true)
			must(b, err)
			var sessions []pkcs11.SessionHandle
			for range callers {
				s, err := module.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
				must(b, err)
				sessions = append(sessions, s)
			}
			mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}
			direct = rate(b, batch, callers, func(caller int) error {
				for _, in := range inputs {
					if err := module.SignInit(sessions[caller], mechanism, o); err != nil {
						return err
					}
					if _, err := module.Sign(sessions[caller], in); err != nil {
						return err
					}
				}
				return nil
			})
		})
		b.ReportMetric(100*through/direct, "custody/library-%")
	})
}

// rate calls f, which signs so many, from several callers.
func rate(b *testing.B, batch, callers int, f func(caller int) error) float64 {
	failed := make(chan error, callers)
	b.ResetTimer()
	for caller := range callers {
		go func() {
			var err error
			for i := caller; i < b.N && err == nil; i += callers {
				err = f(caller)
			}
			failed <- err
		}()
	}
	for range callers {
		if err := <-failed; err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	perSecond := float64(b.N*batch) / b.Elapsed().Seconds()
	b.ReportMetric(perSecond, "signatures/s")
	return perSecond
}
