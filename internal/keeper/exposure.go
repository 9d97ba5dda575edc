package keeper

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
	"claviger.dev/internal/store"
)

// ExposeRequest answers an exposure of one version.
type ExposeRequest struct {
	Key     string
	Version uint32    // 0: the active one, or the only one
	Since   time.Time // from when on somebody else may have made tokens
	Grace   *time.Duration
	Graces  map[string]time.Duration // by format; and, as "purpose:NAME", at most, by purpose
	Reason  string
	DryRun  bool // change nothing
}

// Exposed is what an exposure comes to.
type Exposed struct {
	Key         KeyView
	Version     uint32
	Replacement uint32 // 0: none was made
	Formats     []FormatGrace
	Protected   []store.Sighting // what was done with the version, as far as it was seen
	Names       map[claviger.ID]string
	Warnings    []string
}

// FormatGrace says what still passes of one format.
type FormatGrace struct {
	Format state.Format
	Until  time.Time // zero: nothing does
}

const (
	usualGrace    = 24 * time.Hour // of formats that carry a time, where neither the key nor the caller says otherwise
	purposePrefix = "purpose:"
)

// Expose answers an exposure: the version is compromised and its level exposed
// for good, a new version made where it was the active one, and what still
// passes is decided by format. The owner is told.
func (k *Keeper) Expose(ctx context.Context, by claviger.Principal, req ExposeRequest) (Exposed, error) {
	if err := req.check(k.cfg.Now()); err != nil {
		return Exposed{}, err
	}
	out, fallen := Exposed{}, Shown{}
	var made custody.Made
	var number uint32
	c := change{op: claviger.ManageKey, action: "key.exposed", key: req.Key, reason: req.Reason}
	if req.DryRun {
		return k.wouldExpose(ctx, by, c, req)
	}
	c.prepare = func(ctx context.Context, key claviger.Key) (err error) {
		k.tryWriteSeen(ctx)
		if !replaces(&key, req.Version) {
			return nil
		}
		number = nextNumber(key)
		made, err = k.make(ctx, &key, number, "")
		return err
	}
	var key claviger.Key
	c.apply = func(tx *store.Tx, e *effect) (err error) {
		if number > 0 != replaces(&e.key, req.Version) {
			return claviger.Errorf(claviger.Conflict, "the key changed meanwhile", "try again")
		}
		if number > 0 {
			version := newVersion(number, claviger.Generated, made, k.cfg.Now().UTC())
			if err := k.adoptVersion(tx, e, version, made, by.ID, "the version before was exposed", 0); err != nil {
				return err
			}
			delete(e.record.Detail, "grace") // that of a rotation; here each format has its own
			old := chosenFor(&e.key, req.Version)
			if e.key, err = tx.Key(string(e.key.ID)); err != nil {
				return err
			}
			e.detail("replacement", fmt.Sprint(number))
			out, err = k.expose(tx, e, req, old, by.ID)
		} else {
			out, err = k.expose(tx, e, req, chosenFor(&e.key, req.Version), by.ID)
		}
		out.Replacement, key = number, e.key
		fallen = Shown{Key: e.key.ID, Version: out.Version, Level: claviger.Exposed, Finding: clipText("exposed: " + req.Reason)}
		return err
	}
	err := k.change(ctx, by, c)
	if out.Version != 0 && (err == nil || claviger.CodeOf(err) == claviger.Unavailable) {
		// It is so, even where its record has to wait.
		k.tell(outcome{}, map[claviger.ID]*claviger.Key{key.ID: &key}, []Shown{fallen}, nil)
	}
	if err != nil {
		return Exposed{}, err
	}
	out.Key, err = k.view(ctx, req.Key)
	return out, err
}

// tryWriteSeen brings the list of what was protected up to date; an exposure is
// answered without that too.
func (k *Keeper) tryWriteSeen(ctx context.Context) {
	if err := k.counts.flush(ctx); err != nil {
		k.cfg.Log.Warn("the list of what was protected may lack the last second", "error", err)
	}
}

// wouldExpose says what an exposure would come to.
func (k *Keeper) wouldExpose(ctx context.Context, by claviger.Principal, c change, req ExposeRequest) (out Exposed, err error) {
	if err := k.read(ctx, &by, c); err != nil {
		return out, err
	}
	k.tryWriteSeen(ctx)
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		key, err := tx.Key(req.Key)
		if err != nil {
			return err
		}
		if out, _, err = k.exposure(tx, &key, req, chosenFor(&key, req.Version)); err == nil && replaces(&key, req.Version) {
			out.Replacement = nextNumber(key)
		}
		return err
	})
	if err != nil {
		return Exposed{}, outward(err)
	}
	out.Key, err = k.view(ctx, req.Key)
	return out, err
}

