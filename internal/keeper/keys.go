package keeper

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/store"
	"claviger.dev/pubkey"
)

// CreateKey makes a key, with a first version unless it is for import.
func (k *Keeper) CreateKey(ctx context.Context, by claviger.Principal, req CreateKey) (KeyView, error) {
	key, err := k.newKey(req)
	if err != nil {
		return KeyView{}, err
	}
	var made custody.Made
	c := change{op: claviger.CreateKey, action: "key.create", stub: &key}
	if req.Reference != "" {
		// A grant says which names its holder may use, and nothing of what
		// others have in the device: that is for who manages the server.
		if _, err := k.permitChange(ctx, &by, change{op: claviger.ManageServer, action: "key.bind"}); err != nil {
			return KeyView{}, err
		}
	}
	if !req.ForImport {
		c.prepare = func(ctx context.Context, _ claviger.Key) error {
			made, err = k.make(ctx, &key, 1, req.Reference)
			failpoint.Hit(failpoint.CreateMade)
			return err
		}
	}
	c.apply = func(tx *store.Tx, e *effect) error {
		failpoint.Hit(failpoint.CreateInsert)
		if req.ForImport {
			return tx.InsertKey(key)
		}
		v := newVersion(1, claviger.Generated, made, key.Created)
		if !req.PreActivation {
			move(&v, claviger.Active, key.Created, by.ID, "created")
		}
		whole := key
		whole.Versions = []claviger.Version{v}
		if err := tx.InsertKey(whole); err != nil {
			return err
		}
		e.record.Version, e.record.Fingerprint = 1, v.Fingerprint
		err := tx.PutBlob(key.ID, 1, made.Generation, made.Blob)
		failpoint.Hit(failpoint.CreateBlob)
		return err
	}
	if err := k.change(ctx, by, c); err != nil {
		return KeyView{}, err
	}
	return k.view(ctx, string(key.ID))
}

// newKey checks what was asked for and returns the key without versions.
func (k *Keeper) newKey(req CreateKey) (claviger.Key, error) {
	name, err := claviger.ParseName(req.Name)
	if err != nil {
		return claviger.Key{}, err
	}
	alg, err := claviger.ParseAlgorithm(req.Algorithm)
	if err != nil {
		return claviger.Key{}, err
	}
	set, err := checkRecipe(alg, req)
	if err != nil {
		return claviger.Key{}, err
	}
	if err := checkText("owner", req.Owner); err != nil {
		return claviger.Key{}, err
	}
	if err := checkLabels(req.Labels); err != nil {
		return claviger.Key{}, err
	}
	settings, err := checkSettings(alg, req.Settings)
	if err != nil {
		return claviger.Key{}, err
	}
	custodian, err := checkCustodian(req)
	if err != nil {
		return claviger.Key{}, err
	}
	now := k.cfg.Now().UTC()
	return claviger.Key{
		ID: claviger.NewID(now), Name: name, Algorithm: alg, Custodian: custodian, Recipe: set,
		Owner: req.Owner, Labels: maps.Clone(req.Labels), Settings: settings, Created: now,
	}, nil
}

// checkRecipe returns the recipe set of a key: a machine key has one, and no
// other key does.
func checkRecipe(alg claviger.Algorithm, req CreateKey) (string, error) {
	if alg != claviger.MachineKey {
		if req.Recipe != "" && req.Recipe != claviger.PlainRecipe {
			return "", claviger.Errorf(claviger.Invalid, "a key of this algorithm answers no recipe set", "leave the recipe out, or use the algorithm machine-key")
		}
		return claviger.PlainRecipe, nil
	}
	if req.Custodian != "" && req.Custodian != claviger.Soft {
		return "", claviger.Errorf(claviger.Unsupported, "devices do not run recipes", "use the custodian soft")
	}
	set, err := recipe.ParseSet(req.Recipe)
	return string(set), err
}

