package broker

import (
	"context"
	"errors"
	"slices"
	"time"

	"claviger.dev"
	"claviger.dev/internal/broker/jwt"
	"claviger.dev/internal/broker/upstream"
)

// maxActors is how many may stand in the chain of those who act for a subject.
const maxActors = 4

// presented is a subject or actor token that was accepted.
type presented struct {
	subject claviger.Subject
	actors  []claviger.Actor
	mayAct  jwt.Claims // nil: the token does not say
	ends    time.Time
	own     *own // nil for a token of another issuer
}

// byExchange gives a token for the subject of another (RFC 8693). It is bound
// to the key of who asks, whatever the tokens that are presented are bound to.
func (b *Broker) byExchange(ctx context.Context, r *Request, who *caller, key *possession) (given, error) {
	if who.client.Kind == claviger.Public {
		return given{}, refuse(UnauthorizedClient, "a public client exchanges no tokens")
	}
	form := r.Form
	switch form.Get("requested_token_type") {
	case "", typeAccess, upstream.TypeJWT:
	default:
		return given{}, refuse(InvalidRequest, "requested_token_type is not %s", typeAccess)
	}
	if (form.Get("actor_token") == "") != (form.Get("actor_token_type") == "") {
		return given{}, refuse(InvalidRequest, "actor_token and actor_token_type come together")
	}
	subject, err := b.present(ctx, "subject_token", form)
	if err != nil {
		return given{}, err
	}
	if err := b.entitled(who, key, &subject); err != nil {
		return given{}, err
	}
	actor := claviger.Actor{ID: string(who.client.ID)}
	if form.Get("actor_token") != "" {
		a, err := b.present(ctx, "actor_token", form)
		if err != nil {
			return given{}, err
		}
		if a.own != nil && !a.own.boundTo(key) {
			return given{}, refuse(InvalidRequest, "actor_token is bound to another key than that of this request")
		}
		actor = claviger.Actor{Issuer: a.subject.Issuer, ID: a.subject.ID}
	}
	g, err := delegate(&subject, actor, who)
	if err != nil {
		return given{}, err
	}
	if g.longest = subject.ends.Sub(b.now()); g.longest <= 0 { // within the skew of clocks
		return given{}, refuse(InvalidRequest, "subject_token has ended, and what is made of it would outlive it")
	}
	allowed := who.client.Scopes
	if subject.own != nil { // what a token did not allow, none that is made of it does
		allowed = slices.DeleteFunc(slices.Clone(allowed), func(s string) bool { return !slices.Contains(words(subject.own.claims.Text("scope")), s) })
	}
	return b.asked(r, g, allowed, who.client.Audiences)
}

// present checks a token that a request presents.
func (b *Broker) present(ctx context.Context, name string, form Form) (presented, error) {
	text, kind := form.Get(name), form.Get(name+"_type")
	if text == "" || kind == "" {
		return presented{}, refuse(InvalidRequest, "%s or %s_type is missing", name, name)
	}
	if kind != typeAccess && kind != upstream.TypeJWT && kind != upstream.TypeID {
		return presented{}, refuse(InvalidRequest, "%s_type is none that is exchanged here", name)
	}
	if kind != upstream.TypeID {
		p, err := b.presentOwn(ctx, text)
		switch {
		case err == nil:
			return p, nil
		case errors.Is(err, errOver):
			return presented{}, refuse(InvalidRequest, "%s is not accepted: %v", name, err)
		case !errors.Is(err, errNotOwn):
			return presented{}, err
		}
	}
	if kind == typeAccess { // of another issuer it is opaque, whatever it looks like
		return presented{}, refuse(InvalidRequest, "%s is not accepted: %v; for a JWT of another issuer the type is %s", name, errNotOwn, upstream.TypeJWT)
	}
	id, err := b.Issuers.Identify(ctx, text, kind)
	if upstream.Unfetched(err) {
		return presented{}, claviger.Errorf(claviger.Unavailable, "the token's issuer cannot be asked for its keys now", "try again").Wrap(err)
	}
	if err != nil {
		return presented{}, refuse(InvalidRequest, "%s is not accepted: %v", name, err)
	}
	return presented{subject: id.Subject, mayAct: id.MayAct, ends: id.Ends}, nil
}

func (b *Broker) presentOwn(ctx context.Context, text string) (presented, error) {
	t, err := b.readOwn(ctx, text)
	if err != nil {
		return presented{}, err
	}
	if err := b.alive(ctx, &t); err != nil {
		return presented{}, err
	}
	p := presented{subject: subjectOf(t.claims.Text("sub")), mayAct: t.claims.Object("may_act"), ends: t.ends, own: &t}
	for act := t.claims.Object("act"); act != nil; act = act.Object("act") {
		s := subjectOf(act.Text("sub"))
		p.actors = append(p.actors, claviger.Actor{Issuer: s.Issuer, ID: s.ID})
	}
	return p, nil
}

// entitled refuses a token of our own that was meant neither for this client
// nor for anybody who has it. The client that it was issued to proves that it
// holds its key; another one has to be what the token is for.
func (b *Broker) entitled(who *caller, key *possession, subject *presented) error {
	t := subject.own
	if t == nil { // its aud named this server
		return nil
	}
	if t.client == string(who.client.ID) {
		if !t.boundTo(key) {
			return refuse(InvalidRequest, "subject_token is bound to another key than that of this request")
		}
		return nil
	}
	if t.claims.For(string(who.client.ID)) || t.claims.For(string(who.client.Name)) || subject.mayAct != nil {
		return nil // may_act is compared with the actor
	}
	return refuse(InvalidRequest, "subject_token is for others than this client: its aud names neither the client nor what the client serves")
}

// delegate makes the chain of actors of the new token: the one who acts now
// before those who did. A client that exchanges its own token acts for nobody.
func delegate(subject *presented, actor claviger.Actor, who *caller) (given, error) {
	if want := subject.mayAct; want != nil {
		named := want.Text("sub") == subjectText(claviger.Subject{Issuer: actor.Issuer, ID: actor.ID}) ||
			want.Text("sub") == actor.ID && want.Text("iss") == actor.Issuer ||
			actor.Issuer == "" && actor.ID == string(who.client.ID) && want.Text("sub") == string(who.client.Name)
		if !named {
			return given{}, refuse(InvalidRequest, "subject_token says who may act for its subject, and that is somebody else")
		}
	}
	g := given{subject: subject.subject, actors: subject.actors, exchanged: true}
	if subject.own != nil && subject.own.client == string(who.client.ID) {
		g.session = subject.own.session // of another client's session only the time is left: its key is not here
	}
	itself := actor.Issuer == "" && actor.ID == string(who.client.ID) &&
		(subject.own != nil && subject.own.client == actor.ID || subject.subject == claviger.Subject{ID: actor.ID})
	if !itself {
		g.actors = append([]claviger.Actor{actor}, g.actors...)
	}
	if len(g.actors) > maxActors {
		return given{}, refuse(InvalidRequest, "more than %d would act for the subject, one for the other", maxActors)
	}
	return g, nil
}
