package store

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"claviger.dev"
)

var errNoKey = claviger.Errorf(claviger.NotFound, "there is no such key", "list the keys with 'claviger key list'")

// Key returns a key by its id, its name or an alias. Its versions have the
// level that evidence last showed.
func (t *Tx) Key(ref string) (claviger.Key, error) {
	query := `SELECT k.id, k.name, k.revision, k.document, k.checksum FROM names n JOIN keys k ON k.id = n.key WHERE n.name = $1`
	if _, err := claviger.ParseID(ref); err == nil {
		query = `SELECT id, name, revision, document, checksum FROM keys WHERE id = $1`
	}
	var r keyRow
	if err := t.one("read key", errNoKey, query, []any{ref}, r.dest()...); err != nil {
		return claviger.Key{}, err
	}
	k, err := r.key()
	if err != nil {
		return claviger.Key{}, err
	}
	if ref != string(k.ID) && ref != string(k.Name) && !slices.Contains(k.Aliases, claviger.Name(ref)) {
		return claviger.Key{}, damaged("name", ref, fmt.Errorf("leads to key %q, which does not have it", k.ID))
	}
	keys := []claviger.Key{k}
	err = t.withEvidence(keys)
	return keys[0], err
}

// keyRow is a row of the table keys as read.
type keyRow struct {
	id, name, document string
	revision           uint64
	sum                []byte
}

func (r *keyRow) dest() []any { return []any{&r.id, &r.name, &r.revision, &r.document, &r.sum} }

func (r *keyRow) key() (k claviger.Key, err error) {
	if err := decode("key", r.id, r.document, r.sum, &k); err != nil {
		return claviger.Key{}, err
	}
	if string(k.ID) != r.id || string(k.Name) != r.name || k.Revision != r.revision {
		return claviger.Key{}, damaged("key", r.id, fmt.Errorf("columns and document differ"))
	}
	for i := range k.Versions {
		if err := consistent(k.Algorithm, &k.Versions[i]); err != nil {
			return claviger.Key{}, damaged("key", r.id, err)
		}
	}
	return k, nil
}

// consistent refuses what no writer of ours writes: imported material that is
// said to be better than exposed, and a public half that is not the one which
// the fingerprint names. The key process holds the fingerprint against the
// material, so that an exchanged public half cannot be published and signed
// beside at once.
func consistent(alg claviger.Algorithm, v *claviger.Version) error {
	if v.Origin == claviger.Imported && v.Level != claviger.Exposed {
		return errors.New("imported material is said to be better than exposed")
	}
	if alg.Asymmetric() && sha256.Sum256(append([]byte(string(alg)+"\x00"), v.Public...)) != v.Fingerprint {
		return errors.New("a public half has another fingerprint")
	}
	return nil
}

// Standing returns the one state that stands for a key in listings: the first
// of compromised, suspended, active, pre-activation, deactivated and destroyed
// that one of its versions is in; pre-activation for a key without versions.
func Standing(k claviger.Key) claviger.State {
	for _, s := range []claviger.State{claviger.Compromised, claviger.Suspended, claviger.Active,
		claviger.PreActivation, claviger.Deactivated, claviger.Destroyed} {
		if slices.ContainsFunc(k.Versions, func(v claviger.Version) bool { return v.State == s }) {
			return s
		}
	}
	return claviger.PreActivation
}

// NextDue returns when a key next needs attention by its own settings: a grace
// ends, its newest version reaches RotateEvery, or its active version the end
// of its originator period. The last two need an active version. It is zero
// when nothing is due.
func NextDue(k claviger.Key) time.Time {
	var due time.Time
	consider := func(at time.Time) {
		if due.IsZero() || at.Before(due) {
			due = at
		}
	}
	for i := range k.Versions {
		if v := &k.Versions[i]; Retiring(v) {
			consider(v.Retires)
		}
	}
	active := k.ActiveVersion()
	if active == nil {
		return due
	}
	if after := time.Duration(k.Settings.RotateEvery); after > 0 {
		consider(k.Versions[len(k.Versions)-1].Created.Add(after))
	}
	if after := time.Duration(k.Settings.OriginatorPeriod); after > 0 {
		consider(active.Activated.Add(after))
	}
	return due
}

// Retiring reports whether a version is in its grace.
func Retiring(v *claviger.Version) bool {
	return v.State == claviger.Deactivated && !v.Retires.IsZero() && v.Retired.IsZero()
}

// Scheduled returns the keys whose NextDue has come, the longest due first.
func (t *Tx) Scheduled(now time.Time, limit int) ([]claviger.Key, error) {
	return t.keys(`SELECT id, name, revision, document, checksum FROM keys
		WHERE due > 0 AND due <= $1 ORDER BY due LIMIT $2`, []any{now.UnixMilli(), pageLimit(limit)})
}

func (t *Tx) keys(query string, args []any) ([]claviger.Key, error) {
	var keys []claviger.Key
	err := t.all("list keys", query, args, func(scan func(...any) error) error {
		var r keyRow
		if err := scan(r.dest()...); err != nil {
			return err
		}
		k, err := r.key()
		keys = append(keys, k)
		return err
	})
	if err != nil {
		return nil, err
	}
	return keys, t.withEvidence(keys)
}

