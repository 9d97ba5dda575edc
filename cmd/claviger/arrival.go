package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
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

// arrivalPoll is the time between two looks at whether there is an answer.
const arrivalPoll = time.Second

// wait returns at once when the key process has its root key, and otherwise
// when it has got one.
func (v arrival) wait(ctx context.Context, c *custody.Client, cfg server.Config, log *slog.Logger) error {
	if v.join == "" && !v.restore {
		return nil
	}
	id, err := c.Identity(ctx)
	if err != nil || !id.Joining {
		return err
	}
	step := v.restoreOnce
	if v.join != "" {
		step = v.joinOnce
	}
	for {
		err := step(ctx, c, cfg, log)
		if err == nil {
			log.Info("the root key has arrived")
			return nil
		}
		log.Info("waiting for the root key", "reason", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(arrivalPoll):
		}
	}
}

// joinOnce asks the other server to have the root key wrapped to our key process.
func (v arrival) joinOnce(ctx context.Context, c *custody.Client, _ server.Config, log *slog.Logger) error {
	key, err := c.JoinKey(ctx)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(key)
	log.Info("admit this join key on the other host: claviger root admit", "sha256", fmt.Sprintf("%x", sum))
	other, err := client.New(client.Config{Address: v.join, CAFile: v.roots})
	if err != nil {
		return err
	}
	defer other.Close()
	resp, err := other.Admit(ctx, &pb.AdmitRequest{JoinKey: key})
	if err != nil {
		return err
	}
	// The key process checks the identity against the pin it was started with.
	return c.Join(ctx, resp.Wrapped, resp.Identity)
}

// Files through which recovery shares come to a server that has no root key
// and so no way in yet. They lie in its own directory, below "recovery".
const (
	challengeFile = "challenge.json"
	sealedSuffix  = ".sealed"
	maxShares     = 64
	maxShareFile  = 1 << 16 // bytes
)

// restoreOnce puts out a challenge, and hands the shares that were sealed to
// it to the key process.
func (v arrival) restoreOnce(ctx context.Context, c *custody.Client, cfg server.Config, _ *slog.Logger) error {
	dir := filepath.Join(cfg.DataDir, "server", "recovery")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	challenge, err := currentChallenge(ctx, c, filepath.Join(dir, challengeFile))
	if err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"+sealedSuffix))
	if err != nil {
		return err
	}
	var sealed [][]byte
	for _, name := range names[:min(len(names), maxShares)] {
		text, err := readSealed(name, challenge.ID)
		if err != nil {
			continue // sealed to an earlier challenge, or not whole yet
		}
		sealed = append(sealed, text)
	}
	if len(sealed) == 0 {
		return errors.New("no share has been sealed to the challenge yet: see 'claviger recovery restore --help'")
	}
	if err := c.Restore(ctx, challenge.ID, sealed); err != nil {
		_ = os.Remove(filepath.Join(dir, challengeFile)) // a one-time key serves once
		return err
	}
	return os.RemoveAll(dir)
}

func currentChallenge(ctx context.Context, c *custody.Client, name string) (onetime.Key, error) {
	var key onetime.Key
	if text, err := os.ReadFile(name); err == nil && json.Unmarshal(text, &key) == nil && time.Now().Add(time.Minute).Before(key.Expires) {
		return key, nil
	}
	key, err := c.OneTimeKey(ctx, onetime.Share, onetimeNothing)
	if err != nil {
		return key, err
	}
	text, err := json.Marshal(key)
	if err != nil {
		return key, err
	}
	return key, os.WriteFile(name, text, 0o600)
}

// sealedShare is a holder's share, sealed to a challenge.
type sealedShare struct {
	Challenge string `json:"challenge"`
	Sealed    string `json:"sealed"` // base64
}

func readSealed(name, challenge string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil || info.Size() > maxShareFile {
		return nil, usagef("%s is not a sealed share", name)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var s sealedShare
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("%s is not a sealed share: %w", name, err)
	}
	if s.Challenge != challenge {
		return nil, claviger.Errorf(claviger.Conflict, name+" was sealed to another challenge", "have its holder seal the share to the present one")
	}
	return base64.StdEncoding.DecodeString(s.Sealed)
}
