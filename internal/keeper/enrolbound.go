package keeper

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/store"
	"claviger.dev/internal/tpm/attest"
)

// Claim is what a caller says of the device that holds its key. Of a TPM the
// public areas are proved by the challenge; all else is the caller's word, and
// no more than that is made of it.
type Claim struct {
	Device         claviger.Device
	Level          claviger.Level // that the custodian reports of the key
	AKPublic       []byte         // TPMT_PUBLIC
	EKPublic       []byte         // TPMT_PUBLIC
	EKCertificates [][]byte       // DER, leaf first
}

// Challenge is answered once, before it expires, by who holds the key.
type Challenge struct {
	ID         string
	Nonce      []byte // 32 bytes
	Credential []byte // TPM2B_ID_OBJECT; empty where there is no TPM
	Encrypted  []byte // TPM2B_ENCRYPTED_SECRET
	Expires    time.Time
}

// Proof answers a Challenge.
type Proof struct {
	ID              string
	Signature       []byte // by the key over what ProofText returns, ASN.1
	Activated       []byte // what the credential held
	KeyPublic       []byte // TPMT_PUBLIC
	Attest          []byte // TPMS_ATTEST
	AttestSignature []byte // TPMT_SIGNATURE
}

// Limits of challenges.
const (
	challengeLifetime = 2 * time.Minute
	maxChallenges     = 1024 // that wait at once
	maxCertificate    = 16 << 10
)

// TPMRoot pins a manufacturer of TPMs, or a CA for tests.
type TPMRoot struct {
	Name         string // shown wherever a level rests on it
	Test         bool   // what rests on it proves nothing about hardware
	Certificates []*x509.Certificate
}

// pending is a challenge that waits for its answer. It lies in memory alone:
// whoever holds no code and no bound key makes none.
type pending struct {
	Challenge
	action    string
	subject   string           // what has at most one challenge: a code, or a principal
	principal claviger.ID      // of a renewal
	code      [32]byte         // of an enrolment: the hash
	facts     claviger.Facts   // of who began
	binding   claviger.Binding // as far as the claim shows it
	akPublic  []byte           // TPMT_PUBLIC
	ekPublic  []byte
	secret    [32]byte // that the credential holds
	request   *x509.CertificateRequest
	key       *ecdsa.PublicKey
}

// challenges are those that wait.
type challenges struct {
	now   func() time.Time
	guard codeGuard // of the records of bindings that do not hold

	mu      sync.Mutex // guards what follows
	waiting map[string]*pending
}

func newChallenges(now func() time.Time) *challenges {
	return &challenges{now: now, guard: codeGuard{now: now}, waiting: map[string]*pending{}}
}

// put lets a challenge wait, in place of another of its subject.
func (c *challenges) put(p *pending) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for id, other := range c.waiting {
		if other.subject == p.subject || !now.Before(other.Expires) {
			delete(c.waiting, id)
		}
	}
	if len(c.waiting) >= maxChallenges {
		return claviger.Errorf(claviger.Exhausted, "too many enrolments are under way", "try again in a minute")
	}
	c.waiting[p.ID] = p
	return nil
}

// take returns a challenge, once.
func (c *challenges) take(id, action string) (*pending, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.waiting[id]
	delete(c.waiting, id)
	if p == nil || p.action != action || !c.now().Before(p.Expires) {
		return nil, claviger.Errorf(claviger.Unauthenticated, "the challenge is unknown, answered or expired", "begin again; the code still holds")
	}
	return p, nil
}

// ProofText is what the key signs to answer a challenge.
func (c Challenge) ProofText() []byte {
	return slices.Concat([]byte("claviger binding 1\x00"), []byte(c.ID), []byte{0}, c.Nonce)
}

