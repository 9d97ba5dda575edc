package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/server"
)

// arrival is how a key process without a root key gets one: from another key
// process, or from recovery shares. This process carries ciphertext only.
type arrival struct {
	join    string // https://host:port of the server that admits
	roots   string // PEM file of its roots
	restore bool
}

// The time between two looks at whether there is an answer. The other server
// records each question, so they become rarer.
const (
	arrivalPoll  = time.Second
	arrivalPause = 8 * time.Second
)

// wait returns when there is a key process that has its root key.
func (v arrival) wait(ctx context.Context, c *custody.Client, cfg server.Config, log *slog.Logger) error {
	id, err := keyProcess(ctx, c, log)
	if err != nil || !id.Joining {
		return err
	}
	step := v.restoreOnce
	if v.join != "" {
		step = v.joinOnce
	}
	said := ""
	for pause := arrivalPoll; ; pause = min(2*pause, arrivalPause) {
		err := step(ctx, c, cfg, log)
		if err == nil {
			log.Info("the root key has arrived")
			return nil
		}
		reason := err.Error()
		if e, ok := errors.AsType[*claviger.Error](err); ok {
			reason = e.Msg // without the request's id, which is another each time
		}
		if said != reason {
			said = reason
			log.Info("waiting for the root key", "reason", said)
		}
		if v.restore {
			pause = arrivalPoll // it only looks for a file
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// keyProcess waits for a key process to answer: somebody may be typing the
// passphrase of the root key, and takes the time that takes.
func keyProcess(ctx context.Context, c *custody.Client, log *slog.Logger) (custody.Identity, error) {
	for said := false; ; said = true {
		id, err := c.Identity(ctx)
		if claviger.CodeOf(err) != claviger.Unavailable || ctx.Err() != nil {
			return id, err
		}
		if !said {
			log.Info("waiting for the key process", "reason", err)
		}
		select {
		case <-ctx.Done():
			return id, ctx.Err()
		case <-time.After(arrivalPoll):
		}
	}
}

// joinOnce asks the other server to have the root key wrapped to our key process.
func (v arrival) joinOnce(ctx context.Context, c *custody.Client, _ server.Config, _ *slog.Logger) error {
	key, err := c.JoinKey(ctx)
	if err != nil {
		return err
	}
	other, err := client.New(client.Config{Address: v.join, CAFile: v.roots})
	if err != nil {
		return err
	}
	defer other.Close()
	resp, err := other.Admit(ctx, &pb.AdmitRequest{JoinKey: key})
	if err != nil {
		return fmt.Errorf("the join key that claviger-unseal shows: %w", err)
	}
	// The key process checks the identity against the pin it was started with.
	return c.Join(ctx, resp.Wrapped, resp.Identity)
}

// Files through which recovery shares come to a server that has no root key
// and so no way in yet. They lie in its own directory, below "recovery".
const (
	recoveryDir   = "recovery"
	challengeFile = "challenge.json" // from here
	sharesFile    = "shares.json"    // to here: all shares at once, since a challenge serves once
	maxShares     = 64
	maxShareFile  = 1 << 16 // bytes
)

// restoreOnce puts out a challenge, and hands the shares that were sealed to
// it to the key process.
func (v arrival) restoreOnce(ctx context.Context, c *custody.Client, cfg server.Config, log *slog.Logger) error {
	dir := filepath.Join(cfg.DataDir, "server", recoveryDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	challenge, err := currentChallenge(ctx, c, filepath.Join(dir, challengeFile), log)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, sharesFile)
	sealed, err := readShares(name, challenge.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("no shares have been handed over yet: see 'claviger recovery restore --help'")
	}
	if err == nil {
		if err = c.Restore(ctx, challenge.ID, sealed); err == nil {
			return os.RemoveAll(dir)
		}
		_ = os.Remove(filepath.Join(dir, challengeFile))
	}
	return errors.Join(fmt.Errorf("these shares do not restore the root key: %w", err), os.Remove(name))
}

// currentChallenge returns the challenge that was put out, or puts out one of
// the present key process. Its pin is of the identity that a key process
// without a root key has for the while.
func currentChallenge(ctx context.Context, c *custody.Client, name string, log *slog.Logger) (onetime.Key, error) {
	id, err := c.Identity(ctx)
	if err != nil {
		return onetime.Key{}, err
	}
	var key onetime.Key
	text, err := os.ReadFile(name)
	if err == nil && json.Unmarshal(text, &key) == nil && id.Public.Equal(key.Identity) && time.Now().Add(time.Minute).Before(key.Expires) {
		return key, nil
	}
	if key, err = c.OneTimeKey(ctx, onetime.Share, onetimeNothing); err != nil {
		return key, err
	}
	if text, err = json.Marshal(key); err != nil {
		return key, err
	}
	if err := replaceFile(name, text); err != nil {
		return key, err
	}
	log.Info("holders: seal your shares to this challenge, with the pin that claviger-unseal shows", "challenge", name, "expires", key.Expires)
	return key, nil
}

// replaceFile writes a file, whole or not at all.
func replaceFile(name string, text []byte) error {
	if err := os.WriteFile(name+".part", text, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".part", name)
}

// sealedShare is a holder's share, sealed to a challenge.
type sealedShare struct {
	Challenge string `json:"challenge"`
	Sealed    string `json:"sealed"` // base64
}

// open returns the sealed share, if it was sealed to the challenge.
func (s sealedShare) open(challenge string) ([]byte, error) {
	if s.Challenge != challenge {
		return nil, claviger.Errorf(claviger.Conflict, "a share was sealed to another challenge", "have its holder seal it to the present one")
	}
	return base64.StdEncoding.DecodeString(s.Sealed)
}

// readShare reads what a holder wrote.
func readShare(text []byte, challenge string) ([]byte, error) {
	var s sealedShare
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("this is not a sealed share: %w", err)
	}
	return s.open(challenge)
}

// readShares reads what 'recovery restore' handed over.
func readShares(name, challenge string) (sealed [][]byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []sealedShare
	if err := json.NewDecoder(io.LimitReader(f, maxShares*maxShareFile)).Decode(&all); err != nil {
		return nil, fmt.Errorf("read shares: %w", err)
	}
	for _, s := range all {
		text, err := s.open(challenge)
		if err != nil {
			return nil, err
		}
		sealed = append(sealed, text)
	}
	return sealed, nil
}
