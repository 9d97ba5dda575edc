package client

import (
	"context"

	clavigerv1 "claviger.dev/api/claviger/v1"
)

// CreateReceiver registers who is told when sessions end.
func (c *Client) CreateReceiver(ctx context.Context, r *clavigerv1.CreateReceiverRequest) (*clavigerv1.Receiver, error) {
	return call(ctx, c, once, c.receivers.CreateReceiver, r)
}

// GetReceiver returns a receiver by its id or name.
func (c *Client) GetReceiver(ctx context.Context, ref string) (*clavigerv1.Receiver, error) {
	return call(ctx, c, again, c.receivers.GetReceiver, &clavigerv1.GetReceiverRequest{Receiver: ref})
}

// ListReceivers returns all receivers.
func (c *Client) ListReceivers(ctx context.Context) (*clavigerv1.ListReceiversResponse, error) {
	return call(ctx, c, again, c.receivers.ListReceivers, &clavigerv1.ListReceiversRequest{})
}

// RemoveReceiver removes a receiver and what it was still to be told.
func (c *Client) RemoveReceiver(ctx context.Context, r *clavigerv1.RemoveReceiverRequest) error {
	_, err := call(ctx, c, once, c.receivers.RemoveReceiver, r)
	return err
}

// ListDeliveries returns one page of what receivers are still to be told, or of
// what is given up.
func (c *Client) ListDeliveries(ctx context.Context, r *clavigerv1.ListDeliveriesRequest) (*clavigerv1.ListDeliveriesResponse, error) {
	return call(ctx, c, again, c.receivers.ListDeliveries, r)
}

// RetryDeliveries has what was given up tried again.
func (c *Client) RetryDeliveries(ctx context.Context, r *clavigerv1.RetryDeliveriesRequest) (*clavigerv1.RetryDeliveriesResponse, error) {
	return call(ctx, c, once, c.receivers.RetryDeliveries, r)
}
