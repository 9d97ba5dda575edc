package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// listener is one way in, with the HTTP server behind it.
type listener struct {
	name  string
	net   net.Listener
	http  *http.Server
	serve func() error
	local *local // of the local socket, else nil
}

// stop lets requests finish until ctx ends.
func (l *listener) stop(ctx context.Context) error {
	err := l.http.Shutdown(ctx)
	if l.local != nil {
		err = errors.Join(err, l.local.drain(ctx))
	}
	return err
}

// listen opens what is not open yet. On an error nothing stays open.
func (p *Parts) listen(g *gate) (all []*listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				l.net.Close()
			}
		}
	}()
	roots, err := p.Config.TPM.DeviceRoots()
	if err != nil {
		return nil, err
	}
	endpoints, err := g.endpoints(p.Keeper, &p.Config)
	if err != nil {
		return nil, err
	}
	handler, err := g.handler(p.Keeper, roots, endpoints)
	if err != nil {
		return nil, err
	}
	if handler, err = g.edge(p.Keeper, &p.Config, handler); err != nil {
		return nil, err
	}
	if p.Socket == nil {
		if p.Socket, err = ListenSocket(p.Config.Socket); err != nil {
			return all, err
		}
	}
	local := p.listener("socket", p.Socket, handler, g.metrics)
	local.http.Protocols.SetHTTP2(false)
	local.local = newLocal(p.Socket, g, routes(), briefs(p.Keeper))
	local.local.server = local.http
	local.serve = func() error { return local.http.Serve(local.local) }
	all = append(all, local)
	if p.TLS, err = openTCP(p.TLS, p.Config.Listen); err != nil {
		return all, err
	}
	if p.TLS != nil {
		remote := p.listener("tls", p.TLS, handler, g.metrics)
		remote.http.TLSConfig = tlsConfig(p.Keeper.ServerCertificate, p.Keeper.Roots, g.prover.External, p.Now)
		remote.serve = func() error { return remote.http.ServeTLS(remote.net, "", "") }
		all = append(all, remote)
	}
	if p.Metrics, err = openTCP(p.Metrics, p.Config.MetricsListen); err != nil {
		return all, err
	}
	if p.Metrics != nil {
		numbers := p.listener("metrics", p.Metrics, g.metrics.handler(), g.metrics)
		numbers.http.Protocols.SetHTTP2(false)
		numbers.serve = func() error { return numbers.http.Serve(numbers.net) }
		all = append(all, numbers)
	}
	return all, nil
}

func openTCP(open net.Listener, address string) (net.Listener, error) {
	if open != nil || address == "" {
		return open, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

// listener makes the HTTP server of a listener, with every timeout and bound.
func (p *Parts) listener(name string, l net.Listener, handler http.Handler, m *metrics) *listener {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	limits := p.Config.Limits
	return &listener{name: name, net: l, http: &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: time.Duration(limits.HeaderTimeout),
		ReadTimeout:       time.Duration(limits.BodyTimeout),
		WriteTimeout:      answerTimeout,
		IdleTimeout:       time.Duration(limits.IdleTimeout),
		MaxHeaderBytes:    maxHeader,
		ConnState:         newConnections(limits.Connections, name, m).track,
		ConnContext:       withPeer,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 128, SendPingTimeout: time.Minute, PingTimeout: 15 * time.Second},
		ErrorLog:          slog.NewLogLogger(p.Log.Handler(), slog.LevelDebug), // handshakes of strangers
	}}
}

// addresses says where the listeners are.
func addresses(all []*listener) (a Addresses) {
	for _, l := range all {
		switch address := l.net.Addr().String(); l.name {
		case "socket":
			a.Socket = address
		case "tls":
			a.TLS = address
		case "metrics":
			a.Metrics = address
		}
	}
	return a
}
