package policy

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/pubkey"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// maxSerial is the longest serial number in bytes (RFC 5280, 4.1.2.2).
const maxSerial = 20

var (
	oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSAN        = asn1.ObjectIdentifier{2, 5, 29, 17}

	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}

	// extensions are those that a certificate may have (RFC 5280, 4.2.1): every
	// other one is refused, critical or not.
	extensions = [...]string{
		"2.5.29.14", // subject key identifier
		"2.5.29.15", // key usage
		"2.5.29.17", // subject alternative name
		"2.5.29.19", // basic constraints
		"2.5.29.35", // authority key identifier
		"2.5.29.37", // extended key usage
	}
	// extKeyUsages are the words of a template.
	extKeyUsages = map[string]x509.ExtKeyUsage{
		"server-auth":      x509.ExtKeyUsageServerAuth,
		"client-auth":      x509.ExtKeyUsageClientAuth,
		"code-signing":     x509.ExtKeyUsageCodeSigning,
		"email-protection": x509.ExtKeyUsageEmailProtection,
	}
)

type x509Template struct {
	*claviger.X509Template
	commonName     *regexp.Regexp // nil: there is no common name
	dnsNames, uris []*regexp.Regexp
}

func compileX509(t *claviger.X509Template) (*x509Template, error) {
	c := &x509Template{X509Template: t}
	var err error
	if t.CommonName != "" {
		if c.commonName, err = pattern(t.CommonName); err != nil {
			return nil, err
		}
	}
	if c.dnsNames, err = patterns(t.DNSNames); err != nil {
		return nil, err
	}
	c.uris, err = patterns(t.URIs)
	return c, err
}

// check reads a TBSCertificate (RFC 5280, 4.1) and compares it with the
// template.
func (t *x509Template) check(key pubkey.Key, tbs []byte, now time.Time) (*Structure, error) {
	if len(tbs) > maxTBS {
		return nil, errors.New("the certificate is longer than 32 KiB")
	}
	alg, err := signatureAlgorithm(key.Algorithm())
	if err != nil {
		return nil, err
	}
	if err := checkFrame(tbs, alg); err != nil {
		return nil, err
	}
	whole := func(sig []byte) ([]byte, error) {
		var b cryptobyte.Builder
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(tbs)
			b.AddBytes(alg)
			b.AddASN1BitString(sig)
		})
		return b.Bytes()
	}
	// Parsers take whole certificates only: a signature that is not one
	// completes it.
	der, err := whole([]byte{0})
	if err != nil {
		return nil, errors.New("it is not a TBSCertificate")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil || !bytes.Equal(cert.RawTBSCertificate, tbs) {
		return nil, errors.New("it is not a TBSCertificate")
	}
	for _, step := range []func(*x509.Certificate) error{t.subject, t.usages, t.names} {
		if err := step(cert); err != nil {
			return nil, err
		}
	}
	switch {
	case cert.NotBefore.Before(now.Add(-certSkew)) || cert.NotBefore.After(now.Add(certSkew)):
		return nil, errors.New("the certificate begins more than 5 minutes from the server's clock")
	case !cert.NotAfter.After(cert.NotBefore) || !cert.NotAfter.After(now):
		return nil, errors.New("the certificate ends before it begins or has ended")
	case cert.NotAfter.Sub(cert.NotBefore) > time.Duration(t.MaxLifetime):
		return nil, errors.New("the certificate is valid for longer than the template's longest lifetime")
	}
	return &Structure{ToBeSigned: tbs, assemble: whole}, nil
}

// checkFrame checks what crypto/x509 passes over: version 3, a serial number
// of 1 to 20 bytes above zero, the key's signature algorithm to the byte, and
// no unique identifiers.
func checkFrame(tbs, alg []byte) error {
	in := cryptobyte.String(tbs)
	var seq, serial, got, part, exts cryptobyte.String
	var version int
	if !in.ReadASN1(&seq, casn1.SEQUENCE) || !in.Empty() ||
		!seq.ReadOptionalASN1Integer(&version, casn1.Tag(0).Constructed().ContextSpecific(), 0) ||
		!seq.ReadASN1(&serial, casn1.INTEGER) || !seq.ReadASN1Element(&got, casn1.SEQUENCE) {
		return errors.New("it is not a TBSCertificate")
	}
	if version != 2 {
		return errors.New("the certificate is not of version 3")
	}
	if len(serial) == 0 || len(serial) > maxSerial || serial[0] >= 0x80 || len(bytes.Trim(serial, "\x00")) == 0 {
		return errors.New("the serial number is not a positive number of at most 20 bytes")
	}
	if !bytes.Equal(got, alg) {
		return errors.New("the signature algorithm is not the key's")
	}
	for range 4 { // issuer, validity, subject, subjectPublicKeyInfo
		if !seq.ReadASN1(&part, casn1.SEQUENCE) {
			return errors.New("it is not a TBSCertificate")
		}
	}
	if !seq.ReadOptionalASN1(&exts, nil, casn1.Tag(3).Constructed().ContextSpecific()) || !seq.Empty() {
		return errors.New("the certificate has unique identifiers or trailing data")
	}
	return nil
}

// subject checks the issuer and the subject's own name.
func (t *x509Template) subject(cert *x509.Certificate) error {
	var issuer, subject pkix.RDNSequence
	if rest, err := asn1.Unmarshal(cert.RawIssuer, &issuer); err != nil || len(rest) > 0 || issuer.String() != t.IssuerDN {
		return errors.New("the issuer is not the template's")
	}
	if rest, err := asn1.Unmarshal(cert.RawSubject, &subject); err != nil || len(rest) > 0 || len(subject) > 1 {
		return errors.New("the subject has other attributes than one common name")
	}
	if len(subject) == 0 {
		return nil
	}
	if len(subject[0]) != 1 || !subject[0][0].Type.Equal(oidCommonName) {
		return errors.New("the subject has other attributes than one common name")
	}
	name, ok := subject[0][0].Value.(string)
	if !ok || t.commonName == nil || !t.commonName.MatchString(name) {
		return errors.New("the common name does not match")
	}
	return nil
}

