package server

import (
	"bufio"
	"context"
	"strconv"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/keeper"
)

// self serves claviger.v1.ServerService.
type self struct{ keeper *keeper.Keeper }

func (s self) Info(ctx context.Context, _ *connect.Request[clavigerv1.InfoRequest]) (*connect.Response[clavigerv1.InfoResponse], error) {
	out, err := s.keeper.Info(ctx)
	return reply(&clavigerv1.InfoResponse{
		Version: out.Version, Identity: out.Identity, IdentityFingerprint: out.IdentityFingerprint, CaFingerprint: out.CAFingerprint,
		CheckpointSpki: out.CheckpointSPKI,
		Roots:          out.Roots, Store: out.Store, RootGeneration: strconv.FormatUint(uint64(out.RootGeneration), 10), Started: timeTo(out.Started), Dev: out.Dev,
	}, err)
}

func (s self) Doctor(ctx context.Context, _ *connect.Request[clavigerv1.DoctorRequest]) (*connect.Response[clavigerv1.DoctorResponse], error) {
	out, err := s.keeper.Doctor(ctx, caller(ctx))
	return reply(&clavigerv1.DoctorResponse{Healthy: out.Healthy, Measures: each(out.Measures, func(m keeper.Measure) *clavigerv1.Measure {
		return &clavigerv1.Measure{Name: m.Name, Part: m.Part, State: m.State, Detail: m.Detail, Gain: m.Gain, Hint: m.Hint}
	})}, err)
}

// backupChunk is how much of an archive one message carries, in bytes.
const backupChunk = 256 << 10

func (s self) Backup(ctx context.Context, r *connect.Request[clavigerv1.BackupRequest], out *connect.ServerStream[clavigerv1.BackupChunk]) error {
	w := bufio.NewWriterSize(chunks{out}, backupChunk)
	if err := s.keeper.Backup(ctx, caller(ctx), r.Msg.Recipients, w); err != nil {
		return err
	}
	return w.Flush()
}

// chunks writes an archive as messages.
type chunks struct {
	out *connect.ServerStream[clavigerv1.BackupChunk]
}

func (c chunks) Write(p []byte) (int, error) {
	for n := 0; n < len(p); n += backupChunk {
		if err := c.out.Send(&clavigerv1.BackupChunk{Data: p[n:min(n+backupChunk, len(p))]}); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

func (s self) Rewrap(ctx context.Context, _ *connect.Request[clavigerv1.RewrapRequest]) (*connect.Response[clavigerv1.RewrapResponse], error) {
	out, err := s.keeper.Rewrap(ctx, caller(ctx))
	return reply(&clavigerv1.RewrapResponse{Rewrapped: out.Rewrapped, Already: out.Already, Generation: out.Generation, Damaged: out.Damaged}, err)
}

func (s self) Admit(ctx context.Context, r *connect.Request[clavigerv1.AdmitRequest]) (*connect.Response[clavigerv1.AdmitResponse], error) {
	out, err := s.keeper.Admit(ctx, r.Msg.JoinKey, callOf(ctx).facts)
	return reply(&clavigerv1.AdmitResponse{Wrapped: out.Wrapped, Identity: out.Identity}, err)
}

func (s self) RecoveryShares(ctx context.Context, _ *connect.Request[clavigerv1.RecoverySharesRequest]) (*connect.Response[clavigerv1.RecoverySharesResponse], error) {
	out, err := s.keeper.RecoveryShares(ctx, caller(ctx))
	if err != nil {
		return nil, err
	}
	res := &clavigerv1.RecoverySharesResponse{Threshold: uint32(out.Threshold)}
	for _, share := range out.Shares {
		res.Shares = append(res.Shares, &clavigerv1.RecoveryShare{Holder: share.Holder, Encrypted: share.Encrypted})
	}
	return connect.NewResponse(res), nil
}

func (s self) RecoveryChallenge(ctx context.Context, _ *connect.Request[clavigerv1.RecoveryChallengeRequest]) (*connect.Response[clavigerv1.OneTimeKey], error) {
	out, err := s.keeper.RecoveryChallenge(ctx, caller(ctx))
	return reply(oneTimeTo(out), err)
}

func (s self) RecoveryVerify(ctx context.Context, r *connect.Request[clavigerv1.RecoveryVerifyRequest]) (*connect.Response[clavigerv1.RecoveryVerifyResponse], error) {
	out, err := s.keeper.RecoveryVerify(ctx, caller(ctx), r.Msg.ChallengeId, r.Msg.SealedShares)
	return reply(&clavigerv1.RecoveryVerifyResponse{Restores: out.Restores, Shares: uint32(out.Shares), Threshold: uint32(out.Threshold)}, err)
}

func (s self) Settle(ctx context.Context, _ *connect.Request[clavigerv1.SettleRequest]) (*connect.Response[clavigerv1.SettleResponse], error) {
	out, err := s.keeper.Settle(ctx, caller(ctx))
	res := &clavigerv1.SettleResponse{Change: out.Number, Took: durationTo(claviger.Duration(out.Took))}
	for _, one := range out.Servers {
		res.Servers = append(res.Servers, &clavigerv1.Standing{Node: one.Node, Confirmed: one.Confirmed})
	}
	return reply(res, err)
}
