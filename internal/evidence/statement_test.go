package evidence_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"claviger.dev"
	"claviger.dev/internal/evidence"
)

func TestStatementHolds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v, err := evidence.Verify(w.file(), w.options())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range v.Run.Results {
		got = append(got, r.String()+" "+string(r.Level)+" "+r.Finding)
	}
	want := "prod/app/k0#1 isolated |prod/app/k1#1 isolated |prod/app/k2#1 isolated |prod/app/tpm#2 attested "
	if joined := strings.Join(got, "|"); joined != want || len(v.Tests) != 0 {
		t.Errorf("got %s, tests %v, want %s", joined, v.Tests, want)
	}
	if len(v.Signer) != 2 || !v.Signer[1].Equal(w.ca.cert) {
		t.Errorf("the signer's chain is %d long", len(v.Signer))
	}

	if _, err := evidence.Verify(w.withECDSA(), w.options()); err != nil {
		t.Errorf("signed by P-256: %v", err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, w.file(), "", "  "); err != nil {
		t.Fatal(err)
	}
	o := w.options()
	o.Nonce, o.MaxAge = w.run.Nonce, time.Minute
	if _, err := evidence.Verify(indented.Bytes(), o); err != nil {
		t.Errorf("indented: %v", err)
	}
}

func TestTestRootIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run.Report(claviger.TPM).Device.Software = true
	w.judge(true)
	if r := w.run.Results[3]; r.Level != claviger.Attested || !strings.Contains(r.Finding, "test root") || !strings.Contains(r.Finding, "Maker Root") {
		t.Errorf("%s, %q", r.Level, r.Finding)
	}
	o := w.options()
	o.Devices = w.roots(true)
	v, err := evidence.Verify(w.file(), o)
	if err != nil || len(v.Tests) != 1 || !strings.Contains(v.Tests[0], "Maker Root") {
		t.Errorf("%v, %+v", err, v)
	}
	// The same root, taken for a real one, does not make hardware of software.
	if _, err := evidence.Verify(w.file(), w.options()); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("a software TPM was attested by a root that is not for tests: %v", err)
	}
}

// lie is one way to make a statement that must be refused.
type lie struct {
	name string
	make func(w *world, o *evidence.Options) []byte
	want string // in the error
}

// forged are statements by somebody else, or at another time.
func forged() []lie {
	other := newAuthority("Claviger CA") // same name, another key
	return []lie{
		{"another nonce", func(w *world, o *evidence.Options) []byte { o.Nonce = bytes.Repeat([]byte{1}, 32); return w.file() }, "another nonce"},
		{"stale", func(w *world, o *evidence.Options) []byte { o.MaxAge = time.Second; return w.file() }, "ago, more than"},
		{"stale by default", func(w *world, o *evidence.Options) []byte { o.Now = now.Add(8 * 24 * time.Hour); return w.file() }, "ago, more than"},
		{"of the future", func(w *world, o *evidence.Options) []byte { o.Now = now.Add(-time.Hour); return w.file() }, "in the future"},
		{"forged chain", func(w *world, _ *evidence.Options) []byte { w.signer = newSigner(other, nil); return w.file() }, "none of the roots"},
		{"forged chain, right certificate", func(w *world, _ *evidence.Options) []byte {
			w.signer.key = newSigner(other, nil).key
			return w.file()
		}, "does not fit"},
		{"no roots", func(w *world, o *evidence.Options) []byte { o.Roots = x509.NewCertPool(); return w.file() }, "none of the roots"},
		{"expired signer", func(w *world, _ *evidence.Options) []byte {
			w.signer = newSigner(w.ca, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })
			return w.file()
		}, "none of the roots"},
		{"a workload's certificate", func(w *world, _ *evidence.Options) []byte {
			w.signer = newSigner(w.ca, func(c *x509.Certificate) {
				c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
			})
			return w.file()
		}, "not for signing statements"},
		{"a certificate for any use", func(w *world, _ *evidence.Options) []byte {
			w.signer = newSigner(w.ca, func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil })
			return w.file()
		}, "not for signing statements"},
		{"a certificate for more uses", func(w *world, _ *evidence.Options) []byte {
			w.signer = newSigner(w.ca, func(c *x509.Certificate) {
				c.UnknownExtKeyUsage = append(c.UnknownExtKeyUsage, asn1.ObjectIdentifier{1, 2, 3})
			})
			return w.file()
		}, "not for signing statements"},
		{"a certificate for key agreement", func(w *world, _ *evidence.Options) []byte {
			w.signer = newSigner(w.ca, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })
			return w.file()
		}, "not for signing statements"},
		{"the CA's own certificate", func(w *world, _ *evidence.Options) []byte {
			return must(evidence.Envelop(must(w.run.Statement()), make([]byte, 64), w.ca.cert.Raw))
		}, "not for signing statements"},
	}
}

