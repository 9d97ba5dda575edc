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
	"net/netip"
	"slices"
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
	MaxUses   = 500
	MaxMethod = 32 // bytes
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

// Use tells of uses of a session's key that a resource server saw, which are
// alike. The rules against abuse hear of keys in browsers in no other way.
type Use struct {
	Session  claviger.ID `json:"sid"`
	Audience string      `json:"aud"` // of the resource server
	Method   string      `json:"method,omitempty"`
	Address  netip.Addr  `json:"address,omitzero"` // of the client
	Count    uint64      `json:"count,omitzero"`   // 0: one
	Stale    bool        `json:"stale,omitempty"`  // proofs that were refused because their nonce had ended
}

func (u *Use) wrong() bool {
	return u.Session == "" || u.Audience == "" || len(u.Audience) > claviger.MaxAudienceLength || len(u.Method) > MaxMethod
}

// Question is what a resource server asks, and what it tells.
type Question struct {
	Tokens []Token `json:"tokens"`
	Uses   []Use   `json:"uses,omitempty"` // since the last question
}

// Answer says of each token of the question, in its order, whether it lives.
type Answer struct {
	Live   []bool `json:"live"`
	MaxAge int    `json:"max_age"`        // seconds
	Taken  int    `json:"taken,omitzero"` // of the uses: those of sessions that the caller may report of
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
// cannot be guessed, so that it takes no grant to ask about one. To tell of
// their uses takes one, because a session may be suspended for what is told.
type Handler struct {
	Door   Door
	Report func(context.Context, []Use) (taken int, err error) // told of uses, before it is answered whether their sessions live; nil: nobody
	Count  func(live bool)                                     // told of each token; nil: nobody
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
	if err != nil || len(body) > MaxBody || json.Unmarshal(body, &q) != nil || len(q.Tokens)+len(q.Uses) == 0 || len(q.Tokens) > MaxTokens ||
		len(q.Uses) > MaxUses || slices.ContainsFunc(q.Uses, func(u Use) bool { return u.wrong() }) {
		fail(w, http.StatusBadRequest, `ask with {"tokens":[{"jti":"...","sid":"..."}]}, of at most 500 tokens, 500 uses and 64 KiB`)
		return
	}
	a := Answer{Live: make([]bool, len(q.Tokens)), MaxAge: int(MaxAge / time.Second)}
	if len(q.Uses) > 0 && h.Report != nil {
		if a.Taken, err = h.Report(r.Context(), q.Uses); err != nil {
			unknown(w)
			return
		}
	}
	for i, t := range q.Tokens {
		err := Live(r.Context(), h.Door, t)
		if err != nil && !Ended(err) {
			unknown(w)
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

func unknown(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	fail(w, http.StatusServiceUnavailable, "whether sessions live cannot be known now")
}

func fail(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text}) // the caller went away
}
