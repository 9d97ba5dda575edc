package keeper

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/policy"
	"claviger.dev/pubkey"
)

// The keys that sign access tokens, and the events that tell of the end of
// sessions; and the one that authenticates nonces.
const (
	tokensKey    claviger.Name = policy.SystemEnvironment + "/claviger/tokens"
	tokensRSAKey claviger.Name = policy.SystemEnvironment + "/claviger/tokens-rs256"
	noncesKey    claviger.Name = policy.SystemEnvironment + "/claviger/nonces"
)

// tokensRSA is the algorithm of access tokens that resource servers which know
// no elliptic curves take.
const tokensRSA claviger.Algorithm = "rsa-2048-pkcs1-sha256"

// AccessToken is the typ of an access token (RFC 9068, section 2.1).
const AccessToken = "at+jwt"

// TokenRequest asks for one access token.
type TokenRequest struct {
	Client    string           // by id or name
	Session   claviger.ID      // "": of no session
	Subject   claviger.Subject // for the record
	Audiences []string
	Scopes    []string
	Claims    []byte          // a JSON object, at most MaxToBeSigned; see IssueToken
	Source    claviger.Source // as in NewSession
}

// TokenIssued is an access token.
type TokenIssued struct {
	Token   string // compact JWS
	ID      string // jti
	KID     string
	Expires time.Time
}

// tokenClaims are the claims that the door holds a token to.
type tokenClaims struct {
	Issuer   string          `json:"iss"`
	Subject  string          `json:"sub"`
	Audience json.RawMessage `json:"aud"`
	Expires  int64           `json:"exp"`
	Issued   int64           `json:"iat"`
	ID       string          `json:"jti"`
	Client   string          `json:"client_id"`
	Scope    string          `json:"scope"`
	Session  claviger.ID     `json:"sid"`
	Confirm  struct {
		JKT  string `json:"jkt"`      // RFC 9449, section 6.1
		Cert string `json:"x5t#S256"` // RFC 8705, section 3.1
	} `json:"cnf"`
}

// IssueToken signs an access token (RFC 9068) for a client and records it
// before it is released. The claims must say what the request says; they are
// bound to a key by cnf, to the session's where there is one; and they live no
// longer than the client's limit and the session. It takes a grant to open
// sessions of the client, for each audience.
func (k *Keeper) IssueToken(ctx context.Context, by claviger.Principal, t TokenRequest) (TokenIssued, error) {
	claims, err := t.parse()
	if err != nil {
		return TokenIssued{}, err
	}
	a := ask{op: claviger.OpenSession, count: 1, digest: digestOf(t.Claims), session: &sessionAsk{
		action: "token.issue", client: t.Client, id: t.Session, audiences: t.Audiences, scopes: t.Scopes, kind: "token", source: t.Source,
		detail: map[string]string{"jti": claims.ID, "issuer": t.Subject.Issuer, "subject": t.Subject.ID, "jkt": claims.Confirm.JKT, "x5t": claims.Confirm.Cert},
	}}
	return pass(ctx, k, by, a, func(ctx context.Context, p permit) (TokenIssued, error) {
		if err := claims.fit(p, k.cfg.Now()); err != nil {
			return TokenIssued{}, err
		}
		key, err := k.tokens.of(ctx, k, p.on.client.TokenAlgorithm)
		if err != nil {
			return TokenIssued{}, err
		}
		signed, kid, err := key.jws(ctx, AccessToken, t.Claims)
		return TokenIssued{Token: signed, ID: claims.ID, KID: kid, Expires: time.Unix(claims.Expires, 0).UTC()}, err
	})
}

