// Package server is the way in from outside: listeners, routes with their
// limits, handlers that decode, call the keeper and encode, health, metrics
// and shutdown. It promises that every method has a row in the table of
// routes, that every input has a limit and every wait a deadline, and that an
// error it does not know reaches a caller as "internal" with a request id. It
// must never decide what a principal may do, and never see a key.
package server

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"claviger.dev"
	"claviger.dev/api/claviger/v1/clavigerv1connect"
	"claviger.dev/internal/broker/deliver"
	"claviger.dev/internal/evidence"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/proof"
)

// usualAge is how long a key set may be cached when the keeper says nothing.
const usualAge = time.Minute

// maxHeader is the most that a request's headers may take, in bytes.
const maxHeader = 16 << 10

// Parts is what a server is made of. Config must have been checked, by [Load]
// or [Parse].
type Parts struct {
	Config Config
	Keeper *keeper.Keeper
	Log    *slog.Logger

	// Listeners that are open already, such as those of a socket unit. Where
	// one is nil it is opened as Config says, or left out where Config says so.
	Socket  net.Listener // as from ListenSocket
	TLS     net.Listener // of plain TCP
	Metrics net.Listener

	Collectors []prometheus.Collector // further numbers: of key processes, of the record
	Now        func() time.Time       // nil: time.Now
	Serving    func(Addresses)        // called once all listeners take connections; nil: not called
}

// Addresses are where a server listens. What it does not listen on is empty.
type Addresses struct {
	Socket  string // path
	TLS     string // host:port
	Metrics string // host:port
}

// Run serves until ctx ends or a listener fails. Then it takes no more
// connections, ends streams, lets other requests finish within Config.Drain,
// and writes out what the keeper gathers in memory. It returns nil after an
// orderly stop; a socket that another server has is [claviger.Conflict].
func Run(ctx context.Context, parts Parts) error {
	if parts.Now == nil {
		parts.Now = time.Now
	}
	group, ctx := errgroup.WithContext(ctx)
	g, err := newGate(ctx, &parts)
	if err != nil {
		return err
	}
	listeners, err := parts.listen(g)
	if err != nil {
		return err
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx)) // the keeper works until the last request has ended
	defer stop()
	group.Go(func() error {
		if err := parts.Keeper.Run(work); err != nil && work.Err() == nil {
			return fmt.Errorf("run keeper: %w", err)
		}
		return nil
	})
	if parts.Config.Broker.Enabled() {
		deliverer := &deliver.Deliverer{Outbox: parts.Keeper, Issuer: parts.Config.Broker.Issuer, Loopback: parts.Config.Dev, Log: parts.Log, Now: parts.Now}
		group.Go(func() error {
			deliverer.Run(ctx)
			return nil
		})
	}
	for _, l := range listeners {
		group.Go(func() error {
			if err := l.serve(); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.name, err)
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		defer stop()
		return shutdown(listeners, time.Duration(parts.Config.Drain), parts.Log)
	})
	if parts.Serving != nil {
		parts.Serving(addresses(listeners))
	}
	err = group.Wait()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(parts.Config.Drain)+time.Second)
	defer cancel()
	return errors.Join(err, parts.Keeper.Close(closing))
}

// shutdown lets requests finish, and cuts off those that take too long.
func shutdown(listeners []*listener, drain time.Duration, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	group := errgroup.Group{}
	for _, l := range listeners {
		group.Go(func() error {
			if err := l.stop(ctx); err != nil {
				log.Warn("requests were cut off at the stop", "listener", l.name, "error", err)
				return l.http.Close()
			}
			return nil
		})
	}
	return group.Wait()
}

// newGate makes the gate for a configuration.
func newGate(stopping context.Context, parts *Parts) (*gate, error) {
	m, err := newMetrics(append(slices.Clone(parts.Collectors), tokens{parts.Keeper.TokenCounts}, sessionEvents{parts.Keeper.SessionEvents}, following{parts.Keeper.Following}))
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	external := make(map[string][]*x509.Certificate)
	for _, ca := range parts.Config.ExternalCA {
		if external[ca.TrustDomain], err = ca.Roots(); err != nil {
			return nil, err
		}
	}
	limits := parts.Config.Limits
	g := &gate{
		prover: &proof.Prover{
			Directory: parts.Keeper, TrustDomain: parts.Config.TrustDomain, Roots: parts.Keeper.Roots, External: external, Now: parts.Now,
		},
		log: parts.Log, now: parts.Now, metrics: m, stopping: stopping, loopback: parts.Config.Dev,
		bodies: semaphore.NewWeighted(bodyMemory),
		classes: map[class]*buckets{
			classUse:    nil,
			classAdmin:  newBuckets(float64(limits.Admin), 2*limits.Admin),
			classHeavy:  newBuckets(1, 20),
			classEnroll: newBuckets(float64(limits.Enroll)/60, limits.Enroll),
			classPublic: newBuckets(200, 1000),
		},
	}
	if limits.Use > 0 {
		g.classes[classUse] = newBuckets(float64(limits.Use), limits.Use)
	}
	return g, nil
}

