package client_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

// authority is a CA with a TLS server of its own, which shows the whole chain.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	root *x509.Certificate
	url  string
	life time.Duration // of a certificate
}

func newAuthority(t *testing.T, f *fake) *authority {
	t.Helper()
	a := &authority{t: t, life: time.Hour}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := a.issue(key.Public(), x509.ExtKeyUsageServerAuth, time.Now())
	s := httptest.NewUnstartedServer(f.handler())
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0) // handshakes are refused on purpose
	pool := x509.NewCertPool()
	pool.AddCert(a.root)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf, a.root.Raw}, PrivateKey: key}}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	s.StartTLS()
	t.Cleanup(s.Close)
	a.url = s.URL
	return a
}

// issue makes a certificate.
func (a *authority) issue(public crypto.PublicKey, usage x509.ExtKeyUsage, from time.Time) []byte {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(from.UnixNano()), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		NotBefore: from.Add(-time.Second), NotAfter: from.Add(a.life),
	}, a.root, public, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

func (a *authority) certify(csr []byte, from time.Time) (*clavigerv1.Certificate, error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil || request.CheckSignature() != nil {
		return nil, refuse(claviger.Invalid)
	}
	return &clavigerv1.Certificate{
		Chain: [][]byte{a.issue(request.PublicKey, x509.ExtKeyUsageClientAuth, from)}, Roots: [][]byte{a.root.Raw}, Principal: "billing-web",
	}, nil
}

func (a *authority) code() claviger.EnrolmentCode {
	return claviger.NewEnrolmentCode(sha256.Sum256(a.root.RawSubjectPublicKeyInfo), [32]byte{7})
}

