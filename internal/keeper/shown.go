package keeper

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"claviger.dev"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/store"
)

// outcome is what is recorded of versions in one transaction, with its record.
type outcome struct {
	action    string
	run       claviger.ID
	list      []Shown
	statement []byte // nil: none
	found     bool   // a copy was found: the owner is told even of a version that was exposed before
	exact     bool   // refuse when a version was exposed meanwhile that the list says is better
	detail    map[string]string
	copy      *store.Copy // of the copy that was found; nil for none
}

// stayExposed makes a list what may be recorded: what was exposed stays so.
func stayExposed(keys map[claviger.ID]*claviger.Key, list []Shown) {
	for i := range list {
		s := &list[i]
		v := keys[s.Key].Version(s.Version)
		if v.Origin == claviger.Imported || v.Level == claviger.Exposed {
			s.Level, s.Finding = claviger.Exposed, cmp.Or(v.Finding, s.Finding)
		}
	}
}

// keep records levels. Versions that are exposed from now on are suspended in
// the same transaction where their keys ask for it, and their owners are told.
// keys are those of the list; again runs first in the transaction.
func (k *Keeper) keep(ctx context.Context, by claviger.Principal, o outcome, keys map[claviger.ID]*claviger.Key, again func(*store.Tx, *effect) error) error {
	now := k.cfg.Now().UTC()
	rows := make([]store.Evidence, len(o.list))
	var fallen []Shown
	for i, s := range o.list {
		rows[i] = store.Evidence{Key: s.Key, Version: s.Version, Level: s.Level, Shown: now, Finding: s.Finding, Run: o.run}
		if s.Level == claviger.Exposed && (o.found || keys[s.Key].Version(s.Version).Level != claviger.Exposed) {
			fallen = append(fallen, s)
		}
	}
	var suspended map[Shown]bool
	c := change{action: o.action, apply: func(tx *store.Tx, e *effect) error {
		suspended = map[Shown]bool{}
		kept, err := tx.PutEvidence(rows)
		if err != nil {
			return err
		}
		if kept > 0 && o.exact {
			return claviger.Errorf(claviger.Conflict, "a version was exposed meanwhile", "submit the run again")
		}
		for _, s := range fallen {
			done, err := k.suspendExposed(tx, s)
			if err != nil {
				return err
			}
			suspended[s] = done
		}
		if o.copy != nil {
			if err := tx.PutCopy(*o.copy); err != nil {
				return err
			}
		}
		if o.statement != nil {
			if err := tx.InsertRun(store.Run{ID: o.run, At: now, Statement: o.statement}); err != nil {
				return err
			}
			dropped, err := tx.TrimRuns(maxStatements)
			if err != nil {
				return err
			}
			addDetail(e.record, "statements dropped", uint64(dropped))
		}
		for _, s := range o.list {
			e.touched = append(e.touched, s.Key)
		}
		o.describe(e, keys, fallen, suspended)
		return nil
	}}
	err := k.commit(ctx, by, c, nil, again)
	if err == nil || suspended != nil && claviger.CodeOf(err) == claviger.Unavailable {
		// What was found is so, even where its record has to wait.
		k.tell(o, keys, fallen, suspended)
	}
	return err
}

// describe says in the record what was kept.
func (o *outcome) describe(e *effect, keys map[claviger.ID]*claviger.Key, fallen []Shown, suspended map[Shown]bool) {
	e.detail("run", string(o.run))
	e.record.Count = len(o.list)
	for name, text := range o.detail {
		e.detail(name, text)
	}
	if len(o.list) == 1 {
		key := keys[o.list[0].Key]
		v := key.Version(o.list[0].Version)
		e.record.Key, e.record.KeyID, e.record.Algorithm = key.Name, key.ID, key.Algorithm
		e.record.Version, e.record.Fingerprint = v.Number, v.Fingerprint
		e.detail("level", string(o.list[0].Level))
		e.detail("finding", o.list[0].Finding)
	}
	for i, s := range fallen {
		addDetail(e.record, "exposed", 1)
		if suspended[s] {
			addDetail(e.record, "suspended", 1)
		}
		if i < 3 && len(o.list) > 1 { // the rest is in the listing
			e.detail("exposed-"+strconv.Itoa(i+1), clipText(nameOf(keys, s)+": "+s.Finding))
		}
	}
}

func nameOf(keys map[claviger.ID]*claviger.Key, s Shown) string {
	return fmt.Sprintf("%s#%d", keys[s.Key].Name, s.Version)
}

// suspendExposed suspends an active version whose key asks for it.
func (k *Keeper) suspendExposed(tx *store.Tx, s Shown) (bool, error) {
	key, err := tx.Key(string(s.Key))
	if err != nil {
		return false, err
	}
	v := key.Version(s.Version)
	if v == nil || v.State != claviger.Active || !key.Settings.SuspendExposed {
		return false, nil
	}
	if err := transition(&key, s.Version, claviger.Suspended, k.cfg.Now(), "", "exposed: "+s.Finding); err != nil {
		return false, err
	}
	return true, tx.UpdateKey(key)
}

