package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"claviger.dev/internal/server"
	"claviger.dev/internal/supervise"
)

func (a *app) rootCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "root COMMAND --dir DIRECTORY [--config FILE] [flags]",
		Short: "Make and change the slots that open the root key (runs claviger-unseal)",
		Long: "Run claviger-unseal, which alone may read the root key's slots, under its own uid when started as root.\n" +
			"'claviger root help' lists its commands. The devices that slots need are those of the configuration:\n" +
			"--config names it, " + usualConfig + " otherwise. After a change, have the key process replaced: SIGHUP\n" +
			"to the supervisor, or 'systemctl reload claviger'.",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			bin, err := binDir()
			if err != nil {
				return err
			}
			if args, err = a.withDevices(args); err != nil {
				return err
			}
			if owner, ok := slotsOwner(args); ok && os.Geteuid() == 0 {
				var groups []int
				for _, gid := range supervise.GroupsOf(owner) {
					groups = append(groups, int(gid))
				}
				if err := errors.Join(syscall.Setgroups(groups), syscall.Setgid(int(owner.GID)), syscall.Setuid(int(owner.UID))); err != nil {
					return fmt.Errorf("take the uid of the slots: %w", err)
				}
			}
			// In place of this program, with its terminal and its descriptors.
			program := filepath.Join(bin, "claviger-unseal")
			return syscall.Exec(program, append([]string{program}, args...), os.Environ())
		},
	}
}

// usualConfig is the configuration file where none is named.
const usualConfig = "/etc/claviger/claviger.toml"

// withDevices takes --config out of the arguments of claviger-unseal and puts
// in what tells it of the devices. What serves the token is started if the
// command could need it.
func (a *app) withDevices(args []string) ([]string, error) {
	if len(args) == 0 {
		return []string{"help"}, nil
	}
	config := ""
	if i := slices.Index(args, "--config"); i > 0 && i+1 < len(args) {
		config = args[i+1]
		args = slices.Delete(args, i, i+2)
	} else if fileExists(usualConfig) {
		config = usualConfig
	}
	if config == "" || !slices.Contains([]string{"init", "add", "remove", "rotate", "retire", "admit", "holders"}, args[0]) {
		return args, nil
	}
	cfg, err := server.Load(config)
	if err != nil {
		return nil, err
	}
	run, err := a.supervision(cfg, config)
	if err != nil {
		return nil, err
	}
	extra := run.UnsealArgs
	if run.Token != nil {
		token, err := run.StartToken(os.Stderr)
		if err != nil {
			return nil, err
		}
		fd, err := unix.Dup(int(token.Fd())) // without close-on-exec
		if err = errors.Join(err, token.Close()); err != nil {
			return nil, err
		}
		extra = append(extra, "--token-fd", strconv.Itoa(fd))
	}
	return slices.Concat(args[:1], extra, args[1:]), nil
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
