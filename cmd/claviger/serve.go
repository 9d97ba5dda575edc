package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/pglog"
	"claviger.dev/internal/audit/segment"
	"claviger.dev/internal/backup"
	"claviger.dev/internal/broker/guard"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/harden"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/server"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/postgres"
	"claviger.dev/internal/store/sqlite"
	"claviger.dev/internal/supervise"
)

// memoryLimit is where the collector works harder, in bytes. It is no cap.
const memoryLimit = 512 << 20

func (a *app) serverRun() *cobra.Command {
	var config string
	var quiet bool
	var arrive arrival
	var fds deviceFDs
	c := &cobra.Command{
		Use: "run --config FILE", Short: "The server's process; 'claviger up' starts it", Args: cobra.NoArgs, Hidden: true,
		RunE: func(c *cobra.Command, _ []string) error {
			if _, err := harden.Server(); err != nil {
				return err
			}
			cfg, err := server.Load(config)
			if err != nil {
				return err
			}
			// Requests leave little alive and much garbage: collecting less often
			// takes a fifth off the CPU of a call, for memory that there is.
			debug.SetGCPercent(400)
			debug.SetMemoryLimit(memoryLimit)
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: logLevel(quiet)})).With("process", "server")
			source, err := supervise.FromSupervisor(supervise.ControlFD)
			if err != nil {
				return usagef("%v: start it with 'claviger up'", err)
			}
			custodian := custody.New(custody.Config{Source: source, Log: log})
			defer custodian.Close()
			if err := arrive.wait(c.Context(), custodian, cfg, log); err != nil {
				return err
			}
			devices, err := fds.open(log)
			if err != nil {
				return err
			}
			defer devices.close()
			return serve(c.Context(), cfg, config, custodian, devices, log)
		},
	}
	f := c.Flags()
	f.StringVar(&config, "config", usualConfig, "configuration file")
	f.StringVar(&arrive.join, "join", "", "carry the root key from this server to the key process")
	f.BoolVar(&quiet, "quiet", false, "log errors only")
	f.BoolVar(&arrive.restore, "restore", false, "carry recovery shares to the key process")
	f.IntVar(&fds.tpm, "tpm-fd", -1, "descriptor of the control socket for the TPM's processes")
	f.IntVar(&fds.p11, "p11-fd", -1, "descriptor of the control socket for the token's processes")
	f.StringVar(&arrive.roots, "join-roots", "", "PEM file of the other server's roots")
	return c
}

func logLevel(quiet bool) slog.Level {
	if quiet {
		return slog.LevelError
	}
	return slog.LevelInfo
}

// serve opens store and record, and runs the door and the ways in to it.
func serve(ctx context.Context, cfg server.Config, file string, custodian *custody.Client, devices deviceClients, log *slog.Logger) (err error) {
	dir := filepath.Join(cfg.DataDir, "server")
	db, record, err := open(ctx, cfg, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, record.Close(), db.Close()) }()
	roots, err := tpmRoots(cfg)
	if err != nil {
		return err
	}
	vouching, err := cfg.TPM.DeviceRoots()
	if err != nil {
		return err
	}
	node, err := nodeName(cfg.Store.Kind, dir)
	if err != nil {
		return err
	}
	k, err := keeper.Open(ctx, keeper.Config{
		Node: node, Mark: markFile(dir),
		Judge: server.Judge(vouching),
		Store: db, Audit: record, Custodian: custodian, Devices: devices.all(), Log: log,
		SessionGuard: new(guard.Guard).Judge,
		TPMRoots:     roots, Export: cfg.Checkpoint.Exporter(nil), Notify: cfg.Notify.Sender(nil),
		MaxAge: time.Duration(cfg.Evidence.MaxAge), Refresh: time.Duration(cfg.Evidence.Every),
		Operators: cfg.Operators, TrustDomain: cfg.TrustDomain, Names: cfg.Names, Version: version,
		StoreName: cfg.Store.Kind, Dev: cfg.Dev,
		Examine: func() []keeper.Measure { return examine(cfg, file) },
		Leaf:    time.Duration(cfg.Certificates.Lifetime), Checkpoints: time.Duration(cfg.Checkpoint.Every),
		Backup: func(ctx context.Context, recipients []string, w io.Writer) error {
			_, err := backup.Write(ctx, w, backup.Source{Store: db, Audit: filepath.Join(dir, "audit"), Dir: dir}, recipients)
			return err
		},
	})
	if err != nil {
		return fmt.Errorf("open the door: %w", err)
	}
	return server.Run(ctx, server.Parts{Config: cfg, Keeper: k, Log: log, Serving: func(at server.Addresses) {
		log.Info("serving", "socket", at.Socket, "tls", at.TLS, "metrics", at.Metrics)
	}})
}

// markFile remembers the newest change of a shared store that this server saw.
func markFile(dir string) string { return filepath.Join(dir, "mark") }

// tpmRoots reads the roots that vouch for TPMs.
func tpmRoots(cfg server.Config) (roots []keeper.TPMRoot, err error) {
	for _, r := range cfg.TPM.Roots {
		certificates, err := r.Certificates()
		if err != nil {
			return nil, err
		}
		roots = append(roots, keeper.TPMRoot{Name: r.Name, Test: r.Test, Certificates: certificates})
	}
	return roots, nil
}

// open opens the store that the configuration chooses and the home of the
// record that belongs to it.
func open(ctx context.Context, cfg server.Config, dir string) (*store.DB, audit.Log, error) {
	if cfg.Store.Kind == "sqlite" {
		db, err := sqlite.Open(ctx, filepath.Join(dir, "claviger.db"))
		if err != nil {
			return nil, nil, err
		}
		record, err := segment.Open(ctx, segment.Config{Dir: filepath.Join(dir, "audit"), SegmentBytes: cfg.Audit.SegmentBytes})
		if err != nil {
			return nil, nil, errors.Join(err, db.Close())
		}
		return db, record, nil
	}
	dsn, err := cfg.Store.DSN()
	if err != nil {
		return nil, nil, err
	}
	db, err := postgres.Open(ctx, postgres.Config{DSN: dsn})
	if err != nil {
		return nil, nil, err
	}
	writer, err := writerName(dir)
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	record, err := pglog.Open(ctx, pglog.Config{Pool: pool, Writer: writer})
	if err != nil {
		pool.Close()
		return nil, nil, errors.Join(err, db.Close())
	}
	return db, pooled{record, pool}, nil
}

// pooled closes the connections together with the log that uses them.
type pooled struct {
	audit.Log
	pool *pgxpool.Pool
}

// Close implements audit.Log.
func (p pooled) Close() error {
	err := p.Log.Close()
	p.pool.Close()
	return err
}
