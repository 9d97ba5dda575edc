package client

import (
	"context"
	"net/http"

	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/dpop"
)

// OpenSession opens a session.
func (c *Client) OpenSession(ctx context.Context, r *clavigerv1.OpenSessionRequest) (*clavigerv1.Session, error) {
	return call(ctx, c, once, c.sessions.OpenSession, r)
}

// SignForSession has a session's key sign one statement.
func (c *Client) SignForSession(ctx context.Context, r *clavigerv1.SignForSessionRequest) (*clavigerv1.SignForSessionResponse, error) {
	return call(ctx, c, again, c.sessions.SignForSession, r)
}

// GetSession returns a session by its id.
func (c *Client) GetSession(ctx context.Context, id string) (*clavigerv1.Session, error) {
	return call(ctx, c, again, c.sessions.GetSession, &clavigerv1.GetSessionRequest{Id: id})
}

// ListSessions returns one page of sessions.
func (c *Client) ListSessions(ctx context.Context, r *clavigerv1.ListSessionsRequest) (*clavigerv1.ListSessionsResponse, error) {
	return call(ctx, c, again, c.sessions.ListSessions, r)
}

// CloseSession ends a session. When it has returned, its key signs nothing any
// more. To close one that has ended is no error.
func (c *Client) CloseSession(ctx context.Context, r *clavigerv1.CloseSessionRequest) (*clavigerv1.Session, error) {
	return call(ctx, c, again, c.sessions.CloseSession, r)
}

// BindSession notes that the application's cookie of a session is bound to a key
// of the device (Device Bound Session Credentials), by the key's RFC 7638
// thumbprint. A second key is refused; the same one again is no error.
func (c *Client) BindSession(ctx context.Context, id, thumbprint string) (*clavigerv1.Session, error) {
	return call(ctx, c, again, c.sessions.BindSession, &clavigerv1.BindSessionRequest{Id: id, Dbsc: thumbprint})
}

// SuspendSession stops the use of a session until it is resumed.
func (c *Client) SuspendSession(ctx context.Context, r *clavigerv1.SuspendSessionRequest) (*clavigerv1.Session, error) {
	return call(ctx, c, once, c.sessions.SuspendSession, r)
}

// ResumeSession lets a suspended session be used again.
func (c *Client) ResumeSession(ctx context.Context, r *clavigerv1.ResumeSessionRequest) (*clavigerv1.Session, error) {
	return call(ctx, c, once, c.sessions.ResumeSession, r)
}

// CreateClient registers an application that gets tokens.
func (c *Client) CreateClient(ctx context.Context, r *clavigerv1.CreateClientRequest) (*clavigerv1.Client, error) {
	return call(ctx, c, once, c.clients.CreateClient, r)
}

// GetClient returns a client by its id or name.
func (c *Client) GetClient(ctx context.Context, ref string) (*clavigerv1.Client, error) {
	return call(ctx, c, again, c.clients.GetClient, &clavigerv1.GetClientRequest{Client: ref})
}

// ListClients returns one page of clients.
func (c *Client) ListClients(ctx context.Context, r *clavigerv1.ListClientsRequest) (*clavigerv1.ListClientsResponse, error) {
	return call(ctx, c, again, c.clients.ListClients, r)
}

// UpdateClient changes a client that stands at the revision that was read.
func (c *Client) UpdateClient(ctx context.Context, r *clavigerv1.UpdateClientRequest) (*clavigerv1.Client, error) {
	return call(ctx, c, once, c.clients.UpdateClient, r)
}

// DisableClient disables a client for good and ends its sessions.
func (c *Client) DisableClient(ctx context.Context, r *clavigerv1.DisableClientRequest) (*clavigerv1.Client, error) {
	return call(ctx, c, once, c.clients.DisableClient, r)
}

// Session is a handle of a session whose key is in custody. It cannot sign what
// its holder likes: the server builds each proof from the request that it is
// for. It may be used concurrently.
type Session struct {
	client *Client
	id     string
}

// Session returns the handle of a session.
func (c *Client) Session(id string) *Session { return &Session{client: c, id: id} }

// ID is the session's id.
func (s *Session) ID() string { return s.id }

// Proof returns a DPoP proof (RFC 9449, section 4.2) for one request: its
// method, its URL, the access token that goes with it, "" for none, and the
// newest nonce that the server gave, "" for none.
func (s *Session) Proof(ctx context.Context, method, url, token, nonce string) (string, error) {
	out, err := s.client.SignForSession(ctx, &clavigerv1.SignForSessionRequest{Id: s.id, Statement: &clavigerv1.SignForSessionRequest_Proof{
		Proof: &clavigerv1.ProofStatement{Method: method, Url: url, AccessToken: token, Nonce: nonce},
	}})
	if err != nil {
		return "", err
	}
	return out.Signed, nil
}

// Assertion returns a client assertion (RFC 7523, section 3) for an
// authorization server.
func (s *Session) Assertion(ctx context.Context, audience string) (string, error) {
	out, err := s.client.SignForSession(ctx, &clavigerv1.SignForSessionRequest{Id: s.id, Statement: &clavigerv1.SignForSessionRequest_Assertion{
		Assertion: &clavigerv1.AssertionStatement{Audience: audience},
	}})
	if err != nil {
		return "", err
	}
	return out.Signed, nil
}

// Transport returns an http.RoundTripper that proves possession of the
// session's key with each request. token gives the access token for a request,
// which goes to the origins that are named and nowhere else; base is
// http.DefaultTransport if nil.
func (s *Session) Transport(base http.RoundTripper, token func(context.Context) (string, error), origins ...string) *dpop.Transport {
	return &dpop.Transport{Base: base, Token: token, Origins: origins, Prove: func(ctx context.Context, c dpop.Claims) (string, error) {
		return s.Proof(ctx, c.Method, c.URL, c.Token, c.Nonce)
	}}
}

// End closes the session.
func (s *Session) End(ctx context.Context, reason string) error {
	_, err := s.client.CloseSession(ctx, &clavigerv1.CloseSessionRequest{Id: s.id, Reason: reason})
	return err
}
