package keeper

import (
	"context"
	"slices"

	"claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// ProtectRequest asks for tokens of a framework's format by the active version
// of a machine key.
type ProtectRequest struct {
	Key      string
	Format   state.Format
	Params   state.Params // Issued is now when it is zero
	Payloads [][]byte     // 1 to 1000
	Context  Context
}

// Protected is the answer to a ProtectRequest.
type Protected struct {
	Tokens  [][]byte
	Version uint32
}

// UnprotectRequest asks whether tokens are by a machine key, and for what is in
// them.
type UnprotectRequest struct {
	Key     string
	Format  state.Format
	Params  state.Params
	Tokens  [][]byte // 1 to 1000
	Expired bool     // tokens that ended are opened too
	Context Context
}

// Unprotected is the answer for one token. Version is the one that matched, and
// Renew whether another one makes tokens now; the rest is zero when there is
// none. Why there is none is never said.
type Unprotected struct {
	state.Opened
	Version uint32
	Renew   bool
}

var errSet = claviger.Errorf(claviger.Unsupported, "the key's recipe set does not have this format", "use a format of the set that the key was adopted for")

// runner runs recipes with one version.
type runner struct {
	holder   Runner
	material custody.Material
}

func (r runner) Run(ctx context.Context, what recipe.Recipe, make bool, items []recipe.Item) ([]recipe.Result, error) {
	return r.holder.Recipe(ctx, r.material, what, make, items)
}

// runner returns what runs recipes with a version of the permit's key. Machine
// keys are the key process's alone.
func (k *Keeper) runner(ctx context.Context, p permit, v *claviger.Version) (runner, error) {
	_, m, err := k.material(ctx, p, v)
	return runner{k.cfg.Custodian, m}, err
}

// hasFormat refuses a format that is none of the key's set.
func hasFormat(key *claviger.Key, f state.Format) error {
	if slices.Contains(f.Sets(), recipe.Set(key.Recipe)) {
		return nil
	}
	return errSet
}

// Protect makes tokens with the active version of a machine key.
func (k *Keeper) Protect(ctx context.Context, by claviger.Principal, req ProtectRequest) (Protected, error) {
	if err := checkItems(sizesOf(req.Payloads)); err != nil {
		return Protected{}, err
	}
	if req.Params.Issued.IsZero() {
		req.Params.Issued = k.cfg.Now()
	}
	// The record's digest is over the tokens' kind alone: a digest of payloads
	// would confirm guesses.
	a := ask{op: claviger.Protect, key: req.Key, format: req.Format, context: req.Context, count: len(req.Payloads), digest: digestOf([]byte(req.Format))}
	return pass(ctx, k, by, a, func(ctx context.Context, p permit) (Protected, error) {
		if err := hasFormat(p.state.key, req.Format); err != nil {
			return Protected{}, err
		}
		r, err := k.runner(ctx, p, p.version())
		if err != nil {
			return Protected{}, err
		}
		p.tally.add(p.version().Number, len(req.Payloads))
		tokens, err := state.ProtectAll(ctx, r, req.Format, req.Params, req.Payloads)
		if err == nil && p.state.key.Settings.RecordTokens {
			err = k.keepIssued(ctx, p, req, tokens)
		}
		return Protected{Tokens: tokens, Version: p.version().Number}, err
	})
}

// Unprotect checks tokens under every version that may process, the newest
// first, and opens them.
func (k *Keeper) Unprotect(ctx context.Context, by claviger.Principal, req UnprotectRequest) ([]Unprotected, error) {
	if err := checkItems(sizesOf(req.Tokens)); err != nil {
		return nil, err
	}
	a := ask{op: claviger.Unprotect, key: req.Key, format: req.Format, context: req.Context, count: len(req.Tokens), digest: digestOf(req.Tokens...)}
	return pass(ctx, k, by, a, func(ctx context.Context, p permit) ([]Unprotected, error) {
		if err := hasFormat(p.state.key, req.Format); err != nil {
			return nil, err
		}
		out, now := make([]Unprotected, len(req.Tokens)), k.cfg.Now()
		tokens, at := req.Tokens, []int(nil) // all of them at first
		for n, v := range p.allowed.Versions {
			if n > 0 {
				if tokens, at = remaining(req.Tokens, out); len(at) == 0 {
					break
				}
			}
			r, err := k.runner(ctx, p, v)
			if err != nil {
				return nil, err
			}
			opened, err := state.UnprotectAll(ctx, r, req.Format, req.Params, tokens)
			if err != nil {
				return nil, err
			}
			if v.Exposure != nil {
				if err := k.passing(ctx, p, v, req, tokens, opened); err != nil {
					return nil, err
				}
			}
			for j, o := range opened {
				if o.OK && (req.Expired || o.Facts.Expires.IsZero() || now.Before(o.Facts.Expires)) {
					i := j
					if n > 0 {
						i = at[j]
					}
					out[i] = Unprotected{Opened: o, Version: v.Number, Renew: v.State != claviger.Active && p.state.key.ActiveVersion() != nil}
				}
			}
		}
		for i := range out {
			p.note(Verdict{Valid: out[i].OK, Version: out[i].Version})
		}
		return out, nil
	})
}

// remaining returns the tokens that no version has opened yet, and where they
// stand among all.
func remaining(all [][]byte, out []Unprotected) (tokens [][]byte, at []int) {
	for i, token := range all {
		if out[i].Version == 0 {
			tokens, at = append(tokens, token), append(at, i)
		}
	}
	return tokens, at
}
