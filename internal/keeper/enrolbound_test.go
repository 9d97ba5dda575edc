package keeper_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"math/big"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/tpm/tpmtest"
)

// rooted is a world that trusts a root for tests.
func rooted(t testing.TB, roots ...*x509.Certificate) *world {
	w := newWorld(t)
	cfg := w.config()
	cfg.TPMRoots = []keeper.TPMRoot{{Name: "bench", Test: true, Certificates: roots}}
	w.open(cfg)
	return w
}

func (w *world) bound(name string) {
	w.Helper()
	_, err := w.CreatePrincipal(w.Context(), w.op, keeper.CreatePrincipal{
		Name: name, Kind: claviger.ServiceAccount, Environments: []string{"prod"}, Bound: true,
	})
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) binding(name string) claviger.Binding {
	w.Helper()
	p, err := w.Principal(w.Context(), w.op, name)
	if err != nil {
		w.Fatal(err)
	}
	if p.Binding == nil {
		w.Fatalf("%s is bound to nothing", name)
	}
	return *p.Binding
}

// wantBindingFailure insists on one record that names the principal and says
// that its binding did not hold.
func wantBindingFailure(t testing.TB, what, action, name string, records []audit.Record, err error) {
	t.Helper()
	wantCode(t, what, err, claviger.Denied)
	last := records[len(records)-1]
	if last.Action != action || last.Outcome != audit.Denied || last.Reason != "binding" || last.PrincipalName != name || last.Detail["binding"] == "" {
		t.Errorf("%s: recorded as %+v", what, last)
	}
}

func TestAttestedEnrolment(t *testing.T) {
	t.Parallel()
	machine, root := tpmtest.Certified(t)
	w := rooted(t, root)
	h := newHost(t, machine.Device())
	w.bound("edge")
	code := w.code("edge")
	var err error
	records := w.since(func() { _, err = w.Enroll(t.Context(), code, request(t, newSigner(t)), nobody) })
	wantBindingFailure(t, "a key in a file", "principal.enrol", "edge", records, err)

	// The code was not used up by that.
	c, err := w.BeginEnroll(t.Context(), code, request(t, h), h.claim(), nobody)
	if err != nil {
		t.Fatal(err)
	}
	out, err := w.FinishEnroll(t.Context(), h.answer(c), nobody)
	if err != nil {
		t.Fatal(err)
	}
	b := w.binding("edge")
	if b.Level != claviger.Attested || b.Root != "bench" || !b.TestRoot || !b.Software || b.Custodian != claviger.TPM ||
		b.Fingerprint != hexOf(request(t, h)) || b.AKName == "" || b.EKFingerprint == "" || b.Clock == (claviger.Clock{}) || b.At.IsZero() {
		t.Errorf("bound to %+v", b)
	}
	by, err := w.authenticate(parse(t, out.Chain[0]))
	if err != nil || by.Level() != claviger.Attested {
		t.Errorf("authenticated as %+v, %v", by, err)
	}
	_, err = w.BeginEnroll(t.Context(), code, request(t, h), h.claim(), nobody)
	wantCode(t, "the same code again", err, claviger.Unauthenticated)

	// By the bound key, before the certificate has expired and after.
	second, err := w.renewHost(out.Chain[0], h)
	if err != nil {
		t.Fatal(err)
	}
	w.later(48 * time.Hour)
	if _, err := w.authenticate(parse(t, second.Chain[0])); err == nil {
		t.Error("an expired certificate authenticates")
	}
	third, err := w.renewHost(second.Chain[0], h)
	if err != nil {
		t.Fatal(err)
	}
	by, err = w.authenticate(parse(t, third.Chain[0]))
	if err != nil {
		t.Fatal(err)
	}
	for what, csr := range map[string][]byte{"another key over mTLS": request(t, newSigner(t)), "without an attestation": request(t, h)} {
		w.later(time.Second)
		records := w.since(func() { _, err = w.Renew(t.Context(), by, csr) })
		wantBindingFailure(t, what, "principal.renew", "edge", records, err)
	}
	// A reboot is none of this.
	machine.Restart(t)
	_, _ = h.device.Info() // finds the connection broken; the next call takes up another
	if _, err := w.renewHost(third.Chain[0], h); err != nil {
		t.Errorf("after a reboot: %v", err)
	}
}

