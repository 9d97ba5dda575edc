package server

import (
	"context"

	"connectrpc.com/connect"

	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/keeper"
	"claviger.dev/pubkey"
)

// use serves claviger.v1.UseService.
type use struct{ keeper *keeper.Keeper }

func (u use) Sign(ctx context.Context, r *connect.Request[clavigerv1.SignRequest]) (*connect.Response[clavigerv1.SignResponse], error) {
	encoding, err := encodingFrom(r.Msg.Encoding)
	if err != nil {
		return nil, err
	}
	out, err := u.keeper.Sign(ctx, caller(ctx), keeper.SignRequest{
		Key: r.Msg.Key, Inputs: r.Msg.Inputs, Prehashed: r.Msg.Prehashed, Encoding: encoding, Context: contextFrom(r.Msg.Context),
	})
	return reply(&clavigerv1.SignResponse{Signatures: out.Signatures, Version: out.Version, Kid: out.KID}, err)
}

func (u use) SignStructured(ctx context.Context, r *connect.Request[clavigerv1.SignStructuredRequest]) (*connect.Response[clavigerv1.SignStructuredResponse], error) {
	req := keeper.StructuredRequest{Key: r.Msg.Key, Context: contextFrom(r.Msg.Context)}
	switch s := r.Msg.Structure.(type) {
	case *clavigerv1.SignStructuredRequest_Jwt:
		req.JWT = &keeper.JWT{Claims: s.Jwt.GetClaims(), Type: s.Jwt.GetType()}
	case *clavigerv1.SignStructuredRequest_X509Tbs:
		req.X509TBS = s.X509Tbs
	case *clavigerv1.SignStructuredRequest_SshTbs:
		req.SSHTBS = s.SshTbs
	}
	out, err := u.keeper.SignStructured(ctx, caller(ctx), req)
	return reply(&clavigerv1.SignStructuredResponse{Signed: out.Signed, Version: out.Version, Kid: out.KID}, err)
}

func (u use) Verify(ctx context.Context, r *connect.Request[clavigerv1.VerifyRequest]) (*connect.Response[clavigerv1.VerifyResponse], error) {
	encoding, err := encodingFrom(r.Msg.Encoding)
	if err != nil {
		return nil, err
	}
	out, err := u.keeper.Verify(ctx, caller(ctx), keeper.VerifyRequest{
		Key: r.Msg.Key, Prehashed: r.Msg.Prehashed, Encoding: encoding, Context: contextFrom(r.Msg.Context),
		Items: each(r.Msg.Items, func(s *clavigerv1.Signed) keeper.Item {
			return keeper.Item{Input: s.Input, Signature: s.Signature, Version: s.Version}
		}),
	})
	return reply(&clavigerv1.VerifyResponse{Verdicts: each(out, verdictTo)}, err)
}

func (u use) Mac(ctx context.Context, r *connect.Request[clavigerv1.MacRequest]) (*connect.Response[clavigerv1.MacResponse], error) {
	out, err := u.keeper.MAC(ctx, caller(ctx), keeper.MACRequest{Key: r.Msg.Key, Inputs: r.Msg.Inputs, Context: contextFrom(r.Msg.Context)})
	return reply(&clavigerv1.MacResponse{Macs: out.MACs, Version: out.Version}, err)
}

func (u use) VerifyMac(ctx context.Context, r *connect.Request[clavigerv1.VerifyMacRequest]) (*connect.Response[clavigerv1.VerifyMacResponse], error) {
	out, err := u.keeper.VerifyMAC(ctx, caller(ctx), keeper.VerifyMACRequest{
		Key: r.Msg.Key, Context: contextFrom(r.Msg.Context),
		Items: each(r.Msg.Items, func(m *clavigerv1.Maced) keeper.Item {
			return keeper.Item{Input: m.Input, Signature: m.Mac, Version: m.Version}
		}),
	})
	return reply(&clavigerv1.VerifyMacResponse{Verdicts: each(out, verdictTo)}, err)
}

func (u use) Seal(ctx context.Context, r *connect.Request[clavigerv1.SealRequest]) (*connect.Response[clavigerv1.SealResponse], error) {
	out, err := u.keeper.Seal(ctx, caller(ctx), keeper.SealRequest{
		Key: r.Msg.Key, Context: contextFrom(r.Msg.Context),
		Items: each(r.Msg.Items, func(p *clavigerv1.Plain) keeper.Plain {
			return keeper.Plain{Plaintext: p.Plaintext, AssociatedData: p.AssociatedData}
		}),
	})
	return reply(&clavigerv1.SealResponse{Sealed: out.Sealed, Version: out.Version}, err)
}

func (u use) Open(ctx context.Context, r *connect.Request[clavigerv1.OpenRequest]) (*connect.Response[clavigerv1.OpenResponse], error) {
	out, err := u.keeper.Open(ctx, caller(ctx), keeper.OpenRequest{
		Key: r.Msg.Key, Context: contextFrom(r.Msg.Context),
		Items: each(r.Msg.Items, func(s *clavigerv1.Sealed) keeper.SealedItem {
			return keeper.SealedItem{Sealed: s.Sealed, AssociatedData: s.AssociatedData}
		}),
	})
	return reply(&clavigerv1.OpenResponse{Items: each(out, func(o keeper.Opened) *clavigerv1.Opened {
		return &clavigerv1.Opened{Ok: o.OK, Plaintext: o.Plaintext, Version: o.Version}
	})}, err)
}

func contextFrom(c *clavigerv1.Context) keeper.Context {
	return keeper.Context{Audience: c.GetAudience(), Purpose: c.GetPurpose()}
}

func encodingFrom(e clavigerv1.SignatureEncoding) (pubkey.Encoding, error) {
	switch e {
	case clavigerv1.SignatureEncoding_SIGNATURE_ENCODING_UNSPECIFIED, clavigerv1.SignatureEncoding_SIGNATURE_ENCODING_ASN1:
		return pubkey.ASN1, nil
	case clavigerv1.SignatureEncoding_SIGNATURE_ENCODING_P1363:
		return pubkey.P1363, nil
	}
	return 0, invalid("the signature encoding is not known", "use SIGNATURE_ENCODING_ASN1 or SIGNATURE_ENCODING_P1363")
}

func verdictTo(v keeper.Verdict) *clavigerv1.Verdict {
	return &clavigerv1.Verdict{Valid: v.Valid, Version: v.Version}
}
