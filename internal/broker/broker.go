// Package broker holds the rules of the authorization server: who may get a
// token, for what, bound to which key, and how a session begins and ends by
// OAuth 2.0 and OpenID Connect. How a token request flows is in token.go.
//
// It promises that nothing is issued that is not bound to a key whose
// possession was shown in the same request, that whatever is to be presented
// once is taken once, and that every input has a bound. It knows no HTTP beyond
// parameters and addresses. It must never sign: every signature is asked of the
// keeper, which authorises and records it.
package broker

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker/upstream"
	"claviger.dev/internal/store"
)

// Config is the table [broker] of the configuration, in TOML. Where it is left
// out there is no broker.
type Config struct {
	// Issuer is what iss of every token is, and where clients reach this server
	// from outside: an https address, without a slash at its end. Required.
	Issuer string `toml:"issuer"`
	// Issuers are the parties whose word is taken: where people log in, and
	// whose tokens are exchanged.
	Issuers []upstream.Config `toml:"issuers"`
	// NonceSpan is how long a nonce of a proof is good, and once more. Zero: one minute.
	NonceSpan claviger.Duration `toml:"nonce_span"`
	// PerClient is how many requests a second one client may make. Zero: 2000.
	PerClient int `toml:"requests_per_second"`
	// PerAddress is how many requests a second of one address may be refused, or
	// be a browser's or a public client's. Zero: 200. Behind a proxy that hides
	// addresses it holds for all of them together.
	PerAddress int `toml:"strangers_per_second"`
}

// Enabled reports whether there is a broker.
func (c *Config) Enabled() bool { return c.Issuer != "" || len(c.Issuers) > 0 }

// Validate completes the configuration and checks it. Errors are
// [claviger.Invalid], name the key and say what to do.
func (c *Config) Validate() error {
	if !c.Enabled() {
		return nil
	}
	invalid := func(msg, hint string) error { return claviger.Errorf(claviger.Invalid, msg, hint) }
	u, err := url.Parse(c.Issuer)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" || strings.HasSuffix(c.Issuer, "?"):
		return invalid("broker.issuer is not an https address without a path", "write it such as https://auth.example.org")
	case c.NonceSpan < 0 || c.NonceSpan > claviger.Duration(time.Hour):
		return invalid("broker.nonce_span is not between 0 and 1h", "leave it out for one minute")
	case c.PerClient < 0 || c.PerAddress < 0:
		return invalid("a rate of broker is negative", "leave it out for its default")
	}
	if c.NonceSpan == 0 {
		c.NonceSpan = claviger.Duration(time.Minute)
	}
	if c.PerClient == 0 {
		c.PerClient = 2000
	}
	if c.PerAddress == 0 {
		c.PerAddress = 200
	}
	logins := 0
	for i := range c.Issuers {
		if err := c.Issuers[i].Validate(); err != nil {
			return err
		}
		if c.Issuers[i].ClientID != "" {
			logins++
		}
	}
	if logins > 1 {
		return invalid("broker.issuers has client_id twice", "people log in at one OpenID provider: leave client_id out of the others")
	}
	return nil
}

// The endpoints, below the issuer.
const (
	MetadataPath     = "/.well-known/oauth-authorization-server" // RFC 8414
	KeysPath         = "/oauth/jwks"
	TokenPath        = "/oauth/token"
	PARPath          = "/oauth/par"
	AuthorizePath    = "/oauth/authorize"
	CallbackPath     = "/oauth/callback" // where the OpenID provider sends people back
	IntrospectPath   = "/oauth/introspect"
	RevokePath       = "/oauth/revoke"
	LogoutPath       = "/oauth/logout"
	BackchannelPath  = "/oauth/backchannel-logout" // where the OpenID provider says that a session has ended
	grantCode        = "authorization_code"
	grantRefresh     = "refresh_token"
	grantCredentials = "client_credentials"
	grantExchange    = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeAccess       = "urn:ietf:params:oauth:token-type:access_token"
)

