package store

import (
	"strings"

	"claviger.dev"
)

var errNoGrant = claviger.Errorf(claviger.NotFound, "there is no such grant", "list the grants with 'claviger grant list'")

// GrantQuery chooses grants. Zero fields choose all.
type GrantQuery struct {
	Principal claviger.ID
	Key       claviger.Name // those whose selector chooses this name
	Live      bool          // leave out revoked ones
	After     string        // the next of the page before
	Limit     int           // page size: DefaultLimit when 0, at most MaxLimit
}

const grantColumns = `SELECT id, principal, revoked, revision, document, checksum FROM grants`

func (t *Tx) grants(query string, args []any) ([]claviger.Grant, error) {
	var grants []claviger.Grant
	err := t.all("read grants", query, args, func(scan func(...any) error) error {
		var id, principal, document string
		var revoked int64
		var revision uint64
		var sum []byte
		if err := scan(&id, &principal, &revoked, &revision, &document, &sum); err != nil {
			return err
		}
		var g claviger.Grant
		if err := decode("grant", id, document, sum, &g); err != nil {
			return err
		}
		if string(g.ID) != id || string(g.Principal) != principal || flag(!g.Revoked.IsZero()) != revoked || g.Revision != revision {
			return damaged("grant", id, errColumns)
		}
		grants = append(grants, g)
		return nil
	})
	return grants, err
}

// Grant returns a grant, revoked or not.
func (t *Tx) Grant(id claviger.ID) (claviger.Grant, error) {
	grants, err := t.grants(grantColumns+` WHERE id = $1`, []any{string(id)})
	if err != nil {
		return claviger.Grant{}, err
	}
	if len(grants) == 0 {
		return claviger.Grant{}, errNoGrant
	}
	return grants[0], nil
}

// GrantsOf returns the grants of a principal that are not revoked, oldest
// first.
func (t *Tx) GrantsOf(principal claviger.ID) ([]claviger.Grant, error) {
	return t.grants(grantColumns+` WHERE principal = $1 AND revoked = 0 ORDER BY id`, []any{string(principal)})
}

// Grants returns a page of grants, oldest first, and what to pass as After for
// the next page, which is empty on the last.
func (t *Tx) Grants(q GrantQuery) (grants []claviger.Grant, next string, err error) {
	limit := pageLimit(q.Limit)
	c := &clauses{}
	if q.Principal != "" {
		c.add("principal = %s", string(q.Principal))
	}
	if q.Key != "" {
		var marks []string
		for _, s := range selectorsOf(q.Key) {
			marks = append(marks, c.arg(s))
		}
		c.add("selector IN (" + strings.Join(marks, ", ") + ")")
	}
	if q.Live {
		c.add("revoked = 0")
	}
	if q.After != "" {
		c.add("id > %s", q.After)
	}
	if grants, err = t.grants(grantColumns+c.sql()+` ORDER BY id LIMIT `+c.arg(limit+1), c.args); err != nil {
		return nil, "", err
	}
	if len(grants) > limit {
		grants = grants[:limit]
		next = string(grants[limit-1].ID)
	}
	return grants, next, nil
}

// selectorsOf returns every selector that chooses a name.
func selectorsOf(n claviger.Name) []string {
	selectors := []string{""}
	for _, segment := range []string{n.Environment(), n.Application(), n.Purpose()} {
		var longer []string
		for _, s := range selectors {
			longer = append(longer, s+"/"+segment, s+"/*")
		}
		selectors = longer
	}
	for i, s := range selectors {
		selectors[i] = s[1:]
	}
	return selectors
}

// InsertGrant stores a new grant with revision 1, whatever its Revision says.
// It answers claviger.NotFound when its principal is not there.
func (t *Tx) InsertGrant(g claviger.Grant) error {
	g.Revision = 1
	args, err := grantArgs(g)
	if err != nil {
		return err
	}
	if _, err := t.Principal(string(g.Principal)); err != nil {
		return err
	}
	t.touch(g.Principal)
	_, err = t.exec("insert grant", `INSERT INTO grants (id, principal, selector, revoked, revision, document, checksum)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`, args...)
	return err
}

// UpdateGrant stores a changed grant with Revision+1 if the stored revision is
// still g.Revision, and answers claviger.Conflict if it is not.
func (t *Tx) UpdateGrant(g claviger.Grant) error {
	g.Revision++
	args, err := grantArgs(g)
	if err != nil {
		return err
	}
	t.touch(g.Principal)
	n, err := t.exec("update grant", `UPDATE grants SET principal = $2, selector = $3, revoked = $4, revision = $5, document = $6,
		checksum = $7 WHERE id = $1 AND revision = CAST($5 AS bigint) - 1`, args...)
	if err == nil && n == 0 {
		return t.lost("grants", string(g.ID), errNoGrant)
	}
	return err
}

func grantArgs(g claviger.Grant) ([]any, error) {
	document, sum, err := encode("grant", string(g.ID), g)
	return []any{string(g.ID), string(g.Principal), string(g.Selector), flag(!g.Revoked.IsZero()), g.Revision, document, sum}, err
}
