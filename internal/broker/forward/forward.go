// Package forward answers a reverse proxy that asks, for each request, whether
// it may pass: nginx with auth_request, Traefik with forwardAuth, Envoy with
// ext_authz over HTTP. The application behind the proxy then needs no code.
//
// It owns how each proxy tells what the client asked for, and what is answered.
// It promises that a proof is checked against the method and the URL of the
// client's request and not of the proxy's own, that the scheme and host of that
// URL come from the configuration alone, and that whatever goes wrong is
// answered with a status that no proxy takes for consent. It must never believe
// a header field of somebody who is not the application's proxy, and never read
// a body.
package forward

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"claviger.dev"
	"claviger.dev/dpop"
	tokens "claviger.dev/internal/broker/status"
)

// Prefix is the path below which each application has its endpoint.
const Prefix = "/forward-auth/"

// The proxies, by how they tell the client's request.
const (
	Nginx   = "nginx"   // X-Original-Method and X-Original-URI, as its configuration sets them
	Traefik = "traefik" // X-Forwarded-Method, -Proto, -Host and -Uri
	Envoy   = "envoy"   // method and path of the question itself, below the path prefix
)

// The header fields of an answer that lets a request pass. The proxy has to
// replace what the client sent under these names.
const (
	HeaderSubject = "X-Claviger-Subject" // sub
	HeaderClient  = "X-Claviger-Client"  // client_id
	HeaderSession = "X-Claviger-Session" // sid; empty where the token belongs to no session
	HeaderScope   = "X-Claviger-Scope"   // separated by spaces
)

// App is one application behind a proxy: a table [[forward_auth]] of the
// configuration, in TOML.
type App struct {
	// Name is the last part of the endpoint's path, after Prefix: a-z, 0-9 and
	// "-". Required.
	Name string `toml:"name"`
	// Base is where clients reach the application: scheme and host. Required.
	Base string `toml:"base"`
	// Proxy is "nginx", "traefik" or "envoy". Required.
	Proxy string `toml:"proxy"`
	// Principals are who the proxy is, by name or id, and Addresses where it comes
	// from, as "10.0.0.9/32". One of them is required: others are refused.
	Principals []string       `toml:"principals"`
	Addresses  []netip.Prefix `toml:"addresses"`
	// Audience is whom the tokens are for. Empty: Base.
	Audience string `toml:"audience"`
	// Scopes are those that a token needs, each of them. Empty: none.
	Scopes []string `toml:"scopes"`
	// Source is the header field in which the proxy tells the client's address:
	// its last element. The proxy has to set it, whatever the client sent. Empty:
	// the address is not known.
	Source string `toml:"source"`
}

// Caller is who asks.
type Caller struct {
	Principal claviger.Principal // zero where it did not prove who it is
	Address   netip.Addr         // of the connection; zero on the local socket
}

// Parts are what the endpoints stand on.
type Parts struct {
	Issuer   string                                // of the tokens
	Keys     func(context.Context) ([]byte, error) // the issuer's key set
	Status   func(context.Context, Request) error  // nil while the token's session lives; claviger.Unavailable or Stale where that is not known
	Stale    func(context.Context, Request)        // told of proofs that were refused because their nonce has ended; nil: nobody
	Verifier *dpop.Verifier                        // of proofs: with nonces, and the record of those that were used
	Outcome  func(app string, status int)          // told of each answer; nil: nobody
}

// Request is a client's request with a good token, as the proxy told it.
type Request struct {
	Token    *dpop.Token
	Audience string // of the application
	Method   string
	Source   netip.Addr // zero where the proxy does not tell it
}

// Forward are the endpoints of all applications. It may be used concurrently.
type Forward struct {
	apps    map[string]*guarded
	outcome func(string, int)
}

type guarded struct {
	App
	base *url.URL
	pass http.Handler // of the client's request, as the proxy told it
}