// checkSettings refuses settings that contradict themselves, and caps the
// invocations of AES-256-GCM, which some recipes use too.
func checkSettings(alg claviger.Algorithm, s claviger.Settings) (claviger.Settings, error) {
	for _, d := range []claviger.Duration{s.OriginatorPeriod, s.RecipientPeriod, s.RotateEvery, s.DestroyGrace, s.Grace} {
		if d < 0 || d != 0 && time.Duration(d) < time.Second {
			return s, claviger.Errorf(claviger.Invalid, "a period is negative or shorter than a second", "use a period such as 720h, or leave it out")
		}
	}
	if s.RecipientPeriod != 0 && (s.OriginatorPeriod == 0 || s.OriginatorPeriod > s.RecipientPeriod) {
		return s, claviger.Errorf(claviger.Invalid, "the recipient period ends before the originator period",
			"set an originator period that is not longer: what is protected must be processed afterwards (SP 800-57 part 1, 5.3.6)")
	}
	if s.GraceDrained && s.Grace == 0 {
		return s, claviger.Errorf(claviger.Invalid, "the drain is waited for, but there is no grace", "set a grace too")
	}
	if s.RecordTokens && alg != claviger.MachineKey {
		return s, claviger.Errorf(claviger.Invalid, "only machine keys make tokens", "leave record_tokens out")
	}
	if s.MinLevel != "" && !slices.Contains([]claviger.Level{claviger.Exposed, claviger.Isolated, claviger.Hardware, claviger.Attested}, s.MinLevel) {
		return s, claviger.Errorf(claviger.Invalid, "there is no such custody level", "use exposed, isolated, hardware or attested")
	}
	if (alg == claviger.AES256GCM || alg == claviger.MachineKey) && (s.MaxInvocations == 0 || s.MaxInvocations > claviger.MaxGCMInvocations) {
		s.MaxInvocations = claviger.MaxGCMInvocations
	}
	return s, nil
}

func newVersion(number uint32, origin claviger.Origin, made custody.Made, now time.Time) claviger.Version {
	v := claviger.Version{
		Number: number, Origin: origin, Level: made.Level, Public: made.Public, Fingerprint: made.Fingerprint, Created: now,
		Shown: now, Reference: made.Reference,
	}
	if origin == claviger.Imported || v.Level == "" {
		v.Level = claviger.Exposed
	}
	move(&v, claviger.PreActivation, now, "", "made")
	return v
}

// Key returns a key by name, former name or id.
func (k *Keeper) Key(ctx context.Context, by claviger.Principal, ref string) (KeyView, error) {
	if err := k.read(ctx, &by, change{op: claviger.ReadKey, action: "key.read", key: ref}); err != nil {
		return KeyView{}, err
	}
	return k.view(ctx, ref)
}

// view reads a key with its counts.
func (k *Keeper) view(ctx context.Context, ref string) (KeyView, error) {
	var key claviger.Key
	var copies []store.Copy
	err := k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		if key, err = tx.Key(ref); err == nil {
			copies, err = tx.CopiesOf(key.ID)
		}
		return err
	})
	if err != nil {
		return KeyView{}, outward(err)
	}
	views, err := k.withCounts(ctx, []claviger.Key{key})
	if err != nil {
		return KeyView{}, err
	}
	views[0].Copies = copies
	return views[0], nil
}

func (k *Keeper) withCounts(ctx context.Context, keys []claviger.Key) ([]KeyView, error) {
	var subjects []subject
	for _, key := range keys {
		subjects = append(subjects, keySubject(key.ID))
		for _, v := range key.Versions {
			subjects = append(subjects, versionSubject(key.ID, v.Number))
		}
	}
	uses, err := k.counts.of(ctx, subjects...)
	if err != nil {
		return nil, outward(err)
	}
	views, now := make([]KeyView, len(keys)), k.cfg.Now()
	for i, key := range keys {
		views[i] = KeyView{Key: key, Use: uses[keySubject(key.ID)], VersionUse: map[uint32]Count{}}
		views[i].Versions = slices.Clone(key.Versions)
		for j := range views[i].Versions {
			v := &views[i].Versions[j]
			if v.State != claviger.Destroyed {
				v.Level = v.LevelAt(now, k.cfg.MaxAge)
			}
			if n, ok := uses[versionSubject(key.ID, v.Number)]; ok {
				views[i].VersionUse[v.Number] = n
			}
		}
	}
	return views, nil
}

