package broker

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker/jwt"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// assertionType says that a client authenticates by a JWT (RFC 7523, 2.2).
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// longestAssertion is how far in the future exp of a client assertion may be.
const longestAssertion = 5 * time.Minute

// maxJTI is the longest jti of a token of another party, in bytes.
const maxJTI = 256

// caller is who sends a request: a client that is authenticated, or a public
// one that only says who it is, as the principal that it is registered for.
type caller struct {
	client claviger.Client
	by     claviger.Principal
	thumb  string // SHA-256 of the client certificate of the connection (RFC 8705, 3.1); "" where there is none
}

// authenticate finds the client of a request. A confidential one proves itself
// by private_key_jwt or by its certificate, and a certificate counts only
// where there is no assertion.
func (b *Broker) authenticate(ctx context.Context, r *Request) (caller, error) {
	form := r.Form
	if form.Get("client_secret") != "" {
		return caller{}, refuse(InvalidClient, "clients have no secrets here: use private_key_jwt or a client certificate")
	}
	ref := form.Get("client_id")
	var assertion jwt.Token
	if kind := form.Get("client_assertion_type"); kind != "" || form.Get("client_assertion") != "" {
		var err error
		if kind != assertionType {
			return caller{}, refuse(InvalidClient, "client_assertion_type is not %s", assertionType)
		}
		if assertion, err = jwt.Parse(form.Get("client_assertion"), dpop.Algorithms()); err != nil {
			return caller{}, refuse(InvalidClient, "client_assertion is not accepted: %v", err)
		}
		subject := assertion.Claims.Text("sub")
		if ref == "" {
			ref = subject
		}
		if ref != subject {
			return caller{}, refuse(InvalidClient, "client_id and sub of client_assertion are not the same")
		}
	}
	if ref == "" {
		return caller{}, refuse(InvalidClient, "the request names no client: send client_id")
	}
	client, err := b.client(ctx, ref)
	if err != nil {
		return caller{}, err
	}
	who := caller{client: client, thumb: thumbprint(r.Certificate), by: claviger.Principal{ID: client.Principal, Facts: r.Facts}}
	switch {
	case assertion.Claims != nil:
		err = b.checkAssertion(ctx, client, ref, &assertion)
		who.by.Facts.Method = "private_key_jwt"
	case client.Kind == claviger.Public:
		who.by.Facts.Method = "public-client"
	case r.Caller.ID == client.Principal && r.Caller.ID != "":
		who.by = r.Caller
	case who.thumb != "" && slices.Contains(client.Certificates, who.thumb):
		who.by.Facts.Method = "mtls"
	default:
		err = refuse(InvalidClient, "the client has to authenticate: by private_key_jwt, or by the certificate that it is registered with")
	}
	if err == nil && b.Admit != nil && !b.Admit(&client, r.Facts) {
		err = claviger.Errorf(claviger.Exhausted, "too many requests of this client", "slow down and try again")
	}
	return who, err
}

// client finds one that is registered and not disabled, by its id or name. An
// unknown one is refused in the same words as one that does not prove itself.
func (b *Broker) client(ctx context.Context, ref string) (claviger.Client, error) {
	client, err := b.Door.Client(ctx, ref)
	if errors.Is(err, claviger.NotFound) || errors.Is(err, claviger.Invalid) || err == nil && !client.Disabled.IsZero() {
		return claviger.Client{}, refuse(InvalidClient, "there is no such client, or it is disabled").because(err)
	}
	return client, err
}

// checkAssertion checks a client assertion (RFC 7523, 3, as 7523bis narrows
// it: aud is this server's issuer and nothing else), and that it is new.
func (b *Broker) checkAssertion(ctx context.Context, client claviger.Client, ref string, t *jwt.Token) error {
	keys, err := jwt.ParseKeys(client.JWKS)
	if err != nil {
		return refuse(InvalidClient, "the client is registered without keys: it has to authenticate by its certificate").because(err)
	}
	c := t.Claims
	audiences, _ := c.Texts("aud")
	jti := c.Text("jti")
	switch {
	case t.Typed("", "jwt", "client-authentication+jwt") != nil:
		return refuse(InvalidClient, "client_assertion has another typ")
	case c.Text("iss") != ref || c.Text("sub") != ref:
		return refuse(InvalidClient, "iss and sub of client_assertion are not the client")
	case len(audiences) != 1 || audiences[0] != b.Config.Issuer:
		return refuse(InvalidClient, "aud of client_assertion is not %s alone", b.Config.Issuer)
	case jti == "" || len(jti) > maxJTI:
		return refuse(InvalidClient, "jti of client_assertion is missing, or longer than %d bytes", maxJTI)
	}
	now := b.now()
	if err := c.Timely(now, longestAssertion); err != nil {
		return refuse(InvalidClient, "client_assertion is not accepted: %v", err)
	}
	if err := t.Verify(keys); err != nil {
		return refuse(InvalidClient, "client_assertion is not accepted: %v", err)
	}
	ends, _ := c.Time("exp")
	return b.first(ctx, keeper.OneTimeAssertion, string(client.ID)+" "+jti, ends.Add(jwt.Skew), refuse(InvalidClient, "client_assertion was used before: each request needs a new one"))
}

// first records that something was presented, and returns the refusal where it
// had been.
func (b *Broker) first(ctx context.Context, kind, what string, ends time.Time, refusal error) error {
	err := b.Door.PutOneTime(ctx, store.OneTime{Kind: kind, Hash: sha256.Sum256([]byte(what)), Ends: ends})
	if errors.Is(err, claviger.Conflict) {
		return refusal
	}
	return err
}

// permits refuses a grant type that the client is not registered for.
func (c *caller) permits(grantType string) error {
	if !slices.Contains(c.client.GrantTypes, grantType) {
		return refuse(UnauthorizedClient, "the client is not registered for this grant type")
	}
	return nil
}

// thumbprint is x5t#S256 of a certificate, "" where there is none.
func thumbprint(cert *x509.Certificate) string {
	if cert == nil {
		return ""
	}
	sum := sha256.Sum256(cert.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// scopes returns those that are granted: the ones that are asked for, each of
// which has to be allowed, or all that are allowed where none is.
func scopes(asked string, allowed []string) ([]string, error) {
	list := words(asked)
	if len(list) == 0 {
		return allowed, nil
	}
	for _, scope := range list {
		if !slices.Contains(allowed, scope) {
			return nil, refuse(InvalidScope, "the scope %.64s is none that may be given here", scope)
		}
	}
	return list, nil
}

// audiences returns what a token is for: what is asked for, each of which has
// to match a pattern, or the one audience there is where none is asked for.
func audiences(asked, allowed []string) ([]string, error) {
	if len(asked) == 0 {
		if len(allowed) == 1 && !strings.HasSuffix(allowed[0], "*") {
			return allowed, nil
		}
		return nil, refuse(InvalidTarget, "the request does not say what the token is for: send resource")
	}
	for _, target := range asked {
		if !claviger.MatchAudience(allowed, target) {
			return nil, refuse(InvalidTarget, "the client gets no tokens for %.128s", target)
		}
	}
	return asked, nil
}
