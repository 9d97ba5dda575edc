// Package pglog is the home of audit records on PostgreSQL: a table
// partitioned by day, and one chain for each server that writes.
//
// It promises that a batch and the writer's new head commit in one
// transaction, so that (writer, seq) is unique and two processes cannot both
// extend one chain: opening a chain takes it from whoever had it, and the old
// holder is refused from then on. It must never change or delete a record.
package pglog

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/gather"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

//go:embed schema.sql
var schema string

const (
	schemaVersion = 1
	commitTimeout = 10 * time.Second // for one batch; after that it is refused
	channel       = "claviger_audit"
)

// Config says where the table is.
type Config struct {
	Pool   *pgxpool.Pool    // Close does not close it
	Writer string           // this server's chain: the same after a restart, no two servers alike; at most audit.MaxWriter printable bytes
	Now    func() time.Time // nil means time.Now
}

// Log is the open table with this server's chain. It implements audit.Log.
type Log struct {
	pool  *pgxpool.Pool
	queue *gather.Queue
	stop  context.CancelFunc // ends listen
	tasks sync.WaitGroup

	// Owned by the goroutine that commits (by Open before it starts).
	head   audit.Head
	epoch  int64 // which opening of the chain this is
	unsure bool  // the outcome of the last commit is not known
	buf    []byte
	days   map[string]bool // partitions that are there
}

// Open makes or checks the tables, takes the writer's chain and appends a
// record of the start.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Writer == "" || len(cfg.Writer) > audit.MaxWriter || audit.Clean(cfg.Writer) != cfg.Writer {
		return nil, claviger.Errorf(claviger.Invalid, "the audit writer has no usable name", "give each server its own name of at most 64 printable bytes")
	}
	l := &Log{pool: cfg.Pool, days: make(map[string]bool)}
	if err := pgx.BeginFunc(ctx, l.pool, migrate); err != nil {
		return nil, unavailable(fmt.Errorf("migrate audit tables: %w", err))
	}
	if err := l.take(ctx, cfg.Writer); err != nil {
		return nil, unavailable(fmt.Errorf("take audit chain: %w", err))
	}
	found := map[string]string{"chain": "continues"}
	if l.head.Seq == 0 {
		found["chain"] = "begins"
	}
	start, err := gather.NewItem(&audit.Record{Time: cfg.Now(), Action: audit.ActionStart, Outcome: audit.Allowed, UID: -1, Detail: found})
	if err != nil {
		return nil, err
	}
	if err := l.commit([]gather.Item{start}); err != nil {
		return nil, err
	}
	l.queue = gather.New(l.commit)
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	l.tasks.Go(func() { l.listen(background) })
	return l, nil
}

// migrate brings the tables to this version, and refuses newer or edited ones.
func migrate(tx pgx.Tx) error {
	ctx := context.Background()
	sum := sha256.Sum256([]byte(schema))
	want := hex.EncodeToString(sum[:])
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext('claviger audit schema'))"); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	var there bool
	if err := tx.QueryRow(ctx, "SELECT to_regclass('audit_schema') IS NOT NULL").Scan(&there); err != nil {
		return fmt.Errorf("look for tables: %w", err)
	}
	if there {
		var version int
		var hash string
		if err := tx.QueryRow(ctx, "SELECT version, hash FROM audit_schema ORDER BY version DESC LIMIT 1").Scan(&version, &hash); err != nil {
			return fmt.Errorf("read version: %w", err)
		}
		if version != schemaVersion || hash != want {
			return claviger.Errorf(claviger.Unsupported, "the audit tables were made by another version", "start the version that made them, or a newer one")
		}
		return nil
	}
	if _, err := tx.Exec(ctx, schema); err != nil {
		return fmt.Errorf("make tables: %w", err)
	}
	_, err := tx.Exec(ctx, "INSERT INTO audit_schema VALUES ($1, $2)", schemaVersion, want)
	return err
}

// take makes this process the holder of the chain.
func (l *Log) take(ctx context.Context, writer string) error {
	epoch, head, err := scanHead(writer, l.pool.QueryRow(ctx, `INSERT INTO audit_writer VALUES ($1, 1, 0, $2)
		ON CONFLICT (writer) DO UPDATE SET epoch = audit_writer.epoch + 1 RETURNING epoch, seq, hash`, writer, make([]byte, sha256.Size)))
	l.epoch, l.head = epoch, head
	return err
}

func unavailable(err error) error {
	if e, ok := errors.AsType[*claviger.Error](err); ok {
		return e
	}
	return claviger.Errorf(claviger.Unavailable, "the audit log cannot be written or read", "look at the database; it goes on by itself").Wrap(err)
}

// Append implements audit.Log.
func (l *Log) Append(ctx context.Context, records ...*audit.Record) error {
	return l.queue.Append(ctx, records...)
}

// Head implements audit.Log.
func (l *Log) Head(ctx context.Context) ([]audit.Head, error) {
	rows, err := l.pool.Query(ctx, "SELECT writer, seq, hash FROM audit_writer WHERE seq > 0 ORDER BY writer")
	if err != nil {
		return nil, readError(ctx, err)
	}
	heads, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (h audit.Head, err error) {
		var hash []byte
		err = row.Scan(&h.Writer, &h.Seq, &hash)
		copy(h.Hash[:], hash)
		return h, err
	})
	if err != nil {
		return nil, readError(ctx, err)
	}
	return heads, nil
}

func readError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return unavailable(err)
}

// Wait implements audit.Log. It hears of other servers' records too.
func (l *Log) Wait(ctx context.Context, after []audit.Head) error {
	return l.queue.Wait(ctx, after, l.Head)
}

// listen wakes those who wait when any server has committed a batch. While
// the connection is down they are woken once a second to look for themselves.
func (l *Log) listen(ctx context.Context) {
	for ctx.Err() == nil {
		if l.heard(ctx) != nil && ctx.Err() == nil {
			l.queue.Grow()
			timer := time.NewTimer(time.Second)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
		}
	}
}

func (l *Log) heard(ctx context.Context) error {
	pooled, err := l.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	conn := pooled.Hijack() // a connection that listens is not lent to others
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	l.queue.Grow() // what came before LISTEN was not heard
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
		l.queue.Grow()
	}
}

// Close implements audit.Log.
func (l *Log) Close() error {
	if l.queue.Close() {
		l.stop()
	}
	l.tasks.Wait()
	return nil
}