// Keys lists the keys that the caller may see, one page at a time. A page may
// be shorter than asked for although more follow.
func (k *Keeper) Keys(ctx context.Context, by claviger.Principal, q store.KeyQuery) (keys []KeyView, next string, err error) {
	s, err := k.snapshot(ctx, string(by.ID), "")
	if err != nil {
		return nil, "", outward(err)
	}
	if s.principal.admit(&by) != "" || by.Kind != claviger.Operator && !grantsAny(s.principal.grants, claviger.ReadKey) {
		return nil, "", k.deny(ctx, k.newRecord(by, "key.list"), policy.Decision{Code: claviger.Denied, Reason: policy.ReasonNoGrant})
	}
	if q.State != "" && !slices.Contains(claviger.States(), q.State) {
		return nil, "", claviger.Errorf(claviger.Invalid, "there is no such state", "use pre-activation, active, suspended, deactivated, compromised or destroyed")
	}
	found, next, err := k.visible(ctx, q, func(key claviger.Key) bool {
		return k.policy.Decide(policy.Input{
			Principal: by, Grants: s.principal.grants, Operation: claviger.ReadKey, Key: &key, Count: 1, Now: k.cfg.Now(),
		}).Allowed
	})
	if err != nil {
		return nil, "", outward(err)
	}
	keys, err = k.withCounts(ctx, found)
	return keys, next, err
}

// visible returns the next keys that may be seen: one page of the store, or
// the first after it that has any. What follows is named by the last key that
// may be seen, since a hidden one's name is not the caller's to know.
func (k *Keeper) visible(ctx context.Context, q store.KeyQuery, see func(claviger.Key) bool) (keys []claviger.Key, next string, err error) {
	if q.Limit <= 0 {
		q.Limit = store.DefaultLimit
	}
	most := q.Limit
	for {
		err := k.cfg.Store.View(ctx, func(tx *store.Tx) error {
			var err error
			keys, next, err = tx.Keys(q)
			return err
		})
		if err != nil {
			return nil, "", err
		}
		keys = slices.DeleteFunc(keys, func(key claviger.Key) bool { return !see(key) })
		if next == "" || len(keys) > 0 {
			break
		}
		q.After, q.Limit = next, store.MaxLimit
	}
	if len(keys) > most {
		keys, next = keys[:most], "more"
	}
	if next != "" {
		next = string(keys[len(keys)-1].Name)
	}
	return keys, next, nil
}

func grantsAny(grants []claviger.Grant, op claviger.Operation) bool {
	return slices.ContainsFunc(grants, func(g claviger.Grant) bool { return slices.Contains(g.Operations, op) })
}

// UpdateKey changes owner, labels and settings; settings only tighten.
func (k *Keeper) UpdateKey(ctx context.Context, by claviger.Principal, ref string, req KeyChange) (KeyView, error) {
	if req.Owner != nil {
		if err := checkText("owner", *req.Owner); err != nil {
			return KeyView{}, err
		}
	}
	if req.Labels != nil {
		if err := checkLabels(*req.Labels); err != nil {
			return KeyView{}, err
		}
	}
	err := k.change(ctx, by, change{op: claviger.ManageKey, action: "key.update", key: ref, apply: func(tx *store.Tx, e *effect) error {
		key := e.key
		if req.Revision != 0 && req.Revision != key.Revision {
			return claviger.Errorf(claviger.Conflict, "the key changed meanwhile", "read it again and repeat the change")
		}
		if req.Owner != nil {
			e.detail("owner", *req.Owner)
			key.Owner = *req.Owner
		}
		if req.Labels != nil {
			e.detail("labels", strconv.Itoa(len(*req.Labels)))
			key.Labels = maps.Clone(*req.Labels)
		}
		if req.Settings != nil {
			settings, err := checkSettings(key.Algorithm, *req.Settings)
			if err != nil {
				return err
			}
			if !key.Settings.Tightens(settings) {
				return claviger.Errorf(claviger.Invalid, "a setting would become looser", "settings only tighten; make a new key where a looser one is needed")
			}
			e.detail("settings", "tightened")
			key.Settings = settings
		}
		return tx.UpdateKey(key)
	}})
	if err != nil {
		return KeyView{}, err
	}
	return k.view(ctx, ref)
}

