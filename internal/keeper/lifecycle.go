package keeper

import (
	"cmp"
	"context"
	"slices"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/onetime"
	"claviger.dev/internal/store"
)

// move puts a version into another state. The caller has checked the change.
func move(v *claviger.Version, to claviger.State, now time.Time, by claviger.ID, reason string) {
	v.History = append(slices.Clone(v.History), claviger.Transition{From: v.State, To: to, At: now.UTC(), By: by, Reason: reason})
	v.State = to
	if to == claviger.Active && v.Activated.IsZero() {
		v.Activated = now.UTC()
	}
}

// transition checks a change of state and makes it.
func transition(key *claviger.Key, number uint32, to claviger.State, now time.Time, by claviger.ID, reason string) error {
	v := key.Version(number)
	if v == nil {
		return claviger.Errorf(claviger.NotFound, "the key has no such version", "look at its versions with 'claviger key show'")
	}
	if claviger.TransitionNumber(v.State, to) == 0 {
		return claviger.Errorf(claviger.Invalid, "a version that is "+string(v.State)+" cannot become "+string(to),
			"see the states of SP 800-57 part 1, section 7, in 'claviger key state --help'")
	}
	if to == claviger.Active && key.ActiveVersion() != nil {
		return claviger.Errorf(claviger.Conflict, "another version is active", "deactivate it first; a key has one active version")
	}
	if grace := time.Duration(key.Settings.DestroyGrace); to == claviger.Destroyed && grace > 0 && v.State != claviger.PreActivation {
		since := now.Sub(v.StateSince())
		if v.State == claviger.Active || since < grace {
			return claviger.Errorf(claviger.Invalid, "the grace before destruction has not passed",
				"deactivate the version, and destroy it "+grace.String()+" later")
		}
	}
	move(v, to, now, by, reason)
	return nil
}

// ChangeState moves a version to another state. Destruction erases the wrapped
// blob and leaves a tombstone.
// A version that a newer one replaced is not ended while somebody was not seen
// with the active one, unless it is forced.
func (k *Keeper) ChangeState(ctx context.Context, by claviger.Principal, ref string, version uint32, to claviger.State, reason string, force bool) (KeyView, error) {
	if err := checkText("reason", reason); err != nil {
		return KeyView{}, err
	}
	if !slices.Contains(claviger.States(), to) {
		return KeyView{}, claviger.Errorf(claviger.Invalid, "there is no such state", "use active, suspended, deactivated, compromised or destroyed")
	}
	var gone *custody.Material
	var kind claviger.Custodian
	c := change{op: claviger.ManageKey, action: "key.state", key: ref, reason: reason, apply: func(tx *store.Tx, e *effect) error {
		var err error
		kind = e.key.Custodian
		if err = k.confirmed(tx, e, version, to, force); err != nil {
			return err
		}
		gone, err = k.applyState(ctx, tx, e, version, to, by.ID, reason)
		return err
	}}
	if to == claviger.Deactivated || to == claviger.Destroyed {
		c.prepare = k.writeSeen
	}
	err := k.change(ctx, by, c)
	if gone != nil {
		// The blob is gone; what the custodian still holds goes too.
		k.unload(ctx, kind, *gone)
	}
	if err != nil {
		return KeyView{}, err
	}
	return k.view(ctx, ref)
}

// chosen is the version that is meant where none is named: the active one, or
// the only one. 0 when there is neither.
func chosen(key *claviger.Key) uint32 {
	if v := key.ActiveVersion(); v != nil {
		return v.Number
	}
	if len(key.Versions) == 1 {
		return key.Versions[0].Number
	}
	return 0
}

// applyState writes a change of state. It returns what was destroyed, if so.
func (k *Keeper) applyState(ctx context.Context, tx *store.Tx, e *effect, version uint32, to claviger.State, by claviger.ID, reason string) (*custody.Material, error) {
	key := cloneKey(e.key)
	if version == 0 {
		version = chosen(&key)
	}
	var from claviger.State
	if v := key.Version(version); v != nil {
		from = v.State
	}
	if err := transition(&key, version, to, k.cfg.Now(), by, reason); err != nil {
		return nil, err
	}
	v := key.Version(version)
	e.record.Version, e.record.Fingerprint = version, v.Fingerprint
	e.detail("from", string(from))
	e.detail("to", string(to))
	failpoint.Hit(failpoint.StateUpdate)
	if err := tx.UpdateKey(key); err != nil || to != claviger.Destroyed {
		return nil, err
	}
	blob, _, err := tx.Blob(key.ID, version)
	if err != nil {
		return nil, err
	}
	gone := &custody.Material{Binding: bindingOf(&key, version, v.Origin), Blob: blob, Fingerprint: v.Fingerprint}
	if key.Custodian != claviger.Soft {
		if err := k.deleteFrom(ctx, key.Custodian, *gone, e); err != nil {
			return nil, err
		}
	}
	err = tx.EraseBlob(key.ID, version)
	failpoint.Hit(failpoint.StateErase)
	return gone, err
}

