package store

import (
	"cmp"
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
	labels, err := t.byRarity(q.Labels)
	if err != nil {
		return nil, "", err
	}
	for i, label := range labels {
		if i == 0 { // the rarest leads, in the order of names
			from, name = "labels l CROSS JOIN keys k", "l.name"
			c.add("l.label = %s AND l.value = %s AND k.name = l.name", label, q.Labels[label])
			continue
		}
		c.add("EXISTS (SELECT 1 FROM labels x WHERE x.key = l.key AND x.label = %s AND x.value = %s)", label, q.Labels[label])
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
	// The names are chosen from the index alone; then the page is read.
	query := `SELECT id, name, revision, document, checksum FROM keys WHERE name IN (SELECT ` + name + ` FROM ` + from + c.sql() +
		` ORDER BY ` + name + ` LIMIT ` + c.arg(limit+1) + `) ORDER BY name`
	if keys, err = t.keys(query, c.args); err != nil {
		return nil, "", err
	}
	if len(keys) > limit {
		keys = keys[:limit]
		next = string(keys[limit-1].Name)
	}
	return keys, next, nil
}

// byRarity returns the labels asked for, those that few keys have first, as
// far as a short look tells.
func (t *Tx) byRarity(labels map[string]string) ([]string, error) {
	names := slices.Sorted(maps.Keys(labels))
	if len(names) < 2 {
		return names, nil
	}
	count := map[string]int{}
	for _, name := range names {
		var n int
		if err := t.one("count label", errNoKey, `SELECT count(*) FROM (SELECT 1 FROM labels WHERE label = $1 AND value = $2 LIMIT 2000) AS few`,
			[]any{name, labels[name]}, &n); err != nil {
			return nil, err
		}
		count[name] = n
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(count[a], count[b]) })
	return names, nil
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
