package keeper

import (
	"context"

	"claviger.dev"
)

// turn is a mutex for what may take long: waiting for it ends with a context.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// take waits for the turn.
func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return claviger.Errorf(claviger.Deadline, "the deadline passed while another request was served", "try again with more time").Wrap(ctx.Err())
	}
}

func (t turn) give() { <-t }
