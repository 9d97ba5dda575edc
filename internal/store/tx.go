package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"claviger.dev"
)

// Page sizes of listings.
const (
	DefaultLimit = 100
	MaxLimit     = 1000
)

// Tx is one transaction. It is valid inside the function that View or Update
// gave it to, in one goroutine, and ends with the context of that call.
type Tx struct {
	ctx      context.Context
	db       *DB
	sql      *sql.Tx
	writes   bool
	changed  bool          // touched what the change sequence counts
	touched  []claviger.ID // what of it
	anything bool          // or anything of it
	erased   bool          // erased a blob
	sequence uint64        // taken at commit when changed
}

// Revision returns the change sequence as of this transaction, which fits
// everything else that is read in it.
func (t *Tx) Revision() (uint64, error) {
	var revision uint64
	if err := t.row(`SELECT value FROM change_sequence WHERE id = 1`).Scan(&revision); err != nil {
		return 0, t.db.fault(t.ctx, "read change sequence", err)
	}
	return revision, nil
}

func (t *Tx) rewrite(query string) string {
	if t.db.dialect.Rewrite == nil {
		return query
	}
	return t.db.dialect.Rewrite(query)
}

// exec runs a statement and returns how many rows it touched.
func (t *Tx) exec(what, query string, args ...any) (int64, error) {
	if !t.writes {
		return 0, fmt.Errorf("%s: write in a view", what)
	}
	if err := checkArgs(args); err != nil {
		return 0, err
	}
	result, err := t.sql.ExecContext(t.ctx, t.rewrite(query), args...)
	if err != nil {
		return 0, t.db.fault(t.ctx, what, err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return 0, t.db.fault(t.ctx, what, err)
	}
	return n, nil
}

// row runs a query for one row; Scan reports its error.
func (t *Tx) row(query string, args ...any) *sql.Row {
	return t.sql.QueryRowContext(t.ctx, t.rewrite(query), args...)
}

// one reads a row that must be there.
func (t *Tx) one(what string, missing *claviger.Error, query string, args []any, dest ...any) error {
	if err := checkArgs(args); err != nil {
		return err
	}
	err := t.row(query, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return missing
	}
	if err != nil {
		return t.db.fault(t.ctx, what, err)
	}
	return nil
}

// all runs a query and hands each row to scan.
func (t *Tx) all(what, query string, args []any, scan func(scan func(...any) error) error) error {
	if err := checkArgs(args); err != nil {
		return err
	}
	rows, err := t.sql.QueryContext(t.ctx, t.rewrite(query), args...)
	if err != nil {
		return t.db.fault(t.ctx, what, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := scan(rows.Scan); err != nil {
			return t.db.fault(t.ctx, what, err)
		}
	}
	if err := rows.Err(); err != nil {
		return t.db.fault(t.ctx, what, err)
	}
	return nil
}

// checkArgs refuses text that a database would refuse or change.
func checkArgs(args []any) error {
	for _, a := range args {
		if s, ok := a.(string); ok && (!utf8.ValidString(s) || strings.ContainsRune(s, 0)) {
			return errText
		}
	}
	return nil
}

var errText = claviger.Errorf(claviger.Invalid, "a text is not valid UTF-8 or contains a NUL", "send text as UTF-8 without control characters")

// clauses gathers the conditions of a query and their arguments.
type clauses struct {
	where []string
	args  []any
}

// add appends a condition whose %s stand for the arguments.
func (c *clauses) add(condition string, args ...any) {
	marks := make([]any, len(args))
	for i, a := range args {
		marks[i] = c.arg(a)
	}
	c.where = append(c.where, fmt.Sprintf(condition, marks...))
}

// arg appends an argument and returns its placeholder.
func (c *clauses) arg(a any) string {
	c.args = append(c.args, a)
	return fmt.Sprintf("$%d", len(c.args))
}

// sql returns the WHERE clause.
func (c *clauses) sql() string {
	if len(c.where) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(c.where, " AND ")
}

// pageLimit bounds a page.
func pageLimit(limit int) int {
	if limit <= 0 {
		return DefaultLimit
	}
	return min(limit, MaxLimit)
}

// millis is how times stand in columns that are searched; 0 for none.
func millis(at time.Time) int64 {
	if at.IsZero() {
		return 0
	}
	return at.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
