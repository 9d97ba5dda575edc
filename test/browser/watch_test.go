package browser_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker/guard"
	"claviger.dev/internal/keeper"
)

// watch has the rules against abuse look at what a resource server sees, as the
// keeper has them where resource servers report to it. A session is known by
// its key.
type watch struct {
	guard guard.Guard

	mu       sync.Mutex // guards what follows
	sessions map[string]*claviger.Session
	raised   []string // "event thumbprint"
}

// session finds a session, or opens it.
func (w *watch) session(thumbprint string) *claviger.Session {
	s := w.sessions[thumbprint]
	if s == nil {
		now := time.Now()
		s = &claviger.Session{ID: claviger.ID(thumbprint), State: claviger.SessionLive, Created: now, Ends: now.Add(time.Hour), Idle: claviger.Duration(time.Hour),
			Volume: 50, SuspendOn: claviger.SessionEvents}
		w.sessions[thumbprint] = s
	}
	return s
}

func (w *watch) use(thumbprint string, stale bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.session(thumbprint)
	v := w.guard.Judge(*s, keeper.SessionUse{Kind: "dpop", At: time.Now(), Stale: stale})
	for _, e := range v.Events {
		w.raised = append(w.raised, string(e)+" "+thumbprint)
	}
	if v.Suspend != "" {
		s.State = claviger.SessionSuspended
	}
	if v.Refuse != "" || s.State != claviger.SessionLive {
		return errors.New("the session may not be used")
	}
	return nil
}

// events answers which there were.
func (w *watch) events(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = json.NewEncoder(rw).Encode(w.raised) // the test sees what is missing
}

// end ends a session, as a logout does.
func (w *watch) end(_ http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.session(r.URL.Query().Get("key")).State = claviger.SessionEnded
}

// remembered asks once for each token, as who checks them by their signature
// does not ask at all: a logout is not heard of this way.
func remembered(ask func(context.Context, string) (dpop.Access, error)) func(context.Context, string) (dpop.Access, error) {
	var known sync.Map
	return func(ctx context.Context, token string) (dpop.Access, error) {
		if a, ok := known.Load(token); ok {
			return a.(dpop.Access), nil
		}
		a, err := ask(ctx, token)
		if err == nil {
			known.Store(token, a)
		}
		return a, err
	}
}
