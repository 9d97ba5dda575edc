package broker

import (
	"context"
	"errors"
	"time"

	"claviger.dev"
	"claviger.dev/internal/broker/jwt"
	"claviger.dev/internal/keeper"
)

// own is an access token of this server that came back.
type own struct {
	claims  jwt.Claims
	jti     string
	client  string // its id
	session claviger.ID
	ends    time.Time
}

var (
	errNotOwn = errors.New("it is no access token of this server")
	errOver   = errors.New("it has ended, or was revoked")
)

// readOwn checks that a token was issued here. Whether it is good still is
// another question: see alive.
func (b *Broker) readOwn(ctx context.Context, text string) (own, error) {
	t, err := jwt.Parse(text, []string{"ES256", "RS256"})
	if err != nil || t.Typed(keeper.AccessToken) != nil || t.Claims.Text("iss") != b.Config.Issuer {
		return own{}, errNotOwn
	}
	doc, err := b.Door.TokenKeys(ctx)
	if err != nil {
		return own{}, err
	}
	keys, err := jwt.ParseKeys(doc)
	if err != nil {
		return own{}, err
	}
	ends, ok := t.Claims.Time("exp")
	if err := t.Verify(keys); err != nil || !ok {
		return own{}, errNotOwn
	}
	return own{claims: t.Claims, jti: t.Claims.Text("jti"), client: t.Claims.Text("client_id"), session: claviger.ID(t.Claims.Text("sid")), ends: ends}, nil
}

// alive reports a token of our own that has not ended, was not revoked, and
// whose client, its principal and session live; errOver for one that has. Other errors say that this
// cannot be known now.
func (b *Broker) alive(ctx context.Context, t *own) error {
	if !b.now().Before(t.ends) {
		return errOver
	}
	revoked, err := b.Door.TokenRevoked(ctx, t.jti)
	if err != nil {
		return err
	}
	if revoked {
		return errOver
	}
	if _, err := b.Door.ClientLive(ctx, t.client); err != nil {
		return over(err)
	}
	if t.session == "" {
		return nil
	}
	_, err = b.Door.SessionLive(ctx, t.session)
	return over(err)
}

// over tells what has ended from what cannot be known.
func over(err error) error {
	if err == nil {
		return nil
	}
	switch claviger.CodeOf(err) {
	case claviger.NotFound, claviger.Denied, claviger.Conflict, claviger.Unauthenticated, claviger.Invalid:
		return errOver
	}
	return err
}

// boundTo reports whether a token is bound to the key of a request.
func (t *own) boundTo(key *possession) bool {
	cnf := t.claims.Object("cnf")
	if key.x5t != "" {
		return cnf.Text("x5t#S256") == key.x5t
	}
	return key.proof.Thumbprint != "" && cnf.Text("jkt") == key.proof.Thumbprint
}
