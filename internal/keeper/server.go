package keeper

import (
	"context"
	"crypto"
	"encoding/hex"
	"errors"
	"io"
	"strconv"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/store"
)

// Info says what the server is. It needs no caller.
func (k *Keeper) Info(ctx context.Context) (Info, error) {
	identity, err := k.cfg.Custodian.Identity(ctx)
	if err != nil {
		return Info{}, outward(err)
	}
	state, v, _ := k.system.checkpoint.current()
	checkpoint, _, err := state.public(v)
	if err != nil {
		return Info{}, outward(err)
	}
	return Info{
		CheckpointSPKI: checkpoint.SPKI(),
		Version:        k.cfg.Version, Identity: identity.Public, IdentityFingerprint: hashOf(identity.Public),
		CAFingerprint: hex.EncodeToString(k.system.caPin[:]), Roots: k.system.rootsDER(), Store: k.cfg.StoreName,
		RootGeneration: identity.Generation, Started: k.started.UTC(), Dev: k.cfg.Dev,
	}, nil
}

// readiness remembers the last answer of Ready for a moment, so that who asks
// often does not fill the audit log.
type readiness struct {
	finding turn // held while it is found out, and to look at the rest
	at      time.Time
	err     error
}

// readyFor is how long an answer of Ready holds.
const readyFor = time.Second

// Ready reports whether a key can be used and recorded now: nil, or why not.
// It uses a system key and records that.
func (k *Keeper) Ready(ctx context.Context) error {
	if err := k.ready.finding.take(ctx); err != nil {
		return err
	}
	defer k.ready.finding.give()
	now := k.cfg.Now()
	if !k.ready.at.IsZero() && now.Sub(k.ready.at).Abs() < readyFor {
		return k.ready.err
	}
	k.ready.err = k.findReady(ctx)
	k.ready.at = now
	return k.ready.err
}

func (k *Keeper) findReady(ctx context.Context) error {
	if _, err := k.snapshot(ctx, "", string(checkpointKey)); err != nil {
		return outward(err)
	}
	if _, err := k.system.checkpoint.Sign(nil, []byte("claviger readiness\n"), crypto.Hash(0)); err != nil {
		return outward(err)
	}
	return k.handled.flush(ctx)
}

// Rewrap brings every blob to the newest root key. One that is damaged is
// counted, named in the log, and passed over. It may be repeated, and stopped
// at any point.
func (k *Keeper) Rewrap(ctx context.Context, by claviger.Principal) (Rewrapped, error) {
	var done Rewrapped
	c := change{op: claviger.ManageServer, action: "server.rewrap"}
	err := k.administer(ctx, by, c, func(ctx context.Context, _ *claviger.Key, r *audit.Record) error {
		identity, err := k.cfg.Custodian.Identity(ctx)
		if err != nil {
			return err
		}
		done.Generation = identity.Generation
		err = errors.Join(k.rewrapAll(ctx, &done), k.rewrapSessions(ctx, &done))
		addDetailText(r, "rewrapped", strconv.FormatUint(done.Rewrapped, 10))
		addDetailText(r, "damaged", strconv.FormatUint(done.Damaged, 10))
		addDetailText(r, "generation", strconv.FormatUint(uint64(done.Generation), 10))
		return err
	})
	return done, err
}

func (k *Keeper) rewrapAll(ctx context.Context, done *Rewrapped) error {
	var last store.BlobRef
	for {
		var refs []store.BlobRef
		err := k.cfg.Store.View(ctx, func(tx *store.Tx) error {
			var err error
			if refs, err = tx.BlobsBelow(done.Generation, last, store.MaxLimit); err != nil || len(refs) > 0 {
				return err
			}
			all, err := tx.CountBlobs(done.Generation)
			done.Already = all - min(all, done.Rewrapped+done.Damaged)
			return err
		})
		if err != nil || len(refs) == 0 {
			return err
		}
		for _, last = range refs {
			err := k.rewrapOne(ctx, last)
			switch {
			case err == nil:
				done.Rewrapped++
			case errors.Is(err, claviger.NotFound): // destroyed since it was listed
			case k.isDamage(ctx, err):
				k.cfg.Log.Error("a blob is damaged and stays under its root key", "key", last.Key, "version", last.Version, "generation", last.Generation, "error", err)
				done.Damaged++
			default:
				return err
			}
			failpoint.Hit(failpoint.RewrapBlob)
		}
	}
}