// deleteFrom deletes a version from its device. It comes before the commit: a
// version is not called destroyed while the device has it. When the commit
// fails after it, the version is as it was but for its material, and
// destroying it again succeeds.
func (k *Keeper) deleteFrom(ctx context.Context, kind claviger.Custodian, m custody.Material, e *effect) error {
	d, err := k.device(kind)
	if err != nil {
		return err
	}
	kept, err := d.Destroy(ctx, m)
	if kept {
		e.detail("device", "the key stays in the device: it was bound, not made")
	}
	return err
}

// cloneKey copies what a change may write to.
func cloneKey(key claviger.Key) claviger.Key {
	key.Versions = slices.Clone(key.Versions)
	return key
}

// Rotate makes a new version, activates it and deactivates the old one, which
// processes for the grace that is given, or for the key's own when that is
// zero, and is retired then.
func (k *Keeper) Rotate(ctx context.Context, by claviger.Principal, ref, reason string, grace time.Duration) (KeyView, error) {
	if err := checkText("reason", reason); err != nil {
		return KeyView{}, err
	}
	if grace < 0 || grace > 0 && grace < time.Second {
		return KeyView{}, claviger.Errorf(claviger.Invalid, "a grace is negative or shorter than a second", "use one such as 336h, and 'claviger key exposed' where old tokens must not pass")
	}
	if err := k.change(ctx, by, k.rotation(ref, by.ID, reason, grace)); err != nil {
		return KeyView{}, err
	}
	return k.view(ctx, ref)
}

// rotation is the change that rotates a key.
func (k *Keeper) rotation(ref string, by claviger.ID, reason string, grace time.Duration) change {
	var made custody.Made
	var number uint32
	return change{
		op: claviger.ManageKey, action: "key.rotate", key: ref, reason: reason,
		prepare: func(ctx context.Context, key claviger.Key) (err error) {
			number = nextNumber(key)
			made, err = k.make(ctx, &key, number, "")
			failpoint.Hit(failpoint.RotateMade)
			return err
		},
		apply: func(tx *store.Tx, e *effect) error {
			failpoint.Hit(failpoint.RotateUpdate)
			err := k.adoptVersion(tx, e, newVersion(number, claviger.Generated, made, k.cfg.Now().UTC()), made, by, reason, grace)
			failpoint.Hit(failpoint.RotateBlob)
			return err
		},
	}
}

func nextNumber(key claviger.Key) uint32 { return uint32(len(key.Versions)) + 1 }

// adoptVersion writes a new version as the active one and deactivates the one
// that was.
func (k *Keeper) adoptVersion(tx *store.Tx, e *effect, v claviger.Version, made custody.Made, by claviger.ID, reason string, grace time.Duration) error {
	key := cloneKey(e.key)
	if v.Number != nextNumber(key) {
		return claviger.Errorf(claviger.Conflict, "another version was made meanwhile", "look at the key and try again")
	}
	now := k.cfg.Now()
	if old := key.ActiveVersion(); old != nil {
		if err := transition(&key, old.Number, claviger.Deactivated, now, by, "replaced by a new version"); err != nil {
			return err
		}
		if err := setGrace(&key, old, grace, now, e); err != nil {
			return err
		}
	}
	key.Versions = append(key.Versions, v)
	if err := transition(&key, v.Number, claviger.Active, now, by, reason); err != nil {
		return err
	}
	e.record.Version, e.record.Fingerprint = v.Number, v.Fingerprint
	if err := tx.UpdateKey(key); err != nil {
		return err
	}
	return tx.PutBlob(key.ID, v.Number, made.Generation, made.Blob)
}

