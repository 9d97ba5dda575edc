package broker

import (
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"net/url"
	"slices"
	"strings"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker/upstream"
	"claviger.dev/internal/keeper"
)

// Introspect tells what a token is (RFC 7662). Who asks is a confidential
// client, or a principal that a certificate shows: a resource server needs no
// more. Of a token that is not good it tells that, and nothing else.
func (b *Broker) Introspect(ctx context.Context, r *Request) (map[string]any, error) {
	if r.Caller.ID == "" || r.Form.Get("client_id") != "" || r.Form.Get("client_assertion") != "" {
		who, err := b.authenticate(ctx, r)
		if err != nil {
			return nil, err
		}
		if who.client.Kind == claviger.Public {
			return nil, refuse(InvalidClient, "who asks about tokens has to authenticate")
		}
		if _, err := b.Door.ClientLive(ctx, string(who.client.ID)); err != nil { // its principal may be revoked
			return nil, err
		}
	}
	inactive := map[string]any{"active": false}
	token := r.Form.Get("token")
	if token == "" {
		return nil, refuse(InvalidRequest, "token is missing")
	}
	t, err := b.readOwn(ctx, token)
	if err == nil {
		err = b.alive(ctx, &t)
	}
	if errors.Is(err, errNotOwn) || errors.Is(err, errOver) {
		return inactive, nil
	}
	if err != nil {
		return nil, err
	}
	out := maps.Clone(map[string]any(t.claims))
	out["active"] = true
	out["token_type"] = "DPoP"
	if t.claims.Object("cnf").Text("jkt") == "" {
		out["token_type"] = "Bearer" // bound to a certificate (RFC 8705, 3.2)
	}
	return out, nil
}

// Revoke ends what a token stands for (RFC 7009): with a refresh token its
// session, with an access token that token. What is unknown needs no revoking.
func (b *Broker) Revoke(ctx context.Context, r *Request) error {
	who, err := b.authenticate(ctx, r)
	if err != nil {
		return err
	}
	token := r.Form.Get("token")
	if token == "" {
		return refuse(InvalidRequest, "token is missing")
	}
	if id, ok := refreshSession(token); ok {
		return b.revokeRefresh(ctx, &who, id, token)
	}
	t, err := b.readOwn(ctx, token)
	if errors.Is(err, errNotOwn) || err == nil && !b.now().Before(t.ends) {
		return nil
	}
	if err != nil {
		return err
	}
	if t.client != string(who.client.ID) {
		return refuse(InvalidGrant, "the token was issued to another client")
	}
	return b.Door.RevokeToken(ctx, who.by, t.jti, t.ends)
}

func (b *Broker) revokeRefresh(ctx context.Context, who *caller, id claviger.ID, token string) error {
	s, err := b.Door.SessionLive(ctx, id)
	if err == nil && s.Client != who.client.ID {
		return refuse(InvalidGrant, "the token was issued to another client")
	}
	// A session's name is no secret: the token has to be one of it. A suspended
	// session takes none, but it may be resumed, and so it ends as well.
	if err == nil || errors.Is(err, claviger.Denied) {
		_, err = b.Door.TakeRefresh(ctx, sha256.Sum256([]byte(token)))
	}
	if err == nil || errors.Is(err, claviger.Denied) {
		err = b.Door.EndSession(ctx, who.by, id, keeper.End{Reason: keeper.EndLogout, Text: "its refresh token was revoked"})
	}
	if err = over(err); errors.Is(err, errOver) {
		return nil
	}
	return err
}

// Logout ends the session of an access token, as its client asks (OpenID
// Connect RP-Initiated Logout 1.0). The client shows the token with a proof of
// its key, or authenticates and names the token; one that has expired names
// its session still. to is where the browser goes, "" for nowhere.
func (b *Broker) Logout(ctx context.Context, r *Request) (to string, err error) {
	text, shown := strings.CutPrefix(r.Authorization, "DPoP ")
	if !shown {
		text = r.Form.Get("id_token_hint")
	}
	if r.Authorization != "" && !shown {
		return "", refuse(InvalidToken, "a token that is bound to a key is sent as DPoP, with a proof")
	}
	t, err := b.readOwn(ctx, text)
	if errors.Is(err, errNotOwn) {
		return "", refuse(InvalidRequest, "there is no access token of this server in the Authorization field, nor in id_token_hint")
	}
	if err != nil {
		return "", err
	}
	client, err := b.client(ctx, t.client)
	if err != nil {
		return "", err
	}
	by := claviger.Principal{ID: client.Principal, Facts: r.Facts}
	if shown {
		_, err = b.Proofs.Check(ctx, dpop.Request{Proofs: r.Proofs, Method: r.Method, URL: b.Config.Issuer + r.Path, Token: text, Thumbprint: t.claims.Object("cnf").Text("jkt")})
	} else {
		var who caller
		who, err = b.authenticate(ctx, r)
		if by = who.by; err == nil && (who.client.ID != client.ID || client.Kind == claviger.Public) {
			err = refuse(InvalidClient, "the token is another client's, or the client cannot authenticate: send the token with a proof")
		}
	}
	if err != nil {
		return "", err
	}
	if to, err = afterLogout(&client, r.Form); err != nil || t.session == "" {
		return to, err
	}
	if err := over(b.Door.EndSession(ctx, by, t.session, keeper.End{Reason: keeper.EndLogout})); err != nil && !errors.Is(err, errOver) {
		return "", err
	}
	return to, nil
}

