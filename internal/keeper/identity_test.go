package keeper_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
)

func newSigner(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "somebody-else"}, DNSNames: []string{"evil.example"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (w *world) code(name string) string {
	w.Helper()
	code, err := w.IssueCode(w.Context(), w.op, name, 0)
	if err != nil {
		w.Fatal(err)
	}
	return code.Code
}

func (w *world) workload(name string) claviger.PrincipalRecord {
	w.Helper()
	p, err := w.CreatePrincipal(w.Context(), w.op, keeper.CreatePrincipal{Name: name, Kind: claviger.Workload, Environments: []string{"prod"}})
	if err != nil {
		w.Fatal(err)
	}
	return p
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (w *world) authenticate(cert *x509.Certificate) (claviger.Principal, error) {
	return w.ByCertificate(w.Context(), cert, claviger.Facts{UID: -1})
}

func TestEnrolment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	p := w.workload("billing-web")
	code := w.code("billing-web")
	parsed, err := claviger.ParseEnrolmentCode(code)
	if err != nil {
		t.Fatal(err)
	}
	root := w.Roots()[0]
	info, err := w.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if parsed.CA != sha256.Sum256(root.RawSubjectPublicKeyInfo) || hex.EncodeToString(parsed.Identity[:]) != info.IdentityFingerprint {
		t.Error("the code's pins are not those of the CA and of the key process")
	}
	key := newSigner(t)
	out, err := w.Enroll(ctx, code, request(t, key), claviger.Facts{UID: -1})
	if err != nil {
		t.Fatal(err)
	}
	cert := parse(t, out.Chain[0])
	roots := x509.NewCertPool()
	roots.AddCert(parse(t, out.Roots[0]))
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("the certificate does not verify: %v", err)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://claviger.internal/workload/billing-web" || len(cert.DNSNames) != 0 || cert.Subject.CommonName != "billing-web" {
		t.Errorf("the certificate names %v, %v, %q", cert.URIs, cert.DNSNames, cert.Subject.CommonName)
	}
	if life := cert.NotAfter.Sub(cert.NotBefore); life != 24*time.Hour+time.Minute {
		t.Errorf("it lives for %v", life)
	}
	by, err := w.authenticate(cert)
	if err != nil || by.ID != p.ID || by.Facts.Method != "mtls" || by.Facts.CertSerial != out.Serial {
		t.Errorf("authenticated as %+v, %v", by, err)
	}
	_, err = w.Enroll(ctx, code, request(t, key), claviger.Facts{UID: -1})
	wantCode(t, "the same code again", err, claviger.Unauthenticated)

	// Renewal leaves the old certificate alone; enrolling again does not.
	other := newSigner(t)
	renewed, err := w.Renew(ctx, by, request(t, other))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*x509.Certificate{cert, parse(t, renewed.Chain[0])} {
		if _, err := w.authenticate(c); err != nil {
			t.Errorf("after a renewal: %v", err)
		}
	}
	again, err := w.Enroll(ctx, w.code("billing-web"), request(t, newSigner(t)), claviger.Facts{UID: -1})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*x509.Certificate{cert, parse(t, renewed.Chain[0])} {
		_, err := w.authenticate(c)
		wantCode(t, "an old certificate after enrolling again", err, claviger.Unauthenticated)
	}
	_, err = w.Renew(ctx, by, request(t, other))
	wantCode(t, "renewal with a certificate that was revoked meanwhile", err, claviger.Denied)
	endsAtOnce(t, w, again)
	list, err := w.Certificates(ctx, w.op, "billing-web")
	if err != nil || len(list) != 3 {
		t.Errorf("%d certificates, %v, want 3", len(list), err)
	}
}

// endsAtOnce insists that a certificate which is revoked ends at once, also on
// a connection that stands.
func endsAtOnce(t *testing.T, w *world, again keeper.Certificate) {
	t.Helper()
	ctx := t.Context()
	last, err := w.authenticate(parse(t, again.Chain[0]))
	if err != nil {
		t.Fatal(err)
	}
	w.grant(last, "prod/app/key", claviger.Conditions{}, claviger.Sign)
	w.key("prod/app/key", claviger.Ed25519)
	wantCode(t, "sign", sign(w, last, "prod/app/key"), "")
	if err := w.RevokeCertificate(ctx, w.op, again.Serial, "lost"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "sign after the certificate was revoked", sign(w, last, "prod/app/key"), claviger.Denied)
	_, err = w.authenticate(parse(t, again.Chain[0]))
	wantCode(t, "authenticate with a revoked certificate", err, claviger.Unauthenticated)
}

func TestEnrolmentRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.workload("app")
	good := request(t, newSigner(t))
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1
	unknown := claviger.NewEnrolmentCode([32]byte{}, [32]byte{}).String()
	for name, tc := range map[string]struct {
		code string
		csr  []byte
		want claviger.Code
	}{
		"unknown code":   {unknown, good, claviger.Unauthenticated},
		"malformed code": {"clv1_x", good, claviger.Invalid},
		"no code":        {"", good, claviger.Invalid},
		"no request":     {w.code("app"), nil, claviger.Invalid},
		"forged request": {w.code("app"), forged, claviger.Invalid},
		"trailing bytes": {w.code("app"), append(append([]byte(nil), good...), 0), claviger.Invalid},
		"large request":  {w.code("app"), make([]byte, 17<<10), claviger.TooLarge},
		"weak RSA":       {w.code("app"), request(t, weak), claviger.Invalid},
		"P-521":          {w.code("app"), request(t, p521), claviger.Invalid},
	} {
		w.later(time.Second)
		var err error
		records := w.since(func() { _, err = w.Enroll(t.Context(), tc.code, tc.csr, claviger.Facts{UID: -1}) })
		wantCode(t, name, err, tc.want)
		if len(records) != 1 || records[0].Outcome != audit.Denied {
			t.Errorf("%s: records %+v, want one denial", name, records)
		}
	}
	code := w.code("app")
	w.later(16 * time.Minute)
	_, err = w.Enroll(t.Context(), code, good, claviger.Facts{UID: -1})
	wantCode(t, "expired code", err, claviger.Unauthenticated)
	if _, err := w.Enroll(t.Context(), w.code("app"), request(t, ed), claviger.Facts{UID: -1}); err != nil {
		t.Errorf("Ed25519: %v", err)
	}
	_, err = w.IssueCode(t.Context(), w.op, "app", 25*time.Hour)
	wantCode(t, "long code", err, claviger.Invalid)
}

// Strangers cannot fill the log, and what they tried is counted.
func TestStrangersAreRecordedAtABoundedRate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.later(time.Second)
	bad := claviger.NewEnrolmentCode([32]byte{}, [32]byte{}).String()
	csr := request(t, newSigner(t))
	frozen := time.Now().Add(time.Hour)
	cfg := w.config()
	cfg.Now = func() time.Time { return frozen }
	k, err := keeper.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	try := func() {
		_, err := k.Enroll(t.Context(), bad, csr, claviger.Facts{UID: -1})
		wantCode(t, "enrol", err, claviger.Unauthenticated)
	}
	records := w.since(func() {
		for range 100 {
			try()
		}
	})
	if len(records) != 10 {
		t.Errorf("%d records of 100 attempts in one second, want 10", len(records))
	}
	frozen = frozen.Add(2 * time.Second)
	records = w.since(try)
	if len(records) != 1 || records[0].Detail["suppressed"] != "90" {
		t.Errorf("records %+v, want one that counts the 90 before", records)
	}
}

// selfSigned returns a certificate that some other authority could have made.
func selfSigned(t *testing.T, id string, key crypto.Signer) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: parse(t, mustCert(t, key)).SerialNumber, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if id != "" {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)
}

func mustCert(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestExternalCertificates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.workload("app")
	key := newSigner(t)
	if _, err := w.Enroll(t.Context(), w.code("app"), request(t, key), claviger.Facts{UID: -1}); err != nil {
		t.Fatal(err)
	}
	const known = "spiffe://partner.example/ns/default/sa/web"
	w.workload(known)
	for name, tc := range map[string]struct {
		id   string
		want claviger.Code
	}{
		"registered":         {known, ""},
		"not registered":     {known + "2", claviger.Unauthenticated},
		"our trust domain":   {"spiffe://claviger.internal/workload/app", claviger.Unauthenticated},
		"our operator":       {"spiffe://claviger.internal/operator/uid:1000", claviger.Unauthenticated},
		"none":               {"", claviger.Unauthenticated},
		"not SPIFFE":         {"https://claviger.internal/workload/app", claviger.Unauthenticated},
		"dots":               {"spiffe://partner.example/../x", claviger.Unauthenticated},
		"a principal's name": {"spiffe:app", claviger.Unauthenticated},
	} {
		w.later(time.Second)
		_, err := w.authenticate(selfSigned(t, tc.id, key))
		wantCode(t, name, err, tc.want)
	}
	_, err := w.CreatePrincipal(t.Context(), w.op, keeper.CreatePrincipal{Name: "spiffe://claviger.internal/workload/x", Kind: claviger.Workload})
	wantCode(t, "register an id of our own domain", err, claviger.Invalid)
}

