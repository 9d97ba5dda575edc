package keeper

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/store"
)

const (
	// seenWithin is how long after its last use of an old version a caller, or
	// a server, has to be seen with the active one.
	seenWithin = 24 * time.Hour
	// graceAgain is how much later the end of a grace is tried again.
	graceAgain = time.Hour
	// namedUnconfirmed is how many are named in an error or a record.
	namedUnconfirmed = 3
)

// setGrace says when a version that was just replaced is retired.
func setGrace(key *claviger.Key, old *claviger.Version, grace time.Duration, now time.Time, e *effect) error {
	own := time.Duration(key.Settings.Grace)
	if grace == 0 {
		grace = own
	}
	if own > 0 && grace > own {
		return claviger.Errorf(claviger.Invalid, "the grace is longer than the key's settings allow", "use at most "+own.String())
	}
	if grace > 0 {
		old.Retires = now.Add(grace).UTC()
		e.detail("grace", grace.String())
	}
	return nil
}

// unconfirmed names those who were seen with a version within a day and not
// with the active one: servers as "node N", and callers as a principal at a host,
// which is the server itself for one on its local socket.
func unconfirmed(list []store.Sighting, version, active uint32, now time.Time, nameOf func(claviger.ID) string) []string {
	var old, newer []string
	whole := len(list) < store.MaxSightings
	for _, s := range list {
		whole = whole || now.Sub(s.Last) >= seenWithin // the list has the last ones
		var to *[]string
		switch {
		case s.Version == active:
			to = &newer
		case s.Version == version && now.Sub(s.Last) < seenWithin:
			to = &old
		default:
			continue
		}
		*to = append(*to, "node "+s.Node)
		if s.Host == store.OtherHosts && s.Version == active {
			continue // one of them confirms no other
		}
		host := s.Host
		if host == "" {
			host = "node " + s.Node
		}
		*to = append(*to, fmt.Sprintf("%s at %s", nameOf(s.Principal), host))
	}
	slices.Sort(old)
	old = slices.DeleteFunc(slices.Compact(old), func(who string) bool { return slices.Contains(newer, who) })
	if !whole {
		old = append(old, "whoever is not among the last "+strconv.Itoa(store.MaxSightings)+" sightings")
	}
	return old
}

// unconfirmedIn is unconfirmed as a transaction reads it.
func unconfirmedIn(tx *store.Tx, key *claviger.Key, version uint32, now time.Time) ([]string, error) {
	list, err := tx.SightingsOf(key.ID)
	if err != nil {
		return nil, err
	}
	active := key.ActiveVersion()
	if active == nil || active.Number == version {
		return nil, nil // there is nothing to confirm
	}
	names, err := namesIn(tx, list)
	return unconfirmed(list, version, active.Number, now, func(id claviger.ID) string { return names[id] }), err
}

// namesIn reads the names of the principals of sightings.
func namesIn(tx *store.Tx, list []store.Sighting) (map[claviger.ID]string, error) {
	names := map[claviger.ID]string{}
	for _, s := range list {
		if _, ok := names[s.Principal]; ok {
			continue
		}
		p, err := tx.Principal(string(s.Principal))
		if err != nil {
			return nil, err
		}
		names[s.Principal] = p.Name
	}
	return names, nil
}

