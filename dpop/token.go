package dpop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"claviger.dev/pubkey"
)

// The limits of access tokens and of their issuer's key set.
const (
	maxToken      = 16 << 10         // bytes of a token
	maxTokenDepth = 16               // of its JSON: each actor of a delegation is one level
	maxKeySet     = 256 << 10        // bytes of a key set
	maxTokens     = 4096             // tokens whose signature is remembered to hold
	keyAge        = time.Minute      // after which the key set is asked for again
	keyStale      = 10 * time.Minute // after which it is not used, if it cannot be had again
	keyWait       = 5 * time.Second  // for one answer; and between two questions for a key that is not in the set
)

// Tokens checks the access tokens of one issuer that are JWTs (RFC 9068). Its
// Access is the Token of a Resource. It may be used concurrently.
type Tokens struct {
	Issuer   string // that iss has to be, to the letter
	Audience string // that has to be in aud, to the letter

	// Keys returns the issuer's key set (RFC 7517, 5). It is asked once a minute,
	// and sooner, but not more than once in five seconds, for a key that is not in
	// the set. While it fails, the last set is good for ten minutes.
	Keys func(ctx context.Context) ([]byte, error)

	Skew time.Duration    // by how much clocks may differ, either way; 0: ten seconds
	Now  func() time.Time // time.Now if nil

	mu      sync.Mutex
	set     keySet
	asking  bool // somebody is getting the next set
	checked map[[sha256.Size]byte]*Token
}

// keySet is a key set as it was read.
type keySet struct {
	doc   []byte
	keys  map[string]issuerKey // by kid
	taken time.Time            // when it was had
	asked time.Time            // when it was asked for last
}

type issuerKey struct {
	alg string
	key pubkey.Key
}

// Token is what an access token says. It is in Access.Claims.
type Token struct {
	ID        string // jti
	Subject   string // sub
	Client    string // client_id
	Session   string // sid; "" where the token belongs to no session
	Scopes    []string
	Issued    time.Time
	NotBefore time.Time // zero where the token does not say
	Ends      time.Time
	Claims    map[string]any // all of them; numbers are json.Number

	thumbprint string // cnf.jkt
}

// FetchKeys is Keys of Tokens by HTTP: the jwks_uri of the issuer's metadata.
func FetchKeys(client *http.Client, url string) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Accept", "application/jwk-set+json, application/json")
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("get key set: status %d", resp.StatusCode)
		}
		return io.ReadAll(io.LimitReader(resp.Body, maxKeySet+1))
	}
}

// Access checks a token: its form, issuer, audience, time and signature. A
// token that was found good once is not verified again while its key is in the
// issuer's set. Its error is an *Error of Unavailable where the key set cannot
// be had.
func (t *Tokens) Access(ctx context.Context, token string) (Access, error) {
	now := time.Now()
	if t.Now != nil {
		now = t.Now()
	}
	if len(token) > maxToken {
		return Access{}, fmt.Errorf("the token is longer than %d bytes", maxToken)
	}
	if err := t.refresh(ctx, now, keyAge); err != nil {
		return Access{}, err
	}
	id := sha256.Sum256([]byte(token))
	t.mu.Lock()
	known := t.checked[id]
	t.mu.Unlock()
	if known == nil {
		var err error
		if known, err = t.verify(ctx, token, now); err != nil {
			return Access{}, err
		}
		t.keep(id, known)
	}
	skew := t.Skew
	if skew == 0 {
		skew = 10 * time.Second
	}
	if now.After(known.Ends.Add(skew)) || now.Add(skew).Before(known.NotBefore) {
		return Access{}, errors.New("the token is outside its time")
	}
	return Access{Thumbprint: known.thumbprint, Claims: known}, nil
}

func (t *Tokens) keep(id [sha256.Size]byte, token *Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.checked == nil || len(t.checked) >= maxTokens {
		t.checked = map[[sha256.Size]byte]*Token{}
	}
	t.checked[id] = token
}

// verify checks all of a token but its time.
func (t *Tokens) verify(ctx context.Context, token string, now time.Time) (*Token, error) {
	head, rest, _ := strings.Cut(token, ".")
	payload, signature, ok := strings.Cut(rest, ".")
	if !ok || strings.Contains(signature, ".") {
		return nil, errors.New("the token is not a JWT in compact form")
	}
	alg, kid, err := tokenHeader(head)
	if err != nil {
		return nil, err
	}
	sig, err := decode(signature)
	if err != nil {
		return nil, fmt.Errorf("the token's signature is %w", err)
	}
	key, err := t.key(ctx, alg, kid, now)
	if err != nil {
		return nil, err
	}
	if !key.Verify([]byte(token[:len(head)+1+len(payload)]), sig, pubkey.P1363) {
		return nil, errors.New("the token is not signed by the issuer's key")
	}
	doc, err := decode(payload)
	if err != nil {
		return nil, fmt.Errorf("the token's claims are %w", err)
	}
	claims, err := object(doc, maxTokenDepth)
	if err != nil {
		return nil, fmt.Errorf("the token's claims are %w", err)
	}
	return t.read(claims)
}

