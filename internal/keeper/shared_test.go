package keeper_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/pglog"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store/postgres"
	"claviger.dev/internal/store/postgres/pgtest"
)

// sharedWorld is one of several servers on one PostgreSQL.
func sharedWorld(t *testing.T, dsn, writer string) *world {
	t.Helper()
	w := &world{TB: t, keys: &watched{Custodian: custodian(t)}}
	var err error
	if w.db, err = postgres.Open(t.Context(), postgres.Config{DSN: dsn}); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	log, err := pglog.Open(t.Context(), pglog.Config{Pool: pool, Writer: writer})
	if err != nil {
		t.Fatal(err)
	}
	w.log = &watchedLog{Log: log}
	cfg := w.config()
	cfg.Node, cfg.Mark = writer, filepath.Join(t.TempDir(), "mark")
	w.open(cfg)
	t.Cleanup(w.close)
	return w
}

// following runs servers in the background until the test ends.
func following(t *testing.T, servers ...*world) {
	t.Helper()
	for _, w := range servers {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// settle waits until every server has taken notice, and none of them by its
// lease's end.
func (w *world) settle() {
	s, err := w.Settle(w.Context(), w.op)
	if err != nil {
		w.Error(err)
	}
	for _, one := range s.Servers {
		if !one.Confirmed {
			w.Errorf("%s did not confirm change %d in %v", one.Node, s.Number, s.Took)
		}
	}
}

// Two servers on one database: what is revoked through one is refused by it at
// once and by the other once that has confirmed it, and what the other began
// before is not released then.
func TestTwoServers(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t)
	a, b := sharedWorld(t, dsn, "a"), sharedWorld(t, dsn, "b")
	if !a.Roots()[0].Equal(b.Roots()[0]) {
		t.Fatal("the servers have different CAs")
	}
	following(t, a, b)
	by := a.caller(7)
	a.key("prod/app/key", claviger.Ed25519)
	grant := func() keeper.GrantView {
		return a.grant(by, "prod/app/key", claviger.Conditions{}, claviger.Sign)
	}
	g := grant()
	for range 20 {
		for _, w := range []*world{a, b} {
			if err := sign(w, by, "prod/app/key"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.RevokeGrant(t.Context(), a.op, string(g.ID), "test"); err != nil {
			t.Fatal(err)
		}
		wantCode(t, "sign where it was revoked", sign(a, by, "prod/app/key"), claviger.Denied)
		a.settle()
		for _, w := range []*world{b, a} {
			wantCode(t, "sign after the revocation", sign(w, by, "prod/app/key"), claviger.Denied)
		}
		g = grant()
	}
	revoke := func() {
		b.keys.during.Store(nil)
		if _, err := a.RevokeGrant(t.Context(), a.op, string(g.ID), "test"); err != nil {
			t.Error(err)
		}
		a.settle()
	}
	b.keys.during.Store(&revoke)
	wantCode(t, "sign while the other server revokes", sign(b, by, "prod/app/key"), claviger.Denied)

	// Both rotate at once: one active version, whoever comes first.
	done := make(chan error, 8)
	for i := range cap(done) {
		w := []*world{a, b}[i%2]
		go func() { _, err := w.Rotate(t.Context(), w.op, "prod/app/key", "", 0); done <- err }()
	}
	rotated := 1
	for range cap(done) {
		switch err := <-done; claviger.CodeOf(err) {
		case "":
			rotated++
		case claviger.Conflict:
		default:
			t.Error(err)
		}
	}
	view, err := b.Key(t.Context(), b.op, "prod/app/key")
	if err != nil || len(view.Versions) != rotated || view.ActiveVersion().Number != uint32(rotated) {
		t.Errorf("%d versions, %d active, after %d rotations: %v", len(view.Versions), view.ActiveVersion().Number, rotated, err)
	}

	// A count is exact over both.
	a.grant(by, "prod/app/key", claviger.Conditions{Count: 100}, claviger.Sign)
	turn := make(chan *world, 300)
	for range 150 {
		turn <- a
		turn <- b
	}
	if n := atOnce(t, 300, func() error { return sign(<-turn, by, "prod/app/key") }); n != 100 {
		t.Errorf("%d uses of a budget of 100 over two servers", n)
	}
	if report, err := audit.Verify(t.Context(), a.log, audit.VerifyOptions{}); err != nil || len(report.Faults) != 0 || len(report.Heads) != 2 {
		t.Errorf("the log: %+v, %v", report, err)
	}
}
