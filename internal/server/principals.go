package server

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// principals serves claviger.v1.PrincipalService.
type principals struct{ keeper *keeper.Keeper }

func (s principals) CreatePrincipal(ctx context.Context, r *connect.Request[clavigerv1.CreatePrincipalRequest]) (*connect.Response[clavigerv1.Principal], error) {
	out, err := s.keeper.CreatePrincipal(ctx, caller(ctx), keeper.CreatePrincipal{
		Name: r.Msg.Name, Kind: claviger.PrincipalKind(r.Msg.Kind), Environments: r.Msg.Environments, Owner: r.Msg.Owner,
		Bound: r.Msg.Bound,
	})
	return reply(principalTo(out), err)
}

func (s principals) GetPrincipal(ctx context.Context, r *connect.Request[clavigerv1.GetPrincipalRequest]) (*connect.Response[clavigerv1.Principal], error) {
	out, err := s.keeper.Principal(ctx, caller(ctx), r.Msg.Principal)
	return reply(principalTo(out), err)
}

func (s principals) ListPrincipals(ctx context.Context, r *connect.Request[clavigerv1.ListPrincipalsRequest]) (*connect.Response[clavigerv1.ListPrincipalsResponse], error) {
	out, next, err := s.keeper.Principals(ctx, caller(ctx), store.PrincipalQuery{Live: !r.Msg.IncludeRevoked, After: r.Msg.Page, Limit: int(r.Msg.PageSize)})
	return reply(&clavigerv1.ListPrincipalsResponse{Principals: each(out, principalTo), NextPage: next}, err)
}

func (s principals) RevokePrincipal(ctx context.Context, r *connect.Request[clavigerv1.RevokePrincipalRequest]) (*connect.Response[clavigerv1.Principal], error) {
	out, err := s.keeper.RevokePrincipal(ctx, caller(ctx), r.Msg.Principal, r.Msg.Reason)
	return reply(principalTo(out), err)
}

func (s principals) IssueCode(ctx context.Context, r *connect.Request[clavigerv1.IssueCodeRequest]) (*connect.Response[clavigerv1.IssueCodeResponse], error) {
	lifetime, err := durationFrom(r.Msg.Lifetime)
	if err != nil {
		return nil, err
	}
	out, err := s.keeper.IssueCode(ctx, caller(ctx), r.Msg.Principal, time.Duration(lifetime))
	return reply(&clavigerv1.IssueCodeResponse{Code: out.Code, Expires: timeTo(out.Expires)}, err)
}

func (s principals) Enroll(ctx context.Context, r *connect.Request[clavigerv1.EnrollRequest]) (*connect.Response[clavigerv1.Certificate], error) {
	out, err := s.keeper.Enroll(ctx, r.Msg.Code, r.Msg.Csr, callOf(ctx).facts)
	return reply(certificateTo(out), err)
}

func (s principals) BeginEnroll(ctx context.Context, r *connect.Request[clavigerv1.BeginEnrollRequest]) (*connect.Response[clavigerv1.BindingChallenge], error) {
	out, err := s.keeper.BeginEnroll(ctx, r.Msg.Code, r.Msg.Csr, claimFrom(r.Msg.Device), callOf(ctx).facts)
	return reply(challengeTo(out), err)
}

func (s principals) FinishEnroll(ctx context.Context, r *connect.Request[clavigerv1.BindingProof]) (*connect.Response[clavigerv1.Certificate], error) {
	out, err := s.keeper.FinishEnroll(ctx, proofFrom(r.Msg), callOf(ctx).facts)
	return reply(certificateTo(out), err)
}

func (s principals) BeginRenew(ctx context.Context, r *connect.Request[clavigerv1.BeginRenewRequest]) (*connect.Response[clavigerv1.BindingChallenge], error) {
	out, err := s.keeper.BeginRenew(ctx, r.Msg.Certificate, r.Msg.Csr, claimFrom(r.Msg.Device), callOf(ctx).facts)
	return reply(challengeTo(out), err)
}

func (s principals) FinishRenew(ctx context.Context, r *connect.Request[clavigerv1.BindingProof]) (*connect.Response[clavigerv1.Certificate], error) {
	out, err := s.keeper.FinishRenew(ctx, proofFrom(r.Msg), callOf(ctx).facts)
	return reply(certificateTo(out), err)
}

func (s principals) Renew(ctx context.Context, r *connect.Request[clavigerv1.RenewRequest]) (*connect.Response[clavigerv1.Certificate], error) {
	out, err := s.keeper.Renew(ctx, caller(ctx), r.Msg.Csr)
	return reply(certificateTo(out), err)
}

