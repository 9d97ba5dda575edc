package main

import (
	"crypto/x509"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"claviger.dev/client"

	"claviger.dev"
)

func (a *app) serverCommand() *cobra.Command {
	return noun("server", "Look after the server itself", a.serverInfo(), a.serverRoots(), a.serverCheckpointKey(), a.serverRewrap(), a.serverAcceptDatabase(), a.serverRun())
}

func (a *app) serverInfo() *cobra.Command {
	return &cobra.Command{
		Use: "info", Short: "Show version, store, pins and the root key's generation", Args: cobra.NoArgs,
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.Info(c.Context())
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				row(w, "version", resp.Version)
				row(w, "store", resp.Store)
				row(w, "started", when(resp.Started))
				row(w, "root generation", resp.RootGeneration)
				row(w, "identity pin", resp.IdentityFingerprint)
				row(w, "CA pin", resp.CaFingerprint)
				if resp.Dev {
					row(w, "development", "yes: INSECURE, for trying things out")
				}
			})
		}),
	}
}

func (a *app) serverRoots() *cobra.Command {
	return &cobra.Command{
		Use: "roots", Short: "Print the CA's certificates, PEM", Args: cobra.NoArgs,
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.Info(c.Context())
			if err != nil {
				return err
			}
			for _, der := range resp.Roots {
				if _, err := x509.ParseCertificate(der); err != nil {
					return err
				}
				if err := pem.Encode(a.stdout, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}

func (a *app) serverCheckpointKey() *cobra.Command {
	return &cobra.Command{
		Use: "checkpoint-key", Short: "Print the public half of the key that signs checkpoints, PEM", Args: cobra.NoArgs,
		Long: "Print what 'claviger audit verify --dir DIR --public-key FILE' checks the signatures of checkpoints with. Keep\n" +
			"it where you keep the checkpoints.",
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.Info(c.Context())
			if err != nil {
				return err
			}
			return pem.Encode(a.stdout, &pem.Block{Type: "PUBLIC KEY", Bytes: resp.CheckpointSpki})
		}),
	}
}

func (a *app) serverRewrap() *cobra.Command {
	return &cobra.Command{
		Use: "rewrap", Short: "Bring every blob to the newest generation of the root key", Args: cobra.NoArgs,
		Long: "Bring every blob to the newest generation of the root key. A damaged one is counted and stays as it is; the\n" +
			"exit status is then 2.",
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.Rewrap(c.Context())
			if err != nil {
				return err
			}
			err = a.print(resp, func(w io.Writer) {
				row(w, "rewrapped", resp.Rewrapped)
				row(w, "already there", resp.Already)
				row(w, "damaged", resp.Damaged)
				row(w, "generation", resp.Generation)
			})
			if err == nil && resp.Damaged > 0 {
				a.say("the server's log names what is damaged: restore it from a backup, or destroy the version, before the old root key is retired")
				err = exitError(2)
			}
			return err
		}),
	}
}

// writerName is this server's name in the record that several servers share:
// made once, and the same after every restart.
func writerName(dir string) (string, error) {
	name := filepath.Join(dir, "writer")
	text, err := os.ReadFile(name)
	if err == nil {
		id, err := claviger.ParseID(strings.TrimSpace(string(text)))
		return string(id), err
	}
	if !os.IsNotExist(err) {
		return "", err
	}
	id := claviger.NewID(time.Now())
	return string(id), os.WriteFile(name, []byte(string(id)+"\n"), 0o600)
}

// nodeName is this server's name in sightings: its host's, and where several
// servers share a store the end of its name in the record.
func nodeName(kind, dir string) (string, error) {
	host, err := os.Hostname()
	if err != nil || kind == "sqlite" {
		return host, err
	}
	writer, err := writerName(dir)
	if err != nil {
		return "", err
	}
	return host + "/" + strings.ToLower(writer[len(writer)-6:]), nil
}
