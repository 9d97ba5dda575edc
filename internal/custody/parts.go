package custody

import (
	"context"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
)

const (
	turn  = time.Second / 4 // longest request there should be, so that others get their turn
	first = 4               // items in the first request to a device, which may take a second for each
)

// inParts uses material for n items, in requests of a turn each, and joins
// their results.
func inParts[R used, T any](ctx context.Context, c *Client, m Material, n int, request func(u frames.Use, from, to int) frames.Request, results func(R) []T) ([]T, error) {
	if n == 0 {
		return nil, errNoInput
	}
	if n > c.atOnce(m.Binding.Algorithm) { // the limits are the batch's, not its parts'
		if _, err := frames.AppendRequest(nil, 0, request(frames.Use{}, 0, n)); err != nil {
			return nil, err
		}
	}
	all := make([]T, 0, n)
	for from := 0; from < n; {
		to := min(n, from+c.atOnce(m.Binding.Algorithm))
		began := time.Now()
		r, err := use[R](ctx, c, m, to-from, func(u frames.Use) frames.Request { return request(u, from, to) })
		if err != nil {
			return nil, err
		}
		c.learn(m.Binding.Algorithm, to-from, time.Since(began))
		all = append(all, results(r)...)
		from = to
	}
	return all, nil
}

// atOnce is how many items of an algorithm go into one request. The speed of
// software is known; that of a device is what its last request showed.
func (c *Client) atOnce(a claviger.Algorithm) int {
	if c.device {
		c.mu.Lock()
		defer c.mu.Unlock()
		if n := c.pace[a]; n > 0 {
			return n
		}
		return first
	}
	params, _ := a.RSA()
	switch {
	case params.Bits >= 4096:
		return 30
	case params.Bits >= 3072:
		return 60
	case params.Bits >= 2048 || a == claviger.MLDSA65:
		return 200
	}
	return frames.MaxItems
}

// learn keeps how many items a device did in how long, the wait for its other
// callers included.
func (c *Client) learn(a claviger.Algorithm, n int, took time.Duration) {
	if !c.device {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pace[a] = min(max(1, int(time.Duration(n)*turn/max(took, 1))), frames.MaxItems)
}
