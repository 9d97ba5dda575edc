//go:build cgo

package p11d

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	claviger "claviger.dev"
	"claviger.dev/internal/frames/serve"
	"claviger.dev/internal/harden"
	"claviger.dev/internal/p11"
)

// socketFD is the descriptor that whoever starts the process passes.
const socketFD = 3

// Main runs the process until its peer has gone. It is called once, first
// thing.
func Main(o Options) error {
	report, err := harden.Server()
	if err != nil {
		return err
	}
	// Only now is the module there to read variables.
	os.Clearenv()
	for _, text := range o.Environment {
		name, value, _ := strings.Cut(text, "=")
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	d, err := load(o, func(call string) {
		fmt.Fprintln(os.Stderr, "claviger-p11d: the module hangs in", call)
		os.Exit(2) // and be started again
	})
	if err != nil {
		return err
	}
	if o.Mode == Probe {
		return attack(d, o, os.Stdin, os.Stdout)
	}
	// Plain blocking reads: one thread waits, and no poller wakes it.
	if err := unix.SetNonblock(socketFD, false); err != nil {
		return claviger.Errorf(claviger.Invalid, "there is no socket on descriptor 3", "the supervisor starts this program; by hand there is -probe").Wrap(err)
	}
	socket := os.NewFile(socketFD, "socket")
	if o.Mode == Unseal {
		return p11.ServeRoot(socket, rooting{d})
	}
	if _, err := d.reach(); err != nil { // serve all the same: the token may come, the PIN file may change
		e, _ := errors.AsType[*claviger.Error](err)
		if e == nil {
			e = errNoToken.Wrap(err)
		}
		fmt.Fprintf(os.Stderr, "claviger-p11d: %v\nhint: %s\n", e, e.Hint)
	}
	return serve.Frames(socket, serve.Config{Handle: newCustodian(d, report.Measures).handle, Slow: isSlow})
}