func (req *ExposeRequest) check(now time.Time) error {
	if err := checkText("reason", req.Reason); err != nil {
		return err
	}
	if req.Since.IsZero() || req.Since.After(now) {
		return claviger.Errorf(claviger.Invalid, "the exposure does not say since when", "give the earliest time at which somebody else may have had the key, not one to come")
	}
	all := slices.Collect(maps.Values(req.Graces))
	if req.Grace != nil {
		all = append(all, *req.Grace)
	}
	if len(req.Graces) > claviger.MaxLabels || slices.ContainsFunc(all, func(d time.Duration) bool { return d < 0 || d > keepIssuedFor }) {
		return claviger.Errorf(claviger.Invalid, "a grace is negative or longer than 400 days, or there are more than 32", "use one such as 24h, or 0 for none")
	}
	return nil
}

func chosenFor(key *claviger.Key, version uint32) uint32 {
	if version == 0 {
		return chosen(key)
	}
	return version
}

// replaces reports whether a new version must be made: the exposed one is
// active, and the custodian can make one.
func replaces(key *claviger.Key, version uint32) bool {
	active := key.ActiveVersion()
	return active != nil && active.Number == chosenFor(key, version) && recipe.Set(key.Recipe) != recipe.ASPNETLegacy // imported only
}

// expose writes that a version is exposed. e.key is as it stands after a
// rotation.
func (k *Keeper) expose(tx *store.Tx, e *effect, req ExposeRequest, version uint32, by claviger.ID) (Exposed, error) {
	out, exposure, err := k.exposure(tx, &e.key, req, version)
	if err != nil {
		return out, err
	}
	key, now := cloneKey(e.key), k.cfg.Now()
	reason := "exposed"
	if req.Reason != "" {
		reason = clipText("exposed: " + req.Reason)
	}
	if err := transition(&key, version, claviger.Compromised, now, by, reason); err != nil {
		return out, err
	}
	v := key.Version(version)
	v.Retires, v.Exposure = time.Time{}, exposure
	e.record.Version, e.record.Fingerprint = version, v.Fingerprint
	e.detail("since", req.Since.UTC().Format(time.RFC3339))
	for _, f := range out.Formats {
		if !f.Until.IsZero() {
			addDetail(e.record, "formats-in-grace", 1)
		}
	}
	if exposure != nil && exposure.Recorded {
		e.detail("only", "recorded tokens")
	}
	if err := tx.UpdateKey(key); err != nil {
		return out, err
	}
	_, err = tx.PutEvidence([]store.Evidence{{Key: key.ID, Version: version, Level: claviger.Exposed, Shown: now.UTC(), Finding: clipText(reason)}})
	return out, err
}

// exposure decides what still passes of a version, and lists what it protected.
func (k *Keeper) exposure(tx *store.Tx, key *claviger.Key, req ExposeRequest, version uint32) (out Exposed, x *claviger.Exposure, err error) {
	v := key.Version(version)
	if v == nil {
		return out, nil, claviger.Errorf(claviger.NotFound, "the key has no such version", "look at its versions with 'claviger key show'")
	}
	out.Version = version
	list, err := tx.SightingsOf(key.ID)
	if err != nil {
		return out, nil, err
	}
	out.Protected = slices.DeleteFunc(list, func(s store.Sighting) bool { return s.Version != version })
	if out.Names, err = namesIn(tx, out.Protected); err != nil {
		return out, nil, err
	}
	if x, err = req.decide(key, k.cfg.Now().UTC()); err != nil {
		return out, nil, err
	}
	if x != nil {
		why := silenced(key, v)
		if why != "" && len(x.Formats) > 0 {
			x.Formats, x.Untimed = nil, nil
			out.Warnings = append(out.Warnings, "nothing by the version passes: "+why)
		}
		for _, f := range formatsOf(key) {
			out.Formats = append(out.Formats, FormatGrace{Format: f, Until: x.Formats[string(f)]})
		}
	}
	out.Warnings = append(out.Warnings, warnings(key, out, x)...)
	return out, x, nil
}

