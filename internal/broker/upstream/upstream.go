// Package upstream is the broker's view of the parties that vouch for people
// and workloads: OpenID providers, Kubernetes clusters and SPIFFE trust
// domains, as the configuration lists them.
//
// It owns fetching their documents, with a bound on size, time and number, and
// the checks of their tokens. It promises that a token names an issuer of the
// configuration, and is signed by that issuer's own keys, for this server. It
// must never follow a redirect, or an address that a token names.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/broker/jwt"
)

// Kind is what sort of party an issuer is.
type Kind string

// The kinds of issuers.
const (
	OIDC       Kind = "oidc"       // an OpenID provider: ID tokens and JWT access tokens
	Kubernetes Kind = "kubernetes" // a cluster: tokens of service accounts
	SPIFFE     Kind = "spiffe"     // a trust domain: JWT-SVIDs
)

// Config is one issuer, in TOML. What is left out is said at each field.
type Config struct {
	// Issuer is what iss of its tokens has to be, an https address. For a trust
	// domain: "spiffe://" and its name. Required.
	Issuer string `toml:"issuer"`
	// Kind is oidc, kubernetes or spiffe. Empty: oidc.
	Kind Kind `toml:"kind"`
	// Audience is what tokens must be for when they are exchanged. Empty: the
	// broker's own issuer.
	Audience string `toml:"audience"`
	// Keys is where its public keys are, a JWK set: the path of a file, or an
	// https address. Empty: where its metadata says (OpenID Connect Discovery);
	// a trust domain has none.
	Keys string `toml:"keys"`
	// CA is a PEM file of the roots that its address is checked with. Empty:
	// those of the system.
	CA string `toml:"ca"`
	// ClientID is the name of this server there, where people log in: one
	// issuer has it at most. Empty: nobody logs in there.
	ClientID string `toml:"client_id"`
	// SecretFile is a file with the client's secret. Empty: private_key_jwt, by
	// the key of issued tokens, whose public half is at /oauth/jwks.
	SecretFile string `toml:"client_secret_file"`
	// Scopes are asked for at a login beside openid. Empty: profile.
	Scopes []string `toml:"scopes"`
	// PlainLoopback takes http addresses on this host, for tests.
	PlainLoopback bool `toml:"plain_loopback"`
}

// Validate completes a configuration and checks it. Errors are [claviger.Invalid].
func (c *Config) Validate() error {
	invalid := func(msg, hint string) error { return claviger.Errorf(claviger.Invalid, "broker.issuer: "+msg, hint) }
	if c.Kind == "" {
		c.Kind = OIDC
	}
	domain, isDomain := strings.CutPrefix(c.Issuer, "spiffe://")
	switch {
	case c.Kind != OIDC && c.Kind != Kubernetes && c.Kind != SPIFFE:
		return invalid("kind is not known", "use oidc, kubernetes or spiffe")
	case c.Kind == SPIFFE && (!isDomain || domain == "" || strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != ""):
		return invalid("issuer is no trust domain", "write it such as spiffe://example.org")
	case c.Kind == SPIFFE && (c.Keys == "" || c.ClientID != ""):
		return invalid("a trust domain needs keys, and nobody logs in there", "set keys to the JWT bundle of the trust domain, a file or an https address")
	case c.Kind != SPIFFE && !c.allowed(c.Issuer):
		return invalid("issuer is no https address", "write it exactly as iss of its tokens is, such as https://login.example.org")
	case c.Keys != "" && !filepath.IsAbs(c.Keys) && !c.allowed(c.Keys):
		return invalid("keys is neither an absolute path nor an https address", "leave it out to find them by the issuer's metadata")
	case c.CA != "" && !filepath.IsAbs(c.CA), c.SecretFile != "" && !filepath.IsAbs(c.SecretFile):
		return invalid("ca or client_secret_file is not an absolute path", "set it to an absolute path")
	case c.SecretFile != "" && c.ClientID == "":
		return invalid("client_secret_file is set without client_id", "set client_id to this server's name at the provider")
	}
	return nil
}

// allowed reports an address that may be fetched.
func (c *Config) allowed(address string) bool {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || len(address) > 2048 {
		return false
	}
	return u.Scheme == "https" || c.PlainLoopback && u.Scheme == "http" && loopback(u.Hostname())
}

func loopback(host string) bool { return host == "localhost" || host == "127.0.0.1" || host == "::1" }

// Issuers are those of a configuration.
type Issuers struct {
	all      []*issuer
	audience string // of exchanged tokens, where an issuer has none of its own
	now      func() time.Time
}

