package store

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"claviger.dev"
)

// Sighting is what one caller did with one version through one node, with
// tokens of one format or by one kind of operation.
type Sighting struct {
	Key       claviger.ID
	Version   uint32
	Node      string
	Principal claviger.ID
	Host      string // address that the caller came from; "" on the node itself, OtherHosts for several
	What      string // a format such as "django.session", or what the key protects with, such as "seal"
	Made      uint64 // operations that protect
	Checked   uint64 // operations that process, and matched the version
	First     time.Time
	Last      time.Time // to the millisecond
}

func (s Sighting) compare(o Sighting) int {
	return cmp.Or(cmp.Compare(s.Key, o.Key), cmp.Compare(s.Version, o.Version), cmp.Compare(s.Node, o.Node),
		cmp.Compare(s.Principal, o.Principal), cmp.Compare(s.Host, o.Host), cmp.Compare(s.What, o.What))
}

// Flow is how many tokens were made and checked with a version through a node,
// from At on for one width.
type Flow struct {
	Key     claviger.ID
	Version uint32
	Node    string
	At      time.Time
	Made    uint64
	Checked uint64
}

func (f Flow) compare(o Flow) int {
	return cmp.Or(cmp.Compare(f.Key, o.Key), f.At.Compare(o.At), cmp.Compare(f.Version, o.Version), cmp.Compare(f.Node, o.Node))
}

// widths are the spans over which flows are kept.
var widths = [...]time.Duration{time.Minute, time.Hour}

// sightingBatch is how many rows one statement carries; see evidenceBatch.
const sightingBatch = 50

// AddSightings adds to what was seen, each caller and format once, and to the
// flows of the minute and the hour in which the last of it was.
func (t *Tx) AddSightings(list []Sighting) error {
	// In one order, so that two servers that flush at once do not lock each
	// other out.
	list = slices.SortedFunc(slices.Values(list), Sighting.compare)
	for part := range slices.Chunk(list, sightingBatch) {
		c := &clauses{}
		rows := make([]string, 0, len(part))
		for _, s := range part {
			rows = append(rows, fmt.Sprintf("(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)", c.arg(string(s.Key)), c.arg(s.Version), c.arg(s.Node),
				c.arg(string(s.Principal)), c.arg(s.Host), c.arg(s.What), c.arg(bounded(s.Made)), c.arg(bounded(s.Checked)), c.arg(millis(s.First)), c.arg(millis(s.Last))))
		}
		if _, err := t.exec("add sightings", `INSERT INTO sightings (key, version, node, principal, host, what, made, checked, first, last) VALUES `+
			strings.Join(rows, ", ")+` ON CONFLICT (key, version, node, principal, host, what) DO UPDATE SET
			made = sightings.made + excluded.made, checked = sightings.checked + excluded.checked,
			last = CASE WHEN excluded.last > sightings.last THEN excluded.last ELSE sightings.last END`, c.args...); err != nil {
			return err
		}
	}
	for _, width := range widths {
		if err := t.addFlows(width, list); err != nil {
			return err
		}
	}
	return nil
}

func bounded(n uint64) int64 { return int64(min(n, math.MaxInt64/2)) }

func (t *Tx) addFlows(width time.Duration, list []Sighting) error {
	sums := make([]Flow, 0, len(list))
	for _, s := range list {
		sums = append(sums, Flow{Key: s.Key, Version: s.Version, Node: s.Node, At: s.Last.UTC().Truncate(width), Made: s.Made, Checked: s.Checked})
	}
	slices.SortFunc(sums, Flow.compare)
	flows := sums[:0]
	for _, f := range sums {
		if n := len(flows); n > 0 && flows[n-1].compare(f) == 0 {
			flows[n-1].Made += f.Made
			flows[n-1].Checked += f.Checked
			continue
		}
		flows = append(flows, f)
	}
	for part := range slices.Chunk(flows, sightingBatch) {
		c := &clauses{}
		rows := make([]string, 0, len(part))
		for _, f := range part {
			rows = append(rows, fmt.Sprintf("(%s, %s, %s, %s, %s, %s, %s)", c.arg(string(f.Key)), c.arg(width.Milliseconds()), c.arg(millis(f.At)),
				c.arg(f.Version), c.arg(f.Node), c.arg(bounded(f.Made)), c.arg(bounded(f.Checked))))
		}
		if _, err := t.exec("add flows", `INSERT INTO flows (key, width, at, version, node, made, checked) VALUES `+strings.Join(rows, ", ")+
			` ON CONFLICT (key, width, at, version, node) DO UPDATE SET
			made = flows.made + excluded.made, checked = flows.checked + excluded.checked`, c.args...); err != nil {
			return err
		}
	}
	return nil
}

