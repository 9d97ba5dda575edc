package pglog_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/audittest"
	"claviger.dev/internal/audit/pglog"
	"claviger.dev/internal/store/postgres/pgtest"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
)

func pool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), pgtest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func open(t *testing.T, pool *pgxpool.Pool, writer string) *pglog.Log {
	t.Helper()
	log, err := pglog.Open(t.Context(), pglog.Config{Pool: pool, Writer: writer})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { _ = log.Close() })
	return log
}

func TestSuite(t *testing.T) {
	t.Parallel()
	audittest.Run(t, func(t *testing.T) audittest.Home {
		pool := pool(t)
		return func(t *testing.T) audit.Log { return open(t, pool, "server-1") }
	})
}

func TestTwoServers(t *testing.T) {
	t.Parallel()
	pool := pool(t)
	a, b := open(t, pool, "server-a"), open(t, pool, "server-b")
	var wg sync.WaitGroup
	for _, log := range []*pglog.Log{a, b} {
		wg.Go(func() {
			for n := range 20 {
				if err := log.Append(t.Context(), audittest.Sample(n)); err != nil {
					t.Errorf("append: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if report := audittest.Sound(t, a, audit.VerifyOptions{}); len(report.Heads) != 2 || report.Records != 42 {
		t.Errorf("report: %+v", report)
	}
	heads, err := a.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	woken := make(chan error, 1)
	go func() { woken <- a.Wait(t.Context(), heads) }()
	audittest.Append(t, b, audittest.Sample(99))
	if err := <-woken; err != nil {
		t.Errorf("wait for another server's record: %v", err)
	}
}

// A writer's chain belongs to the process that opened it last.
func TestTakenChain(t *testing.T) {
	t.Parallel()
	pool := pool(t)
	old := open(t, pool, "server-1")
	audittest.Append(t, old, audittest.Sample(0))
	young := open(t, pool, "server-1")
	for range 2 {
		if err := old.Append(t.Context(), audittest.Sample(1)); !errors.Is(err, claviger.Unavailable) {
			t.Errorf("append by the old holder: %v, want unavailable", err)
		}
	}
	audittest.Append(t, young, audittest.Sample(2))
	audittest.Sound(t, young, audit.VerifyOptions{})
}

// A log that was refused goes on by itself once the database is writable.
func TestGoesOnByItself(t *testing.T) {
	t.Parallel()
	pool := pool(t)
	log := open(t, pool, "server-1")
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec("ALTER TABLE audit_record RENAME TO away")
	if err := log.Append(t.Context(), audittest.Sample(0)); !errors.Is(err, claviger.Unavailable) {
		t.Errorf("append without a table: %v, want unavailable", err)
	}
	exec("ALTER TABLE away RENAME TO audit_record")
	audittest.Append(t, log, audittest.Sample(1))
	if got := audittest.Collect(t, log, audit.Query{Action: "use."}); len(got) != 1 || got[0].RequestID != "request-1" {
		t.Errorf("records: %+v", got)
	}
	audittest.Sound(t, log, audit.VerifyOptions{})
}

func TestTampering(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		sql  string
		want []audit.Fault
	}{
		"a removed record":  {"DELETE FROM audit_record WHERE seq = 3", []audit.Fault{{Seq: 3, Last: 3, Kind: audit.Removed}}},
		"an altered record": {"UPDATE audit_record SET line = set_byte(line, 200, 65) WHERE seq = 3", []audit.Fault{{Seq: 3, Last: 3, Kind: audit.Altered}}},
		"an altered column": {"UPDATE audit_record SET key = 'hidden/from/queries' WHERE seq = 3", []audit.Fault{{Seq: 3, Last: 3, Kind: audit.Altered}}},
		"another time":      {"UPDATE audit_record SET time = time + interval '1 microsecond' WHERE seq = 3", []audit.Fault{{Seq: 3, Last: 3, Kind: audit.Altered}}},
		"swapped lines": {`UPDATE audit_record a SET line = b.line FROM audit_record b WHERE a.seq IN (3, 4) AND b.seq = 7 - a.seq`,
			[]audit.Fault{{Seq: 3, Last: 3, Kind: audit.Altered}, {Seq: 4, Last: 4, Kind: audit.Altered}, {Seq: 4, Last: 4, Kind: audit.Reordered}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pool(t)
			log := open(t, pool, "w")
			for n := range 5 {
				audittest.Append(t, log, audittest.Sample(n))
			}
			if _, err := pool.Exec(t.Context(), test.sql); err != nil {
				t.Fatal(err)
			}
			report, err := audit.Verify(t.Context(), log, audit.VerifyOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for i := range report.Faults {
				report.Faults[i].Writer, report.Faults[i].Detail = "", ""
			}
			if diff := cmp.Diff(test.want, report.Faults); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

// Days long past and far ahead get their partitions as they come.
func TestClockSetFar(t *testing.T) {
	t.Parallel()
	pool := pool(t)
	log := open(t, pool, "w")
	for n, years := range []int{0, 10, -10} {
		r := audittest.Sample(n)
		r.Time = r.Time.AddDate(years, 0, 0)
		audittest.Append(t, log, r)
	}
	var days int
	if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_record'::regclass").Scan(&days); err != nil || days != 4 {
		t.Errorf("%d partitions, want 4: %v", days, err)
	}
	audittest.Sound(t, log, audit.VerifyOptions{})
}

func TestWriterNames(t *testing.T) {
	t.Parallel()
	pool := pool(t)
	for _, name := range []string{"", "a\x00b", "a\nb", string(make([]byte, 65))} {
		if _, err := pglog.Open(t.Context(), pglog.Config{Pool: pool, Writer: name}); !errors.Is(err, claviger.Invalid) {
			t.Errorf("open as %q: %v, want invalid", name, err)
		}
	}
}

func TestEditedSchemaIsRefused(t *testing.T) {
	t.Parallel()
	pool := pool(t)
	_ = open(t, pool, "w").Close()
	if _, err := pool.Exec(t.Context(), "UPDATE audit_schema SET hash = 'edited'"); err != nil {
		t.Fatal(err)
	}
	if _, err := pglog.Open(t.Context(), pglog.Config{Pool: pool, Writer: "w"}); !errors.Is(err, claviger.Unsupported) {
		t.Errorf("open: %v, want unsupported", err)
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			pool, err := pgxpool.New(b.Context(), pgtest.Start(b))
			if err != nil {
				b.Fatal(err)
			}
			defer pool.Close()
			log, err := pglog.Open(b.Context(), pglog.Config{Pool: pool, Writer: "w", Now: time.Now})
			if err != nil {
				b.Fatal(err)
			}
			defer log.Close()
			b.ResetTimer()
			var wg sync.WaitGroup
			for c := range callers {
				wg.Go(func() {
					for n := c; n < b.N; n += callers {
						if err := log.Append(b.Context(), audittest.Sample(0)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
