package client_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"filippo.io/mldsa"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/pubkey"
)

func newSigner(t testing.TB, alg claviger.Algorithm) crypto.Signer {
	t.Helper()
	var s crypto.Signer
	var err error
	switch alg {
	case claviger.Ed25519:
		_, s, err = ed25519.GenerateKey(rand.Reader)
	case claviger.ECDSAP256:
		s, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case claviger.ECDSAP384:
		s, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case claviger.MLDSA65:
		s, err = mldsa.GenerateKey(mldsa.MLDSA65())
	default:
		s, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// custody is a fake server with one key.
func custody(t testing.TB, alg claviger.Algorithm) *fake {
	t.Helper()
	signer := newSigner(t, alg)
	public, err := pubkey.FromStd(alg, signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{}
	f.getKey = func() (*clavigerv1.Key, error) {
		return &clavigerv1.Key{Id: "k", Algorithm: string(alg), Versions: []*clavigerv1.Version{
			{Number: 1, State: "deactivated", Public: []byte("of old")}, {Number: 2, State: "active", Public: public.Raw()},
		}}, nil
	}
	f.sign = func(_ context.Context, r *clavigerv1.SignRequest) (*clavigerv1.SignResponse, error) {
		answer := &clavigerv1.SignResponse{Version: 2, Kid: public.Thumbprint()}
		for _, input := range r.Inputs {
			if h := alg.Hash(); h != 0 && !r.Prehashed {
				w := h.New()
				w.Write(input)
				input = w.Sum(nil)
			}
			var opts crypto.SignerOpts = alg.Hash()
			if p, ok := alg.RSA(); ok && p.PSS {
				opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: p.Hash}
			}
			sig, err := signer.Sign(rand.Reader, input, opts)
			if err != nil {
				return nil, err
			}
			answer.Signatures = append(answer.Signatures, sig)
		}
		return answer, nil
	}
	return f
}

func handle(t *testing.T, f *fake) *client.Key {
	t.Helper()
	k, err := serve(t, f, client.Config{}).Key(t.Context(), "prod/web/tls")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSigner(t *testing.T) {
	t.Parallel()
	for _, alg := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.ECDSAP384, claviger.MLDSA65, "rsa-2048-pss-sha256", "rsa-2048-pkcs1-sha512"} {
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			k := handle(t, custody(t, alg))
			var signer crypto.MessageSigner = k
			var opts crypto.SignerOpts = alg.Hash()
			if p, ok := alg.RSA(); ok && p.PSS {
				opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: p.Hash}
			}
			message := []byte("a message")
			input := message
			if h := alg.Hash(); h != 0 {
				w := h.New()
				w.Write(message)
				input = w.Sum(nil)
			}
			for _, sign := range []func() ([]byte, error){
				func() ([]byte, error) { return signer.Sign(rand.Reader, input, opts) },
				func() ([]byte, error) { return signer.SignMessage(rand.Reader, message, opts) },
			} {
				sig, err := sign()
				if err != nil {
					t.Fatal(err)
				}
				if !k.PublicKey().Verify(message, sig, pubkey.ASN1) {
					t.Error("the signature does not verify")
				}
			}
		})
	}
}