// parse reads the claims and holds them to the request.
func (t TokenRequest) parse() (c tokenClaims, err error) {
	bad := func(what string) (tokenClaims, error) {
		return c, claviger.Errorf(claviger.Invalid, "the claims of the token "+what, "build them from the request")
	}
	if len(t.Claims) > MaxToBeSigned || len(t.Audiences) > maxSessionList || len(t.Scopes) > maxSessionList {
		return c, claviger.Errorf(claviger.TooLarge, "the claims are larger than 16 KiB, or there are more than 32 audiences or scopes", "ask for less")
	}
	if err := json.Unmarshal(t.Claims, &c); err != nil || !bytes.HasPrefix(t.Claims, []byte("{")) {
		return bad("are not a JSON object")
	}
	var audiences []string
	if json.Unmarshal(c.Audience, &audiences) != nil {
		audiences = []string{""}
		if json.Unmarshal(c.Audience, &audiences[0]) != nil {
			return bad("name no audience")
		}
	}
	for _, text := range []string{c.ID, t.Subject.Issuer, t.Subject.ID} {
		if err := checkText("text of the token", text); err != nil {
			return c, err
		}
	}
	switch {
	case c.Issuer == "" || c.Subject == "" || c.ID == "" || c.Client == "":
		return bad("lack iss, sub, jti or client_id (RFC 9068, section 2.2)")
	case len(t.Audiences) == 0 || !slices.Equal(audiences, t.Audiences):
		return bad("are for another audience than the request")
	case c.Scope != strings.Join(t.Scopes, " "):
		return bad("have another scope than the request")
	case c.Session != t.Session:
		return bad("are of another session than the request")
	case c.Confirm.JKT == "" && c.Confirm.Cert == "":
		return bad("are bound to no key: a bearer token is never issued")
	case c.Expires <= c.Issued:
		return bad("end before they begin")
	}
	return c, nil
}

// fit holds the claims to the client and the session.
func (c tokenClaims) fit(p permit, now time.Time) error {
	client := p.on.client
	ends := now.Add(time.Duration(client.Limits.WithDefaults().Access))
	bad := func(what, hint string) error { return claviger.Errorf(claviger.Invalid, what, hint) }
	if s := p.on.session; s != nil {
		if c.Confirm.JKT != s.session.JKT {
			return bad("the token is bound to another key than its session", "bind it to the session's key")
		}
		if s.session.Ends.Before(ends) {
			ends = s.session.Ends
		}
	}
	switch {
	case c.Client != string(client.ID) && c.Client != string(client.Name):
		return bad("the token names another client", "name the client that asks")
	case time.Unix(c.Expires, 0).After(ends.Add(time.Second)):
		return bad("the token lives longer than the client's or its session's", "shorten its life")
	case time.Unix(c.Issued, 0).Sub(now).Abs() > time.Minute:
		return bad("the token says that it was issued at another time", "use the server's time")
	}
	return nil
}

// tokens holds the system keys that sign tokens, made at first use.
type tokens struct {
	mu   sync.Mutex // guards keys
	keys map[claviger.Name]*tokenKey
}

// tokenKey is a key that signs tokens, with the JWS headers that it signs
// under.
type tokenKey struct {
	*systemKey
	alg string // of JWS

	mu      sync.Mutex // guards headers
	headers map[string]string
}

// of returns the key of an algorithm; "" stands for ES256.
func (t *tokens) of(ctx context.Context, k *Keeper, alg claviger.Algorithm) (*tokenKey, error) {
	name := tokensKey
	if alg == tokensRSA {
		name = tokensRSAKey
	} else {
		alg = claviger.ECDSAP256
	}
	return t.named(ctx, k, name, alg)
}

func (t *tokens) named(ctx context.Context, k *Keeper, name claviger.Name, alg claviger.Algorithm) (*tokenKey, error) {
	t.mu.Lock()
	key := t.keys[name]
	t.mu.Unlock()
	if key != nil {
		return key, nil
	}
	made, err := k.systemKey(ctx, name, alg, nil)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keys == nil {
		t.keys = map[claviger.Name]*tokenKey{}
	}
	if t.keys[name] == nil {
		t.keys[name] = &tokenKey{systemKey: made, alg: pubkey.JWSAlgorithm(alg), headers: map[string]string{}}
	}
	return t.keys[name], nil
}

