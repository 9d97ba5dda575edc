package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"claviger.dev/internal/server"
	"claviger.dev/internal/supervise"
)

func (a *app) upCommand() *cobra.Command {
	var config, join, identity, slotKind string
	var restore bool
	c := &cobra.Command{
		Use: "up --config FILE", Short: "Start everything: the key process, the server, and what unseals the root key", Args: cobra.NoArgs,
		Long: "Start claviger-unseal, claviger-keyd and the server, each under its own uid when started as root, and keep\n" +
			"them running. SIGHUP replaces the key process by one with the root key read afresh.",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := server.Load(config)
			if err != nil {
				return err
			}
			run, err := a.supervision(cfg, config)
			if err != nil {
				return err
			}
			switch {
			case (join != "" && identity == "") || (join == "" && !restore && identity != ""):
				return usagef("--identity goes with --join, which needs it, or --restore; it is shown by 'claviger server info' where the root key is in use")
			case join != "":
				run.Arrive = []string{"join", "--kind", slotKind}
				run.ServerArgs = append(run.ServerArgs, "--join", join, "--join-roots", a.caFile)
			case restore:
				run.Arrive = []string{"restore", "--kind", slotKind}
				run.ServerArgs = append(run.ServerArgs, "--restore")
			}
			if run.Arrive != nil && slotKind == "credential" {
				run.Arrive = append(run.Arrive, "--credential", cfg.Root.Credential)
			}
			if identity != "" {
				if err := keepIdentity(run, identity); err != nil {
					return err
				}
				run.Arrive = append(run.Arrive, "--identity", identity)
			}
			return supervise.Run(c.Context(), run)
		},
	}
	f := c.Flags()
	f.StringVar(&config, "config", usualConfig, "configuration file")
	f.StringVar(&join, "join", "", "take the root key from the server at this https://host:port; --ca names its roots")
	f.StringVar(&identity, "identity", "", "with --join or --restore: SHA-256 of the identity that the root key has to have")
	f.BoolVar(&restore, "restore", false, "take the root key from recovery shares")
	f.StringVar(&slotKind, "slot-kind", "passphrase", "with --join or --restore: kind of the slot that is made here")
	c.MarkFlagsMutuallyExclusive("join", "restore")
	return c
}

// supervision turns a configuration into what the supervisor runs.
func (a *app) supervision(cfg server.Config, path string) (supervise.Config, error) {
	bin, err := binDir()
	if err != nil {
		return supervise.Config{}, err
	}
	run := supervise.Config{
		BinDir: bin, DataDir: cfg.DataDir,
		ServerArgs: []string{"server", "run", "--config", path},
		Log:        slog.New(slog.NewTextHandler(os.Stderr, nil)).With("process", "supervisor"),
	}
	if term.IsTerminal(int(os.Stdin.Fd())) || cfg.Root.Source == "passphrase" {
		run.PassphraseFrom = os.Stdin
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		if name := filepath.Join(dir, cfg.Root.Credential); fileExists(name) {
			run.Credential = name
		}
	}
	if err := deviceProcesses(&run, cfg); err != nil {
		return run, err
	}
	if os.Geteuid() == 0 && !cfg.Users.Single {
		type account struct {
			name string
			user *supervise.User
		}
		accounts := []account{{cfg.Users.Server, &run.Users.Server}, {cfg.Users.Keyd, &run.Users.Keyd}, {cfg.Users.Unseal, &run.Users.Unseal}}
		for i := range run.Devices {
			d := &run.Devices[i]
			accounts = append(accounts, account{map[string]string{"tpm": cfg.Users.TPM, "p11": cfg.Users.P11}[d.Name], &d.User})
		}
		if run.Token != nil {
			accounts = append(accounts, account{cfg.Users.P11, &run.Token.User})
		}
		for _, u := range accounts {
			if *u.user, err = supervise.LookupUser(u.name); err != nil {
				return run, usagef("%v: make the accounts with packaging/systemd/claviger.sysusers, or set users.single to accept one uid for all", err)
			}
		}
	}
	return run, nil
}

// binDir is where this program lies, and so its companions.
func binDir() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	if exe, err = filepath.EvalSymlinks(exe); err != nil {
		return "", err
	}
	dir := filepath.Dir(exe)
	for _, name := range []string{"claviger-keyd", "claviger-unseal"} {
		if !fileExists(filepath.Join(dir, name)) {
			return "", fmt.Errorf("%s is not beside %s: install all three programs in one directory", name, exe)
		}
	}
	return dir, nil
}

func fileExists(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}
