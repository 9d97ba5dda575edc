package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"claviger.dev/internal/supervise"
)

func (a *app) rootCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "root COMMAND --dir DIRECTORY [flags]",
		Short: "Make and change the slots that open the root key (runs claviger-unseal)",
		Long: "Run claviger-unseal, which alone may read the root key's slots, under its own uid when started as root.\n" +
			"'claviger root help' lists its commands. After a change, have the key process replaced: SIGHUP to the\n" +
			"supervisor, or 'systemctl reload claviger'.",
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			bin, err := binDir()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				args = []string{"help"}
			}
			cmd := exec.CommandContext(c.Context(), filepath.Join(bin, "claviger-unseal"), args...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
			if owner, ok := slotsOwner(args); ok && os.Geteuid() == 0 {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.UID, Gid: owner.GID}}
			}
			if err := cmd.Run(); err != nil && cmd.ProcessState != nil {
				return exitError(cmd.ProcessState.ExitCode())
			} else if err != nil {
				return err
			}
			return nil
		},
	}
}

// slotsOwner is who owns the directory of the slots, or would.
func slotsOwner(args []string) (supervise.User, bool) {
	for i, arg := range args {
		if arg != "--dir" || i+1 == len(args) {
			continue
		}
		info, err := os.Stat(args[i+1])
		if err != nil {
			u, err := supervise.LookupUser("claviger-unseal")
			return u, err == nil
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		return supervise.User{UID: stat.Uid, GID: stat.Gid}, ok
	}
	return supervise.User{}, false
}
