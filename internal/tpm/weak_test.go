package tpm_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"net"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/tpm"
	"claviger.dev/internal/tpm/attest"
	"claviger.dev/internal/tpm/tpmtest"
	"claviger.dev/pubkey"
)

// auth is the authorisation of the keys that these tests make.
var auth = [32]byte(bytes.Repeat([]byte{3}, 32))

const srkHandle, akHandle = tpm2.TPMHandle(0x81000001), tpm2.TPMHandle(0x8100C1A1)

// raw is a TPM whose keys the test makes itself, as badly as it likes.
type raw struct {
	transport.TPM
	t        *testing.T
	srk, ak  tpm2.AuthHandle
	akPublic []byte
}

// connect talks to the TPM directly. Claviger must have used it before, and
// not be connected.
func connect(t *testing.T, s *tpmtest.TPM) *raw {
	t.Helper()
	conn, err := net.Dial("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := &raw{TPM: transport.FromReadWriteCloser(conn), t: t}
	r.srk, _ = r.persistent(srkHandle)
	r.ak, r.akPublic = r.persistent(akHandle)
	return r
}

func (r *raw) persistent(h tpm2.TPMHandle) (tpm2.AuthHandle, []byte) {
	r.t.Helper()
	p, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(r)
	if err != nil {
		r.t.Fatal(err)
	}
	return tpm2.AuthHandle{Handle: h, Name: p.Name, Auth: tpm2.PasswordAuth(nil)}, p.OutPublic.Bytes()
}

// set makes a TPM that Claviger has used, and a raw connection to it.
func set(t *testing.T) (*tpmtest.TPM, *raw) {
	t.Helper()
	s := tpmtest.Start(t)
	d := open(t, s)
	if _, err := d.Endorse(); err != nil {
		t.Fatal(err)
	}
	d.Close()
	return s, connect(t, s)
}

func must[R any](t *testing.T) func(R, error) R {
	t.Helper()
	return func(r R, err error) R {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

func duplication(tp transport.TPM, handle tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicyCommandCode{PolicySession: handle, Code: tpm2.TPMCCDuplicate}.Execute(tp)
	return err
}

// policy is the digest of duplication.
func (r *raw) policy() tpm2.TPM2BDigest {
	trial, end, err := tpm2.PolicySession(r, tpm2.TPMAlgSHA256, 16, tpm2.Trial())
	if err != nil {
		r.t.Fatal(err)
	}
	defer end()
	if err := duplication(r, trial.Handle(), tpm2.TPM2BNonce{}); err != nil {
		r.t.Fatal(err)
	}
	return must[*tpm2.PolicyGetDigestResponse](r.t)(tpm2.PolicyGetDigest{PolicySession: trial.Handle()}.Execute(r)).PolicyDigest
}

// signing is the area of a P-256 signing key.
func signing(a tpm2.TPMAObject, policy tpm2.TPM2BDigest) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: a, AuthPolicy: policy,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID: tpm2.TPMECCNistP256, KDF: tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

// weakly is what a careless program gives a key.
func weakly() tpm2.TPMAObject {
	return tpm2.TPMAObject{SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true}
}

// made is an object under a parent.
type made struct {
	public  tpm2.TPM2BPublic
	private tpm2.TPM2BPrivate
	handle  tpm2.AuthHandle
}

func (m made) blob() []byte { return append(tpm2.Marshal(m.public), tpm2.Marshal(m.private)...) }

func (r *raw) create(parent tpm2.AuthHandle, area tpm2.TPMTPublic) made {
	r.t.Helper()
	c := must[*tpm2.CreateResponse](r.t)(tpm2.Create{
		ParentHandle: parent, InPublic: tpm2.New2B(area),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: auth[:]}}},
	}.Execute(r))
	return r.load(parent, made{public: c.OutPublic, private: c.OutPrivate})
}

func (r *raw) load(parent tpm2.AuthHandle, m made) made {
	r.t.Helper()
	l := must[*tpm2.LoadResponse](r.t)(tpm2.Load{ParentHandle: parent, InPrivate: m.private, InPublic: m.public}.Execute(r))
	m.handle = tpm2.AuthHandle{Handle: l.ObjectHandle, Name: l.Name, Auth: tpm2.PasswordAuth(auth[:])}
	r.t.Cleanup(func() { _, _ = tpm2.FlushContext{FlushHandle: l.ObjectHandle}.Execute(r) })
	return m
}

