package pglog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/gather"
	"github.com/jackc/pgx/v5"
)

// errMoved says that the head in the database is not where this process left
// it: a commit whose answer was lost, or another holder of the chain.
var errMoved = errors.New("the head of the chain has moved")

// commit makes a batch durable, all of it or nothing.
func (l *Log) commit(items []gather.Item) error {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	if l.unsure {
		if err := l.find(ctx); err != nil {
			return unavailable(fmt.Errorf("find head of audit chain: %w", err))
		}
	}
	head, batch := l.head, l.head.Seq+1
	ends := make([]int, len(items))
	l.buf = l.buf[:0]
	for i := range items {
		l.buf = head.Extend(l.buf, items[i].Body, batch)
		items[i].Head, ends[i] = head, len(l.buf)
	}
	l.unsure = true
	err := l.insert(ctx, items, ends, head)
	if errors.Is(err, errMoved) {
		err = cmp.Or(l.find(ctx), err)
	}
	if err != nil {
		return unavailable(fmt.Errorf("commit audit batch: %w", err))
	}
	l.head, l.unsure = head, false
	return nil
}

// find reads the head again after a commit whose outcome is not known. What
// was refused to its callers may stand in the chain then.
func (l *Log) find(ctx context.Context) error {
	epoch, head, err := scanHead(l.head.Writer, l.pool.QueryRow(ctx, "SELECT epoch, seq, hash FROM audit_writer WHERE writer = $1", l.head.Writer))
	if err != nil {
		return err
	}
	if epoch != l.epoch {
		return claviger.Errorf(claviger.Unavailable, "another server has opened this server's audit chain", "give each server its own name and restart this one")
	}
	l.head, l.unsure = head, false
	return nil
}

func scanHead(writer string, row pgx.Row) (epoch int64, head audit.Head, err error) {
	var hash []byte
	head.Writer = writer
	if err := row.Scan(&epoch, &head.Seq, &hash); err != nil {
		return 0, head, err
	}
	if copy(head.Hash[:], hash) != len(head.Hash) {
		return 0, head, errors.New("the head of the chain is damaged")
	}
	return epoch, head, nil
}

func (l *Log) insert(ctx context.Context, items []gather.Item, ends []int, head audit.Head) error {
	for i := range items {
		if err := l.partition(ctx, items[i].Time); err != nil {
			return err
		}
	}
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		// Durable on return, whatever the server's default for others is.
		if _, err := tx.Exec(ctx, "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"); err != nil {
			return fmt.Errorf("ask for durability: %w", err)
		}
		tag, err := tx.Exec(ctx, "UPDATE audit_writer SET seq = $1, hash = $2 WHERE writer = $3 AND seq = $4 AND hash = $5 AND epoch = $6",
			head.Seq, head.Hash[:], head.Writer, l.head.Seq, l.head.Hash[:], l.epoch)
		if err != nil {
			return fmt.Errorf("move head: %w", err)
		}
		if tag.RowsAffected() != 1 {
			return errMoved
		}
		from := 0
		rows := pgx.CopyFromSlice(len(items), func(i int) ([]any, error) {
			it := &items[i]
			line := l.buf[from : ends[i]-1]
			from = ends[i]
			return []any{day(it.Time), it.Head.Writer, int64(it.Head.Seq), it.Time, it.Action, string(it.Outcome),
				string(it.Key), string(it.KeyID), string(it.Principal), line}, nil
		})
		columns := []string{"day", "writer", "seq", "time", "action", "outcome", "key", "key_id", "principal", "line"}
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{"audit_record"}, columns, rows); err != nil {
			return fmt.Errorf("copy records: %w", err)
		}
		_, err = tx.Exec(ctx, "NOTIFY "+channel)
		return err
	})
	if err != nil {
		clear(l.days) // a partition may have been dropped meanwhile
	}
	return err
}

func day(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// partition makes the partition of a day, if it is not there.
func (l *Log) partition(ctx context.Context, t time.Time) error {
	from := day(t)
	name := "audit_record_" + from.Format("20060102")
	if l.days[name] {
		return nil
	}
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext('claviger audit schema'))"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s PARTITION OF audit_record FOR VALUES FROM ('%s') TO ('%s')",
			pgx.Identifier{name}.Sanitize(), from.Format(time.DateOnly), from.AddDate(0, 0, 1).Format(time.DateOnly)))
		return err
	})
	if err != nil {
		return fmt.Errorf("make partition %s: %w", name, err)
	}
	l.days[name] = true
	return nil
}
