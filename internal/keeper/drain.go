package keeper

import (
	"context"
	"slices"
	"time"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// Drain says who still uses which version of a key, over all servers of the
// store.
type Drain struct {
	Key       claviger.Key
	At        time.Time
	Versions  []DrainVersion
	Sightings []store.Sighting
	Names     map[claviger.ID]string // of the principals among them
	Flows     []store.Flow
	Width     time.Duration // of a flow
}

// DrainVersion sums one version.
type DrainVersion struct {
	*claviger.Version
	Made, Checked uint64
	Last          time.Time
	Unconfirmed   []string // who was seen with it within a day and not with the active one; nil for that one
	Nodes         []NodeUse
}

// NodeUse is what one server counted of a version.
type NodeUse struct {
	Node          string
	Made, Checked uint64
	Last          time.Time
}

// longFlows is from which age on flows are told by hours.
const longFlows = 6 * time.Hour

// Drain returns who still uses which version of a key, and the flows since a
// time, by minutes or where that is long ago by hours; none when it is zero.
func (k *Keeper) Drain(ctx context.Context, by claviger.Principal, ref string, since time.Time) (Drain, error) {
	if err := k.read(ctx, &by, change{op: claviger.ReadKey, action: "key.drain", key: ref}); err != nil {
		return Drain{}, err
	}
	// What this server has seen counts, written or not.
	if err := k.counts.flush(ctx); err != nil {
		return Drain{}, outward(err)
	}
	d := Drain{At: k.cfg.Now().UTC(), Width: time.Minute}
	if d.At.Sub(since) > longFlows {
		d.Width = time.Hour
	}
	err := k.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		if d.Key, err = tx.Key(ref); err != nil {
			return err
		}
		if d.Sightings, err = tx.SightingsOf(d.Key.ID); err != nil {
			return err
		}
		if d.Names, err = namesIn(tx, d.Sightings); err != nil || since.IsZero() {
			return err
		}
		d.Flows, err = tx.FlowsOf(d.Key.ID, d.Width, since.Truncate(d.Width))
		return err
	})
	if err != nil {
		return Drain{}, outward(err)
	}
	for i := range d.Key.Versions {
		d.Versions = append(d.Versions, d.sum(&d.Key.Versions[i], d.Key.ActiveVersion()))
	}
	return d, nil
}

func (d *Drain) sum(v, active *claviger.Version) DrainVersion {
	out := DrainVersion{Version: v}
	for _, s := range d.Sightings { // in the order of nodes
		if s.Version != v.Number {
			continue
		}
		if n := len(out.Nodes); n == 0 || out.Nodes[n-1].Node != s.Node {
			out.Nodes = append(out.Nodes, NodeUse{Node: s.Node})
		}
		node := &out.Nodes[len(out.Nodes)-1]
		node.Made, node.Checked = node.Made+s.Made, node.Checked+s.Checked
		out.Made, out.Checked = out.Made+s.Made, out.Checked+s.Checked
		if s.Last.After(node.Last) {
			node.Last = s.Last
		}
		if s.Last.After(out.Last) {
			out.Last = s.Last
		}
	}
	if active != nil && active != v {
		out.Unconfirmed = unconfirmed(d.Sightings, v.Number, active.Number, d.At, func(id claviger.ID) string { return d.Names[id] })
	}
	return out
}

// tokenCount is what a count of tokens is about.
type tokenCount struct {
	key     claviger.ID
	version uint32
	op      claviger.Operation
}

// TokenCount is how many tokens were made or checked with a version since this
// server started.
type TokenCount struct {
	Key       claviger.ID
	Version   uint32
	Operation claviger.Operation
	Count     uint64
}

// TokenCounts returns the counts of every version whose tokens this server made
// or checked.
func (k *Keeper) TokenCounts() []TokenCount {
	k.counts.mu.Lock()
	defer k.counts.mu.Unlock()
	out := make([]TokenCount, 0, len(k.counts.tokens))
	for of, n := range k.counts.tokens {
		out = append(out, TokenCount{of.key, of.version, of.op, n})
	}
	slices.SortFunc(out, func(a, b TokenCount) int {
		if a.Key != b.Key {
			return slices.Compare([]byte(a.Key), []byte(b.Key))
		}
		return int(a.Version) - int(b.Version)
	})
	return out
}
