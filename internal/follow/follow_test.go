package follow_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/follow"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/postgres"
	"claviger.dev/internal/store/postgres/pgtest"
	"claviger.dev/internal/store/storetest"
)

// member is one server of a store, behind a proxy of its own.
type member struct {
	*follow.Follower
	t     *testing.T
	cfg   follow.Config
	db    *store.DB
	proxy *pgtest.Proxy
	ahead atomic.Int64 // of its clock
	reads atomic.Int64 // of its clock, how often

	mu       sync.Mutex // guards what follows
	touched  []claviger.ID
	emptied  int // times that everything was to be dropped
	accepted int
}

func newMember(t *testing.T, dsn, node string) *member {
	t.Helper()
	m := &member{t: t, proxy: pgtest.NewProxy(t, dsn)}
	var err error
	if m.db, err = postgres.Open(t.Context(), postgres.Config{DSN: m.proxy.DSN(), Writers: 2, Readers: 2}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.db.Close() })
	m.cfg = follow.Config{
		Store: m.db, Node: node, Mark: filepath.Join(t.TempDir(), "mark"), Log: slog.New(slog.DiscardHandler),
		Now: func() time.Duration {
			m.reads.Add(1)
			return follow.BootTime() + time.Duration(m.ahead.Load())
		},
		Apply: func(_ uint64, touched []claviger.ID, all bool) {
			m.mu.Lock()
			defer m.mu.Unlock()
			if all {
				m.emptied++
			}
			m.touched = append(m.touched, touched...)
		},
		Accepted: func(store.Position, store.Position) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.accepted++
		},
	}
	m.start()
	return m
}

func (m *member) start() {
	m.t.Helper()
	var err error
	if m.Follower, err = follow.New(m.t.Context(), m.cfg); err != nil {
		m.t.Fatal(err)
	}
	f := m.Follower
	m.t.Cleanup(func() { _ = f.Close(context.Background()) })
}

// run follows in the background until stop is called.
func (m *member) run() (stop func()) {
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan struct{})
	go func() { m.Run(ctx); close(done) }()
	return sync.OnceFunc(func() { cancel(); <-done })
}

// change makes one change, and returns what it touched.
func (m *member) change(name claviger.Name) claviger.ID {
	m.t.Helper()
	k := storetest.NewKey(name)
	until(m.t, "a change is made", func() bool { // on a connection that was not ended meanwhile
		err := m.db.Update(m.t.Context(), func(tx *store.Tx) error { return tx.InsertKey(k) })
		if err != nil && claviger.CodeOf(err) != claviger.Unavailable {
			m.t.Fatal(err)
		}
		return err == nil
	})
	return k.ID
}

// want checks what the server confirms; stale is what its refusal says, "" for
// none.
func (m *member) want(what string, number uint64, stale string) {
	m.t.Helper()
	at, err := m.Confirmed(m.t.Context())
	switch {
	case stale == "" && (err != nil || at.Number != number):
		m.t.Errorf("%s: confirmed %d, %v; want %d", what, at.Number, err, number)
	case stale != "" && (claviger.CodeOf(err) != claviger.Stale || !strings.Contains(err.Error(), stale)):
		m.t.Errorf("%s: confirmed %d, %v; want stale with %q", what, at.Number, err, stale)
	}
}

// until waits for a condition, which it looks at often.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for end := time.After(20 * time.Second); !done(); {
		select {
		case <-ticker.C:
		case <-end:
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

const unreachable = "cannot be confirmed"

// TestLease cuts a server off, and lets its clock run.
func TestLease(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	a, b := newMember(t, dsn, "a"), newMember(t, dsn, "b")
	a.change("prod/a/one")
	b.want("within the lease", 0, "")
	b.ahead.Add(int64(follow.Lease))
	b.want("after it, where the database answers", 1, "")

	b.proxy.Hold(true)
	a.change("prod/a/two")
	b.ahead.Add(int64(follow.Lease - time.Second))
	b.want("cut off, within the lease", 1, "")
	b.ahead.Add(int64(time.Second))
	b.want("cut off, after it", 0, unreachable)
	if s := b.Status(); s.Trouble == nil || s.Refused != 1 || s.Confirmed < follow.Lease {
		t.Errorf("status %+v", s)
	}
	b.proxy.Hold(false)
	b.ahead.Add(int64(follow.Every)) // it does not ask again at once
	b.want("connected again", 2, "")

	// A poll that began long before its answer came gives no lease from then.
	b.proxy.Hold(true)
	asked, reads := make(chan error), b.reads.Load()
	go func() { asked <- b.Poll(t.Context()) }()
	until(t, "the poll has begun", func() bool { return b.reads.Load() >= reads+2 })
	b.ahead.Add(int64(2 * follow.Lease))
	b.proxy.Hold(false)
	if err := <-asked; err != nil {
		t.Fatal(err)
	}
	b.proxy.Hold(true)
	b.want("an answer to an old question", 0, unreachable)
}

// TestTouched applies what changed and nothing else.
func TestTouched(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	a, b := newMember(t, dsn, "a"), newMember(t, dsn, "b")
	defer b.run()()
	id := a.change("prod/a/one")
	until(t, "b applies the change", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.touched) == 1 && b.touched[0] == id
	})
}

