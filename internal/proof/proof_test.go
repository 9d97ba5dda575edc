package proof_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/proof"
)

// directory answers with what it was asked.
type directory struct{ asked []claviger.Facts }

func (d *directory) ByUID(_ context.Context, f claviger.Facts) (claviger.Principal, error) {
	d.asked = append(d.asked, f)
	return claviger.Principal{Name: "local", Facts: f}, nil
}

func (d *directory) ByCertificate(_ context.Context, leaf *x509.Certificate, f claviger.Facts) (claviger.Principal, error) {
	d.asked = append(d.asked, f)
	return claviger.Principal{Name: leaf.URIs[0].String(), Facts: f}, nil
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var clock = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func newAuthority(t *testing.T) authority {
	t.Helper()
	a := authority{}
	a.cert, a.key = authority{}.issue(t, nil, true)
	return a
}

// issue signs a certificate with the names; by itself when a is empty.
func (a authority) issue(t *testing.T, names []string, ca bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, NotBefore: clock.Add(-time.Hour), NotAfter: clock.Add(time.Hour), IsCA: ca, BasicConstraintsValid: true}
	for _, n := range names {
		u, err := url.Parse(n)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func TestCertificate(t *testing.T) {
	t.Parallel()
	own, partner, stranger := newAuthority(t), newAuthority(t), newAuthority(t)
	for name, tc := range map[string]struct {
		by    authority
		names []string
		ca    bool
		after time.Duration // of the call, past the clock
		want  string        // name, or "" for unauthenticated
	}{
		"own":                          {by: own, names: []string{"spiffe://claviger.internal/workload/web"}, want: "spiffe://claviger.internal/workload/web"},
		"partner in its domain":        {by: partner, names: []string{"spiffe://partner.example/ns/a"}, want: "spiffe://partner.example/ns/a"},
		"partner in our domain":        {by: partner, names: []string{"spiffe://claviger.internal/workload/web"}},
		"own in a partner's domain":    {by: own, names: []string{"spiffe://partner.example/ns/a"}},
		"stranger in our domain":       {by: stranger, names: []string{"spiffe://claviger.internal/workload/web"}},
		"stranger in its own domain":   {by: stranger, names: []string{"spiffe://stranger.example/x"}},
		"expired since the handshake":  {by: own, names: []string{"spiffe://claviger.internal/workload/web"}, after: time.Hour + time.Second},
		"not valid any more, by clock": {by: own, names: []string{"spiffe://claviger.internal/workload/web"}, after: -time.Hour - time.Second},
		"no name":                      {by: own},
		"two names":                    {by: own, names: []string{"spiffe://claviger.internal/a", "spiffe://claviger.internal/b"}},
		"another scheme":               {by: own, names: []string{"https://claviger.internal/a"}},
		"a CA":                         {by: own, names: []string{"spiffe://claviger.internal/a"}, ca: true},
		"no path":                      {by: own, names: []string{"spiffe://claviger.internal"}},
		"empty segment":                {by: own, names: []string{"spiffe://claviger.internal/a//b"}},
		"dots":                         {by: own, names: []string{"spiffe://claviger.internal/a/../b"}},
		"escaped":                      {by: own, names: []string{"spiffe://claviger.internal/a%2fb"}},
		"query":                        {by: own, names: []string{"spiffe://claviger.internal/a?b"}},
		"user":                         {by: own, names: []string{"spiffe://root@claviger.internal/a"}},
		"port":                         {by: own, names: []string{"spiffe://claviger.internal:1/a"}},
		"upper-case domain":            {by: own, names: []string{"spiffe://Claviger.internal/a"}},
		"long":                         {by: own, names: []string{"spiffe://claviger.internal/" + strings.Repeat("a", 2048)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			leaf, _ := tc.by.issue(t, tc.names, tc.ca)
			d := &directory{}
			p := proof.Prover{
				Directory: d, TrustDomain: "claviger.internal",
				Roots:    func() []*x509.Certificate { return []*x509.Certificate{own.cert} },
				External: map[string][]*x509.Certificate{"partner.example": {partner.cert}},
				Now:      func() time.Time { return clock.Add(tc.after) },
			}
			state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf, tc.by.cert}}}
			source := netip.MustParseAddr("192.0.2.7")
			got, err := p.Certificate(t.Context(), state, source, "request")
			if tc.want == "" {
				if !errors.Is(err, claviger.Unauthenticated) || len(d.asked) != 0 {
					t.Fatalf("got %v, asked the directory %d times; want unauthenticated and none", err, len(d.asked))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			facts := claviger.Facts{Method: "mtls", Source: source, UID: -1, GID: -1, CertSerial: leaf.SerialNumber.Text(16), RequestID: "request"}
			if diff := cmp.Diff(claviger.Principal{Name: tc.want, Facts: facts}, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("principal (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCertificateAbsent(t *testing.T) {
	t.Parallel()
	leaf, _ := newAuthority(t).issue(t, []string{"spiffe://claviger.internal/a"}, false)
	p := proof.Prover{Directory: &directory{}, TrustDomain: "claviger.internal", Roots: func() []*x509.Certificate { return nil }}
	for name, state := range map[string]*tls.ConnectionState{
		"no TLS":             nil,
		"no certificate":     {},
		"nothing verified":   {PeerCertificates: []*x509.Certificate{leaf}},
		"verified, not sent": {VerifiedChains: [][]*x509.Certificate{{leaf}}},
	} {
		if _, err := p.Certificate(t.Context(), state, netip.Addr{}, ""); !errors.Is(err, claviger.Unauthenticated) {
			t.Errorf("%s: got %v, want unauthenticated", name, err)
		}
	}
}
