package store

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"claviger.dev"
)

// Evidence is what was last shown of one version.
type Evidence struct {
	Key     claviger.ID
	Version uint32
	Level   claviger.Level
	Shown   time.Time // to the millisecond
	Finding string
	Run     claviger.ID // that showed it
}

// evidenceID names a row in its checksum.
func (e Evidence) id() string { return fmt.Sprintf("%s#%d", e.Key, e.Version) }

func (e Evidence) sum() []byte {
	return checksum("evidence", e.id(), fmt.Appendf(nil, "%s\x00%d\x00%s\x00%s", e.Level, millis(e.Shown), e.Finding, e.Run))
}

// evidenceBatch is how many rows of evidence one statement carries. The embedded
// database takes a time that grows with the square of the arguments.
const evidenceBatch = 50

// shownLevels are the levels that evidence can show.
var shownLevels = []claviger.Level{claviger.Exposed, claviger.Isolated, claviger.Hardware, claviger.Attested}

// PutEvidence records what was shown of versions, each of them once, in place
// of what was known. A version that was exposed stays so, and keeps its
// finding; PutEvidence returns how many there were that were said to be better.
// The keys' own revisions stay; the change sequence moves.
func (t *Tx) PutEvidence(list []Evidence) (kept int, err error) {
	if len(list) == 0 {
		return 0, nil
	}
	list = slices.SortedFunc(slices.Values(list), func(a, b Evidence) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Version, b.Version))
	})
	for _, e := range list {
		t.touch(e.Key)
	}
	for part := range slices.Chunk(list, evidenceBatch) {
		keys := make([]claviger.ID, len(part))
		for i, e := range part {
			keys[i] = e.Key
		}
		known, err := t.EvidenceOf(slices.Compact(keys)...)
		if err != nil {
			return kept, err
		}
		before := make(map[string]Evidence, len(known))
		for _, e := range known {
			before[e.id()] = e
		}
		c := &clauses{}
		rows := make([]string, 0, len(part))
		for _, e := range part {
			if !slices.Contains(shownLevels, e.Level) || e.Shown.IsZero() || len(e.Finding) > claviger.MaxTextLength {
				return kept, claviger.Errorf(claviger.Invalid, "evidence has no level, no date, or a finding of more than 256 bytes", "use attested, hardware, isolated or exposed")
			}
			if old := before[e.id()]; old.Level == claviger.Exposed {
				if e.Level != claviger.Exposed {
					e.Level = claviger.Exposed
					kept++
				}
				e.Finding = cmp.Or(old.Finding, e.Finding)
			}
			rows = append(rows, fmt.Sprintf("(%s, %s, %s, %s, %s, %s, %s)", c.arg(string(e.Key)), c.arg(e.Version), c.arg(string(e.Level)),
				c.arg(millis(e.Shown)), c.arg(e.Finding), c.arg(string(e.Run)), c.arg(e.sum())))
		}
		if _, err := t.exec("write evidence", `INSERT INTO evidence (key, version, level, shown, finding, run, checksum) VALUES `+strings.Join(rows, ", ")+
			` ON CONFLICT (key, version) DO UPDATE SET level = excluded.level, shown = excluded.shown, finding = excluded.finding,
			run = excluded.run, checksum = excluded.checksum`, c.args...); err != nil {
			return kept, err
		}
	}
	return kept, nil
}