// handler puts the services behind the gate.
func (g *gate) handler(k *keeper.Keeper, roots evidence.DeviceRoots, endpoints map[string]http.Handler) (http.Handler, error) {
	table := routes()
	if err := checkRoutes(table, services()); err != nil {
		return nil, err
	}
	options := []connect.HandlerOption{
		connect.WithInterceptors(interceptor{g}),
		connect.WithCompression("gzip", nil, nil), // none: it costs more than it saves, and unpacks to any size
	}
	for _, c := range codecList() {
		options = append(options, connect.WithCodec(c))
	}
	g.errors = connect.NewErrorWriter(options...)
	return g.mux(table, serviceHandlers(k, roots, g.loopback, g.now, options), briefs(k), endpoints, g.public(k.Ready, publicKeys(k))), nil
}

// serviceHandlers are the services by the prefix of their methods' paths.
func serviceHandlers(k *keeper.Keeper, roots evidence.DeviceRoots, loopback bool, now func() time.Time, options []connect.HandlerOption) map[string]http.Handler {
	out := make(map[string]http.Handler)
	add := func(path string, h http.Handler) { out[path] = h }
	add(clavigerv1connect.NewUseServiceHandler(use{k}, options...))
	add(clavigerv1connect.NewStateServiceHandler(states{k}, options...))
	add(clavigerv1connect.NewKeyServiceHandler(keys{k}, options...))
	add(clavigerv1connect.NewGrantServiceHandler(grants{k}, options...))
	add(clavigerv1connect.NewSessionServiceHandler(sessions{k, now}, options...))
	add(clavigerv1connect.NewClientServiceHandler(clients{k}, options...))
	add(clavigerv1connect.NewPrincipalServiceHandler(principals{k}, options...))
	add(clavigerv1connect.NewAuditServiceHandler(auditlog{k}, options...))
	add(clavigerv1connect.NewServerServiceHandler(self{k}, options...))
	add(clavigerv1connect.NewEvidenceServiceHandler(evidences{k, roots}, options...))
	add(clavigerv1connect.NewReceiverServiceHandler(receivers{k, loopback}, options...))
	return out
}

// mux finds the method, or the endpoint, by its exact path. What is neither is
// public or not there.
func (g *gate) mux(table []route, services map[string]http.Handler, short map[string]brief, endpoints map[string]http.Handler, public http.Handler) http.Handler {
	methods := make(map[string]http.Handler, len(table)+len(endpoints))
	maps.Copy(methods, endpoints)
	for _, row := range table {
		prefix := row.procedure[:len("/")+slices.Index([]byte(row.procedure[1:]), '/')+1]
		method := services[prefix]
		if short, ok := short[row.procedure]; ok {
			method = g.direct(row, short, method)
		}
		methods[row.procedure] = g.guard(row, method)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if method, ok := methods[r.URL.Path]; ok {
			method.ServeHTTP(w, r)
			return
		}
		public.ServeHTTP(w, r)
	})
}

// publicKeys reads an application's key set from the keeper. It holds every
// version that a verifier may meet: those not yet active, so that a cache has
// them when they begin to sign, and those that only process any more.
func publicKeys(k *keeper.Keeper) func(ctx context.Context, environment, application string) (jwks, error) {
	return func(ctx context.Context, environment, application string) (jwks, error) {
		set, err := k.PublicKeys(ctx, environment, application)
		if err != nil {
			return jwks{}, err
		}
		if len(set.Versions) == 0 {
			return jwks{}, claviger.Errorf(claviger.NotFound, "the application publishes no keys", "check the environment and the application in the path")
		}
		return newJWKS(each(set.Versions, func(v keeper.PublicVersion) []byte { return v.Public.JWK() }), cmp.Or(set.MaxAge, usualAge)), nil
	}
}