// RecordEvidence records what a run showed and returns its signed statement.
// The caller must be allowed to manage every key of it. No level is higher than
// what the version's own custodian reports now.
func (k *Keeper) RecordEvidence(ctx context.Context, by claviger.Principal, req Recording) ([]byte, error) {
	if _, err := claviger.ParseID(string(req.Run)); err != nil {
		return nil, err
	}
	if len(req.Subjects) == 0 || len(req.Subjects) > MaxSubjects {
		return nil, claviger.Errorf(claviger.Invalid, "a run is of 1 to 100000 versions", "run evidence on fewer keys at once")
	}
	keys, err := k.keysOf(ctx, req.Subjects)
	if err != nil {
		return nil, err
	}
	if err := k.mayRecord(ctx, &by, keys, req.Subjects); err != nil {
		return nil, err
	}
	if err := allLive(keys, req.Subjects); err != nil {
		return nil, k.failed(ctx, k.newRecord(by, "evidence.record"), err)
	}
	list, envelope, err := k.judgeRun(ctx, req, keys)
	if err == nil {
		err = k.submitted.take(by.ID, len(envelope), k.cfg.Now())
	}
	if err != nil {
		return nil, k.failed(ctx, k.newRecord(by, "evidence.record"), outward(err))
	}
	o := outcome{action: "evidence.record", run: req.Run, list: list, statement: envelope, exact: true, detail: map[string]string{}}
	if n := len(req.Subjects) - len(list); n > 0 {
		o.detail["unexamined"] = strconv.Itoa(n)
	}
	if err := k.keepFor(ctx, by, o, keys); err != nil {
		return nil, err
	}
	return envelope, nil
}

// judgeRun returns what is recorded of a run, and the statement that says so.
func (k *Keeper) judgeRun(ctx context.Context, req Recording, keys map[claviger.ID]*claviger.Key) ([]Shown, []byte, error) {
	facts, err := k.facts(ctx, req.Subjects, keys)
	if err != nil {
		return nil, nil, err
	}
	signer, err := k.system.evidenceSigner(ctx)
	if err != nil {
		return nil, nil, err
	}
	list, envelope, err := req.Judge(facts, signer)
	if err != nil {
		return nil, nil, err
	}
	if len(envelope) == 0 || len(envelope) > MaxStatement {
		return nil, nil, claviger.Errorf(claviger.TooLarge, "the statement is larger than 64 MiB", "run evidence on fewer keys at once")
	}
	if len(list) != len(facts.Own) {
		return nil, nil, errJudge
	}
	for i, own := range facts.Own {
		s := list[i]
		unseen := s.Level == claviger.Lapsed && own.Level != claviger.Exposed
		if s.Key != own.Key || s.Version != own.Version || !unseen && worse(s.Level, own.Level) != s.Level {
			return nil, nil, errJudge
		}
		list[i].Finding = clipText(list[i].Finding)
	}
	// Of what could not be examined nothing is recorded: its level lapses in time.
	return slices.DeleteFunc(list, func(s Shown) bool { return s.Level == claviger.Lapsed }), envelope, nil
}

var errJudge = claviger.Errorf(claviger.Internal, "a run was judged better than its custodians report", "report this with the request id")

// facts asks the custodians what they report of a run's subjects now.
func (k *Keeper) facts(ctx context.Context, subjects []Subject, keys map[claviger.ID]*claviger.Key) (Facts, error) {
	o := k.newObservers()
	f := Facts{Keys: keys, Own: make([]Shown, len(subjects)), Custodians: k.custodians(ctx)}
	for i, s := range subjects {
		var err error
		if f.Own[i], err = o.observe(ctx, keys[s.Key], keys[s.Key].Version(s.Version)); err != nil {
			if ctx.Err() != nil {
				return Facts{}, err
			}
			f.Own[i] = Shown{Key: s.Key, Version: s.Version, Level: claviger.Lapsed, Finding: clipText("it could not be examined: " + safeText(outward(err)))}
		}
	}
	for i, r := range f.Custodians {
		if seen := o.devices[r.Kind]; seen != nil {
			f.Custodians[i].TPM = seen.TPM
		}
	}
	stayExposed(keys, f.Own)
	return f, nil
}

// keepFor records levels for a caller, who is decided about again in the
// transaction.
func (k *Keeper) keepFor(ctx context.Context, by claviger.Principal, o outcome, keys map[claviger.ID]*claviger.Key) error {
	err := k.keep(ctx, by, o, keys, func(tx *store.Tx, _ *effect) error {
		principal, err := loadPrincipal(tx, string(by.ID))
		if err != nil {
			return err
		}
		if d := k.decideAll(principal, &by, keys); !d.Allowed {
			return refusal(d)
		}
		return nil
	})
	if err == nil || claviger.CodeOf(err) == claviger.Unavailable {
		return outward(err)
	}
	return k.failed(ctx, k.newRecord(by, o.action), outward(err))
}