// New makes the endpoints of applications that Validate accepts.
func New(parts Parts, apps []App) (*Forward, error) {
	if err := Validate(apps); err != nil {
		return nil, err
	}
	f := &Forward{apps: make(map[string]*guarded, len(apps)), outcome: parts.Outcome}
	for _, app := range apps {
		base, _ := app.base() // Validate saw it
		g := &guarded{App: app, base: base}
		access := &dpop.Tokens{Issuer: parts.Issuer, Audience: cmp.Or(app.Audience, base.Scheme+"://"+base.Host), Keys: parts.Keys, Now: parts.Verifier.Now}
		resource := &dpop.Resource{Verifier: parts.Verifier, Base: base, Token: access.Access, Source: g.source,
			Status: func(ctx context.Context, a dpop.Access) error {
				return told(parts.Status(ctx, requestOf(access.Audience, a)))
			},
		}
		if parts.Stale != nil {
			resource.Stale = func(ctx context.Context, a dpop.Access) { parts.Stale(ctx, requestOf(access.Audience, a)) }
		}
		g.pass = resource.Guard(g.consent)
		f.apps[app.Name] = g
	}
	return f, nil
}

// Validate checks the configuration of applications. An error is
// [claviger.Invalid], and says which one is wrong.
func Validate(apps []App) error {
	seen := map[string]bool{}
	for _, a := range apps {
		_, base := a.base()
		switch {
		case a.Name == "" || strings.ContainsFunc(a.Name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }):
			return a.wrong("its name is not made of a-z, 0-9 and -")
		case seen[a.Name]:
			return a.wrong("there are two of this name")
		case !base:
			return a.wrong("base is not a scheme and a host, such as https://shop.example.com")
		case !slices.Contains([]string{Nginx, Traefik, Envoy}, a.Proxy):
			return a.wrong("proxy is not nginx, traefik or envoy")
		case len(a.Principals) == 0 && len(a.Addresses) == 0:
			return a.wrong("it does not say who the proxy is, and whoever could ask could also say what for")
		}
		seen[a.Name] = true
	}
	return nil
}

func (a *App) base() (u *url.URL, ok bool) {
	u, err := url.Parse(a.Base)
	ok = err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && strings.Trim(u.Path, "/") == "" &&
		u.User == nil && u.RawQuery == "" && u.Fragment == ""
	return u, ok
}

func (a *App) wrong(what string) error {
	return claviger.Errorf(claviger.Invalid, fmt.Sprintf("forward_auth of the application %q: %s", a.Name, what), "see the guide of the proxy")
}

func requestOf(audience string, a dpop.Access) Request {
	return Request{Token: a.Claims.(*dpop.Token), Audience: audience, Method: a.Use.Method, Source: a.Use.Source}
}

// told tells what a Resource wants to know of the errors of this module.
func told(err error) error {
	if err != nil && !tokens.Ended(err) {
		return &dpop.Error{Code: dpop.Unavailable, Msg: "whether the session lives cannot be known now: try again", Err: err}
	}
	return err
}

// source is the address that the proxy tells of the client. Of a list, the last
// is what the proxy itself saw.
func (a *guarded) source(r *http.Request) netip.Addr {
	values := r.Header.Values(a.Source)
	if a.Source == "" || len(values) == 0 {
		return netip.Addr{}
	}
	last := values[len(values)-1]
	from, _ := netip.ParseAddr(strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:]))
	return from.Unmap().WithZone("")
}

// Serve answers one question.
func (f *Forward) Serve(w http.ResponseWriter, r *http.Request, by Caller) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), Prefix), "/")
	app, ok := f.apps[name]
	out := &answer{ResponseWriter: w}
	w.Header().Set("Cache-Control", "no-store") // a proxy that caches must not answer for the next request
	switch {
	case !ok:
		name = "" // whatever it was, it is no label
		out.refuse("there is no such application here")
	case !app.trusts(by):
		out.refuse("this caller is not the application's proxy")
	default:
		original, err := app.original(r, "/"+rest)
		if err != nil {
			out.refuse(err.Error())
			break
		}
		app.pass.ServeHTTP(out, original)
	}
	if f.outcome != nil {
		f.outcome(name, out.status)
	}
}

