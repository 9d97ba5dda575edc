package keeper_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/evidence"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/p11d/p11dtest"
	"claviger.dev/internal/server"
	"claviger.dev/internal/tpm/attest"
	"claviger.dev/internal/tpm/tpmtest"
	"claviger.dev/pubkey"
)

// devices is a world with a software TPM and a software token beside its key
// process, each behind a real process.
type devices struct {
	*world
	state *tpmtest.TPM
	tpm   *custodytest.Child
	token *p11dtest.Token
	p11   *p11dtest.Starter
}

func newDevices(t *testing.T, roots evidence.DeviceRoots) *devices {
	t.Helper()
	dir, err := os.MkdirTemp("", "devices")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	tpmd, err := custodytest.BuildProgram(dir, "claviger-tpmd", "CGO_ENABLED=0")
	if err != nil {
		t.Fatal(err)
	}
	p11d, err := p11dtest.Build(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := &devices{state: tpmtest.Start(t), token: p11dtest.NewToken(t)}
	d.tpm = &custodytest.Child{Path: tpmd, Args: []string{"-device", d.state.Device()}}
	tpm := custody.New(custody.Config{Source: d.tpm, Timeout: 5 * time.Second})
	t.Cleanup(d.tpm.Close)
	t.Cleanup(tpm.Close)
	var p11 *custody.Client
	p11, d.p11 = p11dtest.Client(t, p11d, d.token.Args("")...)
	d.world, _ = isolated(t, func(cfg *keeper.Config) {
		cfg.Devices = map[claviger.Custodian]keeper.Device{claviger.TPM: tpm, claviger.P11: p11}
		cfg.Judge = server.Judge(roots)
	})
	return d
}

func (d *devices) create(name string, kind claviger.Custodian, alg claviger.Algorithm) keeper.KeyView {
	d.Helper()
	v, err := d.CreateKey(d.Context(), d.op, keeper.CreateKey{Name: name, Algorithm: string(alg), Custodian: kind, Owner: "tests"})
	if err != nil {
		d.Fatalf("create %s: %v", name, err)
	}
	return v
}

// Keys of three custodians stand behind one door; each goes to its own.
func TestDevices(t *testing.T) {
	t.Parallel()
	d := newDevices(t, nil)
	ctx := t.Context()
	d.elsewhere(t)
	by := d.caller(7)
	d.grant(by, "prod/*/*", claviger.Conditions{}, claviger.UseOperations...)
	kinds := []claviger.Custodian{claviger.Soft, claviger.TPM, claviger.P11}
	for _, kind := range kinds {
		name := "prod/app/" + string(kind)
		v := d.create(name, kind, claviger.ECDSAP256)
		if v.Custodian != kind || v.Versions[0].Shown.IsZero() || (v.Versions[0].Reference == "") != (kind == claviger.Soft) {
			t.Errorf("%s: %+v", kind, v.Key)
		}
		v, err := d.Rotate(ctx, d.op, name, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := d.Sign(ctx, by, keeper.SignRequest{Key: name, Inputs: [][]byte{[]byte("m")}})
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		public, err := pubkey.Parse(v.Algorithm, v.Versions[1].Public)
		if err != nil || !public.Verify([]byte("m"), signed.Signatures[0], pubkey.ASN1) {
			t.Errorf("%s: the signature does not verify: %v", kind, err)
		}
	}
	d.create("prod/app/mac", claviger.TPM, claviger.HMACSHA256)
	macs, err := d.MAC(ctx, by, keeper.MACRequest{Key: "prod/app/mac", Inputs: [][]byte{[]byte("m")}})
	if err != nil {
		t.Fatal(err)
	}
	verdicts, err := d.VerifyMAC(ctx, by, keeper.VerifyMACRequest{Key: "prod/app/mac", Items: []keeper.Item{{Input: []byte("m"), Signature: macs.MACs[0]}}})
	if err != nil || !verdicts[0].Valid {
		t.Errorf("verify a MAC of the TPM: %v, %v", verdicts, err)
	}
	if done, err := d.Rewrap(ctx, d.op); err != nil || done.Already != 6 || done.Rewrapped+done.Damaged != 0 {
		t.Errorf("a rewrap looked at what no root wraps: %+v, %v", done, err)
	}
	if _, err := d.ChangeState(ctx, d.op, "prod/app/tpm", 1, claviger.Destroyed, "done", false); err != nil {
		t.Errorf("destroy a version of the TPM: %v", err)
	}
	d.binds(t, by)
	d.destroys(t)
	d.refuses(t)
	d.shows(t)
	d.loses(t, by)
}

// elsewhere puts a key into the token that was made outside.
func (d *devices) elsewhere(t *testing.T) {
	t.Helper()
	key, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, err2 := x509.MarshalPKCS8PrivateKey(key)
	path := filepath.Join(d.token.Dir, "elsewhere.pem")
	err3 := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	d.token.Tool(t, "softhsm2-util", "--import", path, "--token", d.token.Label, "--pin", p11dtest.PIN, "--label", "elsewhere", "--id", "a1")
}

// binds takes a key into custody that was in the token before: it is used like
// any other, and called what the token says of where it was made. Destroyed, it
// stays in the token.
func (d *devices) binds(t *testing.T, by claviger.Principal) {
	t.Helper()
	for _, name := range []string{"prod/app/bound", "prod/app/bound-again"} {
		made, err := d.CreateKey(t.Context(), d.op, keeper.CreateKey{Name: name, Algorithm: string(claviger.ECDSAP256),
			Custodian: claviger.P11, Reference: "pkcs11:object=elsewhere", Owner: "tests"})
		if err != nil {
			t.Fatalf("bind: %v", err)
		}
		if made.Level() != claviger.Exposed || made.Versions[0].Reference == "" {
			t.Errorf("what was made outside the token is %s, %+v", made.Level(), made.Versions[0])
		}
		if err := sign(d.world, by, name); err != nil {
			t.Errorf("a bound key: %v", err)
		}
		if _, err := d.ChangeState(t.Context(), d.op, name, 1, claviger.Destroyed, "done", false); err != nil {
			t.Errorf("destroy a bound key: %v", err)
		}
	}
}

// destroys has the token delete what was made there, and nothing else.
func (d *devices) destroys(t *testing.T) {
	t.Helper()
	made, err := d.Key(t.Context(), d.op, "prod/app/p11")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.ChangeState(t.Context(), d.op, "prod/app/p11", 1, claviger.Destroyed, "done", false); err != nil {
		t.Fatalf("destroy a version of the token: %v", err)
	}
	_, err = d.CreateKey(t.Context(), d.op, keeper.CreateKey{Name: "prod/app/again", Algorithm: string(claviger.ECDSAP256),
		Custodian: claviger.P11, Reference: made.Versions[0].Reference, Owner: "tests"})
	wantCode(t, "find a version that was destroyed", err, claviger.NotFound)
	_, err = d.CreateKey(t.Context(), d.op, keeper.CreateKey{Name: "prod/app/again", Algorithm: string(claviger.ECDSAP256),
		Custodian: claviger.P11, Reference: made.Versions[1].Reference, Owner: "tests"})
	if claviger.CodeOf(err) == claviger.NotFound {
		t.Error("a version that was not destroyed is gone too")
	}
}

// refuses tries what no device does.
func (d *devices) refuses(t *testing.T) {
	t.Helper()
	for name, test := range map[string]struct {
		req  keeper.CreateKey
		want claviger.Code
		hint string
	}{
		"an algorithm that it does not offer": {keeper.CreateKey{Algorithm: "ml-dsa-65", Custodian: claviger.TPM}, claviger.Unsupported, "ecdsa-p256-sha256"},
		"an import":                           {keeper.CreateKey{Algorithm: "ed25519", Custodian: claviger.P11, ForImport: true}, claviger.Unsupported, "key process"},
		"a custodian that there is not":       {keeper.CreateKey{Algorithm: "ed25519", Custodian: "hsm"}, claviger.Invalid, "p11"},
		"a reference into a TPM":              {keeper.CreateKey{Algorithm: "ed25519", Custodian: claviger.TPM, Reference: "pkcs11:object=x"}, claviger.Invalid, "p11"},
		"a reference with a PIN":              {keeper.CreateKey{Algorithm: "ed25519", Custodian: claviger.P11, Reference: "pkcs11:object=x?pin-value=1"}, claviger.Invalid, "PIN"},
		"a reference that is none":            {keeper.CreateKey{Algorithm: "ed25519", Custodian: claviger.P11, Reference: "/dev/null"}, claviger.Invalid, "7512"},
	} {
		test.req.Name = "prod/app/none"
		_, err := d.CreateKey(t.Context(), d.op, test.req)
		e, _ := err.(*claviger.Error)
		if claviger.CodeOf(err) != test.want || e == nil || !strings.Contains(e.Hint, test.hint) {
			t.Errorf("%s: %v, want %s with a hint of %s", name, err, test.want, test.hint)
		}
	}
	_, err := d.BeginImport(t.Context(), d.op, "prod/app/tpm")
	wantCode(t, "import into the TPM", err, claviger.Unsupported)
	_, _, err = d.Attest(t.Context(), d.op, "prod/app/soft", 0, make([]byte, 32))
	wantCode(t, "attest a soft key", err, claviger.Unsupported)
	_, _, err = d.Attest(t.Context(), d.op, "prod/app/tpm", 0, make([]byte, 15))
	wantCode(t, "a short nonce", err, claviger.Invalid)
	_, _, err = d.Attest(t.Context(), d.op, "prod/app/tpm", 1, make([]byte, 32))
	wantCode(t, "a destroyed version", err, claviger.NotFound)
}

// shows has the devices show what they have.
func (d *devices) shows(t *testing.T) {
	t.Helper()
	nonce := []byte(strings.Repeat("n", 32))
	version, attestation, err := d.Attest(t.Context(), d.op, "prod/app/tpm", 0, nonce)
	if err != nil {
		t.Fatal(err)
	}
	if said, err := attest.Verify(attestation, nonce); err != nil || version != 2 || said.Algorithm != claviger.ECDSAP256 {
		t.Errorf("the attestation of version %d: %+v, %v", version, said, err)
	}
	version, probed, err := d.Probe(t.Context(), d.op, "prod/app/p11", 0, false)
	if err != nil || version != 2 || len(probed.Attempts) == 0 {
		t.Errorf("the probe of version %d: %+v, %v", version, probed, err)
	}
	d.refresh()
	for kind, want := range map[string]claviger.Level{"soft": claviger.Isolated, "tpm": claviger.Isolated, "p11": claviger.Isolated} {
		v, err := d.Key(t.Context(), d.op, "prod/app/"+kind)
		if err != nil || v.Level() != want {
			t.Errorf("%s is %s (%q), %v, want %s", kind, v.Level(), v.Finding(), err, want)
		}
		if software := strings.Contains(v.Finding(), "software"); software != (kind != "soft") {
			t.Errorf("%s: the finding is %q", kind, v.Finding())
		}
	}
	list, err := d.Custodians(t.Context(), d.op)
	if err != nil || len(list) != 3 || slices.ContainsFunc(list, func(r keeper.CustodianReport) bool { return r.Trouble != "" || !r.Software }) {
		t.Errorf("custodians: %+v, %v", list, err)
	}
}

// loses takes one device after the other away: its own keys are gone, and
// nothing else.
func (d *devices) loses(t *testing.T, by claviger.Principal) {
	t.Helper()
	d.state.Kill()
	d.tpm.Close()
	wantCode(t, "sign in the TPM that is gone", sign(d.world, by, "prod/app/tpm"), claviger.Unavailable)
	for _, kind := range []string{"soft", "p11"} {
		if err := sign(d.world, by, "prod/app/"+kind); err != nil {
			t.Errorf("%s, while the TPM is gone: %v", kind, err)
		}
	}
	if err := d.Ready(t.Context()); err != nil {
		t.Errorf("ready, while the TPM is gone: %v", err)
	}
	report, err := d.Doctor(t.Context(), d.op)
	if err != nil {
		t.Fatal(err)
	}
	for part, want := range map[string]string{"tpm": "off", "p11": "on"} {
		if !slices.ContainsFunc(report.Measures, func(m keeper.Measure) bool { return m.Part == part && m.State == want && m.Detail != "" }) {
			t.Errorf("doctor does not say that %s is %s", part, want)
		}
	}
	if err := d.RefreshEvidence(t.Context()); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("a refresh without the TPM: %v", err)
	}
	v, err := d.Key(t.Context(), d.op, "prod/app/tpm")
	if err != nil || v.Level() != claviger.Isolated {
		t.Errorf("the TPM's key is %s, %v: what is away keeps its level until it lapses", v.Level(), err)
	}
	d.later(week + time.Hour)
	if v, err = d.Key(t.Context(), d.op, "prod/app/tpm"); err != nil || v.Level() != claviger.Lapsed {
		t.Errorf("a week later it is %s, %v", v.Level(), err)
	}
}

// A TPM whose clock went back is a copy, or was rolled back.
func TestClonedTPM(t *testing.T) {
	t.Parallel()
	d := newDevices(t, nil)
	d.create("prod/app/tpm", claviger.TPM, claviger.ECDSAP256)
	d.refresh()
	if got := d.level("prod/app/tpm"); got != claviger.Isolated {
		t.Fatalf("the level is %s, want isolated", got)
	}
	old := d.state.Copy(t)
	for range 3 { // the original goes on
		d.state.Restart(t)
		if d.RefreshEvidence(t.Context()) != nil { // which finds the TPM gone, and opens it anew
			d.refresh()
		}
	}
	d.state.Kill()
	d.tpm.Args = []string{"-device", old.Device()}
	d.tpm.Close()
	if d.RefreshEvidence(t.Context()) != nil {
		d.refresh()
	}
	v, err := d.Key(t.Context(), d.op, "prod/app/tpm")
	if err != nil || v.Level() != claviger.Exposed || !strings.Contains(v.Finding(), "went back") {
		t.Errorf("a cloned TPM shows %s, %q, %v", v.Level(), v.Finding(), err)
	}
}
