package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/failpoint"
)

// Migration is one numbered step of a schema. Before and After, which may be
// nil, run in its transaction: a schema first expands, code moves what is
// there, and a later migration contracts.
type Migration struct {
	Number int    // from 1, without gaps
	Name   string // file name
	SQL    string // statements, each of which ends with a semicolon at the end of a line, where no other stands
	Before func(context.Context, *sql.Tx) error
	After  func(context.Context, *sql.Tx) error
}

// Migrations reads the numbered files (such as "0001_start.sql") of a folder.
func Migrations(fsys fs.FS, dir string) ([]Migration, error) {
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	var all []Migration
	for i, e := range entries { // in the order of names
		text, err := fs.ReadFile(fsys, path.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read migration: %w", err)
		}
		digits, _, _ := strings.Cut(e.Name(), "_")
		if number, err := strconv.Atoi(digits); err != nil || number != i+1 {
			return nil, fmt.Errorf("migration %q is not number %d", e.Name(), i+1)
		}
		all = append(all, Migration{Number: i + 1, Name: e.Name(), SQL: string(text)})
	}
	return all, nil
}

// Sum is the SHA-256 of the migration's text, in hex.
func (m Migration) Sum() string {
	sum := sha256.Sum256([]byte(m.SQL))
	return hex.EncodeToString(sum[:])
}

// Migrate brings a database up to date, each migration in one transaction with
// the record of it. It refuses a database that has migrations which this
// program does not know, or knows differently.
func Migrate(ctx context.Context, db *sql.DB, d Dialect, all []Migration) error {
	for {
		done, err := migrateOne(ctx, db, d, all)
		if err != nil {
			if e := d.Fault(err); e != nil {
				return e.Wrap(err)
			}
			return err
		}
		if done {
			return nil
		}
	}
}

// migrateOne applies the next migration; done when there is none.
func migrateOne(ctx context.Context, db *sql.DB, d Dialect, all []Migration) (done bool, err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return false, fmt.Errorf("begin migration: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	if d.Migration != "" {
		if _, err := tx.ExecContext(ctx, d.Migration); err != nil {
			return false, fmt.Errorf("lock migrations: %w", err)
		}
	}
	if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS migrations (
		number BIGINT PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, applied TEXT NOT NULL)`); err != nil {
		return false, fmt.Errorf("create table of migrations: %w", err)
	}
	applied, err := checkApplied(ctx, tx, all)
	if err != nil || applied == len(all) {
		return true, err
	}
	m := all[applied]
	failpoint.Hit(failpoint.MigrateBegin)
	if m.Before != nil {
		if err := m.Before(ctx, tx); err != nil {
			return false, fmt.Errorf("before migration %s: %w", m.Name, err)
		}
	}
	for statement := range strings.SplitAfterSeq(m.SQL, ";\n") {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return false, fmt.Errorf("migration %s: %w", m.Name, err)
		}
		failpoint.Hit(failpoint.MigrateStatement)
	}
	if m.After != nil {
		if err := m.After(ctx, tx); err != nil {
			return false, fmt.Errorf("after migration %s: %w", m.Name, err)
		}
	}
	failpoint.Hit(failpoint.MigrateRecord)
	insert := `INSERT INTO migrations (number, name, sha256, applied) VALUES ($1, $2, $3, $4)`
	if d.Rewrite != nil {
		insert = d.Rewrite(insert)
	}
	if _, err := tx.ExecContext(ctx, insert, m.Number, m.Name, m.Sum(), time.Now().UTC().Format(time.RFC3339)); err != nil {
		return false, fmt.Errorf("record migration %s: %w", m.Name, err)
	}
	if err := tx.Commit(); err != nil {
		return false, fmt.Errorf("commit migration %s: %w", m.Name, err)
	}
	failpoint.Hit(failpoint.MigrateCommitted)
	return false, nil
}

// checkApplied returns how many migrations the database has had.
func checkApplied(ctx context.Context, tx *sql.Tx, all []Migration) (n int, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT number, name, sha256 FROM migrations ORDER BY number`)
	if err != nil {
		return 0, fmt.Errorf("read migrations: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var number int
		var name, sum string
		if err := rows.Scan(&number, &name, &sum); err != nil {
			return 0, fmt.Errorf("read migrations: %w", err)
		}
		n++
		if number > len(all) {
			return 0, claviger.Errorf(claviger.Unsupported, "the store was written by a newer claviger",
				"run that version or a newer one; to go back, restore a backup made before the upgrade").
				Wrap(fmt.Errorf("migration %d %q is not known", number, name))
		}
		if number != n || all[n-1].Name != name || all[n-1].Sum() != sum {
			return 0, claviger.Errorf(claviger.Unsupported, "the store's schema is not the one that this claviger knows",
				"run the version that made it; a migration is never edited after a release").
				Wrap(fmt.Errorf("migration %d %q differs", number, name))
		}
	}
	return n, rows.Err()
}
