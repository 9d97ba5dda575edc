package server

import (
	"context"
	"net/netip"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// grants serves claviger.v1.GrantService.
type grants struct{ keeper *keeper.Keeper }

func (s grants) CreateGrant(ctx context.Context, r *connect.Request[clavigerv1.CreateGrantRequest]) (*connect.Response[clavigerv1.Grant], error) {
	conditions, err := conditionsFrom(r.Msg.Conditions)
	if err != nil {
		return nil, err
	}
	out, err := s.keeper.CreateGrant(ctx, caller(ctx), keeper.CreateGrant{
		Principal: r.Msg.Principal, Selector: r.Msg.Selector, Operations: r.Msg.Operations, Conditions: conditions, Reason: r.Msg.Reason,
	})
	return reply(grantTo(out), err)
}

func (s grants) GetGrant(ctx context.Context, r *connect.Request[clavigerv1.GetGrantRequest]) (*connect.Response[clavigerv1.Grant], error) {
	out, err := s.keeper.Grant(ctx, caller(ctx), r.Msg.Id)
	return reply(grantTo(out), err)
}

func (s grants) ListGrants(ctx context.Context, r *connect.Request[clavigerv1.ListGrantsRequest]) (*connect.Response[clavigerv1.ListGrantsResponse], error) {
	q := store.GrantQuery{Live: !r.Msg.IncludeRevoked, After: r.Msg.Page, Limit: int(r.Msg.PageSize)}
	if r.Msg.Principal != "" {
		p, err := s.keeper.Principal(ctx, caller(ctx), r.Msg.Principal)
		if err != nil {
			return nil, err
		}
		q.Principal = p.ID
	}
	if r.Msg.Key != "" {
		k, err := s.keeper.Key(ctx, caller(ctx), r.Msg.Key)
		if err != nil {
			return nil, err
		}
		q.Key = k.Name
	}
	out, next, err := s.keeper.Grants(ctx, caller(ctx), q)
	return reply(&clavigerv1.ListGrantsResponse{Grants: each(out, grantTo), NextPage: next}, err)
}

func (s grants) RevokeGrant(ctx context.Context, r *connect.Request[clavigerv1.RevokeGrantRequest]) (*connect.Response[clavigerv1.Grant], error) {
	out, err := s.keeper.RevokeGrant(ctx, caller(ctx), r.Msg.Id, r.Msg.Reason)
	return reply(grantTo(out), err)
}

func grantTo(g keeper.GrantView) *clavigerv1.Grant {
	return &clavigerv1.Grant{
		Id: string(g.ID), Principal: string(g.Principal), PrincipalName: g.PrincipalName, Selector: string(g.Selector),
		Operations: texts(g.Operations), Conditions: conditionsTo(g.Conditions), Reason: g.Reason, Created: timeTo(g.Created),
		CreatedBy: string(g.CreatedBy), Revoked: timeTo(g.Revoked), RevokeReason: g.RevokeReason, Use: useTo(g.Use),
	}
}

func conditionsTo(c claviger.Conditions) *clavigerv1.Conditions {
	out := &clavigerv1.Conditions{
		Sources: each(c.Sources, netip.Prefix.String), Executables: c.Executables, Units: c.Units, Cgroups: c.Cgroups,
		Audiences: c.Audiences, Purposes: c.Purposes, NotBefore: timeTo(c.NotBefore), NotAfter: timeTo(c.NotAfter),
		Count: c.Count, MinLevel: string(c.MinLevel), MinBinding: string(c.MinBinding), Formats: c.Formats,
	}
	out.Rate = rateTo(c.Rate)
	switch t := c.Template; {
	case t == nil:
	case t.JWT != nil:
		out.Template = &clavigerv1.Template{Kind: &clavigerv1.Template_Jwt{Jwt: &clavigerv1.JwtTemplate{
			Type: t.JWT.Type, Issuer: t.JWT.Issuer, Subject: t.JWT.Subject, Audiences: t.JWT.Audiences,
			MaxLifetime: durationTo(t.JWT.MaxLifetime), Claims: t.JWT.Claims, Required: t.JWT.Required,
		}}}
	case t.X509 != nil:
		out.Template = &clavigerv1.Template{Kind: &clavigerv1.Template_X509{X509: &clavigerv1.X509Template{
			IssuerDn: t.X509.IssuerDN, CommonName: t.X509.CommonName, DnsNames: t.X509.DNSNames, Uris: t.X509.URIs,
			Ips: each(t.X509.IPs, netip.Prefix.String), ExtKeyUsage: t.X509.ExtKeyUsage, MaxLifetime: durationTo(t.X509.MaxLifetime),
		}}}
	case t.SSH != nil:
		out.Template = &clavigerv1.Template{Kind: &clavigerv1.Template_Ssh{Ssh: &clavigerv1.SshTemplate{
			Host: t.SSH.Host, KeyId: t.SSH.KeyID, Principals: t.SSH.Principals, CriticalOptions: t.SSH.CriticalOptions,
			Extensions: t.SSH.Extensions, MaxLifetime: durationTo(t.SSH.MaxLifetime),
		}}}
	}
	return out
}

func conditionsFrom(c *clavigerv1.Conditions) (out claviger.Conditions, err error) {
	if c == nil {
		return out, nil
	}
	out = claviger.Conditions{
		Executables: c.Executables, Units: c.Units, Cgroups: c.Cgroups, Audiences: c.Audiences, Purposes: c.Purposes,
		Count: c.Count, MinLevel: claviger.Level(c.MinLevel), MinBinding: claviger.Level(c.MinBinding), Formats: c.Formats,
	}
	if out.Sources, err = prefixesFrom(c.Sources); err != nil {
		return out, err
	}
	if out.NotBefore, err = timeFrom(c.NotBefore); err != nil {
		return out, err
	}
	if out.NotAfter, err = timeFrom(c.NotAfter); err != nil {
		return out, err
	}
	out.Rate = rateFrom(c.Rate)
	out.Template, err = templateFrom(c.Template)
	return out, err
}

func templateFrom(t *clavigerv1.Template) (*claviger.Template, error) {
	if t == nil {
		return nil, nil //nolint:nilnil // no template is what was asked for
	}
	switch kind := t.Kind.(type) {
	case *clavigerv1.Template_Jwt:
		lifetime, err := durationFrom(kind.Jwt.MaxLifetime)
		return &claviger.Template{JWT: &claviger.JWTTemplate{
			Type: kind.Jwt.Type, Issuer: kind.Jwt.Issuer, Subject: kind.Jwt.Subject, Audiences: kind.Jwt.Audiences,
			MaxLifetime: lifetime, Claims: kind.Jwt.Claims, Required: kind.Jwt.Required,
		}}, err
	case *clavigerv1.Template_X509:
		lifetime, err := durationFrom(kind.X509.MaxLifetime)
		if err != nil {
			return nil, err
		}
		ips, err := prefixesFrom(kind.X509.Ips)
		return &claviger.Template{X509: &claviger.X509Template{
			IssuerDN: kind.X509.IssuerDn, CommonName: kind.X509.CommonName, DNSNames: kind.X509.DnsNames, URIs: kind.X509.Uris,
			IPs: ips, ExtKeyUsage: kind.X509.ExtKeyUsage, MaxLifetime: lifetime,
		}}, err
	case *clavigerv1.Template_Ssh:
		lifetime, err := durationFrom(kind.Ssh.MaxLifetime)
		return &claviger.Template{SSH: &claviger.SSHTemplate{
			Host: kind.Ssh.Host, KeyID: kind.Ssh.KeyId, Principals: kind.Ssh.Principals, CriticalOptions: kind.Ssh.CriticalOptions,
			Extensions: kind.Ssh.Extensions, MaxLifetime: lifetime,
		}}, err
	}
	return nil, invalid("the template is empty", "set one of jwt, x509 and ssh, or leave the template out")
}

// prefixesFrom reads address prefixes; an address alone is a prefix of its
// full length.
func prefixesFrom(in []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			addr, addrErr := netip.ParseAddr(s)
			if addrErr != nil || addr.Zone() != "" {
				return nil, invalid("a source is no address prefix", "write it such as 10.0.0.0/8 or 2001:db8::/32")
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		if p != p.Masked() {
			return nil, invalid("an address prefix has bits set past its length", "write the network's first address, such as 10.0.0.0/8")
		}
		out = append(out, p)
	}
	return out, nil
}