// Broker is the authorization server of one configuration.
type Broker struct {
	Config   Config
	Door     Door
	Issuers  *upstream.Issuers
	Provider *upstream.Provider                                      // where people log in; nil: nowhere
	Proofs   *dpop.Verifier                                          // with nonces
	Admit    func(client *claviger.Client, from claviger.Facts) bool // whether a client that is known may ask once more; nil: always
	Log      *slog.Logger
	Now      func() time.Time // time.Now if nil
	Random   io.Reader        // crypto/rand if nil
}

func (b *Broker) now() time.Time {
	if b.Now != nil {
		return b.Now()
	}
	return time.Now()
}

// fresh returns a new value of 256 bits that nobody can guess, in base64url.
func (b *Broker) fresh() string {
	random := b.Random
	if random == nil {
		random = rand.Reader
	}
	var raw [32]byte
	if _, err := io.ReadFull(random, raw[:]); err != nil {
		panic("broker: no randomness: " + err.Error()) // crypto/rand never fails
	}
	return base64.RawURLEncoding.EncodeToString(raw[:])
}

// Request is one request to an endpoint, as it came.
type Request struct {
	Form          Form
	Path          string             // of the endpoint, of the constants above
	Method        string             // of HTTP
	Proofs        []string           // every DPoP field
	Authorization string             // field
	Certificate   *x509.Certificate  // of the client, verified; nil where there is none
	Caller        claviger.Principal // by that certificate; zero where it names none
	Facts         claviger.Facts     // of the connection
	UserAgent     string             // SHA-256 of the field, hex
}

// possession is the key whose possession a request shows: by a proof, or by
// the connection's certificate.
type possession struct {
	proof dpop.Proof // zero for a certificate
	x5t   string     // "" for a proof
}

// confirmation is cnf of a token that is bound to the key (RFC 7800; RFC 9449,
// 6.1; RFC 8705, 3.1).
func (p *possession) confirmation() map[string]any {
	if p.x5t != "" {
		return map[string]any{"x5t#S256": p.x5t}
	}
	return map[string]any{"jkt": p.proof.Thumbprint}
}

// tokenType is that of a token bound to the key (RFC 9449, 5; RFC 8705, 3).
func (p *possession) tokenType() string {
	if p.x5t != "" {
		return "Bearer"
	}
	return "DPoP"
}

// possesses finds the key of a request. Without a proof it is that of the
// client certificate, and without either there is none: nothing is issued.
func (b *Broker) possesses(ctx context.Context, r *Request) (possession, error) {
	if len(r.Proofs) == 0 && r.Certificate != nil {
		return possession{x5t: thumbprint(r.Certificate)}, nil
	}
	proof, err := b.Proofs.Check(ctx, dpop.Request{Proofs: r.Proofs, Method: r.Method, URL: b.Config.Issuer + r.Path})
	return possession{proof: proof}, err
}

// SharedReplays is the record of used proofs in a store that several servers
// share.
type SharedReplays struct{ Door Door }

// Burn implements [dpop.Replays].
func (s SharedReplays) Burn(ctx context.Context, thumbprint, jti string, until time.Time) (fresh bool, err error) {
	err = s.Door.PutOneTime(ctx, store.OneTime{Kind: "dpop", Hash: sha256.Sum256([]byte(thumbprint + " " + jti)), Ends: until})
	if errors.Is(err, claviger.Conflict) {
		return false, nil
	}
	return err == nil, err
}

// origins are those of the pages that a client has (RFC 6454).
func origins(client claviger.Client) []string {
	var out []string
	for _, redirect := range client.RedirectURIs {
		if u, err := url.Parse(redirect); err == nil && (u.Scheme == "https" || u.Scheme == "http") {
			out = append(out, u.Scheme+"://"+u.Host)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// FromPageOf reports whether an origin (RFC 6454) is that of a client's pages:
// of one of its redirect URIs. It authenticates nobody.
func (b *Broker) FromPageOf(ctx context.Context, ref, origin string) bool {
	if ref == "" || origin == "" {
		return false
	}
	client, err := b.client(ctx, ref)
	return err == nil && slices.Contains(origins(client), origin)
}
