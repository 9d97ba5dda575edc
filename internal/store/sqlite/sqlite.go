// Package sqlite opens the embedded store: one database file in the server's
// data directory, which one process at a time may have open.
//
// It promises that a commit is on the disk when it returns, that erased blobs
// are overwritten in the files, and that a file which is not a store of ours,
// or is damaged, is refused. It must never open a store that another process
// has open, nor create one in place of a file that it cannot read.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// ApplicationID stands in the header of the file: "CLVG".
const ApplicationID = 0x434c5647

// busyTimeout is how long a statement waits for a lock, in milliseconds.
const busyTimeout = 10_000

// readers is how many views run at once.
const readers = 4

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations returns the schema, step by step.
func Migrations() ([]store.Migration, error) { return store.Migrations(migrations, "migrations") }

// Open opens the store in the file at path, and makes it when it is not there;
// its directory must exist. It answers claviger.Conflict when another process
// has the store open, and claviger.Invalid when the file is something else.
func Open(ctx context.Context, path string) (*store.DB, error) {
	unlock, err := Lock(path)
	if err != nil {
		return nil, err
	}
	if err := claim(ctx, path); err != nil {
		return nil, errors.Join(err, unlock())
	}
	write, err := sql.Open("sqlite", dsn(path, "_txlock=immediate"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), unlock())
	}
	write.SetMaxOpenConns(1)
	d := Dialect(write, path)
	all, err := Migrations()
	if err == nil {
		err = store.Migrate(ctx, write, d, all)
	}
	if err != nil {
		return nil, errors.Join(err, write.Close(), unlock())
	}
	read, err := sql.Open("sqlite", dsn(path, "_pragma=query_only(1)"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), write.Close(), unlock())
	}
	read.SetMaxOpenConns(readers)
	read.SetMaxIdleConns(readers)
	return store.New(ctx, store.Config{Dialect: d, Write: write, Read: read, Release: unlock})
}

// dsn names the file and what each connection to it sets.
func dsn(path, more string) string {
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + strings.Join([]string{
		fmt.Sprintf("_pragma=busy_timeout(%d)", busyTimeout),
		"_pragma=journal_mode(WAL)",
		"_pragma=synchronous(FULL)",
		"_pragma=foreign_keys(1)",
		"_pragma=trusted_schema(0)",
		"_pragma=secure_delete(1)",
		"_pragma=cell_size_check(1)",
		"_pragma=cache_size(-16384)", // 16 MiB a connection at most
		more,
	}, "&")
}

