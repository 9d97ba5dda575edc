//go:build cgo

package p11d_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/p11d/p11dtest"
)

// buildModule compiles testdata/module.c.
func buildModule(dir string) (string, error) {
	headers, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "module.so")
	cmd := exec.Command("gcc", "-shared", "-fPIC", "-O1", "-Wall", "-I", strings.TrimSpace(string(headers)), `-DSOFTHSM="`+p11dtest.Module+`"`,
		"-o", path, "testdata/module.c", "-ldl")
	cmd.Stderr = os.Stderr
	return path, cmd.Run()
}

// shim is a token behind the module that misbehaves when told.
type shim struct {
	*p11dtest.Token
	mode string // path
}

func (s *shim) set(t testing.TB, mode string) {
	t.Helper()
	must(t, os.WriteFile(s.mode+".new", []byte(mode), 0o600))
	must(t, os.Rename(s.mode+".new", s.mode))
}

// logins is how often the module was given a PIN.
func (s *shim) logins(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile(s.mode + ".logins")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(b)
}

func startShim(t testing.TB, mode string, args ...string) (*custody.Client, *p11dtest.Starter, *shim) {
	t.Helper()
	k := p11dtest.NewToken(t)
	s := &shim{k, filepath.Join(k.Dir, "mode")}
	s.set(t, mode)
	c, starter := p11dtest.Client(t, program, append(append(k.Args(module), "-env", "SHIM_MODE="+s.mode), args...)...)
	return c, starter, s
}

// eventually repeats f until it holds.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for until := time.Now().Add(40 * time.Second); !f(); {
		if time.Now().After(until) {
			t.Fatalf("%s: not within 40 s", what)
		}
	}
}

func TestSuite(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	tokens := map[string]*p11dtest.Token{} // by test
	custodytest.RunDevice(t, custodytest.Device{
		Kind: claviger.P11,
		Open: func(t *testing.T) *custody.Client {
			c, k := start(t)
			mu.Lock()
			defer mu.Unlock()
			tokens[t.Name()] = k
			return c
		},
		Algorithms: []claviger.Algorithm{
			claviger.ECDSAP256, claviger.ECDSAP384, claviger.Ed25519, "rsa-2048-pss-sha256", "rsa-2048-pkcs1-sha512",
			claviger.HMACSHA256, claviger.HMACSHA384, claviger.HMACSHA512,
		},
		// Another key takes the place of the victim in the token: the same id,
		// the same label, every attribute as it should be.
		Overwrite: func(t *testing.T, victim, _ custodytest.Key) custody.Material {
			mu.Lock()
			k := tokens[t.Name()]
			mu.Unlock()
			overwrite(t, k, victim.Material)
			return victim.Material
		},
	})
}

// overwrite destroys the object of a key and makes another under its id and
// label.
func overwrite(t *testing.T, k *p11dtest.Token, m custody.Material) {
	t.Helper()
	library(t, k, func(module *pkcs11.Ctx, s pkcs11.SessionHandle) {
		must(t, module.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "claviger key "+string(m.Binding.KeyID)+" v1")}))
		found, _, err := module.FindObjects(s, 10)
		must(t, err)
		must(t, module.FindObjectsFinal(s))
		if len(found) == 0 {
			t.Fatal("the key is not in the token")
		}
		got, err := module.GetAttributeValue(s, found[0], []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, nil), pkcs11.NewAttribute(pkcs11.CKA_LABEL, nil)})
		must(t, err)
		id, label := got[0].Value, string(got[1].Value)
		remove(t, module, s, id)
		if m.Binding.Algorithm.Asymmetric() {
			makePair(t, module, s, label, id, nil)
			return
		}
		kind, use := uint(pkcs11.CKM_GENERIC_SECRET_KEY_GEN), template{pkcs11.CKA_SIGN: true}
		if m.Binding.Algorithm == claviger.AES256GCM {
			kind, use = pkcs11.CKM_AES_KEY_GEN, template{pkcs11.CKA_ENCRYPT: true, pkcs11.CKA_DECRYPT: true}
		}
		named := template{pkcs11.CKA_LABEL: label, pkcs11.CKA_ID: id, pkcs11.CKA_TOKEN: true, pkcs11.CKA_VALUE_LEN: 32}
		_, err = module.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(kind, nil)}, named.with(use))
		must(t, err)
	})
}

