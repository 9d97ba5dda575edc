package client

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
)

// Enroll makes a key (ECDSA P-256), trades the one-time code for its first
// certificate and stores both as a profile in the directory, which must not
// exist yet. The code pins the CA: over TLS nothing is sent before the server
// has shown a chain that ends in it, which it must send whole.
func Enroll(ctx context.Context, address, code, dir string) (*Profile, error) {
	e, err := newEnrolment(address, code)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	if _, err := os.Lstat(dir); err == nil { // before the code is spent
		return nil, claviger.Errorf(claviger.Conflict, "the profile exists already", "choose another name, or remove "+dir)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	csr, err := request(key)
	if err != nil {
		return nil, err
	}
	answer, err := call(ctx, e.Client, once, e.principals.Enroll, &clavigerv1.EnrollRequest{Code: code, Csr: csr})
	if err != nil {
		return nil, err
	}
	p, err := e.profile(answer, key)
	if err != nil {
		return nil, err
	}
	return p, SaveProfile(dir, p)
}

// enrolment is a client of a server that is known by an enrolment code alone.
type enrolment struct {
	*Client
	address string
	code    claviger.EnrolmentCode
}

func newEnrolment(address, code string) (*enrolment, error) {
	parsed, err := claviger.ParseEnrolmentCode(code)
	if err != nil {
		return nil, err
	}
	c, err := New(Config{Address: address})
	if err != nil {
		return nil, err
	}
	if t := c.transport.TLSClientConfig; t != nil {
		host, _, err := net.SplitHostPort(strings.TrimPrefix(address, "https://"))
		if err != nil {
			return nil, claviger.Errorf(claviger.Invalid, "the server's address has no port", "use https://host:port")
		}
		// No root is known yet: VerifyConnection checks all that would be checked
		// otherwise, against the pin.
		t.InsecureSkipVerify = true
		t.VerifyConnection = func(state tls.ConnectionState) error {
			return verifyPinned(state.PeerCertificates, parsed.CA, host, c.now())
		}
	}
	return &enrolment{Client: c, address: address, code: parsed}, nil
}

// profile makes a profile of the answer to an enrolment.
func (e *enrolment) profile(answer *clavigerv1.Certificate, signer crypto.Signer) (*Profile, error) {
	p := &Profile{Address: e.address, Principal: answer.Principal, Identity: e.code.Identity}
	for _, der := range answer.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, untrusted().Wrap(err)
		}
		if pinned(root, e.code.CA) { // others are not vouched for
			p.Roots = append(p.Roots, root)
		}
	}
	var err error
	p.Certificate, err = certify(answer, signer, p.Roots, e.now())
	return p, err
}

func request(signer crypto.Signer) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, signer)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return csr, nil
}

func untrusted() *claviger.Error {
	return claviger.Errorf(claviger.Unauthenticated, "the server is not the one that the enrolment code names", "send nothing; check the address, and ask for a new code")
}

func pinned(cert *x509.Certificate, pin [32]byte) bool {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return cert.IsCA && subtle.ConstantTimeCompare(sum[:], pin[:]) == 1
}

// verifyPinned verifies a server's chain against the one CA whose key is
// pinned.
func verifyPinned(chain []*x509.Certificate, pin [32]byte, host string, now time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for i, cert := range chain {
		if i > 0 && pinned(cert, pin) {
			roots.AddCert(cert)
		} else if i > 0 {
			between.AddCert(cert)
		}
	}
	if len(chain) == 0 {
		return untrusted()
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: between, CurrentTime: now}); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: chain, Err: err}
	}
	return nil
}

// certify checks that a certificate is for the key and by one of the roots.
func certify(answer *clavigerv1.Certificate, signer crypto.Signer, roots []*x509.Certificate, now time.Time) (tls.Certificate, error) {
	if len(answer.Chain) == 0 || len(answer.Chain) > 8 {
		return tls.Certificate{}, untrusted()
	}
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	var leaf *x509.Certificate
	for i, der := range answer.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return tls.Certificate{}, untrusted().Wrap(err)
		}
		if i == 0 {
			leaf = cert
		} else {
			between.AddCert(cert)
		}
	}
	public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(signer.Public()) {
		return tls.Certificate{}, claviger.Errorf(claviger.Internal, "the certificate is for another key", "enrol again with a new code")
	}
	if now.Before(leaf.NotBefore) { // a clock that is a little behind is no reason to refuse
		now = leaf.NotBefore
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return tls.Certificate{}, untrusted().Wrap(err)
	}
	return tls.Certificate{Certificate: answer.Chain, PrivateKey: signer, Leaf: leaf}, nil
}

// retryRenewal is how long a client waits after a renewal that failed.
const retryRenewal = time.Minute

// renewal renews the certificate of a client that was opened from a profile, or
// takes over what others renewed.
type renewal struct {
	reload func() (*tls.Certificate, error) // nil: there is nothing to take over

	dir    string
	signer crypto.Signer // nil: there is nothing to renew
	roots  []*x509.Certificate

	mu  sync.Mutex // guards due, and is held during a renewal
	due time.Time
}

// schedule sets the next renewal to two thirds of the certificate's life.
func (r *renewal) schedule(leaf *x509.Certificate) {
	r.due = leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 2 / 3)
}

// renewIfDue renews when it is time. One call does; others go on meanwhile
// with the certificate that there is. A failure is no failure of the call: the
// certificate still holds, and the next minute brings another attempt.
func (c *Client) renewIfDue(ctx context.Context) {
	r := &c.renewal
	if r.signer == nil && r.reload == nil || !r.mu.TryLock() {
		return
	}
	defer r.mu.Unlock()
	if c.now().Before(r.due) {
		return
	}
	r.due = c.now().Add(retryRenewal)
	if r.reload == nil {
		_ = c.renewLocked(ctx) // see above
	} else if cert, err := r.reload(); err == nil {
		c.take(cert)
	}
}

// take uses a certificate from now on.
func (c *Client) take(cert *tls.Certificate) {
	c.mu.Lock()
	same := c.certificate != nil && slices.EqualFunc(c.certificate.Certificate, cert.Certificate, bytes.Equal)
	c.certificate = cert
	c.mu.Unlock()
	if !same {
		c.transport.CloseIdleConnections() // those that authenticated with the old one
	}
}

// Renew renews the certificate now and stores it, as the clients of Open do by
// themselves in time.
func (c *Client) Renew(ctx context.Context) error {
	if c.renewal.signer == nil {
		return claviger.Errorf(claviger.Unsupported, "this client has no certificate of a profile", "enrol first")
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	c.renewal.mu.Lock()
	defer c.renewal.mu.Unlock()
	return c.renewLocked(ctx)
}

// renewLocked needs renewal.mu.
func (c *Client) renewLocked(ctx context.Context) error {
	csr, err := request(c.renewal.signer)
	if err != nil {
		return err
	}
	answer, err := c.principals.Renew(ctx, connect.NewRequest(&clavigerv1.RenewRequest{Csr: csr}))
	if err != nil {
		return fromConnect(err)
	}
	cert, err := certify(answer.Msg, c.renewal.signer, c.renewal.roots, c.now())
	if err != nil {
		return err
	}
	if err := saveCertificate(c.renewal.dir, cert.Certificate); err != nil {
		return claviger.Errorf(claviger.Unavailable, "the new certificate cannot be stored", "check the disk and the permissions of "+c.renewal.dir).Wrap(err)
	}
	c.renewal.schedule(cert.Leaf)
	c.take(&cert)
	return nil
}