// afterLogout is the page of the client that the browser goes to.
func afterLogout(client *claviger.Client, form Form) (string, error) {
	to := form.Get("post_logout_redirect_uri")
	if to == "" {
		return "", nil
	}
	if !slices.Contains(client.PostLogoutURIs, to) {
		return "", refuse(InvalidRequest, "post_logout_redirect_uri is none that the client is registered with")
	}
	state := form.Get("state")
	if len(state) > maxState {
		return "", refuse(InvalidRequest, "state is longer than %d bytes", maxState)
	}
	if state != "" {
		to = withQuery(to, url.Values{"state": {state}})
	}
	return to, nil
}

// logoutJTI is the jti of a logout token.
const logoutJTI = "logout-jti"

// Backchannel ends the sessions that the OpenID provider says have ended
// (OpenID Connect Back-Channel Logout 1.0, 2.5 to 2.8).
func (b *Broker) Backchannel(ctx context.Context, r *Request) error {
	if b.Provider == nil {
		return refuse(InvalidRequest, "nobody logs in here")
	}
	l, err := b.Provider.Logout(ctx, r.Form.Get("logout_token"))
	if upstream.Unfetched(err) {
		return claviger.Errorf(claviger.Unavailable, "the OpenID provider cannot be asked for its keys now", "try again").Wrap(err)
	}
	if err != nil {
		return refuse(InvalidRequest, "logout_token is not accepted: %v", err)
	}
	name := l.Issuer + " " + l.JTI
	if err := b.first(ctx, logoutJTI, name, l.Ends, refuse(InvalidRequest, "logout_token was used before")); err != nil {
		return err
	}
	q := keeper.SessionQuery{UpstreamIssuer: l.Issuer, UpstreamSID: l.SID}
	if l.SID == "" {
		q.Issuer, q.Subject = l.Issuer, l.Subject
	}
	if _, err := b.Door.EndSessions(ctx, b.Door.System(), q, keeper.End{Reason: keeper.EndUpstream}); err != nil {
		if _, undo := b.Door.TakeOneTime(ctx, logoutJTI, sha256.Sum256([]byte(name))); undo != nil {
			err = errors.Join(err, undo)
		}
		return err // the provider may send it again
	}
	return nil
}

// Metadata describes this server (RFC 8414, with what RFC 8705, 9126, 9207 and
// 9449 add).
func (b *Broker) Metadata() map[string]any {
	at := func(path string) string { return b.Config.Issuer + path }
	methods := []string{"private_key_jwt", "tls_client_auth"}
	out := map[string]any{
		"issuer": b.Config.Issuer, "jwks_uri": at(KeysPath),
		"token_endpoint": at(TokenPath), "token_endpoint_auth_methods_supported": append(slices.Clone(methods), "none"),
		"token_endpoint_auth_signing_alg_values_supported": dpop.Algorithms(),
		"introspection_endpoint":                           at(IntrospectPath), "introspection_endpoint_auth_methods_supported": methods,
		"introspection_endpoint_auth_signing_alg_values_supported": dpop.Algorithms(),
		"revocation_endpoint": at(RevokePath), "revocation_endpoint_auth_methods_supported": append(slices.Clone(methods), "none"),
		"revocation_endpoint_auth_signing_alg_values_supported": dpop.Algorithms(),
		"end_session_endpoint":                       at(LogoutPath),
		"grant_types_supported":                      []string{grantCredentials, grantExchange},
		"response_types_supported":                   []string{},
		"dpop_signing_alg_values_supported":          dpop.Algorithms(),
		"dpop_bound_access_tokens_required":          true,
		"tls_client_certificate_bound_access_tokens": true,
	}
	if b.Provider != nil {
		maps.Copy(out, map[string]any{
			"authorization_endpoint":                at(AuthorizePath),
			"pushed_authorization_request_endpoint": at(PARPath),
			"grant_types_supported":                 []string{grantCode, grantRefresh, grantCredentials, grantExchange},
			"response_types_supported":              []string{"code"}, "response_modes_supported": []string{"query"},
			"code_challenge_methods_supported":               []string{"S256"},
			"authorization_response_iss_parameter_supported": true,
			"prompt_values_supported":                        []string{"none", "login", "consent", "select_account"},
		})
	}
	return out
}
