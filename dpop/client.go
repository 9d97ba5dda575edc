package dpop

import (
	"bytes"
	"container/list"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"claviger.dev"
)

// maxOrigins is how many servers' nonces a Transport keeps, the least recently
// used given up for the next.
const maxOrigins = 128

// maxErrorBody is how much of an answer with status 400 is read to see whether
// it asks for a nonce, in bytes.
const maxErrorBody = 4 << 10

// Transport is an http.RoundTripper that proves possession with each request:
// a new proof each time, the newest nonce of the server, and one more try when
// the server asks for a nonce. It may be used concurrently.
type Transport struct {
	Signer *Signer
	// Prove makes the proofs in the Signer's place, as by a broker that holds
	// the key. nil: the Signer does.
	Prove func(ctx context.Context, c Claims) (string, error)
	Base  http.RoundTripper // http.DefaultTransport if nil

	// Token gives the access token for a request, "" for none, as at a token
	// endpoint. It may renew it. nil: none.
	Token func(ctx context.Context) (string, error)

	// Origins are where the token may go, such as "https://api.example.com". A
	// request elsewhere, as after a redirect, is refused. Needed with Token.
	Origins []string

	mu     sync.Mutex
	nonces map[string]*list.Element
	recent list.List // of originNonce, most recent first
}

type originNonce struct{ origin, nonce string }

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	body := r.Body
	defer func() {
		if body != nil {
			body.Close() // as RoundTrip has to, on errors too; twice does no harm
		}
	}()
	origin, ok := originOf(r.URL)
	if !ok {
		return nil, claviger.Errorf(claviger.Invalid, "a request that is proved goes to an http or https URL", "check the URL")
	}
	token, err := t.token(r, origin)
	if err != nil {
		return nil, err
	}
	used := t.nonce(origin)
	resp, err := t.send(r, body, token, used)
	if err != nil {
		return nil, err
	}
	newer := t.adopt(origin, resp)
	if newer == "" || newer == used || !asksForNonce(resp) {
		return resp, nil
	}
	var again io.ReadCloser
	if body != nil && body != http.NoBody {
		if r.GetBody == nil {
			return resp, nil // the body is gone: the caller tries again, and the nonce is known then
		}
		if again, err = r.GetBody(); err != nil {
			return resp, nil
		}
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody) // so that the connection can be used again
	resp.Body.Close()
	if resp, err = t.send(r, again, token, newer); err == nil {
		t.adopt(origin, resp)
	}
	return resp, err
}

func (t *Transport) token(r *http.Request, origin string) (string, error) {
	if t.Token == nil {
		return "", nil
	}
	allowed := slices.ContainsFunc(t.Origins, func(s string) bool {
		u, err := url.Parse(s)
		if err != nil {
			return false
		}
		o, ok := originOf(u)
		return ok && o == origin
	})
	if !allowed {
		return "", claviger.Errorf(claviger.Denied, "the token is not for the server that this request goes to", "add its origin to Origins if the token is meant for it")
	}
	return t.Token(r.Context())
}

// send sends a copy of a request with a proof of its own.
func (t *Transport) send(r *http.Request, body io.ReadCloser, token, nonce string) (*http.Response, error) {
	prove := t.Prove
	if prove == nil {
		prove = func(_ context.Context, c Claims) (string, error) { return t.Signer.Proof(c) }
	}
	proof, err := prove(r.Context(), Claims{Method: r.Method, URL: r.URL.Scheme + "://" + r.URL.Host + r.URL.EscapedPath(), Token: token, Nonce: nonce})
	if err != nil {
		return nil, err
	}
	out := r.Clone(r.Context())
	out.Body = body
	out.Header.Set("DPoP", proof)
	if token != "" {
		out.Header.Set("Authorization", "DPoP "+token)
	}
	base := t.Base
	if base == nil {
		base = http.DefaultTransport
	}
	return base.RoundTrip(out)
}

// originOf is a scheme and an authority, as Target writes them.
func originOf(u *url.URL) (string, bool) {
	target, ok := targetOf(&url.URL{Scheme: u.Scheme, Host: u.Host})
	return strings.TrimSuffix(target, "/"), ok
}

func (t *Transport) nonce(origin string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.nonces[origin]
	if e == nil {
		return ""
	}
	t.recent.MoveToFront(e)
	return e.Value.(originNonce).nonce
}

// adopt keeps the nonce of a response, whatever its status, and returns it.
func (t *Transport) adopt(origin string, resp *http.Response) string {
	given := resp.Header.Values("DPoP-Nonce")
	if len(given) != 1 || given[0] == "" || len(given[0]) > 1024 {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.nonces[origin]; e != nil {
		e.Value = originNonce{origin, given[0]}
		t.recent.MoveToFront(e)
		return given[0]
	}
	if t.nonces == nil {
		t.nonces = map[string]*list.Element{}
	}
	if t.recent.Len() == maxOrigins {
		delete(t.nonces, t.recent.Remove(t.recent.Back()).(originNonce).origin)
	}
	t.nonces[origin] = t.recent.PushFront(originNonce{origin, given[0]})
	return given[0]
}

// asksForNonce reports whether a response is a resource server's challenge or
// an authorization server's error that asks for a nonce. The body can still be
// read afterwards.
func asksForNonce(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return slices.ContainsFunc(resp.Header.Values("WWW-Authenticate"), func(challenge string) bool {
			return strings.Contains(challenge, `"`+UseNonce+`"`)
		})
	case http.StatusBadRequest:
		head, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		resp.Body = &rest{io.MultiReader(bytes.NewReader(head), resp.Body), resp.Body}
		var answer struct {
			Error string `json:"error"`
		}
		return err == nil && json.Unmarshal(head, &answer) == nil && answer.Error == UseNonce
	}
	return false
}

// rest is a body whose beginning was read already.
type rest struct {
	io.Reader
	io.Closer
}
