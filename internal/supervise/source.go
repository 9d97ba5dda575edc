package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ControlFD is the descriptor on which the server finds its control socket for
// key processes. Those for the devices follow; flags say which is which.
const ControlFD = 3

// handOver is the one byte that travels with a key process's socket.
const handOver = 'k'

// Source gives the server the sockets of its key processes, in the order in
// which the supervisor started them.
type Source struct {
	conn *net.UnixConn

	mu    sync.Mutex // one Next at a time; guards asked
	asked bool       // a question is on its way that no socket has answered yet
}

// FromSupervisor takes the control socket that the supervisor passed.
func FromSupervisor(fd uintptr) (*Source, error) {
	f := os.NewFile(fd, "control socket")
	if f == nil {
		return nil, errors.New("the control socket of the supervisor is not open")
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("take the control socket: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, errors.New("the control descriptor is not a Unix socket")
	}
	return &Source{conn: conn}, nil
}

// Next returns the socket of the next key process and blocks until there is
// one. Asking again says that the last one is of no use any more: if its
// process still runs, the supervisor ends it and starts another.
func (s *Source) Next(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	expired := time.Unix(1, 0)
	expiring := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = s.conn.SetDeadline(expired)
		close(expiring)
	})
	defer func() {
		if !stop() {
			<-expiring
			_ = s.conn.SetDeadline(time.Time{})
		}
	}()
	conn, err := s.next()
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return conn, err
}

func (s *Source) next() (net.Conn, error) {
	if !s.asked {
		if _, err := s.conn.Write([]byte{0}); err != nil {
			return nil, fmt.Errorf("ask the supervisor for a key process: %w", err)
		}
		s.asked = true
	}
	var data [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := s.conn.ReadMsgUnix(data[:], oob)
	if err != nil {
		return nil, fmt.Errorf("receive a key process from the supervisor: %w", err)
	}
	fds, err := rights(oob[:oobn])
	if err == nil && (n != 1 || data[0] != handOver || len(fds) != 1 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0) {
		err = errors.New("not one socket")
	}
	if err != nil {
		for _, fd := range fds {
			_ = syscall.Close(fd)
		}
		return nil, fmt.Errorf("receive a key process from the supervisor: %w", err)
	}
	s.asked = false
	f := os.NewFile(uintptr(fds[0]), "key process")
	defer f.Close()
	return net.FileConn(f)
}

func rights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			return fds, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// Close gives the control socket up. The supervisor takes it for the
// server's end only when the server exits.
func (s *Source) Close() error { return s.conn.Close() }