// silenced says why an exposure leaves a version no grace, "" where it may: what
// processed nothing before is not brought back, and what the key's least level
// would refuse is not promised.
func silenced(key *claviger.Key, v *claviger.Version) string {
	switch {
	case !v.Retired.IsZero():
		return "it was retired"
	case v.State == claviger.PreActivation:
		return "it was never active"
	case key.Settings.MinLevel != "" && !claviger.Exposed.AtLeast(key.Settings.MinLevel):
		return "the key's least level is " + string(key.Settings.MinLevel)
	}
	return ""
}

// formatsOf returns the formats of a machine key; none for others.
func formatsOf(key *claviger.Key) []state.Format {
	return slices.DeleteFunc(state.Formats(), func(f state.Format) bool { return hasFormat(key, f) != nil })
}

// decide returns until when tokens of each format pass: nil for a key that is
// no machine key.
func (req *ExposeRequest) decide(key *claviger.Key, now time.Time) (*claviger.Exposure, error) {
	formats := formatsOf(key)
	if len(formats) == 0 {
		if req.Grace != nil || len(req.Graces) > 0 {
			return nil, claviger.Errorf(claviger.Invalid, "only tokens of machine keys have a grace", "leave it out; the key's setting process_exposed says whether it still verifies and opens")
		}
		return nil, nil
	}
	x := &claviger.Exposure{At: now, Since: req.Since.UTC(), Recorded: key.Settings.RecordTokens, Formats: map[string]time.Time{}}
	for name, grace := range req.Graces {
		if err := checkText("name of a grace", name); err != nil {
			return nil, err
		}
		if purpose, ok := strings.CutPrefix(name, purposePrefix); ok {
			if x.Purposes == nil {
				x.Purposes = map[string]time.Time{}
			}
			x.Purposes[purpose] = now.Add(grace)
		} else if !slices.Contains(formats, state.Format(name)) {
			return nil, claviger.Errorf(claviger.Invalid, "a grace is for a format that the key does not have", "list the formats with 'claviger state formats', or use purpose:NAME")
		}
	}
	for _, f := range formats {
		grace, err := req.graceOf(key, f, x.Recorded)
		if err != nil {
			return nil, err
		}
		if grace > 0 {
			x.Formats[string(f)] = now.Add(grace)
			if !f.Timed() {
				x.Untimed = append(x.Untimed, string(f))
			}
		}
	}
	return x, nil
}

// graceOf returns how long tokens of a format pass. Where a forged token runs
// code there is none, unless the record tells the door's own tokens apart.
func (req *ExposeRequest) graceOf(key *claviger.Key, f state.Format, recorded bool) (time.Duration, error) {
	grace, named := req.Graces[string(f)]
	if f.Deserialises() == state.Always && !recorded {
		if named && grace > 0 {
			return 0, claviger.Errorf(claviger.Invalid, "tokens of "+string(f)+" have no grace: who forges one runs code in the application", "leave it out")
		}
		return 0, nil
	}
	usual := time.Duration(key.Settings.Grace)
	if usual == 0 {
		usual = usualGrace
	}
	switch {
	case named:
		return grace, nil
	case f.Deserialises() == state.Maybe && !recorded:
		return 0, nil
	case req.Grace != nil:
		return *req.Grace, nil
	case f.Timed() || recorded:
		return usual, nil
	}
	return 0, nil
}

// warnings say what an answer does not cover.
func warnings(key *claviger.Key, out Exposed, x *claviger.Exposure) (list []string) {
	if x != nil && !x.Until().IsZero() && !x.Recorded {
		list = append(list, "whoever has the old version can date a token back: one issued before the given time may be forged. The key's setting record_tokens closes this for tokens that are made from then on")
	}
	for _, f := range out.Formats {
		if f.Until.IsZero() || x.Recorded {
			continue
		}
		if !f.Format.Timed() {
			list = append(list, string(f.Format)+" carries no time: until the end of its grace every token by the old version passes, whoever made it")
		}
		if f.Format.Deserialises() == state.Maybe {
			list = append(list, string(f.Format)+" may make objects of what is in a token: whoever forges one may run code until the end of its grace")
		}
	}
	if key.ActiveVersion() != nil && key.ActiveVersion().Number == out.Version && !replaces(key, out.Version) {
		list = append(list, "no new version can be made here: import one, the key makes nothing until then")
	}
	for _, s := range out.Protected {
		if s.What == string(claviger.Seal) && s.Made > 0 {
			list = append(list, "what was sealed with the version is readable for whoever has it: seal it anew, and take its content as known")
			break
		}
	}
	return list
}