// TestSettle waits for those that answer, and for the lease of those that do not.
func TestSettle(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	a, b := newMember(t, dsn, "a"), newMember(t, dsn, "b")
	defer a.run()()
	stop := b.run()
	defer stop()
	settle := func(what string, confirmed bool, least, most time.Duration) {
		t.Helper()
		a.change(claviger.Name("prod/settle/" + strings.ReplaceAll(what, " ", "-")))
		s, err := a.Settle(t.Context())
		if err != nil || len(s.Servers) != 2 || !s.Servers[0].Confirmed || s.Servers[1].Confirmed != confirmed || s.Took < least || s.Took > most {
			t.Errorf("%s: %+v, %v; want confirmed %v within %v to %v", what, s, err, confirmed, least, most)
		}
	}
	settle("all answer", true, 0, follow.Bound)
	b.proxy.Hold(true)
	settle("one is cut off", false, follow.Bound, 2*follow.Bound)
	b.want("the one that is cut off", 0, unreachable)
	b.proxy.Hold(false)
	until(t, "it is back", func() bool { return b.Status().Trouble == nil })
	settle("it is back", true, 0, follow.Bound)
	stop()
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.change("prod/settle/one-left")
	if s, err := a.Settle(t.Context()); err != nil || len(s.Servers) != 1 || !s.Servers[0].Confirmed {
		t.Errorf("after one has left: %+v, %v", s, err)
	}
}

// TestOlderDatabase restores a copy under a server that runs, and under one that
// starts, lets it go on from there, and has it accepted.
func TestOlderDatabase(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	m := newMember(t, dsn, "a")
	m.change("prod/a/one")
	pgtest.Copy(t, dsn)
	again := func() { m.ahead.Add(int64(follow.Bound)) } // the lease is over, and so is the pause after a failure
	again()
	m.want("after the copy", 1, "")
	m.change("prod/a/two")
	m.change("prod/a/three")
	if err := m.Poll(t.Context()); err != nil {
		t.Fatal(err)
	}

	pgtest.Restore(t, dsn)
	again()
	m.want("an older copy", 0, "older copy")
	m.start()
	m.want("an older copy, after a restart", 0, "older copy")
	again()
	m.change("prod/a/other-two")
	m.change("prod/a/other-three")
	m.want("a copy that went on", 0, "does not have the last change")
	m.change("prod/a/other-four")
	again()
	m.want("a copy that went further", 0, "does not have the last change")

	pgtest.Return(t, dsn)
	again()
	m.want("the right one is back", 3, "")
	pgtest.Restore(t, dsn)
	again()
	m.want("and gone again", 0, "does not have the last change")
	from, to, holds, err := follow.Accept(t.Context(), m.db, m.cfg.Mark, true)
	if err != nil || holds || from.Number != 3 || to.Number != 4 {
		t.Errorf("a look: from %+v to %+v, %v, %v", from, to, holds, err)
	}
	again()
	m.want("after a look", 0, "does not have the last change")
	if _, _, _, err := follow.Accept(t.Context(), m.db, m.cfg.Mark, false); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	emptied := m.emptied
	m.mu.Unlock()
	again()
	m.want("accepted", 4, "")
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.accepted != 1 || m.emptied != emptied+1 {
		t.Errorf("it was told %d times of an acceptance, and %d times to drop everything", m.accepted, m.emptied-emptied)
	}
}

// TestOtherDatabase refuses to start on another database, and has a damaged mark
// be no new one.
func TestOtherDatabase(t *testing.T) {
	t.Parallel()
	m, other := newMember(t, pgtest.Start(t), "a"), newMember(t, pgtest.Start(t), "a")
	cfg := m.cfg
	cfg.Store = other.db
	if _, err := follow.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another database") {
		t.Errorf("start on another database: %v", err)
	}
	text, err := os.ReadFile(m.cfg.Mark)
	if err != nil {
		t.Fatal(err)
	}
	damaged := strings.Replace(string(text), `"number":0`, `"number":7`, 1)
	if err := os.WriteFile(m.cfg.Mark, []byte(damaged), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := follow.New(t.Context(), m.cfg); claviger.CodeOf(err) != claviger.Stale || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("start with a damaged mark: %v", err)
	}
}

// TestMarkSurvivesACutWrite cuts the last write of the mark at every byte: what
// was there before is there.
func TestMarkSurvivesACutWrite(t *testing.T) {
	t.Parallel()
	m := newMember(t, pgtest.Start(t), "a")
	for _, name := range []claviger.Name{"prod/a/one", "prod/a/two"} {
		m.change(name)
		if err := m.Poll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(m.cfg.Mark)
	if err != nil || len(whole) != 512 {
		t.Fatalf("a mark of %d bytes, %v", len(whole), err)
	}
	newest := strings.Index(string(whole), `"number":2`) / 256 * 256
	for cut := range 256 {
		torn := []byte(string(whole))
		for i := newest + cut; i < newest+256; i++ {
			torn[i] = 0
		}
		if err := os.WriteFile(m.cfg.Mark, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		from, _, _, err := follow.Accept(t.Context(), m.db, m.cfg.Mark, true)
		if want := uint64(1); err != nil || from.Number != want && cut < 200 || from.Number < want {
			t.Fatalf("cut at %d: change %d, %v", cut, from.Number, err)
		}
	}
}

// TestMarkThatCannotBeWritten confirms nothing that a restart would forget.
func TestMarkThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	a, b := newMember(t, dsn, "a"), newMember(t, dsn, "b")
	if err := os.Remove(b.cfg.Mark); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b.cfg.Mark, 0o700); err != nil { // root writes whatever may not be written
		t.Fatal(err)
	}
	b.want("nothing new", 0, "")
	a.change("prod/a/one")
	if err := b.Poll(t.Context()); err == nil {
		t.Error("a poll succeeded whose mark was not written")
	}
	b.want("something new", 0, unreachable)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.touched) != 0 {
		t.Error("it was applied")
	}
}
