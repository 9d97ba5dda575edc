package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// maxCertificates is the most certificates of one endorsement key.
const maxCertificates = 16

// Chain checks that the first certificate (DER) is of the endorsement key
// (TPMT_PUBLIC) and leads to one of the roots at that time, over the others if
// need be. It returns the certificates in order, the root last. Errors are
// claviger.Invalid.
func Chain(ekPublic []byte, certificates [][]byte, roots *x509.CertPool, now time.Time) ([]*x509.Certificate, error) {
	ek, err := ekOf(ekPublic)
	if err != nil {
		return nil, err
	}
	if len(certificates) == 0 {
		return nil, invalid("the TPM has no endorsement certificate", "have the TPM's manufacturer or your own authority certify its endorsement key")
	}
	if len(certificates) > maxCertificates {
		return nil, invalid("there are more than 16 endorsement certificates", "send the leaf and its intermediates only")
	}
	var parsed []*x509.Certificate
	for _, der := range certificates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, invalid("an endorsement certificate cannot be read", "read it from the TPM again")
		}
		parsed = append(parsed, c)
	}
	leaf, between := parsed[0], x509.NewCertPool()
	for _, c := range parsed[1:] {
		between.AddCert(c)
	}
	if !certifies(leaf, ek.area) {
		return nil, invalid("the endorsement certificate is of another key", "read key and certificate from the same TPM")
	}
	if !forEndorsement(leaf) {
		return nil, invalid("the certificate is not for an endorsement key", "use the certificate that came with the TPM")
	}
	// The manufacturer, model and version are a critical subject alternative
	// name (TCG EK credential profile, 3.2.9), which crypto/x509 leaves to us.
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, func(id asn1.ObjectIdentifier) bool {
		return id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17})
	})
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, invalid("the endorsement certificate leads to none of the configured roots, or was not valid then",
			"configure the root of the TPM's manufacturer, if it is one that you trust")
	}
	return chains[0], nil
}

// certifies reports whether the certificate is of the key.
func certifies(c *x509.Certificate, area *tpm2.TPMTPublic) bool {
	pub, err := tpm2.Pub(*area)
	if err != nil {
		return false
	}
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		return pub.Equal(c.PublicKey)
	case *ecdsa.PublicKey:
		return pub.Equal(crypto.PublicKey(c.PublicKey))
	}
	return false
}

// forEndorsement reports whether the certificate is no authority's, and names
// tcg-kp-EKCertificate where it names purposes at all.
func forEndorsement(c *x509.Certificate) bool {
	purpose := asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	purposes := len(c.ExtKeyUsage) + len(c.UnknownExtKeyUsage)
	return !c.IsCA && (purposes == 0 || slices.ContainsFunc(c.UnknownExtKeyUsage, purpose.Equal))
}

// Software recognises what swtpm_localca certifies: the manufacturer
// is IBM's id, the model swtpm (TCG EK credential profile, 3.2.9).
func Software(cert *x509.Certificate) bool {
	for _, e := range cert.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			return bytes.Contains(e.Value, []byte("id:00001014")) || bytes.Contains(e.Value, []byte("swtpm"))
		}
	}
	return false
}
