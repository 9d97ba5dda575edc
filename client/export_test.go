package client

import (
	"context"
	"net"
	"time"
)

// SetNow gives the client another clock.
func (c *Client) SetNow(now func() time.Time) { c.now = now }

// WrapDial lets a test come before each attempt to connect.
func (c *Client) WrapDial(before func() error) {
	dial := c.transport.DialContext
	c.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if err := before(); err != nil {
			return nil, err
		}
		return dial(ctx, network, address)
	}
}