func (s principals) ListCertificates(ctx context.Context, r *connect.Request[clavigerv1.ListCertificatesRequest]) (*connect.Response[clavigerv1.ListCertificatesResponse], error) {
	out, err := s.keeper.Certificates(ctx, caller(ctx), r.Msg.Principal)
	return reply(&clavigerv1.ListCertificatesResponse{Certificates: each(out, certificateTo)}, err)
}

func (s principals) RevokeCertificate(ctx context.Context, r *connect.Request[clavigerv1.RevokeCertificateRequest]) (*connect.Response[clavigerv1.RevokeCertificateResponse], error) {
	return reply(&clavigerv1.RevokeCertificateResponse{}, s.keeper.RevokeCertificate(ctx, caller(ctx), r.Msg.Serial, r.Msg.Reason))
}

// WhoAmI answers from what the gate found; nothing more is read.
func (s principals) WhoAmI(ctx context.Context, _ *connect.Request[clavigerv1.WhoAmIRequest]) (*connect.Response[clavigerv1.WhoAmIResponse], error) {
	c := callOf(ctx)
	p, f := c.by, c.by.Facts
	out := &clavigerv1.WhoAmIResponse{
		Principal: &clavigerv1.Principal{Id: string(p.ID), Name: p.Name, Kind: string(p.Kind), Environments: p.Environments, Binding: bindingTo(p.Binding)},
		Method:    f.Method, Uid: int32(f.UID), Executable: f.Executable, Cgroup: f.Cgroup, Unit: f.Unit,
		CertSerial: f.CertSerial, CertNotAfter: timeTo(c.notAfter),
	}
	if f.Source.IsValid() {
		out.Source = f.Source.String()
	}
	return connect.NewResponse(out), nil
}

func principalTo(p claviger.PrincipalRecord) *clavigerv1.Principal {
	return &clavigerv1.Principal{
		Id: string(p.ID), Name: p.Name, Kind: string(p.Kind), Environments: p.Environments, Owner: p.Owner, KeyHash: p.KeyHash,
		Created: timeTo(p.Created), Revoked: timeTo(p.Revoked), RevokeReason: p.RevokeReason,
		Bound: p.Bound, Binding: bindingTo(p.Binding),
	}
}

func bindingTo(b *claviger.Binding) *clavigerv1.PrincipalBinding {
	if b == nil {
		return nil
	}
	return &clavigerv1.PrincipalBinding{
		Custodian: string(b.Custodian), Device: b.Device, Software: b.Software, Fingerprint: b.Fingerprint, AkName: b.AKName,
		EkFingerprint: b.EKFingerprint, Level: string(b.Level), Root: b.Root, TestRoot: b.TestRoot, At: timeTo(b.At), Finding: b.Finding,
	}
}

func certificateTo(c keeper.Certificate) *clavigerv1.Certificate {
	return &clavigerv1.Certificate{
		Chain: c.Chain, Roots: c.Roots, Serial: c.Serial, Principal: string(c.Principal),
		NotBefore: timeTo(c.NotBefore), NotAfter: timeTo(c.NotAfter), Revoked: timeTo(c.Revoked),
		Binding: bindingTo(c.Binding),
	}
}

func claimFrom(d *clavigerv1.BoundDevice) keeper.Claim {
	return keeper.Claim{
		Device: claviger.Device{
			Kind: claviger.Custodian(d.GetCustodian()), Manufacturer: d.GetManufacturer(), Model: d.GetModel(),
			Serial: d.GetSerial(), Firmware: d.GetFirmware(), Software: d.GetSoftware(),
		},
		Level: claviger.Level(d.GetLevel()), AKPublic: d.GetAkPublic(), EKPublic: d.GetEkPublic(), EKCertificates: d.GetEkCertificates(),
	}
}

func challengeTo(c keeper.Challenge) *clavigerv1.BindingChallenge {
	return &clavigerv1.BindingChallenge{Id: c.ID, Nonce: c.Nonce, Credential: c.Credential, Encrypted: c.Encrypted, Expires: timeTo(c.Expires)}
}

func proofFrom(p *clavigerv1.BindingProof) keeper.Proof {
	return keeper.Proof{
		ID: p.Id, Signature: p.Signature, Activated: p.Activated,
		KeyPublic: p.KeyPublic, Attest: p.Attest, AttestSignature: p.AttestSignature,
	}
}
