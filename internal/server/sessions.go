package server

import (
	"context"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/broker/statement"
	"claviger.dev/internal/keeper"
)

// sessions serves claviger.v1.SessionService.
type sessions struct {
	keeper *keeper.Keeper
	now    func() time.Time
}

func (s sessions) OpenSession(ctx context.Context, r *connect.Request[clavigerv1.OpenSessionRequest]) (*connect.Response[clavigerv1.Session], error) {
	m := r.Msg
	n := keeper.NewSession{
		Client: m.Client, Subject: claviger.Subject{Issuer: m.Subject.GetIssuer(), ID: m.Subject.GetId(), Name: m.Subject.GetName()},
		Actors:  each(m.Actors, func(a *clavigerv1.Actor) claviger.Actor { return claviger.Actor{Issuer: a.GetIssuer(), ID: a.GetId()} }),
		KeyKind: claviger.SessionKey(m.KeyKind), Algorithm: claviger.Algorithm(m.Algorithm), Public: m.Public,
		Scopes: m.Scopes, Audiences: m.Audiences, Methods: m.Methods, MaxUses: m.MaxUses, Rate: rateFrom(m.Rate),
	}
	if n.KeyKind == "" {
		n.KeyKind = claviger.CustodyKey
	}
	idle, err := durationFrom(m.Idle)
	if err != nil {
		return nil, err
	}
	lifetime, err := durationFrom(m.Lifetime)
	if err != nil {
		return nil, err
	}
	if n.Source, err = sourceFrom(m.Source); err != nil {
		return nil, err
	}
	n.Idle, n.Lifetime = time.Duration(idle), time.Duration(lifetime)
	out, err := s.keeper.OpenSession(ctx, caller(ctx), n)
	return reply(sessionTo(out), err)
}

func (s sessions) SignForSession(ctx context.Context, r *connect.Request[clavigerv1.SignForSessionRequest]) (*connect.Response[clavigerv1.SignForSessionResponse], error) {
	id, err := claviger.ParseID(r.Msg.Id)
	if err != nil {
		return nil, err
	}
	source, err := sourceFrom(r.Msg.Source)
	if err != nil {
		return nil, err
	}
	ask, err := statementFrom(r.Msg)
	if err != nil {
		return nil, err
	}
	signed, err := statement.Sign(ctx, s.keeper, caller(ctx), id, ask, source, s.now())
	return reply(&clavigerv1.SignForSessionResponse{Signed: signed}, err)
}

func statementFrom(m *clavigerv1.SignForSessionRequest) (r statement.Request, err error) {
	var lifetime claviger.Duration
	switch st := m.Statement.(type) {
	case *clavigerv1.SignForSessionRequest_Proof:
		p := st.Proof
		r.Proof = &statement.Proof{Method: p.GetMethod(), URL: p.GetUrl(), AccessToken: p.GetAccessToken(), Nonce: p.GetNonce()}
	case *clavigerv1.SignForSessionRequest_Assertion:
		r.Assertion = &statement.Assertion{Audience: st.Assertion.GetAudience()}
	case *clavigerv1.SignForSessionRequest_Token:
		lifetime, err = durationFrom(st.Token.GetLifetime())
		r.Token = &statement.Token{Audience: st.Token.GetAudience(), Claims: st.Token.GetClaims(), Lifetime: time.Duration(lifetime)}
	case *clavigerv1.SignForSessionRequest_Ssh:
		lifetime, err = durationFrom(st.Ssh.GetLifetime())
		r.SSH = &statement.SSH{PublicKey: st.Ssh.GetPublicKey(), Login: st.Ssh.GetLogin(), Lifetime: time.Duration(lifetime)}
	}
	return r, err
}

func (s sessions) GetSession(ctx context.Context, r *connect.Request[clavigerv1.GetSessionRequest]) (*connect.Response[clavigerv1.Session], error) {
	return s.show(ctx, r.Msg.Id, nil)
}

// show returns a session as it stands after something was done to it.
func (s sessions) show(ctx context.Context, text string, do func(claviger.ID) error) (*connect.Response[clavigerv1.Session], error) {
	id, err := claviger.ParseID(text)
	if err == nil && do != nil {
		err = do(id)
	}
	if err != nil {
		return nil, err
	}
	out, err := s.keeper.Session(ctx, caller(ctx), id)
	return reply(sessionTo(out), err)
}

