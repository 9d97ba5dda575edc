package store

import (
	"cmp"
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"claviger.dev"
)

var errNoSession = claviger.Errorf(claviger.NotFound, "there is no such session", "list the sessions with 'claviger session list'")

// SessionQuery chooses sessions. Zero fields choose all.
type SessionQuery struct {
	Client         claviger.ID
	Principal      claviger.ID // who opened it
	Issuer         string      // of the subject; with Subject
	Subject        string
	UpstreamIssuer string
	UpstreamSID    string // with UpstreamIssuer
	JKT            string
	Ended          bool        // those that have ended too
	After          claviger.ID // the next of the page before
	Limit          int         // page size: DefaultLimit when 0, at most MaxLimit
}

const sessionColumns = `SELECT id, state, revision, last, uses, document, checksum FROM sessions`

func (t *Tx) sessions(query string, args []any) ([]claviger.Session, error) {
	var list []claviger.Session
	err := t.all("read sessions", query, args, func(scan func(...any) error) error {
		var id, state, document string
		var revision, uses uint64
		var last int64
		var sum []byte
		if err := scan(&id, &state, &revision, &last, &uses, &document, &sum); err != nil {
			return err
		}
		var s claviger.Session
		if err := decode("session", id, document, sum, &s); err != nil {
			return err
		}
		if string(s.ID) != id || string(s.State) != state || s.Revision != revision {
			return damaged("session", id, errColumns)
		}
		s.LastUsed, s.Uses = fromMillis(last), uses
		list = append(list, s)
		return nil
	})
	return list, err
}

// Session returns a session, ended or not.
func (t *Tx) Session(id claviger.ID) (claviger.Session, error) {
	list, err := t.sessions(sessionColumns+` WHERE id = $1`, []any{string(id)})
	if err != nil {
		return claviger.Session{}, err
	}
	if len(list) == 0 {
		return claviger.Session{}, errNoSession
	}
	return list[0], nil
}

func (q SessionQuery) clauses() *clauses {
	c := &clauses{}
	if !q.Ended {
		c.add("state <> 'ended'")
	}
	for _, f := range []struct{ column, value string }{
		{"client", string(q.Client)}, {"principal", string(q.Principal)}, {"subject", q.Subject}, {"jkt", q.JKT},
		{"upstream_issuer", q.UpstreamIssuer}, {"upstream_sid", q.UpstreamSID},
	} {
		if f.value != "" {
			c.add(f.column+" = %s", f.value)
		}
	}
	if q.Subject != "" {
		c.add("issuer = %s", q.Issuer)
	}
	return c
}

// Sessions returns a page of sessions, oldest first, and what to pass as After
// for the next page, which is empty on the last.
func (t *Tx) Sessions(q SessionQuery) (sessions []claviger.Session, next claviger.ID, err error) {
	limit := pageLimit(q.Limit)
	c := q.clauses()
	if q.After != "" {
		c.add("id > %s", string(q.After))
	}
	sessions, err = t.sessions(sessionColumns+c.sql()+` ORDER BY id LIMIT `+c.arg(limit+1), c.args)
	if err != nil {
		return nil, "", err
	}
	if len(sessions) > limit {
		sessions = sessions[:limit]
		next = sessions[limit-1].ID
	}
	return sessions, next, nil
}

// CountSessions returns how many sessions there are of a query, whatever its
// page.
func (t *Tx) CountSessions(q SessionQuery) (n uint64, err error) {
	c := q.clauses()
	if err := checkArgs(c.args); err != nil {
		return 0, err
	}
	if err := t.row(`SELECT count(*) FROM sessions`+c.sql(), c.args...).Scan(&n); err != nil {
		return 0, t.db.fault(t.ctx, "count sessions", err)
	}
	return n, nil
}

// ExpiredSessions returns sessions that have not ended although they were due,
// the longest overdue first.
func (t *Tx) ExpiredSessions(now time.Time, limit int) ([]claviger.Session, error) {
	return t.sessions(sessionColumns+` WHERE state <> 'ended' AND expires <= $1 ORDER BY expires LIMIT $2`, []any{millis(now), pageLimit(limit)})
}

// SessionsOfDisabled returns sessions that have not ended although their client
// is disabled.
func (t *Tx) SessionsOfDisabled(limit int) ([]claviger.Session, error) {
	return t.sessions(sessionColumns+` WHERE state <> 'ended' AND client IN (SELECT id FROM clients WHERE disabled = 1) LIMIT $1`, []any{pageLimit(limit)})
}

