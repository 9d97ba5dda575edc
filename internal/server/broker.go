package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"net/netip"
	"runtime/debug"
	"time"

	"claviger.dev"
	"claviger.dev/dpop"
	"claviger.dev/internal/broker"
	"claviger.dev/internal/broker/oauth"
	"claviger.dev/internal/broker/upstream"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/proof"
)

// endpoints are those of the authorization server, by path; none where it is
// not configured.
func (g *gate) endpoints(k *keeper.Keeper, cfg *Config) (map[string]http.Handler, error) {
	c := cfg.Broker
	if !c.Enabled() {
		return nil, nil
	}
	issuers, err := upstream.New(c.Issuers, c.Issuer, g.now)
	if err != nil {
		return nil, err
	}
	clients, strangers := newBuckets(float64(c.PerClient), c.PerClient), newBuckets(float64(c.PerAddress), c.PerAddress)
	b := &broker.Broker{Config: c, Door: k, Issuers: issuers, Proofs: proofs(k, cfg, g.now), Log: g.log, Now: g.now,
		Admit: func(client *claviger.Client, from claviger.Facts) bool {
			if client.Kind == claviger.Public { // whoever names it
				return strangers.allow(source(from), g.now())
			}
			return clients.allow(string(client.ID), g.now())
		},
		Provider: issuers.Provider(c.Issuer+broker.CallbackPath, func(ctx context.Context, claims map[string]any) (string, error) {
			doc, err := json.Marshal(claims)
			if err != nil {
				return "", err
			}
			return k.SignEvent(ctx, keeper.ClientAssertion, doc)
		})}
	h := &oauth.Handler{Broker: b, Identify: g.connection, Log: g.log, Now: g.now,
		Spent:  func(f claviger.Facts) bool { return strangers.spent(source(f), g.now()) },
		Charge: func(f claviger.Facts) { strangers.allow(source(f), g.now()) }}
	out := h.Mux()
	for path, next := range out {
		out[path] = g.watched(path, next)
	}
	return out, nil
}

// proofs checks the proofs of the token endpoint. On the embedded store, which
// has one server, those that were used are in its memory, and its nonces end
// with it; on a shared one both are common to all servers.
func proofs(k *keeper.Keeper, cfg *Config, now func() time.Time) *dpop.Verifier {
	nonces := &dpop.Nonces{MAC: k.NonceMAC, Span: time.Duration(cfg.Broker.NonceSpan)}
	v := &dpop.Verifier{Nonces: nonces, Now: now}
	if cfg.Store.Kind == "postgres" {
		v.Replays = broker.SharedReplays{Door: k}
		return v
	}
	var epoch [8]byte
	_, _ = rand.Read(epoch[:]) // never fails
	nonces.Epoch = binary.BigEndian.Uint64(epoch[:])
	v.Replays = &dpop.Memory{PerKey: 500_000, Now: now}
	return v
}

// connection is what is known of a request before it is read: where it comes
// from, and the client certificate. A certificate that names no principal is
// still one.
func (g *gate) connection(r *http.Request) broker.Request {
	id := r.Context().Value(requestKey{}).(string)
	if peer, ok := r.Context().Value(peerKey{}).(*proof.Peer); ok {
		facts := peer.Facts()
		facts.RequestID = id
		return broker.Request{Facts: facts}
	}
	addr, _ := netip.ParseAddrPort(r.RemoteAddr)
	in := broker.Request{Facts: claviger.Facts{Source: addr.Addr().Unmap(), UID: -1, GID: -1, RequestID: id}}
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return in
	}
	leaf, now := r.TLS.PeerCertificates[0], g.now()
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return in
	}
	in.Certificate = leaf
	if by, err := g.prover.Certificate(r.Context(), r.TLS, in.Facts.Source, id); err == nil {
		in.Caller = by
	}
	return in
}

// requestKey is the key of a request's id in its context.
type requestKey struct{}

// watched gives an endpoint that is no method of the API what those have: an id
// for each request, a number in the metrics, and an answer when it panics.
func (g *gate) watched(path string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start, id := g.now(), string(claviger.NewID(g.now()))
		out := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		w.Header().Set(headerRequestID, id)
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				g.log.ErrorContext(r.Context(), "panic", "path", path, "request", id, "panic", p, "stack", string(debug.Stack()))
				out.WriteHeader(http.StatusInternalServerError)
			}
			code := claviger.Code("")
			if out.status >= http.StatusBadRequest {
				code = codeOfStatus(out.status).Code
			}
			g.metrics.observe(path, code, g.now().Sub(start))
		}()
		next.ServeHTTP(out, r.WithContext(context.WithValue(r.Context(), requestKey{}, id)))
	})
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements [http.ResponseWriter].
func (s *statusWriter) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// Unwrap is for [http.ResponseController].
func (s *statusWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }
