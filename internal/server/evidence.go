package server

import (
	"context"
	"os"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/evidence"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// evidences serves claviger.v1.EvidenceService.
type evidences struct {
	keeper *keeper.Keeper
	roots  evidence.DeviceRoots
}

func (s evidences) RunAttest(ctx context.Context, r *connect.Request[clavigerv1.RunAttestRequest]) (*connect.Response[clavigerv1.RunAttestResponse], error) {
	version, a, err := s.keeper.Attest(ctx, caller(ctx), r.Msg.Key, r.Msg.Version, r.Msg.Nonce)
	return reply(&clavigerv1.RunAttestResponse{
		Version: version, KeyPublic: a.KeyPublic, Attest: a.Attest, Signature: a.Signature,
		AkPublic: a.AKPublic, EkPublic: a.EKPublic, EkCertificates: a.EKCertificates,
	}, err)
}

func (s evidences) RunProbe(ctx context.Context, r *connect.Request[clavigerv1.RunProbeRequest]) (*connect.Response[clavigerv1.RunProbeResponse], error) {
	version, p, err := s.keeper.Probe(ctx, caller(ctx), r.Msg.Key, r.Msg.Version, r.Msg.Loud)
	return reply(&clavigerv1.RunProbeResponse{
		Version: version, Level: string(p.Level), Finding: p.Finding,
		Attempts: each(p.Attempts, func(a claviger.Attempt) *clavigerv1.Attempt {
			return &clavigerv1.Attempt{Probe: a.Probe, Tried: a.Tried, Result: a.Result, Verdict: string(a.Verdict), Control: a.Control, Reason: a.Reason}
		}),
	}, err)
}

func (s evidences) SearchMaterial(ctx context.Context, r *connect.Request[clavigerv1.SearchMaterialRequest]) (*connect.Response[clavigerv1.SearchMaterialResponse], error) {
	found, searched, err := s.keeper.SearchMaterial(ctx, caller(ctx), keeper.Search{
		Selector: r.Msg.Selector, Symmetric: r.Msg.Symmetric, Haystack: r.Msg.Haystack,
	})
	return reply(&clavigerv1.SearchMaterialResponse{
		Searched: uint32(searched),
		Hits: each(found, func(f keeper.Found) *clavigerv1.Hit {
			return &clavigerv1.Hit{Key: string(f.Name), KeyId: string(f.KeyID), Version: f.Version, Offset: f.Offset, Encoding: f.Encoding}
		}),
	}, err)
}

func (s evidences) SubmitEvidence(ctx context.Context, r *connect.Request[clavigerv1.SubmitEvidenceRequest]) (*connect.Response[clavigerv1.SubmitEvidenceResponse], error) {
	run, err := evidence.ParseRun(r.Msg.Run)
	if err != nil {
		return nil, err
	}
	if err := run.Timely(time.Now()); err != nil {
		return nil, err
	}
	by := caller(ctx)
	run.By = by.Name
	req := keeper.Recording{Run: run.ID, Subjects: each(run.Results, func(r evidence.Result) keeper.Subject {
		return keeper.Subject{Key: r.KeyID, Version: r.Version}
	})}
	req.Judge = func(facts keeper.Facts, signer keeper.Signer) ([]keeper.Shown, []byte, error) {
		return judgeRun(run, facts, signer, s.roots)
	}
	envelope, err := s.keeper.RecordEvidence(ctx, by, req)
	return reply(&clavigerv1.SubmitEvidenceResponse{Run: string(run.ID), Envelope: envelope}, err)
}

func (s evidences) ListEvidence(ctx context.Context, r *connect.Request[clavigerv1.ListEvidenceRequest]) (*connect.Response[clavigerv1.ListEvidenceResponse], error) {
	q := store.KeyQuery{After: r.Msg.Page, Limit: int(r.Msg.PageSize)}
	if r.Msg.Selector != "" {
		selector, err := claviger.ParseSelector(r.Msg.Selector)
		if err != nil {
			return nil, err
		}
		q.Selector = selector
	}
	list, next, err := s.keeper.Evidence(ctx, caller(ctx), q)
	return reply(&clavigerv1.ListEvidenceResponse{NextPage: next, Evidence: each(list, func(v keeper.VersionEvidence) *clavigerv1.VersionEvidence {
		return &clavigerv1.VersionEvidence{
			Key: string(v.Name), KeyId: string(v.KeyID), Version: v.Version, State: string(v.State), Custodian: string(v.Custodian),
			Level: string(v.Level), Shown: timeTo(v.Shown), Finding: v.Finding, Run: string(v.Run), Fingerprint: v.Fingerprint.String(),
		}
	})}, err)
}

func (s evidences) GetStatement(ctx context.Context, r *connect.Request[clavigerv1.GetStatementRequest]) (*connect.Response[clavigerv1.GetStatementResponse], error) {
	out, err := s.keeper.Statement(ctx, caller(ctx), r.Msg.Run)
	return reply(&clavigerv1.GetStatementResponse{Run: string(out.Run), At: timeTo(out.At), Envelope: out.Envelope}, err)
}

func (s evidences) ReportCopy(ctx context.Context, r *connect.Request[clavigerv1.ReportCopyRequest]) (*connect.Response[clavigerv1.Key], error) {
	return keyReply(s.keeper.ReportCopy(ctx, caller(ctx), r.Msg.Key, r.Msg.Version, r.Msg.Where, placeFrom(r.Msg.Place), r.Msg.Run))
}

func (s evidences) CloseCopy(ctx context.Context, r *connect.Request[clavigerv1.CloseCopyRequest]) (*connect.Response[clavigerv1.Key], error) {
	return keyReply(s.keeper.CloseCopy(ctx, caller(ctx), r.Msg.Key, r.Msg.Version, placeFrom(r.Msg.Place)))
}

func (s evidences) ListCustodians(ctx context.Context, _ *connect.Request[clavigerv1.ListCustodiansRequest]) (*connect.Response[clavigerv1.ListCustodiansResponse], error) {
	list, err := s.keeper.Custodians(ctx, caller(ctx))
	return reply(&clavigerv1.ListCustodiansResponse{ServerPid: int64(os.Getpid()), Custodians: each(list, func(c keeper.CustodianReport) *clavigerv1.Custodian {
		return &clavigerv1.Custodian{
			Kind: string(c.Kind), Reachable: c.Trouble == "", Trouble: c.Trouble, Manufacturer: c.Manufacturer, Model: c.Model,
			Serial: c.Serial, Firmware: c.Firmware, Software: c.Software, Algorithms: texts(c.Algorithms), Pid: int64(c.PID), Level: string(c.Level),
		}
	})}, err)
}
