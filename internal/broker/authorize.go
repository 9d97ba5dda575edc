package broker

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/broker/upstream"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// How long things may be presented that are presented once.
const (
	lifeRequest = time.Minute      // a pushed request (RFC 9126, 2.2)
	lifeLogin   = 10 * time.Minute // a login at the OpenID provider
	lifeCode    = time.Minute      // an authorization code (RFC 6749, 4.1.2: 10 minutes at most)
	lifeUsed    = 10 * time.Minute // that a code was used
)

// requestURN begins every request_uri (RFC 9126, 2.2).
const requestURN = "urn:ietf:params:oauth:request_uri:"

// authorization is a request to be let in, as a client made it (RFC 6749,
// 4.1.1).
type authorization struct {
	Client      claviger.ID
	RedirectURI string
	Told        bool // the client named the redirect URI, and has to repeat it
	State       string
	Challenge   string // S256 (RFC 7636)
	JKT         string // of the key that the code is bound to (RFC 9449, 10); "" where the client does not say
	Scopes      []string
	Audiences   []string
	Prompt      string
	Hint        string
	MaxAge      string
}

// Pushed is the answer to a pushed authorization request (RFC 9126, 2.2).
type Pushed struct {
	RequestURI string `json:"request_uri"`
	ExpiresIn  int    `json:"expires_in"` // seconds
}

// Push keeps an authorization request until the browser comes with its name.
func (b *Broker) Push(ctx context.Context, r *Request) (Pushed, error) {
	jkt := ""
	if len(r.Proofs) > 0 {
		key, err := b.possesses(ctx, r)
		if err != nil {
			return Pushed{}, err
		}
		jkt = key.proof.Thumbprint
	}
	who, err := b.authenticate(ctx, r)
	if err != nil {
		return Pushed{}, err
	}
	if r.Form.Get("request_uri") != "" {
		return Pushed{}, refuse(InvalidRequest, "request_uri is what this endpoint gives") // RFC 9126, 2.1
	}
	redirect, err := redirectURI(&who.client, r.Form)
	if err != nil {
		return Pushed{}, err
	}
	a, err := b.read(&who.client, r.Form, redirect)
	if err != nil {
		return Pushed{}, err
	}
	if jkt != "" && a.JKT != "" && jkt != a.JKT {
		return Pushed{}, refuse(InvalidRequest, "dpop_jkt names another key than the DPoP field proves")
	}
	if jkt != "" {
		a.JKT = jkt
	}
	name := b.fresh()
	if err := b.keep(ctx, keeper.OneTimePushed, name, lifeRequest, a); err != nil {
		return Pushed{}, err
	}
	return Pushed{RequestURI: requestURN + name, ExpiresIn: int(lifeRequest / time.Second)}, nil
}

// keep stores a document under the hash of a name that is presented once.
func (b *Broker) keep(ctx context.Context, kind, name string, life time.Duration, document any) error {
	doc, err := json.Marshal(document)
	if err != nil {
		return err
	}
	return b.Door.PutOneTime(ctx, store.OneTime{Kind: kind, Hash: sha256.Sum256([]byte(name)), Ends: b.now().Add(life), Document: doc})
}