// SessionsOfRevoked returns sessions that have not ended although who opened
// them is revoked.
func (t *Tx) SessionsOfRevoked(limit int) ([]claviger.Session, error) {
	return t.sessions(sessionColumns+` WHERE state <> 'ended' AND principal IN (SELECT id FROM principals WHERE revoked = 1) LIMIT $1`, []any{pageLimit(limit)})
}

// InsertSession stores a new session with revision 1, whatever its Revision
// says, and the wrapped key that is held for it; blob is nil where none is. It
// does not move the change sequence: it takes nobody's right.
func (t *Tx) InsertSession(s claviger.Session, generation uint32, blob []byte) error {
	s.Revision = 1
	document, sum, err := encode("session", string(s.ID), s)
	if err != nil {
		return err
	}
	if _, err := t.exec("insert session", `INSERT INTO sessions (id, client, principal, issuer, subject, jkt, state, ends, idle, last, uses, expires,
		ended, upstream_issuer, upstream_sid, revision, document, checksum)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, 0, $10, 0, $11, $12, 1, $13, $14)`,
		string(s.ID), string(s.Client), string(s.Principal), s.Subject.Issuer, s.Subject.ID, s.JKT, string(s.State), millis(s.Ends),
		time.Duration(s.Idle).Milliseconds(), millis(s.IdleEnd()), s.UpstreamIssuer, s.UpstreamSID, document, sum); err != nil {
		return err
	}
	if blob == nil {
		return nil
	}
	if len(blob) == 0 || len(blob) > MaxBlob {
		return claviger.Errorf(claviger.TooLarge, "a wrapped blob is 1 to 65536 bytes", "use another algorithm")
	}
	_, err = t.exec("write session blob", `INSERT INTO session_blobs (session, generation, blob) VALUES ($1, $2, $3)`, string(s.ID), generation, blob)
	return err
}

// UpdateSession stores a changed session with Revision+1 if the stored
// revision is still s.Revision, and answers claviger.Conflict if it is not. Its
// uses are counted apart.
func (t *Tx) UpdateSession(s claviger.Session) error {
	s.Revision++
	document, sum, err := encode("session", string(s.ID), s)
	if err != nil {
		return err
	}
	t.touch(s.ID)
	n, err := t.exec("update session", `UPDATE sessions SET state = $2, ended = $3, revision = $4, document = $5, checksum = $6
		WHERE id = $1 AND revision = CAST($4 AS bigint) - 1`, string(s.ID), string(s.State), millis(s.Ended), s.Revision, document, sum)
	if err == nil && n == 0 {
		return t.lost("sessions", string(s.ID), errNoSession)
	}
	return err
}

// SessionUse is how often a session was used since it was last written, and
// when last.
type SessionUse struct {
	Session claviger.ID
	Count   uint64
	Last    time.Time // to the millisecond
}

// AddSessionUses adds to the uses of sessions and puts off their idle end. One
// that is not there, or has ended, is passed over.
func (t *Tx) AddSessionUses(uses []SessionUse) error {
	uses = slices.SortedFunc(slices.Values(uses), func(a, b SessionUse) int { return cmp.Compare(a.Session, b.Session) })
	for _, u := range uses {
		if _, err := t.exec("add session uses", `UPDATE sessions SET uses = uses + $2,
			last = CASE WHEN last < $3 THEN CAST($3 AS bigint) ELSE last END,
			expires = CASE WHEN last > $3 THEN expires WHEN CAST($3 AS bigint) + idle < ends THEN CAST($3 AS bigint) + idle ELSE ends END
			WHERE id = $1 AND state <> 'ended'`, string(u.Session), u.Count, millis(u.Last)); err != nil {
			return err
		}
	}
	return nil
}

// DropSessions removes sessions that ended before a time, and all that is left
// of them, and returns how many.
func (t *Tx) DropSessions(before time.Time, limit int) (int64, error) {
	const some = `(SELECT id FROM sessions WHERE state = 'ended' AND ended < $1 ORDER BY ended LIMIT $2)`
	args := []any{millis(before), pageLimit(limit)}
	if _, err := t.exec("drop refresh tokens", `DELETE FROM refresh_tokens WHERE session IN `+some, args...); err != nil {
		return 0, err
	}
	return t.exec("drop sessions", `DELETE FROM sessions WHERE id IN `+some, args...)
}

