package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
)

// Socket is the Custody at the local socket, in the form of request that the
// server answers with the least work, and without the goroutines of an
// [http.Transport]: a page waits for these calls.
type Socket struct{ lines }

const maxAnswer = 8 << 20 // bytes; a token has at most 1 MiB

// NewSocket returns a Custody at the path of the server's local socket.
func NewSocket(path string) *Socket {
	return &Socket{lines{rest: time.Minute, dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
}

// Protect implements Custody.
func (s *Socket) Protect(ctx context.Context, r *pb.ProtectRequest) (*pb.ProtectResponse, error) {
	out := new(pb.ProtectResponse)
	return out, s.call(ctx, "Protect", r, out)
}

// Unprotect implements Custody.
func (s *Socket) Unprotect(ctx context.Context, r *pb.UnprotectRequest) (*pb.UnprotectResponse, error) {
	out := new(pb.UnprotectResponse)
	return out, s.call(ctx, "Unprotect", r, out)
}

// Close closes the connections that no call uses.
func (s *Socket) Close() { s.close() }

func (s *Socket) call(ctx context.Context, method string, in, out proto.Message) error {
	body, err := protojson.Marshal(in)
	if err != nil {
		return claviger.Errorf(claviger.Invalid, "the request cannot be encoded: a text in it is not UTF-8", "send text as UTF-8").Wrap(err)
	}
	request := fmt.Appendf(nil, "POST /claviger.v1.StateService/%s HTTP/1.1\r\nHost: claviger\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		method, len(body), body)
	for {
		l, used, err := s.take(ctx)
		if err == nil {
			err = s.exchange(ctx, l, request, out)
		}
		var told *claviger.Error
		switch {
		case err == nil || errors.As(err, &told):
			return err
		case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
			return claviger.Errorf(claviger.Deadline, "the deadline passed", "try again, or allow more time").Wrap(err)
		case !used: // a kept connection may have been closed while it was idle, and a call may be made twice
			return claviger.Errorf(claviger.Unavailable, "the server cannot be reached", "check that it runs, and that the proxy may reach its local socket").Wrap(err)
		}
	}
}

// exchange sends a request and reads the answer. The connection is kept only
// when both came to their end. A context that is cancelled cuts it off.
func (s *Socket) exchange(ctx context.Context, l *line, request []byte, out proto.Message) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(10 * time.Second)
	}
	_ = l.SetDeadline(deadline)
	cut := context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) })
	body, head, err := l.exchange(request)
	if err != nil && !time.Now().Before(deadline) { // a line that was cut reads as one that is malformed
		err = fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err)
	}
	if !cut() || err != nil || head.Close {
		l.Close()
	} else {
		s.keep(l)
	}
	if err != nil {
		return err
	}
	if head.StatusCode != http.StatusOK {
		return refused(head.Header, body)
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, out); err != nil {
		return errOther.Wrap(err)
	}
	return nil
}

func (l *line) exchange(request []byte) (body []byte, head *http.Response, err error) {
	if _, err := l.Write(request); err != nil {
		return nil, nil, err
	}
	if head, err = http.ReadResponse(l.in, nil); err != nil {
		return nil, nil, err
	}
	body, err = io.ReadAll(io.LimitReader(head.Body, maxAnswer))
	if err == nil && len(body) == maxAnswer {
		err = errLong
	}
	return body, head, err
}

// refused is the error that the server tells.
func refused(h http.Header, body []byte) error {
	var told struct{ Message string }
	_ = json.Unmarshal(body, &told) // "" of what is no such body
	code := claviger.Code(h.Get("Claviger-Code"))
	if _, known := claviger.Mappings[code]; !known {
		return errOther
	}
	return claviger.Errorf(code, told.Message[:min(len(told.Message), 1024)], h.Get("Claviger-Hint"))
}
