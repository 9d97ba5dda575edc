package server

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/broker/forward"
	"claviger.dev/internal/broker/status"
	"claviger.dev/internal/keeper"
)

// edgeDeadline is how long a proxy or a resource server waits for a word.
const edgeDeadline = 5 * time.Second

// edge serves what stands in front of applications and behind them, and hands
// everything else on.
func (g *gate) edge(k *keeper.Keeper, cfg *Config, next http.Handler) (http.Handler, error) {
	row := route{procedure: status.Path, body: status.MaxBody, deadline: edgeDeadline, auth: authAny, class: classUse}
	tokens := g.guard(row, &status.Handler{Door: k, Report: func(ctx context.Context, uses []status.Use) (int, error) {
		return k.ReportUses(ctx, caller(ctx), each(uses, useFrom))
	},
		Count: func(live bool) { g.metrics.statuses.WithLabelValues(strconv.FormatBool(live)).Inc() }})
	fronts := next
	if len(cfg.ForwardAuth) > 0 {
		f, err := forward.New(forward.Parts{Issuer: cfg.Broker.Issuer, Keys: k.TokenKeys, Verifier: proofs(k, cfg, g.now),
			Status: func(ctx context.Context, r forward.Request) error {
				if err := observe(ctx, k, r, false); err != nil {
					return err
				}
				return status.Live(ctx, k, status.Token{ID: r.Token.ID, Session: claviger.ID(r.Token.Session), Client: r.Token.Client})
			},
			Stale: func(ctx context.Context, r forward.Request) {
				_ = observe(ctx, k, r, true) // the proof is refused in any case
			},
			Outcome: func(app string, code int) { g.metrics.fronts.WithLabelValues(app, strconv.Itoa(code)).Inc() },
		}, cfg.ForwardAuth)
		if err != nil {
			return nil, err
		}
		fronts = g.front(f)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == status.Path:
			tokens.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, forward.Prefix):
			fronts.ServeHTTP(w, r)
		default:
			next.ServeHTTP(w, r)
		}
	}), nil
}

func useFrom(u status.Use) keeper.ReportedUse {
	return keeper.ReportedUse{Session: u.Session, SessionUse: keeper.SessionUse{Kind: "dpop", Audiences: []string{u.Audience}, Method: u.Method,
		Source: claviger.Source{Address: u.Address.Unmap().WithZone("")}, Count: u.Count, Stale: u.Stale}}
}

// observe has the rules against abuse hear of a request.
func observe(ctx context.Context, k *keeper.Keeper, r forward.Request, stale bool) error {
	if r.Token.Session == "" {
		return nil
	}
	_, err := k.ObserveUse(ctx, k.System(), claviger.ID(r.Token.Session), keeper.SessionUse{Kind: "dpop",
		Audiences: []string{r.Audience}, Method: r.Method, Source: claviger.Source{Address: r.Source}, Stale: stale})
	return err
}

// front finds out which proxy asks. One that has no principal may still be
// known by its address; where it cannot be known who it is, nobody passes.
func (g *gate) front(f *forward.Forward) http.Handler {
	row := route{procedure: forward.Prefix, deadline: edgeDeadline, auth: authAny}
	return g.watched(forward.Prefix, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), edgeDeadline)
		defer cancel()
		c := &call{id: w.Header().Get(headerRequestID)}
		if err := g.identify(ctx, row, r, c); err != nil && !errors.Is(err, claviger.Unauthenticated) {
			g.fail(w, r, claviger.Errorf(claviger.Unavailable, "who asks cannot be known now", "try again").Wrap(err))
			return
		}
		f.Serve(w, r.WithContext(ctx), forward.Caller{Principal: c.by, Address: c.facts.Source})
	}))
}