func hexOf(csr []byte) string {
	parsed, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return err.Error()
	}
	return hexSum(parsed.RawSubjectPublicKeyInfo)
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Who has the disk has nothing; the attempt is recorded as a failure of the
// binding that names the principal.
func TestDiskOnAnotherHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.bound("edge")
	h := newHost(t, tpmtest.Start(t).Device())
	out := w.enrolHost("edge", h)
	if b := w.binding("edge"); b.Level != claviger.Isolated || !b.Software || b.Root != "" {
		t.Errorf("a software TPM without a root is bound as %+v", b)
	}
	there := tpmtest.Start(t).Device()
	if _, err := h.on(there).Sign(nil, make([]byte, 32), nil); err == nil {
		t.Fatal("the blob works in another TPM")
	}
	stray := newHost(t, there)
	var err error
	records := w.since(func() { _, err = w.renewHost(out.Chain[0], stray) })
	wantBindingFailure(t, "a key of the other TPM", "principal.renew", "edge", records, err)
	// Even for the right key, which the thief cannot use, another TPM does not answer.
	claim := stray.claim()
	w.later(time.Second)
	records = w.since(func() { _, err = w.BeginRenew(t.Context(), out.Chain[0], request(t, h), claim, nobody) })
	wantBindingFailure(t, "the bound key by another TPM's word", "principal.renew", "edge", records, err)
	if _, err := w.renewHost(out.Chain[0], h); err != nil {
		t.Errorf("the host itself: %v", err)
	}
	w.later(time.Second)
	_, err = w.renewHost(parse(t, out.Roots[0]).Raw, h)
	wantCode(t, "by another certificate", err, claviger.Unauthenticated)
}

func TestClone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.bound("edge")
	machine := tpmtest.Start(t)
	h := newHost(t, machine.Device())
	out := w.enrolHost("edge", h)
	first, err := w.authenticate(parse(t, out.Chain[0]))
	if err != nil {
		t.Fatal(err)
	}
	w.grant(first, "prod/app/key", claviger.Conditions{}, claviger.Sign)
	w.key("prod/app/key", claviger.Ed25519)
	clone := h.on(machine.Copy(t).Device())
	if _, err := w.renewHost(out.Chain[0], clone); err != nil {
		t.Fatalf("a clone that is first cannot be told from a reboot: %v", err)
	}
	wantCode(t, "a use while nothing is known", sign(w, first, "prod/app/key"), "")
	records := w.since(func() { _, err = w.renewHost(out.Chain[0], h) })
	wantBindingFailure(t, "the original after its clone", "principal.renew", "edge", records, err)
	if len(records) != 2 || records[0].Action != "principal.flag" {
		t.Errorf("records: %+v", records)
	}
	if b := w.binding("edge"); b.Finding == "" || b.Level != claviger.Exposed {
		t.Errorf("not flagged: %+v", b)
	}
	by, err := w.authenticate(parse(t, out.Chain[0]))
	if err != nil || by.Level() != claviger.Exposed {
		t.Errorf("authenticated with level %q, %v", by.Level(), err)
	}
	records = w.since(func() { err = sign(w, by, "prod/app/key") })
	wantCode(t, "a use with the certificate that it still has", err, claviger.Denied)
	if len(records) != 1 || records[0].Action != "use.sign" || records[0].Reason != "binding" || records[0].PrincipalName != "edge" {
		t.Errorf("recorded as %+v", records)
	}
	for what, held := range map[string]*host{"the original": h, "the clone": clone} {
		w.later(time.Second)
		records := w.since(func() { _, err = w.renewHost(out.Chain[0], held) })
		wantBindingFailure(t, what+" once flagged", "principal.renew", "edge", records, err)
	}
	fresh := w.enrolHost("edge", newHost(t, tpmtest.Start(t).Device()))
	if by, err = w.authenticate(parse(t, fresh.Chain[0])); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "the same use once an operator had it enrol again", sign(w, by, "prod/app/key"), "")
	if b := w.binding("edge"); b.Finding != "" || b.Level != claviger.Isolated {
		t.Errorf("a new enrolment leaves %+v", b)
	}
}

