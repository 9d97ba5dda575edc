package keeper

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"net/url"
	"strconv"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/store"
)

// maxRequest bounds a certificate request, in bytes.
const maxRequest = 16 << 10

// backdate is how long before its issue a certificate is valid, for clocks
// that are behind.
const backdate = time.Minute

// Enroll trades a code and a certificate request (PKCS#10, RFC 2986, DER) for
// a first certificate. The request's names are ignored; its signature shows
// that the caller holds the key. Certificates that the principal had before
// are revoked. Refusals are recorded, at a bounded rate that is counted.
func (k *Keeper) Enroll(ctx context.Context, code string, csr []byte, facts claviger.Facts) (Certificate, error) {
	stranger := claviger.Principal{Facts: facts}
	parsed, codeErr := claviger.ParseEnrolmentCode(code)
	request, err := parseRequest(csr)
	if err == nil {
		err = codeErr
	}
	if err != nil {
		return Certificate{}, k.refuseStranger(ctx, stranger, "principal.enrol", err)
	}
	return k.enrol(ctx, stranger, parsed.Hash(), request, nil)
}

// enrol takes a code and issues a first certificate. binding is of a key in a
// device; nil for any other, which a principal that has to be bound may not have.
func (k *Keeper) enrol(ctx context.Context, stranger claviger.Principal, code [32]byte, request *x509.CertificateRequest, binding *claviger.Binding) (Certificate, error) {
	var issued Certificate
	var unbound *claviger.PrincipalRecord
	c := change{action: "principal.enrol", apply: func(tx *store.Tx, e *effect) error {
		now := k.cfg.Now()
		unbound = nil
		taken, err := tx.TakeCode(code, now)
		if err != nil {
			return unknownCode(err)
		}
		failpoint.Hit(failpoint.EnrolTaken)
		p, err := enrolling(tx, taken.Principal)
		if err != nil {
			return err
		}
		if p.Bound && binding == nil {
			unbound = &p
			return claviger.Denied
		}
		if err := revokeCertificates(tx, p.ID, now.UTC(), "the principal enrolled again"); err != nil {
			return err
		}
		p.Binding = binding
		issued, err = k.issue(tx, e, p, request)
		failpoint.Hit(failpoint.EnrolCert)
		return err
	}}
	err := k.commit(ctx, stranger, c, nil, nil)
	if unbound != nil {
		return Certificate{}, k.refuseBinding(ctx, *unbound, stranger.Facts, c.action, "a key that is in no device")
	}
	switch claviger.CodeOf(err) {
	case "":
		return issued, nil
	case claviger.Unauthenticated:
		return Certificate{}, k.refuseStranger(ctx, stranger, c.action, err)
	}
	return Certificate{}, outward(err)
}

// Renew issues a new certificate to a caller that authenticated with one that
// stands: for the same or another key, or, to a principal that is bound, for
// the bound key alone. The old one lasts until it expires.
func (k *Keeper) Renew(ctx context.Context, by claviger.Principal, csr []byte) (Certificate, error) {
	request, err := parseRequest(csr)
	if err != nil {
		return Certificate{}, err
	}
	var issued Certificate
	refused, unbound := false, ""
	var record claviger.PrincipalRecord
	c := change{action: "principal.renew", apply: func(tx *store.Tx, e *effect) error {
		refused = false
		s, err := loadPrincipal(tx, string(by.ID))
		if err != nil {
			return err
		}
		if _, ok := s.certificate(by.Facts.CertSerial); !ok || s.admit(&by) == reasonPrincipal {
			refused = true
			return refusal(policy.Decision{Code: claviger.Denied, Reason: reasonPrincipal})
		}
		record = s.record
		if unbound = mustAttest(record.Binding, request); unbound != "" {
			return claviger.Denied
		}
		issued, err = k.issue(tx, e, record, request)
		failpoint.Hit(failpoint.EnrolCert)
		return err
	}}
	err = k.commit(ctx, by, c, nil, nil)
	if unbound != "" {
		return Certificate{}, k.refuseBinding(ctx, record, by.Facts, c.action, unbound)
	}
	if refused {
		return Certificate{}, k.deny(ctx, k.newRecord(by, c.action), policy.Decision{Code: claviger.Denied, Reason: reasonPrincipal})
	}
	if err != nil {
		return Certificate{}, outward(err)
	}
	return issued, nil
}

// mustAttest says why a request that comes without an attestation does not
// renew a binding; "" when it does.
func mustAttest(b *claviger.Binding, request *x509.CertificateRequest) string {
	switch {
	case b == nil:
		return ""
	case b.Finding != "":
		return b.Finding
	case b.Fingerprint != hashOf(request.RawSubjectPublicKeyInfo):
		return "another key"
	case b.Custodian == claviger.TPM:
		return "no attestation: renew with 'claviger agent renew'"
	}
	return ""
}

