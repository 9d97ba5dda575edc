package tpm_test

import (
	"bytes"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/tpm"
	"claviger.dev/internal/tpm/attest"
	"claviger.dev/internal/tpm/tpmtest"
	"claviger.dev/pubkey"
)

// TestMain is also the wire by which the programs of tpm2-tools reach a TPM's
// socket.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "wire" {
		conn, err := net.Dial("unix", os.Args[2])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() {
			_, _ = io.Copy(conn, os.Stdin)
			_ = conn.(*net.UnixConn).CloseWrite()
		}()
		_, _ = io.Copy(os.Stdout, conn)
		return
	}
	os.Exit(m.Run())
}

// run runs a program in a directory; one of tpm2-tools talks to the TPM.
func run(t *testing.T, s *tpmtest.TPM, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=cmd:"+self+" wire "+s.Socket)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// TestPeers has openssl and tpm2-tools read our public keys and attestations
// and check our signatures.
func TestPeers(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	d := open(t, s)
	for _, a := range []claviger.Algorithm{claviger.ECDSAP256, claviger.ECDSAP384, "rsa-2048-pkcs1-sha256", "rsa-2048-pss-sha256"} {
		k := create(t, d, a)
		dir := t.TempDir()
		write := func(name string, b []byte) {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		message := []byte("what was signed")
		h := a.Hash().New()
		h.Write(message)
		sigs, err := d.Sign(k, [][]byte{h.Sum(nil)})
		if err != nil {
			t.Fatal(err)
		}
		said, err := d.Attest(k, nonce)
		if err != nil {
			t.Fatal(err)
		}
		public, err := pubkey.Parse(a, k.Public)
		if err != nil {
			t.Fatal(err)
		}
		write("message", message)
		write("signature", sigs[0])
		write("ours.pem", public.PEM())
		write("area", k.Area)
		hash := strings.ToLower(strings.ReplaceAll(a.Hash().String(), "-", ""))

		// openssl verifies our signature with our public key, and with the one
		// that tpm2_print reads from the TPM's own encoding.
		theirs := run(t, s, dir, "tpm2_print", "-t", "TPMT_PUBLIC", "-f", "pem", "area")
		block, _ := pem.Decode([]byte(theirs))
		if block == nil || !bytes.Equal(block.Bytes, public.SPKI()) {
			t.Errorf("%s: tpm2_print reads another public key:\n%s", a, theirs)
		}
		verify := []string{"dgst", "-" + hash, "-verify", "ours.pem", "-signature", "signature"}
		if params, ok := a.RSA(); ok && params.PSS {
			verify = append(verify, "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest")
		}
		if out := run(t, s, dir, "openssl", append(verify, "message")...); !strings.Contains(out, "Verified OK") {
			t.Errorf("%s: openssl: %s", a, out)
		}

		// So does a TPM.
		d.Close()
		args := []string{"-G", "ecc", "-C", "n", "-u", "ours.pem", "-c", "key.ctx"}
		scheme := "ecdsa"
		if params, ok := a.RSA(); ok {
			args[1] = "rsa"
			scheme = map[bool]string{true: "rsapss", false: "rsassa"}[params.PSS]
		}
		run(t, s, dir, "tpm2_loadexternal", args...)
		run(t, s, dir, "tpm2_verifysignature", "-c", "key.ctx", "-g", hash, "-m", "message", "-s", "signature", "-f", scheme)
		d = open(t, s)

		peersOnAttestation(t, s, dir, said)
	}
}

// peersOnAttestation has openssl check the attestation key's signature, and
// tpm2_print read what was said.
func peersOnAttestation(t *testing.T, s *tpmtest.TPM, dir string, said frames.AttestResponse) {
	t.Helper()
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The attestation: openssl agrees about the signature, tpm2_print about
	// what was said.
	_, akRaw, _, _, err := attest.Describe(said.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	ak, err := pubkey.Parse(claviger.ECDSAP256, akRaw)
	if err != nil {
		t.Fatal(err)
	}
	structure := must[*tpm2.TPMTSignature](t)(tpm2.Unmarshal[tpm2.TPMTSignature](said.Signature))
	write("attest", said.Attest)
	write("attest.sig", must[[]byte](t)(attest.Signature(claviger.ECDSAP256, structure)))
	write("ak.pem", ak.PEM())
	if out := run(t, s, dir, "openssl", "dgst", "-sha256", "-verify", "ak.pem", "-signature", "attest.sig", "attest"); !strings.Contains(out, "Verified OK") {
		t.Errorf("openssl on the attestation: %s", out)
	}
	// (Some releases stop, with an error, where the type's own part begins.)
	printed, _ := exec.Command("tpm2_print", "-t", "TPMS_ATTEST", filepath.Join(dir, "attest")).CombinedOutput()
	for _, want := range []string{"magic: ff544347", "type: 8017", "extraData: " + hex.EncodeToString(nonce)} {
		if !strings.Contains(string(printed), want) {
			t.Errorf("no %s in\n%s", want, printed)
		}
	}
}

// TestCertificate checks the certificate of the endorsement key of a test
// authority.
func TestCertificate(t *testing.T) {
	t.Parallel()
	s, root := tpmtest.Certified(t)
	d := open(t, s)
	e, err := d.Endorse()
	if err != nil {
		t.Fatal(err)
	}
	if len(e.EKCertificates) == 0 {
		t.Fatal("no certificate was read")
	}
	now := time.Now().Add(time.Minute)
	chain, err := attest.Chain(e.EKPublic, e.EKCertificates, pool(root), now)
	if err != nil {
		t.Fatal(err)
	}
	if !chain[len(chain)-1].Equal(root) {
		t.Errorf("leads to %s", chain[len(chain)-1].Subject)
	}
	_, other := tpmtest.Certified(t)
	for name, err := range map[string]error{
		"another root":     second(attest.Chain(e.EKPublic, e.EKCertificates, pool(other), now)),
		"no certificate":   second(attest.Chain(e.EKPublic, nil, pool(root), now)),
		"the root alone":   second(attest.Chain(e.EKPublic, [][]byte{root.Raw}, pool(root), now)),
		"before its time":  second(attest.Chain(e.EKPublic, e.EKCertificates, pool(root), now.AddDate(-1, 0, 0))),
		"attestation key":  second(attest.Chain(e.AKPublic, e.EKCertificates, pool(root), now)),
		"too many":         second(attest.Chain(e.EKPublic, make([][]byte, 17), pool(root), now)),
		"no certificates":  second(attest.Chain(e.EKPublic, [][]byte{[]byte("x")}, pool(root), now)),
		"of another's key": second(attest.Chain(must[[]byte](t)(freshEK(t)), e.EKCertificates, pool(root), now)),
	} {
		if claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLockout locks a TPM by wrong authorisations. Our keys are outside the
// lockout and go on; one that is not is told clearly, and tried once.
func TestLockout(t *testing.T) {
	t.Parallel()
	s, r := set(t)
	protected := weakly()
	protected.FixedTPM, protected.FixedParent, protected.NoDA = true, true, false
	area := signing(protected, tpm2.TPM2BDigest{})
	locked := r.create(r.srk, area)
	wrong := locked
	wrong.handle.Auth = tpm2.PasswordAuth([]byte("guess"))
	for range 4 {
		_, err := tpm2.Sign{
			KeyHandle: wrong.handle, Digest: tpm2.TPM2BDigest{Buffer: sum(nil)}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
		}.Execute(r)
		if err == nil {
			t.Fatal("a guess was right")
		}
	}
	r.TPM.(transport.TPMCloser).Close()

	b := wire(t, s)
	d := over(t, b)
	k, err := tpm.Parse(locked.blob(), auth)
	if err != nil {
		t.Fatal(err)
	}
	signed := 0
	b.on(func(command []byte) ([]byte, bool) {
		if code(command) == tpm2.TPMCCSign {
			signed++
		}
		return nil, false
	})
	_, err = d.Sign(k, digests(3))
	if claviger.CodeOf(err) != claviger.Unavailable || !strings.Contains(err.Error(), "lockout") || signed != 1 {
		t.Errorf("tried %d times: %v", signed, err)
	}
	if sigs, err := d.Sign(create(t, d, claviger.ECDSAP256), digests(3)); err != nil || len(sigs) != 3 {
		t.Errorf("a key outside the lockout: %v", err)
	}
	if attempts, err := d.Probe(create(t, d, claviger.ECDSAP256), true); err != nil {
		t.Errorf("probe: %v, %v", attempts, err)
	}
	d.Close()
	run(t, s, t.TempDir(), "tpm2_dictionarylockout", "--clear-lockout")
	again := open(t, s)
	if sigs, err := again.Sign(k, digests(3)); err != nil || len(sigs) != 3 {
		t.Errorf("after the lockout was cleared: %v", err)
	}
}
