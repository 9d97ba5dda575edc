package dpop

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Access is what an access token allows, as the resource server found it: by
// the token's signature, or by introspection (RFC 7662).
type Access struct {
	Thumbprint string // cnf.jkt; a token without one is refused
	Claims     any    // whatever the handler needs of the token
	Use        Use    // what it came with; Resource sets it
}

// Use is the request that a token came with.
type Use struct {
	Method string
	URL    string     // as the client knows it
	Source netip.Addr // of the client, where Resource.Source tells it
}

// Resource guards the handlers of a resource server (RFC 9449, 7). Nothing but
// a token that is bound, with a proof by its key, comes through.
type Resource struct {
	Verifier *Verifier

	// Base is where clients reach this server: scheme, host and, where a proxy
	// takes a part of the path away, that part. It is configured, because what a
	// request says of its host came from its sender.
	Base *url.URL

	// Token finds out what a token allows: issuer, signature, audience and time
	// are its business. Its error means that the token is not good; one that is
	// an *Error of Unavailable, that this cannot be known now.
	Token func(ctx context.Context, token string) (Access, error)

	// Status, if there is one, is asked last, with the token and its proof good:
	// an error means that the session behind the token has ended. Without it a
	// token that was revoked is good until it ends by itself.
	Status func(ctx context.Context, access Access) error

	// Stale, if there is one, is told of each proof that the token's key did make,
	// and that was refused because its nonce has ended. A client has a few of
	// them after a rest; many were minted ahead of time.
	Stale func(ctx context.Context, access Access)

	// Source, if there is one, tells Status and Stale where a request comes from:
	// the address of the connection, or what a proxy that is trusted says of it.
	Source func(r *http.Request) netip.Addr

	// MetadataURL is the resource's metadata (RFC 9728), told in challenges; may be "".
	MetadataURL string
}

// Caller is who a request comes from, as far as its token and proof show.
type Caller struct {
	Access
	Proof Proof
}

// Handler is an http.Handler that is told the caller.
type Handler func(w http.ResponseWriter, r *http.Request, caller Caller)

// Guard returns a handler that answers what is not allowed itself.
func (s *Resource) Guard(next Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		use := Use{Method: r.Method, URL: s.publicURL(r)}
		if s.Source != nil {
			use.Source = s.Source(r)
		}
		caller, err := s.check(r.Context(), r.Header, use)
		if nonceErr := s.tellNonce(w, r, caller.Proof.Nonce, err); nonceErr != nil {
			err = nonceErr
		}
		if err != nil {
			s.refuse(w, err)
			return
		}
		next(w, r, caller)
	})
}

// Metadata serves what clients may know of the resource (RFC 9728, 2; RFC 9449,
// 5): mount it for MetadataURL, whose path is /.well-known/oauth-protected-resource
// where the resource is a whole host. issuers are the authorization servers whose
// tokens are good here. Pages of other origins may read it.
func (s *Resource) Metadata(resource string, issuers ...string) http.Handler {
	body, err := json.Marshal(struct {
		Resource   string   `json:"resource"`
		Issuers    []string `json:"authorization_servers,omitempty"`
		Methods    []string `json:"bearer_methods_supported"`
		Algorithms []string `json:"dpop_signing_alg_values_supported"`
		Required   bool     `json:"dpop_bound_access_tokens_required"`
	}{resource, issuers, []string{"header"}, s.Verifier.algorithms(), true})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		switch {
		case err != nil: // impossible: strings and a boolean
			w.WriteHeader(http.StatusInternalServerError)
			return
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		h.Set("Content-Type", "application/json")
		h.Set("Cache-Control", "max-age=300")
		h.Set("Access-Control-Allow-Origin", "*")
		_, _ = w.Write(body) // the client may be gone
	})
}

// publicURL is the URL of a request as its client knows it.
func (s *Resource) publicURL(r *http.Request) string {
	return s.Base.Scheme + "://" + s.Base.Host + strings.TrimSuffix(s.Base.EscapedPath(), "/") + r.URL.EscapedPath()
}

// Check judges a request by its header fields, its method and its public URL.
// Every error is an *Error.
func (s *Resource) Check(ctx context.Context, header http.Header, method, publicURL string) (Caller, error) {
	return s.check(ctx, header, Use{Method: method, URL: publicURL})
}

