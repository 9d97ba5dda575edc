package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"claviger.dev"
	"claviger.dev/internal/follow"
	"claviger.dev/internal/server"
	"claviger.dev/internal/store/postgres"
)

func (a *app) serverAcceptDatabase() *cobra.Command {
	var config string
	var lower bool
	c := &cobra.Command{
		Use: "accept-database", Short: "Accept a PostgreSQL database that is older than what this server has seen, or another one", Args: cobra.NoArgs,
		Long: "A server remembers the newest change that it has seen, in the file 'mark' of its data directory. A database that\n" +
			"does not hold that change was restored from a backup, failed over to a copy that was behind, or is another one:\n" +
			"what was revoked since may be good again in it. So the server refuses every use until the right database is back.\n" +
			"Where there is none, accept it on the host of each server, as root or as the server's user, and revoke again what\n" +
			"has to be, before callers are let in. A running server takes it up within a second, and records it. Without\n" +
			"--lower-mark this only compares.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			cfg, err := server.Load(config)
			if err != nil {
				return err
			}
			if cfg.Store.Kind == "sqlite" {
				return claviger.Errorf(claviger.Unsupported, "the embedded store has one server and no mark", "'claviger backup restore' looks whether a backup is older")
			}
			path := markFile(filepath.Join(cfg.DataDir, "server"))
			if _, err := os.Stat(path); err != nil {
				return claviger.Errorf(claviger.NotFound, "there is no mark: this server has not seen any change yet", "run this on the server's host, with its configuration").Wrap(err)
			}
			dsn, err := cfg.Store.DSN()
			if err != nil {
				return err
			}
			db, err := postgres.Open(c.Context(), postgres.Config{DSN: dsn})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, db.Close()) }()
			from, to, holds, err := follow.Accept(c.Context(), db, path, !lower)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			row(w, "seen", fmt.Sprintf("change %d of %s", from.Number, from.Database))
			row(w, "database", fmt.Sprintf("change %d of %s", to.Number, to.Database))
			row(w, "holds what was seen", holds)
			if err := w.Flush(); err != nil {
				return err
			}
			switch {
			case lower:
				a.say("the mark is now that of the database; 'claviger doctor' shows whether the server has taken it up")
			case !holds:
				a.say("to go on with this database all the same, add --lower-mark")
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&config, "config", usualConfig, "configuration file")
	f.BoolVar(&lower, "lower-mark", false, "forget what this server has seen, and go on from what the database holds")
	return c
}