// certified has an attestation key certify an object.
func (r *raw) certified(m made, by tpm2.AuthHandle, akPublic, nonce []byte) frames.AttestResponse {
	r.t.Helper()
	c := must[*tpm2.CertifyResponse](r.t)(tpm2.Certify{
		ObjectHandle: m.handle, SignHandle: by, QualifyingData: tpm2.TPM2BData{Buffer: nonce},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(r))
	return frames.AttestResponse{KeyPublic: m.public.Bytes(), Attest: c.CertifyInfo.Bytes(), Signature: tpm2.Marshal(c.Signature), AKPublic: akPublic}
}

// sign signs the digest of a message with an object.
func (r *raw) sign(m made, message []byte) []byte {
	r.t.Helper()
	digest := sha256.Sum256(message)
	s := must[*tpm2.SignResponse](r.t)(tpm2.Sign{
		KeyHandle: m.handle, Digest: tpm2.TPM2BDigest{Buffer: digest[:]}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(r))
	return must[[]byte](r.t)(attest.Signature(claviger.ECDSAP256, &s.Signature))
}

// refused checks that a verifier refuses, for a reason that names the word.
func refused(t *testing.T, a frames.AttestResponse, nonce []byte, word string) {
	t.Helper()
	if _, err := attest.Verify(a, nonce); claviger.CodeOf(err) != claviger.Invalid || !strings.Contains(err.Error(), word) {
		t.Errorf("want a refusal for %s, got %v", word, err)
	}
}

var nonce = bytes.Repeat([]byte{9}, 32)

// TestDuplicable makes a key that may leave and lets it be attested and probed.
func TestDuplicable(t *testing.T) {
	t.Parallel()
	s, r := set(t)
	weak := r.create(r.srk, signing(weakly(), r.policy()))
	refused(t, r.certified(weak, r.ak, r.akPublic, nonce), nonce, "fixedTPM")
	r.TPM.(transport.TPMCloser).Close()

	d := open(t, s)
	k, err := tpm.Parse(weak.blob(), auth)
	if err != nil {
		t.Fatal(err)
	}
	a, err := d.Attest(k, nonce)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, a, nonce, "fixedTPM")
	attempts, err := d.Probe(k, false)
	if err != nil {
		t.Fatal(err)
	}
	leaked := map[string]claviger.Verdict{}
	for _, at := range attempts {
		leaked[at.Probe] = at.Verdict
	}
	for _, probe := range []string{"tpm.attestation", "tpm.duplicate-policy", "tpm.duplicate-fixed"} {
		if leaked[probe] != claviger.Leaked {
			t.Errorf("%s: %s", probe, leaked[probe])
		}
	}
	if leaked["tpm.unseal"] != claviger.Held {
		t.Errorf("unseal: %s", leaked["tpm.unseal"])
	}
}

// TestDuplicableParent moves a parent to another TPM, and with it a child that
// is fixed to its parent; the child signs there.
func TestDuplicableParent(t *testing.T) {
	t.Parallel()
	_, here := set(t)
	_, there := set(t)
	area := tpm2.ECCSRKTemplate
	area.ObjectAttributes.FixedTPM, area.ObjectAttributes.FixedParent = false, false
	area.AuthPolicy = here.policy()
	parent := here.create(here.srk, area)
	fixed := weakly()
	fixed.FixedParent = true
	child := here.create(parent.handle, signing(fixed, tpm2.TPM2BDigest{}))
	refused(t, here.certified(child, here.ak, here.akPublic, nonce), nonce, "fixedTPM")
	_, _ = tpm2.FlushContext{FlushHandle: child.handle.Handle}.Execute(here)

	other := must[*tpm2.ReadPublicResponse](t)(tpm2.ReadPublic{ObjectHandle: srkHandle}.Execute(there))
	target := must[*tpm2.LoadExternalResponse](t)(tpm2.LoadExternal{InPublic: other.OutPublic, Hierarchy: tpm2.TPMRHOwner}.Execute(here))
	moved := must[*tpm2.DuplicateResponse](t)(tpm2.Duplicate{
		ObjectHandle:    tpm2.AuthHandle{Handle: parent.handle.Handle, Name: parent.handle.Name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, duplication)},
		NewParentHandle: tpm2.NamedHandle{Handle: target.ObjectHandle, Name: target.Name},
		Symmetric:       tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	}.Execute(here))
	brought := must[*tpm2.ImportResponse](t)(tpm2.Import{
		ParentHandle: there.srk, ObjectPublic: parent.public, Duplicate: moved.Duplicate, InSymSeed: moved.OutSymSeed,
		Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	}.Execute(there))
	again := there.load(there.srk, made{public: parent.public, private: brought.OutPrivate})
	clone := there.load(again.handle, child)
	_, raw, _, _, err := attest.Describe(child.public.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	public := must[pubkey.Key](t)(pubkey.Parse(claviger.ECDSAP256, raw))
	if !public.Verify([]byte("moved"), there.sign(clone, []byte("moved")), pubkey.ASN1) {
		t.Error("the child did not move, so the test shows nothing")
	}
	refused(t, there.certified(clone, there.ak, there.akPublic, nonce), nonce, "fixedTPM")
}

// TestUnrestricted forges an attestation with a key that signs anything, and
// has such a key certify in earnest.
func TestUnrestricted(t *testing.T) {
	t.Parallel()
	_, r := set(t)
	bound := weakly()
	bound.FixedTPM, bound.FixedParent = true, true
	good := r.create(r.srk, signing(bound, tpm2.TPM2BDigest{}))
	loose := r.create(r.srk, signing(bound, tpm2.TPM2BDigest{}))
	if _, err := attest.Verify(r.certified(good, r.ak, r.akPublic, nonce), nonce); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	a := r.certified(good, loose.handle, loose.public.Bytes(), nonce)
	refused(t, a, nonce, "not restricted")
	said := must[*tpm2.TPMSAttest](t)(tpm2.Unmarshal[tpm2.TPMSAttest](a.Attest))
	said.ClockInfo.Clock++ // made up
	a.Attest = tpm2.Marshal(said)
	s := must[*tpm2.SignResponse](t)(tpm2.Sign{
		KeyHandle: loose.handle, Digest: tpm2.TPM2BDigest{Buffer: sum(a.Attest)}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(r))
	a.Signature = tpm2.Marshal(s.Signature)
	refused(t, a, nonce, "not restricted")
	a.AKPublic = r.akPublic
	refused(t, a, nonce, "did not sign")
}

func sum(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:]
}

// TestFalseOrigin imports a key that claims to be made in the TPM.
func TestFalseOrigin(t *testing.T) {
	t.Parallel()
	_, r := set(t)
	outside := r.create(r.srk, signing(weakly(), r.policy())) // its origin is beside the point
	dup := must[*tpm2.DuplicateResponse](t)(tpm2.Duplicate{
		ObjectHandle:    tpm2.AuthHandle{Handle: outside.handle.Handle, Name: outside.handle.Name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, duplication)},
		NewParentHandle: tpm2.TPMRHNull, Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	}.Execute(r))
	area := *must[*tpm2.TPMTPublic](t)(outside.public.Contents())
	if !area.ObjectAttributes.SensitiveDataOrigin {
		t.Fatal("it claims nothing")
	}
	in := must[*tpm2.ImportResponse](t)(tpm2.Import{
		ParentHandle: r.srk, ObjectPublic: tpm2.New2B(area), Duplicate: dup.Duplicate, Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	}.Execute(r))
	imported := r.load(r.srk, made{public: tpm2.New2B(area), private: in.OutPrivate})
	refused(t, r.certified(imported, r.ak, r.akPublic, nonce), nonce, "fixedTPM")
	area.ObjectAttributes.FixedTPM, area.ObjectAttributes.FixedParent = true, true
	if _, err := (tpm2.Import{
		ParentHandle: r.srk, ObjectPublic: tpm2.New2B(area), Duplicate: dup.Duplicate, Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	}).Execute(r); err == nil {
		t.Error("the TPM takes in what claims fixedTPM")
	}
}