func (s *Resource) check(ctx context.Context, header http.Header, use Use) (Caller, error) {
	token, err := credentials(header)
	if err != nil {
		return Caller{}, err
	}
	access, err := s.Token(ctx, token)
	if CodeOf(err) != "" {
		return Caller{}, err
	}
	if err != nil {
		return Caller{}, &Error{Code: InvalidToken, Msg: "the access token is not good here", Err: err}
	}
	if access.Thumbprint == "" {
		return Caller{}, &Error{Code: InvalidToken, Msg: "the access token is bound to no key"}
	}
	access.Use = use
	proof, err := s.Verifier.Check(ctx, Request{
		Proofs: header.Values("DPoP"), Method: use.Method, URL: use.URL, Token: token, Thumbprint: access.Thumbprint,
	})
	if err != nil {
		if s.Stale != nil && proof.Nonce != "" {
			s.Stale(ctx, access)
		}
		return Caller{}, err
	}
	if s.Status != nil {
		if err := s.Status(ctx, access); CodeOf(err) != "" {
			return Caller{}, err
		} else if err != nil {
			return Caller{}, &Error{Code: InvalidToken, Msg: "the session of the access token has ended", Err: err}
		}
	}
	return Caller{access, proof}, nil
}

var errNoToken = errors.New("no credentials")

// credentials returns the token of the one Authorization field.
func credentials(header http.Header) (string, error) {
	fields := header.Values("Authorization")
	if len(fields) == 0 {
		return "", &Error{Code: InvalidToken, Msg: "the request has no access token", Err: errNoToken}
	}
	if len(fields) > 1 {
		return "", &Error{Code: InvalidRequest, Msg: "the request has more than one Authorization field"}
	}
	scheme, token, _ := strings.Cut(fields[0], " ")
	token = strings.TrimLeft(token, " ")
	if strings.EqualFold(scheme, "Bearer") {
		return "", &Error{Code: InvalidToken, Msg: "tokens are bound to a key here: send this one with the scheme DPoP, and a proof"}
	}
	if !strings.EqualFold(scheme, "DPoP") || !isToken68(token) {
		return "", &Error{Code: InvalidRequest, Msg: "the Authorization field is not DPoP and one token"}
	}
	return token, nil
}

// isToken68 is RFC 9110, 11.2.
func isToken68(s string) bool {
	body := strings.TrimRight(s, "=")
	for i := range len(body) {
		if c := body[i]; !unreserved(c) && c != '+' && c != '/' {
			return false
		}
	}
	return body != "" && len(s) <= maxToken
}

// tellNonce gives the client the newest nonce, where it does not have it.
func (s *Resource) tellNonce(w http.ResponseWriter, r *http.Request, used string, err error) error {
	nonces := s.Verifier.Nonces
	if nonces == nil || err != nil && CodeOf(err) != UseNonce {
		return nil
	}
	nonce, errNonce := nonces.Current(r.Context(), s.Verifier.now())
	if errNonce != nil || nonce == used {
		return errNonce
	}
	h := w.Header()
	h.Set("DPoP-Nonce", nonce)
	h.Set("Cache-Control", "no-store")
	h.Add("Access-Control-Expose-Headers", "DPoP-Nonce")
	return nil
}

// refuse answers with a challenge (RFC 9449, 7.1; RFC 6750, 3; RFC 9728, 5.1).
func (s *Resource) refuse(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Code: Unavailable, Msg: "try again"}
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Add("Access-Control-Expose-Headers", "WWW-Authenticate")
	challenge := `DPoP algs="` + strings.Join(s.Verifier.algorithms(), " ") + `"`
	if !errors.Is(err, errNoToken) { // who sent no credentials is told no error (RFC 6750, 3.1)
		challenge += `, error="` + e.Code + `", error_description=` + quoted(e.Msg)
	}
	if s.MetadataURL != "" {
		challenge += `, resource_metadata=` + quoted(s.MetadataURL)
	}
	status := http.StatusUnauthorized
	switch e.Code {
	case InvalidRequest:
		status = http.StatusBadRequest
	case Unavailable:
		status = http.StatusServiceUnavailable
		h.Set("Retry-After", strconv.Itoa(1))
	}
	h.Set("WWW-Authenticate", challenge)
	w.WriteHeader(status)
	_, _ = w.Write([]byte(e.Error() + "\n")) // the client may be gone
}

// quoted writes a quoted-string of what may stand in error_description.
func quoted(s string) string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '\''
		}
		return r
	}, s)
	return `"` + clean + `"`
}