// BeginEnroll checks a code, which it does not use up, a certificate request
// and the claim about the device, and makes a challenge. It writes nothing.
func (k *Keeper) BeginEnroll(ctx context.Context, code string, csr []byte, claim Claim, facts claviger.Facts) (Challenge, error) {
	p := &pending{action: "principal.enrol", facts: facts}
	parsed, err := claviger.ParseEnrolmentCode(code)
	if err == nil {
		p.code = parsed.Hash()
		p.subject = "code " + string(p.code[:])
		err = k.cfg.Store.View(ctx, func(tx *store.Tx) error { return checkCode(tx, p.code, k.cfg.Now()) })
	}
	if err == nil {
		err = p.claim(k, csr, claim)
	}
	return k.challenge(ctx, p, err)
}

// checkCode refuses a code that would not enrol.
func checkCode(tx *store.Tx, hash [32]byte, now time.Time) error {
	known, err := tx.Code(hash, now)
	if err != nil {
		return unknownCode(err)
	}
	_, err = enrolling(tx, known.Principal)
	return err
}

func unknownCode(err error) error {
	if errors.Is(err, claviger.NotFound) {
		return claviger.Errorf(claviger.Unauthenticated, "the enrolment code is unknown, used or expired", "ask an operator for a new code")
	}
	return err
}

// enrolling returns a principal that may enrol.
func enrolling(tx *store.Tx, id claviger.ID) (claviger.PrincipalRecord, error) {
	p, err := tx.Principal(string(id))
	if err == nil && !p.Revoked.IsZero() {
		err = claviger.Errorf(claviger.Unauthenticated, "the principal is revoked", "ask an operator")
	}
	return p, err
}

// claim takes the request and what is said of the device.
func (p *pending) claim(k *Keeper, csr []byte, claim Claim) (err error) {
	if p.request, err = parseRequest(csr); err != nil {
		return err
	}
	var ok bool
	if p.key, ok = p.request.PublicKey.(*ecdsa.PublicKey); !ok || p.key.Curve != elliptic.P256() {
		return claviger.Errorf(claviger.Invalid, "a key that is bound to a device is ECDSA P-256", "make it with 'claviger agent enroll'")
	}
	name := strings.TrimSpace(claim.Device.Manufacturer + " " + claim.Device.Model)
	if err := checkText("device's name", name); err != nil {
		return err
	}
	p.binding = claviger.Binding{
		Custodian: claim.Device.Kind, Device: name, Software: claim.Device.Software,
		Fingerprint: hashOf(p.request.RawSubjectPublicKeyInfo), Level: claviger.Isolated,
	}
	if !claim.Level.AtLeast(claviger.Isolated) {
		p.binding.Level = claviger.Exposed
	}
	switch claim.Device.Kind {
	case claviger.Soft:
		p.binding.Software = true
		return nil
	case claviger.P11:
		if !claim.Device.Software && claim.Level.AtLeast(claviger.Hardware) {
			p.binding.Level = claviger.Hardware
		}
		return nil
	case claviger.TPM:
		return p.endorse(k.cfg.TPMRoots, claim, k.cfg.Now())
	}
	return claviger.Errorf(claviger.Invalid, "there is no such custodian", "use tpm, p11 or soft")
}

// challenge lets the challenge wait and returns it, or records the refusal.
func (k *Keeper) challenge(ctx context.Context, p *pending, err error) (Challenge, error) {
	p.ID, p.Nonce = rand.Text(), make([]byte, 32)
	p.Expires = k.cfg.Now().Add(challengeLifetime)
	_, _ = rand.Read(p.Nonce) // crypto/rand.Read never fails
	_, _ = rand.Read(p.secret[:])
	if err == nil && p.binding.Custodian == claviger.TPM {
		p.Credential, p.Encrypted, err = p.encrypt()
	}
	if err == nil {
		err = k.bindings.put(p)
	}
	if err != nil {
		return Challenge{}, k.refuseStranger(ctx, claviger.Principal{Facts: p.facts}, p.action, outward(err))
	}
	return p.Challenge, nil
}