// OtherHosts stands for the hosts of which no more is known than their sum.
const OtherHosts = "others"

// FoldSightings keeps of each principal with a key the last rows, at most, and
// adds those before them to rows of OtherHosts: a principal that comes from ever
// new addresses does not fill the store. It returns how many rows are gone.
func (t *Tx) FoldSightings(most int) (int64, error) {
	const older = ` FROM (SELECT *, row_number() OVER (PARTITION BY key, principal ORDER BY last DESC, version, node, host, what) AS place
		FROM sightings WHERE host <> '` + OtherHosts + `') AS ranked WHERE place > $1`
	if _, err := t.exec("fold sightings", `INSERT INTO sightings (key, version, node, principal, host, what, made, checked, first, last)
		SELECT key, version, node, principal, '`+OtherHosts+`', what, SUM(made), SUM(checked), MIN(first), MAX(last)`+older+`
		GROUP BY key, version, node, principal, what
		ON CONFLICT (key, version, node, principal, host, what) DO UPDATE SET
		made = sightings.made + excluded.made, checked = sightings.checked + excluded.checked,
		first = CASE WHEN excluded.first < sightings.first THEN excluded.first ELSE sightings.first END,
		last = CASE WHEN excluded.last > sightings.last THEN excluded.last ELSE sightings.last END`, most); err != nil {
		return 0, err
	}
	return t.exec("drop folded sightings", `DELETE FROM sightings WHERE (key, version, node, principal, host, what) IN (
		SELECT key, version, node, principal, host, what`+older+`)`, most)
}

// CrowdedSightings reports whether some principal has more rows with a key.
func (t *Tx) CrowdedSightings(most int) (crowded bool, err error) {
	err = t.all("count sightings", `SELECT 1 FROM sightings WHERE host <> '`+OtherHosts+`' GROUP BY key, principal HAVING COUNT(*) > $1 LIMIT 1`, []any{most}, func(scan func(...any) error) error {
		var one int
		crowded = true
		return scan(&one)
	})
	return crowded, err
}

// MaxSightings bounds what one call reads.
const MaxSightings = 10_000

// SightingsOf returns who was seen with a key, the last 10 000 of them.
func (t *Tx) SightingsOf(key claviger.ID) ([]Sighting, error) {
	var list []Sighting
	err := t.all("read sightings", `SELECT version, node, principal, host, what, made, checked, first, last FROM sightings
		WHERE key = $1 ORDER BY last DESC LIMIT $2`, []any{string(key), MaxSightings}, func(scan func(...any) error) error {
		s := Sighting{Key: key}
		var principal string
		var first, last int64
		err := scan(&s.Version, &s.Node, &principal, &s.Host, &s.What, &s.Made, &s.Checked, &first, &last)
		s.Principal, s.First, s.Last = claviger.ID(principal), fromMillis(first), fromMillis(last)
		list = append(list, s)
		return err
	})
	slices.SortFunc(list, Sighting.compare)
	return list, err
}

// FlowsOf returns the flows of a key since a time, by minutes or by hours, the
// newest 10 000, in the order of time.
func (t *Tx) FlowsOf(key claviger.ID, width time.Duration, since time.Time) ([]Flow, error) {
	var list []Flow
	err := t.all("read flows", `SELECT version, node, at, made, checked FROM flows WHERE key = $1 AND width = $2 AND at >= $3 ORDER BY at DESC LIMIT $4`,
		[]any{string(key), width.Milliseconds(), millis(since), MaxSightings}, func(scan func(...any) error) error {
			f := Flow{Key: key}
			var at int64
			err := scan(&f.Version, &f.Node, &at, &f.Made, &f.Checked)
			f.At = fromMillis(at)
			list = append(list, f)
			return err
		})
	slices.SortFunc(list, Flow.compare)
	return list, err
}

