package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
)

var onetimeNothing frames.Binding // a one-time key for shares is bound to no key

func (a *app) recoveryCommand() *cobra.Command {
	return noun("recovery", "Make, test and use recovery shares of the root key",
		a.recoveryCreate(), a.recoveryChallenge(), a.recoverySeal(), a.recoveryVerify(), a.recoveryRestore())
}

func (a *app) recoveryCreate() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "create --out DIR", Short: "Make new shares, each encrypted to its holder inside the key process", Args: cobra.NoArgs,
		Long: "Make new shares for the holders that 'claviger root holders' lists, and write one file a holder. Only the\n" +
			"holder's age identity reads it. Shares made earlier stay good until the root key is rotated.",
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.RecoveryShares(c.Context())
			if err != nil {
				return err
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			for _, share := range resp.Shares {
				name := filepath.Join(dir, filepath.Base(share.Holder)+".age")
				if err := writeNew(name, func(w io.Writer) error { _, err := w.Write(share.Encrypted); return err }); err != nil {
					return err
				}
				fmt.Fprintln(a.stdout, name)
			}
			a.say("any %d of them restore the root key; test them with 'claviger recovery verify'", resp.Threshold)
			return nil
		}),
	}
	c.Flags().StringVar(&dir, "out", "", "directory for one new file a holder")
	_ = c.MarkFlagRequired("out")
	return c
}

func (a *app) recoveryChallenge() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "challenge", Short: "Get a one-time key to which holders seal their shares for a test", Args: cobra.NoArgs,
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.RecoveryChallenge(c.Context())
			if err != nil {
				return err
			}
			text, err := json.MarshalIndent(oneTimeKey(resp), "", "  ")
			if err != nil {
				return err
			}
			return a.write(out, append(text, '\n'))
		}),
	}
	c.Flags().StringVar(&out, "out", "-", "file")
	return c
}

// oneTimeKey turns the API's form into the one that can be checked and sealed to.
func oneTimeKey(m *pb.OneTimeKey) onetime.Key {
	k := onetime.Key{ID: m.Id, Purpose: onetime.Share, Public: m.Public, Expires: m.Expires.AsTime(), Identity: m.Identity, Signature: m.Signature}
	if m.KeyId != "" {
		k.Purpose = onetime.Import
		k.Binding = frames.Binding{KeyID: claviger.ID(m.KeyId), Version: m.Version, Algorithm: claviger.Algorithm(m.Algorithm),
			Recipe: claviger.PlainRecipe, Origin: claviger.Imported}
	}
	return k
}

func (a *app) recoverySeal() *cobra.Command {
	var challenge, share, identity, pin, out string
	c := &cobra.Command{
		Use: "seal", Short: "As a holder: seal your share to a challenge", Args: cobra.NoArgs,
		Long: "Decrypt your share with your age identity and seal it to the key process that made the challenge. --pin is\n" +
			"the SHA-256 of its identity, which the operator tells you by another way: it keeps you from sealing the\n" +
			"share to somebody else.",
		RunE: func(c *cobra.Command, _ []string) error {
			text, err := a.read(challenge)
			if err != nil {
				return err
			}
			expected, err := parsePin(pin)
			if err != nil {
				return err
			}
			key, err := readChallenge(text, expected)
			if err != nil {
				return err
			}
			plain, err := a.decryptShare(share, identity)
			if err != nil {
				return err
			}
			sealed, err := key.Seal(plain)
			clear(plain)
			if err != nil {
				return err
			}
			text, err = json.Marshal(sealedShare{Challenge: key.ID, Sealed: base64.StdEncoding.EncodeToString(sealed)})
			if err != nil {
				return err
			}
			return a.write(out, append(text, '\n'))
		},
	}
	f := c.Flags()
	f.StringVar(&challenge, "challenge", "", "file of the challenge")
	f.StringVar(&share, "share", "", "file of your share")
	f.StringVar(&identity, "identity", "", "file of your age identity")
	f.StringVar(&pin, "pin", "", "SHA-256 of the key process's identity")
	f.StringVar(&out, "out", "-", "file")
	for _, name := range []string{"challenge", "share", "identity", "pin"} {
		_ = c.MarkFlagRequired(name)
	}
	return c
}

// readChallenge checks that a share may be sealed to a challenge: the pinned key
// process made it, and for shares. A one-time key for an import would be as
// genuine, and make a key of the share.
func readChallenge(text []byte, pin [32]byte) (key onetime.Key, err error) {
	if err := json.Unmarshal(text, &key); err != nil || key.Purpose != onetime.Share {
		return key, usagef("this is no challenge for recovery shares: get one with 'claviger recovery challenge'")
	}
	return key, key.Verify(pin, time.Now())
}

