package custody

import (
	"context"
	"net"
	"time"

	"claviger.dev/internal/frames"
)

// ErrDied says that a call may be repeated on another connection.
var ErrDied = errDied

// AskBroken asks on a connection whose last write failed, in the moment before
// anybody has noticed.
func AskBroken(ctx context.Context, socket net.Conn, req frames.Request) error {
	k := newConn(socket, time.Second)
	_, _ = k.writer.Add(func(b []byte) ([]byte, error) { return append(b, 0), nil })
	_ = k.writer.Flush()
	_, err := k.call(ctx, req, time.Now().Add(time.Second))
	return err
}