// trusts reports whether a caller is the application's proxy.
func (a *App) trusts(by Caller) bool {
	if by.Principal.ID != "" && (slices.Contains(a.Principals, string(by.Principal.ID)) || slices.Contains(a.Principals, by.Principal.Name)) {
		return true
	}
	return by.Address.IsValid() && slices.ContainsFunc(a.Addresses, func(p netip.Prefix) bool { return p.Contains(by.Address.Unmap()) })
}

// original is the client's request: its method, its path and its header, and
// nothing else of it.
func (a *guarded) original(r *http.Request, rest string) (*http.Request, error) {
	var method, target string
	var err error
	switch a.Proxy {
	case Envoy:
		method, target = r.Method, rest
	case Nginx:
		method, target, err = fields(r.Header, "X-Original-Method", "X-Original-Uri")
	case Traefik:
		method, target, err = fields(r.Header, "X-Forwarded-Method", "X-Forwarded-Uri")
		if err == nil && !a.sameHost(r.Header) {
			err = errors.New("the request was for another scheme or host than the application's")
		}
	}
	if err != nil {
		return nil, err
	}
	u, err := url.ParseRequestURI(target)
	if err != nil || !strings.HasPrefix(target, "/") {
		return nil, errors.New("the request's path cannot be compared with htu")
	}
	// Browsers resolve dot segments before they send. Of what is left, such as
	// "/a//../b", proxies and RFC 3986 make different paths.
	if slices.ContainsFunc(strings.Split(u.Path, "/"), func(s string) bool { return s == "." || s == ".." }) {
		return nil, errors.New("the request's path has dot segments: send it without")
	}
	return (&http.Request{Method: method, URL: &url.URL{Path: u.Path, RawPath: u.RawPath}, Header: r.Header}).WithContext(r.Context()), nil
}

// fields returns two fields that a proxy sets, each once.
func fields(h http.Header, method, target string) (string, string, error) {
	methods, targets := h.Values(method), h.Values(target)
	if len(methods) != 1 || len(targets) != 1 || methods[0] == "" {
		return "", "", fmt.Errorf("the proxy has to set %s and %s, each once", method, target)
	}
	return methods[0], targets[0], nil
}

// sameHost compares what Traefik saw with the configuration: a router that
// serves several hosts must not lend one host's token to another.
func (a *guarded) sameHost(h http.Header) bool {
	proto, host, err := fields(h, "X-Forwarded-Proto", "X-Forwarded-Host")
	if err != nil {
		return false
	}
	// Of a WebSocket Traefik says ws or wss; the client's proof says what its fetch said.
	proto = strings.Replace(proto, "ws", "http", 1)
	saw, ok := dpop.Target(proto + "://" + host)
	is, _ := dpop.Target(a.Base)
	return ok && saw == is
}

// consent lets a request pass whose token and proof are good, if the token's
// scopes are enough.
func (a *guarded) consent(w http.ResponseWriter, _ *http.Request, caller dpop.Caller) {
	token := caller.Claims.(*dpop.Token)
	h := w.Header()
	for _, s := range a.Scopes {
		if !slices.Contains(token.Scopes, s) {
			h.Set("WWW-Authenticate", `DPoP error="insufficient_scope", scope="`+strings.Join(a.Scopes, " ")+`"`)
			w.WriteHeader(http.StatusForbidden)
			return
		}
	}
	h.Set(HeaderSubject, visible(token.Subject))
	h.Set(HeaderClient, visible(token.Client))
	h.Set(HeaderSession, visible(token.Session))
	h.Set(HeaderScope, visible(strings.Join(token.Scopes, " ")))
	w.WriteHeader(http.StatusOK)
}

// visible percent-encodes what is no visible ASCII character or space, so that
// a header field holds it, and "%" itself, so that there is one way back.
func visible(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// answer knows its status, and says 401 where a resource server would say 400:
// nginx takes 401 and 403 for refusals, and every other one for a fault.
type answer struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements [http.ResponseWriter].
func (a *answer) WriteHeader(status int) {
	if status == http.StatusBadRequest {
		status = http.StatusUnauthorized
	}
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) refuse(why string) {
	a.Header().Set("Content-Type", "text/plain; charset=utf-8")
	a.WriteHeader(http.StatusForbidden)
	_, _ = a.Write([]byte(why + "\n")) // the proxy may be gone
}
