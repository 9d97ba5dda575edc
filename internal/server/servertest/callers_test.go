package servertest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/server"
	"claviger.dev/internal/server/servertest"
)

func sign(ctx context.Context, c *servertest.Client, key string) error {
	_, err := c.Sign(ctx, connect.NewRequest(&clavigerv1.SignRequest{Key: key, Inputs: [][]byte{[]byte("message")}}))
	return err
}

func whoAmI(ctx context.Context, c *servertest.Client) (*clavigerv1.WhoAmIResponse, error) {
	r, err := c.WhoAmI(ctx, connect.NewRequest(&clavigerv1.WhoAmIRequest{}))
	if err != nil {
		return nil, err
	}
	return r.Msg, nil
}

// reusing is a context whose calls report whether their connection was used
// before.
func reusing(ctx context.Context, reused *bool) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { *reused = i.Reused }})
}

// TestLifeOfACertificate enrols, uses, renews and revokes.
func TestLifeOfACertificate(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	operator := s.Local(t)
	s.Key(t, "prod/web/tls", claviger.ECDSAP256)
	if _, err := operator.CreatePrincipal(t.Context(), connect.NewRequest(&clavigerv1.CreatePrincipalRequest{Name: "web", Kind: "workload", Environments: []string{"prod"}, Owner: "web"})); err != nil {
		t.Fatal(err)
	}
	s.Allow(t, "web", "prod/web/*", nil, claviger.Sign)
	code, err := operator.IssueCode(t.Context(), connect.NewRequest(&clavigerv1.IssueCodeRequest{Principal: "web"}))
	if err != nil {
		t.Fatal(err)
	}
	key, csr := servertest.Request(t)
	enrol := connect.NewRequest(&clavigerv1.EnrollRequest{Code: code.Msg.Code, Csr: csr})
	first, err := s.Remote(t, nil).Enroll(t.Context(), enrol)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Remote(t, nil).Enroll(t.Context(), connect.NewRequest(&clavigerv1.EnrollRequest{Code: code.Msg.Code, Csr: csr}))
	wantCode(t, err, claviger.Unauthenticated) // the code was used

	remote := s.Remote(t, servertest.Certificate(first.Msg, key))
	if err := sign(t.Context(), remote, "prod/web/tls"); err != nil {
		t.Fatal(err)
	}
	newKey, csr := servertest.Request(t)
	second, err := remote.Renew(t.Context(), connect.NewRequest(&clavigerv1.RenewRequest{Csr: csr}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = operator.Renew(t.Context(), connect.NewRequest(&clavigerv1.RenewRequest{Csr: csr}))
	wantCode(t, err, claviger.Unauthenticated) // the local socket has no certificate to renew
	renewed := s.Remote(t, servertest.Certificate(second.Msg, newKey))
	me, err := whoAmI(t.Context(), renewed)
	if err != nil {
		t.Fatal(err)
	}
	if me.Principal.Name != "web" || me.CertSerial != second.Msg.Serial || me.Method != "mtls" || me.Source != "127.0.0.1" || me.Uid != -1 ||
		!me.CertNotAfter.AsTime().Equal(second.Msg.NotAfter.AsTime().Truncate(time.Second)) {
		t.Errorf("who am I: %v; the certificate is %v", me, second.Msg.Serial)
	}
	reused := false
	if _, err := operator.RevokeCertificate(t.Context(), connect.NewRequest(&clavigerv1.RevokeCertificateRequest{Serial: second.Msg.Serial, Reason: "lost"})); err != nil {
		t.Fatal(err)
	}
	wantCode(t, sign(reusing(t.Context(), &reused), renewed, "prod/web/tls"), claviger.Unauthenticated)
	if !reused {
		t.Error("the refusal came on another connection, which says nothing of the one that was open")
	}
	if err := sign(reusing(t.Context(), &reused), remote, "prod/web/tls"); err != nil || !reused {
		t.Errorf("the older certificate, not revoked, on its open connection (%v): %v", reused, err)
	}
	if _, err := operator.RevokePrincipal(t.Context(), connect.NewRequest(&clavigerv1.RevokePrincipalRequest{Principal: "web", Reason: "gone"})); err != nil {
		t.Fatal(err)
	}
	wantCode(t, sign(reusing(t.Context(), &reused), remote, "prod/web/tls"), claviger.Unauthenticated)
	if !reused {
		t.Error("the refusal came on another connection, which says nothing of the one that was open")
	}
}

func TestCertificatesExpire(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	s := servertest.Start(t, servertest.Options{Now: now, Change: func(c *server.Config) { c.Certificates.Lifetime = claviger.Duration(time.Hour) }})
	cert, _ := s.Enrol(t, "web")
	remote := s.Remote(t, cert)
	if _, err := whoAmI(t.Context(), remote); err != nil {
		t.Fatal(err)
	}
	ahead.Store(int64(time.Hour + time.Second))
	reused := false
	_, err := whoAmI(reusing(t.Context(), &reused), remote)
	wantCode(t, err, claviger.Unauthenticated)
	if !reused {
		t.Error("the refusal came on another connection, which says nothing of the one that was open")
	}
	remote.HTTP.CloseIdleConnections()
	if _, err := whoAmI(t.Context(), remote); err == nil {
		t.Error("a handshake with an expired certificate succeeds")
	}
}

// authority is a CA of somebody else.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert: cert, key: key}
}

// issue makes a client certificate with a SPIFFE id and a serial number.
func (a authority) issue(t *testing.T, id string, serial *big.Int) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, URIs: []*url.URL{u}, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestExternalAuthorities(t *testing.T) {
	t.Parallel()
	partner, stranger := newAuthority(t), newAuthority(t)
	bundle := filepath.Join(t.TempDir(), "partner.pem")
	if err := os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: partner.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := servertest.Start(t, servertest.Options{Change: func(c *server.Config) {
		c.ExternalCA = []server.ExternalCA{{TrustDomain: "partner.example", Bundle: bundle}}
	}})
	const id = "spiffe://partner.example/ns/prod/sa/web"
	own, _ := s.Enrol(t, "web")
	leaf, err := x509.ParseCertificate(own.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Local(t).CreatePrincipal(t.Context(), connect.NewRequest(&clavigerv1.CreatePrincipalRequest{Name: id, Kind: "workload", Environments: []string{"prod"}, Owner: "partner"})); err != nil {
		t.Fatal(err)
	}
	me, err := whoAmI(t.Context(), s.Remote(t, partner.issue(t, id, big.NewInt(7))))
	if err != nil || me.Principal.Name != id {
		t.Errorf("the partner's workload is %v, %v", me, err)
	}
	for name, cert := range map[string]*tls.Certificate{
		"partner with an id that is not registered": partner.issue(t, "spiffe://partner.example/other", big.NewInt(8)),
		"partner in our trust domain":               partner.issue(t, leaf.URIs[0].String(), leaf.SerialNumber),
		"partner in a third trust domain":           partner.issue(t, "spiffe://third.example/ns/prod/sa/web", big.NewInt(9)),
	} {
		_, err := whoAmI(t.Context(), s.Remote(t, cert))
		if codeOf(err) != claviger.Unauthenticated {
			t.Errorf("%s: got %v, want unauthenticated", name, err)
		}
	}
	if _, err := whoAmI(t.Context(), s.Remote(t, stranger.issue(t, id, big.NewInt(7)))); err == nil || codeOf(err) != "" {
		t.Errorf("an unknown CA gets past the handshake: %v", err)
	}
	serving(t, s)
}

func TestTLSVersions(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	if c, err := tls.Dial("tcp", s.Address, &tls.Config{RootCAs: s.Roots, MaxVersion: tls.VersionTLS12}); err == nil {
		c.Close()
		t.Error("the server speaks TLS 1.2")
	}
	cache := &tickets{}
	for range 2 {
		c, err := tls.Dial("tcp", s.Address, &tls.Config{RootCAs: s.Roots, ClientSessionCache: cache})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1024)); err != nil { // a ticket would come before it
			t.Fatal(err)
		}
		if c.ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		c.Close()
	}
	if cache.put.Load() {
		t.Error("the server hands out session tickets")
	}
}

