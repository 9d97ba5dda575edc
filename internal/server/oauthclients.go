package server

import (
	"context"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// clients serves claviger.v1.ClientService.
type clients struct{ keeper *keeper.Keeper }

func (s clients) CreateClient(ctx context.Context, r *connect.Request[clavigerv1.CreateClientRequest]) (*connect.Response[clavigerv1.Client], error) {
	c, err := clientFrom(r.Msg.Client)
	if err != nil {
		return nil, err
	}
	out, err := s.keeper.CreateClient(ctx, caller(ctx), c)
	return reply(clientTo(out), err)
}

func (s clients) GetClient(ctx context.Context, r *connect.Request[clavigerv1.GetClientRequest]) (*connect.Response[clavigerv1.Client], error) {
	out, err := s.keeper.ReadClient(ctx, caller(ctx), r.Msg.Client)
	return reply(clientTo(out), err)
}

func (s clients) ListClients(ctx context.Context, r *connect.Request[clavigerv1.ListClientsRequest]) (*connect.Response[clavigerv1.ListClientsResponse], error) {
	q := store.ClientQuery{After: r.Msg.Page, Limit: int(r.Msg.PageSize)}
	if by := caller(ctx); r.Msg.Principal == string(by.ID) || r.Msg.Principal == by.Name {
		q.Principal = by.ID
	} else if r.Msg.Principal != "" {
		p, err := s.keeper.Principal(ctx, by, r.Msg.Principal)
		if err != nil {
			return nil, err
		}
		q.Principal = p.ID
	}
	out, next, err := s.keeper.Clients(ctx, caller(ctx), q)
	return reply(&clavigerv1.ListClientsResponse{Clients: each(out, clientTo), NextPage: next}, err)
}

func (s clients) UpdateClient(ctx context.Context, r *connect.Request[clavigerv1.UpdateClientRequest]) (*connect.Response[clavigerv1.Client], error) {
	c, err := clientFrom(r.Msg.Client)
	if err != nil {
		return nil, err
	}
	out, err := s.keeper.UpdateClient(ctx, caller(ctx), c)
	return reply(clientTo(out), err)
}

func (s clients) DisableClient(ctx context.Context, r *connect.Request[clavigerv1.DisableClientRequest]) (*connect.Response[clavigerv1.Client], error) {
	out, err := s.keeper.DisableClient(ctx, caller(ctx), r.Msg.Client, r.Msg.Reason)
	return reply(clientTo(out), err)
}

func clientTo(c claviger.Client) *clavigerv1.Client {
	l := c.Limits
	return &clavigerv1.Client{
		Id: string(c.ID), Name: string(c.Name), Principal: string(c.Principal), Kind: string(c.Kind), Jwks: c.JWKS, Certificates: c.Certificates,
		RedirectUris: c.RedirectURIs, PostLogoutUris: c.PostLogoutURIs, Audiences: c.Audiences, Scopes: c.Scopes, GrantTypes: c.GrantTypes,
		TokenAlgorithm: string(c.TokenAlgorithm), Created: timeTo(c.Created), CreatedBy: string(c.CreatedBy),
		Disabled: timeTo(c.Disabled), DisabledReason: c.DisabledReason, Revision: c.Revision,
		Limits: &clavigerv1.ClientLimits{
			Access: durationTo(l.Access), RefreshIdle: durationTo(l.RefreshIdle), Refresh: durationTo(l.Refresh),
			SessionIdle: durationTo(l.SessionIdle), Session: durationTo(l.Session), SessionUses: l.SessionUses, SessionRate: rateTo(l.SessionRate),
			SourceChanges: string(l.SourceChanges), MaxSessions: l.MaxSessions,
			SessionVolume: l.SessionVolume, SuspendOn: each(l.SuspendOn, func(e claviger.SessionEvent) string { return string(e) }),
		},
	}
}

func clientFrom(m *clavigerv1.Client) (c claviger.Client, err error) {
	if m == nil {
		return c, invalid("there is no client in the request", "send one")
	}
	l := m.GetLimits()
	c = claviger.Client{
		ID: claviger.ID(m.Id), Name: claviger.Name(m.Name), Principal: claviger.ID(m.Principal), Kind: claviger.ClientKind(m.Kind), JWKS: m.Jwks,
		Certificates: m.Certificates, RedirectURIs: m.RedirectUris, PostLogoutURIs: m.PostLogoutUris, Audiences: m.Audiences, Scopes: m.Scopes,
		GrantTypes: m.GrantTypes, TokenAlgorithm: claviger.Algorithm(m.TokenAlgorithm), Revision: m.Revision,
		Limits: claviger.ClientLimits{SessionUses: l.GetSessionUses(), SessionRate: rateFrom(l.GetSessionRate()),
			SourceChanges: claviger.SourceChange(l.GetSourceChanges()), MaxSessions: l.GetMaxSessions(),
			SessionVolume: l.GetSessionVolume(), SuspendOn: each(l.GetSuspendOn(), func(e string) claviger.SessionEvent { return claviger.SessionEvent(e) })},
	}
	for _, d := range []struct {
		into *claviger.Duration
		from *durationpb.Duration
	}{
		{&c.Limits.Access, l.GetAccess()}, {&c.Limits.RefreshIdle, l.GetRefreshIdle()}, {&c.Limits.Refresh, l.GetRefresh()},
		{&c.Limits.SessionIdle, l.GetSessionIdle()}, {&c.Limits.Session, l.GetSession()},
	} {
		if *d.into, err = durationFrom(d.from); err != nil {
			return c, err
		}
	}
	return c, nil
}