// DiscardSession removes a session that its caller was not told of. Where there
// was one it moves the change sequence: whoever listed it may have used it.
func (t *Tx) DiscardSession(id claviger.ID) error {
	if err := t.EraseSessionBlob(id); err != nil {
		return err
	}
	n, err := t.exec("discard session", `DELETE FROM sessions WHERE id = $1`, string(id))
	if n > 0 {
		t.touch(id)
	}
	return err
}

// SessionBlob returns the wrapped key of a session.
func (t *Tx) SessionBlob(id claviger.ID) (blob []byte, generation uint32, err error) {
	err = t.one("read session blob", errNoBlob, `SELECT blob, generation FROM session_blobs WHERE session = $1`, []any{string(id)}, &blob, &generation)
	return blob, generation, err
}

// PutSessionBlob stores the key of a session as it was wrapped anew. It answers
// claviger.NotFound when the session has none any more.
func (t *Tx) PutSessionBlob(id claviger.ID, generation uint32, blob []byte) error {
	n, err := t.exec("write session blob", `UPDATE session_blobs SET generation = $2, blob = $3 WHERE session = $1`, string(id), generation, blob)
	if err == nil && n == 0 {
		return errNoBlob
	}
	return err
}

// EraseSessionBlob overwrites the wrapped key of a session and deletes it, as
// EraseBlob does. It is no error when there is none.
func (t *Tx) EraseSessionBlob(id claviger.ID) error {
	old, _, err := t.SessionBlob(id)
	if errors.Is(err, claviger.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	t.erased = true
	if _, err := t.exec("overwrite session blob", `UPDATE session_blobs SET blob = $2 WHERE session = $1`, string(id), make([]byte, len(old))); err != nil {
		return err
	}
	_, err = t.exec("delete session blob", `DELETE FROM session_blobs WHERE session = $1`, string(id))
	return err
}

// SessionBlobsBelow returns sessions whose keys are wrapped under a generation
// of the root key older than the given one.
func (t *Tx) SessionBlobsBelow(generation uint32, after claviger.ID, limit int) ([]claviger.Session, error) {
	return t.sessions(sessionColumns+` WHERE id > $2 AND id IN (SELECT session FROM session_blobs WHERE generation < $1) ORDER BY id LIMIT $3`,
		[]any{generation, string(after), pageLimit(limit)})
}

// Refresh is a refresh token, of which only the hash is known here.
type Refresh struct {
	Hash    [32]byte // SHA-256
	Session claviger.ID
	Ends    time.Time // to the millisecond
	Used    time.Time // when it was first presented; zero before that
}

// PutRefresh stores a refresh token.
func (t *Tx) PutRefresh(r Refresh) error {
	_, err := t.exec("insert refresh token", `INSERT INTO refresh_tokens (hash, session, ends, used) VALUES ($1, $2, $3, 0)`,
		hex.EncodeToString(r.Hash[:]), string(r.Session), millis(r.Ends))
	return err
}

// UseRefresh marks a refresh token as used and returns it: Used is now for one
// that was not presented before. It answers claviger.NotFound for one that is
// unknown.
func (t *Tx) UseRefresh(hash [32]byte, now time.Time) (Refresh, error) {
	if !t.writes {
		return Refresh{}, errors.New("use refresh token: write in a view")
	}
	missing := claviger.Errorf(claviger.NotFound, "the refresh token is not known", "log in again")
	r := Refresh{Hash: hash}
	var ends, used int64
	if err := t.one("use refresh token", missing, `UPDATE refresh_tokens SET used = CASE WHEN used = 0 THEN CAST($2 AS bigint) ELSE used END
		WHERE hash = $1 RETURNING session, ends, used`, []any{hex.EncodeToString(hash[:]), millis(now)}, &r.Session, &ends, &used); err != nil {
		return Refresh{}, err
	}
	r.Ends, r.Used = fromMillis(ends), fromMillis(used)
	return r, nil
}

// DropRefresh removes the refresh tokens of a session, and returns how many.
func (t *Tx) DropRefresh(session claviger.ID) (int64, error) {
	return t.exec("drop refresh tokens", `DELETE FROM refresh_tokens WHERE session = $1`, string(session))
}