func TestLocalUsers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := openWorld(t, dir)
	if w.op.Kind != claviger.Operator || w.op.Name != "uid:1000" || w.op.Facts.Method != "peer" {
		t.Errorf("the first operator is %+v", w.op)
	}
	for name, uid := range map[string]int{"unknown": 1001, "root": 0, "not observed": -1} {
		_, err := w.ByUID(t.Context(), claviger.Facts{UID: uid})
		wantCode(t, name, err, claviger.Unauthenticated)
	}
	if by := w.caller(1001); by.Kind != claviger.Workload {
		t.Errorf("a registered user is %+v", by)
	}
	again, err := w.ByUID(t.Context(), claviger.Facts{UID: operatorUID})
	if err != nil || again.ID != w.op.ID {
		t.Errorf("the operator a second time: %+v, %v", again, err)
	}
	cfg := w.config()
	cfg.Operators = nil
	k, err := keeper.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.ByUID(t.Context(), claviger.Facts{UID: operatorUID})
	wantCode(t, "taken off the list", err, claviger.Unauthenticated)
}

func TestOnlyOperatorsLookAfterOperators(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p, err := w.CreatePrincipal(t.Context(), w.op, keeper.CreatePrincipal{Name: "uid:7", Kind: claviger.ServiceAccount, Environments: []string{"*"}})
	if err != nil {
		t.Fatal(err)
	}
	by, err := w.ByUID(t.Context(), claviger.Facts{UID: 7})
	if err != nil || by.ID != p.ID {
		t.Fatal(err)
	}
	w.grant(by, "*/*/*", claviger.Conditions{}, claviger.ManagePrincipals)
	if _, err := w.CreatePrincipal(t.Context(), by, keeper.CreatePrincipal{Name: "web", Kind: claviger.Workload}); err != nil {
		t.Errorf("manage principals with a grant: %v", err)
	}
	_, err = w.CreatePrincipal(t.Context(), by, keeper.CreatePrincipal{Name: "boss", Kind: claviger.Operator, Environments: []string{"*"}})
	wantCode(t, "make an operator", err, claviger.Denied)
	_, err = w.RevokePrincipal(t.Context(), by, "uid:1000", "")
	wantCode(t, "revoke an operator", err, claviger.Denied)
	for _, name := range []string{"", "Upper", "a b", "uid:007", "uid:-1", "../x", strings.Repeat("a", 64), "spiffe://x", "nul\x00", string(claviger.NewID(time.Now()))} {
		_, err := w.CreatePrincipal(t.Context(), w.op, keeper.CreatePrincipal{Name: name, Kind: claviger.Workload})
		wantCode(t, fmt.Sprintf("name %q", name), err, claviger.Invalid)
	}
}

// The server's own certificate serves TLS with a key that is in custody.
func TestServerCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: w.ServerCertificate})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			err = conn.(*tls.Conn).HandshakeContext(t.Context())
			conn.Close()
		}
		served <- err
	}()
	roots := x509.NewCertPool()
	roots.AddCert(w.Roots()[0])
	conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if chain := conn.ConnectionState().PeerCertificates; len(chain) != 2 || !chain[1].Equal(w.Roots()[0]) {
		t.Errorf("a chain of %d, want the leaf and the CA that a code pins", len(chain))
	}
	before, err := w.ServerCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	w.later(20 * time.Hour)
	runUntil(w, func() bool {
		now, err := w.ServerCertificate(nil)
		return err == nil && now.Leaf.SerialNumber.Cmp(before.Leaf.SerialNumber) != 0
	})
}
