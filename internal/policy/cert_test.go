package policy_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/policy"
	"golang.org/x/crypto/ssh"
)

func x509Template() *claviger.Template {
	return &claviger.Template{X509: &claviger.X509Template{
		IssuerDN: "CN=Issuing CA,O=Example", CommonName: `[a-z]+`,
		DNSNames: []string{`[^.]+\.example\.com`}, URIs: []string{`spiffe://example/.*`},
		IPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, ExtKeyUsage: []string{"server-auth", "client-auth"},
		MaxLifetime: claviger.Duration(24 * time.Hour),
	}}
}

func x509Leaf() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "web"}, DNSNames: []string{"web.example.com"},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "example", Path: "/web"}}, IPAddresses: []net.IP{net.IPv4(10, 1, 1, 1)},
		NotBefore: now, NotAfter: now.Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
}

// x509TBS makes a certificate with the standard library and takes its signed
// part.
func x509TBS(t testing.TB, a authority, leaf *x509.Certificate) []byte {
	t.Helper()
	issuer := &x509.Certificate{Subject: pkix.Name{CommonName: "Issuing CA", Organization: []string{"Example"}}, SubjectKeyId: []byte{1, 2, 3}}
	if p, ok := a.alg.RSA(); ok {
		leaf.SignatureAlgorithm = map[bool]x509.SignatureAlgorithm{true: x509.SHA256WithRSAPSS, false: x509.SHA512WithRSA}[p.PSS]
	}
	subject, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, issuer, subject, a.signer)
	if err != nil {
		t.Fatal(err)
	}
	// Not ParseCertificate, which refuses some of what the tests need.
	var outer, tbs asn1.RawValue
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		t.Fatal(err)
	}
	if _, err := asn1.Unmarshal(outer.Bytes, &tbs); err != nil {
		t.Fatal(err)
	}
	return tbs.FullBytes
}

func TestX509(t *testing.T) {
	t.Parallel()
	for _, alg := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.ECDSAP384, "rsa-2048-pss-sha256", "rsa-2048-pkcs1-sha512"} {
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t, alg)
			var e policy.Engine
			d := a.decide(&e, x509Template(), &policy.Structured{X509TBS: x509TBS(t, a, x509Leaf())})
			if !d.Allowed {
				t.Fatalf("denied: %s: %s", d.Reason, d.Detail)
			}
			s := d.Allowances[0].Structure
			der, err := s.Assemble(a.sign(t, s.ToBeSigned))
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			issuer := &x509.Certificate{PublicKey: a.public.Std(), PublicKeyAlgorithm: cert.PublicKeyAlgorithm}
			if err := issuer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
				t.Errorf("the certificate does not verify: %v", err)
			}
		})
	}
}

