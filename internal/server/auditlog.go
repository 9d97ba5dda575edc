package server

import (
	"bytes"
	"context"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
)

// auditlog serves claviger.v1.AuditService.
type auditlog struct{ keeper *keeper.Keeper }

func (s auditlog) Query(ctx context.Context, r *connect.Request[clavigerv1.QueryRequest], out *connect.ServerStream[clavigerv1.AuditRecord]) error {
	q := keeper.AuditQuery{KeyRef: r.Msg.Key, PrincipalRef: r.Msg.Principal, Follow: r.Msg.Follow}
	q.Action, q.Outcome, q.Last = r.Msg.Action, audit.Outcome(r.Msg.Outcome), int(r.Msg.Last)
	var err error
	if q.From, err = timeFrom(r.Msg.Since); err != nil {
		return err
	}
	if q.To, err = timeFrom(r.Msg.Until); err != nil {
		return err
	}
	if r.Msg.Session != "" {
		if q.Session, err = claviger.ParseID(r.Msg.Session); err != nil {
			return err
		}
	}
	switch r.Msg.Format {
	case "", "json":
		return s.keeper.Query(ctx, caller(ctx), q, func(l audit.Line) error {
			return out.Send(&clavigerv1.AuditRecord{Writer: l.Record.Writer, Seq: l.Record.Seq, Line: l.Raw})
		})
	case "ocsf":
		info, err := s.keeper.Info(ctx)
		if err != nil {
			return err
		}
		return s.keeper.Query(ctx, caller(ctx), q, func(l audit.Line) error {
			var event bytes.Buffer
			if err := audit.WriteOCSF(&event, &l.Record, info.Version); err != nil {
				return err
			}
			return out.Send(&clavigerv1.AuditRecord{Writer: l.Record.Writer, Seq: l.Record.Seq, Line: bytes.TrimSpace(event.Bytes())})
		})
	}
	return invalid("the format is not known", "use json or ocsf")
}

func (s auditlog) VerifyAudit(ctx context.Context, r *connect.Request[clavigerv1.VerifyAuditRequest]) (*connect.Response[clavigerv1.VerifyAuditResponse], error) {
	out, err := s.keeper.VerifyAudit(ctx, caller(ctx), r.Msg.Checkpoint)
	return reply(&clavigerv1.VerifyAuditResponse{
		Ok: err == nil && len(out.Faults) == 0, Records: out.Records, Checkpoints: out.Checkpoints,
		Faults: each(out.Faults, func(f audit.Fault) *clavigerv1.AuditFault {
			return &clavigerv1.AuditFault{Writer: f.Writer, Seq: f.Seq, Kind: string(f.Kind), Detail: f.Detail}
		}),
	}, err)
}

func (s auditlog) Checkpoint(ctx context.Context, _ *connect.Request[clavigerv1.CheckpointRequest]) (*connect.Response[clavigerv1.CheckpointResponse], error) {
	out, err := s.keeper.Checkpoint(ctx, caller(ctx))
	return reply(&clavigerv1.CheckpointResponse{Checkpoint: out}, err)
}
