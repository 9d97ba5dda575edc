package server

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"claviger.dev/internal/keeper"
)

// shortcut is a way to a method past Connect: it serves the calls it can and
// leaves the others to next.
type shortcut func(row route, next http.Handler) http.Handler

// shortcuts are the methods that applications call for each request of theirs,
// by procedure.
func (g *gate) shortcuts(k *keeper.Keeper) map[string]shortcut {
	s := states{k}
	return map[string]shortcut{
		"/claviger.v1.StateService/Protect":   direct(g, s.Protect),
		"/claviger.v1.StateService/Unprotect": direct(g, s.Unprotect),
	}
}

// message is a pointer to a generated message.
type message[T any] interface {
	*T
	proto.Message
}

// direct answers simple calls as Connect does, with the same codec and the same
// errors, and without the work for protocols and options that such a call does
// not use: that costs as much as checking a token.
func direct[In, Out any, PIn message[In], POut message[Out]](g *gate, method func(context.Context, *connect.Request[In]) (*connect.Response[Out], error)) shortcut {
	call := func(ctx context.Context, body []byte) ([]byte, error) {
		in := new(In)
		if err := fromJSON(body, PIn(in)); err != nil {
			return nil, malformed(err.Error())
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		out, err := method(ctx, connect.NewRequest(in))
		if err != nil {
			return nil, err
		}
		answer, err := toJSON(body[:0], POut(out.Msg))
		if err != nil {
			return nil, fmt.Errorf("encode answer: %w", err)
		}
		return answer, nil
	}
	return func(row route, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !simple(r) {
				next.ServeHTTP(w, r)
				return
			}
			body := make([]byte, r.ContentLength, max(r.ContentLength, answerSize))
			if _, err := io.ReadFull(r.Body, body); err != nil {
				next.ServeHTTP(w, r) // which meets the same error
				return
			}
			c := callOf(r.Context())
			c.read()
			answer, err := call(r.Context(), body)
			if err != nil {
				g.refuse(w, r, c, row, err)
				return
			}
			w.Header()["Content-Type"] = []string{jsonType}
			_, _ = w.Write(answer) // the caller went away
		})
	}
}

const (
	jsonType = "application/json"
	// answerSize is what most answers fit in, in bytes.
	answerSize = 512
)

// simple reports whether a call is one small message of JSON and nothing else.
func simple(r *http.Request) bool {
	h := r.Header
	kind := h["Content-Type"]
	return len(kind) == 1 && kind[0] == jsonType && r.ContentLength >= 0 && r.ContentLength <= small &&
		h["Content-Encoding"] == nil && h["Connect-Timeout-Ms"] == nil && h["Connect-Protocol-Version"] == nil
}
