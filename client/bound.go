package client

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"path/filepath"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
)

// Holder is the own key of a caller where it lies in a device.
type Holder interface {
	crypto.Signer
	// Claim says what device it is.
	Claim(ctx context.Context) (*clavigerv1.BoundDevice, error)
	// Answer shows that the key lies there.
	Answer(ctx context.Context, challenge *clavigerv1.BindingChallenge) (*clavigerv1.BindingProof, error)
}

// EnrollBound trades the one-time code for the first certificate of a key in a
// device, as Enroll does for one that it makes. The profile is not stored yet.
func EnrollBound(ctx context.Context, address, code string, key Holder) (*Profile, *clavigerv1.PrincipalBinding, error) {
	e, err := newEnrolment(address, code)
	if err != nil {
		return nil, nil, err
	}
	defer e.Close()
	csr, err := request(key)
	if err != nil {
		return nil, nil, err
	}
	claim, err := key.Claim(ctx)
	if err != nil {
		return nil, nil, err
	}
	challenge, err := call(ctx, e.Client, again, e.principals.BeginEnroll, &clavigerv1.BeginEnrollRequest{Code: code, Csr: csr, Device: claim})
	if err != nil {
		return nil, nil, err
	}
	proof, err := key.Answer(ctx, challenge)
	if err != nil {
		return nil, nil, err
	}
	answer, err := call(ctx, e.Client, once, e.principals.FinishEnroll, proof)
	if err != nil {
		return nil, nil, err
	}
	p, err := e.profile(answer, key)
	return p, answer.Binding, err
}

// RenewBound renews the certificate of a profile whose key lies in a device,
// whether or not it has expired, and stores the new one.
func RenewBound(ctx context.Context, dir string, key Holder) (*clavigerv1.Certificate, error) {
	p, last, err := loadBound(dir)
	if err != nil {
		return nil, err
	}
	c, err := New(p.Config())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	csr, err := request(key)
	if err != nil {
		return nil, err
	}
	claim, err := key.Claim(ctx)
	if err != nil {
		return nil, err
	}
	challenge, err := call(ctx, c, again, c.principals.BeginRenew, &clavigerv1.BeginRenewRequest{Certificate: last[0].Raw, Csr: csr, Device: claim})
	if err != nil {
		return nil, err
	}
	proof, err := key.Answer(ctx, challenge)
	if err != nil {
		return nil, err
	}
	answer, err := call(ctx, c, once, c.principals.FinishRenew, proof)
	if err != nil {
		return nil, err
	}
	if _, err := certify(answer, key, p.Roots, c.now()); err != nil {
		return nil, err
	}
	if err := saveCertificate(dir, answer.Chain); err != nil {
		return nil, claviger.Errorf(claviger.Unavailable, "the new certificate cannot be stored", "check the disk and the permissions of "+dir).Wrap(err)
	}
	return answer, nil
}

// LoadBound reads a profile whose key lies in a device. TLS handshakes sign
// with the key that is given; it must be the certificate's.
func LoadBound(dir string, key crypto.Signer) (*Profile, error) {
	p, chain, err := loadBound(dir)
	if err != nil {
		return nil, err
	}
	public, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return nil, claviger.Errorf(claviger.Invalid, "the certificate is for another key than the device's", "enrol again with a new code")
	}
	p.Certificate = tls.Certificate{Certificate: rawOf(chain), PrivateKey: key, Leaf: chain[0]}
	return p, nil
}

// Leaf returns the certificate of the profile in the directory.
func Leaf(dir string) (*x509.Certificate, error) {
	_, chain, err := loadBound(dir)
	if err != nil {
		return nil, err
	}
	return chain[0], nil
}

func loadBound(dir string) (*Profile, []*x509.Certificate, error) {
	p, err := LoadProfile(dir)
	if err != nil {
		return nil, nil, err
	}
	raw, err := readProfile(dir, certFile)
	if err != nil {
		return nil, nil, err
	}
	chain, err := certificates(raw)
	if err == nil && len(chain) == 0 {
		err = damaged(filepath.Base(certFile))
	}
	return p, chain, err
}