// usages checks that the certificate is an end entity's, for permitted uses.
func (t *x509Template) usages(cert *x509.Certificate) error {
	for _, ext := range cert.Extensions {
		if !slices.Contains(extensions[:], ext.Id.String()) {
			return fmt.Errorf("the extension %.64s is refused", ext.Id)
		}
		// crypto/x509 passes over what stands behind the parts that it knows;
		// another reader may find a CA there.
		if ext.Id.Equal(oidBasicConstraints) && !cert.IsCA && !bytes.Equal(ext.Value, []byte{0x30, 0}) {
			return errors.New("the basic constraints are not those of an end entity, in DER")
		}
		in, element, tag := cryptobyte.String(ext.Value), cryptobyte.String(nil), casn1.Tag(0)
		if !in.ReadAnyASN1Element(&element, &tag) || !in.Empty() {
			return fmt.Errorf("the extension %.64s is malformed", ext.Id)
		}
	}
	switch {
	case len(cert.UnhandledCriticalExtensions) > 0:
		return errors.New("a critical extension is not understood")
	case cert.IsCA:
		return errors.New("the certificate would be a CA's")
	case cert.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("the key usage lets the subject sign certificates or CRLs")
	case len(cert.UnknownExtKeyUsage) > 0:
		return errors.New("an extended key usage is not in the template")
	case len(cert.ExtKeyUsage) == 0 && len(t.ExtKeyUsage) > 0:
		return errors.New("the certificate has no extended key usage and would be good for all")
	}
	for _, usage := range cert.ExtKeyUsage {
		if !slices.ContainsFunc(t.ExtKeyUsage, func(word string) bool { u, ok := extKeyUsages[word]; return ok && u == usage }) {
			return errors.New("an extended key usage is not in the template")
		}
	}
	return nil
}

// names checks every subject alternative name (RFC 5280, 4.2.1.6) in its raw
// form: DNS names, URIs and IP addresses; every other kind is refused.
func (t *x509Template) names(cert *x509.Certificate) error {
	count := 0
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidSAN) {
			continue
		}
		in := cryptobyte.String(ext.Value)
		var seq, value cryptobyte.String
		var tag casn1.Tag
		if !in.ReadASN1(&seq, casn1.SEQUENCE) || !in.Empty() {
			return errors.New("the subject alternative names are malformed")
		}
		for ; !seq.Empty(); count++ {
			if !seq.ReadAnyASN1(&value, &tag) {
				return errors.New("the subject alternative names are malformed")
			}
			if !t.name(tag, value) {
				return errors.New("a subject alternative name does not match")
			}
		}
	}
	if count == 0 && len(cert.Subject.Names) == 0 {
		return errors.New("the certificate names nobody")
	}
	return nil
}

func (t *x509Template) name(tag casn1.Tag, value []byte) bool {
	switch tag {
	case casn1.Tag(2).ContextSpecific():
		return validDNSName(string(value)) && anyMatches(t.dnsNames, string(value))
	case casn1.Tag(6).ContextSpecific():
		return anyMatches(t.uris, string(value))
	case casn1.Tag(7).ContextSpecific():
		addr, ok := netip.AddrFromSlice(value)
		return ok && slices.ContainsFunc(t.IPs, func(p netip.Prefix) bool { return p.Contains(addr) })
	}
	return false
}

// validDNSName reports whether a name has the characters of a host name alone,
// so that a loose pattern lets no wildcard, NUL or space through.
func validDNSName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_')
	})
}

// pssParameters is RSASSA-PSS-params (RFC 4055, 3.1).
type pssParameters struct {
	Hash pkix.AlgorithmIdentifier `asn1:"explicit,tag:0"`
	MGF  pkix.AlgorithmIdentifier `asn1:"explicit,tag:1"`
	Salt int                      `asn1:"explicit,tag:2"`
}

// signatureAlgorithm returns the AlgorithmIdentifier of the signatures of an
// algorithm, DER (RFC 5758, 8410, 4055, 9881).
func signatureAlgorithm(alg claviger.Algorithm) ([]byte, error) {
	switch alg {
	case claviger.Ed25519:
		return asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 3, 101, 112}})
	case claviger.ECDSAP256:
		return asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}})
	case claviger.ECDSAP384:
		return asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}})
	case claviger.MLDSA65:
		return asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 18}})
	}
	params, ok := alg.RSA()
	if !ok {
		return nil, errors.New("the key's algorithm does not sign certificates")
	}
	pkcs1 := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1}
	n := map[int]int{32: 1, 48: 2, 64: 3}[params.Hash.Size()] // 1, 2, 3: SHA-256, -384, -512
	if !params.PSS {
		return asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: append(pkcs1, 10+n), Parameters: asn1.NullRawValue})
	}
	hash := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, n}, Parameters: asn1.NullRawValue}
	hashDER, err := asn1.Marshal(hash)
	if err != nil {
		return nil, err
	}
	mgf := pkix.AlgorithmIdentifier{Algorithm: append(slices.Clone(pkcs1), 8), Parameters: asn1.RawValue{FullBytes: hashDER}}
	der, err := asn1.Marshal(pssParameters{hash, mgf, params.Hash.Size()})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: append(pkcs1, 10), Parameters: asn1.RawValue{FullBytes: der}})
}
