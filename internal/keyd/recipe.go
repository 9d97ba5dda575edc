package keyd

import (
	"container/list"
	"crypto/rand"
	"sync"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/hazmat"
	"claviger.dev/internal/recipe"
)

// maxDerived is how many derived keys a slot keeps. Their parameters come from
// callers, so that more would let one caller fill the arena.
const maxDerived = 64

var errRecipe = claviger.Errorf(claviger.Denied, "the key's recipe set does not have this recipe", "ask for a recipe of the set that the key was adopted for")

// recipe runs a recipe of the slot's set on each item.
func (p *Process) recipe(req *frames.RecipeRequest) (*frames.RecipeResponse, error) {
	v, err := p.slots.get(req.Use)
	if err != nil {
		return nil, err
	}
	if v.binding.Algorithm != claviger.MachineKey || !recipe.Set(v.binding.Recipe).Admits(req.Recipe) {
		return nil, errRecipe
	}
	resp := &frames.RecipeResponse{Fingerprint: v.fingerprint, Results: make([]recipe.Result, len(req.Items))}
	for i, item := range req.Items { // outside Do, so that results are not erased
		if n := len(item.Data); req.Make {
			resp.Results[i].Output = make([]byte, 0, n+recipe.Overhead)
		} else if !req.Recipe.Tags() {
			resp.Results[i].Output = make([]byte, 0, n)
		}
	}
	err = p.withRecipeKey(v, req.Recipe, func(key []byte) error {
		for i, item := range req.Items {
			resp.Results[i] = runOne(req, key, resp.Results[i].Output, item)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func runOne(req *frames.RecipeRequest, key, dst []byte, item recipe.Item) recipe.Result {
	var out []byte
	var ok bool
	if req.Make {
		out, ok = req.Recipe.Make(dst, key, rand.Reader, item)
	} else {
		out, ok = req.Recipe.Check(dst, key, item)
	}
	if !ok || len(out) == 0 {
		return recipe.Result{OK: ok}
	}
	return recipe.Result{OK: true, Output: out}
}

// withRecipeKey calls f, inside Do, with the keys that the recipe works with.
func (p *Process) withRecipeKey(v *slot, r recipe.Recipe, f func(key []byte) error) error {
	if !r.Derives() {
		return v.secret.Use(hazmat.Token{}, f)
	}
	kept, ok := v.derived.get(r)
	if !ok {
		var err error
		if kept, err = p.derive(v, r); err != nil {
			return err
		}
	}
	return kept.Use(hazmat.Token{}, f)
}

// derive puts the keys of a recipe into the arena and into the slot. The arena
// may give up slots for them, so the master is not in use meanwhile.
func (p *Process) derive(v *slot, r recipe.Recipe) (kept hazmat.Secret, err error) {
	hazmat.Do(func() {
		var key []byte
		err = v.secret.Use(hazmat.Token{}, func(master []byte) (err error) { key, err = r.Key(master); return err })
		if err == nil {
			kept, err = p.keep(key)
		}
		clear(key)
	})
	if err != nil {
		return kept, err
	}
	return v.derived.add(r, kept), nil
}

// derived are the keys that were derived from a slot's material, the least
// recently used given up for the next. Its zero value is empty.
type derived struct {
	mu     sync.Mutex
	keys   map[recipe.Recipe]*list.Element
	recent list.List // of derivedKey, most recent first
	closed bool
}

type derivedKey struct {
	recipe recipe.Recipe
	secret hazmat.Secret
}

func (d *derived) get(r recipe.Recipe) (hazmat.Secret, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.keys[r]
	if e == nil {
		return hazmat.Secret{}, false
	}
	d.recent.MoveToFront(e)
	return e.Value.(derivedKey).secret, true
}

// add keeps a key and returns the one to use: another, where somebody was faster.
func (d *derived) add(r recipe.Recipe, s hazmat.Secret) hazmat.Secret {
	d.mu.Lock()
	given := s
	var old hazmat.Secret
	if e := d.keys[r]; e != nil {
		old, s = given, e.Value.(derivedKey).secret
	} else if d.closed { // the slot was given up: its user loads it again
		old = given
	} else {
		if d.keys == nil {
			d.keys = map[recipe.Recipe]*list.Element{}
		}
		if d.recent.Len() == maxDerived {
			oldest := d.recent.Remove(d.recent.Back()).(derivedKey)
			delete(d.keys, oldest.recipe)
			old = oldest.secret
		}
		d.keys[r] = d.recent.PushFront(derivedKey{r, given})
	}
	d.mu.Unlock()
	old.Release() // waits for uses under way, so not under mu
	return s
}

// close gives up every key, and those that come later.
func (d *derived) close() {
	d.mu.Lock()
	d.closed = true
	keys := d.keys
	d.keys = nil
	d.recent.Init()
	d.mu.Unlock()
	for _, e := range keys {
		e.Value.(derivedKey).secret.Release()
	}
}
