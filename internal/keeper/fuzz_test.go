package keeper

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
)

// Whatever is accepted at enrolment is signed by its own key, of a type that
// is offered.
func FuzzCertificateRequest(f *testing.F) {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	for _, key := range []any{ed, ec} {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"a.example"}}, key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
		f.Add(der[:len(der)-1])
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		request, err := parseRequest(der)
		if err == nil && (request.CheckSignature() != nil || !goodKey(request.PublicKey) || len(der) > maxRequest) {
			t.Errorf("accepted a request that is not sound: %x", der)
		}
	})
}

// Whatever passes for a SPIFFE id is a URL that reads as it is written, and
// names one principal only.
func FuzzSPIFFE(f *testing.F) {
	for _, s := range []string{"spiffe://claviger.internal/workload/app", "spiffe://a/b", "spiffe://a//b", "spiffe://a/..", "spiffe://a:1/b", "spiffe://u@a/b", "spiffe://a/b?c", "spiffe://a/%62"} {
		f.Add(s)
	}
	k := &Keeper{cfg: Config{TrustDomain: "claviger.internal"}}
	f.Fuzz(func(t *testing.T, s string) {
		if !validSPIFFE(s) {
			return
		}
		u, err := url.Parse(s)
		if err != nil || u.String() != s || u.Scheme != "spiffe" || u.Host == "" || u.RawQuery != "" || u.User != nil || u.Port() != "" {
			t.Fatalf("%q passes for a SPIFFE id and reads as %v, %v", s, u, err)
		}
		name, kind, ours := k.ownName(s)
		if ours && isPlainName(name) && k.spiffeID(kind, name).String() != s || !ours && name != s || ours != (u.Host == "claviger.internal") {
			t.Errorf("%q names %q of kind %q, ours: %v", s, name, kind, ours)
		}
		if strings.Contains(s, "..") && isPlainName(name) {
			t.Errorf("%q has a plain name", s)
		}
	})
}