// TestReplayed offers attestations under nonces that they do not answer.
func TestReplayed(t *testing.T) {
	t.Parallel()
	d := open(t, tpmtest.Start(t))
	k := create(t, d, claviger.ECDSAP256)
	a, err := d.Attest(k, nonce)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, a, bytes.Repeat([]byte{8}, 32), "nonce")
	refused(t, a, nonce[:31], "nonce")
	refused(t, a, nil, "nonce")
	if _, err := d.Attest(k, nil); claviger.CodeOf(err) != claviger.Invalid {
		t.Errorf("attested without a nonce: %v", err)
	}
}

// TestClone copies the state of a TPM. The copy signs with the original's
// keys; its clock tells it apart.
func TestClone(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	d := open(t, s)
	k := create(t, d, claviger.ECDSAP256)
	d.Close()
	copied := s.Copy(t)
	clock := func(s *tpmtest.TPM) attest.Clock {
		t.Helper()
		d := open(t, s)
		defer d.Close()
		if _, err := d.Sign(k, digests(1)); err != nil {
			t.Fatalf("the clone cannot sign, so the test shows nothing: %v", err)
		}
		a := must[frames.AttestResponse](t)(d.Attest(k, nonce))
		return must[attest.Attested](t)(attest.Verify(a, nonce)).Clock
	}
	restart := func() {
		r := connect(t, s)
		must[*tpm2.ShutdownResponse](t)(tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(r)) // as a machine does
		s.Restart(t)
	}
	before := clock(s)
	restart()
	restart() // the copy was started once
	after := clock(s)
	if !after.Follows(before) {
		t.Errorf("%+v does not follow %+v, though it is the same TPM", after, before)
	}
	if other := clock(copied); other.Follows(after) {
		t.Errorf("%+v of a copy follows %+v of the original", other, after)
	}
}

func second[R any](_ R, err error) error { return err }

func pool(roots ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, root := range roots {
		p.AddCert(root)
	}
	return p
}

// freshEK is the endorsement key of another TPM.
func freshEK(t *testing.T) ([]byte, error) {
	e, err := open(t, tpmtest.Start(t)).Endorse()
	return e.EKPublic, err
}
