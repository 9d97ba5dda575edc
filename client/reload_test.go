package client_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

// TestReload has somebody else renew the certificate of a client: it is used
// from the next minute on, and kept while the new one cannot be read.
func TestReload(t *testing.T) {
	t.Parallel()
	numbered := func(n int64) *tls.Certificate {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(n), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	f := &fake{getKey: func() (*clavigerv1.Key, error) { return &clavigerv1.Key{Id: "x"}, nil }}
	var seen []int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.TLS.PeerCertificates[0].SerialNumber.Int64())
		f.handler().ServeHTTP(w, r)
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	s.StartTLS()
	defer s.Close()
	var stored *tls.Certificate
	config := client.Config{Address: s.URL, Roots: x509.NewCertPool(), Certificate: numbered(1)}
	config.Roots.AddCert(s.Certificate())
	config.Reload = func() (*tls.Certificate, error) {
		if stored == nil {
			return nil, errors.New("no file")
		}
		return stored, nil
	}
	c, err := client.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	now := time.Now()
	c.SetNow(func() time.Time { return now })
	for _, step := range []struct {
		file *tls.Certificate
		wait time.Duration
	}{{nil, 0}, {numbered(2), time.Second}, {numbered(3), time.Minute}, {nil, time.Minute}} {
		stored, now = step.file, now.Add(step.wait)
		if _, err := c.GetKey(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(seen, []int64{1, 1, 3, 3}) {
		t.Errorf("the server saw the certificates %d", seen)
	}
}