// claim refuses a file that is not a store, before SQLite can change anything
// in it, and marks a new or empty one as ours.
func claim(ctx context.Context, path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // SQLite would make it 0644
	if err != nil {
		return cannotOpen(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	header := make([]byte, 72)
	n, err := io.ReadFull(f, header)
	switch {
	case n == 0 && errors.Is(err, io.EOF):
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return cannotOpen(err)
	case n < len(header) || string(header[:16]) != "SQLite format 3\x00" || binary.BigEndian.Uint32(header[68:]) != ApplicationID:
		if _, err := os.Stat(path + "-journal"); err == nil {
			break // marking it was cut short; SQLite takes it back
		}
		return errForeign
	default:
		return nil
	}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath())
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var objects int
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema`).Scan(&objects); err != nil {
		return wrap("read store", err)
	}
	if objects != 0 {
		return errForeign
	}
	if _, err := db.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", ApplicationID)); err != nil {
		return wrap("mark store", err)
	}
	return nil
}

var errForeign = claviger.Errorf(claviger.Invalid, "the file is not a claviger store", "check the data directory; move the file away if it does not belong there")

// Lock takes the exclusive right to the store at path, which need not be there
// yet, until the returned function is called. The lock is a file beside it.
func Lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, cannotOpen(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = fmt.Errorf("lock store: %w", errors.Join(err, f.Close()))
		return nil, claviger.Errorf(claviger.Conflict, "another process has the store open",
			"stop the other claviger server of this data directory, or use PostgreSQL for several servers").Wrap(err)
	}
	return f.Close, nil // the file stays: removing it would race with the next to lock it
}

func cannotOpen(err error) error {
	return claviger.Errorf(claviger.Unavailable, "the store cannot be opened",
		"check that the data directory exists, belongs to the server's user and is writable").Wrap(err)
}

// Sequence returns the change sequence of the store in a file that nobody has
// open, without changing the file's content.
func Sequence(ctx context.Context, path string) (revision uint64, err error) {
	if err := claim(ctx, path); err != nil {
		return 0, err
	}
	db, err := sql.Open("sqlite", dsn(path, "mode=rw"))
	if err != nil {
		return 0, fmt.Errorf("open store: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	if err := db.QueryRowContext(ctx, `SELECT value FROM change_sequence WHERE id = 1`).Scan(&revision); err != nil {
		return 0, wrap("read change sequence", err)
	}
	return revision, nil
}

func wrap(what string, err error) error {
	err = fmt.Errorf("%s: %w", what, err)
	if e := fault(err); e != nil {
		return e.Wrap(err)
	}
	return err
}

// Dialect returns what is particular to SQLite, for a database at path.
func Dialect(write *sql.DB, path string) store.Dialect {
	return store.Dialect{
		Name:     "sqlite",
		Rewrite:  func(query string) string { return strings.ReplaceAll(query, "$", "?") },
		Contains: "instr",
		Fault:    fault,
		Snapshot: func(ctx context.Context, w io.Writer) error { return snapshot(ctx, path, w) },
		Erased:   func(ctx context.Context) error { return checkpoint(ctx, write) },
	}
}

// checkpoint copies the write-ahead log into the database and empties it. It
// does not wait long for views that still read from the log.
func checkpoint(ctx context.Context, db *sql.DB) (err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := conn.ExecContext(ctx, `PRAGMA busy_timeout = 250`); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	defer func() {
		_, restore := conn.ExecContext(context.WithoutCancel(ctx), fmt.Sprintf(`PRAGMA busy_timeout = %d`, busyTimeout))
		err = errors.Join(err, restore)
	}()
	var busy, pages, moved int
	if err := conn.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &pages, &moved); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if busy != 0 {
		return claviger.Errorf(claviger.Unavailable, "a view keeps the write-ahead log in use", "try again")
	}
	return nil
}

// snapshot copies the database into a temporary file beside it, and that to w.
// It reads by a connection of its own, so that updates go on meanwhile.
func snapshot(ctx context.Context, path string, w io.Writer) (err error) {
	db, err := sql.Open("sqlite", dsn(path, "mode=rw"))
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	f, err := os.CreateTemp(filepath.Dir(path), "snapshot-*.tmp") // mode 0600
	if err != nil {
		return fmt.Errorf("create snapshot: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if _, err := db.ExecContext(ctx, `VACUUM INTO ?1`, f.Name()); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if _, err := io.Copy(w, f); err != nil {
		return fmt.Errorf("copy snapshot: %w", err)
	}
	return nil
}

// fault says what SQLite's error means; nil for a fault of ours.
func fault(err error) *claviger.Error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errFull
	}
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EIO) {
		return errDisk
	}
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return nil
	}
	switch e.Code() {
	case lib.SQLITE_CONSTRAINT_UNIQUE, lib.SQLITE_CONSTRAINT_PRIMARYKEY:
		return claviger.Errorf(claviger.Conflict, "it exists already, or two versions would be active", "read it again and repeat the change")
	case lib.SQLITE_CONSTRAINT_FOREIGNKEY:
		return claviger.Errorf(claviger.NotFound, "what it refers to is not there", "read it again and repeat the change")
	}
	switch e.Code() & 0xff {
	case lib.SQLITE_FULL:
		return errFull
	case lib.SQLITE_READONLY, lib.SQLITE_IOERR, lib.SQLITE_CANTOPEN, lib.SQLITE_PERM:
		return errDisk
	case lib.SQLITE_BUSY, lib.SQLITE_LOCKED, lib.SQLITE_PROTOCOL:
		return claviger.Errorf(claviger.Unavailable, "the store is busy", "try again")
	case lib.SQLITE_TOOBIG:
		return claviger.Errorf(claviger.TooLarge, "the record is too large", "shorten it")
	case lib.SQLITE_NOTADB:
		return errForeign
	case lib.SQLITE_CORRUPT:
		return claviger.Errorf(claviger.Internal, "the store is damaged and is not used", "restore it from a backup")
	}
	return nil
}

var (
	errFull = claviger.Errorf(claviger.Unavailable, "the disk of the store is full", "free space on it; the server goes on by itself")
	errDisk = claviger.Errorf(claviger.Unavailable, "the store cannot be read or written",
		"check that its disk is healthy and writable; the server goes on by itself")
)
