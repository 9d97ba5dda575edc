package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/broker/jwt"
)

// Provider is the OpenID provider where people log in. This server is its
// relying party and sees no password.
type Provider struct {
	*issuer
	callback string
	sign     func(ctx context.Context, claims map[string]any) (string, error)
}

// Provider returns the issuer with a client_id, nil where none has one. sign
// makes a client assertion by the key of issued tokens.
func (s *Issuers) Provider(callback string, sign func(ctx context.Context, claims map[string]any) (string, error)) *Provider {
	for _, i := range s.all {
		if i.ClientID != "" {
			return &Provider{issuer: i, callback: callback, sign: sign}
		}
	}
	return nil
}

// Name is the provider's issuer.
func (p *Provider) Name() string { return p.Issuer }

// Login is one login, as it goes to the provider.
type Login struct {
	State, Nonce string
	Challenge    string // S256 of the verifier (RFC 7636)
	Prompt, Hint string // "" for none
	MaxAge       string // seconds since the person last proved who it is; "" for any
}

// Address is where the person's browser goes to log in.
func (p *Provider) Address(ctx context.Context, l Login) (string, error) {
	m, err := p.discover(ctx)
	if err != nil {
		return "", unavailable(err)
	}
	u, err := url.Parse(m.Authorize)
	if err != nil || m.Authorize == "" || m.Token == "" {
		return "", unavailable(errors.New("its metadata has no endpoints"))
	}
	scopes := p.Scopes
	if len(scopes) == 0 {
		scopes = []string{"profile"}
	}
	if !slices.Contains(scopes, "openid") {
		scopes = slices.Concat([]string{"openid"}, scopes)
	}
	q := u.Query()
	for name, value := range map[string]string{
		"response_type": "code", "client_id": p.ClientID, "redirect_uri": p.callback, "scope": strings.Join(scopes, " "),
		"state": l.State, "nonce": l.Nonce, "code_challenge": l.Challenge, "code_challenge_method": "S256",
		"prompt": l.Prompt, "login_hint": l.Hint, "max_age": l.MaxAge,
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// Person is who logged in.
type Person struct {
	Subject claviger.Subject
	SID     string // of the provider's own session; "" where it has none
}

// ErrRefused is the provider's refusal of a code.
var ErrRefused = errors.New("the OpenID provider refuses the code")

// Answered checks iss of an authorization response (RFC 9207): it is there
// where the provider's metadata says so, and names the provider.
func (p *Provider) Answered(ctx context.Context, iss string) error {
	m, err := p.discover(ctx)
	if err != nil {
		return unavailable(err)
	}
	if iss == "" && !m.SendsIss || iss == p.Issuer {
		return nil
	}
	return errors.New("the answer is of another issuer")
}

// Redeem takes the code of a login to the provider, and reads the ID token
// that comes back (OpenID Connect Core, 3.1.3). nonce and maxAge are those of
// the login.
func (p *Provider) Redeem(ctx context.Context, code, verifier, nonce, maxAge string) (Person, error) {
	m, err := p.discover(ctx)
	if err != nil {
		return Person{}, unavailable(err)
	}
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {p.callback}, "code_verifier": {verifier}}
	basic := ""
	if p.SecretFile != "" {
		if basic, err = p.secret(); err != nil {
			return Person{}, unavailable(err)
		}
	} else if err := p.assert(ctx, form); err != nil {
		return Person{}, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, m.Token, strings.NewReader(form.Encode()))
	if err != nil {
		return Person{}, unavailable(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if basic != "" {
		r.SetBasicAuth(url.QueryEscape(p.ClientID), url.QueryEscape(basic))
	}
	status, body, err := p.do(r)
	if err != nil {
		return Person{}, unavailable(err)
	}
	answer, err := jwt.Object(body)
	if status != http.StatusOK || err != nil {
		return Person{}, fmt.Errorf("%w: it answers %d %.64q", ErrRefused, status, answer.Text("error"))
	}
	return p.person(ctx, answer.Text("id_token"), nonce, maxAge)
}

// assert authenticates this server by private_key_jwt (RFC 7523; 7523bis: aud
// is the issuer alone).
func (p *Provider) assert(ctx context.Context, form url.Values) error {
	now := p.now()
	assertion, err := p.sign(ctx, map[string]any{
		"iss": p.ClientID, "sub": p.ClientID, "aud": p.Issuer, "jti": string(claviger.NewID(now)),
		"iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
	})
	if err != nil {
		return err
	}
	form.Set("client_id", p.ClientID)
	form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	form.Set("client_assertion", assertion)
	return nil
}

// person checks an ID token (OpenID Connect Core, 3.1.3.7).
func (p *Provider) person(ctx context.Context, idToken, nonce, maxAge string) (Person, error) {
	refuse := func(err error) (Person, error) { return Person{}, fmt.Errorf("read ID token: %w", err) }
	t, err := jwt.Parse(idToken, jwt.Algorithms())
	if err != nil {
		return refuse(err)
	}
	if err := t.Typed("", "jwt"); err != nil {
		return refuse(err)
	}
	if err := p.verify(ctx, &t); err != nil {
		return refuse(err)
	}
	c := t.Claims
	audiences, _ := c.Texts("aud")
	switch subject := c.Text("sub"); {
	case c.Text("iss") != p.Issuer:
		return refuse(errors.New("iss is another issuer"))
	case !slices.Contains(audiences, p.ClientID) || (len(audiences) > 1 || c["azp"] != nil) && c.Text("azp") != p.ClientID:
		return refuse(errors.New("it is for another client"))
	case nonce == "" || c.Text("nonce") != nonce:
		return refuse(errors.New("nonce is that of another login"))
	case c["iat"] == nil:
		return refuse(errors.New("it has no iat"))
	case subject == "" || len(subject) > claviger.MaxTextLength || len(c.Text("sid")) > claviger.MaxTextLength:
		return refuse(errors.New("sub is missing, or sub or sid are longer than 256 bytes"))
	}
	if err := c.Timely(p.now(), 0); err != nil {
		return refuse(err)
	}
	if maxAge != "" {
		at, ok := c.Time("auth_time")
		seconds, err := strconv.Atoi(maxAge)
		if !ok || err != nil || p.now().After(at.Add(time.Duration(seconds)*time.Second+jwt.Skew)) {
			return refuse(errors.New("the person logged in longer ago than max_age, or it does not say when"))
		}
	}
	return Person{Subject: claviger.Subject{Issuer: p.Issuer, ID: c.Text("sub"), Name: display(c)}, SID: c.Text("sid")}, nil
}

// Logout is what a logout token says (OpenID Connect Back-Channel Logout 1.0):
// the sessions of a subject, or the one session, or both.
type Logout struct {
	Issuer, Subject, SID string
	JTI                  string
	Ends                 time.Time // until when the token would be accepted
}

// logoutEvent is the member of events that makes a token one of logout.
const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// Logout checks a logout token (section 2.6). That its jti is new is for the
// caller to see to.
func (p *Provider) Logout(ctx context.Context, text string) (Logout, error) {
	t, err := jwt.Parse(text, jwt.Algorithms())
	if err != nil {
		return Logout{}, err
	}
	if err := t.Typed("logout+jwt"); err != nil {
		return Logout{}, err
	}
	if err := p.verify(ctx, &t); err != nil {
		return Logout{}, err
	}
	c := t.Claims
	out := Logout{Issuer: p.Issuer, Subject: c.Text("sub"), SID: c.Text("sid"), JTI: c.Text("jti")}
	switch {
	case c.Text("iss") != p.Issuer || !c.For(p.ClientID):
		return Logout{}, errors.New("it is of another issuer, or for another client")
	case c["nonce"] != nil:
		return Logout{}, errors.New("it has a nonce, which is for ID tokens")
	case c.Object("events").Object(logoutEvent) == nil:
		return Logout{}, errors.New("its events are not those of a logout")
	case out.Subject == "" && out.SID == "":
		return Logout{}, errors.New("it has neither sub nor sid")
	case out.JTI == "" || len(out.JTI) > claviger.MaxTextLength || c["iat"] == nil:
		return Logout{}, errors.New("its jti or iat is missing, or its jti is longer than 256 bytes")
	}
	if err := c.Timely(p.now(), 10*time.Minute); err != nil {
		return Logout{}, err
	}
	ends, _ := c.Time("exp")
	out.Ends = ends.Add(jwt.Skew)
	return out, nil
}