func TestClaimsThatDoNotHold(t *testing.T) {
	t.Parallel()
	machine, root := tpmtest.Certified(t)
	other, otherRoot := tpmtest.Certified(t)
	w := rooted(t, root)
	h, o := newHost(t, machine.Device()), newHost(t, other.Device())
	good, theirs := h.claim(), o.claim()
	for name, tc := range map[string]struct {
		claim keeper.Claim
		level claviger.Level // "" is refused at once
	}{
		"right":                              {good, claviger.Attested},
		"wrong root":                         {theirs, claviger.Isolated},
		"no certificate":                     {keeper.Claim{Device: good.Device, AKPublic: good.AKPublic, EKPublic: good.EKPublic}, claviger.Exposed},
		"certificate of another":             {with(theirs, func(c *keeper.Claim) { c.EKCertificates = good.EKCertificates }), claviger.Isolated},
		"forged certificate":                 {with(theirs, func(c *keeper.Claim) { c.EKCertificates = forged(t, theirs.EKCertificates[0], root) }), claviger.Isolated},
		"says that it is hardware":           {with(good, func(c *keeper.Claim) { c.Device.Software, c.Device.Manufacturer = false, "INTC" }), claviger.Attested},
		"unrestricted attestation key":       {with(good, func(c *keeper.Claim) { c.AKPublic = h.key.Area }), ""},
		"endorsement key as attestation key": {with(good, func(c *keeper.Claim) { c.AKPublic = good.EKPublic }), ""},
		"attestation key as endorsement key": {with(good, func(c *keeper.Claim) { c.EKPublic = good.AKPublic }), ""},
		"no keys":                            {keeper.Claim{Device: good.Device}, ""},
		"trailing byte":                      {with(good, func(c *keeper.Claim) { c.AKPublic = append(bytes.Clone(good.AKPublic), 0) }), ""},
		"no such custodian":                  {with(good, func(c *keeper.Claim) { c.Device.Kind = "yubikey" }), ""},
	} {
		w.later(time.Second)
		held := h
		if bytes.Equal(tc.claim.EKPublic, theirs.EKPublic) {
			held = o
		}
		w.bound(idOf(name))
		c, err := w.BeginEnroll(t.Context(), w.code(idOf(name)), request(t, held), tc.claim, nobody)
		if tc.level == "" {
			wantCode(t, name, err, claviger.Invalid)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		out, err := w.FinishEnroll(t.Context(), held.answer(c), nobody)
		if err != nil || out.Binding.Level != tc.level || out.Binding.Level == claviger.Attested && (out.Binding.Root != "bench" || !out.Binding.TestRoot) {
			t.Errorf("%s: bound as %+v, %v, want %s", name, out.Binding, err, tc.level)
		}
	}
	// The same certificate under a root that is not for tests: software all the same.
	cfg := w.config()
	cfg.TPMRoots = []keeper.TPMRoot{{Name: "real", Certificates: []*x509.Certificate{otherRoot, root}}}
	w.open(cfg)
	w.bound("real")
	c, err := w.BeginEnroll(t.Context(), w.code("real"), request(t, h), with(good, func(c *keeper.Claim) { c.Device.Software, c.Device.Manufacturer = false, "INTC" }), nobody)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := w.FinishEnroll(t.Context(), h.answer(c), nobody); err != nil || out.Binding.Level != claviger.Isolated || !out.Binding.Software {
		t.Errorf("swtpm that calls itself hardware, under a root that is not for tests: %+v, %v", out.Binding, err)
	}
}

// forged certifies an endorsement key by an authority that bears the name of
// the trusted one.
func forged(t *testing.T, genuine []byte, root *x509.Certificate) [][]byte {
	t.Helper()
	rogue := newSigner(t)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), RawSubject: root.RawSubject, SubjectKeyId: root.SubjectKeyId, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, rogue.Public(), rogue)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter, AuthorityKeyId: root.SubjectKeyId}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, parse(t, caDER), parse(t, genuine).PublicKey, rogue)
	if err != nil {
		t.Fatal(err)
	}
	return [][]byte{leafDER, caDER}
}

// Keys of two TPMs pass for one until the challenge, which neither opens.
func TestKeysOfTwoTPMs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := newHost(t, tpmtest.Start(t).Device()), newHost(t, tpmtest.Start(t).Device())
	w.bound("edge")
	theirs := b.claim()
	for what, claim := range map[string]keeper.Claim{
		"another attestation key": with(a.claim(), func(c *keeper.Claim) { c.AKPublic = theirs.AKPublic }),
		"another endorsement key": with(a.claim(), func(c *keeper.Claim) { c.EKPublic = theirs.EKPublic }),
	} {
		c, err := w.BeginEnroll(t.Context(), w.code("edge"), request(t, a), claim, nobody)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range []*host{a, b} {
			if secret, err := h.device.Activate(c.Credential, c.Encrypted); err == nil {
				t.Errorf("%s: a TPM opened the challenge: %x", what, secret)
			}
		}
	}
}