// InsertKey stores a new key with revision 1, whatever its Revision says. It
// answers claviger.Conflict when its name or an alias is taken.
func (t *Tx) InsertKey(k claviger.Key) error {
	k.Revision = 1
	document, sum, err := encode("key", string(k.ID), k)
	if err != nil {
		return err
	}
	t.touch(k.ID)
	if _, err := t.exec("insert key", `INSERT INTO keys (id, name, app, purpose, owner, algorithm, state, due, search, revision, document, checksum)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`, keyArgs(k, document, sum)...); err != nil {
		return err
	}
	return t.putKeyParts(k)
}

func keyArgs(k claviger.Key, document string, sum []byte) []any {
	return []any{string(k.ID), string(k.Name), k.Name.Application(), k.Name.Purpose(), k.Owner, string(k.Algorithm),
		string(Standing(k)), millis(NextDue(k)), strings.ToLower(string(k.Name) + "\n" + k.Owner), k.Revision, document, sum}
}

// UpdateKey stores a changed key with Revision+1 if the stored revision is
// still k.Revision, and answers claviger.Conflict if it is not, if a name is
// taken, or if two versions are active. Versions are never removed.
func (t *Tx) UpdateKey(k claviger.Key) error {
	k.Revision++
	document, sum, err := encode("key", string(k.ID), k)
	if err != nil {
		return err
	}
	t.touch(k.ID)
	n, err := t.exec("update key", `UPDATE keys SET name = $2, app = $3, purpose = $4, owner = $5, algorithm = $6, state = $7,
		due = $8, search = $9, revision = $10, document = $11, checksum = $12 WHERE id = $1 AND revision = CAST($10 AS bigint) - 1`,
		keyArgs(k, document, sum)...)
	if err != nil {
		return err
	}
	if n == 0 {
		return t.lost("keys", string(k.ID), errNoKey)
	}
	return t.putKeyParts(k)
}

// lost tells a record that changed meanwhile from one that is not there.
func (t *Tx) lost(table, id string, missing *claviger.Error) error {
	var revision uint64
	if err := t.one("read revision", missing, `SELECT revision FROM `+table+` WHERE id = $1`, []any{id}, &revision); err != nil {
		return err
	}
	return claviger.Errorf(claviger.Conflict, "it was changed meanwhile", "read it again and repeat the change")
}

// putKeyParts writes the rows beside a key's own: names, labels, versions.
func (t *Tx) putKeyParts(k claviger.Key) error {
	if err := t.putNames(k); err != nil {
		return err
	}
	if err := t.putLabels(k); err != nil {
		return err
	}
	return t.putVersions(k)
}

func (t *Tx) putNames(k claviger.Key) error {
	want := append([]claviger.Name{k.Name}, k.Aliases...)
	var have []claviger.Name
	err := t.all("read names", `SELECT name FROM names WHERE key = $1`, []any{string(k.ID)}, func(scan func(...any) error) error {
		var name string
		err := scan(&name)
		have = append(have, claviger.Name(name))
		return err
	})
	if err != nil {
		return err
	}
	for _, name := range have {
		if !slices.Contains(want, name) {
			if _, err := t.exec("remove name", `DELETE FROM names WHERE name = $1`, string(name)); err != nil {
				return err
			}
		}
	}
	for _, name := range want {
		if slices.Contains(have, name) {
			continue
		}
		have = append(have, name)
		n, err := t.exec("insert name", `INSERT INTO names (name, key) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING`, string(name), string(k.ID))
		if err != nil {
			return err
		}
		if n == 0 {
			return claviger.Errorf(claviger.Conflict, "the name is taken, as a name or a former name of another key", "choose another name")
		}
	}
	return nil
}

func (t *Tx) putLabels(k claviger.Key) error {
	if _, err := t.exec("remove labels", `DELETE FROM labels WHERE key = $1`, string(k.ID)); err != nil {
		return err
	}
	for label, value := range k.Labels {
		if _, err := t.exec("insert label", `INSERT INTO labels (label, value, name, key) VALUES ($1, $2, $3, $4)`,
			label, value, string(k.Name), string(k.ID)); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tx) putVersions(k claviger.Key) error {
	have := map[uint32]claviger.State{}
	err := t.all("read versions", `SELECT number, state FROM versions WHERE key = $1`, []any{string(k.ID)}, func(scan func(...any) error) error {
		var number uint32
		var state string
		err := scan(&number, &state)
		have[number] = claviger.State(state)
		return err
	})
	if err != nil {
		return err
	}
	// The active version goes last, when the one before it has stepped down.
	versions := slices.SortedStableFunc(slices.Values(k.Versions), func(a, b claviger.Version) int {
		return cmp.Compare(flag(a.State == claviger.Active), flag(b.State == claviger.Active))
	})
	for _, v := range versions {
		old, found := have[v.Number]
		delete(have, v.Number)
		if found && old == v.State {
			continue
		}
		if _, err := t.exec("write version", `INSERT INTO versions (key, number, state, fingerprint) VALUES ($1, $2, $3, $4)
			ON CONFLICT (key, number) DO UPDATE SET state = excluded.state, fingerprint = excluded.fingerprint`,
			string(k.ID), v.Number, string(v.State), v.Fingerprint[:]); err != nil {
			return err
		}
	}
	if len(have) > 0 {
		return claviger.Errorf(claviger.Invalid, "a version of a key is never removed", "destroy it; its tombstone stays")
	}
	return nil
}
