// Package status tells resource servers whether the sessions behind access
// tokens still live. A token is good until it ends by itself, and who checks it
// by its signature alone never hears of a logout; who asks here hears of it
// within MaxAge.
//
// It owns the text of the question and of the answer. It promises that a token
// of which nothing is known is not called live, and that where one cannot be
// known now, nothing is said of any. It must never tell more of a session than
// that.
package status

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"claviger.dev"
)

// Path is where the question is posted.
const Path = "/oauth/status"

// The limits of a question.
const (
	MaxBody   = 64 << 10 // bytes
	MaxTokens = 500
)

// MaxAge is how long an answer may be relied on.
const MaxAge = time.Second

// Door is what is asked of the keeper.
type Door interface {
	ClientLive(ctx context.Context, ref string) (claviger.Client, error)
	SessionLive(ctx context.Context, id claviger.ID) (claviger.Session, error)
	TokenRevoked(ctx context.Context, jti string) (bool, error)
}

// Token names an access token by its claims.
type Token struct {
	ID      string      `json:"jti"`
	Session claviger.ID `json:"sid"`                 // "" where it belongs to no session
	Client  string      `json:"client_id,omitempty"` // who got it, which may have ended; "": not asked
}

// Question is what a resource server asks.
type Question struct {
	Tokens []Token `json:"tokens"`
}

// Answer says of each token of the question, in its order, whether it lives.
type Answer struct {
	Live   []bool `json:"live"`
	MaxAge int    `json:"max_age"` // seconds
}

// Live returns nil for a token whose session and client live and that was not
// revoked. A session that lives has a client that does.
// The error is claviger.Denied or claviger.NotFound where it does not, and any
// other where that cannot be known now.
func Live(ctx context.Context, d Door, t Token) error {
	if t.Session != "" {
		if _, err := d.SessionLive(ctx, t.Session); err != nil {
			return err
		}
	} else if t.Client != "" {
		if _, err := d.ClientLive(ctx, t.Client); err != nil {
			return err
		}
	}
	revoked, err := d.TokenRevoked(ctx, t.ID)
	if err == nil && revoked {
		err = claviger.Errorf(claviger.Denied, "the token was revoked", "get another one")
	}
	return err
}

// Ended reports whether an error of Live means that the token does not live,
// and not that it cannot be known.
func Ended(err error) bool {
	return errors.Is(err, claviger.Denied) || errors.Is(err, claviger.NotFound)
}

// Handler answers who has proved to be a principal: ids of sessions and tokens
// cannot be guessed, so that it takes no grant to ask about one.
type Handler struct {
	Door  Door
	Count func(live bool) // told of each token; nil: nobody
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		fail(w, http.StatusMethodNotAllowed, "ask with POST")
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
	var q Question
	if err != nil || len(body) > MaxBody || json.Unmarshal(body, &q) != nil || len(q.Tokens) == 0 || len(q.Tokens) > MaxTokens {
		fail(w, http.StatusBadRequest, `ask with {"tokens":[{"jti":"...","sid":"..."}]}, of at most 500 tokens and 64 KiB`)
		return
	}
	a := Answer{Live: make([]bool, len(q.Tokens)), MaxAge: int(MaxAge / time.Second)}
	for i, t := range q.Tokens {
		err := Live(r.Context(), h.Door, t)
		if err != nil && !Ended(err) {
			w.Header().Set("Retry-After", "1")
			fail(w, http.StatusServiceUnavailable, "whether sessions live cannot be known now")
			return
		}
		a.Live[i] = err == nil
		if h.Count != nil {
			h.Count(a.Live[i])
		}
	}
	out, err := json.Marshal(a)
	if err != nil { // impossible: booleans
		fail(w, http.StatusInternalServerError, "the answer cannot be written")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "private, max-age="+strconv.Itoa(a.MaxAge))
	_, _ = w.Write(out) // the caller went away
}

func fail(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text}) // the caller went away
}
