package keeper

import (
	"context"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/store"
)

// Limits of what a client is registered with.
const (
	maxClientList = 64       // URIs, audiences, scopes or certificates
	maxURI        = 1024     // bytes of a URI
	maxJWKS       = 64 << 10 // bytes of a JWK Set
)

// grantTypes are those of OAuth 2.0 that a client may use.
var grantTypes = []string{"client_credentials", "authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:token-exchange"}

// CreateClient registers a client. It takes the right to manage clients of its
// name.
func (k *Keeper) CreateClient(ctx context.Context, by claviger.Principal, c claviger.Client) (claviger.Client, error) {
	name, err := claviger.ParseName(string(c.Name))
	if err != nil {
		return claviger.Client{}, err
	}
	now := k.cfg.Now().UTC()
	c.ID, c.Name, c.Created, c.CreatedBy, c.Disabled, c.DisabledReason, c.Revision = claviger.NewID(now), name, now, by.ID, time.Time{}, "", 1
	if err := checkClient(&c); err != nil {
		return claviger.Client{}, err
	}
	principal := string(c.Principal)
	err = k.change(ctx, by, change{op: claviger.ManageClients, action: "client.create", stub: &claviger.Key{Name: name}, apply: func(tx *store.Tx, e *effect) error {
		p, err := tx.Principal(principal)
		if err != nil {
			return err
		}
		if !p.Revoked.IsZero() {
			return claviger.Errorf(claviger.Conflict, "the principal of the client is revoked", "name another principal")
		}
		c.Principal = p.ID
		e.detail("client", string(c.ID))
		e.detail("for", p.Name)
		e.touched = append(e.touched, c.ID)
		return tx.InsertClient(c)
	}})
	if err != nil {
		return claviger.Client{}, err
	}
	return c, nil
}

// UpdateClient changes what a client is registered with, if it still stands at
// c.Revision. Its name, its principal and whether it is disabled stay.
func (k *Keeper) UpdateClient(ctx context.Context, by claviger.Principal, c claviger.Client) (claviger.Client, error) {
	if err := checkClient(&c); err != nil {
		return claviger.Client{}, err
	}
	return k.changeClient(ctx, by, "client.update", string(c.ID), "", func(old *claviger.Client) error {
		if old.Revision != c.Revision {
			return claviger.Errorf(claviger.Conflict, "it was changed meanwhile", "read it again and repeat the change")
		}
		c.Name, c.Principal, c.Created, c.CreatedBy, c.Disabled, c.DisabledReason = old.Name, old.Principal, old.Created, old.CreatedBy, old.Disabled, old.DisabledReason
		*old = c
		return nil
	})
}

// DisableClient disables a client for good and ends its sessions. When it has
// returned, nothing is done for the client any more.
func (k *Keeper) DisableClient(ctx context.Context, by claviger.Principal, ref, reason string) (claviger.Client, error) {
	if err := checkText("reason", reason); err != nil {
		return claviger.Client{}, err
	}
	c, err := k.changeClient(ctx, by, "client.disable", ref, reason, func(c *claviger.Client) error {
		if !c.Disabled.IsZero() {
			return claviger.Errorf(claviger.Conflict, "the client is disabled already", "nothing is left to do")
		}
		c.Disabled, c.DisabledReason = k.cfg.Now().UTC(), reason
		return nil
	})
	if err == nil {
		_, err = k.EndSessions(ctx, k.self(), SessionQuery{Client: c.ID}, End{Reason: EndClient, Text: reason})
	}
	return c, err
}

// changeClient changes a client that there is.
func (k *Keeper) changeClient(ctx context.Context, by claviger.Principal, action, ref, reason string, edit func(*claviger.Client) error) (claviger.Client, error) {
	c, err := k.Client(ctx, ref)
	stub := &claviger.Key{Name: c.Name}
	if err != nil {
		stub = nil // who may not manage all clients is refused before it is told
	}
	err = k.change(ctx, by, change{op: claviger.ManageClients, action: action, reason: reason, stub: stub, apply: func(tx *store.Tx, e *effect) error {
		if c, err = tx.Client(ref); err != nil {
			return err
		}
		if err := edit(&c); err != nil {
			return err
		}
		e.detail("client", string(c.ID))
		e.touched = append(e.touched, c.ID)
		err := tx.UpdateClient(c)
		c.Revision++
		return err
	}})
	if err != nil {
		return claviger.Client{}, err
	}
	return c, nil
}

