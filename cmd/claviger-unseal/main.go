// Command claviger-unseal reads the root key from its slots, hands it to the
// key process over an inherited socket, and exits. It also makes and changes
// the slots. Most of it is in package rootkey; here are the devices that keep
// secrets of slots.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"claviger.dev/internal/harden"
	"claviger.dev/internal/rootkey"
)

func main() {
	if _, err := harden.Server(); err != nil { // no core, not readable by others of this uid
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	u := &rootkey.Unseal{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		CredentialsDir: os.Getenv("CREDENTIALS_DIRECTORY"),
		Vault:          openVault,
		Now:            time.Now,
	}
	os.Exit(u.Run(ctx, os.Args[1:]))
}