func with(c keeper.Claim, f func(*keeper.Claim)) keeper.Claim { f(&c); return c }

func idOf(name string) string {
	return string(bytes.ReplaceAll([]byte(name), []byte(" "), []byte("-")))
}

func TestAnswersThatDoNotHold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h, o := newHost(t, tpmtest.Start(t).Device()), newHost(t, tpmtest.Start(t).Device())
	key, err := h.device.Create(claviger.ECDSAP256, sha256.Sum256([]byte("auth")))
	if err != nil {
		t.Fatal(err)
	}
	second := &host{t, h.device, key}
	w.bound("edge")
	code := w.code("edge")
	begin := func() keeper.Challenge {
		w.later(time.Second)
		c, err := w.BeginEnroll(t.Context(), code, request(t, h), h.claim(), nobody)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	stale := begin()
	staleProof := h.answer(stale)
	for name, spoil := range map[string]func(c keeper.Challenge, p *keeper.Proof){
		"another's signature":  func(c keeper.Challenge, p *keeper.Proof) { p.Signature = o.signature(c) },
		"a replayed signature": func(_ keeper.Challenge, p *keeper.Proof) { p.Signature = staleProof.Signature },
		"no secret":            func(_ keeper.Challenge, p *keeper.Proof) { p.Activated = nil },
		"a guessed secret":     func(_ keeper.Challenge, p *keeper.Proof) { p.Activated = make([]byte, 32) },
		"a replayed secret":    func(_ keeper.Challenge, p *keeper.Proof) { p.Activated = staleProof.Activated },
		"a replayed attestation": func(_ keeper.Challenge, p *keeper.Proof) {
			p.Attest, p.AttestSignature = staleProof.Attest, staleProof.AttestSignature
		},
		"another TPM's attestation key": func(c keeper.Challenge, p *keeper.Proof) { take(p, o.attest(c.Nonce)) },
		"another key of the TPM":        func(c keeper.Challenge, p *keeper.Proof) { take(p, second.attest(c.Nonce)) },
		"no attestation":                func(_ keeper.Challenge, p *keeper.Proof) { take(p, frames.AttestResponse{}) },
		"a damaged attestation":         func(_ keeper.Challenge, p *keeper.Proof) { p.Attest = append(bytes.Clone(p.Attest), 0) },
		"an expired challenge":          func(keeper.Challenge, *keeper.Proof) { w.later(3 * time.Minute) },
	} {
		c := begin()
		p := h.answer(c)
		spoil(c, &p)
		writes := w.writes()
		var err error
		records := w.since(func() { _, err = w.FinishEnroll(t.Context(), p, nobody) })
		if err == nil || len(records) != 1 || records[0].Outcome != audit.Denied {
			t.Errorf("%s: %v, records %+v", name, err, records)
		}
		if w.writes() != writes {
			t.Errorf("%s: something was written", name)
		}
	}
	c := begin()
	_, err = w.FinishEnroll(t.Context(), staleProof, nobody)
	wantCode(t, "a challenge that another replaced", err, claviger.Unauthenticated)
	p := h.answer(c)
	w.later(time.Second)
	_, err = w.FinishRenew(t.Context(), p, nobody)
	wantCode(t, "an enrolment's challenge as a renewal", err, claviger.Unauthenticated)
	c = begin()
	p = h.answer(c)
	if _, err := w.FinishEnroll(t.Context(), p, nobody); err != nil {
		t.Fatalf("the code was used up before: %v", err)
	}
	w.later(time.Second)
	_, err = w.FinishEnroll(t.Context(), p, nobody)
	wantCode(t, "an answer twice", err, claviger.Unauthenticated)
}

func (h *host) signature(c keeper.Challenge) []byte {
	digest := sha256.Sum256(c.ProofText())
	out, err := h.Sign(nil, digest[:], nil)
	if err != nil {
		h.Fatal(err)
	}
	return out
}

func take(p *keeper.Proof, a frames.AttestResponse) {
	p.KeyPublic, p.Attest, p.AttestSignature = a.KeyPublic, a.Attest, a.Signature
}

