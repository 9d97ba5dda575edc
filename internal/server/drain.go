package server

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

func (s states) Drain(ctx context.Context, r *connect.Request[clavigerv1.DrainRequest]) (*connect.Response[clavigerv1.DrainResponse], error) {
	since, err := timeFrom(r.Msg.Since)
	if err != nil {
		return nil, err
	}
	d, err := s.keeper.Drain(ctx, caller(ctx), r.Msg.Key, since)
	if err != nil {
		return nil, err
	}
	return reply(&clavigerv1.DrainResponse{
		Key: string(d.Key.Name), Id: string(d.Key.ID), At: timeTo(d.At),
		Versions: each(d.Versions, func(v keeper.DrainVersion) *clavigerv1.DrainVersion {
			return &clavigerv1.DrainVersion{
				Number: v.Number, State: string(v.State), Activated: timeTo(v.Activated), Retires: timeTo(v.Retires), Retired: timeTo(v.Retired),
				Made: v.Made, Checked: v.Checked, Last: timeTo(v.Last), Unconfirmed: v.Unconfirmed,
				Nodes: each(v.Nodes, func(n keeper.NodeUse) *clavigerv1.NodeUse {
					return &clavigerv1.NodeUse{Node: n.Node, Made: n.Made, Checked: n.Checked, Last: timeTo(n.Last)}
				}),
			}
		}),
		Sightings: sightingsTo(d.Sightings, d.Names),
		Flows: each(d.Flows, func(f store.Flow) *clavigerv1.Flow {
			return &clavigerv1.Flow{At: timeTo(f.At), Width: durationpb.New(d.Width), Version: f.Version, Node: f.Node, Made: f.Made, Checked: f.Checked}
		}),
	}, nil)
}

func sightingsTo(list []store.Sighting, names map[claviger.ID]string) []*clavigerv1.Sighting {
	return each(list, func(s store.Sighting) *clavigerv1.Sighting {
		return &clavigerv1.Sighting{
			Version: s.Version, Node: s.Node, Principal: string(s.Principal), PrincipalName: names[s.Principal], Host: s.Host, What: s.What,
			Made: s.Made, Checked: s.Checked, First: timeTo(s.First), Last: timeTo(s.Last),
		}
	})
}

func (s keys) RetireVersion(ctx context.Context, r *connect.Request[clavigerv1.RetireVersionRequest]) (*connect.Response[clavigerv1.Key], error) {
	return keyReply(s.keeper.Retire(ctx, caller(ctx), r.Msg.Key, r.Msg.Version, r.Msg.Reason, r.Msg.Force))
}

func (s keys) ExposeKey(ctx context.Context, r *connect.Request[clavigerv1.ExposeKeyRequest]) (*connect.Response[clavigerv1.ExposeKeyResponse], error) {
	req := keeper.ExposeRequest{Key: r.Msg.Key, Version: r.Msg.Version, Reason: r.Msg.Reason, DryRun: r.Msg.DryRun, Graces: map[string]time.Duration{}}
	var err error
	if req.Since, err = timeFrom(r.Msg.Since); err != nil {
		return nil, err
	}
	if r.Msg.Grace != nil {
		grace, err := durationFrom(r.Msg.Grace)
		if err != nil {
			return nil, err
		}
		req.Grace = (*time.Duration)(&grace)
	}
	for name, d := range r.Msg.Graces {
		grace, err := durationFrom(d)
		if err != nil {
			return nil, err
		}
		req.Graces[name] = time.Duration(grace)
	}
	out, err := s.keeper.Expose(ctx, caller(ctx), req)
	if err != nil {
		return nil, err
	}
	key, err := keyTo(out.Key)
	return reply(&clavigerv1.ExposeKeyResponse{
		Key: key, Version: out.Version, Replacement: out.Replacement, Protected: sightingsTo(out.Protected, out.Names), Warnings: out.Warnings,
		Formats: each(out.Formats, func(f keeper.FormatGrace) *clavigerv1.FormatGrace {
			return &clavigerv1.FormatGrace{Format: string(f.Format), Until: timeTo(f.Until), Timed: f.Format.Timed(), Deserialises: string(f.Format.Deserialises())}
		}),
	}, err)
}
