package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/state"
)

// benchState measures the making and checking of tokens as an adapter does it:
// Connect JSON over HTTP/1.1 on the local socket, one request at a time on each
// connection. The load's own client does as little as it can, since it runs on
// the same cores.
func (a *app) benchState(ctx context.Context, b benchFlags) error {
	format := state.Format(b.state)
	if len(format.Sets()) == 0 {
		return usagef("--state is a format such as django.session ('claviger state formats')")
	}
	if b.batch < 1 || b.concurrency < 1 || b.size < 1 {
		return usagef("--batch, --concurrency and --size are at least 1")
	}
	return a.onRig(ctx, nil, func(ctx context.Context, r *rig) error {
		name := "dev/bench/state"
		if _, err := r.socket.CreateKey(ctx, &pb.CreateKeyRequest{Name: name, Algorithm: string(claviger.MachineKey), Recipe: string(format.Sets()[0]), Owner: "bench"}); err != nil {
			return err
		}
		payloads := make([][]byte, b.batch)
		for i := range payloads {
			payloads[i] = bytes.Repeat([]byte("x"), b.size)
		}
		made, err := r.socket.Protect(ctx, &pb.ProtectRequest{Key: name, Format: b.state, Payloads: payloads})
		if err != nil {
			return err
		}
		for _, op := range []claviger.Operation{claviger.Unprotect, claviger.Protect} {
			if b.operation != "" && b.operation != string(op) {
				continue
			}
			m, err := r.measureState(ctx, b, op, name, payloads, made.Tokens)
			if err != nil {
				return err
			}
			w := a.stdout
			fmt.Fprintf(w, "%s of %s, %d at once, batches of %d, over the local socket\n", op, b.state, b.concurrency, b.batch)
			fmt.Fprintf(w, "throughput      %.0f tokens/s (%d calls failed)\n", m.items, m.failures)
			fmt.Fprintf(w, "latency         p50 %v  p99 %v  p99.9 %v\n", m.quantile(.5), m.quantile(.99), m.quantile(.999))
			fmt.Fprintf(w, "CPU/token       server %v  key process %v  together %v\n", m.serverCPU, m.keydCPU, m.total)
		}
		return nil
	})
}

func (r *rig) measureState(ctx context.Context, b benchFlags, op claviger.Operation, key string, payloads, tokens [][]byte) (measured, error) {
	body := map[string]any{"key": key, "format": b.state}
	method, items := "Unprotect", tokens
	if op == claviger.Protect {
		method, items = "Protect", payloads
		body["payloads"] = items
	} else {
		body["tokens"] = items
	}
	text, err := json.Marshal(body)
	if err != nil {
		return measured{}, err
	}
	request := fmt.Appendf(nil, "POST /claviger.v1.StateService/%s HTTP/1.1\r\nHost: claviger\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", method, len(text), text)
	path, _ := strings.CutPrefix(r.a.address, "unix://")
	callers := make([]*rawCaller, b.concurrency)
	for i := range callers {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return measured{}, err
		}
		defer conn.Close()
		callers[i] = &rawCaller{conn: conn, in: bufio.NewReader(conn), request: request}
	}
	return r.account(ctx, b, func(_ context.Context, worker int) error { return callers[worker].call() })
}

// rawCaller sends one request again and again on its own connection.
type rawCaller struct {
	conn    net.Conn
	in      *bufio.Reader
	request []byte
}

var errAnswer = errors.New("the server answered otherwise than 200")

// call waits at most ten seconds for a whole answer of status 200.
func (c *rawCaller) call() error {
	if err := c.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.conn.Write(c.request); err != nil {
		return err
	}
	status, length := 0, -1
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if status == 0 && len(line) >= 12 {
			status, _ = strconv.Atoi(string(line[9:12]))
		}
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && len(name) == len("Content-Length") && bytes.EqualFold(name, []byte("Content-Length")) {
			length, _ = strconv.Atoi(string(bytes.TrimSpace(value)))
		}
	}
	if err := c.discard(length); err != nil {
		return err
	}
	if status != http.StatusOK {
		return errAnswer
	}
	return nil
}

// discard reads a body with a length, or in chunks, as a long one is sent.
func (c *rawCaller) discard(length int) error {
	if length >= 0 {
		_, err := io.CopyN(io.Discard, c.in, int64(length))
		return err
	}
	if _, err := io.Copy(io.Discard, httputil.NewChunkedReader(c.in)); err != nil {
		return err
	}
	_, err := c.in.Discard(len("\r\n"))
	return err
}