type tickets struct{ put atomic.Bool }

func (*tickets) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (c *tickets) Put(_ string, s *tls.ClientSessionState)  { c.put.Store(c.put.Load() || s != nil) }

// TestExecutableIsRequired runs the same program under two paths; the grant
// names one of them.
func TestExecutableIsRequired(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	if _, err := whoAmI(t.Context(), s.Local(t)); err != nil { // the operator is known from here on
		t.Fatal(err)
	}
	s.Key(t, "dev/app/token", claviger.Ed25519)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	named, other := filepath.Join(dir, "named"), filepath.Join(dir, "other")
	for _, path := range []string{named, other} {
		if err := os.WriteFile(path, self, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	run := func(program string) claviger.Code {
		out, err := exec.Command(program, "sign", s.Socket, "dev/app/token").CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v %s", program, err, out)
		}
		return claviger.Code(out)
	}
	me, err := whoAmI(t.Context(), s.Local(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := run(named); got != claviger.Denied {
		t.Errorf("without a grant: %q, want denied", got)
	}
	s.Allow(t, me.Principal.Name, "dev/app/*", &clavigerv1.Conditions{Executables: []string{named}}, claviger.Sign)
	if got := run(named); got != "" {
		t.Errorf("the program that the grant names: %q, want success", got)
	}
	if got := run(other); got != claviger.Denied {
		t.Errorf("another program: %q, want denied", got)
	}
	wantCode(t, sign(t.Context(), s.Local(t), "dev/app/token"), claviger.Denied) // this one
}

// TestCurl calls as the documentation shows.
func TestCurl(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	curl := func(path, body string) string {
		out, err := exec.Command("curl", "--silent", "--show-error", "--unix-socket", s.Socket, "--header", "Content-Type: application/json",
			"--data", body, "http://claviger"+path).CombinedOutput()
		if err != nil {
			t.Fatalf("curl: %v\n%s", err, out)
		}
		return string(out)
	}
	if out := curl(keyPath, `{"name":"dev/app/token","algorithm":"ed25519","owner":"app"}`); !strings.Contains(out, `"name":"dev/app/token"`) || strings.Contains(out, "private") {
		t.Errorf("create: %s", out)
	}
	if out := curl(signPath, `{"key":"dev/app/token","inputs":["aGVsbG8="]}`); !strings.Contains(out, `"permission_denied"`) {
		t.Errorf("sign without a grant: %s", out)
	}
	me, err := whoAmI(t.Context(), s.Local(t))
	if err != nil {
		t.Fatal(err)
	}
	if out := curl("/claviger.v1.GrantService/CreateGrant", `{"principal":"`+me.Principal.Name+`","selector":"dev/app/*","operations":["sign"],"reason":"try"}`); !strings.Contains(out, `"selector":"dev/app/*"`) {
		t.Errorf("grant: %s", out)
	}
	if out := curl(signPath, `{"key":"dev/app/token","inputs":["aGVsbG8="]}`); !strings.Contains(out, `"signatures":["`) {
		t.Errorf("sign: %s", out)
	}
}

// TestProtocols makes the same call in every protocol that is offered.
func TestProtocols(t *testing.T) {
	t.Parallel()
	s := servertest.Start(t, servertest.Options{})
	cert, _ := s.Enrol(t, "web")
	s.Key(t, "prod/web/tls", claviger.Ed25519)
	s.Key(t, "prod/shut/tls", claviger.Ed25519)
	s.Allow(t, "web", "prod/web/*", nil, claviger.Sign)
	for name, tc := range map[string]struct {
		http2   bool
		options []connect.ClientOption
	}{
		"Connect, HTTP/1.1":       {},
		"Connect JSON, HTTP/1.1":  {options: []connect.ClientOption{connect.WithProtoJSON()}},
		"Connect, HTTP/2":         {http2: true},
		"gRPC, HTTP/2":            {http2: true, options: []connect.ClientOption{connect.WithGRPC()}},
		"gRPC JSON, HTTP/2":       {http2: true, options: []connect.ClientOption{connect.WithGRPC(), connect.WithProtoJSON()}},
		"gRPC-Web, HTTP/1.1":      {options: []connect.ClientOption{connect.WithGRPCWeb()}},
		"gRPC-Web JSON, HTTP/1.1": {options: []connect.ClientOption{connect.WithGRPCWeb(), connect.WithProtoJSON()}},
	} {
		t.Run(name, func(t *testing.T) {
			c := s.Remote(t, cert, tc.options...)
			c.HTTP.Transport.(*http.Transport).ForceAttemptHTTP2 = tc.http2
			if err := sign(t.Context(), c, "prod/web/tls"); err != nil {
				t.Fatal(err)
			}
			wantCode(t, sign(t.Context(), c, "prod/web/none"), claviger.NotFound)
			wantCode(t, sign(t.Context(), c, "prod/shut/tls"), claviger.Denied)
			_, err := c.Sign(t.Context(), connect.NewRequest(&clavigerv1.SignRequest{Key: "prod/web/tls", Inputs: [][]byte{make([]byte, 7<<20)}}))
			wantCode(t, err, claviger.TooLarge)
			unknown := &clavigerv1.SignRequest{Key: "prod/web/tls", Inputs: [][]byte{[]byte("x")}}
			unknown.ProtoReflect().SetUnknown([]byte{0x98, 0x06, 0x01}) // field 99
			if !strings.Contains(name, "JSON") {                        // JSON drops it at the caller
				_, err = c.Sign(t.Context(), connect.NewRequest(unknown))
				wantCode(t, err, claviger.Invalid)
			}
			stream, err := c.Query(t.Context(), connect.NewRequest(&clavigerv1.QueryRequest{}))
			if err != nil {
				t.Fatal(err)
			}
			for stream.Receive() {
				t.Error("the record is read without a grant")
			}
			wantCode(t, stream.Err(), claviger.Denied)
		})
	}
}
