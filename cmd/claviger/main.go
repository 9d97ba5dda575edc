// Claviger uses keys without having them. This program is the supervisor, the
// server and the command line; it holds no key material in any of these roles.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"claviger.dev"
	"claviger.dev/client"
)

// version is set by the linker of a release build.
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// app is one run of the command line.
type app struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer

	address string // "" for the profile's
	profile string
	caFile  string
	format  string
	timeout time.Duration

	closers []io.Closer // of what runs until the command ends

	begun bool // the command line is whole: errors are no longer about its form
}

// run executes one command and returns its exit status: 0 ok, 1 usage or
// local, 2 remote, 3 denied, 4 not found, 5 unavailable.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	c, err := root.ExecuteContextC(ctx)
	for _, held := range a.closers {
		err = errors.Join(err, held.Close())
	}
	if err == nil {
		return 0
	}
	if _, has := errors.AsType[*usageError](err); !has && !a.begun {
		err = &usageError{msg: err.Error(), hint: usageLine(c)}
	}
	a.complain(err)
	var quiet exitError
	switch {
	case errors.As(err, &quiet):
		return int(quiet)
	case isLocal(err):
		return 1
	}
	return claviger.Mappings[claviger.CodeOf(err)].Exit
}

// exitError ends a command that has said all there is to say.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// isLocal reports whether the error arose here: bad usage, a file, a flag.
func isLocal(err error) bool {
	_, remote := errors.AsType[*claviger.Error](err)
	return !remote
}

// complain prints an error line and, where there is one, a hint line.
func (a *app) complain(err error) {
	if _, quiet := errors.AsType[exitError](err); quiet {
		return
	}
	text, hint := err.Error(), ""
	if e, ok := errors.AsType[*claviger.Error](err); ok {
		text, hint = fmt.Sprintf("%s (%s)", e.Msg, e.Code), e.Hint
	} else if e, ok := errors.AsType[*usageError](err); ok {
		hint = e.hint
	}
	fmt.Fprintf(a.stderr, "error: %s\n", text)
	if hint != "" {
		fmt.Fprintf(a.stderr, "hint:  %s\n", hint)
	}
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "claviger",
		Short:         "Use keys without having them",
		Long:          "Claviger keeps keys where they can be used and not carried away.\nCallers name a key and an operation; the key stays in a key process.",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          verbOf,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			for name, variable := range map[string]string{"address": "CLAVIGER_ADDR", "ca": "CLAVIGER_CACERT", "format": "CLAVIGER_FORMAT"} {
				if value := os.Getenv(variable); value != "" && !c.Flags().Changed(name) {
					if err := c.Flags().Set(name, value); err != nil {
						return err
					}
				}
			}
			if a.format != "table" && a.format != "json" && a.format != "yaml" {
				return usagef("--format is table, json or yaml, not %q", a.format)
			}
			if err := errors.Join(c.ValidateRequiredFlags(), c.ValidateFlagGroups()); err != nil {
				return err
			}
			a.begun = true
			return nil
		},
	}
	root.SetFlagErrorFunc(unknownFlag)
	flags := root.PersistentFlags()
	flags.StringVar(&a.address, "address", "", "server: unix:///path or https://host:port (CLAVIGER_ADDR)")
	flags.StringVar(&a.profile, "profile", "default", "profile of an enrolled principal, under ~/.config/claviger")
	flags.StringVar(&a.caFile, "ca", "", "PEM file of the roots to trust (CLAVIGER_CACERT)")
	flags.StringVar(&a.format, "format", "table", "table, json or yaml (CLAVIGER_FORMAT)")
	_ = root.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	flags.DurationVar(&a.timeout, "timeout", client.DefaultTimeout, "longest wait for one call")
	root.AddCommand(
		a.keyCommand(), a.stateCommand(), a.grantCommand(), a.principalCommand(), a.clientCommand(), a.sessionCommand(), a.receiverCommand(), a.agentCommand(), a.auditCommand(),
		a.serverCommand(), a.initCommand(), a.upCommand(), a.devCommand(), a.rootCommand(),
		a.recoveryCommand(), a.backupCommand(), a.evidenceCommand(), a.doctorCommand(), a.benchCommand(), a.docsCommand(),
	)
	return root
}
