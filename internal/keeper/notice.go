package keeper

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"claviger.dev"
)

// notices tells owners, beside everything else, so that a slow receiver holds
// nothing up.
type notices struct {
	to   func(ctx context.Context, n Notice) error // nil: log and record alone
	next chan Notice
}

const (
	waitingNotices = 1024             // that are kept in memory
	noticeTries    = 5                // of one notice
	noticeAgain    = 10 * time.Second // before the second try; each further pause is twice as long
	namedVersions  = 100              // in one notice
)

func newNotices(to func(ctx context.Context, n Notice) error) *notices {
	return &notices{to: to, next: make(chan Notice, waitingNotices)}
}

// tell makes one notice for each owner and finding of what was exposed.
func (k *Keeper) tell(o outcome, keys map[claviger.ID]*claviger.Key, fallen []Shown, suspended map[Shown]bool) {
	type subject struct{ owner, finding string }
	all := map[subject]*Notice{}
	var order []subject
	for _, s := range fallen {
		about := subject{keys[s.Key].Owner, s.Finding}
		n := all[about]
		if n == nil {
			n = &Notice{Owner: about.owner, Finding: about.finding, Run: string(o.run), At: k.cfg.Now().UTC()}
			all[about], order = n, append(order, about)
		}
		n.Count++
		n.Suspended = n.Suspended || suspended[s]
		if len(n.Versions) < namedVersions {
			n.Versions = append(n.Versions, nameOf(keys, s))
		}
	}
	for _, about := range order {
		n := *all[about]
		k.cfg.Log.Warn("versions are exposed", "owner", n.Owner, "finding", n.Finding, "count", n.Count, "versions", n.Versions[:min(len(n.Versions), 5)], "run", n.Run)
		select {
		case k.notices.next <- n:
		default:
			k.cfg.Log.Error("too many notices wait; an owner was not told", "owner", n.Owner, "finding", n.Finding)
		}
	}
}

// run delivers until ctx ends, and then once more what still waits.
func (n *notices) run(ctx context.Context, k *Keeper) {
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), systemDeadline)
			defer cancel()
			for {
				select {
				case notice := <-n.next:
					n.deliver(last, k, notice, 1)
				default:
					return
				}
			}
		case notice := <-n.next:
			n.deliver(ctx, k, notice, noticeTries)
		}
	}
}

// deliver sends one notice and records what became of it.
func (n *notices) deliver(ctx context.Context, k *Keeper, notice Notice, tries int) {
	r := k.newRecord(k.self(), "evidence.notify")
	r.Count = notice.Count
	addDetailText(r, "owner", notice.Owner)
	addDetailText(r, "finding", notice.Finding)
	addDetailText(r, "run", notice.Run)
	addDetailText(r, "versions", clipText(strings.Join(notice.Versions, " ")))
	if n.to == nil {
		addDetailText(r, "by", "log and record alone")
		k.attempt("record the notice", k.append(ctx, r))
		return
	}
	var err error
	pause := noticeAgain
	for try := 1; ; try++ {
		if err = n.try(ctx, notice); err == nil || try >= tries {
			addDetailText(r, "tries", strconv.Itoa(try))
			break
		}
		k.attempt("tell the owner", err)
		select {
		case <-ctx.Done():
			tries = try + 1 // once more, without the context that has ended
			ctx = context.WithoutCancel(ctx)
		case <-time.After(pause):
			pause *= 2
		}
	}
	if err != nil {
		k.cfg.Log.Error("an owner could not be told", "owner", notice.Owner, "finding", notice.Finding, "error", err)
		_ = k.failed(ctx, r, outward(err)) // logged above
		return
	}
	k.attempt("record the notice", k.append(ctx, r))
}

func (n *notices) try(ctx context.Context, notice Notice) error {
	ctx, cancel := context.WithTimeout(ctx, tickDeadline)
	defer cancel()
	notice.Versions = slices.Clone(notice.Versions)
	return n.to(ctx, notice)
}
