// Package store keeps what the server remembers: keys and their wrapped blobs,
// principals, certificates, enrolment codes, grants, use counts, budgets and
// the outbox of records that await the audit log. One implementation over
// database/sql serves both dialects; packages sqlite and postgres open it.
//
// It promises: an Update is durable and whole when it returns, or has left
// nothing behind; names are unique among names and aliases; a key never has two
// active versions; the change sequence has no gaps; a damaged record is found
// and never returned.
//
// It must never hold plaintext key material, decide who may do what, or answer
// from a record whose checksum does not hold.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"claviger.dev"
)

// Limits of waits and of retries.
const (
	// Timeout bounds a transaction whose context has no deadline of its own.
	Timeout = 30 * time.Second
	// attempts bounds how often an Update runs; from the third it runs alone.
	attempts = 10
)

// Dialect is what differs between the databases. Package sqlite and package
// postgres each have one.
type Dialect struct {
	Name      string
	Shared    bool                                   // several servers may have the database open
	Rewrite   func(query string) string              // turns $n placeholders into the driver's; nil leaves them
	Contains  string                                 // name of the function (text, part) that is positive when text contains part
	SkipLock  string                                 // clause that locks the rows read and skips those locked by others
	Optimist  string                                 // statement that begins an Update which runs beside others
	Exclusive string                                 // statement that begins an Update which runs alone
	Migration string                                 // statement that keeps other servers from migrating at the same time
	Fault     func(error) *claviger.Error            // what the driver's error means; nil when it is a fault of ours
	Retry     func(error) bool                       // the transaction lost against another one and may run again
	Snapshot  func(context.Context, io.Writer) error // writes a consistent copy of the database; nil when it cannot
	Erased    func(context.Context) error            // runs after a commit that erased a blob; nil for nothing

	// Of a shared store alone.
	Next   string                                       // statement that takes the next change number; $1 is what the change touched
	Feed   func(ctx context.Context) (Feed, error)      // opens a feed
	Listen func(ctx context.Context, wake func()) error // calls wake after each change
}

// Config is what New puts together.
type Config struct {
	Dialect Dialect
	Write   *sql.DB
	Read    *sql.DB      // may be the same as Write
	Release func() error // what Close does last; nil for nothing
}

// DB is an open store. Its methods may be used by many goroutines at once.
type DB struct {
	dialect  Dialect
	write    *sql.DB
	read     *sql.DB
	release  func() error
	unclean  atomic.Bool   // an erased blob may still be in the write-ahead log
	revision atomic.Uint64 // the last committed change, for a store that is not shared
}

