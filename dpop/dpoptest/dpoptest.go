// Package dpoptest is an issuer of access tokens and a holder of keys, for tests.
package dpoptest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/pubkey"
)

// Signer makes proofs with a new key by ECDSA P-256.
func Signer(t testing.TB) *dpop.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := dpop.NewSigner(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// Issuer makes access tokens as RFC 9068 says, or otherwise where a test wants
// so. It may be used concurrently, but for changes of its fields.
type Issuer struct {
	URL string // iss
	Now func() time.Time
	Kid string // of the key
	JWK string // public

	t    testing.TB
	key  *ecdsa.PrivateKey
	mu   sync.Mutex
	set  string
	err  error
	asks int
}

// New makes an issuer with a key by ECDSA P-256.
func New(t testing.TB, url string, now func() time.Time) *Issuer {
	t.Helper()
	i := &Issuer{URL: url, Now: now, t: t}
	i.Rotate()
	return i
}

// Rotate makes a new key, the only one of the set that is for tokens.
func (i *Issuer) Rotate() {
	i.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	public, err := pubkey.FromStd(claviger.ECDSAP256, &key.PublicKey)
	if err != nil {
		i.t.Fatal(err)
	}
	i.key, i.JWK, i.Kid = key, string(public.JWK()), public.Thumbprint()
	i.Serve(`{"keys":[{"kty":"oct","kid":"mac","alg":"HS256","k":"AAAA"},`+i.JWK+`]}`, nil)
}

// Serve changes what Keys returns.
func (i *Issuer) Serve(set string, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if set != "" || err == nil {
		i.set = set
	}
	i.err = err
}

// Keys returns the key set, as dpop.Tokens asks for it.
func (i *Issuer) Keys(context.Context) ([]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asks++
	return []byte(i.set), i.err
}

// Asks is how often the key set was asked for.
func (i *Issuer) Asks() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asks
}

// Claims are those of a good token that is bound to a key, of session "s1" of
// the subject "ada" through the client "shop", for five minutes.
func (i *Issuer) Claims(audience, jkt string) map[string]any {
	return map[string]any{"iss": i.URL, "sub": "ada", "aud": []string{"https://other.example.com", audience}, "client_id": "shop", "jti": rand.Text(),
		"iat": i.Now().Unix(), "exp": i.Now().Add(5 * time.Minute).Unix(), "scope": "orders read", "sid": "s1", "cnf": map[string]any{"jkt": jkt}}
}

// Issue makes a token of claims: a value for JSON, or a string that is JSON already.
func (i *Issuer) Issue(claims any) string {
	return i.Sign(map[string]any{"typ": "at+jwt", "alg": "ES256", "kid": i.Kid}, claims)
}

// Sign signs any header and any claims with the issuer's key.
func (i *Issuer) Sign(header, claims any) string {
	i.t.Helper()
	input := i.part(header) + "." + i.part(claims)
	digest := sha256.Sum256([]byte(input))
	der, err := ecdsa.SignASN1(rand.Reader, i.key, digest[:])
	if err != nil {
		i.t.Fatal(err)
	}
	sig, err := pubkey.ToP1363(claviger.ECDSAP256, der)
	if err != nil {
		i.t.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func (i *Issuer) part(v any) string {
	i.t.Helper()
	doc, ok := v.(string)
	if !ok {
		b, err := json.Marshal(v)
		if err != nil {
			i.t.Fatal(err)
		}
		doc = string(b)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(doc))
}