// TestOverwrittenSecret is the same for keys that have no public half.
func TestOverwrittenSecret(t *testing.T) {
	t.Parallel()
	c, k := start(t)
	for _, a := range []claviger.Algorithm{claviger.HMACSHA256, claviger.AES256GCM} {
		m, _ := generate(t, c, a)
		use := func() error {
			if a == claviger.AES256GCM {
				_, err := c.Seal(t.Context(), m, make([]custody.Plain, 1))
				return err
			}
			_, err := c.MAC(t.Context(), m, make([][]byte, 1))
			return err
		}
		must(t, use())
		overwrite(t, k, m)
		for range 2 {
			if err := use(); err == nil {
				t.Errorf("%s: an overwritten key was used", a)
			}
		}
	}
}

func TestModuleFaults(t *testing.T) {
	t.Parallel()
	one := [][]byte{[]byte("m")}
	for mode, want := range map[string]claviger.Code{"crash": claviger.Unavailable, "hang": claviger.Unavailable, "lie": claviger.Internal, "unplug": claviger.Unavailable} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			c, starter, s := startShim(t, "")
			m, made := generate(t, c, claviger.ECDSAP256)
			if _, err := c.Sign(t.Context(), m, one, false); err != nil {
				t.Fatal(err)
			}
			s.set(t, mode)
			if sigs, err := c.Sign(t.Context(), m, one, false); claviger.CodeOf(err) != want || sigs != nil {
				t.Errorf("%d signatures, %v", len(sigs), err)
			}
			s.set(t, "")
			eventually(t, "signing again", func() bool {
				sigs, err := c.Sign(t.Context(), m, one, false)
				return err == nil && custodytest.Verify(m.Binding.Algorithm, made.Public, one[0], sigs[0])
			})
			if again := starter.Started() > 1; again != (mode == "crash") && mode != "hang" {
				t.Errorf("%d processes", starter.Started())
			}
			if n := s.logins(t); n > 2*starter.Started() {
				t.Errorf("%d logins of %d processes", n, starter.Started())
			}
		})
	}
}

// TestRelogin: a token that forgot the login is logged in to again, once.
func TestRelogin(t *testing.T) {
	t.Parallel()
	c, starter, s := startShim(t, "")
	m, _ := generate(t, c, claviger.ECDSAP256)
	s.set(t, "logout")
	if sigs, err := c.Sign(t.Context(), m, make([][]byte, 1), false); err == nil || sigs != nil {
		t.Error("signed without a login")
	}
	s.set(t, "")
	eventually(t, "signing again", func() bool { _, err := c.Sign(t.Context(), m, make([][]byte, 1), false); return err == nil })
	if starter.Started() != 1 {
		t.Errorf("%d processes", starter.Started())
	}
}

// TestKilledMidBatch: what was answered is right, and the next process goes on.
func TestKilledMidBatch(t *testing.T) {
	t.Parallel()
	k := p11dtest.NewToken(t)
	c, starter := p11dtest.Client(t, program, k.Args("")...)
	m, made := generate(t, c, claviger.ECDSAP256)
	inputs := slices.Repeat([][]byte{[]byte("m")}, 200)
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() {
			for range 4 {
				sigs, err := c.Sign(t.Context(), m, inputs, false)
				if err != nil {
					t.Errorf("sign: %v", err)
					return
				}
				for _, sig := range sigs {
					if !custodytest.Verify(m.Binding.Algorithm, made.Public, []byte("m"), sig) {
						t.Error("a signature does not verify")
						return
					}
				}
				_ = exec.CommandContext(t.Context(), "kill", "-9", strconv.Itoa(starter.PID())).Run() // while the other signs
			}
		})
	}
	group.Wait()
	if starter.Started() < 3 {
		t.Errorf("%d processes", starter.Started())
	}
}

// TestDisagrees: a device that reads back otherwise loses the key again.
func TestDisagrees(t *testing.T) {
	t.Parallel()
	c, _, s := startShim(t, "extractable")
	for _, a := range []claviger.Algorithm{claviger.ECDSAP256, claviger.AES256GCM} {
		_, err := c.Generate(t.Context(), custodytest.Binding(a, claviger.Generated))
		if claviger.CodeOf(err) != claviger.Unsupported || !strings.Contains(err.Error(), "CKA_EXTRACTABLE=1") {
			t.Errorf("%s: %v", a, err)
		}
	}
	library(t, s.Token, func(m *pkcs11.Ctx, session pkcs11.SessionHandle) {
		if n := count(t, m, session); n != 0 {
			t.Errorf("%d objects are left", n)
		}
	})
}

