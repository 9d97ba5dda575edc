// Package follow keeps one server of a shared store up to date with what the
// others change, and knows when it is not.
//
// It owns the lease of this server and the mark, the file that remembers the
// newest change that it has seen.
//
// It promises: while Confirmed answers, every change that was committed more
// than Lease ago has been applied here; a database that does not hold what this
// server has seen, now or before its last start, confirms nothing until an
// operator accepts it; what Settle has waited for is applied by every server
// that confirms anything.
//
// It must never count time on a clock that stops while the host is suspended or
// that can be set, nor renew a lease from the moment of an answer instead of
// that of its question.
package follow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// Times of following. A revocation takes effect everywhere within Bound; the
// lease is shorter by what clocks may differ in rate, and by what lies between
// the check and the release.
const (
	Bound = 2 * time.Second
	Lease = Bound - 100*time.Millisecond
	Every = 250 * time.Millisecond // between two polls, at most

	pollDeadline = time.Second           // of one poll
	gather       = 10 * time.Millisecond // changes that come this close together are read together
	trimEvery    = time.Minute           // also how long a server must be silent to be forgotten
	keepChanges  = 7 * 24 * time.Hour
)

// Config is what a Follower stands on. Store and Node are required.
type Config struct {
	Store *store.DB // a shared one
	Node  string    // names this server among those of the store
	// Mark is the path of the file that remembers what this server has seen,
	// in a directory that only it writes to. Empty: memory alone, which a
	// restart forgets.
	Mark string
	// Apply drops what is held in memory of what changed; all tells that it is
	// everything. It is called before the change counts as confirmed.
	Apply func(number uint64, touched []claviger.ID, all bool)
	// Accepted is told that an operator accepted another history. Nil: nobody.
	Accepted func(from, to store.Position)
	Now      func() time.Duration // a clock that counts suspend and is never set; CLOCK_BOOTTIME when nil
	Log      *slog.Logger         // discarded when nil
}

// Follower follows a shared store for one server. Make it with New; its
// methods may be called at once from any number of goroutines.
type Follower struct {
	cfg  Config
	wake chan struct{}

	state   atomic.Pointer[state]
	refused atomic.Uint64

	polling chan struct{} // held during a poll; it owns what follows
	feed    store.Feed
	mark    mark
	at      store.Position // applied here, and in the mark
	tried   time.Duration  // end of the last poll that failed
	closed  bool

	silent map[string]uint64 // beats of the servers when Run last looked at them; Run's own
}

// state is what the last poll found.
type state struct {
	at      store.Position
	sent    time.Duration // when the poll that confirmed it was begun
	until   time.Duration // end of the lease; 0 for none
	trouble error         // why the last poll confirmed nothing; nil when it did
}

// BootTime is CLOCK_BOOTTIME: since the start of the host, suspend included.
func BootTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(fmt.Sprintf("read CLOCK_BOOTTIME: %v", err)) // every kernel that Go runs on has it
	}
	return time.Duration(t.Nano())
}