func parsePin(s string) (pin [32]byte, err error) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(pin) {
		return pin, usagef("a pin is 64 hexadecimal digits")
	}
	return [32]byte(raw), nil
}

func (a *app) decryptShare(share, identity string) ([]byte, error) {
	text, err := a.read(identity)
	if err != nil {
		return nil, err
	}
	identities, err := age.ParseIdentities(bytes.NewReader(text))
	clear(text)
	if err != nil {
		return nil, err
	}
	file, err := a.read(share)
	if err != nil {
		return nil, err
	}
	plain, err := age.Decrypt(bytes.NewReader(file), identities...)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(plain, maxInput))
}

func (a *app) recoveryVerify() *cobra.Command {
	var challenge string
	c := &cobra.Command{
		Use: "verify --challenge FILE SEALED...", Short: "Test whether sealed shares restore the root key", Args: cobra.MinimumNArgs(1),
		Long: "Hand shares, each sealed by its holder to the challenge, to the key process, which says whether they\n" +
			"restore the root key that it uses. Nothing is changed.",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			text, err := a.read(challenge)
			if err != nil {
				return err
			}
			var key onetime.Key
			if err := json.Unmarshal(text, &key); err != nil {
				return usagef("%s is not a challenge: %v", challenge, err)
			}
			req := &pb.RecoveryVerifyRequest{ChallengeId: key.ID}
			for _, name := range args {
				text, err := a.readUpTo(name, maxShareFile)
				if err != nil {
					return err
				}
				sealed, err := readShare(text, key.ID)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				req.SealedShares = append(req.SealedShares, sealed)
			}
			resp, err := s.RecoveryVerify(c.Context(), req)
			if err != nil {
				return err
			}
			if !resp.Restores {
				a.say("they do NOT restore the root key: %d good shares, %d are needed", resp.Shares, resp.Threshold)
				return exitError(2)
			}
			fmt.Fprintf(a.stdout, "%d shares restore the root key; %d are needed\n", resp.Shares, resp.Threshold)
			return nil
		}),
	}
	c.Flags().StringVar(&challenge, "challenge", "", "file of the challenge")
	_ = c.MarkFlagRequired("challenge")
	return c
}

func (a *app) recoveryRestore() *cobra.Command {
	var data string
	c := &cobra.Command{
		Use: "restore --data-dir DIR SEALED...", Short: "On a new host: hand sealed shares to the waiting key process", Args: cobra.MinimumNArgs(1),
		Long: "Bring the root key back on a new host:\n" +
			"  1. start 'claviger up --restore'; the server writes a challenge below DIR/server/recovery, and\n" +
			"     claviger-unseal shows the pin of the key process that made it,\n" +
			"  2. each holder seals a share to it: claviger recovery seal --challenge FILE --pin SHA256 ...,\n" +
			"  3. this command hands them over, and the server goes on by itself.",
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > maxShares {
				return usagef("there are more than %d shares", maxShares)
			}
			shares := make([]sealedShare, len(args))
			for i, name := range args {
				text, err := a.readUpTo(name, maxShareFile)
				if err != nil {
					return err
				}
				if err := json.Unmarshal(text, &shares[i]); err != nil {
					return usagef("%s is not a sealed share: %v", name, err)
				}
			}
			text, err := json.Marshal(shares)
			if err != nil {
				return err
			}
			if err := handOver(filepath.Join(data, "server"), text); err != nil {
				return err
			}
			a.say("handed over %d shares; the server's log says whether they suffice", len(args))
			return nil
		},
	}
	c.Flags().StringVar(&data, "data-dir", "/var/lib/claviger", "data directory of the server")
	return c
}

// handOver puts the shares where the server looks for them, as a file of its
// owner. The directory is the server's, so nothing there is followed out of it.
func handOver(dir string, text []byte) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	owner, err := root.Stat(recoveryDir)
	if err != nil {
		return usagef("no key process waits for shares below %s: start 'claviger up --restore' first", dir)
	}
	name := filepath.Join(recoveryDir, sharesFile)
	if err := root.Remove(name + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if stat, ok := owner.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Geteuid() {
		err = errors.Join(err, f.Chown(int(stat.Uid), int(stat.Gid)))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return root.Rename(name+".new", name)
}
