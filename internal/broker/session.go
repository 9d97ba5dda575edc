package broker

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// codeUsed is that a code was used, and which session it opened.
const codeUsed = "code-used"

// byCode opens a session for a code (RFC 6749, 4.1.3; RFC 7636, 4.6). Its key
// is the one that the request proves, which the code may be bound to already.
func (b *Broker) byCode(ctx context.Context, r *Request, who *caller, key *possession) (given, error) {
	if key.x5t != "" {
		return given{}, refuse("invalid_dpop_proof", "a session is bound to a key of its own: send a DPoP proof")
	}
	code := r.Form.Get("code")
	var c redeemable
	ok, err := b.take(ctx, keeper.OneTimeCode, code, &c)
	if err != nil {
		return given{}, err
	}
	if !ok {
		return given{}, b.codeAgain(ctx, who, code)
	}
	a := &c.Authorization
	verifier := r.Form.Get("code_verifier")
	switch {
	case a.Client != who.client.ID:
		return given{}, refuse(InvalidGrant, "the code was given to another client")
	case (a.Told || r.Form.Get("redirect_uri") != "") && r.Form.Get("redirect_uri") != a.RedirectURI:
		return given{}, refuse(InvalidGrant, "redirect_uri is not the one that the code was sent to")
	case len(verifier) < 43 || len(verifier) > 128 || subtle.ConstantTimeCompare([]byte(hashText(verifier)), []byte(a.Challenge)) != 1:
		return given{}, refuse(InvalidGrant, "code_verifier is not the one of the code_challenge")
	case a.JKT != "" && a.JKT != key.proof.Thumbprint:
		return given{}, refuse(InvalidGrant, "the code is bound to another key than that of this request")
	}
	g, err := b.asked(r, given{}, a.Scopes, a.Audiences)
	if err != nil {
		return given{}, err
	}
	s, err := b.Door.OpenSession(ctx, who.by, opening(&c, who, key))
	if err != nil {
		return given{}, err
	}
	if err := b.keep(ctx, codeUsed, code, lifeUsed, s.ID); err != nil {
		return given{}, err
	}
	g.session, g.subject = s.ID, s.Subject
	if slices.Contains(who.client.GrantTypes, grantRefresh) {
		g.refresh, err = b.newRefresh(ctx, who, &s)
	}
	return g, err
}

// codeAgain ends the session of a code that is presented a second time: one of
// the two who had it stole it (RFC 6749, 4.1.2).
func (b *Broker) codeAgain(ctx context.Context, who *caller, code string) error {
	refusal := refuse(InvalidGrant, "the code is unknown, was used or has expired: begin again")
	var id claviger.ID
	used, err := b.take(ctx, codeUsed, code, &id)
	if err != nil {
		return err
	}
	if !used {
		return refusal
	}
	s, err := b.Door.SessionLive(ctx, id)
	if err != nil || s.Client != who.client.ID {
		return refusal
	}
	if err := b.Door.EndSession(ctx, who.by, id, keeper.End{Reason: keeper.EndAbuse, Text: "its authorization code was presented twice"}); err != nil {
		return err
	}
	return refusal
}

// opening is the session that a code opens. The key of a page is in its
// browser, that of any other client wherever the client has it.
func opening(c *redeemable, who *caller, key *possession) keeper.NewSession {
	n := keeper.NewSession{Client: string(who.client.ID), Subject: c.Person.Subject, KeyKind: claviger.DeviceKey,
		Algorithm: key.proof.Key.Algorithm(), Public: key.proof.Key.SPKI(), Scopes: c.Authorization.Scopes, Audiences: c.Authorization.Audiences,
		UpstreamIssuer: c.Person.Subject.Issuer, UpstreamSID: c.Person.SID}
	if who.client.Kind == claviger.Public {
		n.Source = c.Source
		if strings.HasPrefix(c.Authorization.RedirectURI, "https:") {
			n.KeyKind = claviger.BrowserKey
		}
	}
	return n
}

// newRefresh makes a refresh token of a session. It names the session, so that
// whom it is bound to is known before it is taken.
func (b *Broker) newRefresh(ctx context.Context, who *caller, s *claviger.Session) (string, error) {
	limits := who.client.Limits.WithDefaults()
	ends := b.now().Add(time.Duration(limits.RefreshIdle))
	for _, other := range []time.Time{s.Created.Add(time.Duration(limits.Refresh)), s.Ends} {
		if other.Before(ends) {
			ends = other
		}
	}
	token := string(s.ID) + "." + b.fresh()
	return token, b.Door.PutRefresh(ctx, store.Refresh{Hash: sha256.Sum256([]byte(token)), Session: s.ID, Ends: ends})
}

// refreshSession returns the session that a refresh token names; ok is false
// for what is no refresh token.
func refreshSession(token string) (id claviger.ID, ok bool) {
	name, secret, ok := strings.Cut(token, ".")
	id, err := claviger.ParseID(name)
	return id, ok && err == nil && isHash(secret)
}

// byRefresh gives the next tokens of a session (RFC 6749, 6). Whose key it is
// is looked at before the token is taken: who stole the token alone can
// neither use it nor end the session with it.
func (b *Broker) byRefresh(ctx context.Context, r *Request, who *caller, key *possession) (given, error) {
	token := r.Form.Get("refresh_token")
	refusal := refuse(InvalidGrant, "the refresh token is unknown, has expired, or its session has ended: log in again")
	id, ok := refreshSession(token)
	if !ok {
		return given{}, refusal
	}
	s, err := b.Door.SessionLive(ctx, id)
	if err = over(err); errors.Is(err, errOver) {
		return given{}, refusal.because(err)
	}
	if err != nil {
		return given{}, err
	}
	if s.Client != who.client.ID || key.proof.Thumbprint == "" || s.JKT != key.proof.Thumbprint {
		return given{}, refuse(InvalidGrant, "the refresh token is bound to another client or key than those of this request")
	}
	g, err := b.asked(r, given{session: s.ID, subject: s.Subject, actors: s.Actors}, s.Scopes, s.Audiences)
	if err != nil {
		return given{}, err
	}
	if _, err := b.Door.TakeRefresh(ctx, sha256.Sum256([]byte(token))); err != nil {
		if err = over(err); errors.Is(err, errOver) {
			return given{}, refusal.because(err)
		}
		return given{}, err
	}
	g.refresh, err = b.newRefresh(ctx, who, &s)
	return g, err
}
