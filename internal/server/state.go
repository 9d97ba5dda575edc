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
	req, err := protectFrom(r.Msg)
	if err != nil {
		return nil, err
	}
	out, err := s.keeper.Protect(ctx, caller(ctx), req)
	return reply(protectTo(out), err)
}

func (s states) Unprotect(ctx context.Context, r *connect.Request[clavigerv1.UnprotectRequest]) (*connect.Response[clavigerv1.UnprotectResponse], error) {
	req, err := unprotectFrom(r.Msg)
	if err != nil {
		return nil, err
	}
	out, err := s.keeper.Unprotect(ctx, caller(ctx), req)
	return reply(unprotectTo(out), err)
}

func protectFrom(m *clavigerv1.ProtectRequest) (keeper.ProtectRequest, error) {
	params, err := paramsFrom(m.Params)
	return keeper.ProtectRequest{Key: m.Key, Format: state.Format(m.Format), Params: params, Payloads: m.Payloads, Context: contextFrom(m.Context)}, err
}

func protectTo(p keeper.Protected) *clavigerv1.ProtectResponse {
	return &clavigerv1.ProtectResponse{Tokens: p.Tokens, Version: p.Version}
}

func unprotectFrom(m *clavigerv1.UnprotectRequest) (keeper.UnprotectRequest, error) {
	params, err := paramsFrom(m.Params)
	return keeper.UnprotectRequest{
		Key: m.Key, Format: state.Format(m.Format), Params: params, Tokens: m.Tokens, Expired: m.Expired, Context: contextFrom(m.Context),
	}, err
}

func unprotectTo(items []keeper.Unprotected) *clavigerv1.UnprotectResponse {
	return &clavigerv1.UnprotectResponse{Items: each(items, func(u keeper.Unprotected) *clavigerv1.Unprotected {
		return &clavigerv1.Unprotected{
			Ok: u.OK, Payload: u.Payload, Version: u.Version, Issued: timeTo(u.Facts.Issued), Expires: timeTo(u.Facts.Expires),
			Purpose: u.Facts.Purpose, KeyId: u.Facts.KeyID, Compressed: u.Facts.Compressed, Header: u.Facts.Header, Renew: u.Renew,
		}
	})}
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
