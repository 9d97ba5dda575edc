// Command claviger-unseal reads the root key from its slots, hands it to the
// key process over an inherited socket, and exits. It also makes and changes
// the slots. All of it is in package rootkey.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"claviger.dev/internal/rootkey"
	"golang.org/x/sys/unix"
)

func main() {
	if err := seclude(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	u := &rootkey.Unseal{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		CredentialsDir: os.Getenv("CREDENTIALS_DIRECTORY"),
		Now:            time.Now,
	}
	os.Exit(u.Run(ctx, os.Args[1:]))
}

// seclude keeps the root key out of core files and away from other processes
// of this uid.
func seclude() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("set the core limit: %w", err)
	}
	return nil
}