// Client returns a client by its id or name, disabled or not. It asks for no
// right: it is for who decides about it, and shows nothing of it.
func (k *Keeper) Client(ctx context.Context, ref string) (claviger.Client, error) {
	s, err := k.sessionSnapshot(ctx, "", ref, "")
	if err != nil {
		return claviger.Client{}, outward(err)
	}
	if s.client == nil {
		return claviger.Client{}, claviger.Errorf(claviger.NotFound, "there is no such client", "list the clients with 'claviger client list'")
	}
	return *s.client, nil
}

// ClientLive returns a client that may be served, as SessionLive does a session:
// claviger.Denied stands for one that is disabled or whose principal is revoked.
func (k *Keeper) ClientLive(ctx context.Context, ref string) (claviger.Client, error) {
	s, err := k.sessionSnapshot(ctx, "", ref, "")
	if err != nil {
		return claviger.Client{}, outward(err)
	}
	if s.client == nil {
		return claviger.Client{}, sessionRefusal(policy.Decision{Code: claviger.NotFound, Reason: reasonNoClient})
	}
	if reason := gone(s); reason != "" {
		return claviger.Client{}, liveRefusal(policy.Decision{Code: claviger.Denied, Reason: reason})
	}
	return *s.client, nil
}

// gone says why nothing is done for a client any more, "" where it is.
func gone(s snapshot) (reason string) {
	switch {
	case s.client == nil || !s.client.Disabled.IsZero():
		return reasonClient
	case s.principal == nil || !s.principal.record.Revoked.IsZero():
		return reasonPrincipal
	}
	return ""
}

// ReadClient returns a client to its own principal, and to who may manage
// clients of its name.
func (k *Keeper) ReadClient(ctx context.Context, by claviger.Principal, ref string) (claviger.Client, error) {
	c, err := k.Client(ctx, ref)
	change := change{op: claviger.ManageClients, action: "client.read"}
	if err == nil {
		change.stub = &claviger.Key{Name: c.Name}
		if c.Principal == by.ID {
			return c, k.known(ctx, &by)
		}
	}
	if refused := k.read(ctx, &by, change); refused != nil {
		return claviger.Client{}, refused
	}
	return c, err
}

// Clients returns a page of clients in the order of their names, and what to
// pass as After for the next: all to who may manage all clients, and to any
// other caller its own.
func (k *Keeper) Clients(ctx context.Context, by claviger.Principal, q store.ClientQuery) (list []claviger.Client, next string, err error) {
	if q.Principal != by.ID {
		err = k.read(ctx, &by, change{op: claviger.ManageClients, action: "client.list"})
	} else {
		err = k.known(ctx, &by)
	}
	if err != nil {
		return nil, "", err
	}
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		list, next, err = tx.Clients(q)
		return err
	})
	return list, next, outward(err)
}

