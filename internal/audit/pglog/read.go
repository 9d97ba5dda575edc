package pglog

import (
	"context"
	"fmt"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
)

// Iterate implements audit.Source. Records come by writer, except that the
// last so many of several writers are chosen by time.
func (l *Log) Iterate(ctx context.Context, q audit.Query, f func(audit.Line) error) error {
	sql, args := statement(&q)
	rows, err := l.pool.Query(ctx, sql, args...)
	if err != nil {
		return readError(ctx, err)
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.day, &r.writer, &r.seq, &r.time, &r.action, &r.outcome, &r.key, &r.keyID, &r.principal, &r.line); err != nil {
			return readError(ctx, err)
		}
		line, err := audit.Decode(r.line)
		if q.Damaged {
			err = r.hand(line, err, f)
		} else if err != nil || !r.fits(&line.Record) {
			err = claviger.Errorf(claviger.Internal, "a record of the audit log is damaged", "run 'claviger audit verify'").Wrap(err)
		} else if q.Matches(&line.Record) {
			err = f(line)
		}
		if err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return readError(ctx, err)
	}
	return nil
}

// row is a record as the table files it.
type row struct {
	day, time             time.Time
	writer                string
	seq                   uint64
	action, outcome       string
	key, keyID, principal string
	line                  []byte
}

// hand gives out a row as it lies.
func (r *row) hand(line audit.Line, err error, f func(audit.Line) error) error {
	if err != nil {
		line.Writer, line.Seq, line.Err = r.writer, r.seq, err
		return f(line)
	}
	if err := f(line); err != nil || r.fits(&line.Record) {
		return err
	}
	return f(audit.Line{Err: audit.Fault{Writer: line.Writer, Seq: line.Seq, Last: line.Seq, Kind: audit.Altered,
		Detail: fmt.Sprintf("the columns of its row (%s, %d) do not say what its line says", r.writer, r.seq)}})
}

// fits reports whether the columns, by which queries choose, say what the
// line says. A text that was cleaned differs from its column, which never
// chooses more than Query.Matches confirms.
func (r *row) fits(rec *audit.Record) bool {
	return r.writer == rec.Writer && r.seq == rec.Seq && r.time.Equal(rec.Time) && r.day.Equal(day(rec.Time)) &&
		r.action == rec.Action && r.outcome == string(rec.Outcome) &&
		r.key == string(rec.Key) && r.keyID == string(rec.KeyID) && r.principal == string(rec.Principal)
}

// statement chooses the rows, with the order in which they are handed over.
func statement(q *audit.Query) (string, []any) {
	var where []string
	var args []any
	and := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(args)), 1)
		}
		where = append(where, condition)
	}
	if q.Damaged {
		q = &audit.Query{}
	}
	if !q.From.IsZero() {
		and("time >= ? AND day >= ?", q.From, day(q.From))
	}
	if !q.To.IsZero() {
		and("time < ? AND day <= ?", q.To, day(q.To))
	}
	if q.Key != "" {
		and("key = ?", string(q.Key))
	}
	if q.KeyID != "" {
		and("key_id = ?", string(q.KeyID))
	}
	if q.Principal != "" {
		and("principal = ?", string(q.Principal))
	}
	if q.Session != "" { // Matches confirms what a text in the line only suggests
		and("position(?::bytea in line) > 0", []byte(`"session":"`+string(q.Session)+`"`))
	}
	if q.Action != "" {
		and("starts_with(action, ?)", q.Action)
	}
	if q.Outcome != "" {
		and("outcome = ?", string(q.Outcome))
	}
	if q.Writer != "" {
		and("writer = ?", q.Writer)
	}
	for _, h := range q.After {
		and("(writer <> ? OR seq > ?)", h.Writer, int64(min(h.Seq, 1<<63-1)))
	}
	sql := "SELECT day, writer, seq, time, action, outcome, key, key_id, principal, line FROM audit_record"
	if len(where) > 0 {
		sql += " WHERE " + strings.Join(where, " AND ")
	}
	if q.Last > 0 {
		args = append(args, q.Last)
		return fmt.Sprintf("SELECT * FROM (%s ORDER BY time DESC, writer DESC, seq DESC LIMIT $%d) AS latest ORDER BY time, writer, seq", sql, len(args)), args
	}
	return sql + " ORDER BY writer, seq", args
}