// TestTrustedForged: a token that believes a user's CKA_TRUSTED is told.
func TestTrustedForged(t *testing.T) {
	t.Parallel()
	c, _, s := startShim(t, "trusted")
	m, _ := generate(t, c, claviger.ECDSAP256)
	p, err := c.Probe(t.Context(), m, false)
	must(t, err)
	if leaks := by(p.Attempts, claviger.Leaked); !slices.Equal(leaks, []string{"p11.forge-trusted"}) || p.Level != claviger.Exposed {
		t.Errorf("%v, %s", leaks, p.Level)
	}
	s.set(t, "")
	if p, err = c.Probe(t.Context(), m, false); err != nil || p.Level != claviger.Isolated || p.Finding != "" {
		t.Errorf("the same token, honest: %+v, %v", p, err)
	}
}

// TestHardware: without a sign of software, what holds is called hardware.
func TestHardware(t *testing.T) {
	t.Parallel()
	c, _, _ := startShim(t, "hardware")
	m, made := generate(t, c, claviger.ECDSAP256)
	p, err := c.Probe(t.Context(), m, false)
	if err != nil || p.Level != claviger.Hardware || made.Level != claviger.Hardware || p.Finding != "" {
		t.Errorf("%s at first, then %+v, %v", made.Level, p, err)
	}
}

// TestPIN: each way in which a PIN fails has its own error, and no PIN is given
// to the token twice.
func TestPIN(t *testing.T) {
	t.Parallel()
	ask := func(t *testing.T, c *custody.Client, want string) {
		t.Helper()
		for range 3 {
			_, err := c.Device(t.Context())
			if claviger.CodeOf(err) != claviger.Unavailable || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
		if _, err := c.Identity(t.Context()); err != nil {
			t.Errorf("the process does not live: %v", err)
		}
	}
	t.Run("wrong", func(t *testing.T) {
		t.Parallel()
		k := p11dtest.NewToken(t)
		k.SetPIN(t, "00000000")
		s := &shim{k, filepath.Join(k.Dir, "mode")}
		s.set(t, "")
		c, starter := p11dtest.Client(t, program, append(k.Args(module), "-env", "SHIM_MODE="+s.mode)...)
		ask(t, c, "CKR_PIN_INCORRECT")
		began := time.Now()
		eventually(t, "reaching for the token again", func() bool { // which it does once a second
			if _, err := c.Device(t.Context()); err == nil {
				t.Error("logged in with a wrong PIN")
			}
			return time.Since(began) > 2500*time.Millisecond
		})
		if n := s.logins(t); n != 1 {
			t.Errorf("%d tries", n)
		}
		k.SetPIN(t, p11dtest.PIN)
		eventually(t, "the right PIN", func() bool { _, err := c.Device(t.Context()); return err == nil })
		if n := s.logins(t); n != 2 || starter.Started() != 1 {
			t.Errorf("%d tries of %d processes", n, starter.Started())
		}
	})
	t.Run("locked", func(t *testing.T) {
		t.Parallel()
		c, _, s := startShim(t, "pin-locked")
		ask(t, c, "CKR_PIN_LOCKED")
		if n := s.logins(t); n != 1 {
			t.Errorf("%d tries", n)
		}
	})
	t.Run("final try", func(t *testing.T) {
		t.Parallel()
		c, _, s := startShim(t, "final-try")
		ask(t, c, "CKF_USER_PIN_FINAL_TRY")
		if n := s.logins(t); n != 0 {
			t.Errorf("%d tries", n)
		}
		asked, _, s := startShim(t, "final-try", "-final-try")
		if _, err := asked.Device(t.Context()); err != nil || s.logins(t) != 1 {
			t.Errorf("asked for: %v, %d tries", err, s.logins(t))
		}
	})
	t.Run("open to others", func(t *testing.T) {
		t.Parallel()
		c, _, s := startShim(t, "")
		must(t, os.Chmod(s.PINFile, 0o644))
		ask(t, c, "open to others")
		must(t, os.Chmod(s.PINFile, 0o600))
		eventually(t, "closed again", func() bool { _, err := c.Device(t.Context()); return err == nil })
	})
	t.Run("missing", func(t *testing.T) {
		t.Parallel()
		c, _, s := startShim(t, "")
		must(t, os.Remove(s.PINFile))
		ask(t, c, "cannot be read")
	})
}