// raised are statements that say more than they show.
func raised() []lie {
	return []lie{
		{"raised level", func(w *world, _ *evidence.Options) []byte {
			w.run.Results[0].Level = claviger.Hardware
			return w.file()
		}, "is said to be hardware"},
		{"raised word of the custodian", func(w *world, _ *evidence.Options) []byte {
			w.run.Results[0].Reported, w.run.Results[0].Level = claviger.Attested, claviger.Attested
			return w.file()
		}, "is said to be attested"},
		{"leaked and not said", func(w *world, _ *evidence.Options) []byte {
			w.run.Groups[0].Attempts[0].Verdict = claviger.Leaked
			return w.file()
		}, "shows exposed"},
		{"broken and not said", func(w *world, _ *evidence.Options) []byte {
			w.run.Groups[0].Attempts[0].Verdict = claviger.Broken
			return w.file()
		}, "does not name"},
		{"imported and not said", func(w *world, _ *evidence.Options) []byte {
			w.run.Results[1].Origin = claviger.Imported
			return w.file()
		}, "shows exposed"},
		{"a custodian that did not report", func(w *world, _ *evidence.Options) []byte {
			w.run.Reports = w.run.Reports[1:]
			return w.file()
		}, "shows lapsed"},
	}
}

// attested are statements whose attestations do not hold.
func attested() []lie {
	return []lie{
		{"attested without roots", func(w *world, o *evidence.Options) []byte { o.Devices = nil; return w.file() }, "is said to be attested"},
		{"attested by another root", func(w *world, o *evidence.Options) []byte {
			o.Devices = evidence.DeviceRoots{{Certificate: newAuthority("Maker Root").cert}}
			return w.file()
		}, "is said to be attested"},
		{"attested without binding", func(w *world, _ *evidence.Options) []byte {
			w.run.Report(claviger.TPM).Bound = false
			return w.file()
		}, "is said to be attested"},
		{"attestation of another run", func(w *world, _ *evidence.Options) []byte {
			w.run.Nonce = bytes.Repeat([]byte{7}, 32)
			return w.file()
		}, "another nonce"},
		{"attestation of another version", func(w *world, _ *evidence.Options) []byte {
			w.run.Results[3].Version++
			return w.file()
		}, "another nonce"},
		{"attestation of another key", func(w *world, _ *evidence.Options) []byte {
			res := &w.run.Results[3]
			res.Attestation = w.chip.certify(tpmKey(false), evidence.Challenge(w.run.Nonce, res.KeyID, res.Version))
			return w.file()
		}, "of another key"},
		{"attestation by another chip", func(w *world, _ *evidence.Options) []byte {
			res := &w.run.Results[3]
			res.Attestation = newChip(w.maker).certify(w.key, evidence.Challenge(w.run.Nonce, res.KeyID, res.Version))
			return w.file()
		}, "did not sign"},
		{"attestation by an unrestricted key", func(w *world, _ *evidence.Options) []byte {
			w.chip.akArea.ObjectAttributes.Restricted = false
			w.run.Report(claviger.TPM).AKPublic = tpm2.Marshal(w.chip.akArea)
			return w.file()
		}, "not restricted"},
		{"no attestation", func(w *world, _ *evidence.Options) []byte { w.run.Results[3].Attestation = nil; return w.file() }, "there is no attestation"},
		{"another object", func(w *world, _ *evidence.Options) []byte {
			w.run.Results[3].Reference = strings.Repeat("00", 34)
			return w.file()
		}, "another object"},
	}
}