func TestX509Refusals(t *testing.T) {
	t.Parallel()
	extension := func(oid asn1.ObjectIdentifier, critical bool, value []byte) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: oid, Critical: critical, Value: value}}
		}
	}
	tests := []struct {
		name  string
		spoil func(*x509.Certificate)
		want  string
	}{
		{"plain", func(*x509.Certificate) {}, ""},
		{"names alone", func(c *x509.Certificate) { c.Subject = pkix.Name{} }, ""},
		{"CA", func(c *x509.Certificate) { c.IsCA = true }, "CA"},
		{"CA after an end entity's constraints", extension(asn1.ObjectIdentifier{2, 5, 29, 19}, true, []byte{0x30, 0, 0x30, 3, 1, 1, 0xff}), "constraints"},
		{"CA behind a path length", extension(asn1.ObjectIdentifier{2, 5, 29, 19}, true, []byte{0x30, 6, 2, 1, 0, 1, 1, 0xff}), "constraints"},
		{"key usage twice in one", extension(asn1.ObjectIdentifier{2, 5, 29, 15}, true, []byte{3, 2, 7, 0x80, 3, 2, 2, 4}), "malformed"},
		{"signs certificates", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, "key usage"},
		{"signs CRLs", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, "key usage"},
		{"no extended key usage", func(c *x509.Certificate) { c.ExtKeyUsage = nil }, "good for all"},
		{"any extended key usage", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, "extended key usage"},
		{"another extended key usage", func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) }, "extended key usage"},
		{"unknown extended key usage", func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} }, "extended key usage"},
		{"common name", func(c *x509.Certificate) { c.Subject.CommonName = "Web" }, "common name"},
		{"organisation", func(c *x509.Certificate) { c.Subject.Organization = []string{"Example"} }, "subject"},
		{"organisation for a name", func(c *x509.Certificate) { c.Subject = pkix.Name{Organization: []string{"web"}} }, "subject"},
		{"names nobody", func(c *x509.Certificate) {
			c.Subject, c.DNSNames, c.URIs, c.IPAddresses = pkix.Name{}, nil, nil, nil
		}, "nobody"},
		{"DNS name", func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "web.example.org") }, "alternative name"},
		{"DNS name below", func(c *x509.Certificate) { c.DNSNames = []string{"a.b.example.com"} }, "alternative name"},
		{"wildcard", func(c *x509.Certificate) { c.DNSNames = []string{"*.example.com"} }, "alternative name"},
		{"DNS name with NUL", func(c *x509.Certificate) { c.DNSNames = []string{"a\x00.example.com"} }, "alternative name"},
		{"DNS name with a space", func(c *x509.Certificate) { c.DNSNames = []string{"a b.example.com"} }, "alternative name"},
		{"URI", func(c *x509.Certificate) { c.URIs[0].Host = "other" }, "alternative name"},
		{"IP", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(11, 0, 0, 1)} }, "alternative name"},
		{"email", func(c *x509.Certificate) { c.EmailAddresses = []string{"web@example.com"} }, "alternative name"},
		{"other name", extension(asn1.ObjectIdentifier{2, 5, 29, 17}, false, []byte{0x30, 0x05, 0xa0, 0x03, 0x06, 0x01, 0x2a}), "alternative name"},
		{"name constraints", func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.com"} }, "extension"},
		{"policies", func(c *x509.Certificate) { c.Policies = []x509.OID{mustOID(1, 2, 3)} }, "extension"},
		{"CRL address", func(c *x509.Certificate) { c.CRLDistributionPoints = []string{"http://example.com"} }, "extension"},
		{"unknown extension", extension(asn1.ObjectIdentifier{1, 2, 3}, false, []byte{5, 0}), "extension"},
		{"unknown critical extension", extension(asn1.ObjectIdentifier{1, 2, 3}, true, []byte{5, 0}), "extension"},
		{"begins late", func(c *x509.Certificate) { c.NotBefore = now.Add(6 * time.Minute) }, "begins"},
		{"begins early", func(c *x509.Certificate) { c.NotBefore = now.Add(-6 * time.Minute) }, "begins"},
		{"ends before it begins", func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }, "ends"},
		{"too long", func(c *x509.Certificate) { c.NotAfter = now.Add(24*time.Hour + time.Second) }, "lifetime"},
		{"longest serial number", func(c *x509.Certificate) {
			c.SerialNumber = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 159), big.NewInt(1))
		}, ""},
	}
	a := newAuthority(t, claviger.ECDSAP256)
	var e policy.Engine
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			leaf := x509Leaf()
			test.spoil(leaf)
			checkTemplate(t, a.decide(&e, x509Template(), &policy.Structured{X509TBS: x509TBS(t, a, leaf)}), test.want)
		})
	}
}

func mustOID(parts ...uint64) x509.OID {
	oid, err := x509.OIDFromInts(parts)
	if err != nil {
		panic(err)
	}
	return oid
}

// What the standard library would not make is made by changing bytes.
func TestX509Bytes(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t, claviger.ECDSAP256), newAuthority(t, claviger.ECDSAP384)
	tbs := x509TBS(t, a, x509Leaf())
	replace := func(old, new []byte) []byte {
		if !bytes.Contains(tbs, old) {
			t.Fatalf("%x is not in the certificate", old)
		}
		return bytes.Replace(tbs, old, new, 1)
	}
	var e policy.Engine
	for _, test := range []struct {
		name string
		tbs  []byte
		want string
	}{
		{"plain", tbs, ""},
		{"empty", nil, "another kind"},
		{"trailing byte", append(bytes.Clone(tbs), 0), "TBSCertificate"},
		{"cut", tbs[:len(tbs)-1], "TBSCertificate"},
		{"version 2", replace([]byte{0xa0, 3, 2, 1, 2}, []byte{0xa0, 3, 2, 1, 1}), "version"},
		{"serial zero", replace([]byte{2, 1, 7}, []byte{2, 1, 0}), "serial"},
		{"serial negative", replace([]byte{2, 1, 7}, []byte{2, 1, 0xff}), "serial"},
		{"another algorithm's signature", x509TBS(t, other, x509Leaf()), "signature algorithm"},
		{"another issuer", replace([]byte("Issuing CA"), []byte("Issuing CB")), "issuer"},
		{"too long", make([]byte, 33<<10), "32 KiB"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			checkTemplate(t, a.decide(&e, x509Template(), &policy.Structured{X509TBS: test.tbs}), test.want)
		})
	}
}

func sshTemplate() *claviger.Template {
	return &claviger.Template{SSH: &claviger.SSHTemplate{
		KeyID: `[a-z]+@example`, Principals: []string{"deploy", "web-[0-9]+"},
		CriticalOptions: map[string]string{"force-command": "/bin/true"}, Extensions: []string{"permit-pty"},
		MaxLifetime: claviger.Duration(time.Hour),
	}}
}

func sshLeaf(t testing.TB) *ssh.Certificate {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return &ssh.Certificate{
		Nonce: []byte("nonce"), Key: key, Serial: 1, CertType: ssh.UserCert, KeyId: "ann@example",
		ValidPrincipals: []string{"deploy", "web-12"}, ValidAfter: uint64(now.Unix()), ValidBefore: uint64(now.Add(time.Hour).Unix()),
		Permissions: ssh.Permissions{CriticalOptions: map[string]string{"force-command": "/bin/true"}, Extensions: map[string]string{"permit-pty": ""}},
	}
}

