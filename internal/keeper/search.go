package keeper

import (
	"context"
	"sync"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/store"
)

// Limits of a search.
const (
	maxHaystack  = 1 << 20 // bytes
	searchAtOnce = 1000    // versions of one request to the key process
	searchBytes  = 2 << 20 // of their blobs
)

// sought are the versions that were last searched for. A search comes with
// many others for the same ones, a haystack each.
type sought struct {
	mu       sync.Mutex // guards what follows
	revision uint64
	asked    Search
	list     []target
}

// target is one version that is searched for.
type target struct {
	name     claviger.Name
	material custody.Material
}

// SearchMaterial looks for keys of the key process in a haystack, and returns
// where they are and how many versions were looked for. Records of searches
// that follow each other are gathered.
func (k *Keeper) SearchMaterial(ctx context.Context, by claviger.Principal, req Search) ([]Found, int, error) {
	if len(req.Haystack) == 0 || len(req.Haystack) > maxHaystack {
		return nil, 0, claviger.Errorf(claviger.TooLarge, "a haystack has 1 byte to 1 MiB", "search in pieces that overlap")
	}
	if req.Selector != "" {
		if _, err := claviger.ParseSelector(req.Selector); err != nil {
			return nil, 0, err
		}
	}
	c := change{op: claviger.ManageServer, action: "evidence.search"}
	if _, err := k.permitChange(ctx, &by, c); err != nil {
		return nil, 0, err
	}
	r := k.newRecord(by, c.action)
	r.Digest = digestOf(req.Haystack)
	addDetailText(r, "selector", req.Selector)
	found, n, err := k.search(ctx, req)
	if err != nil {
		return nil, 0, k.failed(ctx, r, outward(err))
	}
	if r.Count = n; len(found) == 0 {
		return nil, n, k.verified.add(ctx, *r)
	}
	addDetail(r, "found", uint64(len(found)))
	if err := k.append(ctx, r); err != nil {
		return nil, 0, err
	}
	return found, n, nil
}

func (k *Keeper) search(ctx context.Context, req Search) ([]Found, int, error) {
	list, err := k.targets(ctx, req)
	if err != nil {
		return nil, 0, err
	}
	var found []Found
	for rest := list; len(rest) > 0; {
		n, size := 0, 0
		for n < len(rest) && n < searchAtOnce && size+len(rest[n].material.Blob) <= searchBytes {
			size += len(rest[n].material.Blob)
			n++
		}
		materials := make([]custody.Material, n)
		for i := range materials {
			materials[i] = rest[i].material
		}
		hits, err := k.cfg.Custodian.Search(ctx, materials, req.Haystack)
		if err != nil {
			return nil, 0, err
		}
		for _, h := range hits {
			t := rest[h.Item]
			found = append(found, Found{
				Name: t.name, KeyID: t.material.Binding.KeyID, Version: t.material.Binding.Version, Offset: h.Offset, Encoding: h.Encoding,
			})
		}
		rest = rest[n:]
	}
	return found, len(list), nil
}

// targets returns the versions to search for, as they stand now.
func (k *Keeper) targets(ctx context.Context, req Search) ([]target, error) {
	req.Haystack = nil
	at, err := k.asOf(ctx)
	if err != nil {
		return nil, err
	}
	s := &k.sought
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list != nil && s.revision == at.Number && s.asked.Selector == req.Selector && s.asked.Symmetric == req.Symmetric {
		return s.list, nil
	}
	list := []target{}
	q := store.KeyQuery{Selector: claviger.Selector(req.Selector), Limit: store.MaxLimit}
	for more := true; more; more = q.After != "" {
		err := k.cfg.Store.View(ctx, func(tx *store.Tx) error {
			keys, next, err := tx.Keys(q)
			if err != nil {
				return err
			}
			q.After = next
			for _, key := range keys {
				if key.Custodian != claviger.Soft || req.Symmetric && key.Algorithm.Asymmetric() {
					continue
				}
				more, err := targetsOf(tx, &key)
				if err != nil {
					return err
				}
				list = append(list, more...)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	s.revision, s.asked, s.list = at.Number, req, list
	return list, nil
}

func targetsOf(tx *store.Tx, key *claviger.Key) ([]target, error) {
	var list []target
	for _, v := range key.Versions {
		if v.State == claviger.Destroyed {
			continue
		}
		blob, _, err := tx.Blob(key.ID, v.Number)
		if err != nil {
			return nil, err
		}
		list = append(list, target{key.Name, custody.Material{Binding: bindingOf(key, v.Number, v.Origin), Blob: blob, Fingerprint: v.Fingerprint}})
	}
	return list, nil
}