// DropSightings forgets what was last seen before a time, and the flows of
// before then; flows by minutes of before another.
func (t *Tx) DropSightings(before, minutes time.Time) error {
	if _, err := t.exec("drop sightings", `DELETE FROM sightings WHERE last < $1`, millis(before)); err != nil {
		return err
	}
	for width, before := range map[time.Duration]time.Time{time.Minute: minutes, time.Hour: before} {
		if _, err := t.exec("drop flows", `DELETE FROM flows WHERE width = $1 AND at < $2`, width.Milliseconds(), millis(before)); err != nil {
			return err
		}
	}
	return nil
}

// Issued is one token that was made, by a keyed digest.
type Issued struct {
	Key     claviger.ID
	Version uint32
	Digest  [32]byte
	Expires time.Time // when it is forgotten; to the millisecond
}

// PutIssued keeps digests of tokens. One that is there already is kept for as
// long as either says.
func (t *Tx) PutIssued(list []Issued) error {
	list = slices.SortedFunc(slices.Values(list), func(a, b Issued) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Version, b.Version), slices.Compare(a.Digest[:], b.Digest[:]), b.Expires.Compare(a.Expires))
	})
	list = slices.CompactFunc(list, func(a, b Issued) bool { return a.Key == b.Key && a.Version == b.Version && a.Digest == b.Digest })
	for part := range slices.Chunk(list, 4*sightingBatch) {
		c := &clauses{}
		rows := make([]string, 0, len(part))
		for _, i := range part {
			rows = append(rows, fmt.Sprintf("(%s, %s, %s, %s)", c.arg(string(i.Key)), c.arg(i.Version), c.arg(i.Digest[:]), c.arg(millis(i.Expires))))
		}
		if _, err := t.exec("keep issued", `INSERT INTO issued (key, version, digest, expires) VALUES `+strings.Join(rows, ", ")+
			` ON CONFLICT (key, version, digest) DO UPDATE SET
			expires = CASE WHEN excluded.expires > issued.expires THEN excluded.expires ELSE issued.expires END`, c.args...); err != nil {
			return err
		}
	}
	return nil
}

// IsIssued returns which digests are kept, in their order.
func (t *Tx) IsIssued(key claviger.ID, version uint32, digests [][32]byte) ([]bool, error) {
	have := map[[32]byte]bool{}
	for part := range slices.Chunk(digests, batch) {
		c := &clauses{}
		c.add("key = %s AND version = %s", string(key), version)
		marks := make([]string, len(part))
		for i := range part {
			marks[i] = c.arg(part[i][:])
		}
		err := t.all("read issued", `SELECT digest FROM issued`+c.sql()+` AND digest IN (`+strings.Join(marks, ", ")+`)`, c.args, func(scan func(...any) error) error {
			var digest []byte
			err := scan(&digest)
			if len(digest) == 32 {
				have[[32]byte(digest)] = true
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	out := make([]bool, len(digests))
	for i, d := range digests {
		out[i] = have[d]
	}
	return out, nil
}

// TrimIssued forgets the digests whose time is over, and of each key those
// beyond a limit that would be forgotten first. It returns how many of those
// there were.
func (t *Tx) TrimIssued(now time.Time, limit int) (over int64, err error) {
	if _, err := t.exec("forget issued", `DELETE FROM issued WHERE expires <= $1`, millis(now)); err != nil {
		return 0, err
	}
	var full []string
	err = t.all("count issued", `SELECT key FROM issued GROUP BY key HAVING COUNT(*) > $1 ORDER BY key`, []any{limit}, func(scan func(...any) error) error {
		var key string
		err := scan(&key)
		full = append(full, key)
		return err
	})
	for _, key := range full {
		if err != nil {
			break
		}
		var n int64
		n, err = t.exec("trim issued", `DELETE FROM issued WHERE key = $1 AND (expires, version, digest) <
			(SELECT expires, version, digest FROM issued WHERE key = $1 ORDER BY expires DESC, version DESC, digest DESC LIMIT 1 OFFSET $2)`, key, limit-1)
		over += n
	}
	return over, err
}