// checkClient refuses what is malformed.
func checkClient(c *claviger.Client) error {
	bad := func(what, hint string) error { return claviger.Errorf(claviger.Invalid, what, hint) }
	for _, list := range [][]string{c.Certificates, c.RedirectURIs, c.PostLogoutURIs, c.Audiences, c.Scopes, c.GrantTypes} {
		if len(list) > maxClientList {
			return bad("a list of the client has more than 64 entries", "use fewer")
		}
	}
	for _, uri := range append(slices.Clone(c.RedirectURIs), c.PostLogoutURIs...) {
		if err := checkRedirect(uri); err != nil {
			return err
		}
	}
	for _, pattern := range c.Audiences {
		if err := claviger.ParseAudience(pattern); err != nil {
			return err
		}
	}
	for _, scope := range c.Scopes {
		if scope == "" || len(scope) > claviger.MaxTextLength || strings.IndexFunc(scope, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) >= 0 {
			return bad("a scope has a form that is not allowed (RFC 6749, section 3.3)", "use letters, digits and punctuation without spaces")
		}
	}
	for _, thumbprint := range c.Certificates {
		if len(thumbprint) != 43 || strings.IndexFunc(thumbprint, func(r rune) bool { return !wordRune(r) }) >= 0 {
			return bad("the thumbprint of a certificate is not 43 characters of base64url", "use SHA-256 over the DER form")
		}
	}
	for _, grant := range c.GrantTypes {
		if !slices.Contains(grantTypes, grant) {
			return bad("there is no such grant type", "use "+strings.Join(grantTypes, ", "))
		}
	}
	l := c.Limits
	for _, event := range l.SuspendOn {
		if _, err := claviger.ParseSessionEvent(string(event)); err != nil {
			return err
		}
	}
	for _, d := range []claviger.Duration{l.Access, l.Refresh, l.RefreshIdle, l.Session, l.SessionIdle} {
		if d != 0 && time.Duration(d) < minIdle {
			return bad("a limit of time is under 10 seconds", "use a longer one, or 0 for the standard one")
		}
	}
	switch {
	case c.Kind != claviger.Confidential && c.Kind != claviger.Public:
		return bad("there is no such kind of client", "use confidential or public")
	case c.Kind == claviger.Public && slices.Contains(c.GrantTypes, "client_credentials"):
		return bad("a public client has no credentials", "register it as confidential, or leave client_credentials out")
	case c.TokenAlgorithm != "" && c.TokenAlgorithm != claviger.ECDSAP256 && c.TokenAlgorithm != tokensRSA:
		return bad("access tokens are not signed by that algorithm", "use ecdsa-p256-sha256 or rsa-2048-pkcs1-sha256")
	case l.SourceChanges != "" && l.SourceChanges != claviger.SourceAllowed && l.SourceChanges != claviger.SourceRefused && l.SourceChanges != claviger.SourceEnds:
		return bad("there is no such answer to a change of source", "use allow, refuse or end")
	case l.SessionRate != nil && (l.SessionRate.PerSecond <= 0 || l.SessionRate.Burst == 0):
		return bad("a rate has no pace or no burst", "set both")
	}
	return checkJWKS(c.JWKS)
}

func wordRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

// checkRedirect refuses what a browser must not be sent to (RFC 9700, section
// 2.1, and RFC 8252, section 7).
func checkRedirect(text string) error {
	u, err := url.Parse(text)
	loopback := err == nil && u.Scheme == "http" && (u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")
	private := err == nil && strings.Contains(u.Scheme, ".") // of an application on a device
	if err != nil || len(text) > maxURI || strings.ContainsAny(text, "#*") || u.User != nil ||
		!loopback && !private && (u.Scheme != "https" || u.Host == "") {
		return claviger.Errorf(claviger.Invalid, "a redirect URI is not an absolute https URI without a fragment", "use https, or http on 127.0.0.1 for an application on a device")
	}
	return nil
}

// checkJWKS refuses a JWK Set that is malformed or has a private member.
func checkJWKS(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	var set struct {
		Keys []map[string]json.RawMessage `json:"keys"`
	}
	if len(text) > maxJWKS || json.Unmarshal(text, &set) != nil || len(set.Keys) == 0 || len(set.Keys) > maxClientList {
		return claviger.Errorf(claviger.Invalid, "the keys of the client are not a JWK Set of 1 to 64 keys", "send the public keys as RFC 7517 says")
	}
	for _, key := range set.Keys {
		for member := range key {
			if slices.Contains([]string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"}, member) {
				return claviger.Errorf(claviger.Invalid, "the JWK Set holds a private key", "send the public half alone, and treat this key as exposed")
			}
		}
	}
	return nil
}