func (s sessions) ListSessions(ctx context.Context, r *connect.Request[clavigerv1.ListSessionsRequest]) (*connect.Response[clavigerv1.ListSessionsResponse], error) {
	m := r.Msg
	q := keeper.SessionQuery{Principal: claviger.ID(m.Principal), Issuer: m.Issuer, Subject: m.Subject, Ended: m.IncludeEnded,
		After: claviger.ID(m.Page), Limit: int(m.PageSize)}
	if m.Client != "" {
		c, err := s.keeper.ReadClient(ctx, caller(ctx), m.Client)
		if err != nil {
			return nil, err
		}
		q.Client = c.ID
	}
	out, next, err := s.keeper.Sessions(ctx, caller(ctx), q)
	return reply(&clavigerv1.ListSessionsResponse{Sessions: each(out, sessionTo), NextPage: string(next)}, err)
}

func (s sessions) CloseSession(ctx context.Context, r *connect.Request[clavigerv1.CloseSessionRequest]) (*connect.Response[clavigerv1.Session], error) {
	why := keeper.End{Reason: keeper.EndClosed, Text: r.Msg.Reason}
	if r.Msg.Exposed {
		why.Reason = keeper.EndExposure
	}
	return s.show(ctx, r.Msg.Id, func(id claviger.ID) error {
		return s.keeper.EndSession(ctx, caller(ctx), id, why)
	})
}

func (s sessions) BindSession(ctx context.Context, r *connect.Request[clavigerv1.BindSessionRequest]) (*connect.Response[clavigerv1.Session], error) {
	return s.show(ctx, r.Msg.Id, func(id claviger.ID) error { return s.keeper.BindSession(ctx, caller(ctx), id, r.Msg.Dbsc) })
}

func (s sessions) SuspendSession(ctx context.Context, r *connect.Request[clavigerv1.SuspendSessionRequest]) (*connect.Response[clavigerv1.Session], error) {
	return s.show(ctx, r.Msg.Id, func(id claviger.ID) error { return s.keeper.SuspendSession(ctx, caller(ctx), id, r.Msg.Reason) })
}

func (s sessions) ResumeSession(ctx context.Context, r *connect.Request[clavigerv1.ResumeSessionRequest]) (*connect.Response[clavigerv1.Session], error) {
	return s.show(ctx, r.Msg.Id, func(id claviger.ID) error { return s.keeper.ResumeSession(ctx, caller(ctx), id, r.Msg.Reason) })
}

func sessionTo(s claviger.Session) *clavigerv1.Session {
	return &clavigerv1.Session{
		Id: string(s.ID), Client: string(s.Client), Principal: string(s.Principal),
		Subject: &clavigerv1.Subject{Issuer: s.Subject.Issuer, Id: s.Subject.ID, Name: s.Subject.Name},
		Actors:  each(s.Actors, func(a claviger.Actor) *clavigerv1.Actor { return &clavigerv1.Actor{Issuer: a.Issuer, Id: a.ID} }),
		KeyKind: string(s.KeyKind), Algorithm: string(s.Algorithm), Public: s.Public, Jkt: s.JKT,
		Binding: s.Binding, BindingText: claviger.BindingText(s.Binding), Dbsc: s.DBSC,
		Scopes: s.Scopes, Audiences: s.Audiences, Methods: s.Methods, MaxUses: s.MaxUses, Rate: rateTo(s.Rate), Idle: durationTo(s.Idle),
		SourceChanges: string(s.SourceChanges), Created: timeTo(s.Created), Ends: timeTo(s.Ends), IdleEnd: timeTo(s.IdleEnd()), Source: sourceTo(s.Source),
		State: string(s.State), EndReason: s.EndReason, Ended: timeTo(s.Ended), LastUsed: timeTo(s.LastUsed), Uses: s.Uses, UpstreamIssuer: s.UpstreamIssuer,
	}
}

func sourceTo(s claviger.Source) *clavigerv1.Source {
	out := &clavigerv1.Source{UserAgent: s.UserAgent}
	if s.Address.IsValid() {
		out.Address = s.Address.String()
	}
	return out
}

func sourceFrom(s *clavigerv1.Source) (out claviger.Source, err error) {
	out.UserAgent = s.GetUserAgent()
	if s.GetAddress() == "" {
		return out, nil
	}
	if out.Address, err = netip.ParseAddr(s.GetAddress()); err != nil || out.Address.Zone() != "" {
		return out, invalid("the source is no address", "write it such as 192.0.2.7 or 2001:db8::7")
	}
	return out, nil
}

func rateTo(r *claviger.Rate) *clavigerv1.Rate {
	if r == nil {
		return nil
	}
	return &clavigerv1.Rate{PerSecond: r.PerSecond, Burst: r.Burst}
}

func rateFrom(r *clavigerv1.Rate) *claviger.Rate {
	if r == nil {
		return nil
	}
	return &claviger.Rate{PerSecond: r.PerSecond, Burst: r.Burst}
}