// certificate returns one of the principal's certificates by serial number.
func (s *principalState) certificate(serial string) (store.Certificate, bool) {
	if s == nil {
		return store.Certificate{}, false
	}
	cert, ok := s.certs[serial]
	return cert, ok
}

// issue signs a certificate for a principal, stores it, and makes its key the
// principal's.
func (k *Keeper) issue(tx *store.Tx, e *effect, p claviger.PrincipalRecord, request *x509.CertificateRequest) (Certificate, error) {
	now := k.cfg.Now().UTC()
	id := k.spiffeID(p.Kind, p.Name)
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: p.Name}, URIs: []*url.URL{id},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(k.cfg.Leaf),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := k.system.certify(template, request.PublicKey)
	if err != nil {
		return Certificate{}, err
	}
	row := store.Certificate{
		Serial: serialText(template.SerialNumber), Principal: p.ID, KeyHash: hashOf(request.RawSubjectPublicKeyInfo),
		NotBefore: template.NotBefore, NotAfter: template.NotAfter,
	}
	if err := tx.InsertCertificate(row); err != nil {
		return Certificate{}, err
	}
	p.KeyHash = row.KeyHash
	if err := tx.UpdatePrincipal(p); err != nil {
		return Certificate{}, err
	}
	describe(e, p)
	e.detail("serial", row.Serial)
	e.detail("key_hash", row.KeyHash)
	e.detail("not_after", row.NotAfter.Format(time.RFC3339))
	describeBinding(e, p.Binding)
	return Certificate{
		Chain: [][]byte{der}, Roots: k.system.rootsDER(), Serial: row.Serial, Principal: p.ID,
		NotBefore: row.NotBefore, NotAfter: row.NotAfter, Binding: p.Binding,
	}, nil
}

// parseRequest checks a certificate request: its signature, and the type of
// its key.
func parseRequest(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > maxRequest {
		return nil, claviger.Errorf(claviger.TooLarge, "the certificate request is larger than 16 KiB", "send one PKCS#10 request in DER")
	}
	malformed := claviger.Errorf(claviger.Invalid, "the certificate request is malformed or not signed by its own key", "send a PKCS#10 request in DER")
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, malformed.Wrap(err)
	}
	if !goodKey(request.PublicKey) { // first: a stranger's signature by a huge key is slow to check
		return nil, claviger.Errorf(claviger.Invalid, "the request's key is of a type that is not accepted", "use Ed25519, ECDSA P-256 or P-384, or RSA of 2048 to 4096 bits")
	}
	if err := request.CheckSignature(); err != nil {
		return nil, malformed.Wrap(err)
	}
	return request, nil
}

func goodKey(public crypto.PublicKey) bool {
	switch key := public.(type) {
	case ed25519.PublicKey:
		return true
	case *ecdsa.PublicKey:
		return key.Curve == elliptic.P256() || key.Curve == elliptic.P384()
	case *rsa.PublicKey:
		return key.N.BitLen() >= 2048 && key.N.BitLen() <= 4096
	}
	return false
}

func newSerial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])  // crypto/rand.Read never fails
	b[0] = b[0]&0x7f | 0x40 // positive, and always of one length
	return new(big.Int).SetBytes(b[:])
}

func serialText(serial *big.Int) string { return serial.Text(16) }

func hashOf(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

func pinOf(raw []byte) [32]byte { return sha256.Sum256(raw) }

// codeGuard bounds how often what strangers attempt is recorded. What is not
// recorded one by one is counted in the next record that is.
type codeGuard struct {
	now func() time.Time

	mu         sync.Mutex // guards what follows
	window     time.Time
	inWindow   int
	suppressed uint64
}

// recordsPerSecond is how many attempts of strangers are recorded one by one.
const recordsPerSecond = 10

// allow reports whether an attempt is to be recorded, and how many were not
// since the last one that was.
func (g *codeGuard) allow() (bool, uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if now.Sub(g.window).Abs() >= time.Second {
		g.window, g.inWindow = now, 0
	}
	if g.inWindow >= recordsPerSecond {
		g.suppressed++
		return false, 0
	}
	g.inWindow++
	n := g.suppressed
	g.suppressed = 0
	return true, n
}

// refuseStranger records that somebody could not be identified.
func (k *Keeper) refuseStranger(ctx context.Context, who claviger.Principal, action string, cause error) error {
	ok, suppressed := k.guard.allow()
	if !ok {
		return cause
	}
	r := k.newRecord(who, action)
	r.Outcome, r.Code, r.Reason = audit.Denied, claviger.CodeOf(cause), safeText(cause)
	if suppressed > 0 {
		addDetailText(r, "suppressed", strconv.FormatUint(suppressed, 10))
	}
	if err := k.append(ctx, r); err != nil {
		return err
	}
	return cause
}