// keysOf reads those keys of versions that are there.
func (k *Keeper) keysOf(ctx context.Context, list []Subject) (map[claviger.ID]*claviger.Key, error) {
	seen := map[Subject]bool{}
	var ids []claviger.ID
	for _, s := range list {
		if seen[s] {
			return nil, claviger.Errorf(claviger.Invalid, "a version is named twice", "name each version once")
		}
		seen[s] = true
		ids = append(ids, s.Key)
	}
	slices.Sort(ids)
	var found []claviger.Key
	err := k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		found, err = tx.KeysOf(slices.Compact(ids)...)
		return err
	})
	if err != nil {
		return nil, outward(err)
	}
	keys := make(map[claviger.ID]*claviger.Key, len(found))
	for i := range found {
		keys[found[i].ID] = &found[i]
	}
	return keys, nil
}

// allLive refuses versions that are not there or destroyed.
func allLive(keys map[claviger.ID]*claviger.Key, list []Subject) error {
	for _, s := range list {
		if keys[s.Key] == nil {
			return claviger.Errorf(claviger.NotFound, "the run names a key that is not there", "run evidence again")
		}
		if _, err := liveVersion(keys[s.Key], s.Version); err != nil {
			return err
		}
	}
	return nil
}

// mayRecord lets a caller record evidence of keys, or records the refusal. That
// there is no such key is for who manages the server alone.
func (k *Keeper) mayRecord(ctx context.Context, by *claviger.Principal, keys map[claviger.ID]*claviger.Key, list []Subject) error {
	s, err := k.snapshot(ctx, string(by.ID), "")
	if err != nil {
		return outward(err)
	}
	d := k.decideAll(s.principal, by, keys)
	if slices.ContainsFunc(list, func(s Subject) bool { return keys[s.Key] == nil }) {
		d = k.decideChange(s, by, change{op: claviger.ManageServer})
	}
	if !d.Allowed {
		return k.deny(ctx, k.newRecord(*by, "evidence.record"), d)
	}
	return nil
}

// decideAll asks policy whether a caller manages every one of the keys. The
// system's keys are managed by who manages the server.
func (k *Keeper) decideAll(p *principalState, by *claviger.Principal, keys map[claviger.ID]*claviger.Key) policy.Decision {
	d := policy.Decision{Code: claviger.Denied, Reason: policy.ReasonNoGrant}
	for _, key := range keys {
		s, c := snapshot{principal: p, key: &keyState{key: key}}, change{op: claviger.ManageKey, key: string(key.Name)}
		if key.Name.Environment() == policy.SystemEnvironment {
			c = change{op: claviger.ManageServer}
		}
		if d = k.decideChange(s, by, c); !d.Allowed {
			return d
		}
	}
	return d
}

// ReportCopy records that a version was found outside custody, and where: it
// is exposed from now on. 0 is the active version, or the only one.
func (k *Keeper) ReportCopy(ctx context.Context, by claviger.Principal, ref string, version uint32, where string, at Place, run string) (KeyView, error) {
	if at == (Place{}) {
		at.Path = where
	} else if where == "" {
		where = clipText(at.String())
	}
	if err := checkText("place", where); err != nil {
		return KeyView{}, err
	}
	if where == "" {
		return KeyView{}, claviger.Errorf(claviger.Invalid, "the report does not say where the copy is", "name the place, such as a path and an offset")
	}
	if err := at.check(); err != nil {
		return KeyView{}, err
	}
	if run != "" {
		if _, err := claviger.ParseID(run); err != nil {
			return KeyView{}, err
		}
	}
	c := change{op: claviger.ManageKey, action: "evidence.copy", key: ref}
	if name, err := claviger.ParseName(ref); err == nil && name.Environment() == policy.SystemEnvironment {
		c = change{op: claviger.ManageServer, action: "evidence.copy"} // who manages the server answers for the system's keys
	}
	cached, err := k.permitChange(ctx, &by, c)
	if err != nil {
		return KeyView{}, err
	}
	var key claviger.Key
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		key, err = tx.Key(ref)
		return err
	})
	if err == nil {
		if version == 0 {
			version = chosen(&key)
		}
		_, err = liveVersion(&key, version)
	}
	if err != nil {
		return KeyView{}, k.failed(ctx, k.changeRecord(by, c, cached), outward(err))
	}
	detail := map[string]string{"where": where}
	if place := clipText(at.String()); place != where {
		detail["place"] = place
	}
	o := outcome{action: c.action, run: claviger.ID(run), found: true, detail: detail, list: []Shown{
		{Key: key.ID, Version: version, Level: claviger.Exposed, Finding: clipText("a copy was found: " + where)},
	}, copy: &store.Copy{Key: key.ID, Version: version, Host: at.Host, Path: at.Path, Line: at.Line, Seen: k.cfg.Now(), By: by.Name, Run: claviger.ID(run)}}
	if err := k.keepFor(ctx, by, o, map[claviger.ID]*claviger.Key{key.ID: &key}); err != nil {
		return KeyView{}, err
	}
	return k.view(ctx, ref)
}