func TestEnroll(t *testing.T) {
	t.Parallel()
	f := &fake{}
	a := newAuthority(t, f)
	f.enroll = func(r *clavigerv1.EnrollRequest) (*clavigerv1.Certificate, error) {
		return a.certify(r.Csr, time.Now())
	}
	f.getKey = func() (*clavigerv1.Key, error) { return &clavigerv1.Key{Id: "x"}, nil }
	dir := filepath.Join(t.TempDir(), "deep", "profile")
	p, err := client.Enroll(t.Context(), a.url, a.code().String(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if p.Principal != "billing-web" || p.Identity != [32]byte{7} || len(p.Roots) != 1 {
		t.Errorf("profile %+v", p)
	}
	for name, want := range map[string]os.FileMode{".": 0o700, "key.pem": 0o600, "cert.pem": 0o600, "ca.pem": 0o600, "profile.json": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	c, err := client.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.GetKey(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if certs := f.seen[len(f.seen)-1].TLS.PeerCertificates; len(certs) != 1 || !certs[0].Equal(p.Certificate.Leaf) {
		t.Error("the client does not show its certificate")
	}
	if _, err := client.Enroll(t.Context(), a.url, a.code().String(), dir); !errors.Is(err, claviger.Conflict) {
		t.Errorf("a second time: %v", err)
	}
}

// A server that is not the one of the code is sent nothing, and what it answers
// is not stored.
func TestEnrollRefusals(t *testing.T) {
	t.Parallel()
	f := &fake{}
	a := newAuthority(t, f)
	dir := filepath.Join(t.TempDir(), "profile")
	other := newAuthority(t, &fake{})
	if _, err := client.Enroll(t.Context(), a.url, other.code().String(), dir); !errors.Is(err, claviger.Unauthenticated) || f.count() != 0 {
		t.Errorf("another CA: %v after %d calls", err, f.count())
	}
	if _, err := client.Enroll(t.Context(), a.url, "clv1_x", dir); !errors.Is(err, claviger.Invalid) || f.count() != 0 {
		t.Errorf("no code: %v after %d calls", err, f.count())
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, enroll := range map[string]func(*clavigerv1.EnrollRequest) (*clavigerv1.Certificate, error){
		"no chain": func(*clavigerv1.EnrollRequest) (*clavigerv1.Certificate, error) {
			return &clavigerv1.Certificate{Roots: [][]byte{a.root.Raw}}, nil
		},
		"garbage": func(*clavigerv1.EnrollRequest) (*clavigerv1.Certificate, error) {
			return &clavigerv1.Certificate{Chain: [][]byte{{1}}, Roots: [][]byte{a.root.Raw}}, nil
		},
		"by another CA": func(r *clavigerv1.EnrollRequest) (*clavigerv1.Certificate, error) {
			return other.certify(r.Csr, time.Now())
		},
		"for another key": func(*clavigerv1.EnrollRequest) (*clavigerv1.Certificate, error) {
			return &clavigerv1.Certificate{Chain: [][]byte{a.issue(stranger.Public(), x509.ExtKeyUsageClientAuth, time.Now())}, Roots: [][]byte{a.root.Raw}}, nil
		},
		"denied": func(*clavigerv1.EnrollRequest) (*clavigerv1.Certificate, error) { return nil, refuse(claviger.Denied) },
	} {
		f.enroll = enroll
		if _, err := client.Enroll(t.Context(), a.url, a.code().String(), dir); err == nil {
			t.Errorf("%s: enrolled", name)
		}
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a profile was stored: %v", err)
	}
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	f := &fake{}
	a := newAuthority(t, f)
	renewals := 0
	f.enroll = func(r *clavigerv1.EnrollRequest) (*clavigerv1.Certificate, error) {
		return a.certify(r.Csr, time.Now())
	}
	f.getKey = func() (*clavigerv1.Key, error) { return &clavigerv1.Key{Id: "x"}, nil }
	f.renew = func(*clavigerv1.RenewRequest) (*clavigerv1.Certificate, error) {
		renewals++
		return nil, refuse(claviger.Unavailable)
	}
	dir := filepath.Join(t.TempDir(), "profile")
	first, err := client.Enroll(t.Context(), a.url, a.code().String(), dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	start := time.Now()
	now := start
	c.SetNow(func() time.Time { return now })
	get := func(want int, when string) {
		t.Helper()
		if _, err := c.GetKey(t.Context(), "x"); err != nil || renewals != want {
			t.Errorf("%s: %v after %d renewals; want %d", when, err, renewals, want)
		}
	}
	get(0, "fresh")
	now = start.Add(39 * time.Minute)
	get(0, "before two thirds")
	now = start.Add(41 * time.Minute)
	get(1, "after two thirds, and the renewal fails")
	get(1, "at once after a failure")
	if err := c.Renew(t.Context()); !errors.Is(err, claviger.Unavailable) {
		t.Errorf("Renew: %v", err)
	}
	f.renew = func(r *clavigerv1.RenewRequest) (*clavigerv1.Certificate, error) {
		renewals++
		return a.certify(r.Csr, time.Now().Add(time.Second))
	}
	a.life = 10 * time.Hour
	now = now.Add(2 * time.Minute)
	get(3, "a while after a failure")
	get(3, "renewed")
	second, err := client.LoadProfile(dir)
	if err != nil {
		t.Fatal(err)
	}
	if second.Certificate.Leaf.Equal(first.Certificate.Leaf) || !second.Certificate.Leaf.PublicKey.(*ecdsa.PublicKey).Equal(first.Certificate.Leaf.PublicKey) {
		t.Error("the renewed certificate was not stored, or is for another key")
	}
	if certs := f.seen[len(f.seen)-1].TLS.PeerCertificates; !certs[0].Equal(second.Certificate.Leaf) {
		t.Error("the client does not show the renewed certificate")
	}
}

func TestProfile(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	dir := filepath.Join(base, "p")
	if _, err := client.LoadProfile(dir); !errors.Is(err, claviger.NotFound) {
		t.Errorf("no profile: %v", err)
	}
	if err := client.SaveProfile(dir, &client.Profile{Address: "unix:///run/claviger.sock", Identity: [32]byte{1, 2}}); err != nil {
		t.Fatal(err)
	}
	p, err := client.LoadProfile(dir)
	if err != nil || p.Address != "unix:///run/claviger.sock" || p.Identity != [32]byte{1, 2} || p.Certificate.PrivateKey != nil {
		t.Errorf("profile %+v, %v", p, err)
	}
	if err := client.SaveProfile(dir, p); !errors.Is(err, claviger.Conflict) {
		t.Errorf("over another: %v", err)
	}
	if err := client.SaveProfile("/proc/nowhere/p", p); !errors.Is(err, claviger.Unavailable) {
		t.Errorf("where none can be: %v", err)
	}
	for name, content := range map[string]string{"no JSON": "{", "unknown field": `{"adress":"x"}`, "short pin": `{"identity":"00"}`} {
		if err := os.WriteFile(filepath.Join(dir, "profile.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := client.LoadProfile(dir); !errors.Is(err, claviger.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"../x", "a/b", "..", ".hidden", "/etc"} {
		if got, err := client.ProfileDir(name); !errors.Is(err, claviger.Invalid) {
			t.Errorf("ProfileDir(%q): %q, %v", name, got, err)
		}
	}
}

// A key that others could read is not used.
func TestProfileExposed(t *testing.T) {
	t.Parallel()
	f := &fake{}
	a := newAuthority(t, f)
	f.enroll = func(r *clavigerv1.EnrollRequest) (*clavigerv1.Certificate, error) {
		return a.certify(r.Csr, time.Now())
	}
	dir := filepath.Join(t.TempDir(), "profile")
	if _, err := client.Enroll(t.Context(), a.url, a.code().String(), dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "key.pem"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Open(dir); !errors.Is(err, claviger.Denied) {
		t.Errorf("Open: %v", err)
	}
}