// take takes such a document, once. ok is false where there is none.
func (b *Broker) take(ctx context.Context, kind, name string, document any) (ok bool, err error) {
	o, err := b.Door.TakeOneTime(ctx, kind, sha256.Sum256([]byte(name)))
	if errors.Is(err, claviger.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, json.Unmarshal(o.Document, document)
}

// redirectURI is where the browser goes with the answer: one of the client's,
// letter by letter. Before it is known no error goes anywhere.
func redirectURI(client *claviger.Client, form Form) (string, error) {
	asked := form.Get("redirect_uri")
	if asked == "" && len(client.RedirectURIs) == 1 {
		return client.RedirectURIs[0], nil
	}
	if !slices.Contains(client.RedirectURIs, asked) {
		return "", refuse(InvalidRequest, "redirect_uri is none that the client is registered with")
	}
	return asked, nil
}

// read checks an authorization request whose redirect URI holds.
func (b *Broker) read(client *claviger.Client, form Form, redirect string) (authorization, error) {
	a := authorization{Client: client.ID, RedirectURI: redirect, Told: form.Get("redirect_uri") != "", State: form.Get("state"),
		Challenge: form.Get("code_challenge"), JKT: form.Get("dpop_jkt"), Prompt: form.Get("prompt"), Hint: form.Get("login_hint"), MaxAge: form.Get("max_age")}
	switch {
	case !slices.Contains(client.GrantTypes, grantCode):
		return a, refuse(UnauthorizedClient, "the client is not registered for authorization codes")
	case b.Provider == nil:
		return a, refuse(UnauthorizedClient, "nobody can log in here: no OpenID provider is configured")
	case form.Get("request") != "":
		return a, refuse("request_not_supported", "request objects are not taken: push the request to %s", PARPath)
	case form.Get("response_type") != "code":
		return a, refuse("unsupported_response_type", "response_type is not code")
	case form.Get("response_mode") != "" && form.Get("response_mode") != "query":
		return a, refuse(InvalidRequest, "response_mode is not query")
	case form.Get("code_challenge_method") != "S256" || !isHash(a.Challenge):
		return a, refuse(InvalidRequest, "code_challenge is missing or no hash, or code_challenge_method is not S256 (RFC 7636)")
	case a.JKT != "" && !isHash(a.JKT):
		return a, refuse(InvalidRequest, "dpop_jkt is no thumbprint")
	case len(a.State) > maxState || len(a.Hint) > claviger.MaxTextLength || len(a.MaxAge) > 9 || strings.Trim(a.MaxAge, "0123456789") != "":
		return a, refuse(InvalidRequest, "state, login_hint or max_age is too long, or is no number of seconds")
	}
	for _, p := range words(a.Prompt) {
		if !slices.Contains([]string{"none", "login", "consent", "select_account"}, p) {
			return a, refuse(InvalidRequest, "prompt is none that is known")
		}
	}
	var err error
	if a.Scopes, err = scopes(form.Get("scope"), client.Scopes); err != nil {
		return a, err
	}
	targets, err := form.targets()
	if err == nil {
		a.Audiences, err = audiences(targets, client.Audiences)
	}
	return a, err
}

// isHash reports a SHA-256 in base64url.
func isHash(s string) bool {
	sum, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(sum) == sha256.Size && len(s) == 43
}

// login is one that is under way at the OpenID provider.
type login struct {
	Authorization authorization
	Browser       string // SHA-256 of the browser's cookie
}

// Authorize answers a browser that a client sent: it returns where the browser
// goes next. browser is the secret of the browser's cookie, made anew where it
// has none: a login that began in one browser ends in it and in no other.
// An error is for the person to read, since there is nowhere to send it.
func (b *Broker) Authorize(ctx context.Context, form Form, browser string) (to, cookie string, err error) {
	a, err := b.requested(ctx, form)
	if err != nil {
		if a.RedirectURI == "" {
			return "", "", err
		}
		return b.answer(&a, url.Values{}, err), browser, nil
	}
	if !isHash(browser) {
		browser = b.fresh()
	}
	state := b.fresh()
	to, err = b.Provider.Address(ctx, upstream.Login{State: state, Nonce: derive("nonce", browser, state),
		Challenge: hashText(derive("pkce", browser, state)), Prompt: a.Prompt, Hint: a.Hint, MaxAge: a.MaxAge})
	if err == nil {
		err = b.keep(ctx, keeper.OneTimeLogin, state, lifeLogin, login{Authorization: a, Browser: hashText(browser)})
	}
	if err != nil {
		return b.answer(&a, url.Values{}, err), browser, nil
	}
	return to, browser, nil
}

// requested is the authorization request of a browser: pushed before, or in
// its query. With an error it has a redirect URI where the error may go there.
func (b *Broker) requested(ctx context.Context, form Form) (authorization, error) {
	client, err := b.client(ctx, form.Get("client_id"))
	if err != nil {
		return authorization{}, err
	}
	if uri := form.Get("request_uri"); uri != "" {
		var a authorization
		name, ours := strings.CutPrefix(uri, requestURN)
		ok, err := ours, error(nil)
		if ours {
			ok, err = b.take(ctx, keeper.OneTimePushed, name, &a)
		}
		if err != nil {
			return authorization{}, err
		}
		if !ok || a.Client != client.ID {
			return authorization{}, refuse(InvalidRequest, "request_uri is unknown, was used or has expired: begin again")
		}
		return a, nil
	}
	redirect, err := redirectURI(&client, form)
	if err != nil {
		return authorization{}, err
	}
	return b.read(&client, form, redirect)
}

// derive makes a secret of a login from what its browser has and what its
// address has, so that none of them lies in the store.
func derive(what, browser, state string) string {
	return hashText("claviger login\x00" + what + "\x00" + browser + "\x00" + state)
}

func hashText(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// answer is the address of the client with the answer to its request, or the
// error (RFC 6749, 4.1.2; RFC 9207, 2).
func (b *Broker) answer(a *authorization, q url.Values, err error) string {
	if err != nil {
		e := Outward(err)
		code := e.Code
		if code == InvalidGrant || code == InvalidClient {
			code = AccessDenied
		}
		q = url.Values{"error": {code}, "error_description": {Printable(e.Msg)}}
		b.Log.Info("a login ends with an error", "client", a.Client, "error", err)
	}
	if a.State != "" {
		q.Set("state", a.State)
	}
	q.Set("iss", b.Config.Issuer)
	return withQuery(a.RedirectURI, q)
}

// withQuery adds parameters to an address that may have some.
func withQuery(address string, q url.Values) string {
	sep := "?"
	if strings.Contains(address, "?") {
		sep = "&"
	}
	return address + sep + q.Encode()
}

// Printable is a text in the letters of error_description (RFC 6749, 5.2).
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '\''
		}
		return r
	}, s)
}