func tokenHeader(encoded string) (alg, kid string, err error) {
	doc, err := decode(encoded)
	if err != nil {
		return "", "", fmt.Errorf("the token's header is %w", err)
	}
	fields, err := object(doc, maxDepth)
	if err != nil {
		return "", "", fmt.Errorf("the token's header is %w", err)
	}
	if typ := text(fields, "typ"); typ != "at+jwt" && typ != "application/at+jwt" {
		return "", "", errors.New("the token's typ is not at+jwt")
	}
	for _, name := range []string{"crit", "b64"} {
		if _, ok := fields[name]; ok {
			return "", "", fmt.Errorf("the token's header has %s", name)
		}
	}
	alg, kid = text(fields, "alg"), text(fields, "kid")
	if !slices.Contains(Algorithms(), alg) || kid == "" {
		return "", "", errors.New("the token's header names no key, or an algorithm that is not accepted")
	}
	return alg, kid, nil
}

// read takes the claims that RFC 9068, 2.2, requires.
func (t *Tokens) read(claims map[string]any) (*Token, error) {
	if text(claims, "iss") != t.Issuer || t.Issuer == "" {
		return nil, errors.New("the token is of another issuer")
	}
	audience, _ := claims["aud"].([]any)
	if one, ok := claims["aud"].(string); ok {
		audience = []any{one}
	}
	if t.Audience == "" || !slices.Contains(audience, any(t.Audience)) {
		return nil, errors.New("the token is for another audience")
	}
	out := &Token{ID: text(claims, "jti"), Subject: text(claims, "sub"), Client: text(claims, "client_id"), Session: text(claims, "sid"),
		Scopes: strings.Fields(text(claims, "scope")), Claims: claims}
	var issued, ends bool
	out.Issued, issued = date(claims["iat"])
	out.Ends, ends = date(claims["exp"])
	if out.ID == "" || out.Subject == "" || out.Client == "" || !issued || !ends {
		return nil, errors.New("the token lacks one of exp, iat, jti, sub and client_id")
	}
	if from, ok := claims["nbf"]; ok {
		if out.NotBefore, ok = date(from); !ok {
			return nil, errors.New("the token's nbf is no time")
		}
	}
	if confirmation, ok := claims["cnf"].(map[string]any); ok {
		out.thumbprint = text(confirmation, "jkt")
	}
	return out, nil
}

// date reads a NumericDate (RFC 7519, 2); a part of a second is left out.
func date(v any) (time.Time, bool) {
	number, ok := v.(json.Number)
	seconds, err := number.Float64()
	if !ok || err != nil || seconds < 0 || seconds > 1<<40 {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0), true
}

// key returns the issuer's key of a name, from a newer set where need be.
func (t *Tokens) key(ctx context.Context, alg, kid string, now time.Time) (pubkey.Key, error) {
	for _, age := range []time.Duration{keyStale, keyWait} {
		if err := t.refresh(ctx, now, age); err != nil {
			return pubkey.Key{}, err
		}
		t.mu.Lock()
		k, ok := t.set.keys[kid]
		t.mu.Unlock()
		if ok && k.alg == alg {
			return k.key, nil
		}
	}
	return pubkey.Key{}, errors.New("the issuer has no such key")
}

// refresh gets the key set again if it was asked for longer ago than age. Only
// one call does; while it does, others use the set there is.
func (t *Tokens) refresh(ctx context.Context, now time.Time, age time.Duration) error {
	t.mu.Lock()
	have := t.set.keys != nil
	if have && (t.asking || now.Sub(t.set.asked) < age) {
		defer t.mu.Unlock()
		return t.set.usable(now)
	}
	if !have && now.Sub(t.set.asked) < time.Second {
		defer t.mu.Unlock()
		return noKeys(nil)
	}
	t.asking = true
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, keyWait)
	defer cancel()
	doc, err := t.Keys(ctx)
	var keys map[string]issuerKey
	if err == nil {
		keys, err = readKeys(doc)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asking, t.set.asked = false, now
	if err != nil && t.set.keys == nil {
		return noKeys(err)
	}
	if err != nil {
		return t.set.usable(now)
	}
	if !bytes.Equal(doc, t.set.doc) {
		t.set.doc, t.set.keys, t.checked = doc, keys, nil
	}
	t.set.taken = now
	return nil
}

func (s *keySet) usable(now time.Time) error {
	if now.Sub(s.taken) > keyStale {
		return noKeys(nil)
	}
	return nil
}

func noKeys(err error) error {
	return &Error{Code: Unavailable, Msg: "the keys of the token's issuer cannot be had now: try again", Err: err}
}

// readKeys reads a key set, and leaves out what is no key for signatures that
// are checked here.
func readKeys(doc []byte) (map[string]issuerKey, error) {
	if len(doc) > maxKeySet {
		return nil, fmt.Errorf("the key set is longer than %d bytes", maxKeySet)
	}
	set, err := object(doc, maxTokenDepth)
	if err != nil {
		return nil, fmt.Errorf("the key set is %w", err)
	}
	list, ok := set["keys"].([]any)
	if !ok {
		return nil, errors.New("the key set has no keys")
	}
	out := map[string]issuerKey{}
	for _, v := range list {
		members, _ := v.(map[string]any)
		kid, alg, use := text(members, "kid"), text(members, "alg"), text(members, "use")
		if kid == "" || use != "" && use != "sig" || !slices.Contains(Algorithms(), alg) {
			continue
		}
		if _, twice := out[kid]; twice {
			return nil, errors.New("the key set has two keys of one name")
		}
		if key, err := parseKey(alg, members); err == nil {
			out[kid] = issuerKey{alg, key}
		}
	}
	return out, nil
}
