package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"claviger.dev"
)

// MaxCopies is how many places are kept for one version.
const MaxCopies = 1000

// Copy is a place outside custody where a version's material was seen. It says
// nothing of the material itself.
type Copy struct {
	Key     claviger.ID
	Version uint32
	Host    string      // "" when it is not known
	Path    string      // or what else names the place
	Line    uint32      // from 1; 0 when the place has none
	Seen    time.Time   // last, to the millisecond
	By      string      // the name of the principal who said so
	Run     claviger.ID // of evidence that found it; "" for none
	Gone    time.Time   // when it was found to be gone, to the millisecond; zero while it is there
}

// id names a row in its checksum.
func (c Copy) id() string {
	return fmt.Sprintf("%s#%d %q %q", c.Key, c.Version, c.Host, c.Path)
}

func (c Copy) sum() []byte {
	return checksum("copy", c.id(), fmt.Appendf(nil, "%d\x00%d\x00%s\x00%s\x00%d", c.Line, millis(c.Seen), c.By, c.Run, millis(c.Gone)))
}

// PutCopy records that a copy was seen, as new or again. Beyond MaxCopies of a
// version it answers claviger.Exhausted.
func (t *Tx) PutCopy(c Copy) error {
	c.Gone = time.Time{}
	if c.Path == "" || len(c.Path) > claviger.MaxTextLength || len(c.Host) > claviger.MaxTextLength || c.Seen.IsZero() {
		return claviger.Errorf(claviger.Invalid, "a copy has no place, no date, or a text of more than 256 bytes", "name the host and the path")
	}
	n, err := t.exec("write copy", `INSERT INTO copies (key, version, host, path, line, seen, author, run, gone, checksum)
		SELECT $1, $2, $3, $4, $5, $6, $7, $8, 0, $9 WHERE (SELECT count(*) FROM copies WHERE key = $1 AND version = $2) < $10
			OR EXISTS (SELECT 1 FROM copies WHERE key = $1 AND version = $2 AND host = $3 AND path = $4)
		ON CONFLICT (key, version, host, path) DO UPDATE SET line = excluded.line, seen = excluded.seen, author = excluded.author,
			run = excluded.run, gone = 0, checksum = excluded.checksum`,
		string(c.Key), c.Version, c.Host, c.Path, c.Line, millis(c.Seen), c.By, string(c.Run), c.sum(), MaxCopies)
	if err == nil && n == 0 {
		err = claviger.Errorf(claviger.Exhausted, "the version has 1000 copies on record", "it is exposed since the first of them: rotate the key")
	}
	return err
}

// CloseCopy records that a copy is gone. It answers claviger.NotFound when there
// is none in that place that is still there.
func (t *Tx) CloseCopy(key claviger.ID, version uint32, host, path string, at time.Time) (Copy, error) {
	all, err := t.CopiesOf(key)
	if err != nil {
		return Copy{}, err
	}
	i := slices.IndexFunc(all, func(c Copy) bool {
		return c.Version == version && c.Host == host && c.Path == path && c.Gone.IsZero()
	})
	if i < 0 {
		return Copy{}, claviger.Errorf(claviger.NotFound, "no copy is on record in that place", "list them with 'claviger key copies'")
	}
	c := all[i]
	c.Gone = at
	_, err = t.exec("close copy", `UPDATE copies SET gone = $5, checksum = $6 WHERE key = $1 AND version = $2 AND host = $3 AND path = $4`,
		string(key), version, host, path, millis(at), c.sum())
	return c, err
}

// CopiesOf returns the copies of a key, by version, host and path.
func (t *Tx) CopiesOf(key claviger.ID) ([]Copy, error) {
	var list []Copy
	err := t.all("read copies", `SELECT key, version, host, path, line, seen, author, run, gone, checksum FROM copies
		WHERE key = $1 ORDER BY version, host, path`, []any{string(key)}, func(scan func(...any) error) error {
		var c Copy
		var seen, gone int64
		var sum []byte
		if err := scan(&c.Key, &c.Version, &c.Host, &c.Path, &c.Line, &seen, &c.By, &c.Run, &gone, &sum); err != nil {
			return err
		}
		c.Seen, c.Gone = fromMillis(seen), fromMillis(gone)
		if !slices.Equal(sum, c.sum()) {
			return damaged("copy", strings.ToValidUTF8(c.id(), "?"), errors.New("the checksum does not hold"))
		}
		list = append(list, c)
		return nil
	})
	return list, err
}

// Holder is a version that has certain material.
type Holder struct {
	Key     claviger.ID
	Version uint32
	State   claviger.State
}

// HoldersOf returns the versions with a fingerprint, destroyed ones too.
func (t *Tx) HoldersOf(f claviger.Fingerprint) ([]Holder, error) {
	var list []Holder
	err := t.all("find fingerprint", `SELECT key, number, state FROM versions WHERE fingerprint = $1 ORDER BY key, number`, []any{f[:]},
		func(scan func(...any) error) error {
			var h Holder
			err := scan(&h.Key, &h.Version, &h.State)
			list = append(list, h)
			return err
		})
	return list, err
}
