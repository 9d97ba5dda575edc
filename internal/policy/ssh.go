package policy

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"time"

	"claviger.dev"
	"claviger.dev/pubkey"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ssh"
)

// maxTBS is the longest certificate to be signed: 32 KiB.
const maxTBS = 32 << 10

type sshTemplate struct {
	*claviger.SSHTemplate
	keyID      *regexp.Regexp // nil: the key id is empty
	principals []*regexp.Regexp
}

func compileSSH(t *claviger.SSHTemplate) (*sshTemplate, error) {
	c := &sshTemplate{SSHTemplate: t}
	var err error
	if t.KeyID != "" {
		if c.keyID, err = pattern(t.KeyID); err != nil {
			return nil, err
		}
	}
	c.principals, err = patterns(t.Principals)
	return c, err
}

// check reads an OpenSSH certificate without its signature (PROTOCOL.certkeys)
// and compares it with the template.
func (t *sshTemplate) check(key pubkey.Key, tbs []byte, now time.Time) (*Structure, error) {
	format, err := sshFormat(key.Algorithm())
	if err != nil {
		return nil, err
	}
	whole := func(blob []byte) []byte {
		sig := ssh.Marshal(ssh.Signature{Format: format, Blob: blob})
		return slices.Concat(tbs, ssh.Marshal(struct{ Signature []byte }{sig}))
	}
	if len(tbs) > maxTBS {
		return nil, errors.New("the certificate is longer than 32 KiB")
	}
	// Parsers take whole certificates only: a signature that is not one
	// completes it.
	parsed, err := ssh.ParsePublicKey(whole([]byte{0}))
	cert, ok := parsed.(*ssh.Certificate)
	if err != nil || !ok {
		return nil, errors.New("it is not an SSH certificate without its signature")
	}
	if !bytes.Equal(cert.Marshal(), whole([]byte{0})) {
		return nil, errors.New("the certificate has more than one reading")
	}
	issuer, err := ssh.NewPublicKey(key.Std())
	if err != nil || !bytes.Equal(cert.SignatureKey.Marshal(), issuer.Marshal()) {
		return nil, errors.New("the signature key is not the key's public half")
	}
	if err := t.fields(cert); err != nil {
		return nil, err
	}
	if err := t.validity(cert, now); err != nil {
		return nil, err
	}
	return &Structure{ToBeSigned: tbs, assemble: func(sig []byte) ([]byte, error) {
		blob, err := sshBlob(key.Algorithm(), sig)
		if err != nil {
			return nil, err
		}
		return whole(blob), nil
	}}, nil
}

func (t *sshTemplate) fields(cert *ssh.Certificate) error {
	kind := uint32(ssh.UserCert)
	if t.Host {
		kind = ssh.HostCert
	}
	switch {
	case cert.CertType != kind:
		return errors.New("the certificate is not of the template's type (user or host)")
	case t.keyID == nil && cert.KeyId != "" || t.keyID != nil && !t.keyID.MatchString(cert.KeyId):
		return errors.New("the key id does not match")
	case len(cert.ValidPrincipals) == 0:
		return errors.New("the certificate names no principal and would be good for all")
	case len(cert.Reserved) > 0:
		return errors.New("the reserved field is not empty")
	case !maps.Equal(cert.CriticalOptions, t.CriticalOptions):
		return errors.New("the critical options are not the template's")
	}
	for _, p := range cert.ValidPrincipals {
		if !anyMatches(t.principals, p) {
			return fmt.Errorf("the principal %.64q does not match", p)
		}
	}
	for name, value := range cert.Extensions {
		if !slices.Contains(t.Extensions, name) || value != "" {
			return fmt.Errorf("the extension %.64q is not in the template", name)
		}
	}
	return nil
}

func (t *sshTemplate) validity(cert *ssh.Certificate, now time.Time) error {
	skew, n := uint64(certSkew/time.Second), uint64(max(now.Unix(), 0))
	switch {
	case cert.ValidBefore == ssh.CertTimeInfinity:
		return errors.New("the certificate would be valid for ever")
	case cert.ValidAfter+skew < n || cert.ValidAfter > n+skew:
		return errors.New("the certificate begins more than 5 minutes from the server's clock")
	case cert.ValidBefore <= cert.ValidAfter || cert.ValidBefore <= n:
		return errors.New("the certificate ends before it begins or has ended")
	case cert.ValidBefore-cert.ValidAfter > uint64(time.Duration(t.MaxLifetime)/time.Second):
		return errors.New("the certificate is valid for longer than the template's longest lifetime")
	}
	return nil
}

// sshFormat returns the name of the signature format (RFC 4253, 5656, 8332,
// 8709).
func sshFormat(alg claviger.Algorithm) (string, error) {
	switch alg {
	case claviger.Ed25519:
		return ssh.KeyAlgoED25519, nil
	case claviger.ECDSAP256:
		return ssh.KeyAlgoECDSA256, nil
	case claviger.ECDSAP384:
		return ssh.KeyAlgoECDSA384, nil
	}
	if p, ok := alg.RSA(); ok && !p.PSS && p.Hash.Size() == 32 {
		return ssh.KeyAlgoRSASHA256, nil
	} else if ok && !p.PSS && p.Hash.Size() == 64 {
		return ssh.KeyAlgoRSASHA512, nil
	}
	return "", errors.New("OpenSSH has no signature of the key's algorithm")
}

// sshBlob writes a signature as SSH does: for ECDSA two mpints (RFC 5656, 3.1.2).
func sshBlob(alg claviger.Algorithm, sig []byte) ([]byte, error) {
	if alg != claviger.ECDSAP256 && alg != claviger.ECDSAP384 {
		return sig, nil
	}
	var rs struct{ R, S *big.Int }
	rs.R, rs.S = new(big.Int), new(big.Int)
	in := cryptobyte.String(sig)
	var seq cryptobyte.String
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() || !seq.ReadASN1Integer(rs.R) || !seq.ReadASN1Integer(rs.S) || !seq.Empty() {
		return nil, errors.New("the ECDSA signature is not ASN.1")
	}
	return ssh.Marshal(rs), nil
}