// What has no TPM is bound to its key, and to its own word about the rest.
func TestBindingWithoutTPM(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, tc := range map[string]struct {
		claim keeper.Claim
		level claviger.Level
	}{
		"soft":         {keeper.Claim{Device: claviger.Device{Kind: claviger.Soft}, Level: claviger.Attested}, claviger.Isolated},
		"soft-exposed": {keeper.Claim{Device: claviger.Device{Kind: claviger.Soft}, Level: claviger.Exposed}, claviger.Exposed},
		"soft-silent":  {keeper.Claim{Device: claviger.Device{Kind: claviger.Soft}}, claviger.Exposed},
		"softhsm":      {keeper.Claim{Device: claviger.Device{Kind: claviger.P11, Manufacturer: "SoftHSM project", Software: true}, Level: claviger.Hardware}, claviger.Isolated},
		"token":        {keeper.Claim{Device: claviger.Device{Kind: claviger.P11, Manufacturer: "Yubico"}, Level: claviger.Hardware}, claviger.Hardware},
		"weak-token":   {keeper.Claim{Device: claviger.Device{Kind: claviger.P11, Manufacturer: "Yubico"}, Level: claviger.Exposed}, claviger.Exposed},
	} {
		w.bound(name)
		key := newSigner(t)
		answer := func(c keeper.Challenge, by crypto.Signer) keeper.Proof {
			digest := sha256.Sum256(c.ProofText())
			signature, err := by.(*ecdsa.PrivateKey).Sign(nil, digest[:], crypto.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			return keeper.Proof{ID: c.ID, Signature: signature}
		}
		c, err := w.BeginEnroll(t.Context(), w.code(name), request(t, key), tc.claim, nobody)
		if err != nil {
			t.Fatal(err)
		}
		out, err := w.FinishEnroll(t.Context(), answer(c, key), nobody)
		if err != nil || out.Binding.Level != tc.level {
			t.Fatalf("%s: %+v, %v, want %s", name, out.Binding, err, tc.level)
		}
		by, err := w.authenticate(parse(t, out.Chain[0]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Renew(t.Context(), by, request(t, key)); err != nil {
			t.Errorf("%s: renewal by the bound key: %v", name, err)
		}
		w.later(time.Second)
		records := w.since(func() { _, err = w.Renew(t.Context(), by, request(t, newSigner(t))) })
		wantBindingFailure(t, name, "principal.renew", name, records, err)
		if c, err = w.BeginRenew(t.Context(), out.Chain[0], request(t, key), tc.claim, nobody); err != nil {
			t.Fatal(err)
		}
		records = w.since(func() { _, err = w.FinishRenew(t.Context(), answer(c, newSigner(t)), nobody) })
		wantBindingFailure(t, name+": another's answer", "principal.renew", name, records, err)
	}
}

// Strangers get nothing kept, and what they try is recorded at a bounded rate.
func TestStrangersBeginNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.workload("app")
	plain, err := w.Enroll(t.Context(), w.code("app"), request(t, newSigner(t)), nobody)
	if err != nil {
		t.Fatal(err)
	}
	writes := w.writes()
	soft := keeper.Claim{Device: claviger.Device{Kind: claviger.Soft}}
	records := w.since(func() {
		for range 100 {
			code := claviger.NewEnrolmentCode([32]byte{}, [32]byte{}).String()
			_, err := w.BeginEnroll(t.Context(), code, request(t, newSigner(t)), soft, nobody)
			wantCode(t, "an unknown code", err, claviger.Unauthenticated)
		}
	})
	if len(records) == 0 || len(records) > 60 {
		t.Errorf("%d records of 100 attempts", len(records))
	}
	for name, tc := range map[string]struct {
		last []byte
		want claviger.Code
	}{
		"no certificate":      {nil, claviger.Unauthenticated},
		"a large one":         {make([]byte, 17<<10), claviger.TooLarge},
		"the CA's":            {plain.Roots[0], claviger.Unauthenticated},
		"of one that is free": {plain.Chain[0], claviger.Invalid},
	} {
		w.later(time.Second)
		_, err := w.BeginRenew(t.Context(), tc.last, request(t, newSigner(t)), soft, nobody)
		wantCode(t, name, err, tc.want)
	}
	if w.writes() != writes {
		t.Error("something was written")
	}
}

// BenchmarkAttestedEnrolment is everything from the claim to the certificate:
// endorsement, challenge, activation, attestation and the change itself.
func BenchmarkAttestedEnrolment(b *testing.B) {
	machine, root := tpmtest.Certified(b)
	w := rooted(b, root)
	w.bound("edge")
	for b.Loop() {
		h := newHost(b, machine.Device())
		if out := w.enrolHost("edge", h); out.Binding.Level != claviger.Attested {
			b.Fatalf("bound as %+v", out.Binding)
		}
		_ = h.device.Close()
	}
}