// New returns a store on an opened and migrated database. It closes what it
// was given when it fails.
func New(ctx context.Context, c Config) (*DB, error) {
	d := &DB{dialect: c.Dialect, write: c.Write, read: c.Read, release: c.Release}
	err := d.View(ctx, func(tx *Tx) error {
		revision, err := tx.Revision()
		d.revision.Store(revision)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Shared reports whether several servers may have the store open, so that
// what was read must be read again, or its Revision confirmed, at each use.
func (d *DB) Shared() bool { return d.dialect.Shared }

// SQL returns the database that writes go to, for the audit log that lives in
// the same PostgreSQL. Nobody else has a use for it.
func (d *DB) SQL() *sql.DB { return d.write }

// Close waits for transactions under way and closes the store.
func (d *DB) Close() error {
	var err error
	if d.read != d.write {
		err = d.read.Close()
	}
	err = errors.Join(err, d.write.Close())
	if d.release != nil {
		err = errors.Join(err, d.release())
	}
	return err
}

// View runs fn on one consistent and unchanging view of the store. Nothing can
// be written through it.
func (d *DB) View(ctx context.Context, fn func(*Tx) error) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	options := &sql.TxOptions{ReadOnly: true}
	if d.dialect.Shared {
		options.Isolation = sql.LevelRepeatableRead
	}
	t, err := d.read.BeginTx(ctx, options)
	if err != nil {
		return d.fault(ctx, "begin view", err)
	}
	defer func() { _ = t.Rollback() }()
	return fn(&Tx{ctx: ctx, db: d, sql: t})
}

// Update runs fn in one transaction and commits it; nothing of it remains when
// fn or the commit fails. Fn may run more than once and so must not touch
// anything but the transaction until Update has returned. After a method of Tx
// has failed with anything but claviger.NotFound, fn must return the error.
//
// An Update that touched keys, principals, certificates or grants takes the
// next number of the change sequence.
func (d *DB) Update(ctx context.Context, fn func(*Tx) error) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	for attempt := 1; ; attempt++ {
		begin := d.dialect.Optimist
		if attempt > 2 {
			begin = d.dialect.Exclusive
		}
		tx := &Tx{ctx: ctx, db: d, writes: true}
		err := tx.update(begin, fn)
		if err == nil {
			return tx.committed()
		}
		if attempt == attempts || d.dialect.Retry == nil || !d.dialect.Retry(err) {
			return err
		}
	}
}

// update runs fn and commits.
func (t *Tx) update(begin string, fn func(*Tx) error) error {
	var err error
	options := &sql.TxOptions{}
	if t.db.dialect.Shared {
		options.Isolation = sql.LevelSerializable
	}
	if t.sql, err = t.db.write.BeginTx(t.ctx, options); err != nil {
		return t.db.fault(t.ctx, "begin update", err)
	}
	defer func() { _ = t.sql.Rollback() }()
	if begin != "" {
		if _, err := t.exec("take lock", begin); err != nil {
			return err
		}
	}
	if err := fn(t); err != nil {
		return err
	}
	if t.changed {
		next, args := `UPDATE change_sequence SET value = value + 1 WHERE id = 1 RETURNING value`, []any(nil)
		if t.db.dialect.Shared {
			next, args = t.db.dialect.Next, []any{t.listTouched()}
		}
		if err := t.row(next, args...).Scan(&t.sequence); err != nil {
			return t.db.fault(t.ctx, "take change number", err)
		}
	}
	if err := t.sql.Commit(); err != nil {
		return t.db.fault(t.ctx, "commit", err)
	}
	return nil
}

// committed does what follows a commit. A failure to clean up does not undo
// the commit, so it is no error of the Update.
func (t *Tx) committed() error {
	if t.changed {
		// Only one Update of a store that is not shared runs at a time, but
		// two may arrive here in either order.
		for {
			last := t.db.revision.Load()
			if t.sequence <= last || t.db.revision.CompareAndSwap(last, t.sequence) {
				break
			}
		}
	}
	if t.db.dialect.Erased != nil && (t.erased || t.db.unclean.Load()) {
		err := t.db.dialect.Erased(t.ctx)
		t.db.unclean.Store(err != nil) // a view was in the way: the next Update tries again
	}
	return nil
}

// Revision returns the number of the last committed change. A store that is
// not shared answers from memory; a shared one asks the database.
func (d *DB) Revision(ctx context.Context) (uint64, error) {
	if !d.dialect.Shared {
		return d.revision.Load(), nil
	}
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	var revision uint64
	err := d.read.QueryRowContext(ctx, `SELECT value FROM change_sequence WHERE id = 1`).Scan(&revision)
	if err != nil {
		return 0, d.fault(ctx, "read change sequence", err)
	}
	return revision, nil
}

// Snapshot writes a consistent copy of the store while it is in use. A
// PostgreSQL store answers claviger.Unsupported.
func (d *DB) Snapshot(ctx context.Context, w io.Writer) error {
	if d.dialect.Snapshot == nil {
		return claviger.Errorf(claviger.Unsupported, "a PostgreSQL store is not backed up by claviger",
			"use pg_dump, and encrypt its output to the same recipients with age")
	}
	if err := d.dialect.Snapshot(ctx, w); err != nil {
		return d.fault(ctx, "write snapshot", err)
	}
	return nil
}

// Checkpoint moves committed changes out of the write-ahead log of an embedded
// store and empties it, so that erased blobs are gone from the files.
func (d *DB) Checkpoint(ctx context.Context) error {
	if d.dialect.Erased == nil {
		return nil
	}
	if err := d.dialect.Erased(ctx); err != nil {
		return d.fault(ctx, "checkpoint", err)
	}
	return nil
}

// fault turns a driver's error into one of ours.
func (d *DB) fault(ctx context.Context, what string, err error) error {
	if _, ok := errors.AsType[*claviger.Error](err); ok {
		return err
	}
	err = fmt.Errorf("%s: %w", what, err)
	if cause := context.Cause(ctx); cause != nil {
		return claviger.Errorf(claviger.Deadline, "the deadline passed or the call was given up", "try again, with more time").
			Wrap(errors.Join(err, cause))
	}
	if e := d.dialect.Fault(err); e != nil {
		return e.Wrap(err)
	}
	return err
}

// withTimeout gives a context a deadline when it has none.
func withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, Timeout)
}