// addOlder writes a new version as one that processes only, and leaves the
// active one as it is.
func (k *Keeper) addOlder(tx *store.Tx, e *effect, v claviger.Version, made custody.Made, by claviger.ID, reason string) error {
	key, now := cloneKey(e.key), k.cfg.Now()
	if v.Number != nextNumber(key) {
		return claviger.Errorf(claviger.Conflict, "another version was made meanwhile", "look at the key and try again")
	}
	move(&v, claviger.Active, now, by, reason)
	move(&v, claviger.Deactivated, now, by, "it came as an older one")
	key.Versions = append(key.Versions, v)
	e.record.Version, e.record.Fingerprint = v.Number, v.Fingerprint
	e.detail("state", string(v.State))
	if err := tx.UpdateKey(key); err != nil {
		return err
	}
	return tx.PutBlob(key.ID, v.Number, made.Generation, made.Blob)
}

// BeginImport makes a one-time key to which the material of the key's next
// version is to be sealed.
func (k *Keeper) BeginImport(ctx context.Context, by claviger.Principal, ref string) (onetime.Key, error) {
	var oneTime onetime.Key
	c := change{op: claviger.ManageKey, action: "key.import-begin", key: ref}
	err := k.administer(ctx, by, c, func(ctx context.Context, key *claviger.Key, r *audit.Record) (err error) {
		if err := checkImport(*key); err != nil {
			return err
		}
		oneTime, err = k.cfg.Custodian.OneTimeKey(ctx, onetime.Import, bindingOf(key, nextNumber(*key), claviger.Imported))
		r.Version = nextNumber(*key)
		return err
	})
	if err != nil {
		return onetime.Key{}, err
	}
	return oneTime, nil
}

// checkImport refuses imports that could never be used.
func checkImport(key claviger.Key) error {
	if key.Custodian != claviger.Soft {
		return errImportDevice
	}
	if !claviger.Exposed.AtLeast(key.Settings.MinLevel) {
		return claviger.Errorf(claviger.Invalid, "the key asks for a better custody level than imported material has", "rotate the key instead: a generated version has been nowhere else")
	}
	return nil
}

// Import is material that was sealed to a one-time key.
type Import struct {
	Key     string
	OneTime string // the id of the one-time key
	Sealed  []byte
	Place   Place // where the material stood; zero for none
	Older   bool  // not in use any more: the version is deactivated from the start, and the active one stays
	Reason  string
}

// Import adopts material that was sealed to a one-time key as the key's next,
// active version. The custodian refuses material that was sealed for another
// key or version. A framework's secret that the key has already makes no
// version, and one that another key has is refused: see sameSecret.
func (k *Keeper) Import(ctx context.Context, by claviger.Principal, req Import) (KeyView, error) {
	if err := checkText("reason", req.Reason); err != nil {
		return KeyView{}, err
	}
	if req.Place != (Place{}) {
		if err := req.Place.check(); err != nil {
			return KeyView{}, err
		}
	}
	if len(req.Sealed) > maxSealed || len(req.OneTime) > claviger.MaxTextLength {
		return KeyView{}, claviger.Errorf(claviger.TooLarge, "the sealed material is larger than 64 KiB", "seal the raw components of one key")
	}
	var made custody.Made
	var number uint32
	err := k.change(ctx, by, change{
		op: claviger.ManageKey, action: "key.import", key: req.Key, reason: req.Reason,
		prepare: func(ctx context.Context, key claviger.Key) (err error) {
			if err := checkImport(key); err != nil {
				return err
			}
			number = nextNumber(key)
			made, err = k.cfg.Custodian.Adopt(ctx, bindingOf(&key, number, claviger.Imported), req.OneTime, req.Sealed)
			failpoint.Hit(failpoint.ImportAdopted)
			return err
		},
		apply: func(tx *store.Tx, e *effect) error {
			failpoint.Hit(failpoint.ImportUpdate)
			had, err := k.sameSecret(tx, e, &by, made.Fingerprint)
			if err != nil {
				return err
			}
			if had == 0 {
				v := newVersion(number, claviger.Imported, made, k.cfg.Now().UTC())
				if req.Older {
					err = k.addOlder(tx, e, v, made, by.ID, req.Reason)
				} else {
					err = k.adoptVersion(tx, e, v, made, by.ID, req.Reason, 0)
				}
				failpoint.Hit(failpoint.ImportBlob)
			}
			if err == nil && req.Place != (Place{}) {
				err = k.putCopy(tx, e, cmp.Or(had, number), req.Place, by.Name, "")
			}
			return err
		},
	})
	if err != nil {
		return KeyView{}, err
	}
	return k.view(ctx, req.Key)
}

const maxSealed = 64 << 10
