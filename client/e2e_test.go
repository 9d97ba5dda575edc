package client_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/types/known/durationpb"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/server/servertest"
	"claviger.dev/pubkey"
)

func TestMain(m *testing.M) { os.Exit(servertest.Main(m)) }

// enrolled starts a real server and returns an operator on its socket and a
// workload that enrolled over TLS.
func enrolled(t *testing.T) (s *servertest.Server, operator, workload *client.Client, principal *clavigerv1.Principal) {
	t.Helper()
	s = servertest.Start(t, servertest.Options{})
	operator, err := client.New(client.Config{Address: "unix://" + s.Socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(operator.Close)
	principal, err = operator.CreatePrincipal(t.Context(), &clavigerv1.CreatePrincipalRequest{
		Name: "web", Kind: string(claviger.Workload), Environments: []string{"prod"}, Owner: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	code, err := operator.IssueCode(t.Context(), &clavigerv1.IssueCodeRequest{Principal: "web"})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "profile")
	if _, err := client.Enroll(t.Context(), "https://"+s.Address, code.Code, dir); err != nil {
		t.Fatal(err)
	}
	if workload, err = client.Open(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(workload.Close)
	if err := workload.Renew(t.Context()); err != nil {
		t.Fatalf("renew: %v", err)
	}
	return s, operator, workload, principal
}

func open(t *testing.T, c *client.Client, name string) *client.Key {
	t.Helper()
	k, err := c.Key(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestEndToEnd uses keys in a real key process through a real server.
func TestEndToEnd(t *testing.T) {
	t.Parallel()
	s, operator, workload, principal := enrolled(t)
	s.Key(t, "prod/web/tls", claviger.ECDSAP256)
	s.Key(t, "prod/web/mac", claviger.HMACSHA256)
	s.Key(t, "prod/web/seal", claviger.AES256GCM)
	if _, err := workload.Key(t.Context(), "prod/web/tls"); claviger.CodeOf(err) != claviger.Denied && claviger.CodeOf(err) != claviger.NotFound {
		t.Errorf("without a grant: %v", err)
	}
	grant := s.Allow(t, principal.Id, "prod/web/*", nil, claviger.ReadKey, claviger.Sign, claviger.Verify, claviger.MAC, claviger.VerifyMAC, claviger.Seal, claviger.Open)
	if who, err := workload.WhoAmI(t.Context()); err != nil || who.Principal.GetName() != "web" || who.Method != "mtls" {
		t.Errorf("WhoAmI: %v, %v", who, err)
	}
	t.Run("tls", func(t *testing.T) { serveTLS(t, open(t, workload, "prod/web/tls")) })
	t.Run("jwt", func(t *testing.T) { signJWT(t, open(t, workload, "prod/web/tls")) })
	t.Run("seal", func(t *testing.T) {
		sealAndMAC(t, open(t, workload, "prod/web/seal"), open(t, workload, "prod/web/mac"))
	})

	k := open(t, workload, "prod/web/tls")
	old, err := k.SignMessage(rand.Reader, []byte("x"), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := operator.RotateKey(t.Context(), &clavigerv1.RotateKeyRequest{Key: "prod/web/tls", Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.SignMessage(rand.Reader, []byte("x"), crypto.SHA256); !errors.Is(err, claviger.Conflict) {
		t.Errorf("a handle of before the rotation signs: %v", err)
	}
	if ok, err := k.Verify(t.Context(), []byte("x"), old); err != nil || !ok {
		t.Errorf("a signature of before the rotation: %v, %v", ok, err)
	}
	if ok, err := k.Verify(t.Context(), []byte("y"), old); err != nil || ok {
		t.Errorf("a signature of another message: %v, %v", ok, err)
	}
	if _, err := operator.RevokeGrant(t.Context(), &clavigerv1.RevokeGrantRequest{Id: grant.Id, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.SignBatch(t.Context(), [][]byte{{1}}, pubkey.P1363); !errors.Is(err, claviger.Denied) {
		t.Errorf("after the grant was revoked: %v", err)
	}
}

// serveTLS issues a certificate for the handle by itself and serves with it.
func serveTLS(t *testing.T, k *client.Key) {
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "web"}, DNSNames: []string{"example.com"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := k.TLSCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(root)
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"}}}
	defer h.CloseIdleConnections()
	answer, err := h.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "hello" {
		t.Errorf("body %q, %v", body, err)
	}
}

// signJWT signs a JWT by hand, with P1363 from a batch.
func signJWT(t *testing.T, k *client.Key) {
	b64 := base64.RawURLEncoding.EncodeToString
	var inputs [][]byte
	for _, sub := range []string{"a", "b", "c"} {
		inputs = append(inputs, []byte(b64([]byte(`{"alg":"ES256","kid":"`+k.PublicKey().Thumbprint()+`"}`))+"."+b64([]byte(`{"sub":"`+sub+`"}`))))
	}
	signed, err := k.SignBatch(t.Context(), inputs, pubkey.P1363)
	if err != nil {
		t.Fatal(err)
	}
	for i, sig := range signed.Signatures {
		token, err := jose.ParseSignedCompact(string(inputs[i])+"."+b64(sig), []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := token.Verify(k.Public()); err != nil || token.Signatures[0].Protected.KeyID != signed.KID {
			t.Errorf("token %d: %v", i, err)
		}
	}
}

func sealAndMAC(t *testing.T, sealer, macer *client.Key) {
	sealed, err := sealer.With("", "test").Seal(t.Context(), []byte("plain"), []byte("bound"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := sealer.Open(t.Context(), sealed, []byte("bound")); err != nil || string(plain) != "plain" {
		t.Errorf("Open: %q, %v", plain, err)
	}
	if _, err := sealer.Open(t.Context(), sealed, []byte("other")); !errors.Is(err, claviger.Invalid) {
		t.Errorf("Open with other associated data: %v", err)
	}
	macs, err := macer.MAC(t.Context(), []byte("a"), []byte("b"))
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := macer.VerifyMAC(t.Context(), []byte("b"), macs[1]); err != nil || !ok {
		t.Errorf("VerifyMAC: %v, %v", ok, err)
	}
	if ok, err := macer.VerifyMAC(t.Context(), []byte("a"), macs[1]); err != nil || ok {
		t.Errorf("VerifyMAC of another message: %v, %v", ok, err)
	}
}

// A grant with a template signs what matches, and nothing raw.
func TestEndToEndStructured(t *testing.T) {
	t.Parallel()
	s, _, workload, principal := enrolled(t)
	s.Key(t, "prod/web/token", claviger.ECDSAP384)
	s.Allow(t, principal.Id, "prod/web/token", nil, claviger.ReadKey)
	s.Allow(t, principal.Id, "prod/web/token", &clavigerv1.Conditions{Template: &clavigerv1.Template{Kind: &clavigerv1.Template_Jwt{Jwt: &clavigerv1.JwtTemplate{
		Issuer: "https://web.example", Subject: "web", Audiences: []string{"api"}, MaxLifetime: durationpb.New(time.Minute),
	}}}}, claviger.Sign)
	k := open(t, workload, "prod/web/token")
	claims := func(sub string) []byte {
		b, err := json.Marshal(map[string]any{"iss": "https://web.example", "sub": sub, "aud": "api", "iat": time.Now().Unix(), "exp": time.Now().Unix() + 60})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	token, err := k.SignJWT(t.Context(), claims("web"), "")
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES384})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parsed.Verify(k.Public()); err != nil {
		t.Errorf("the token does not verify: %v", err)
	}
	if _, err := k.SignJWT(t.Context(), claims("root"), ""); !errors.Is(err, claviger.Denied) {
		t.Errorf("another subject: %v", err)
	}
	if _, err := k.SignMessage(rand.Reader, []byte("raw"), crypto.SHA384); !errors.Is(err, claviger.Denied) {
		t.Errorf("raw: %v", err)
	}
	if _, err := k.SignX509(t.Context(), []byte{0x30, 0}); !errors.Is(err, claviger.Denied) {
		t.Errorf("a certificate: %v", err)
	}
}

// Material that was outside signs as before, inside.
func TestEndToEndImport(t *testing.T) {
	t.Parallel()
	_, operator, workload, principal := enrolled(t)
	info, err := operator.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pin, err := hex.DecodeString(info.IdentityFingerprint)
	if err != nil || len(pin) != sha256.Size {
		t.Fatalf("pin %q: %v", info.IdentityFingerprint, err)
	}
	if _, err := operator.CreateKey(t.Context(), &clavigerv1.CreateKeyRequest{Name: "prod/web/old", Algorithm: string(claviger.Ed25519), Owner: "test", ForImport: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := operator.CreateGrant(t.Context(), &clavigerv1.CreateGrantRequest{Principal: principal.Id, Selector: "prod/web/old", Operations: []string{"read-key", "sign"}, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	if _, err := operator.Import(t.Context(), "prod/web/old", seed, [32]byte{1}, "test"); !errors.Is(err, claviger.Denied) {
		t.Errorf("with another pin: %v", err)
	}
	key, err := operator.Import(t.Context(), "prod/web/old", seed, [32]byte(pin), "test")
	if err != nil {
		t.Fatal(err)
	}
	if v := key.Versions[len(key.Versions)-1]; v.Origin != string(claviger.Imported) || v.Level != string(claviger.Exposed) {
		t.Errorf("version %v", v)
	}
	k := open(t, workload, "prod/web/old")
	sig, err := k.SignMessage(rand.Reader, []byte("x"), crypto.Hash(0))
	if err != nil || !bytes.Equal(sig, ed25519.Sign(ed25519.NewKeyFromSeed(seed), []byte("x"))) {
		t.Errorf("signature %x, %v", sig, err)
	}
}
