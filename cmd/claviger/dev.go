package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/server"
	"claviger.dev/internal/supervise"
)

func (a *app) devCommand() *cobra.Command {
	var p playground
	c := &cobra.Command{
		Use: "dev", Short: "Start a server to play with: embedded store, loopback only, no secret to type", Args: cobra.NoArgs,
		Long: "Start a server on the embedded store in a temporary directory, or in --dir to keep it. All processes share\n" +
			"one uid and the root key lies in a file: INSECURE, for trying things out. The user who starts it is its\n" +
			"operator and may use every key of the environment dev.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if !loopback(p.listen) {
				return usagef("--listen is a loopback address and a port, such as 127.0.0.1:8443, not %q: use 'claviger up' to serve others", p.listen)
			}
			if err := bindable(p.listen); err != nil {
				return err
			}
			if p.dir == "" {
				if p.dir, err = os.MkdirTemp("", "claviger-dev-"); err != nil {
					return err
				}
				defer os.RemoveAll(p.dir)
			}
			if p.dir, err = filepath.Abs(p.dir); err != nil {
				return err
			}
			return a.play(c.Context(), p, func(ctx context.Context) error {
				a.say("ready; try in another terminal:")
				fmt.Fprintf(a.stdout, "export CLAVIGER_ADDR=unix://%s\n"+
					"claviger key create dev/demo/first --algorithm ecdsa-p256-sha256\n"+
					"echo hello | claviger key sign dev/demo/first\n", filepath.Join(p.dir, "run", "claviger.sock"))
				<-ctx.Done()
				return nil
			})
		},
	}
	c.Flags().StringVar(&p.dir, "dir", "", "directory to keep; a temporary one when left out")
	c.Flags().StringVar(&p.listen, "listen", "127.0.0.1:8443", "loopback address for TLS; empty for the local socket alone")
	c.Flags().StringVar(&p.metrics, "metrics", "", "loopback address for metrics; empty for none")
	c.Flags().StringVar(&p.tpm, "tpm", "", "TPM to keep keys in: /dev/tpmrm0, or unix:/path of a software TPM")
	c.Flags().StringVar(&p.pkcs11, "pkcs11", "", "PKCS #11 URI of a token to keep keys in, with module-path and pin-source=file:")
	c.Flags().StringToStringVar(&p.environment, "pkcs11-env", nil, "NAME=/path for the token's module, such as SOFTHSM2_CONF=/etc/softhsm2.conf")
	c.Flags().BoolVar(&p.quiet, "quiet", false, "log errors only")
	return c
}

// loopback accepts an address that only this host reaches, and none at all.
func loopback(listen string) bool {
	if listen == "" {
		return true
	}
	host, _, err := net.SplitHostPort(listen)
	ip, notIP := netip.ParseAddr(host)
	return err == nil && (host == "localhost" || notIP == nil && ip.IsLoopback())
}

// bindable finds out at once what the server would meet at every start.
func bindable(listen string) error {
	if listen == "" {
		return nil
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return usagef("%w: choose another with --listen, such as 127.0.0.1:0, or '' for the local socket alone", err)
	}
	return l.Close()
}

// playground is a server for trying out.
type playground struct {
	dir             string
	listen, metrics string            // loopback addresses; empty for none
	quiet           bool              // log errors only
	tpm, pkcs11     string            // devices; empty for none
	tables          string            // further ones of the configuration
	environment     map[string]string // of the token's module
}

// config is the configuration of the playground.
func (p playground) config() string {
	text := fmt.Sprintf("data_dir = %q\nlisten = %q\nmetrics_listen = %q\noperators = [%d]\ndev = true\n\n[users]\nsingle = true\n",
		p.dir, p.listen, p.metrics, os.Geteuid())
	if p.tpm != "" {
		text += fmt.Sprintf("\n[tpm]\ndevice = %q\n", p.tpm)
	}
	if p.pkcs11 != "" {
		text += fmt.Sprintf("\n[pkcs11]\nuri = %q\n\n[pkcs11.environment]\n", p.pkcs11)
		for name, value := range p.environment {
			text += fmt.Sprintf("%q = %q\n", name, value)
		}
	}
	return text + p.tables
}

// play runs a server, calls do once it is ready, and stops it when do returns
// or ctx ends.
func (a *app) play(ctx context.Context, p playground, do func(context.Context) error) error {
	config := filepath.Join(p.dir, "claviger.toml")
	text := p.config()
	cfg, err := server.Parse([]byte(text))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	run, err := a.supervision(cfg, config)
	if err != nil {
		return err
	}
	if !fileExists(filepath.Join(p.dir, identityFile)) {
		var talk bytes.Buffer
		if err := initRoot(ctx, run, nil, &talk, "--kind", "file"); err != nil {
			return fmt.Errorf("make the root key: %v: %s", err, bytes.TrimSpace(talk.Bytes()))
		}
	}
	if p.quiet {
		run.ServerArgs = append(run.ServerArgs, "--quiet")
	}
	run.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: logLevel(p.quiet)})).With("process", "supervisor")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		ended <- supervise.Run(ctx, run)
	}()
	err = a.ready(ctx, "unix://"+cfg.Socket)
	if err == nil {
		err = do(ctx)
	}
	cancel()
	if down := <-ended; err == nil || ctx.Err() != nil && down != nil {
		err = down
	}
	return err
}

// ready waits until the server answers, and lets its operator use the keys of
// the environment dev.
func (a *app) ready(ctx context.Context, address string) error {
	a.address = address
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	s, err := a.dial(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var me *pb.WhoAmIResponse
	for {
		if me, err = s.WhoAmI(ctx); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server did not become ready: %w", err)
		case <-tick.C:
		}
	}
	grants, err := s.ListGrants(ctx, &pb.ListGrantsRequest{Principal: me.Principal.Id})
	if err != nil || len(grants.Grants) > 0 {
		return err
	}
	req := &pb.CreateGrantRequest{Principal: me.Principal.Id, Selector: "dev/*/*", Operations: []string{string(claviger.OpenSession)}, Reason: "development server"}
	for _, op := range claviger.UseOperations {
		req.Operations = append(req.Operations, string(op))
	}
	_, err = s.CreateGrant(ctx, req)
	return err
}