// redeemable is what an authorization code stands for.
type redeemable struct {
	Authorization authorization
	Person        upstream.Person
	Source        claviger.Source
}

// Callback takes what the OpenID provider answered to a browser, and returns
// where the browser goes with the code for the client. An error is for the
// person to read.
func (b *Broker) Callback(ctx context.Context, form Form, browser string, source claviger.Source) (to string, err error) {
	if b.Provider == nil {
		return "", refuse(InvalidRequest, "nobody logs in here")
	}
	var l login
	state := form.Get("state")
	ok, err := b.take(ctx, keeper.OneTimeLogin, state, &l)
	if err != nil {
		return "", err
	}
	if !ok || subtle.ConstantTimeCompare([]byte(l.Browser), []byte(hashText(browser))) != 1 {
		return "", refuse(InvalidRequest, "this login is unknown, has ended, or began in another browser: begin again")
	}
	a := &l.Authorization
	if err := b.Provider.Answered(ctx, form.Get("iss")); err != nil {
		return "", refuse(InvalidRequest, "the answer is not the OpenID provider's: begin again").because(err)
	}
	if code := form.Get("error"); code != "" {
		return b.answer(a, url.Values{}, providerError(code)), nil
	}
	person, err := b.Provider.Redeem(ctx, form.Get("code"), derive("pkce", browser, state), derive("nonce", browser, state), a.MaxAge)
	if err != nil {
		if claviger.CodeOf(err) == claviger.Internal {
			err = refuse(AccessDenied, "the OpenID provider did not say who logged in").because(err)
		}
		return b.answer(a, url.Values{}, err), nil
	}
	code := b.fresh()
	if err := b.keep(ctx, keeper.OneTimeCode, code, lifeCode, redeemable{Authorization: *a, Person: person, Source: source}); err != nil {
		return b.answer(a, url.Values{}, err), nil
	}
	return b.answer(a, url.Values{"code": {code}}, nil), nil
}

// providerError hands on an error of the provider: those that a client can act
// on as they are, any other as access_denied.
func providerError(code string) error {
	for _, known := range []string{"login_required", "interaction_required", "consent_required", "account_selection_required", "temporarily_unavailable"} {
		if code == known {
			return refuse(code, "so the OpenID provider says")
		}
	}
	return refuse(AccessDenied, "the OpenID provider did not let the person in")
}