// EvidenceOf returns what was shown of the versions of keys. One of which
// nothing was shown since it was made has none.
func (t *Tx) EvidenceOf(keys ...claviger.ID) ([]Evidence, error) {
	var list []Evidence
	for some := range slices.Chunk(keys, batch) {
		where, args := among("key", some)
		err := t.all("read evidence", `SELECT key, version, level, shown, finding, run, checksum FROM evidence`+where+` ORDER BY key, version`,
			args, func(scan func(...any) error) error {
				var e Evidence
				var shown int64
				var sum []byte
				if err := scan(&e.Key, &e.Version, &e.Level, &shown, &e.Finding, &e.Run, &sum); err != nil {
					return err
				}
				e.Shown = fromMillis(shown)
				if !slices.Equal(sum, e.sum()) {
					return damaged("evidence", e.id(), errors.New("the checksum does not hold"))
				}
				list = append(list, e)
				return nil
			})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// among is the condition that a column is one of some values.
func among[T ~string](column string, values []T) (where string, args []any) {
	marks := make([]string, len(values))
	args = make([]any, len(values))
	for i, v := range values {
		marks[i], args[i] = fmt.Sprintf("$%d", i+1), string(v)
	}
	return " WHERE " + column + " IN (" + strings.Join(marks, ", ") + ")", args
}

// withEvidence lays what was shown over the keys' own documents.
func (t *Tx) withEvidence(keys []claviger.Key) error {
	at := make(map[claviger.ID]*claviger.Key, len(keys))
	ids := make([]claviger.ID, len(keys))
	for i := range keys {
		ids[i], at[keys[i].ID] = keys[i].ID, &keys[i]
	}
	list, err := t.EvidenceOf(ids...)
	if err != nil {
		return err
	}
	for _, e := range list {
		v := at[e.Key].Version(e.Version)
		if v == nil || v.Origin == claviger.Imported && e.Level != claviger.Exposed || v.Level == claviger.Exposed && e.Level != claviger.Exposed {
			return damaged("evidence", e.id(), errors.New("it contradicts the key"))
		}
		v.Level, v.Shown, v.Finding = e.Level, e.Shown, e.Finding
	}
	return nil
}

// KeysOf returns the keys with these ids that there are, in the order of ids.
func (t *Tx) KeysOf(ids ...claviger.ID) ([]claviger.Key, error) {
	var keys []claviger.Key
	for some := range slices.Chunk(slices.Sorted(slices.Values(ids)), batch) {
		where, args := among("id", some)
		more, err := t.keys(`SELECT id, name, revision, document, checksum FROM keys`+where+` ORDER BY id`, args)
		if err != nil {
			return nil, err
		}
		keys = append(keys, more...)
	}
	return keys, nil
}

// Finding is an open finding of a version.
type Finding struct {
	Name    claviger.Name
	Version uint32
	Level   claviger.Level
	Finding string
}

// live are versions with evidence that are not destroyed.
const live = ` FROM evidence e JOIN versions v ON v.key = e.key AND v.number = e.version
	JOIN keys k ON k.id = e.key WHERE v.state <> 'destroyed'`

// Findings returns the worst open findings of versions that are not destroyed,
// worst first, and how many there are.
func (t *Tx) Findings(limit int) (list []Finding, count int, err error) {
	if err := t.row(`SELECT count(*)` + live + ` AND e.finding <> ''`).Scan(&count); err != nil {
		return nil, 0, t.db.fault(t.ctx, "count findings", err)
	}
	if count == 0 {
		return nil, 0, nil
	}
	err = t.all("list findings", `SELECT k.name, e.version, e.level, e.finding`+live+` AND e.finding <> ''
		ORDER BY CASE e.level WHEN 'exposed' THEN 0 WHEN 'isolated' THEN 1 WHEN 'hardware' THEN 2 ELSE 3 END, k.name, e.version LIMIT $1`,
		[]any{pageLimit(limit)}, func(scan func(...any) error) error {
			var f Finding
			err := scan(&f.Name, &f.Version, &f.Level, &f.Finding)
			list = append(list, f)
			return err
		})
	return list, count, err
}

// CountShownBefore returns how many versions that are neither destroyed nor
// exposed were last shown before a time.
func (t *Tx) CountShownBefore(at time.Time) (n int, err error) {
	query := `SELECT count(*)` + live + ` AND e.level <> 'exposed' AND e.shown < $1`
	if err := t.row(query, millis(at)).Scan(&n); err != nil {
		return 0, t.db.fault(t.ctx, "count stale evidence", err)
	}
	return n, nil
}

// MaxStatement bounds the statement of a run, in bytes.
const MaxStatement = 64 << 20

// Run is a run that was submitted, with its signed statement.
type Run struct {
	ID        claviger.ID
	At        time.Time // to the millisecond
	Statement []byte
}

func (r Run) sum() []byte {
	return checksum("run", string(r.ID), append(fmt.Appendf(nil, "%d\x00", millis(r.At)), r.Statement...))
}

// InsertRun stores a run. It answers claviger.Conflict when there is one of
// that id.
func (t *Tx) InsertRun(r Run) error {
	if len(r.Statement) == 0 || len(r.Statement) > MaxStatement {
		return claviger.Errorf(claviger.TooLarge, "a statement is 1 byte to 64 MiB", "run evidence on fewer keys at once")
	}
	n, err := t.exec("insert run", `INSERT INTO runs (id, at, statement, checksum) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING`,
		string(r.ID), millis(r.At), r.Statement, r.sum())
	if err == nil && n == 0 {
		err = claviger.Errorf(claviger.Conflict, "the run was recorded already", "make a new run")
	}
	return err
}

// Run returns a run by its id; the last one when id is empty.
func (t *Tx) Run(id string) (Run, error) {
	query, args := `SELECT id, at, statement, checksum FROM runs ORDER BY at DESC, id DESC LIMIT 1`, []any(nil)
	if id != "" {
		query, args = `SELECT id, at, statement, checksum FROM runs WHERE id = $1`, []any{id}
	}
	var r Run
	var at int64
	var sum []byte
	missing := claviger.Errorf(claviger.NotFound, "there is no statement of such a run", "runs that a server makes by itself have a record and no statement; list the others with 'claviger evidence list'")
	if err := t.one("read run", missing, query, args, &r.ID, &at, &r.Statement, &sum); err != nil {
		return Run{}, err
	}
	if r.At = fromMillis(at); !slices.Equal(sum, r.sum()) {
		return Run{}, damaged("run", string(r.ID), errors.New("the checksum does not hold"))
	}
	return r, nil
}

// TrimRuns removes the oldest runs until the statements of the others have
// together no more than so many bytes. The last one stays.
func (t *Tx) TrimRuns(most int64) (int64, error) {
	return t.exec("trim runs", `DELETE FROM runs WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER w AS place, sum(length(statement)) OVER w AS total
		FROM runs WINDOW w AS (ORDER BY at DESC, id DESC)) AS newest WHERE place > 1 AND total > $1)`, most)
}

// DropRuns removes runs of before a time, but for the last one.
func (t *Tx) DropRuns(before time.Time) (int64, error) {
	return t.exec("drop runs", `DELETE FROM runs WHERE at < $1 AND id <> (SELECT id FROM runs ORDER BY at DESC, id DESC LIMIT 1)`, millis(before))
}