// rewrapSessions wraps the keys of sessions anew. One that is damaged is passed
// over: it lives for days at most, and its session can be opened again.
func (k *Keeper) rewrapSessions(ctx context.Context, done *Rewrapped) error {
	for last := claviger.ID(""); ; {
		var list []claviger.Session
		err := k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
			list, err = tx.SessionBlobsBelow(done.Generation, last, store.MaxLimit)
			return err
		})
		if err != nil || len(list) == 0 {
			return err
		}
		for _, s := range list {
			last = s.ID
			err := k.rewrapSession(ctx, s.ID)
			switch {
			case err == nil:
				done.Rewrapped++
				done.Already -= min(done.Already, 1)
			case errors.Is(err, claviger.NotFound): // it has ended since it was listed
			case k.isDamage(ctx, err):
				k.cfg.Log.Error("the key of a session is damaged and stays under its root key", "session", s.ID, "error", err)
				done.Damaged++
				done.Already -= min(done.Already, 1)
			default:
				return err
			}
		}
	}
}

// rewrapSession wraps one session's key anew, and has every server read it again.
func (k *Keeper) rewrapSession(ctx context.Context, id claviger.ID) error {
	return k.update(ctx, func(tx *store.Tx) ([]claviger.ID, error) {
		s, err := tx.Session(id)
		if err != nil {
			return nil, err
		}
		blob, _, err := tx.SessionBlob(id)
		if err != nil {
			return nil, err
		}
		wrapped, generation, err := k.cfg.Custodian.Rewrap(ctx, sessionBinding(&s), blob)
		if err != nil {
			return nil, unopened{err}
		}
		if err := tx.PutSessionBlob(id, generation, wrapped); err != nil {
			return nil, err
		}
		return []claviger.ID{id}, tx.UpdateSession(s)
	})
}

// unopened is what the custodian said of a blob that it did not rewrap.
type unopened struct{ error }

func (u unopened) Unwrap() error { return u.error }

// isDamage reports whether a rewrap failed for what is stored, and would fail
// again: the record is damaged, or a custodian that answers refuses the blob.
func (k *Keeper) isDamage(ctx context.Context, err error) bool {
	if _, refused := errors.AsType[unopened](err); refused {
		_, err := k.cfg.Custodian.Identity(ctx)
		return err == nil
	}
	return errors.Is(err, claviger.Internal)
}

// rewrapOne wraps one blob anew. The key's row takes a new revision with it, so
// that every server reads the blob again.
func (k *Keeper) rewrapOne(ctx context.Context, ref store.BlobRef) error {
	return k.update(ctx, func(tx *store.Tx) ([]claviger.ID, error) {
		key, err := tx.Key(string(ref.Key))
		if err != nil {
			return nil, err
		}
		blob, _, err := tx.Blob(ref.Key, ref.Version)
		if err != nil {
			return nil, err
		}
		v := key.Version(ref.Version)
		if v == nil {
			return nil, claviger.Errorf(claviger.Internal, "a blob belongs to no version", "run 'claviger doctor', and restore a backup")
		}
		wrapped, generation, err := k.cfg.Custodian.Rewrap(ctx, bindingOf(&key, v.Number, v.Origin), blob)
		if err != nil {
			return nil, unopened{err}
		}
		if err := tx.PutBlob(ref.Key, ref.Version, generation, wrapped); err != nil {
			return nil, err
		}
		return []claviger.ID{ref.Key}, tx.UpdateKey(key)
	})
}

