package store

import (
	"context"
	"slices"
	"strings"
	"time"

	"claviger.dev"
)

// maxTouched is how many ids one change lists; one that touched more may have
// touched anything.
const maxTouched = 256

// keptChanges is how many changes TrimChanges leaves, whatever their age.
const keptChanges = 10_000

// Position is a point in the history of a shared store. Two copies of a
// database that parted have different tags from then on, whatever their numbers.
type Position struct {
	Database string `json:"database"` // random name of the database, a UUID; "" in the zero Position
	Number   uint64 `json:"number"`   // of the last change
	Tag      string `json:"tag"`      // random name of that change, a UUID
}

// News is what a shared store answers to a server that follows it.
type News struct {
	Head    Position
	Holds   bool          // the position that was asked from is part of this history
	Touched []claviger.ID // by the changes since then
	All     bool          // there is more than Touched lists
	Beat    uint64        // how often this server asked since it is listed
}

// Feed is a connection of its own to a shared store, for one goroutine.
type Feed interface {
	// News lists this server, by its name and the position that it has
	// reached, among those that follow, and reads what came after. It is one
	// statement that writes, so that a primary which can no longer commit
	// confirms nothing. The feed is of no more use after an error.
	News(ctx context.Context, node string, from Position) (News, error)
	Close(ctx context.Context) error
}

// Feed opens a feed of a shared store.
func (d *DB) Feed(ctx context.Context) (Feed, error) {
	f, err := d.dialect.Feed(ctx)
	if err != nil {
		return nil, d.fault(ctx, "open feed", err)
	}
	return f, nil
}

// Listen calls wake after each change of a shared store, whoever made it, until
// ctx ends or the connection is lost. A change may go by unheard.
func (d *DB) Listen(ctx context.Context, wake func()) error {
	if err := d.dialect.Listen(ctx, wake); err != nil {
		return d.fault(ctx, "listen for changes", err)
	}
	return nil
}

// touch notes what the transaction changes of that which the change sequence
// counts: of keys, clients and sessions their id, of what is a principal's that
// of the principal. No id at all stands for anything.
func (t *Tx) touch(ids ...claviger.ID) {
	t.changed = true
	t.anything = t.anything || len(ids) == 0
	t.touched = append(t.touched, ids...)
}

// listTouched is how the ids stand in the table of changes; nil for anything.
func (t *Tx) listTouched() any {
	slices.Sort(t.touched)
	ids := slices.Compact(t.touched)
	if t.anything || len(ids) > maxTouched {
		return nil
	}
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = string(id)
	}
	return strings.Join(texts, " ")
}

// Position returns where the history of a shared store stands, and whether
// another position is part of that history. The zero Position is part of any.
func (t *Tx) Position(of Position) (head Position, holds bool, err error) {
	var tag string
	err = t.row(`SELECT s.database::text, s.value, s.tag::text, coalesce(c.tag::text, '')
		FROM change_sequence s LEFT JOIN changes c ON c.number = $1 WHERE s.id = 1`, int64(of.Number)).
		Scan(&head.Database, &head.Number, &head.Tag, &tag)
	if err != nil {
		return Position{}, false, t.db.fault(t.ctx, "read position", err)
	}
	return head, of == Position{} || head.Database == of.Database && tag == of.Tag, nil
}

// Replica is a server that follows a shared store.
type Replica struct {
	Node   string
	Number uint64 // of the last change that it has taken notice of
	Holds  bool   // that change is part of this history
	Beat   uint64 // grows while it follows
}

// Replicas returns the servers that follow a shared store, at most MaxLimit.
func (t *Tx) Replicas() (list []Replica, err error) {
	err = t.all("list replicas", `SELECT r.node, r.number, c.number IS NOT NULL, r.beat
		FROM replicas r LEFT JOIN changes c ON c.number = r.number AND c.tag = r.tag ORDER BY r.node LIMIT $1`,
		[]any{MaxLimit}, func(scan func(...any) error) error {
			var r Replica
			if err := scan(&r.Node, &r.Number, &r.Holds, &r.Beat); err != nil {
				return err
			}
			list = append(list, r)
			return nil
		})
	return list, err
}

// DropReplica forgets a server that no longer follows, unless it has been heard
// of since: its beat is another.
func (t *Tx) DropReplica(r Replica) error {
	_, err := t.exec("drop replica", `DELETE FROM replicas WHERE node = $1 AND beat = $2`, r.Node, int64(r.Beat))
	return err
}

// TrimChanges forgets what changes touched that are older, by the database's
// clock, at most a few thousand at once. The newest stay whatever their age.
func (t *Tx) TrimChanges(older time.Duration) error {
	_, err := t.exec("trim changes", `DELETE FROM changes WHERE number IN (SELECT number FROM changes
		WHERE at < now() - CAST($1 AS bigint) * interval '1 second' AND number < (SELECT value FROM change_sequence) - $2
		ORDER BY number LIMIT $2)`, int64(older/time.Second), keptChanges)
	return err
}
