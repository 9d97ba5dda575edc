package server

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
	"claviger.dev/pubkey"
)

// keys serves claviger.v1.KeyService.
type keys struct{ keeper *keeper.Keeper }

func (s keys) CreateKey(ctx context.Context, r *connect.Request[clavigerv1.CreateKeyRequest]) (*connect.Response[clavigerv1.Key], error) {
	settings, err := settingsFrom(r.Msg.Settings)
	if err != nil {
		return nil, err
	}
	return keyReply(s.keeper.CreateKey(ctx, caller(ctx), keeper.CreateKey{
		Name: r.Msg.Name, Algorithm: r.Msg.Algorithm, Recipe: r.Msg.Recipe, Owner: r.Msg.Owner, Labels: r.Msg.Labels, Settings: settings,
		PreActivation: r.Msg.PreActivation, ForImport: r.Msg.ForImport,
		Custodian: claviger.Custodian(r.Msg.Custodian), Reference: r.Msg.Reference,
	}))
}

func (s keys) GetKey(ctx context.Context, r *connect.Request[clavigerv1.GetKeyRequest]) (*connect.Response[clavigerv1.Key], error) {
	return keyReply(s.keeper.Key(ctx, caller(ctx), r.Msg.Key))
}

func (s keys) ListKeys(ctx context.Context, r *connect.Request[clavigerv1.ListKeysRequest]) (*connect.Response[clavigerv1.ListKeysResponse], error) {
	q := store.KeyQuery{Search: r.Msg.Search, Labels: r.Msg.Labels, State: claviger.State(r.Msg.State), After: r.Msg.Page, Limit: int(r.Msg.PageSize)}
	if r.Msg.Selector != "" {
		selector, err := claviger.ParseSelector(r.Msg.Selector)
		if err != nil {
			return nil, err
		}
		q.Selector = selector
	}
	views, next, err := s.keeper.Keys(ctx, caller(ctx), q)
	if err != nil {
		return nil, err
	}
	out := &clavigerv1.ListKeysResponse{NextPage: next}
	for _, v := range views {
		k, err := keyTo(v)
		if err != nil {
			return nil, err
		}
		out.Keys = append(out.Keys, k)
	}
	return connect.NewResponse(out), nil
}

func (s keys) RotateKey(ctx context.Context, r *connect.Request[clavigerv1.RotateKeyRequest]) (*connect.Response[clavigerv1.Key], error) {
	grace, err := durationFrom(r.Msg.Grace)
	if err != nil {
		return nil, err
	}
	return keyReply(s.keeper.Rotate(ctx, caller(ctx), r.Msg.Key, r.Msg.Reason, time.Duration(grace)))
}

func (s keys) ChangeState(ctx context.Context, r *connect.Request[clavigerv1.ChangeStateRequest]) (*connect.Response[clavigerv1.Key], error) {
	return keyReply(s.keeper.ChangeState(ctx, caller(ctx), r.Msg.Key, r.Msg.Version, claviger.State(r.Msg.State), r.Msg.Reason, r.Msg.Force))
}

func (s keys) UpdateKey(ctx context.Context, r *connect.Request[clavigerv1.UpdateKeyRequest]) (*connect.Response[clavigerv1.Key], error) {
	change := keeper.KeyChange{Revision: r.Msg.Revision, Owner: r.Msg.Owner}
	if r.Msg.SetLabels {
		change.Labels = &r.Msg.Labels
	} else if len(r.Msg.Labels) > 0 {
		return nil, invalid("there are labels, but set_labels is not set", "set set_labels to replace all labels, or leave the labels out")
	}
	if r.Msg.Settings != nil {
		settings, err := settingsFrom(r.Msg.Settings)
		if err != nil {
			return nil, err
		}
		change.Settings = &settings
	}
	return keyReply(s.keeper.UpdateKey(ctx, caller(ctx), r.Msg.Key, change))
}

func (s keys) RenameKey(ctx context.Context, r *connect.Request[clavigerv1.RenameKeyRequest]) (*connect.Response[clavigerv1.Key], error) {
	return keyReply(s.keeper.Rename(ctx, caller(ctx), r.Msg.Key, r.Msg.Name))
}

func (s keys) BeginImport(ctx context.Context, r *connect.Request[clavigerv1.BeginImportRequest]) (*connect.Response[clavigerv1.OneTimeKey], error) {
	out, err := s.keeper.BeginImport(ctx, caller(ctx), r.Msg.Key)
	return reply(oneTimeTo(out), err)
}

func (s keys) ImportKey(ctx context.Context, r *connect.Request[clavigerv1.ImportKeyRequest]) (*connect.Response[clavigerv1.Key], error) {
	return keyReply(s.keeper.Import(ctx, caller(ctx), keeper.Import{
		Key: r.Msg.Key, OneTime: r.Msg.ImportKeyId, Sealed: r.Msg.Sealed, Place: placeFrom(r.Msg.Place), Older: r.Msg.Older, Reason: r.Msg.Reason,
	}))
}