// Rename gives a key another name in its environment; the old one stays an
// alias. The caller must be allowed to manage keys of either name.
func (k *Keeper) Rename(ctx context.Context, by claviger.Principal, ref, name string) (KeyView, error) {
	next, err := claviger.ParseName(name)
	if err != nil {
		return KeyView{}, err
	}
	err = k.change(ctx, by, change{op: claviger.ManageKey, action: "key.rename", key: ref, apply: func(tx *store.Tx, e *effect) error {
		key := e.key
		switch {
		case next.Environment() != key.Name.Environment():
			return claviger.Errorf(claviger.Invalid, "a key stays in its environment", "make a new key in the other environment")
		case next == key.Name:
			return claviger.Errorf(claviger.Conflict, "the key has that name already", "choose another name")
		case len(key.Aliases) >= maxAliases:
			return claviger.Errorf(claviger.Invalid, "the key has been renamed 32 times", "make a new key")
		}
		// A key under another name is under other grants, and is published with
		// another application's keys: who may not manage what stands there may
		// not put it there.
		principal, err := loadPrincipal(tx, string(by.ID))
		if err != nil {
			return err
		}
		there := change{op: claviger.ManageKey, stub: &claviger.Key{Name: next}}
		if d := k.decideChange(snapshot{principal: principal}, &by, there); !d.Allowed {
			return refusal(d)
		}
		e.detail("to", name)
		key.Aliases = append(slices.DeleteFunc(slices.Clone(key.Aliases), func(n claviger.Name) bool { return n == next }), key.Name)
		key.Name = next
		return tx.UpdateKey(key)
	}})
	if err != nil {
		return KeyView{}, err
	}
	return k.view(ctx, name)
}

const maxAliases = 32

// publishFor is how long a published set of public keys may be cached.
const publishFor = 5 * time.Minute

// PublicKeys returns what an application publishes, for a JWKS: every version
// that may verify, and those that will be able to. It needs no caller.
func (k *Keeper) PublicKeys(ctx context.Context, environment, application string) (PublicSet, error) {
	selector, err := claviger.ParseSelector(environment + "/" + application + "/*")
	if err != nil || environment == "*" || application == "*" || environment == policy.SystemEnvironment {
		return PublicSet{}, claviger.Errorf(claviger.NotFound, "there is no such application", "use the environment and application of a key's name")
	}
	var keys []claviger.Key
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		var err error
		keys, _, err = tx.Keys(store.KeyQuery{Selector: selector, Limit: store.MaxLimit})
		return err
	})
	if err != nil {
		return PublicSet{}, outward(err)
	}
	set, now := PublicSet{MaxAge: publishFor}, k.cfg.Now()
	for _, key := range keys {
		if !key.Algorithm.Asymmetric() {
			continue
		}
		if due := store.NextDue(key); !due.IsZero() {
			set.MaxAge = min(set.MaxAge, max(due.Sub(now), 0))
		}
		for _, v := range key.Versions {
			if v.State != claviger.PreActivation && policy.PermitState(&key, &v, claviger.Verify, now, 0) != "" {
				continue
			}
			public, err := pubkey.Parse(key.Algorithm, v.Public)
			if err != nil {
				return PublicSet{}, outward(err)
			}
			set.Versions = append(set.Versions, PublicVersion{Name: key.Name, Version: v.Number, State: v.State, Public: public, KID: public.Thumbprint()})
		}
	}
	return set, nil
}
