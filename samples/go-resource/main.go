// Command go-resource is a resource server in Go: it takes access tokens of a
// Claviger server that are bound to a key, with a proof by that key, and stops
// taking them within a second of the logout.
//
//	go-resource -base https://api.example.com -issuer https://login.example.com -claviger unix:///run/claviger/claviger.sock
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"time"

	"claviger.dev/client"
	"claviger.dev/dpop"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		slog.Error("resource server", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("go-resource", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:8080", "address, plain HTTP, behind whatever ends TLS")
	base := flags.String("base", "https://api.example.com", "where clients reach this server; the audience of their tokens")
	issuer := flags.String("issuer", "https://login.example.com", "iss of the tokens")
	keys := flags.String("keys", "", "the issuer's key set; by default issuer/oauth/jwks")
	server := flags.String("claviger", "", "the Claviger server, for the status of sessions: unix:///path or https://host:port")
	if err := flags.Parse(args); err != nil {
		return err
	}
	public, err := url.Parse(*base)
	if err != nil {
		return err
	}
	if *keys == "" {
		*keys = *issuer + "/oauth/jwks"
	}
	c, err := client.New(client.Config{Address: *server})
	if err != nil {
		return err
	}
	const metadata = "/.well-known/oauth-protected-resource"
	// The uses of keys in browsers are told to the rules against abuse; see docs/sessions.md for the grant.
	status := &client.Status{Client: c, Audience: *base}
	guard := &dpop.Resource{
		Base:        public,
		MetadataURL: public.JoinPath(metadata).String(),
		Token:       (&dpop.Tokens{Issuer: *issuer, Audience: *base, Keys: dpop.FetchKeys(&http.Client{Timeout: 5 * time.Second}, *keys)}).Access,
		// Several servers need a key for their nonces that they share, and dpop.SQL or dpop.Redis.
		Verifier: &dpop.Verifier{Replays: &dpop.Memory{}, Nonces: &dpop.Nonces{MAC: dpop.NonceKey([]byte(rand.Text() + rand.Text()))}},
		Status:   status.Check,
		Stale:    status.Stale,
	}
	mux := http.NewServeMux()
	mux.Handle("/orders", guard.Guard(orders))
	mux.Handle(metadata, guard.Metadata(*base, *issuer))
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, "listening on", l.Addr())
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 32 << 10}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// orders is the application: it is told who calls, and never sees a request of
// anybody else.
func orders(w http.ResponseWriter, r *http.Request, caller dpop.Caller) {
	token := caller.Claims.(*dpop.Token)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"sub": token.Subject, "method": r.Method}) // the caller went away
}