func keyReply(v keeper.KeyView, err error) (*connect.Response[clavigerv1.Key], error) {
	if err != nil {
		return nil, err
	}
	return reply(keyTo(v))
}

// keyTo writes a key with its public half in the forms that clients want.
func keyTo(v keeper.KeyView) (*clavigerv1.Key, error) {
	out := &clavigerv1.Key{
		Id: string(v.ID), Name: string(v.Name), Aliases: texts(v.Aliases), Algorithm: string(v.Algorithm), Custodian: string(v.Custodian),
		Recipe: v.Recipe, Owner: v.Owner, Labels: v.Labels, Settings: settingsTo(v.Settings), Created: timeTo(v.Created),
		Revision: v.Revision, Level: string(v.Level()), Shown: timeTo(v.Shown()), Finding: v.Finding(), Use: useTo(v.Use),
	}
	for _, ver := range v.Versions {
		w := &clavigerv1.Version{
			Number: ver.Number, State: string(ver.State), Origin: string(ver.Origin), Level: string(ver.Level), Public: ver.Public,
			Fingerprint: ver.Fingerprint.String(), Created: timeTo(ver.Created), Activated: timeTo(ver.Activated),
			History: each(ver.History, transitionTo), Use: useTo(v.VersionUse[ver.Number]),
			Shown: timeTo(ver.Shown), Finding: ver.Finding, Reference: ver.Reference,
			Retires: timeTo(ver.Retires), Retired: timeTo(ver.Retired),
		}
		if ver.Exposure != nil {
			w.ExposedUntil = map[string]*timestamppb.Timestamp{}
			for format, until := range ver.Exposure.Formats {
				w.ExposedUntil[format] = timeTo(until)
			}
		}
		if len(ver.Public) > 0 {
			public, err := pubkey.Parse(v.Algorithm, ver.Public)
			if err != nil {
				return nil, claviger.Errorf(claviger.Internal, "a stored public key does not parse", "").Wrap(err)
			}
			w.Spki, w.Kid = public.SPKI(), public.Thumbprint()
		}
		for _, c := range v.Copies {
			if c.Version == ver.Number {
				w.Copies = append(w.Copies, copyTo(c))
			}
		}
		out.Versions = append(out.Versions, w)
	}
	return out, nil
}

func copyTo(c store.Copy) *clavigerv1.Copy {
	return &clavigerv1.Copy{
		Place: &clavigerv1.Place{Host: c.Host, Path: c.Path, Line: c.Line}, Seen: timeTo(c.Seen), By: c.By, Run: string(c.Run), Gone: timeTo(c.Gone),
	}
}

func placeFrom(p *clavigerv1.Place) keeper.Place {
	return keeper.Place{Host: p.GetHost(), Path: p.GetPath(), Line: p.GetLine()}
}

func transitionTo(t claviger.Transition) *clavigerv1.Transition {
	return &clavigerv1.Transition{From: string(t.From), To: string(t.To), At: timeTo(t.At), By: string(t.By), Reason: t.Reason}
}

func settingsTo(s claviger.Settings) *clavigerv1.Settings {
	return &clavigerv1.Settings{
		OriginatorPeriod: durationTo(s.OriginatorPeriod), RecipientPeriod: durationTo(s.RecipientPeriod),
		RotateEvery: durationTo(s.RotateEvery), DestroyGrace: durationTo(s.DestroyGrace), MaxInvocations: s.MaxInvocations,
		ProcessSuspended: s.ProcessSuspended, ProcessExposed: s.ProcessExposed, MinLevel: string(s.MinLevel),
		SuspendExposed: s.SuspendExposed, Grace: durationTo(s.Grace), GraceDrained: s.GraceDrained, RecordTokens: s.RecordTokens,
	}
}

func settingsFrom(s *clavigerv1.Settings) (claviger.Settings, error) {
	out := claviger.Settings{
		MaxInvocations: s.GetMaxInvocations(), ProcessSuspended: s.GetProcessSuspended(), ProcessExposed: s.GetProcessExposed(),
		MinLevel: claviger.Level(s.GetMinLevel()), SuspendExposed: s.GetSuspendExposed(),
		GraceDrained: s.GetGraceDrained(), RecordTokens: s.GetRecordTokens(),
	}
	for _, d := range []struct {
		to   *claviger.Duration
		from *durationpb.Duration
	}{
		{&out.OriginatorPeriod, s.GetOriginatorPeriod()}, {&out.RecipientPeriod, s.GetRecipientPeriod()},
		{&out.RotateEvery, s.GetRotateEvery()}, {&out.DestroyGrace, s.GetDestroyGrace()}, {&out.Grace, s.GetGrace()},
	} {
		var err error
		if *d.to, err = durationFrom(d.from); err != nil {
			return claviger.Settings{}, err
		}
	}
	return out, nil
}