// answered checks the answer to a challenge and completes its binding.
func (p *pending) answered(proof Proof, now time.Time) error {
	digest := sha256.Sum256(p.ProofText())
	if len(proof.Signature) > 128 || !ecdsa.VerifyASN1(p.key, digest[:], proof.Signature) {
		return claviger.Errorf(claviger.Denied, "the answer is not signed by the key of the request", "begin again with the key that is to be bound")
	}
	p.binding.At = now
	if p.binding.Custodian != claviger.TPM {
		return nil
	}
	if subtle.ConstantTimeCompare(proof.Activated, p.secret[:]) != 1 {
		return claviger.Errorf(claviger.Denied, "the device did not open the challenge: its attestation key and its endorsement key do not lie in one TPM", "enrol from the device itself")
	}
	clock, err := p.certified(proof)
	p.binding.Clock = clock
	return err
}

// FinishEnroll trades the answer to a challenge of BeginEnroll for a first
// certificate, and uses the code up. Certificates that the principal had before
// are revoked; from now on it is bound to the key.
func (k *Keeper) FinishEnroll(ctx context.Context, proof Proof, facts claviger.Facts) (Certificate, error) {
	stranger := claviger.Principal{Facts: facts}
	p, err := k.bindings.take(proof.ID, "principal.enrol")
	if err == nil {
		err = p.answered(proof, k.cfg.Now().UTC())
	}
	if err != nil {
		return Certificate{}, k.refuseStranger(ctx, stranger, "principal.enrol", err)
	}
	return k.enrol(ctx, stranger, p.code, p.request, &p.binding)
}

// BeginRenew makes a challenge for a principal that is bound to a device. The
// caller is known by its last certificate, which may have expired, and by a
// request that the bound key signed. Anything else is recorded as a binding
// that does not hold. It writes nothing.
func (k *Keeper) BeginRenew(ctx context.Context, certificate, csr []byte, claim Claim, facts claviger.Facts) (Challenge, error) {
	p := &pending{action: "principal.renew", facts: facts}
	record, err := k.lastKnown(ctx, certificate)
	if err == nil {
		p.principal, p.subject = record.ID, "principal "+string(record.ID)
		err = p.claim(k, csr, claim)
	}
	if err == nil && record.Binding == nil {
		err = claviger.Errorf(claviger.Invalid, "the principal is not bound to a device", "renew with 'claviger principal renew'")
	}
	if err == nil {
		if what := unbound(*record.Binding, p.binding); what != "" {
			return Challenge{}, k.refuseBinding(ctx, record, facts, p.action, what)
		}
	}
	return k.challenge(ctx, p, err)
}

// lastKnown returns the principal that one of our certificates was issued to,
// whether or not the certificate has expired.
func (k *Keeper) lastKnown(ctx context.Context, certificate []byte) (record claviger.PrincipalRecord, err error) {
	unknown := claviger.Errorf(claviger.Unauthenticated, "the certificate or its principal is unknown or revoked", "enrol again with a new code")
	if len(certificate) > maxCertificate {
		return record, claviger.Errorf(claviger.TooLarge, "the certificate is larger than 16 KiB", "send the last one alone, in DER")
	}
	cert, err := x509.ParseCertificate(certificate)
	if err != nil || cert.CheckSignatureFrom(k.system.caCert) != nil {
		return record, unknown.Wrap(err)
	}
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		row, err := tx.Certificate(serialText(cert.SerialNumber))
		if err != nil {
			return err
		}
		if record, err = tx.Principal(string(row.Principal)); err != nil {
			return err
		}
		if !row.Revoked.IsZero() || !record.Revoked.IsZero() || row.KeyHash != hashOf(cert.RawSubjectPublicKeyInfo) {
			return unknown
		}
		return nil
	})
	if errors.Is(err, claviger.NotFound) {
		err = unknown
	}
	return record, err
}

