package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"claviger.dev"
	"claviger.dev/client"
	"claviger.dev/internal/agent"
)

// dial returns a client for --address, or for the profile where no address is
// given.
func (a *app) dial(ctx context.Context) (*client.Client, error) {
	if strings.HasPrefix(a.address, "unix://") {
		return client.New(client.Config{Address: a.address, Timeout: a.timeout})
	}
	if a.address != "" && !strings.HasPrefix(a.address, "https://") {
		return nil, &usageError{fmt.Sprintf("%q is not an address", a.address), "use unix:///path/of/claviger.sock or https://host:port"}
	}
	dir, err := client.ProfileDir(a.profile)
	if err != nil {
		return nil, err
	}
	if !agent.Is(dir) && a.address == "" && a.caFile == "" && a.timeout == client.DefaultTimeout {
		c, err := client.Open(dir) // renews its certificate when it is due
		return c, a.named(err)
	}
	profile, err := a.load(ctx, dir)
	if err != nil {
		return nil, a.named(err)
	}
	if a.address != "" {
		profile.Address = a.address
	}
	config := profile.Config()
	config.Timeout = a.timeout
	if device, bound := profile.Certificate.PrivateKey.(client.Holder); bound {
		config.Reload = func() (*tls.Certificate, error) { // 'claviger agent renew' renews it
			now, err := client.LoadBound(agent.ProfileDir(dir), device)
			if err != nil {
				return nil, err
			}
			return &now.Certificate, nil
		}
	}
	if a.caFile != "" {
		config.Roots, config.CAFile = nil, a.caFile
	}
	return client.New(config)
}

// load reads a profile. That of an agent signs handshakes in its device, whose
// custodian then runs until the command ends.
func (a *app) load(ctx context.Context, dir string) (*client.Profile, error) {
	if !agent.Is(dir) {
		return client.LoadProfile(dir)
	}
	held, err := agent.Open(ctx, dir, "")
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, held)
	profile, err := client.LoadBound(agent.ProfileDir(dir), held)
	if err == nil && time.Now().After(profile.Certificate.Leaf.NotAfter) {
		return nil, &usageError{"the agent's certificate has expired", "run 'claviger agent renew', and put it on a timer"}
	}
	return profile, err
}

// named says what to do where there is no profile.
func (a *app) named(err error) error {
	switch {
	case claviger.CodeOf(err) != claviger.NotFound:
		return err
	case a.address == "":
		return &usageError{"no server is named", "give --address or CLAVIGER_ADDR, or enrol with 'claviger principal enroll'"}
	}
	return &usageError{fmt.Sprintf("there is no profile %q to prove to %s who calls", a.profile, a.address), "enrol with 'claviger principal enroll', or give --profile"}
}

// pin is the identity of the key process that material may be sealed to: as
// given, or of the profile, or, on the local socket, from the file that was
// written when the root key was made.
func (a *app) pin(given string) ([32]byte, error) {
	if given != "" {
		return parsePin(given)
	}
	if socket, ok := strings.CutPrefix(a.address, "unix://"); ok {
		name := filepath.Join(filepath.Dir(filepath.Dir(socket)), "identity")
		text, err := os.ReadFile(name)
		if err != nil {
			return [32]byte{}, usagef("the pin of the key process is not known here: give --pin, as 'claviger root init' showed it")
		}
		return parsePin(strings.TrimSpace(string(text)))
	}
	dir, err := client.ProfileDir(a.profile)
	if err != nil {
		return [32]byte{}, err
	}
	if agent.Is(dir) {
		dir = agent.ProfileDir(dir)
	}
	profile, err := client.LoadProfile(dir)
	if err != nil {
		return [32]byte{}, err
	}
	return profile.Identity, nil
}

// interactive reports whether somebody watches standard error.
func (a *app) interactive() bool {
	f, ok := a.stderr.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// with makes a command that calls the server.
func (a *app) with(run func(*cobra.Command, *client.Client, []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		s, err := a.dial(c.Context())
		if err != nil {
			return err
		}
		defer s.Close()
		return run(c, s, args)
	}
}
