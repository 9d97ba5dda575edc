package server

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"google.golang.org/protobuf/proto"

	"claviger.dev"
	"claviger.dev/internal/keeper"
)

// brief is a method that applications call for each request of theirs: it
// appends the JSON of the answer to dst. Neither dst nor body is kept.
type brief func(ctx context.Context, by claviger.Principal, dst, body []byte) ([]byte, error)

// briefs are the methods that have a way past Connect, by procedure.
func briefs(k *keeper.Keeper) map[string]brief {
	return map[string]brief{
		"/claviger.v1.StateService/Protect":   newBrief(readProtect, protectFrom, k.Protect, writeProtected, protectTo),
		"/claviger.v1.StateService/Unprotect": newBrief(readUnprotect, unprotectFrom, k.Unprotect, writeUnprotected, unprotectTo),
	}
}

// message is a pointer to a generated message.
type message[M any] interface {
	*M
	proto.Message
}

// newBrief makes a brief of a method of the keeper. read and write are the
// quick ways from and to JSON; what they leave goes by the general codec, and
// from and to.
func newBrief[M, Q, A any, In message[M], Out proto.Message](read func([]byte) (Q, bool), from func(In) (Q, error),
	method func(context.Context, claviger.Principal, Q) (A, error), write func([]byte, A) ([]byte, bool), to func(A) Out) brief {
	general := func(body []byte) (none Q, err error) {
		in := In(new(M))
		if err := fromJSON(body, in); err != nil {
			return none, malformed(err.Error())
		}
		return from(in)
	}
	return func(ctx context.Context, by claviger.Principal, dst, body []byte) ([]byte, error) {
		req, ok := read(body)
		if !ok {
			var err error
			if req, err = general(body); err != nil {
				return nil, err
			}
		}
		out, err := method(ctx, by, req)
		if err != nil {
			return nil, err
		}
		answer, ok := write(dst, out)
		if !ok {
			if answer, err = toJSON(dst, to(out)); err != nil {
				return nil, fmt.Errorf("encode answer: %w", err)
			}
		}
		return answer, nil
	}
}

// direct answers simple calls as Connect does, with the same errors, and
// without the work for protocols and options that such a call does not use:
// that costs as much as checking a token. It leaves the others to next.
func (g *gate) direct(row route, method brief, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !simple(r) {
			next.ServeHTTP(w, r)
			return
		}
		body := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			next.ServeHTTP(w, r) // which meets the same error
			return
		}
		c := callOf(r.Context())
		c.read()
		err := r.Context().Err()
		var answer []byte
		if err == nil {
			answer, err = method(r.Context(), c.by, make([]byte, 0, answerSize), body)
		}
		if err != nil {
			g.refuse(w, r, c, row, err)
			return
		}
		w.Header()["Content-Type"] = []string{jsonType}
		_, _ = w.Write(answer) // the caller went away
	})
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
