package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/broker/jwt"
)

// Limits of what is fetched.
const (
	maxDocument  = 256 << 10        // bytes of metadata, of a key set, of a token response
	fetchTimeout = 5 * time.Second  // of one request, whole
	freshFor     = time.Hour        // after which a document is fetched again
	staleFor     = 24 * time.Hour   // after which an old one is not used any more
	retryAfter   = 10 * time.Second // between two attempts, whatever asks for them
)

var errSize = errors.New("it is too long")

// newClient makes the HTTP client of one issuer: no redirect, no proxy, no
// cookie, and the issuer's own roots where there are some.
func newClient(ca string) (*http.Client, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("read roots: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("read roots: there is no certificate in it")
		}
	}
	return &http.Client{
		Timeout: fetchTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the answer is a redirect, and none is followed")
		},
		Transport: &http.Transport{
			TLSClientConfig: cfg, ForceAttemptHTTP2: true, DialContext: (&net.Dialer{Timeout: fetchTimeout}).DialContext,
			TLSHandshakeTimeout: fetchTimeout, ResponseHeaderTimeout: fetchTimeout, MaxResponseHeaderBytes: 32 << 10,
			MaxConnsPerHost: 8, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute, DisableCompression: true,
		},
	}, nil
}

// do makes a request and reads the answer, which is JSON.
func (i *issuer) do(r *http.Request) (status int, body []byte, err error) {
	if !i.allowed(r.URL.String()) {
		return 0, nil, errors.New("its address is not https")
	}
	r.Header.Set("Accept", "application/json")
	res, err := i.http.Do(r)
	if err != nil {
		return 0, nil, fmt.Errorf("ask %s: %w", i.Issuer, err)
	}
	defer res.Body.Close()
	body, err = io.ReadAll(io.LimitReader(res.Body, maxDocument+1))
	if err != nil {
		return 0, nil, fmt.Errorf("read the answer of %s: %w", i.Issuer, err)
	}
	if len(body) > maxDocument {
		return 0, nil, fmt.Errorf("read the answer of %s: %w", i.Issuer, errSize)
	}
	return res.StatusCode, body, nil
}

// get fetches a document. It goes on when the caller goes away: the others wait
// for it, and a stranger who hangs up must not keep new keys from all of them.
// fetchTimeout bounds it.
func (i *issuer) get(ctx context.Context, address string) ([]byte, error) {
	r, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", i.Issuer, err)
	}
	status, body, err := i.do(r)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("ask %s: it answers %d", i.Issuer, status)
	}
	return body, err
}

// kept is a document that was fetched, and is fetched again when it is old or
// when it lacks something. One caller fetches; the others wait for it.
type kept[T any] struct {
	mu      sync.Mutex // owns all below, also while it is fetched
	value   T
	at      time.Time // when it was fetched; zero where it never was
	tried   time.Time // when that was last attempted
	failure error     // of the last attempt
}

// get returns the document. enough says whether one will do; nil: any.
func (k *kept[T]) get(now time.Time, enough func(T) bool, fetch func() (T, error)) (T, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	age := now.Sub(k.at)
	have := !k.at.IsZero() && age < staleFor
	if have && age < freshFor && (enough == nil || enough(k.value)) {
		return k.value, nil
	}
	if now.Sub(k.tried) >= retryAfter || now.Before(k.tried) {
		k.tried = now
		v, err := fetch()
		if k.failure = err; err == nil {
			k.value, k.at, have = v, now, true
		}
	}
	if !have {
		var none T
		return none, fmt.Errorf("fetch keys: %w", errors.Join(k.failure, errUnfetched))
	}
	return k.value, nil
}

var errUnfetched = errors.New("the issuer's documents cannot be had now")

// Unfetched reports an error that says nothing of a token: the issuer's
// documents cannot be had, and trying again may help.
func Unfetched(err error) bool { return errors.Is(err, errUnfetched) }

// metadata is what is used of an OpenID provider's (Discovery 1.0, 3).
type metadata struct {
	Issuer     string `json:"issuer"`
	Authorize  string `json:"authorization_endpoint"`
	Token      string `json:"token_endpoint"`
	Keys       string `json:"jwks_uri"`
	EndSession string `json:"end_session_endpoint"`
	SendsIss   bool   `json:"authorization_response_iss_parameter_supported"`
}

// discover returns the metadata of an issuer.
func (i *issuer) discover(ctx context.Context) (metadata, error) {
	return i.metadata.get(i.now(), nil, func() (metadata, error) {
		doc, err := i.get(ctx, i.Issuer+"/.well-known/openid-configuration")
		if err != nil {
			return metadata{}, err
		}
		members, err := jwt.Object(doc)
		if err != nil {
			return metadata{}, fmt.Errorf("read metadata of %s: %w", i.Issuer, err)
		}
		sends, _ := members["authorization_response_iss_parameter_supported"].(bool)
		m := metadata{Issuer: members.Text("issuer"), Authorize: members.Text("authorization_endpoint"), Token: members.Text("token_endpoint"),
			Keys: members.Text("jwks_uri"), EndSession: members.Text("end_session_endpoint"), SendsIss: sends}
		if m.Issuer != i.Issuer {
			return metadata{}, fmt.Errorf("read metadata of %s: it is that of another issuer", i.Issuer)
		}
		for _, address := range []string{m.Authorize, m.Token, m.Keys, m.EndSession} {
			if address != "" && !i.allowed(address) {
				return metadata{}, fmt.Errorf("read metadata of %s: it has an address that is not https", i.Issuer)
			}
		}
		return m, nil
	})
}

// verify checks a token's signature by the issuer's keys.
func (i *issuer) verify(ctx context.Context, t *jwt.Token) error {
	enough := func(k jwt.Keys) bool { return t.KeyID == "" || k.Has(t.KeyID) }
	keys, err := i.keys.get(i.now(), enough, func() (jwt.Keys, error) {
		doc, err := i.fetchKeys(ctx)
		if err != nil {
			return nil, err
		}
		keys, err := jwt.ParseKeys(doc)
		if err != nil {
			return nil, fmt.Errorf("read keys of %s: %w", i.Issuer, err)
		}
		return keys, nil
	})
	if err != nil {
		return err
	}
	return t.Verify(keys)
}

func (i *issuer) fetchKeys(ctx context.Context) ([]byte, error) {
	address := i.Keys
	if filepath.IsAbs(address) {
		return readFile(address)
	}
	if address == "" {
		m, err := i.discover(ctx)
		if err != nil {
			return nil, err
		}
		address = m.Keys
	}
	return i.get(ctx, address)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open file: %w", err)
	}
	defer f.Close()
	doc, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err == nil && len(doc) > maxDocument {
		err = errSize
	}
	return doc, err
}

func unavailable(err error) error {
	return claviger.Errorf(claviger.Unavailable, "the organisation's OpenID provider cannot be asked now", "try again").Wrap(err)
}
