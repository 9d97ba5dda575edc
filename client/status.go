package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"claviger.dev/dpop"
)

// StatusAge is how long Status relies on an answer where nothing else is said.
const StatusAge = time.Second

// Limits of Status: as the server has them, and of what is kept.
const (
	statusBatch    = 200
	statusUsesMost = 200    // kinds of uses in a question
	statusNotes    = 10_000 // kinds of uses that wait for one
	statusMethod   = 32     // bytes
	statusKept     = 100_000
	statusWait     = 2 * time.Second
)

// Status asks the server whether the sessions behind access tokens live, so
// that a logout ends tokens at a resource server too: within MaxAge, and the
// time of one question. Its Check is the Status of a dpop.Resource. It may be
// used concurrently; questions of one moment go as one.
type Status struct {
	Client *Client
	MaxAge time.Duration    // how long an answer is relied on; 0: StatusAge
	Now    func() time.Time // time.Now if nil

	// Audience is this resource server's own. With it, the server is told of each
	// use of a session's key with the next question, so that its rules against
	// abuse see them; this takes a grant of report-uses on the names of the
	// clients. Empty: nothing is told.
	Audience string

	mu      sync.Mutex
	known   map[statusToken]statusAnswer
	waiting *statusQuestion      // not sent yet; nil: none
	sending chan struct{}        // holds one while a question is under way; nil before the first
	notes   map[statusUse]uint64 // uses that the server was not told of; those over statusNotes kinds are lost
	told    time.Time            // when a question last took notes
}

// statusUse is what uses that are counted together have in common.
type statusUse struct {
	Session  string     `json:"sid"`
	Audience string     `json:"aud"`
	Method   string     `json:"method,omitempty"`
	Address  netip.Addr `json:"address,omitzero"`
	Stale    bool       `json:"stale,omitempty"`
}

// statusUses is a number of them, as the server wants it.
type statusUses struct {
	statusUse
	Count uint64 `json:"count"`
}

// statusToken names a token by its claims, as the server wants it.
type statusToken struct {
	ID      string `json:"jti"`
	Session string `json:"sid"`
	Client  string `json:"client_id"`
}

type statusAnswer struct {
	live bool
	till time.Time
}

// statusQuestion is one request for many.
type statusQuestion struct {
	tokens []statusToken
	places map[statusToken]int
	done   chan struct{} // closed when the rest is set
	live   []bool
	err    error
}

var errEnded = errors.New("the session of the token has ended, or the token was revoked")

// Check returns nil while a token's session lives. Its error is an *dpop.Error
// of dpop.Unavailable where the server does not answer: nobody knows then, and
// nobody passes.
func (s *Status) Check(ctx context.Context, access dpop.Access) error {
	token, ok := access.Claims.(*dpop.Token)
	if !ok {
		return errors.New("the claims are not those of dpop.Tokens")
	}
	id := statusToken{token.ID, token.Session, token.Client}
	asked := s.now()
	s.mu.Lock()
	s.note(token, access.Use, false, asked)
	if a, ok := s.known[id]; ok && asked.Before(a.till) {
		s.mu.Unlock()
		return a.err()
	}
	q, place := s.join(id, asked)
	s.mu.Unlock()
	select {
	case <-q.done:
	case <-ctx.Done():
		return &dpop.Error{Code: dpop.Unavailable, Msg: "whether the session lives cannot be known in time: try again", Err: ctx.Err()}
	}
	if q.err != nil {
		return &dpop.Error{Code: dpop.Unavailable, Msg: "whether the session lives cannot be known now: try again", Err: q.err}
	}
	a := statusAnswer{live: q.live[place], till: asked.Add(s.maxAge())} // one that was suspended may be resumed
	s.keep(id, a, asked)
	return a.err()
}

// Stale is the Stale of a dpop.Resource: the server is told of the proof.
func (s *Status) Stale(_ context.Context, access dpop.Access) {
	if token, ok := access.Claims.(*dpop.Token); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.note(token, access.Use, true, s.now())
	}
}

// note counts a use, and sends a question if none has taken notes for a while:
// a session that is not asked about may be abused still.
func (s *Status) note(token *dpop.Token, use dpop.Use, stale bool, now time.Time) {
	if s.Audience == "" || token.Session == "" {
		return
	}
	u := statusUse{token.Session, s.Audience, use.Method[:min(len(use.Method), statusMethod)], use.Source, stale}
	if s.notes == nil {
		s.notes = map[statusUse]uint64{}
	}
	if _, ok := s.notes[u]; ok || len(s.notes) < statusNotes {
		s.notes[u]++
	}
	if now.Sub(s.told) >= s.maxAge() {
		s.join(statusToken{token.ID, token.Session, token.Client}, now)
	}
}

// noted takes notes for a question.
func (s *Status) noted() []statusUses {
	var uses []statusUses
	for u, n := range s.notes {
		if len(uses) == statusUsesMost {
			break
		}
		uses = append(uses, statusUses{u, n})
		delete(s.notes, u)
	}
	return uses
}

func (s *Status) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (a statusAnswer) err() error {
	if a.live {
		return nil
	}
	return errEnded
}

func (s *Status) maxAge() time.Duration {
	if s.MaxAge == 0 {
		return StatusAge
	}
	return s.MaxAge
}

// join puts a token into the question that goes next, and returns its place.
func (s *Status) join(id statusToken, now time.Time) (*statusQuestion, int) {
	q := s.waiting
	if q == nil || len(q.tokens) >= statusBatch {
		q = &statusQuestion{places: map[statusToken]int{}, done: make(chan struct{})}
		s.waiting, s.told = q, now
		if s.sending == nil {
			s.sending = make(chan struct{}, 1)
		}
		go s.ask(q)
	}
	place, ok := q.places[id]
	if !ok {
		place = len(q.tokens)
		q.places[id] = place
		q.tokens = append(q.tokens, id)
	}
	return q, place
}

// ask sends a question, when the one before has been answered: meanwhile it
// gathers. An answer is never older than the call that it answers.
func (s *Status) ask(q *statusQuestion) {
	defer close(q.done)
	ctx, cancel := context.WithTimeout(context.Background(), statusWait)
	defer cancel()
	select {
	case s.sending <- struct{}{}:
		defer func() { <-s.sending }()
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.waiting == q {
			s.waiting = nil
		}
		q.err = ctx.Err()
		return
	}
	s.Client.renewIfDue(ctx)
	s.mu.Lock()
	if s.waiting == q {
		s.waiting = nil
	}
	body, err := json.Marshal(struct {
		Tokens []statusToken `json:"tokens"`
		Uses   []statusUses  `json:"uses,omitempty"`
	}{q.tokens, s.noted()})
	s.mu.Unlock()
	if err != nil {
		q.err = err
		return
	}
	q.live, q.err = s.Client.status(ctx, body, len(q.tokens))
}

func (s *Status) keep(id statusToken, a statusAnswer, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) >= statusKept {
		for k, v := range s.known {
			if !now.Before(v.till) {
				delete(s.known, k)
			}
		}
	}
	if s.known == nil || len(s.known) >= statusKept {
		s.known = map[statusToken]statusAnswer{}
	}
	s.known[id] = a
}

// status posts one question about n tokens.
func (c *Client) status(ctx context.Context, body []byte, n int) ([]bool, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/oauth/status", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := c.transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New("the server answers " + resp.Status)
	}
	var told struct {
		Live []bool `json:"live"`
	}
	if err := json.Unmarshal(answer, &told); err != nil || len(told.Live) != n {
		return nil, errors.New("the answer is not of this question")
	}
	return told.Live, nil
}
