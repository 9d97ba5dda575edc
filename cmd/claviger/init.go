package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"claviger.dev/internal/server"
	"claviger.dev/internal/supervise"
)

// identityFile is the pin of the key process, in the data directory, where
// who uses the local socket finds it.
const identityFile = "identity"

func (a *app) initCommand() *cobra.Command {
	var config, kind, pcrs string
	c := &cobra.Command{
		Use: "init --config FILE --kind KIND", Short: "Make the directories of a server and its root key", Args: cobra.NoArgs,
		Long: "Make what is missing below the data directory, each part for its own uid, and a root key with one slot, as\n" +
			"the uid of claviger-unseal. The identity of the key process is printed, for clients to pin, and kept in the\n" +
			"data directory. A passphrase is read from the terminal, or from a line of standard input; a credential from\n" +
			"standard input; the devices are those of the configuration.",
		Example: "  systemd-creds decrypt /etc/credstore.encrypted/claviger-root - | claviger init --kind credential",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := server.Load(config)
			if err != nil {
				return err
			}
			run, err := a.supervision(cfg, config)
			if err != nil {
				return err
			}
			flags := []string{"--kind", kind}
			if kind == "credential" {
				flags = append(flags, "--credential", cfg.Root.Credential, "--credential-fd", "0")
			}
			if pcrs != "" {
				flags = append(flags, "--pcr", pcrs)
			}
			if err := initRoot(c.Context(), run, a.stdin, a.stderr, flags...); err != nil {
				return err
			}
			pin, err := os.ReadFile(filepath.Join(cfg.DataDir, identityFile))
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(pin)
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&config, "config", usualConfig, "configuration file")
	f.StringVar(&kind, "kind", "", "of the slot: tpm, pkcs11, credential, passphrase, or file (INSECURE)")
	f.StringVar(&pcrs, "pcr", "", "with --kind tpm: platform registers that have to stay as they are, such as 7")
	_ = c.MarkFlagRequired("kind")
	return c
}

// initRoot makes the directories and the root key, and writes down the
// identity of the key process.
func initRoot(ctx context.Context, run supervise.Config, stdin io.Reader, stderr io.Writer, flags ...string) error {
	if err := run.Prepare(); err != nil {
		return err
	}
	args := append([]string{"init", "--dir", filepath.Join(run.DataDir, "unseal")}, flags...)
	args = append(args, run.UnsealArgs...)
	cmd := exec.CommandContext(ctx, filepath.Join(run.BinDir, "claviger-unseal"), args...)
	if run.Token != nil {
		token, err := run.StartToken(os.Stderr)
		if err != nil {
			return err
		}
		defer token.Close()
		cmd.Args, cmd.ExtraFiles = append(cmd.Args, "--token-fd", "3"), []*os.File{token}
	}
	cmd.Stdin, cmd.Stderr = stdin, stderr
	if u := run.Users.Unseal; u != (supervise.User{}) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: supervise.GroupsOf(u)}}
	}
	pin, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exitError(exit.ExitCode()) // it has said why
	}
	if err != nil {
		return fmt.Errorf("make the root key: %w", err)
	}
	return keepIdentity(run, string(pin))
}

// keepIdentity writes the pin where clients of the local socket find it. It
// does not replace another one: that would be another root key.
func keepIdentity(run supervise.Config, pin string) error {
	pin = strings.TrimSpace(pin)
	if _, err := parsePin(pin); err != nil {
		return err
	}
	if err := run.Prepare(); err != nil {
		return err
	}
	name := filepath.Join(run.DataDir, identityFile)
	if old, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(old)) != pin {
		return usagef("%s has another identity: this data directory belongs to another root key", name)
	}
	if err := os.WriteFile(name, []byte(pin+"\n"), 0o644); err != nil {
		return err
	}
	return os.Chmod(name, 0o644) // whatever the umask
}
