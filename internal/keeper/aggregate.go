package keeper

import (
	"context"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/failpoint"
)

// gathering is how long a record may wait to be gathered with others like it.
const gathering = time.Second

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
	pending map[gathered]*audit.Record
	oldest  time.Time
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
}

func gatheredBy(r *audit.Record) gathered {
	return gathered{
		action: r.Action, reason: r.Reason, principal: r.Principal, key: r.KeyID, grant: r.Grant, version: r.Version,
		method: r.Method, source: r.Source, exe: r.Executable, unit: r.Unit, uid: r.UID,
		audience: r.Detail["audience"], purpose: r.Detail["purpose"], versions: r.Detail["versions"],
	}
}

// add gathers a record. It fails, in a strict aggregate, when records that
// wait for too long cannot be written.
func (a *aggregate) add(ctx context.Context, r *audit.Record) error {
	a.mu.Lock()
	late := len(a.pending) > 0 && a.now().Sub(a.oldest).Abs() > 2*gathering
	a.mu.Unlock()
	if late && a.strict {
		if err := a.flush(ctx); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.put(r, false)
	return nil
}

// put merges a record into what is pending. front says that it is older than
// what it is merged with.
func (a *aggregate) put(r *audit.Record, front bool) {
	if a.pending == nil {
		a.pending = map[gathered]*audit.Record{}
	}
	if len(a.pending) == 0 || front && r.Time.Before(a.oldest) {
		a.oldest = r.Time
	}
	id := gatheredBy(r)
	have, ok := a.pending[id]
	if !ok {
		if !front {
			r.RequestID = "" // of many requests
			detail := map[string]string{"calls": "1"}
			for name, text := range r.Detail {
				detail[name] = text
			}
			r.Detail = detail
		}
		a.pending[id] = r
		return
	}
	if front {
		have, r = r, have
		a.pending[id] = have
	}
	have.Count += r.Count
	have.Digest = digestOf([]byte(have.Digest), []byte(r.Digest))
	addDetail(have, "calls", number(r.Detail["calls"], 1))
	addDetail(have, "invalid", number(r.Detail["invalid"], 0))
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
	for _, r := range batch {
		records = append(records, r)
	}
	err := a.append(ctx, records...)
	if err != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, r := range records {
			a.put(r, true)
		}
	}
	return err
}
