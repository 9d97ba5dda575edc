package keeper

import (
	"context"
	"maps"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/failpoint"
)

// gatherFor is how long a record may wait to be gathered with others like it.
const gatherFor = time.Second

// aggregate gathers records of one caller, place, key and operation into one,
// with exact counts and a digest that runs over all of theirs. Run writes what
// was gathered each second; when it could not, for twice that long, add writes
// it itself and fails if that fails. So nothing is verified that cannot be
// recorded within about two seconds.
type aggregate struct {
	append func(context.Context, ...*audit.Record) error
	now    func() time.Time
	strict bool // add fails when what was gathered cannot be written

	flushing turn // held across a flush

	mu      sync.Mutex // guards what follows
	pending map[gathered]*gathering
	oldest  time.Time
}

// gathering is a record that others are merged into, with the numbers that its
// details get when it is written.
type gathering struct {
	*audit.Record
	calls, invalid uint64
}

// gathered is what must be equal for two records to become one.
type gathered struct {
	action, reason            string
	principal, key, grant     claviger.ID
	version                   uint32
	method, source, exe, unit string
	uid                       int
	audience, purpose         string
	versions                  string // where a call met several
	client                    string
}

func gatheredBy(r *audit.Record) gathered {
	if r.Detail == nil {
		return gathered{
			action: r.Action, reason: r.Reason, principal: r.Principal, key: r.KeyID, grant: r.Grant, version: r.Version,
			method: r.Method, source: r.Source, exe: r.Executable, unit: r.Unit, uid: r.UID,
		}
	}
	return gathered{
		action: r.Action, reason: r.Reason, principal: r.Principal, key: r.KeyID, grant: r.Grant, version: r.Version,
		method: r.Method, source: r.Source, exe: r.Executable, unit: r.Unit, uid: r.UID,
		audience: r.Detail["audience"], purpose: r.Detail["purpose"], versions: r.Detail["versions"], client: r.Detail["client"],
	}
}

// add gathers a record. It fails, in a strict aggregate, when records that
// wait for too long cannot be written.
func (a *aggregate) add(ctx context.Context, r audit.Record) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.strict && len(a.pending) > 0 && a.now().Sub(a.oldest).Abs() > 2*gatherFor {
		a.mu.Unlock()
		err := a.flush(ctx)
		a.mu.Lock()
		if err != nil {
			return err
		}
	}
	id := gatheredBy(&r)
	if have := a.pending[id]; have != nil {
		have.merge(&r, 1, number(r.Detail["invalid"], 0))
		return nil
	}
	kept := r
	kept.RequestID = "" // of many requests
	kept.Detail = maps.Clone(r.Detail)
	a.put(id, &gathering{Record: &kept, calls: 1, invalid: number(r.Detail["invalid"], 0)})
	return nil
}

func (g *gathering) merge(r *audit.Record, calls, invalid uint64) {
	g.Count += r.Count
	g.Digest = digestOf([]byte(g.Digest), []byte(r.Digest))
	g.calls += calls
	g.invalid += invalid
}

func (a *aggregate) put(id gathered, g *gathering) {
	if a.pending == nil {
		a.pending = map[gathered]*gathering{}
	}
	if len(a.pending) == 0 || g.Time.Before(a.oldest) {
		a.oldest = g.Time
	}
	a.pending[id] = g
}

// keep puts back what could not be written, before what came meanwhile.
func (a *aggregate) keep(batch map[gathered]*gathering) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, older := range batch {
		if newer := a.pending[id]; newer != nil {
			older.merge(newer.Record, newer.calls, newer.invalid)
		}
		a.put(id, older)
	}
}

// flush writes what was gathered. What cannot be written is kept.
func (a *aggregate) flush(ctx context.Context) error {
	if err := a.flushing.take(ctx); err != nil {
		return err
	}
	defer a.flushing.give()
	a.mu.Lock()
	batch := a.pending
	a.pending = nil
	a.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	failpoint.Hit(failpoint.VerifyFlush)
	records := make([]*audit.Record, 0, len(batch))
	for _, g := range batch {
		setDetail(g.Record, "calls", g.calls)
		setDetail(g.Record, "invalid", g.invalid)
		records = append(records, g.Record)
	}
	err := a.append(ctx, records...)
	if err != nil {
		a.keep(batch)
	}
	return err
}
