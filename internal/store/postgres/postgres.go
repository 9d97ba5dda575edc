// Package postgres opens the store that several servers share: tables in a
// PostgreSQL database of its own.
//
// It promises that an Update is serializable and is run again, a bounded number
// of times, when it lost against another. It must never use a database whose
// encoding could change text, nor wait without end.
package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"embed"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"claviger.dev"
	"claviger.dev/internal/store"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations returns the schema, step by step.
func Migrations() ([]store.Migration, error) { return store.Migrations(migrations, "migrations") }

// Config says where the database is.
type Config struct {
	// DSN is a connection string or URL as libpq takes it. Name a password
	// file with passfile, or client certificates, rather than a password.
	DSN string
	// Writers and Readers bound the connections for updates and for views:
	// 8 and 16 when 0.
	Writers, Readers int
}

// minVersion is the oldest server that is supported, as server_version_num.
const minVersion = 130000

// Open connects to the database and brings its tables up to date. The database
// must exist, have the encoding UTF8 and belong to the user who connects.
func Open(ctx context.Context, c Config) (*store.DB, error) {
	config, err := pgx.ParseConfig(c.DSN)
	if err != nil { // its text may hold a password
		return nil, claviger.Errorf(claviger.Invalid, "the connection string of the database is not valid",
			"write it as postgres://user@host/database?sslmode=verify-full")
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = 5 * time.Second
	}
	for name, value := range map[string]string{
		"application_name":                    "claviger",
		"statement_timeout":                   "30s",
		"lock_timeout":                        "20s",
		"idle_in_transaction_session_timeout": "60s",
		"synchronous_commit":                  "on",
	} {
		if _, set := config.RuntimeParams[name]; !set {
			config.RuntimeParams[name] = value
		}
	}
	ctx, cancel := context.WithTimeout(ctx, store.Timeout)
	defer cancel()
	write, read := pool(config, c.Writers, 8), pool(config, c.Readers, 16)
	if err := prepare(ctx, write); err != nil {
		if e := fault(err); e != nil {
			err = e.Wrap(err)
		}
		return nil, errors.Join(err, write.Close(), read.Close())
	}
	d := Dialect()
	d.Feed = func(ctx context.Context) (store.Feed, error) { return openFeed(ctx, config) }
	d.Listen = func(ctx context.Context, wake func()) error { return listen(ctx, config, wake) }
	return store.New(ctx, store.Config{Dialect: d, Write: write, Read: read})
}

func pool(config *pgx.ConnConfig, size, usual int) *sql.DB {
	if size <= 0 {
		size = usual
	}
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	db.SetConnMaxIdleTime(5 * time.Minute)
	return db
}

func prepare(ctx context.Context, db *sql.DB) error {
	var encoding string
	var version int
	if err := db.QueryRowContext(ctx, `SELECT current_setting('server_encoding'), current_setting('server_version_num')::int`).
		Scan(&encoding, &version); err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	if encoding != "UTF8" || version < minVersion {
		return claviger.Errorf(claviger.Invalid, "the database is not one that can hold a store",
			"use PostgreSQL 13 or newer and a database of its own with encoding UTF8").
			Wrap(fmt.Errorf("version %d, encoding %s", version, encoding))
	}
	all, err := Migrations()
	if err != nil {
		return err
	}
	return store.Migrate(ctx, db, Dialect(), all)
}

// Dialect returns what is particular to PostgreSQL, but for the connections of
// their own that a server follows the store by.
//
// An Update begins with a lock that all share, and from its third attempt with
// one that excludes the rest, so that it cannot lose for ever. LOCK TABLE comes
// before the transaction's snapshot is taken.
func Dialect() store.Dialect {
	return store.Dialect{
		Name:      "postgres",
		Shared:    true,
		Contains:  "strpos",
		SkipLock:  "FOR UPDATE SKIP LOCKED",
		Optimist:  "LOCK TABLE change_sequence IN ROW EXCLUSIVE MODE",
		Exclusive: "LOCK TABLE change_sequence IN EXCLUSIVE MODE",
		Migration: "SELECT pg_advisory_xact_lock(4849362)", // any fixed number
		Next:      "UPDATE change_sequence SET value = value + 1, touched = $1 WHERE id = 1 RETURNING value",
		Fault:     fault,
		Retry: func(err error) bool {
			e, ok := errors.AsType[*pgconn.PgError](err)
			return ok && (e.Code == "40001" || e.Code == "40P01")
		},
	}
}

// fault says what an error of the driver or the server means (PostgreSQL
// documentation, appendix A); nil for a fault of ours.
func fault(err error) *claviger.Error {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		_, network := errors.AsType[net.Error](err)
		_, connect := errors.AsType[*pgconn.ConnectError](err)
		if network || connect || errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
			errors.Is(err, net.ErrClosed) || errors.Is(err, pgx.ErrTxCommitRollback) || pgconn.SafeToRetry(err) {
			return errLost
		}
		return nil
	}
	switch e.Code {
	case "23505":
		return claviger.Errorf(claviger.Conflict, "it exists already, or two versions would be active", "read it again and repeat the change")
	case "23503":
		return claviger.Errorf(claviger.NotFound, "what it refers to is not there", "read it again and repeat the change")
	case "40001", "40P01", "55P03", "57014":
		return claviger.Errorf(claviger.Unavailable, "the database is busy", "try again")
	case "53100":
		return claviger.Errorf(claviger.Unavailable, "the disk of the database is full", "free space on it; the server goes on by itself")
	case "25006":
		return claviger.Errorf(claviger.Unavailable, "the database is read-only", "connect to the primary; the server goes on by itself")
	case "22021", "22P05":
		return claviger.Errorf(claviger.Invalid, "a text is not valid UTF-8 or contains a NUL", "send text as UTF-8 without control characters")
	case "28000", "28P01", "3D000", "42501":
		return claviger.Errorf(claviger.Unavailable, "the database refuses the server", "check the database, its user and what the user may do")
	case "XX001", "XX002":
		return claviger.Errorf(claviger.Internal, "the database is damaged and is not used", "restore it from a backup")
	}
	switch e.Code[:min(2, len(e.Code))] {
	case "08", "53", "57", "58":
		return errLost
	}
	return nil
}

var errLost = claviger.Errorf(claviger.Unavailable, "the database cannot be reached or is not ready",
	"check that it runs and accepts connections; the server goes on by itself")