// sshTBS has x/crypto sign the certificate and cuts the signature off.
func sshTBS(t testing.TB, a authority, cert *ssh.Certificate) []byte {
	t.Helper()
	signer, err := ssh.NewSignerFromSigner(a.signer)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.SignCert(rand.Reader, signer); err != nil {
		t.Fatal(err)
	}
	whole := cert.Marshal()
	return whole[:len(whole)-4-len(ssh.Marshal(cert.Signature))]
}

func TestSSH(t *testing.T) {
	t.Parallel()
	for _, alg := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.ECDSAP384, "rsa-2048-pkcs1-sha256", "rsa-2048-pkcs1-sha512"} {
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t, alg)
			var e policy.Engine
			d := a.decide(&e, sshTemplate(), &policy.Structured{SSHTBS: sshTBS(t, a, sshLeaf(t))})
			if !d.Allowed {
				t.Fatalf("denied: %s: %s", d.Reason, d.Detail)
			}
			s := d.Allowances[0].Structure
			wire, err := s.Assemble(a.sign(t, s.ToBeSigned))
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := ssh.ParsePublicKey(wire)
			if err != nil {
				t.Fatal(err)
			}
			cert := parsed.(*ssh.Certificate)
			checker := ssh.CertChecker{Clock: func() time.Time { return now }, SupportedCriticalOptions: []string{"force-command"}}
			if err := checker.CheckCert("deploy", cert); err != nil {
				t.Errorf("the certificate does not verify: %v", err)
			}
		})
	}
	for _, alg := range []claviger.Algorithm{"rsa-2048-pss-sha256", "rsa-2048-pkcs1-sha384"} {
		a := newAuthority(t, alg)
		var e policy.Engine
		checkTemplate(t, a.decide(&e, sshTemplate(), &policy.Structured{SSHTBS: sshTBS(t, a, sshLeaf(t))}), "OpenSSH")
	}
}

func TestSSHRefusals(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		spoil func(*ssh.Certificate)
		want  string
	}{
		{"plain", func(*ssh.Certificate) {}, ""},
		{"fewer extensions", func(c *ssh.Certificate) { c.Extensions = nil }, ""},
		{"host", func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, "type"},
		{"key id", func(c *ssh.Certificate) { c.KeyId = "ann@example.org" }, "key id"},
		{"no principal", func(c *ssh.Certificate) { c.ValidPrincipals = nil }, "principal"},
		{"another principal", func(c *ssh.Certificate) { c.ValidPrincipals = []string{"deploy", "root"} }, "principal"},
		{"for ever", func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }, "for ever"},
		{"too long", func(c *ssh.Certificate) { c.ValidBefore++ }, "lifetime"},
		{"begins at zero", func(c *ssh.Certificate) { c.ValidAfter = 0 }, "begins"},
		{"begins late", func(c *ssh.Certificate) { c.ValidAfter += 301 }, "begins"},
		{"ends before it begins", func(c *ssh.Certificate) { c.ValidBefore = c.ValidAfter }, "ends"},
		{"critical option missing", func(c *ssh.Certificate) { c.CriticalOptions = nil }, "critical"},
		{"critical option added", func(c *ssh.Certificate) { c.CriticalOptions["verify-required"] = "" }, "critical"},
		{"critical option changed", func(c *ssh.Certificate) { c.CriticalOptions["force-command"] = "/bin/sh" }, "critical"},
		{"extension", func(c *ssh.Certificate) { c.Extensions["permit-port-forwarding"] = "" }, "extension"},
		{"extension with a value", func(c *ssh.Certificate) { c.Extensions["permit-pty"] = "x" }, "extension"},
		{"reserved", func(c *ssh.Certificate) { c.Reserved = []byte("x") }, "reserved"},
	}
	a := newAuthority(t, claviger.Ed25519)
	var e policy.Engine
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cert := sshLeaf(t)
			test.spoil(cert)
			checkTemplate(t, a.decide(&e, sshTemplate(), &policy.Structured{SSHTBS: sshTBS(t, a, cert)}), test.want)
		})
	}
	t.Run("another signature key", func(t *testing.T) {
		t.Parallel()
		tbs := sshTBS(t, newAuthority(t, claviger.Ed25519), sshLeaf(t))
		checkTemplate(t, a.decide(&e, sshTemplate(), &policy.Structured{SSHTBS: tbs}), "signature key")
	})
	t.Run("cut, padded and plain keys", func(t *testing.T) {
		t.Parallel()
		tbs := sshTBS(t, a, sshLeaf(t))
		plain, err := ssh.NewPublicKey(a.public.Std())
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{tbs[:len(tbs)-1], append(bytes.Clone(tbs), 0), append(bytes.Clone(tbs), 0, 0, 0, 0), plain.Marshal(), make([]byte, 33<<10)} {
			checkTemplate(t, a.decide(&e, sshTemplate(), &policy.Structured{SSHTBS: b}), " ")
		}
	})
}
