package store

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"claviger.dev"
)

// batch is how many rows one statement carries.
const batch = 500

// Use counts the uses of one subject: "key:ID", "version:ID/N" or "grant:ID".
type Use struct {
	Subject string
	Count   uint64
	Last    time.Time // to the millisecond
}

// AddUses adds to the counts of subjects and moves their last use forward.
func (t *Tx) AddUses(uses []Use) error {
	sums := map[string]Use{}
	for _, u := range uses {
		s := sums[u.Subject]
		s.Subject = u.Subject
		s.Count += u.Count
		if u.Last.After(s.Last) {
			s.Last = u.Last
		}
		sums[u.Subject] = s
	}
	// In one order, so that two servers that flush at once do not lock each
	// other out.
	for subjects := range slices.Chunk(slices.Sorted(maps.Keys(sums)), batch) {
		c := &clauses{}
		var rows []string
		for _, s := range subjects {
			u := sums[s]
			rows = append(rows, fmt.Sprintf("(%s, %s, %s)", c.arg(s), c.arg(int64(min(u.Count, math.MaxInt64))), c.arg(millis(u.Last))))
		}
		if _, err := t.exec("add uses", `INSERT INTO uses (subject, count, last) VALUES `+strings.Join(rows, ", ")+
			` ON CONFLICT (subject) DO UPDATE SET count = uses.count + excluded.count,
			last = CASE WHEN excluded.last > uses.last THEN excluded.last ELSE uses.last END`, c.args...); err != nil {
			return err
		}
	}
	return nil
}

// UsesOf returns the counts of subjects by subject; one that was never used
// is left out.
func (t *Tx) UsesOf(subjects ...string) (map[string]Use, error) {
	uses := map[string]Use{}
	for some := range slices.Chunk(subjects, batch) {
		c := &clauses{}
		var marks []string
		for _, s := range some {
			marks = append(marks, c.arg(s))
		}
		err := t.all("read uses", `SELECT subject, count, last FROM uses WHERE subject IN (`+strings.Join(marks, ", ")+`)`,
			c.args, func(scan func(...any) error) error {
				var u Use
				var last int64
				err := scan(&u.Subject, &u.Count, &last)
				u.Last = fromMillis(last)
				uses[u.Subject] = u
				return err
			})
		if err != nil {
			return nil, err
		}
	}
	return uses, nil
}

// TakeBudget takes up to want from the budget of a subject, of which at most
// limit is ever given out, and returns how much was granted: 0 when it is used
// up. It is exact over all servers, in one statement.
func (t *Tx) TakeBudget(subject string, want, limit uint64) (granted uint64, err error) {
	if !t.writes {
		return 0, errors.New("take budget: write in a view")
	}
	want, limit = min(want, math.MaxInt64/2), min(limit, math.MaxInt64/2)
	const free = `CASE WHEN CAST($3 AS bigint) - budgets.used <= 0 THEN 0
		WHEN CAST($3 AS bigint) - budgets.used < CAST($2 AS bigint) THEN CAST($3 AS bigint) - budgets.used ELSE CAST($2 AS bigint) END`
	err = t.one("take budget", errNoBudget, `INSERT INTO budgets (subject, used, granted) VALUES ($1, CAST($4 AS bigint), CAST($4 AS bigint))
		ON CONFLICT (subject) DO UPDATE SET granted = `+free+`, used = budgets.used + `+free+` RETURNING granted`,
		[]any{subject, int64(want), int64(limit), int64(min(want, limit))}, &granted)
	return granted, err
}

// ReturnBudget gives back what was taken from the budget of a subject and not
// used.
func (t *Tx) ReturnBudget(subject string, unused uint64) error {
	_, err := t.exec("return budget", `UPDATE budgets SET used = CASE WHEN used < $2 THEN 0 ELSE used - $2 END WHERE subject = $1`,
		subject, int64(min(unused, math.MaxInt64)))
	return err
}

// DropBudget forgets the budget of a subject that is gone.
func (t *Tx) DropBudget(subject string) error {
	_, err := t.exec("drop budget", `DELETE FROM budgets WHERE subject = $1`, subject)
	return err
}

var errNoBudget = claviger.Errorf(claviger.Internal, "a budget could not be taken", "try again")

// Outgoing is a record that awaits the audit log.
type Outgoing struct {
	Seq  uint64
	Line []byte
}

// PushOutbox stores a record that goes to the audit log after the commit, and
// returns its number.
func (t *Tx) PushOutbox(line []byte) (seq uint64, err error) {
	if !t.writes {
		return 0, errors.New("push outbox: write in a view")
	}
	if len(line) == 0 || len(line) > maxDocument {
		return 0, claviger.Errorf(claviger.TooLarge, "a record is 1 byte to 1 MiB", "shorten its details")
	}
	err = t.one("push outbox", errNoBudget, `INSERT INTO outbox (line, checksum) VALUES ($1, $2) RETURNING seq`,
		[]any{line, checksum("outbox", "", line)}, &seq)
	return seq, err
}

// Outbox returns the oldest records that await the audit log. Within an Update
// on a shared store it passes over those that another server is just taking,
// and keeps the ones it returns from others until the commit.
func (t *Tx) Outbox(limit int) ([]Outgoing, error) {
	query := `SELECT seq, line, checksum FROM outbox ORDER BY seq LIMIT $1`
	if t.writes {
		query += " " + t.db.dialect.SkipLock
	}
	var lines []Outgoing
	err := t.all("read outbox", query, []any{pageLimit(limit)}, func(scan func(...any) error) error {
		var o Outgoing
		var sum []byte
		if err := scan(&o.Seq, &o.Line, &sum); err != nil {
			return err
		}
		if !slices.Equal(sum, checksum("outbox", "", o.Line)) {
			return damaged("outbox", fmt.Sprint(o.Seq), errors.New("the checksum does not hold"))
		}
		lines = append(lines, o)
		return nil
	})
	return lines, err
}

// DropOutbox removes records that are in the audit log. It is no error when
// they were removed already.
func (t *Tx) DropOutbox(seqs ...uint64) error {
	for some := range slices.Chunk(seqs, batch) {
		c := &clauses{}
		var marks []string
		for _, s := range some {
			marks = append(marks, c.arg(int64(s)))
		}
		if _, err := t.exec("drop outbox", `DELETE FROM outbox WHERE seq IN (`+strings.Join(marks, ", ")+`)`, c.args...); err != nil {
			return err
		}
	}
	return nil
}

// Meta returns a value that the server keeps under a fixed name.
func (t *Tx) Meta(name string) ([]byte, error) {
	var value, sum []byte
	missing := claviger.Errorf(claviger.NotFound, "the store holds no such value", "it is written when the server first starts")
	if err := t.one("read meta", missing, `SELECT value, checksum FROM meta WHERE name = $1`, []any{name}, &value, &sum); err != nil {
		return nil, err
	}
	if !slices.Equal(sum, checksum("meta", name, value)) {
		return nil, damaged("meta", name, errors.New("the checksum does not hold"))
	}
	return value, nil
}

// PutMeta stores a value under a fixed name, in place of what was there.
func (t *Tx) PutMeta(name string, value []byte) error {
	if value == nil {
		value = []byte{}
	}
	if len(value) > maxDocument {
		return claviger.Errorf(claviger.TooLarge, "a value is larger than 1 MiB", "keep it elsewhere")
	}
	_, err := t.exec("write meta", `INSERT INTO meta (name, value, checksum) VALUES ($1, $2, $3)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value, checksum = excluded.checksum`, name, value, checksum("meta", name, value))
	return err
}