// issuer is one of them, with what was fetched from it.
type issuer struct {
	Config
	http *http.Client
	now  func() time.Time

	metadata kept[metadata]
	keys     kept[jwt.Keys]
}

// New makes the issuers of configurations that were validated.
func New(configs []Config, audience string, now func() time.Time) (*Issuers, error) {
	out := &Issuers{audience: audience, now: now}
	for _, c := range configs {
		client, err := newClient(c.CA)
		if err != nil {
			return nil, claviger.Errorf(claviger.Invalid, "broker.issuer: ca cannot be read", "set it to a PEM file that the server's account may read").Wrap(err)
		}
		if slices.ContainsFunc(out.all, func(i *issuer) bool { return i.Issuer == c.Issuer }) {
			return nil, claviger.Errorf(claviger.Invalid, "broker.issuer: an issuer is listed twice", "put what is said of it into one table")
		}
		out.all = append(out.all, &issuer{Config: c, http: client, now: now})
	}
	return out, nil
}

// Identity is whom a token names.
type Identity struct {
	Subject claviger.Subject
	MayAct  jwt.Claims // may_act (RFC 8693, 4.4); nil where there is none
	Ends    time.Time  // exp
}

// The kinds of tokens that are exchanged, of the registry of RFC 8693, 3.
const (
	TypeJWT = "urn:ietf:params:oauth:token-type:jwt"
	TypeID  = "urn:ietf:params:oauth:token-type:id_token"
)

// ErrUnknown says that a token is of no issuer of the configuration.
var ErrUnknown = errors.New("its issuer is not configured here")

// Identify checks a token that somebody presents for an exchange.
func (s *Issuers) Identify(ctx context.Context, text, tokenType string) (Identity, error) {
	t, err := jwt.Parse(text, jwt.Algorithms())
	if err != nil {
		return Identity{}, err
	}
	i, err := s.issuerOf(&t)
	if err != nil {
		return Identity{}, err
	}
	if tokenType == TypeID && i.Kind != OIDC || tokenType != TypeID && tokenType != TypeJWT {
		return Identity{}, errors.New("its issuer has no tokens of this type")
	}
	// An access token of RFC 9068 is for a resource server, and its typ says so;
	// logout tokens and proofs are for nothing else than what they are.
	if err := t.Typed("", "jwt", "at+jwt", "jose"); err != nil || i.Kind == SPIFFE && t.Type == "at+jwt" {
		return Identity{}, errors.New("its typ is another one")
	}
	if err := i.verify(ctx, &t); err != nil {
		return Identity{}, err
	}
	audience := i.Audience
	if audience == "" {
		audience = s.audience
	}
	if !t.Claims.For(audience) {
		return Identity{}, fmt.Errorf("its aud does not name %s", audience)
	}
	if err := t.Claims.Timely(s.now(), 0); err != nil {
		return Identity{}, err
	}
	subject := t.Claims.Text("sub")
	if subject == "" || len(subject) > claviger.MaxTextLength {
		return Identity{}, errors.New("its sub is missing, or longer than 256 bytes")
	}
	ends, _ := t.Claims.Time("exp")
	return Identity{Subject: claviger.Subject{Issuer: i.Issuer, ID: subject, Name: display(t.Claims)}, MayAct: t.Claims.Object("may_act"), Ends: ends}, nil
}

// issuerOf finds who made a token: by iss, and for a JWT-SVID, which need not
// have one, by the trust domain of sub (JWT-SVID, 3).
func (s *Issuers) issuerOf(t *jwt.Token) (*issuer, error) {
	iss, sub := t.Claims.Text("iss"), t.Claims.Text("sub")
	for _, i := range s.all {
		if i.Kind == SPIFFE {
			if strings.HasPrefix(sub, i.Issuer+"/") && t.KeyID != "" && !strings.HasPrefix(t.Algorithm, "Ed") {
				return i, nil
			}
		} else if iss == i.Issuer {
			return i, nil
		}
	}
	return nil, ErrUnknown
}

// display is what people know a subject as.
func display(c jwt.Claims) string {
	for _, name := range []string{"preferred_username", "email", "name"} {
		if s := c.Text(name); s != "" && len(s) <= claviger.MaxTextLength {
			return s
		}
	}
	return ""
}

// secret reads the client's secret from its file.
func (c *Config) secret() (string, error) {
	b, err := readFile(c.SecretFile)
	if err != nil {
		return "", fmt.Errorf("read client_secret_file: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
