package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

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
	if b.rate != 0 {
		return usagef("--state is measured with as many calls as go, without --rate")
	}
	return a.onRig(ctx, "", func(ctx context.Context, r *rig) error {
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
	l, err := newLocalLoad(path, b.concurrency, request)
	if err != nil {
		return measured{}, err
	}
	defer l.close()
	return r.account(ctx, b, l.run)
}

// localLoad sends one request again and again on each of its connections, from
// one thread and with two system calls a request: what the load costs is
// missing to the server.
type localLoad struct {
	poll    int
	request []byte
	conns   []*localCaller
}

// localCaller is one connection.
type localCaller struct {
	fd     int
	due    time.Time // when its request was sent
	answer []byte    // so far
}

func newLocalLoad(path string, concurrency int, request []byte) (_ *localLoad, err error) {
	l := &localLoad{poll: -1, request: request}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make epoll: %w", err)
	}
	for i := range concurrency {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("make socket: %w", err)
		}
		l.conns = append(l.conns, &localCaller{fd: fd})
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return nil, fmt.Errorf("connect to %s: %w", path, err)
		}
		if err := unix.EpollCtl(l.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			return nil, fmt.Errorf("watch socket: %w", err)
		}
	}
	return l, nil
}

func (l *localLoad) close() {
	for _, c := range l.conns {
		_ = unix.Close(c.fd)
	}
	_ = unix.Close(l.poll)
}

var errAnswer = errors.New("the server answered otherwise than 200, or not within ten seconds")

// run keeps a request under way on every connection for a time. It ends at the
// first that fails.
func (l *localLoad) run(ctx context.Context, duration time.Duration) (out outcome) {
	began := time.Now()
	send := func(c *localCaller, now time.Time) error {
		c.due, c.answer = now, c.answer[:0]
		_, err := unix.Write(c.fd, l.request)
		return err
	}
	fail := func(err error) outcome {
		out.failures, out.firstError = out.failures+1, err
		return out
	}
	for _, c := range l.conns {
		if err := send(c, time.Now()); err != nil {
			return fail(err)
		}
	}
	buffer, events := make([]byte, 64<<10), make([]unix.EpollEvent, len(l.conns))
	for under := len(l.conns); under > 0; {
		n, err := unix.EpollWait(l.poll, events, 10_000)
		if err == unix.EINTR {
			continue
		}
		if n == 0 || err != nil {
			return fail(errAnswer)
		}
		for _, e := range events[:n] {
			c := l.conns[e.Fd]
			n, err := unix.Read(c.fd, buffer)
			if err != nil || n == 0 {
				return fail(errAnswer)
			}
			c.answer = append(c.answer, buffer[:n]...)
			switch whole, ok := answered(c.answer); {
			case !ok:
				return fail(errAnswer)
			case !whole:
				continue
			}
			now := time.Now()
			out.latencies = append(out.latencies, now.Sub(c.due))
			if now.Sub(began) >= duration || ctx.Err() != nil {
				under--
			} else if err := send(c, now); err != nil {
				return fail(err)
			}
		}
	}
	out.elapsed, out.calls = time.Since(began), uint64(len(out.latencies))
	slices.Sort(out.latencies)
	return out
}

// answered reports whether an answer is whole: by its length, or, of a long
// one, by its last chunk. ok is false when it is not one of status 200.
func answered(text []byte) (whole, ok bool) {
	ok = len(text) < 13 || bytes.HasPrefix(text, []byte("HTTP/1.1 200 "))
	head, body, ended := bytes.Cut(text, []byte("\r\n\r\n"))
	if !ok || !ended {
		return false, ok
	}
	_, length, sized := bytes.Cut(head, []byte("\r\nContent-Length: "))
	if !sized {
		return bytes.HasSuffix(body, []byte("\r\n0\r\n\r\n")), true
	}
	length, _, _ = bytes.Cut(length, []byte("\r\n"))
	n, err := strconv.Atoi(string(length))
	return len(body) >= n, err == nil
}