func someOf(list []string) string {
	text := strings.Join(list[:min(len(list), namedUnconfirmed)], ", ")
	if more := len(list) - namedUnconfirmed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// confirmed refuses to end a version that a newer one has replaced while
// somebody was not seen with the active one, or records that it was forced.
func (k *Keeper) confirmed(tx *store.Tx, e *effect, version uint32, to claviger.State, force bool) error {
	if version == 0 {
		version = chosen(&e.key)
	}
	active, v := e.key.ActiveVersion(), e.key.Version(version)
	if to != claviger.Deactivated && to != claviger.Destroyed || active == nil || v == nil || active == v || !v.Retired.IsZero() {
		return nil
	}
	return k.whoIsLeft(tx, e, version, force)
}

func (k *Keeper) whoIsLeft(tx *store.Tx, e *effect, version uint32, force bool) error {
	left, err := unconfirmedIn(tx, &e.key, version, k.cfg.Now())
	if err != nil || len(left) == 0 {
		return err
	}
	if !force {
		return claviger.Errorf(claviger.Conflict, "the version is still used by who was not seen with the active one: "+someOf(left),
			"look with 'claviger state watch'; --force ends it all the same, and is recorded")
	}
	e.detail("forced", "yes")
	e.detail("unconfirmed", clipText(someOf(left)))
	return nil
}

// Retire ends the grace of a version that was replaced: it processes nothing
// more. It is refused while somebody was not seen with the active version, unless
// it is forced.
func (k *Keeper) Retire(ctx context.Context, by claviger.Principal, ref string, version uint32, reason string, force bool) (KeyView, error) {
	if err := checkText("reason", reason); err != nil {
		return KeyView{}, err
	}
	c := change{op: claviger.ManageKey, action: "key.retire", key: ref, reason: reason, prepare: k.writeSeen, apply: func(tx *store.Tx, e *effect) error {
		if err := mayRetire(&e.key, version); err != nil {
			return err
		}
		if err := k.whoIsLeft(tx, e, version, force); err != nil {
			return err
		}
		return k.retire(tx, e, version)
	}}
	if err := k.change(ctx, by, c); err != nil {
		return KeyView{}, err
	}
	return k.view(ctx, ref)
}

// writeSeen prepares the end of a version: what this server has seen counts,
// written or not.
func (k *Keeper) writeSeen(ctx context.Context, _ claviger.Key) error { return k.counts.flush(ctx) }

func mayRetire(key *claviger.Key, version uint32) error {
	v := key.Version(version)
	switch {
	case v == nil:
		return claviger.Errorf(claviger.NotFound, "the key has no such version", "look at its versions with 'claviger key show'")
	case !v.Retired.IsZero():
		return claviger.Errorf(claviger.Conflict, "the version is retired already", "nothing is left to do")
	case v.State != claviger.Deactivated:
		return claviger.Errorf(claviger.Invalid, "a version that is "+string(v.State)+" cannot be retired", "rotate the key first: what a newer version has replaced is retired")
	}
	return nil
}

// retire writes that a version processes nothing more.
func (k *Keeper) retire(tx *store.Tx, e *effect, version uint32) error {
	key := cloneKey(e.key)
	v := key.Version(version)
	v.Retired = k.cfg.Now().UTC()
	e.record.Version, e.record.Fingerprint = version, v.Fingerprint
	return tx.UpdateKey(key)
}

// endOfGrace retires a version, or puts that off where its key asks for the
// drain to be at zero or where somebody was not seen with the active version.
func (k *Keeper) endOfGrace(ref string, version uint32) change {
	return change{action: "key.retire", key: ref, reason: "end of the grace", apply: func(tx *store.Tx, e *effect) error {
		now := k.cfg.Now()
		v := e.key.Version(version)
		if !store.Retiring(v) || now.Before(v.Retires) {
			return claviger.Errorf(claviger.Conflict, "the version was retired meanwhile", "nothing is left to do")
		}
		list, err := tx.SightingsOf(e.key.ID)
		if err != nil {
			return err
		}
		left, err := unconfirmedIn(tx, &e.key, version, now)
		if err != nil {
			return err
		}
		drained := !e.key.Settings.GraceDrained || !slices.ContainsFunc(list, func(s store.Sighting) bool {
			return s.Version == version && s.Checked > 0 && now.Sub(s.Last) < seenWithin
		})
		if drained && len(left) == 0 {
			return k.retire(tx, e, version)
		}
		key := cloneKey(e.key)
		key.Version(version).Retires = now.Add(graceAgain).UTC()
		e.record.Action, e.record.Version, e.record.Fingerprint = "key.retire-later", version, v.Fingerprint
		if !drained {
			e.detail("drain", "tokens of it were checked within a day")
		}
		if len(left) > 0 {
			e.detail("unconfirmed", clipText(someOf(left)))
		}
		return tx.UpdateKey(key)
	}}
}