// unbound says what of a claim is not what the principal is bound to.
func unbound(to, claimed claviger.Binding) string {
	switch {
	case to.Finding != "":
		return to.Finding
	case claimed.Fingerprint != to.Fingerprint:
		return "another key"
	case claimed.Custodian != to.Custodian:
		return "another custodian"
	case claimed.EKFingerprint != to.EKFingerprint:
		return "another endorsement key"
	case claimed.AKName != to.AKName:
		return "another attestation key"
	}
	return ""
}

// FinishRenew trades the answer to a challenge of BeginRenew for a new
// certificate. A TPM whose clock or counters went back is not the one that
// enrolled, or not the only one: the principal is flagged and enrols anew.
func (k *Keeper) FinishRenew(ctx context.Context, proof Proof, facts claviger.Facts) (Certificate, error) {
	p, err := k.bindings.take(proof.ID, "principal.renew")
	if err != nil {
		return Certificate{}, k.refuseStranger(ctx, claviger.Principal{Facts: facts}, "principal.renew", err)
	}
	record, err := k.principal(ctx, string(p.principal))
	if err != nil {
		return Certificate{}, err
	}
	if err := p.answered(proof, k.cfg.Now().UTC()); err != nil {
		return Certificate{}, k.refuseBinding(ctx, record, facts, p.action, safeText(err))
	}
	var issued Certificate
	var refused string
	c := change{action: p.action, apply: func(tx *store.Tx, e *effect) (err error) {
		refused = ""
		if record, err = enrolling(tx, p.principal); err != nil {
			return err
		}
		if record.Binding == nil {
			refused = "no binding any more"
		} else if refused = unbound(*record.Binding, p.binding); refused == "" {
			if !attest.Clock(p.binding.Clock).Follows(attest.Clock(record.Binding.Clock)) {
				refused = "the TPM's clock or one of its counts went back: its state was copied or rolled back"
				return k.flag(tx, e, record, refused)
			}
		}
		if refused != "" {
			return claviger.Errorf(claviger.Denied, "the binding changed meanwhile", "begin again")
		}
		record.Binding = &p.binding
		issued, err = k.issue(tx, e, record, p.request)
		failpoint.Hit(failpoint.EnrolCert)
		return err
	}}
	by := claviger.Principal{ID: record.ID, Name: record.Name, Kind: record.Kind, Facts: facts}
	err = k.commit(ctx, by, c, nil, nil)
	switch {
	case refused != "":
		return Certificate{}, k.refuseBinding(ctx, record, facts, p.action, refused)
	case err != nil:
		return Certificate{}, outward(err)
	}
	return issued, nil
}

// flag notes that a binding is not to be trusted any more.
func (k *Keeper) flag(tx *store.Tx, e *effect, p claviger.PrincipalRecord, finding string) error {
	b := *p.Binding
	b.Finding, b.Level = finding, claviger.Exposed
	p.Binding = &b
	e.record.Action, e.record.Reason = "principal.flag", finding
	describe(e, p)
	return tx.UpdatePrincipal(p)
}

// refuseBinding records that a binding did not hold, at a bounded rate, and
// returns what the caller sees.
func (k *Keeper) refuseBinding(ctx context.Context, p claviger.PrincipalRecord, facts claviger.Facts, action, what string) error {
	cause := claviger.Errorf(claviger.Denied, "the principal is bound to a key in another device, or to none that can be trusted: "+what,
		"renew where it enrolled; if that device is gone, an operator revokes it or makes a new enrolment code")
	ok, suppressed := k.bindings.guard.allow()
	if !ok {
		return cause
	}
	r := k.newRecord(claviger.Principal{ID: p.ID, Name: p.Name, Kind: p.Kind, Facts: facts}, action)
	r.Outcome, r.Code, r.Reason = audit.Denied, claviger.Denied, reasonBinding
	addDetailText(r, "binding", what)
	addDetail(r, "suppressed", suppressed)
	if err := k.append(ctx, r); err != nil {
		return err
	}
	return cause
}