// Options for another algorithm never become a signature.
func TestSignerOptions(t *testing.T) {
	t.Parallel()
	pss := func(salt int, h crypto.Hash) crypto.SignerOpts { return &rsa.PSSOptions{SaltLength: salt, Hash: h} }
	for _, test := range []struct {
		name string
		alg  claviger.Algorithm
		opts crypto.SignerOpts
		ok   bool
	}{
		{"ed25519 nil", claviger.Ed25519, nil, true},
		{"ed25519 pure", claviger.Ed25519, &ed25519.Options{}, true},
		{"ed25519ph", claviger.Ed25519, &ed25519.Options{Hash: crypto.SHA512}, false},
		{"ed25519ctx", claviger.Ed25519, &ed25519.Options{Context: "x"}, false},
		{"ed25519 hash", claviger.Ed25519, crypto.SHA512, false},
		{"ml-dsa context", claviger.MLDSA65, &mldsa.Options{Context: "x"}, false},
		{"ml-dsa", claviger.MLDSA65, &mldsa.Options{}, true},
		{"ecdsa", claviger.ECDSAP256, crypto.SHA256, true},
		{"ecdsa nil", claviger.ECDSAP256, nil, false},
		{"ecdsa another hash", claviger.ECDSAP256, crypto.SHA384, false},
		{"ecdsa as pss", claviger.ECDSAP256, pss(rsa.PSSSaltLengthEqualsHash, crypto.SHA256), false},
		{"pss", "rsa-2048-pss-sha256", pss(rsa.PSSSaltLengthEqualsHash, crypto.SHA256), true},
		{"pss by its length", "rsa-2048-pss-sha256", pss(32, crypto.SHA256), true},
		{"pss longest salt", "rsa-2048-pss-sha256", pss(rsa.PSSSaltLengthAuto, crypto.SHA256), false},
		{"pss another salt", "rsa-2048-pss-sha256", pss(20, crypto.SHA256), false},
		{"pss another hash", "rsa-2048-pss-sha256", pss(rsa.PSSSaltLengthEqualsHash, crypto.SHA512), false},
		{"pss as pkcs1", "rsa-2048-pss-sha256", crypto.SHA256, false},
		{"pkcs1 as pss", "rsa-2048-pkcs1-sha256", pss(rsa.PSSSaltLengthEqualsHash, crypto.SHA256), false},
		{"pkcs1 another hash", "rsa-2048-pkcs1-sha256", crypto.SHA1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := custody(t, test.alg)
			k := handle(t, f)
			before := f.count()
			_, err := k.SignMessage(rand.Reader, []byte("x"), test.opts)
			if test.ok != (err == nil) || !test.ok && (!errors.Is(err, claviger.Unsupported) || f.count() != before) {
				t.Errorf("%v after %d more calls", err, f.count()-before)
			}
		})
	}
}

func TestSignerRefusals(t *testing.T) {
	t.Parallel()
	f := custody(t, claviger.ECDSAP256)
	k := handle(t, f)
	if _, err := k.Sign(rand.Reader, make([]byte, 31), crypto.SHA256); !errors.Is(err, claviger.Invalid) {
		t.Errorf("a short digest: %v", err)
	}
	honest := f.sign
	for name, spoil := range map[string]func(*clavigerv1.SignResponse){
		"rotated":     func(r *clavigerv1.SignResponse) { r.Version = 3 },
		"another key": func(r *clavigerv1.SignResponse) { r.Kid = "other" },
		"too few":     func(r *clavigerv1.SignResponse) { r.Signatures = nil },
	} {
		f.sign = func(ctx context.Context, r *clavigerv1.SignRequest) (*clavigerv1.SignResponse, error) {
			answer, err := honest(ctx, r)
			spoil(answer)
			return answer, err
		}
		want := claviger.Conflict
		if name == "too few" {
			want = claviger.Internal
		}
		if _, err := k.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	symmetric := &fake{getKey: func() (*clavigerv1.Key, error) {
		return &clavigerv1.Key{Id: "k", Algorithm: "aes-256-gcm", Versions: []*clavigerv1.Version{{Number: 1, State: "active"}}}, nil
	}}
	s := handle(t, symmetric)
	if _, err := s.SignMessage(rand.Reader, nil, nil); !errors.Is(err, claviger.Unsupported) || s.Public() != nil {
		t.Errorf("a symmetric key signs: %v", err)
	}
	if _, err := s.TLSCertificate(); !errors.Is(err, claviger.Unsupported) {
		t.Errorf("a symmetric key serves TLS: %v", err)
	}
	symmetric.open = func(*clavigerv1.OpenRequest) (*clavigerv1.OpenResponse, error) {
		return &clavigerv1.OpenResponse{Items: []*clavigerv1.Opened{{}}}, nil
	}
	if _, err := s.Open(t.Context(), []byte("x"), nil); !errors.Is(err, claviger.Invalid) {
		t.Errorf("what is not authentic opens: %v", err)
	}
}

// net/http serves TLS, and crypto/x509 issues the certificate, with the handle.
func TestTLS(t *testing.T) {
	t.Parallel()
	for _, alg := range []claviger.Algorithm{claviger.Ed25519, claviger.ECDSAP256, claviger.ECDSAP384, "rsa-2048-pss-sha256", "rsa-2048-pss-sha512"} {
		t.Run(string(alg), func(t *testing.T) {
			t.Parallel()
			k := handle(t, custody(t, alg))
			tmpl := &x509.Certificate{
				SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "self"}, DNSNames: []string{"example.com"}, IsCA: true, BasicConstraintsValid: true,
				NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), SignatureAlgorithm: map[claviger.Algorithm]x509.SignatureAlgorithm{
					"rsa-2048-pss-sha256": x509.SHA256WithRSAPSS, "rsa-2048-pss-sha512": x509.SHA512WithRSAPSS,
				}[alg],
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
			s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
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
		})
	}
}
