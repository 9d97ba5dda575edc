package keeper

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"claviger.dev/internal/audit"
	"claviger.dev/internal/failpoint"
	"claviger.dev/internal/store"
)

// outbox follows the rows whose records are in the audit log already and which
// wait to be dropped. They are dropped in batches: a row that survives a crash
// is recognised by its id.
type outbox struct {
	mu     sync.Mutex // guards what follows
	finish []uint64
}

// done says that the record of a row is durable.
func (o *outbox) done(seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.finish = append(o.finish, seq)
}

// dropDone drops the rows whose records are durable.
func (k *Keeper) dropDone(ctx context.Context) error {
	k.outbox.mu.Lock()
	seqs := k.outbox.finish
	k.outbox.finish = nil
	k.outbox.mu.Unlock()
	if len(seqs) == 0 {
		return nil
	}
	err := k.cfg.Store.Update(ctx, func(tx *store.Tx) error { return tx.DropOutbox(seqs...) })
	if err != nil {
		k.outbox.mu.Lock()
		k.outbox.finish = append(k.outbox.finish, seqs...)
		k.outbox.mu.Unlock()
	}
	return err
}

// drain brings records to the audit log that a crash or a fault of the log
// left in the outbox. Rows younger than age are left to whom is writing them.
func (k *Keeper) drain(ctx context.Context, age time.Duration) error {
	if err := k.dropDone(ctx); err != nil {
		return err
	}
	for {
		n, err := k.drainSome(ctx, age)
		if err != nil || n == 0 {
			return err
		}
	}
}

func (k *Keeper) drainSome(ctx context.Context, age time.Duration) (int, error) {
	var rows []store.Outgoing
	err := k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		var err error
		rows, err = tx.Outbox(100)
		return err
	})
	if err != nil {
		return 0, err
	}
	n := 0
	for _, row := range rows {
		record, err := outgoingRecord(row)
		if err != nil {
			return n, err
		}
		if age > 0 && k.cfg.Now().Sub(record.Time).Abs() < age {
			continue
		}
		there, err := k.isRecorded(ctx, record)
		if err != nil {
			return n, err
		}
		if !there {
			failpoint.Hit(failpoint.OutboxReplay)
			if err := k.append(ctx, record); err != nil {
				return n, err
			}
			failpoint.Hit(failpoint.OutboxReplayed)
		}
		if err := k.cfg.Store.Update(ctx, func(tx *store.Tx) error { return tx.DropOutbox(row.Seq) }); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func outgoingRecord(row store.Outgoing) (*audit.Record, error) {
	record := new(audit.Record)
	if err := json.Unmarshal(row.Line, record); err != nil {
		return nil, fmt.Errorf("read outbox row %d: %w", row.Seq, err)
	}
	return record, nil
}

// isRecorded reports whether a change's record is in the audit log already.
func (k *Keeper) isRecorded(ctx context.Context, record *audit.Record) (bool, error) {
	found := false
	at := record.Time.Truncate(time.Microsecond)
	q := audit.Query{From: at, To: at.Add(time.Microsecond), Action: record.Action}
	err := k.cfg.Audit.Iterate(ctx, q, func(l audit.Line) error {
		found = found || l.Record.Detail[outboxDetail] == record.Detail[outboxDetail]
		return nil
	})
	return found, err
}
