package keeper

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"claviger.dev"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/store"
)

// Place is where something stands outside custody.
type Place struct {
	Host string // "" when it is not known
	Path string // or what else names it
	Line uint32 // from 1; 0 when it has none
}

func (p Place) check() error {
	if p.Path == "" {
		return claviger.Errorf(claviger.Invalid, "the place has no path", "name the file, or what else holds the copy")
	}
	if err := checkText("host", p.Host); err != nil {
		return err
	}
	return checkText("path", p.Path)
}

// String is the place as a person writes it.
func (p Place) String() string {
	s := p.Path
	if p.Line > 0 {
		s += ":" + strconv.Itoa(int(p.Line))
	}
	if p.Host != "" {
		s += " on " + p.Host
	}
	return s
}

// putCopy records in a change that a version's material stands somewhere.
func (k *Keeper) putCopy(tx *store.Tx, e *effect, version uint32, at Place, by string, run claviger.ID) error {
	e.detail("where", clipText(at.String()))
	return tx.PutCopy(store.Copy{
		Key: e.key.ID, Version: version, Host: at.Host, Path: at.Path, Line: at.Line, Seen: k.cfg.Now(), By: by, Run: run,
	})
}

// CloseCopy records that a copy of a version is gone. The version stays
// exposed: whoever had it may have kept it.
func (k *Keeper) CloseCopy(ctx context.Context, by claviger.Principal, ref string, version uint32, at Place) (KeyView, error) {
	if err := at.check(); err != nil {
		return KeyView{}, err
	}
	c := change{op: claviger.ManageKey, action: "evidence.copy-gone", key: ref, apply: func(tx *store.Tx, e *effect) error {
		gone, err := tx.CloseCopy(e.key.ID, version, at.Host, at.Path, k.cfg.Now())
		e.record.Version = version
		if v := e.key.Version(version); v != nil {
			e.record.Fingerprint = v.Fingerprint
		}
		e.detail("where", clipText(Place{gone.Host, gone.Path, gone.Line}.String()))
		return err
	}}
	if err := k.change(ctx, by, c); err != nil {
		return KeyView{}, err
	}
	return k.view(ctx, ref)
}

// sameSecret looks who has a framework's secret that is being adopted, by its
// fingerprint, which the key process makes with a key of its own. It returns
// the version of the key itself that has it, so that nothing is to be made; 0
// when nobody has. One secret in two keys would answer the recipes of both, and
// would be rotated in one and stay good in the other: it is refused, and the
// other key is named to who may see it. A version that is destroyed counts for
// its own key alone, which does not take back what was destroyed.
func (k *Keeper) sameSecret(tx *store.Tx, e *effect, by *claviger.Principal, f claviger.Fingerprint) (uint32, error) {
	if e.key.Algorithm != claviger.MachineKey {
		return 0, nil
	}
	holders, err := tx.HoldersOf(f)
	if err != nil {
		return 0, err
	}
	for _, h := range holders {
		if h.Key == e.key.ID {
			return h.Version, hasAlready(e, h)
		}
		if h.State == claviger.Destroyed {
			continue
		}
		other, err := tx.Key(string(h.Key))
		if err != nil {
			return 0, err
		}
		if recipe.Set(other.Recipe).Shares(recipe.Set(e.key.Recipe)) {
			continue
		}
		principal, err := loadPrincipal(tx, string(by.ID))
		if err != nil {
			return 0, err
		}
		which := "another key"
		c := change{op: claviger.ReadKey, key: string(other.Name)}
		if other.Name.Environment() != policy.SystemEnvironment && k.decideChange(snapshot{principal: principal, key: &keyState{key: &other}}, by, c).Allowed {
			which = fmt.Sprintf("the key %s, as version %d", other.Name, h.Version)
		}
		return 0, claviger.Errorf(claviger.Conflict, "this secret is in custody already: in "+which,
			"use that key; another application gets a secret of its own, by 'claviger key create'")
	}
	return 0, nil
}

// hasAlready answers for a version of the same key that has the secret.
func hasAlready(e *effect, h store.Holder) error {
	e.record.Version = h.Version
	e.detail("same", "the key has this secret already")
	state, hint := string(h.State), "it does not come back this way; 'claviger key rotate' makes a new version"
	if v := e.key.Version(h.Version); v != nil && !v.Retired.IsZero() {
		state = "retired since " + v.Retired.UTC().Format(time.DateOnly)
		hint = "its tokens are refused for good, and a retired version does not come back: remove the secret where it stands; 'claviger key rotate' makes a new version"
	} else if h.State == claviger.Active || h.State == claviger.Deactivated || h.State == claviger.PreActivation {
		return nil
	}
	return claviger.Errorf(claviger.Conflict, fmt.Sprintf("the key has this secret already: version %d, which is %s", h.Version, state), hint)
}