// jws signs claims as a compact JWS (RFC 7515, section 7.1) of a type.
func (s *tokenKey) jws(ctx context.Context, typ string, claims []byte) (signed, kid string, err error) {
	state, v, _ := s.current()
	_, kid, err = state.public(v)
	if err != nil {
		return "", "", err
	}
	input := s.header(typ, kid) + "." + base64.RawURLEncoding.EncodeToString(claims)
	signature, err := s.sign(ctx, []byte(input))
	if err != nil {
		return "", "", err
	}
	if state.key.Algorithm == claviger.ECDSAP256 {
		if signature, err = pubkey.ToP1363(state.key.Algorithm, signature); err != nil {
			return "", "", err
		}
	}
	s.k.counts.addSystem(state.key.ID, v.Number, s.k.cfg.Now())
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), kid, nil
}

func (s *tokenKey) header(typ, kid string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.headers[typ] == "" {
		text, _ := json.Marshal(struct { // of three texts: it does not fail
			Alg string `json:"alg"`
			Typ string `json:"typ"`
			KID string `json:"kid"`
		}{s.alg, typ, kid})
		s.headers[typ] = base64.RawURLEncoding.EncodeToString(text)
	}
	return s.headers[typ]
}

// The types of events that SignEvent signs.
const (
	LogoutToken   = "logout+jwt"   // OpenID Connect Back-Channel Logout 1.0, section 2.4
	SecurityEvent = "secevent+jwt" // RFC 8417, section 2.2

	// ClientAssertion is no event: by it the server authenticates at the OpenID
	// provider where people log in (RFC 7523).
	ClientAssertion = "client-authentication+jwt"
)

// SignEvent signs an event that tells a receiver of the end of a session, or the
// server's own client assertion. It is the server's own word and asks for no
// right: no route leads here. Its uses are recorded in aggregate.
func (k *Keeper) SignEvent(ctx context.Context, typ string, claims []byte) (string, error) {
	if typ != LogoutToken && typ != SecurityEvent && typ != ClientAssertion || len(claims) > MaxToBeSigned || !json.Valid(claims) {
		return "", claviger.Errorf(claviger.Invalid, "an event is a logout token or a security event, in JSON of at most 16 KiB", "use one of the types")
	}
	key, err := k.tokens.of(ctx, k, "")
	if err != nil {
		return "", outward(err)
	}
	signed, _, err := key.jws(ctx, typ, claims)
	if err != nil {
		return "", outward(err)
	}
	state, v, _ := key.current()
	return signed, key.handled(ctx, ask{op: claviger.Sign, count: 1, digest: digestOf(claims)}, state, v)
}

// TokenRefused records that a request for a token was refused by a rule of
// OAuth before it came to the door. Whoever sent it may be a stranger: such
// refusals of one second are one record, with their number. client is the name
// of a registered client, "" where the request names none.
func (k *Keeper) TokenRefused(ctx context.Context, by claviger.Principal, client claviger.Name, rule string) error {
	r := k.newRecord(by, "token.refuse")
	r.Outcome, r.Code, r.Reason, r.Count = audit.Denied, claviger.Denied, rule, 1
	addDetailText(r, "client", string(client))
	return k.handled.add(ctx, *r)
}

// TokenKeys returns the public keys of access tokens and events as a JWK Set
// (RFC 7517, section 5).
func (k *Keeper) TokenKeys(ctx context.Context) ([]byte, error) {
	set := struct {
		Keys []json.RawMessage `json:"keys"`
	}{}
	for _, alg := range []claviger.Algorithm{claviger.ECDSAP256, tokensRSA} {
		key, err := k.tokens.of(ctx, k, alg)
		if err != nil {
			return nil, outward(err)
		}
		state, v, _ := key.current()
		half, _, err := state.public(v)
		if err != nil {
			return nil, err
		}
		set.Keys = append(set.Keys, half.JWK())
	}
	text, err := json.Marshal(set)
	return text, outward(err)
}

// NonceMAC authenticates the spans of nonces (dpop.Nonces) by a system key, so
// that servers of one store share them.
func (k *Keeper) NonceMAC(ctx context.Context, message []byte) ([]byte, error) {
	key, err := k.tokens.named(ctx, k, noncesKey, claviger.HMACSHA256)
	if err != nil {
		return nil, outward(err)
	}
	macs, err := key.mac(ctx, [][]byte{message})
	if err != nil {
		return nil, outward(err)
	}
	return macs[0], nil
}
