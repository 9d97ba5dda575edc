package main

import (
	"bufio"
	"io"
	"os"

	"filippo.io/age"
	"github.com/spf13/cobra"

	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/backup"
)

func (a *app) backupCommand() *cobra.Command {
	return noun("backup", "Keep and bring back the store and the record", a.backupCreate(), a.backupRestore())
}

func (a *app) backupCreate() *cobra.Command {
	req := &pb.BackupRequest{}
	var out string
	c := &cobra.Command{
		Use: "create --recipient AGE --out FILE", Short: "Write an archive that only the recipients can read", Args: cobra.NoArgs,
		Long: "Write a consistent archive of store and record, encrypted to age recipients. It holds wrapped blobs and no\n" +
			"root key: without a root key slot or recovery shares nobody can use what is in it.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			s, err := a.dial(c.Context())
			if err != nil {
				return err
			}
			return writeNew(out, func(w io.Writer) error { return s.Backup(c.Context(), req, w) })
		},
	}
	c.Flags().StringArrayVar(&req.Recipients, "recipient", nil, "age recipient; may be repeated")
	c.Flags().StringVar(&out, "out", "", "new file")
	_ = c.MarkFlagRequired("recipient")
	_ = c.MarkFlagRequired("out")
	return c
}

// writeNew writes a file that must not exist yet, and leaves none behind when
// the writing fails.
func writeNew(name string, fill func(io.Writer) error) (err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(name)
		}
	}()
	w := bufio.NewWriter(f)
	if err := fill(w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Sync()
}

func (a *app) backupRestore() *cobra.Command {
	var identity, dir string
	var rollback bool
	c := &cobra.Command{
		Use: "restore FILE --identity FILE --dir DIR", Short: "Bring back an archive into a server's directory", Args: cobra.ExactArgs(1),
		Long: "Bring back an archive into the server directory (the 'server' directory below data_dir) while no server\n" +
			"runs on it. An archive that is older than the store which it would replace brings revoked keys back: it is\n" +
			"refused unless --allow-rollback is given.",
		RunE: func(c *cobra.Command, args []string) error {
			text, err := os.Open(identity)
			if err != nil {
				return err
			}
			defer text.Close()
			identities, err := age.ParseIdentities(io.LimitReader(text, maxInput))
			if err != nil {
				return err
			}
			archive, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer archive.Close()
			if _, err := backup.Restore(c.Context(), archive, identities, dir, rollback); err != nil {
				return err
			}
			a.say("restored into %s", dir)
			return nil
		},
	}
	c.Flags().StringVar(&identity, "identity", "", "file of the age identity")
	c.Flags().StringVar(&dir, "dir", "", "the server directory")
	c.Flags().BoolVar(&rollback, "allow-rollback", false, "also when revocations are rolled back by it")
	_ = c.MarkFlagRequired("identity")
	_ = c.MarkFlagRequired("dir")
	return c
}