// damaged are statements that are not of the form.
func damaged() []lie {
	return []lie{
		{"subjects of another run", func(w *world, _ *evidence.Options) []byte {
			s := evidence.Statement{Type: evidence.StatementType, PredicateType: evidence.PredicateType, Predicate: w.run}
			return w.signer.sign(must(json.Marshal(s)))
		}, "its subjects are not"},
		{"members in another order", func(w *world, _ *evidence.Options) []byte {
			var v map[string]any
			if err := json.Unmarshal(must(w.run.Statement()), &v); err != nil {
				panic(err)
			}
			return w.signer.sign(must(json.Marshal(v)))
		}, "not written as"},
		{"another predicate", func(w *world, _ *evidence.Options) []byte {
			s := must(w.run.Statement())
			return w.signer.sign(bytes.Replace(s, []byte("/evidence/v1"), []byte("/evidence/v2"), 1))
		}, "predicate of type"},
		{"renamed subject", func(w *world, _ *evidence.Options) []byte {
			s := must(w.run.Statement())
			return w.signer.sign(bytes.Replace(s, []byte(`"prod/app/k0#1"`), []byte(`"prod/app/k9#1"`), 1))
		}, "its subjects are not"},
		{"repeated member", func(w *world, _ *evidence.Options) []byte {
			s := must(w.run.Statement())
			return w.signer.sign(bytes.Replace(s, []byte(`"level":"isolated"`), []byte(`"level":"exposed","level":"isolated"`), 1))
		}, "repeated"},
		{"unknown member", func(w *world, _ *evidence.Options) []byte {
			s := must(w.run.Statement())
			return w.signer.sign(bytes.Replace(s, []byte(`"level":"isolated"`), []byte(`"level":"isolated","note":""`), 1))
		}, "unknown"},
		{"repeated member of the envelope", func(w *world, _ *evidence.Options) []byte {
			return bytes.Replace(w.file(), []byte(`{"payloadType"`), []byte(`{"payloadType":"x","payloadType"`), 1)
		}, "repeated"},
		{"changed payload", func(w *world, _ *evidence.Options) []byte {
			var e evidence.Envelope
			if err := json.Unmarshal(w.file(), &e); err != nil {
				panic(err)
			}
			e.Payload = bytes.Replace(e.Payload, []byte("permission denied"), []byte("permission DENIED"), 1)
			return must(json.Marshal(e))
		}, "does not fit"},
		{"two signatures", func(w *world, _ *evidence.Options) []byte {
			var e evidence.Envelope
			if err := json.Unmarshal(w.file(), &e); err != nil {
				panic(err)
			}
			e.Signatures = append(e.Signatures, e.Signatures[0])
			return must(json.Marshal(e))
		}, "2 signatures"},
		{"cut", func(w *world, _ *evidence.Options) []byte { return w.file()[:100] }, "not JSON"},
		{"something after it", func(w *world, _ *evidence.Options) []byte { return append(w.file(), "{}"...) }, "not JSON"},
		{"too large", func(*world, *evidence.Options) []byte { return make([]byte, evidence.MaxStatement+1) }, "more than"},
	}
}

// TestRefused has a statement for each way to lie, forge, replay or damage.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range slices.Concat(forged(), raised(), attested(), damaged()) {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			o := w.options()
			file := tt.make(w, &o)
			v, err := evidence.Verify(file, o)
			if v != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify = %v, want an error with %q", err, tt.want)
			}
			if e, ok := errors.AsType[*claviger.Error](err); !ok || e.Code == claviger.Internal || e.Msg == "" {
				t.Errorf("%v is no error for a caller", err)
			}
		})
	}
}

// TestLoweredLevelHolds shows that a server may say less than a run shows: it
// knows more, such as a clock that went back since the last run.
func TestLoweredLevelHolds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run.Results[3].Level, w.run.Results[3].Finding = claviger.Exposed, "the reset count went back"
	if _, err := evidence.Verify(w.file(), w.options()); err != nil {
		t.Error(err)
	}
}

// TestWeakKeyIsExposed: a public area that allows duplication is no better for
// being certified.
func TestWeakKeyIsExposed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run = newRun(w.chip, tpmKey(true))
	w.judge(false)
	if r := w.run.Results[3]; r.Level != claviger.Exposed || !strings.Contains(r.Finding, "fixedTPM") {
		t.Errorf("%s, %q", r.Level, r.Finding)
	}
}

