package store

import (
	"maps"
	"slices"
	"strings"

	"claviger.dev"
)

// KeyQuery chooses keys. Zero fields choose all; those that are set must all
// hold.
type KeyQuery struct {
	Selector claviger.Selector // parsed, see claviger.ParseSelector
	Search   string            // part of the name or owner, whatever the case
	Labels   map[string]string // all of these, with exactly these values
	State    claviger.State    // the key's Standing
	Owner    string            // exactly
	After    string            // the next of the page before
	Limit    int               // page size: DefaultLimit when 0, at most MaxLimit
}

// Keys returns a page of keys in the order of their names, and what to pass as
// After for the next page, which is empty on the last.
func (t *Tx) Keys(q KeyQuery) (keys []claviger.Key, next string, err error) {
	if err := checkArgs([]any{q.Search}); err != nil { // lower case would hide it
		return nil, "", err
	}
	limit := pageLimit(q.Limit)
	c := &clauses{}
	from, name := "keys k", "k.name"
	for i, label := range slices.Sorted(maps.Keys(q.Labels)) {
		if i == 0 { // the first label leads, in the order of names
			from, name = "labels l CROSS JOIN keys k", "l.name"
			c.add("l.label = %s AND l.value = %s AND k.id = l.key", label, q.Labels[label])
			continue
		}
		c.add("EXISTS (SELECT 1 FROM labels x WHERE x.key = k.id AND x.label = %s AND x.value = %s)", label, q.Labels[label])
	}
	q.selector(c, name)
	if q.State != "" {
		c.add("k.state = %s", string(q.State))
	}
	if q.Owner != "" {
		c.add("k.owner = %s", q.Owner)
	}
	if q.Search != "" {
		c.add(t.db.dialect.Contains+"(k.search, %s) > 0", strings.ToLower(q.Search))
	}
	if q.After != "" {
		c.add(name+" > %s", q.After)
	}
	query := `SELECT k.id, k.name, k.revision, k.document, k.checksum FROM ` + from + c.sql() +
		` ORDER BY ` + name + ` LIMIT ` + c.arg(limit+1)
	if keys, err = t.keys(query, c.args); err != nil {
		return nil, "", err
	}
	if len(keys) > limit {
		keys = keys[:limit]
		next = string(keys[limit-1].Name)
	}
	return keys, next, nil
}

// selector adds the conditions of the selector. Its leading literals are a
// range of names, so that every listing walks an index in the order of names.
func (q KeyQuery) selector(c *clauses, name string) {
	if q.Selector == "" {
		return
	}
	segments := strings.Split(string(q.Selector), "/")
	if len(segments) != 3 {
		c.add("1 = 0")
		return
	}
	literals := slices.Index(segments, "*")
	if literals < 0 {
		c.add(name+" = %s", string(q.Selector))
		return
	}
	if literals > 0 {
		prefix := strings.Join(segments[:literals], "/")
		c.add(name+" > %s AND "+name+" < %s", prefix+"/", prefix+"0") // '0' follows '/'
	}
	for i, column := range []string{"", "k.app", "k.purpose"} {
		if i > literals && segments[i] != "*" {
			c.add(column+" = %s", segments[i])
		}
	}
}