// New reads the mark and asks the store for the first time. A store whose
// history does not hold the mark is no error here: Confirmed says so. Another
// database is one, so that nothing is made in it.
func New(ctx context.Context, cfg Config) (*Follower, error) {
	if cfg.Now == nil {
		cfg.Now = BootTime
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &Follower{cfg: cfg, wake: make(chan struct{}, 1), polling: make(chan struct{}, 1)}
	f.state.Store(&state{trouble: errUnasked})
	var err error
	if f.mark, err = openMark(cfg.Mark); err != nil {
		return nil, err
	}
	f.at = f.mark.at
	if err := f.Poll(ctx); err != nil && (!Parted(err) || errors.Is(err, errOther)) {
		return nil, errors.Join(stale(err), f.Close(context.WithoutCancel(ctx)))
	}
	return f, nil
}

// Confirmed returns the last change that is applied here, while the lease of
// this server holds. A lease that has lapsed it tries to renew, within a
// second; when that fails the answer is claviger.Stale.
func (f *Follower) Confirmed(ctx context.Context) (store.Position, error) {
	s := f.state.Load()
	if now := f.cfg.Now(); now < s.until {
		return s.at, nil
	}
	err := f.poll(ctx, false)
	// The lease is looked at once more: this goroutine may have been stopped.
	if s = f.state.Load(); f.cfg.Now() < s.until {
		return s.at, nil
	}
	f.refused.Add(1)
	return store.Position{}, stale(errors.Join(err, s.trouble))
}

// Poll asks the store now. When it returns nil, every change that was committed
// before the call is applied here, and in the mark.
func (f *Follower) Poll(ctx context.Context) error { return f.poll(ctx, true) }

// poll takes the turn and asks; unless it has to be now, not when another did
// while this one waited, nor so soon after a failure that it would be the same.
func (f *Follower) poll(ctx context.Context, now bool) error {
	ctx, cancel := context.WithTimeout(ctx, pollDeadline)
	defer cancel()
	select {
	case f.polling <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for a poll: %w", ctx.Err())
	}
	defer func() { <-f.polling }()
	if f.closed {
		return errClosed
	}
	if at := f.cfg.Now(); !now && (at < f.state.Load().until || at-f.tried < Every) {
		return nil
	}
	err := f.ask(ctx)
	if err != nil {
		f.fail(err)
	}
	return err
}

// fail notes that a poll confirmed nothing. A connection that failed is not
// used again; whether the lease goes on until its end is ask's decision.
func (f *Follower) fail(err error) {
	s := *f.state.Load()
	if (s.trouble == nil) || s.trouble.Error() != err.Error() {
		f.cfg.Log.Error("the store confirms nothing: uses are refused when the lease ends", "error", err, "lease", max(0, s.until-f.cfg.Now()))
	}
	s.trouble = err
	f.state.Store(&s)
	f.tried = f.cfg.Now()
}

// ask asks once, and again when this server was not listed before: who looks at
// the list must have found it there before it holds a lease.
func (f *Follower) ask(ctx context.Context) error {
	for {
		sent := f.cfg.Now()
		news, err := f.news(ctx)
		if err != nil {
			return err // the lease ends by itself
		}
		if news.Holds {
			err = f.advance(news)
		} else {
			err = f.parted(news.Head)
		}
		if err != nil {
			s := *f.state.Load()
			s.until = 0
			f.state.Store(&s)
			return err
		}
		if !news.Holds || news.Beat == 1 {
			continue
		}
		if f.state.Load().trouble != nil {
			f.cfg.Log.Info("the store is followed", "number", f.at.Number)
		}
		f.state.Store(&state{at: f.at, sent: sent, until: sent + Lease})
		return nil
	}
}

// news asks over a connection of its own, and over a new one when the one that
// was kept turns out to be dead.
func (f *Follower) news(ctx context.Context) (store.News, error) {
	for {
		kept := f.feed != nil
		if !kept {
			feed, err := f.cfg.Store.Feed(ctx)
			if err != nil {
				return store.News{}, err
			}
			f.feed = feed
		}
		news, err := f.feed.News(ctx, f.cfg.Node, f.at)
		if err == nil {
			return news, nil
		}
		_ = f.feed.Close(ctx) // it is of no more use, whatever this says
		f.feed = nil
		if !kept || ctx.Err() != nil {
			return store.News{}, err
		}
	}
}

// advance takes notice of changes: in the mark first, so that no decision rests
// on a change that a restart would forget.
func (f *Follower) advance(news store.News) error {
	if f.at == news.Head && f.state.Load().at == news.Head {
		return nil
	}
	if err := f.mark.put(news.Head); err != nil {
		return err
	}
	if f.cfg.Apply != nil {
		f.cfg.Apply(news.Head.Number, news.Touched, news.All)
	}
	f.at = news.Head
	return nil
}

// parted finds the mark's history missing in the database, unless an operator
// has meanwhile accepted another: the mark is not as it was written here.
func (f *Follower) parted(head store.Position) error {
	now, err := openMark(f.cfg.Mark)
	if err != nil {
		return err
	}
	if f.cfg.Mark != "" && now.at != f.mark.at {
		f.cfg.Log.Warn("an operator accepted another history of the database", "from", f.mark.at.Number, "to", now.at.Number)
		if f.cfg.Apply != nil {
			f.cfg.Apply(now.at.Number, nil, true)
		}
		if f.cfg.Accepted != nil {
			f.cfg.Accepted(f.mark.at, now.at)
		}
		f.mark, f.at = now, now.at
		return nil
	}
	switch {
	case head.Database != f.at.Database:
		return errOther
	case head.Number < f.at.Number:
		return fmt.Errorf("%w: it is at change %d, and was at %d", errOlder, head.Number, f.at.Number)
	}
	return fmt.Errorf("%w: number %d of %d", errParted, f.at.Number, head.Number)
}

// Why a database confirms nothing, though it answers.
var (
	errUnasked = errors.New("the store was not asked yet")
	errClosed  = errors.New("the server is stopping")
	errOther   = errors.New("it is another database than the one this server has seen")
	errOlder   = errors.New("the database is an older copy of what this server has seen")
	errParted  = errors.New("the database does not have the last change that this server has seen: it is a copy that went on from before, or that change is longer ago than changes are kept")
)

// Parted reports whether err says that an operator has to accept the database
// or to bring back the right one.
func Parted(err error) bool {
	return errors.Is(err, errOther) || errors.Is(err, errOlder) || errors.Is(err, errParted)
}

// Hint says what to do about a store that confirms nothing.
func Hint(err error) string {
	if Parted(err) {
		return "connect the server to the database that it had; where that is lost, run 'claviger server accept-database --lower-mark' on each server's host, and revoke again what was revoked since"
	}
	return "look whether the database can be reached and written to; the server goes on by itself"
}

func stale(err error) error {
	msg := "it cannot be confirmed that nothing was revoked"
	for _, known := range []error{errOther, errOlder, errParted} {
		if errors.Is(err, known) {
			msg += ": " + known.Error()
		}
	}
	return claviger.Errorf(claviger.Stale, msg, Hint(err)).Wrap(err)
}
