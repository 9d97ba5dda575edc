package keeper_test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"claviger.dev"
	"claviger.dev/internal/follow"
)

// event is one operation of a history, with times since its start.
type event struct {
	handle, server int
	revoke         bool
	code           claviger.Code
	call, done     time.Duration
}

// history gathers events.
type history struct {
	start time.Time
	mu    sync.Mutex // guards events
	list  []event
}

func (h *history) note(e event, do func() claviger.Code) {
	e.call = time.Since(h.start)
	e.code = do()
	e.done = time.Since(h.start)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, e)
}

// liveness is the model: one handle, which is live until it is revoked.
func liveness() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return true },
		Step: func(state, input, _ any) (bool, any) {
			live, e := state.(bool), input.(event)
			switch {
			case e.revoke:
				return true, false
			case e.code == "":
				return live, live
			}
			return !live, live
		},
		DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
	}
}

// check checks the part of a history that is about one handle. What was refused
// as stale, or could not be done, says nothing about it; a revocation that was
// answered with an error may take effect at any time, or never.
func check(list []event) porcupine.CheckResult {
	by, revoked := -1, event{}
	for _, e := range list {
		if e.revoke {
			by, revoked = e.server, e
		}
	}
	if revoked.code != "" {
		revoked.done = math.MaxInt64 / 2
	}
	var ops []porcupine.Operation
	for i, e := range telling(list) {
		call, done := e.call, e.done
		switch {
		case e.revoke:
			done = revoked.done
		case e.server != by:
			call -= follow.Bound
			// Before a revocation has returned, another server may refuse already
			// and the one that was asked not yet.
			if e.code != "" && done >= revoked.call {
				done = max(done, revoked.done)
			}
		}
		ops = append(ops, porcupine.Operation{ClientId: i, Input: e, Call: int64(call), Return: int64(done)})
	}
	return porcupine.CheckOperationsTimeout(liveness(), ops, 20*time.Second)
}

// telling leaves out uses that follow from others, since trying every order of
// many uses at once takes for ever. The state changes once. So of those that
// were let through through one server, what holds for those that began last
// holds for the rest; and of those that were refused, for those that ended first.
func telling(list []event) (out []event) {
	const enough = 4
	parts := map[[2]int][]event{}
	for _, e := range list {
		switch {
		case e.revoke:
			out = append(out, e)
		case e.code != "" && e.code != claviger.Denied:
		case e.code == "":
			parts[[2]int{e.server, 0}] = append(parts[[2]int{e.server, 0}], e)
		default:
			parts[[2]int{e.server, 1}] = append(parts[[2]int{e.server, 1}], e)
		}
	}
	for kind, part := range parts {
		slices.SortFunc(part, func(a, b event) int {
			if kind[1] == 0 {
				return cmp.Compare(b.call, a.call)
			}
			return cmp.Compare(a.done, b.done)
		})
		out = append(out, part[:min(len(part), enough)]...)
	}
	return out
}