// Admit wraps the root key to a joining key process. It needs no caller: only
// ciphertext to a key that the root key's own policy admitted leaves.
func (k *Keeper) Admit(ctx context.Context, joinKey []byte, facts claviger.Facts) (Admitted, error) {
	if len(joinKey) > 4<<10 {
		return Admitted{}, claviger.Errorf(claviger.TooLarge, "the join key is larger than 4 KiB", "send the join key of one key process")
	}
	stranger := claviger.Principal{Facts: facts}
	wrapped, err := k.cfg.Custodian.Admit(ctx, joinKey)
	if err != nil {
		return Admitted{}, k.refuseStranger(ctx, stranger, "server.admit", outward(err))
	}
	identity, err := k.cfg.Custodian.Identity(ctx)
	if err != nil {
		return Admitted{}, outward(err)
	}
	r := k.newRecord(stranger, "server.admit")
	addDetailText(r, "join_key", hashOf(joinKey))
	if err := k.append(ctx, r); err != nil {
		return Admitted{}, err
	}
	return Admitted{Wrapped: wrapped, Identity: identity.Public}, nil
}

// RecoveryShares makes shares, each encrypted to its holder inside the custodian.
func (k *Keeper) RecoveryShares(ctx context.Context, by claviger.Principal) (custody.Shares, error) {
	var shares custody.Shares
	c := change{op: claviger.ManageServer, action: "server.recovery-shares"}
	err := k.administer(ctx, by, c, func(ctx context.Context, _ *claviger.Key, r *audit.Record) (err error) {
		shares, err = k.cfg.Custodian.Shares(ctx)
		addDetailText(r, "shares", strconv.Itoa(len(shares.Shares)))
		return err
	})
	if err != nil {
		return custody.Shares{}, err
	}
	return shares, nil
}

// RecoveryChallenge returns a one-time key to which holders seal their shares.
func (k *Keeper) RecoveryChallenge(ctx context.Context, by claviger.Principal) (onetime.Key, error) {
	var oneTime onetime.Key
	c := change{op: claviger.ManageServer, action: "server.recovery-challenge"}
	err := k.administer(ctx, by, c, func(ctx context.Context, _ *claviger.Key, _ *audit.Record) (err error) {
		oneTime, err = k.cfg.Custodian.OneTimeKey(ctx, onetime.Share, frames.Binding{})
		return err
	})
	if err != nil {
		return onetime.Key{}, err
	}
	return oneTime, nil
}

// RecoveryVerify tests whether sealed shares restore the root key.
func (k *Keeper) RecoveryVerify(ctx context.Context, by claviger.Principal, challengeID string, sealed [][]byte) (RecoveryResult, error) {
	if len(sealed) > 256 {
		return RecoveryResult{}, claviger.Errorf(claviger.TooLarge, "there are more than 256 shares", "send each holder's share once")
	}
	var result RecoveryResult
	c := change{op: claviger.ManageServer, action: "server.recovery-verify"}
	err := k.administer(ctx, by, c, func(ctx context.Context, _ *claviger.Key, r *audit.Record) (err error) {
		result.Restores, result.Shares, result.Threshold, err = k.cfg.Custodian.VerifyShares(ctx, challengeID, sealed)
		addDetailText(r, "restores", strconv.FormatBool(result.Restores))
		return err
	})
	if err != nil {
		return RecoveryResult{}, err
	}
	return result, nil
}

// Backup writes an archive that is encrypted to age recipients. It is recorded
// before its first byte is written.
func (k *Keeper) Backup(ctx context.Context, by claviger.Principal, recipients []string, w io.Writer) error {
	c := change{op: claviger.ManageServer, action: "server.backup"}
	err := k.administer(ctx, by, c, func(_ context.Context, _ *claviger.Key, r *audit.Record) error {
		addDetailText(r, "recipients", strconv.Itoa(len(recipients)))
		if k.cfg.Backup == nil {
			return claviger.Errorf(claviger.Unsupported, "this server writes no backups", "back up its database with the database's own tools")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := k.Flush(ctx); err != nil {
		return err
	}
	if err := k.cfg.Backup(ctx, recipients, w); err != nil {
		return k.failed(ctx, k.changeRecord(by, c, nil), outward(err))
	}
	return nil
}
