package broker

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/keeper"
)

// A token request flows like this: whose key it is (possesses), which client
// sends it (authenticate), what the grant gives (one function for each grant
// type), and the token itself (issue). The proof is looked at before anything
// is taken that can be taken once, so that who has to come again with a nonce
// comes with the same code.

// Answer is what a token endpoint gives (RFC 6749, 5.1; RFC 8693, 2.2.1).
type Answer struct {
	AccessToken     string `json:"access_token"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int    `json:"expires_in"` // seconds
	RefreshToken    string `json:"refresh_token,omitempty"`
	Scope           string `json:"scope,omitempty"`
	IssuedTokenType string `json:"issued_token_type,omitempty"`
}

// given is what a grant gives.
type given struct {
	session   claviger.ID // "" for none
	subject   claviger.Subject
	actors    []claviger.Actor // who acts for the subject, the current one first
	audiences []string
	scopes    []string
	longest   time.Duration // lifetime; 0: the client's
	refresh   string        // a refresh token that goes with it
	exchanged bool
}

// Token answers a request to the token endpoint.
func (b *Broker) Token(ctx context.Context, r *Request) (Answer, error) {
	key, err := b.possesses(ctx, r)
	if err != nil {
		return Answer{}, err
	}
	who, err := b.authenticate(ctx, r)
	if err != nil {
		return Answer{}, err
	}
	grantType := r.Form.Get("grant_type")
	grant, ok := map[string]func(context.Context, *Request, *caller, *possession) (given, error){
		grantCredentials: b.byCredentials,
		grantCode:        b.byCode,
		grantRefresh:     b.byRefresh,
		grantExchange:    b.byExchange,
	}[grantType]
	if !ok {
		return Answer{}, refuse(UnsupportedGrantType, "grant_type is none that is known here")
	}
	if err := who.permits(grantType); err != nil {
		return Answer{}, err
	}
	g, err := grant(ctx, r, &who, &key)
	if err != nil {
		return Answer{}, err
	}
	return b.issue(ctx, r, &who, &key, g)
}

// byCredentials gives a client a token of its own (RFC 6749, 4.4).
func (b *Broker) byCredentials(_ context.Context, r *Request, who *caller, _ *possession) (given, error) {
	if who.client.Kind == claviger.Public {
		return given{}, refuse(UnauthorizedClient, "a public client gets no token of its own")
	}
	return b.asked(r, given{subject: claviger.Subject{ID: string(who.client.ID)}}, who.client.Scopes, who.client.Audiences)
}

// asked completes what is given by the scopes and audiences that a request
// asks for, of those that are allowed.
func (b *Broker) asked(r *Request, g given, allowedScopes, allowedAudiences []string) (given, error) {
	targets, err := r.Form.targets()
	if err != nil {
		return given{}, err
	}
	if g.audiences, err = audiences(targets, allowedAudiences); err != nil {
		return given{}, err
	}
	g.scopes, err = scopes(r.Form.Get("scope"), allowedScopes)
	return g, err
}

// issue has the keeper sign an access token (RFC 9068) that is bound to the key.
func (b *Broker) issue(ctx context.Context, r *Request, who *caller, key *possession, g given) (Answer, error) {
	now := b.now()
	life := time.Duration(who.client.Limits.WithDefaults().Access)
	if g.longest > 0 {
		life = min(life, g.longest)
	}
	ends := now.Add(life).Truncate(time.Second)
	jti := string(claviger.NewID(now))
	claims := map[string]any{
		"iss": b.Config.Issuer, "sub": subjectText(g.subject), "aud": g.audiences, "client_id": string(who.client.ID),
		"iat": now.Unix(), "exp": ends.Unix(), "jti": jti, "cnf": key.confirmation(),
	}
	if len(g.audiences) == 1 {
		claims["aud"] = g.audiences[0]
	}
	if len(g.scopes) > 0 {
		claims["scope"] = strings.Join(g.scopes, " ")
	}
	if g.session != "" {
		claims["sid"] = string(g.session)
	}
	if act := actClaim(g.actors); act != nil {
		claims["act"] = act
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return Answer{}, err
	}
	token, err := b.Door.IssueToken(ctx, who.by, keeper.TokenRequest{Client: string(who.client.ID), Session: g.session, Subject: g.subject,
		Audiences: g.audiences, Scopes: g.scopes, Claims: body, Source: claviger.Source{UserAgent: r.UserAgent}})
	if err != nil {
		return Answer{}, err
	}
	a := Answer{AccessToken: token.Token, TokenType: key.tokenType(), ExpiresIn: int(ends.Sub(now) / time.Second),
		RefreshToken: g.refresh, Scope: strings.Join(g.scopes, " ")}
	if g.exchanged {
		a.IssuedTokenType = typeAccess
	}
	return a, nil
}

// subjectText is sub of a subject. Issuers name their own subjects, so that
// the name of one is told apart by who gave it; a SPIFFE id is one already.
func subjectText(s claviger.Subject) string {
	if s.Issuer == "" || strings.HasPrefix(s.ID, s.Issuer+"/") && strings.HasPrefix(s.Issuer, "spiffe://") {
		return s.ID
	}
	return s.Issuer + "|" + s.ID
}

// subjectOf undoes subjectText for a token of our own.
func subjectOf(text string) claviger.Subject {
	if issuer, id, ok := strings.Cut(text, "|"); ok {
		return claviger.Subject{Issuer: issuer, ID: id}
	}
	if rest, ok := strings.CutPrefix(text, "spiffe://"); ok {
		domain, _, _ := strings.Cut(rest, "/")
		return claviger.Subject{Issuer: "spiffe://" + domain, ID: text}
	}
	return claviger.Subject{ID: text}
}

// actClaim nests a chain of actors (RFC 8693, 4.1).
func actClaim(chain []claviger.Actor) map[string]any {
	var act map[string]any
	for _, a := range slices.Backward(chain) {
		outer := map[string]any{"sub": subjectText(claviger.Subject{Issuer: a.Issuer, ID: a.ID})}
		if act != nil {
			outer["act"] = act
		}
		act = outer
	}
	return act
}
