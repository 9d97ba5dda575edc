package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"claviger.dev"
	"claviger.dev/internal/proxy"
	"claviger.dev/internal/supervise"
)

// applicationGrace is how long the application may take to stop.
const applicationGrace = 10 * time.Second

func (a *app) agentProxy() *cobra.Command {
	var config, listen string
	c := &cobra.Command{
		Use: "proxy --config FILE -- COMMAND [ARG...]", Short: "Start an application behind a proxy that keeps its machine key in custody", Args: cobra.MinimumNArgs(1),
		Long: "Start an application that cannot be changed with a random secret in place of its machine key, and stand in front\n" +
			"of it. Cookies by the key in custody are checked there and made again with the random secret, and the other way\n" +
			"round; for ASP.NET the hidden fields of pages too. What is not valid is dropped. While custody is away requests\n" +
			"that need it are answered with 503, and nobody is logged out.\n\n" +
			"The application finds its secret in files made of templates, in the directory that the variable\n" +
			"CLAVIGER_PROXY_DIR names; they are gone when it ends. The proxy ends when the application does, and the\n" +
			"other way round. Custody sees the uid of the proxy on the local socket, or the identity of --profile.\n" +
			"docs/guide/proxy.md has the configuration.",
		Example: "  claviger agent proxy --config /etc/claviger/shop.toml -- /usr/bin/node /srv/shop/server.js",
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := proxy.Load(config)
			if err != nil {
				return err
			}
			if listen != "" {
				cfg.Listen = listen
			}
			custody, err := a.dial(c.Context())
			if err != nil {
				return err
			}
			defer custody.Close()
			ready := func(ctx context.Context) error {
				_, err := custody.WhoAmI(ctx)
				return err
			}
			// net/http prints what an application sends unasked, which may be a cookie.
			stdlog.SetOutput(io.Discard)
			log := slog.New(slog.NewTextHandler(a.stderr, nil)).With("process", "proxy")
			var tokens proxy.Custody = custody
			if path, local := strings.CutPrefix(a.address, "unix://"); local {
				socket := proxy.NewSocket(path)
				defer socket.Close()
				tokens = socket
			}
			p, err := proxy.New(cfg, tokens, ready, log)
			if err != nil {
				return err
			}
			return a.behind(c.Context(), p, cfg, args, log)
		},
	}
	f := c.Flags()
	f.StringVar(&config, "config", "", "configuration file")
	f.StringVar(&listen, "listen", "", "public address, in place of the configuration's")
	_ = c.MarkFlagRequired("config")
	return c
}

// behind starts the application and serves in front of it until either ends.
func (a *app) behind(ctx context.Context, p *proxy.Proxy, cfg proxy.Config, args []string, log *slog.Logger) (err error) {
	account := supervise.User{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	if cfg.User != "" {
		if account, err = supervise.LookupUser(cfg.User); err != nil {
			return err
		}
	}
	public, err := p.Listen()
	if err != nil {
		return err
	}
	defer public.Close()
	place, err := p.Prepare(int(account.UID), int(account.GID))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, place.Remove()) }()
	if !place.Volatile {
		log.Warn("the application's files are not in memory; after this start they are worth nothing", "directory", place.Dir)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	child := exec.CommandContext(context.WithoutCancel(ctx), args[0], args[1:]...)
	child.Env = append(os.Environ(), append(place.Environment, "CLAVIGER_PROXY_DIR="+place.Dir)...)
	child.Stdout, child.Stderr = a.stdout, a.stderr
	// It has a group of its own, so that all of it can be stopped, after the proxy.
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if account.UID != uint32(os.Geteuid()) {
		child.SysProcAttr.Credential = &syscall.Credential{Uid: account.UID, Gid: account.GID, Groups: []uint32{}}
	}
	ended, err := startOnThread(child)
	if err != nil {
		return &usageError{fmt.Sprintf("%s does not start: %v", args[0], err), "check the command after --"}
	}
	gone := make(chan struct{})
	go func() {
		failure := <-ended
		cancel(claviger.Errorf(claviger.Unavailable, fmt.Sprintf("the application ended: %v", failure), "see what it wrote"))
		close(gone)
	}()
	if err = p.Await(ctx); err == nil {
		err = p.Serve(ctx, public)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	stopGroup(child, gone)
	return err
}

// startOnThread starts a process on a thread that lives as long as it does: the kernel
// takes the death of that thread for the death of the parent.
func startOnThread(c *exec.Cmd) (ended <-chan error, err error) {
	started, end := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.Start()
		started <- err
		if err == nil {
			end <- c.Wait()
		}
	}()
	return end, <-started
}

// stopGroup ends what is left of a process and its children.
func stopGroup(c *exec.Cmd, gone <-chan struct{}) {
	_ = syscall.Kill(-c.Process.Pid, syscall.SIGTERM)
	select {
	case <-gone:
	case <-time.After(applicationGrace):
	}
	_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
	<-gone
}
