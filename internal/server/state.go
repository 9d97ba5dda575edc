package server

import (
	"context"

	"connectrpc.com/connect"

	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// states serves claviger.v1.StateService.
type states struct{ keeper *keeper.Keeper }

func (s states) Protect(ctx context.Context, r *connect.Request[clavigerv1.ProtectRequest]) (*connect.Response[clavigerv1.ProtectResponse], error) {
	params, err := paramsFrom(r.Msg.Params)
	if err != nil {
		return nil, err
	}
	out, err := s.keeper.Protect(ctx, caller(ctx), keeper.ProtectRequest{
		Key: r.Msg.Key, Format: state.Format(r.Msg.Format), Params: params, Payloads: r.Msg.Payloads, Context: contextFrom(r.Msg.Context),
	})
	return reply(&clavigerv1.ProtectResponse{Tokens: out.Tokens, Version: out.Version}, err)
}

func (s states) Unprotect(ctx context.Context, r *connect.Request[clavigerv1.UnprotectRequest]) (*connect.Response[clavigerv1.UnprotectResponse], error) {
	params, err := paramsFrom(r.Msg.Params)
	if err != nil {
		return nil, err
	}
	out, err := s.keeper.Unprotect(ctx, caller(ctx), keeper.UnprotectRequest{
		Key: r.Msg.Key, Format: state.Format(r.Msg.Format), Params: params, Tokens: r.Msg.Tokens, Expired: r.Msg.Expired, Context: contextFrom(r.Msg.Context),
	})
	return reply(&clavigerv1.UnprotectResponse{Items: each(out, func(u keeper.Unprotected) *clavigerv1.Unprotected {
		return &clavigerv1.Unprotected{
			Ok: u.OK, Payload: u.Payload, Version: u.Version, Issued: timeTo(u.Facts.Issued), Expires: timeTo(u.Facts.Expires),
			Purpose: u.Facts.Purpose, KeyId: u.Facts.KeyID, Compressed: u.Facts.Compressed, Header: u.Facts.Header, Renew: u.Renew,
		}
	})}, err)
}

func paramsFrom(p *clavigerv1.StateParams) (out state.Params, err error) {
	if p == nil {
		return out, nil
	}
	out = state.Params{
		Salt: p.Salt, Salt2: p.Salt2, Name: p.Name, Purpose: p.Purpose, Purposes: p.Purposes, AnyPurpose: p.AnyPurpose,
		Digest: recipe.Hash(p.Digest), KDF: recipe.Hash(p.Kdf), Derivation: p.Derivation, Iterations: p.Iterations, Size: p.Size,
		Cipher: p.Cipher, Encoding: p.Encoding, Separator: p.Separator, KeyID: p.KeyId, Compressed: p.Compressed,
		Over: p.Over, Header: p.Header, Properties: p.Properties, Class: p.Class, Modifier: p.Modifier, Whole: p.Whole,
	}
	if out.Issued, err = timeFrom(p.Issued); err != nil {
		return out, err
	}
	out.Expires, err = timeFrom(p.Expires)
	return out, err
}
