package main

import (
	"errors"
	"fmt"
	"os"
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
		RunE: func(_ *cobra.Command, args []string) error {
			bin, err := binDir()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				args = []string{"help"}
			}
			if owner, ok := slotsOwner(args); ok && os.Geteuid() == 0 {
				if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(int(owner.GID)), syscall.Setuid(int(owner.UID))); err != nil {
					return fmt.Errorf("take the uid of the slots: %w", err)
				}
			}
			// In place of this program, with its terminal and its descriptors.
			program := filepath.Join(bin, "claviger-unseal")
			return syscall.Exec(program, append([]string{program}, args...), os.Environ())
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