// verifier is a key as the independent implementation takes one.
type verifier struct{ public ed25519.PublicKey }

func (v verifier) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(v.public, data, sig) {
		return os.ErrInvalid
	}
	return nil
}
func (v verifier) KeyID() (string, error)   { return "", nil }
func (v verifier) Public() crypto.PublicKey { return v.public }

func TestOthersAgree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	public := w.signer.key.Public().(ed25519.PublicKey)
	var e dsse.Envelope
	if err := json.Unmarshal(w.file(), &e); err != nil {
		t.Fatal(err)
	}
	e.Signatures[0].KeyID = "" // it names keys in a way of its own
	check := must(dsse.NewEnvelopeVerifier(verifier{public}))
	if _, payload, err := check.VerifyAndDecode(t.Context(), &e); err != nil || !bytes.Equal(payload, must(w.run.Statement())) {
		t.Errorf("go-securesystemslib refuses the envelope: %v", err)
	}
	e.PayloadType += "x"
	if _, err := check.Verify(t.Context(), &e); err == nil {
		t.Error("go-securesystemslib accepts another payload type: the check cannot fail")
	}

	dir := t.TempDir()
	var ours evidence.Envelope
	if err := json.Unmarshal(w.file(), &ours); err != nil {
		t.Fatal(err)
	}
	der := must(x509.MarshalPKIXPublicKey(public))
	pae := dsse.PAE(ours.PayloadType, ours.Payload)
	for name, data := range map[string][]byte{"pae": pae, "bad": append(pae, 0), "sig": ours.Signatures[0].Sig, "pub": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for data, good := range map[string]bool{"pae": true, "bad": false} {
		cmd := exec.CommandContext(t.Context(), "openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "pub", "-rawin", "-in", data, "-sigfile", "sig")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); (err == nil) != good {
			t.Errorf("openssl on %s: %v: %s", data, err, out)
		}
	}
}

// TestBounded holds the size of a statement about as many keys as a server has.
func TestBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run.Results = w.run.Results[:0]
	for i := range 10_000 {
		w.run.Results = append(w.run.Results, evidence.Result{Groups: []int{0}, Reported: claviger.Isolated, Subject: evidence.Subject{
			Name: claviger.Name("prod/application/purpose-" + string([]byte{'a' + byte(i/1000), '0' + byte(i/100%10), '0' + byte(i/10%10), '0' + byte(i%10)})), KeyID: claviger.NewID(now), Version: 1,
			Algorithm: claviger.Ed25519, Custodian: claviger.Soft, Origin: claviger.Generated, Fingerprint: strings.Repeat("ab", 32)}})
	}
	w.judge(false)
	file := w.file()
	if len(file) > 10<<20 {
		t.Errorf("%d bytes for 10000 keys", len(file))
	}
	v, err := evidence.Verify(file, w.options())
	if err != nil || len(v.Run.Results) != 10_000 {
		t.Fatal(err)
	}
	again, err := evidence.ParseRun(must(v.Run.Encode()))
	if err != nil || len(again.Results) != 10_000 {
		t.Error(err)
	}
}

func FuzzStatement(f *testing.F) {
	w := newWorld(f)
	f.Add(w.file())
	f.Add(must(w.run.Statement()))
	o := w.options()
	f.Fuzz(func(t *testing.T, data []byte) {
		// Whatever is accepted has been signed by our signer, and this fuzzer
		// has no other file of its than the first.
		if v, err := evidence.Verify(data, o); err == nil && !bytes.Equal(must(v.Run.Statement()), must(w.run.Statement())) {
			t.Errorf("accepted %q", data)
		}
		// What is accepted as a payload or a run is what would be written.
		if v, err := evidence.Verify(w.signer.sign(data), o); err == nil && !bytes.Equal(must(v.Run.Statement()), data) {
			t.Errorf("another payload than is written: %q", data)
		}
		if r, err := evidence.ParseRun(data); err == nil && !bytes.Equal(must(r.Encode()), data) {
			t.Errorf("another run than is written: %q", data)
		}
	})
}
