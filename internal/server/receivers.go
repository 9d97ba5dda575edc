package server

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/broker/deliver"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// receivers serves claviger.v1.ReceiverService. Loopback lets receivers on this
// host be registered.
type receivers struct {
	keeper   *keeper.Keeper
	loopback bool
}

func (s receivers) CreateReceiver(ctx context.Context, r *connect.Request[clavigerv1.CreateReceiverRequest]) (*connect.Response[clavigerv1.Receiver], error) {
	if why := deliver.CheckURL(r.Msg.Url, s.loopback); why != "" {
		return nil, invalid(why, "give the https address where the application takes logouts")
	}
	out, err := s.keeper.CreateReceiver(ctx, caller(ctx), claviger.Receiver{
		Name: r.Msg.Name, Kind: claviger.ReceiverKind(r.Msg.Kind), Client: claviger.ID(r.Msg.Client), URL: r.Msg.Url, Audience: r.Msg.Audience, Roots: r.Msg.Roots,
	}, r.Msg.Reason)
	return reply(receiverTo(out), err)
}

func (s receivers) GetReceiver(ctx context.Context, r *connect.Request[clavigerv1.GetReceiverRequest]) (*connect.Response[clavigerv1.Receiver], error) {
	out, err := s.keeper.Receiver(ctx, caller(ctx), r.Msg.Receiver)
	return reply(receiverTo(out), err)
}

func (s receivers) ListReceivers(ctx context.Context, _ *connect.Request[clavigerv1.ListReceiversRequest]) (*connect.Response[clavigerv1.ListReceiversResponse], error) {
	out, err := s.keeper.Receivers(ctx, caller(ctx))
	return reply(&clavigerv1.ListReceiversResponse{Receivers: each(out, receiverTo)}, err)
}

func (s receivers) RemoveReceiver(ctx context.Context, r *connect.Request[clavigerv1.RemoveReceiverRequest]) (*connect.Response[clavigerv1.RemoveReceiverResponse], error) {
	return reply(&clavigerv1.RemoveReceiverResponse{}, s.keeper.RemoveReceiver(ctx, caller(ctx), r.Msg.Receiver, r.Msg.Reason))
}

func (s receivers) ListDeliveries(ctx context.Context, r *connect.Request[clavigerv1.ListDeliveriesRequest]) (*connect.Response[clavigerv1.ListDeliveriesResponse], error) {
	q := store.DeliveryQuery{State: store.DeliveryPending, After: claviger.ID(r.Msg.Page), Limit: int(r.Msg.PageSize)}
	if r.Msg.Dead {
		q.State = store.DeliveryDead
	}
	out, next, err := s.keeper.Deliveries(ctx, caller(ctx), r.Msg.Receiver, q)
	return reply(&clavigerv1.ListDeliveriesResponse{Deliveries: each(out, deliveryTo), NextPage: string(next)}, err)
}

func (s receivers) RetryDeliveries(ctx context.Context, r *connect.Request[clavigerv1.RetryDeliveriesRequest]) (*connect.Response[clavigerv1.RetryDeliveriesResponse], error) {
	n, err := s.keeper.RetryDeliveries(ctx, caller(ctx), r.Msg.Receiver, claviger.ID(r.Msg.Id), r.Msg.Reason)
	return reply(&clavigerv1.RetryDeliveriesResponse{Count: n}, err)
}

func receiverTo(r keeper.ReceiverView) *clavigerv1.Receiver {
	return &clavigerv1.Receiver{
		Id: string(r.ID), Name: r.Name, Kind: string(r.Kind), Client: string(r.Client), Url: r.URL, Audience: r.Audience, Roots: r.Roots,
		Created: timeTo(r.Created), Pending: r.Pending, Dead: r.Dead,
	}
}

func deliveryTo(d keeper.Delivery) *clavigerv1.Delivery {
	next := d.Next
	if d.State == store.DeliveryDead {
		next = time.Time{}
	}
	return &clavigerv1.Delivery{
		Id: string(d.ID), Receiver: string(d.Receiver), Session: string(d.End.Session), Client: string(d.End.Client), Reason: string(d.End.Reason),
		Ended: timeTo(d.End.At), State: string(d.State), Tries: d.Tries, Next: timeTo(next), Error: d.Error,
	}
}
