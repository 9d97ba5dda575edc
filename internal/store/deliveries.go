package store

import (
	"errors"
	"slices"
	"time"

	"claviger.dev"
)

const receiverColumns = `SELECT id, name, revision, document, checksum FROM receivers`

func (r *keyRow) receiver() (v claviger.Receiver, err error) {
	if err := decode("receiver", r.id, r.document, r.sum, &v); err != nil {
		return claviger.Receiver{}, err
	}
	if string(v.ID) != r.id || v.Name != r.name || v.Revision != r.revision {
		return claviger.Receiver{}, damaged("receiver", r.id, errColumns)
	}
	return v, nil
}

// Receiver returns a receiver by its id or name.
func (t *Tx) Receiver(ref string) (claviger.Receiver, error) {
	query := receiverColumns + ` WHERE name = $1`
	if _, err := claviger.ParseID(ref); err == nil {
		query = receiverColumns + ` WHERE id = $1`
	}
	var r keyRow
	if err := t.one("read receiver", errNoReceiver, query, []any{ref}, r.dest()...); err != nil {
		return claviger.Receiver{}, err
	}
	return r.receiver()
}

// Receivers returns the receivers in the order of their names, at most
// MaxLimit.
func (t *Tx) Receivers() ([]claviger.Receiver, error) {
	return t.receivers(receiverColumns+` ORDER BY name LIMIT $1`, []any{MaxLimit})
}

// ReceiversOf returns the receivers that are told of the sessions of a client.
func (t *Tx) ReceiversOf(client claviger.ID) ([]claviger.Receiver, error) {
	return t.receivers(receiverColumns+` WHERE client = '' OR client = $1 ORDER BY id`, []any{string(client)})
}

func (t *Tx) receivers(query string, args []any) (list []claviger.Receiver, err error) {
	err = t.all("list receivers", query, args, func(scan func(...any) error) error {
		var r keyRow
		if err := scan(r.dest()...); err != nil {
			return err
		}
		v, err := r.receiver()
		list = append(list, v)
		return err
	})
	return list, err
}

// InsertReceiver stores a new receiver with revision 1, whatever its Revision
// says. It answers claviger.Conflict when its name is taken, and
// claviger.Exhausted beyond MaxLimit.
func (t *Tx) InsertReceiver(v claviger.Receiver) error {
	v.Revision = 1
	args, err := receiverArgs(v)
	if err != nil {
		return err
	}
	all, err := t.Receivers()
	if err != nil {
		return err
	}
	if len(all) >= MaxLimit {
		return claviger.Errorf(claviger.Exhausted, "there are 1000 receivers", "remove one that is not needed")
	}
	n, err := t.exec("insert receiver", `INSERT INTO receivers (id, name, client, revision, document, checksum)
		VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`, args...)
	if err == nil && n == 0 {
		return claviger.Errorf(claviger.Conflict, "there is a receiver of this name", "choose another name")
	}
	return err
}

// DeleteReceiver removes a receiver and what it is still to be told.
func (t *Tx) DeleteReceiver(id claviger.ID) error {
	if _, err := t.exec("drop deliveries", `DELETE FROM deliveries WHERE receiver = $1`, string(id)); err != nil {
		return err
	}
	n, err := t.exec("delete receiver", `DELETE FROM receivers WHERE id = $1`, string(id))
	if err == nil && n == 0 {
		return errNoReceiver
	}
	return err
}

func receiverArgs(v claviger.Receiver) ([]any, error) {
	document, sum, err := encode("receiver", string(v.ID), v)
	return []any{string(v.ID), v.Name, string(v.Client), v.Revision, document, sum}, err
}

// DeliveryState is where a delivery stands. One that succeeded is removed.
type DeliveryState string

// The states of a delivery.
const (
	DeliveryPending DeliveryState = "pending"
	DeliveryDead    DeliveryState = "dead" // given up; kept until somebody removes it or has it tried again
)

// Delivery is one event that one receiver is to be told.
type Delivery struct {
	ID       claviger.ID
	Receiver claviger.ID
	Session  claviger.ID
	State    DeliveryState
	Attempts uint32
	Since    time.Time // when it became pending, to the millisecond
	Next     time.Time // of the next attempt, to the millisecond
	Document []byte    // the event, JSON, at most 1 MiB
}

func (d Delivery) sum() []byte {
	return checksum("delivery", string(d.ID)+" "+string(d.Receiver)+" "+string(d.Session), d.Document)
}

// PutDelivery stores a new delivery.
func (t *Tx) PutDelivery(d Delivery) error {
	if len(d.Document) == 0 || len(d.Document) > maxDocument {
		return claviger.Errorf(claviger.TooLarge, "an event is 1 byte to 1 MiB", "shorten it")
	}
	_, err := t.exec("write delivery", `INSERT INTO deliveries (id, receiver, session, state, attempts, since, next, document, checksum)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		string(d.ID), string(d.Receiver), string(d.Session), string(d.State), d.Attempts, millis(d.Since), millis(d.Next), d.Document, d.sum())
	return err
}

const deliveryColumns = `SELECT id, receiver, session, state, attempts, since, next, document, checksum FROM deliveries`

// UpdateDelivery stores what became of a delivery. It answers
// claviger.NotFound when it is gone.
func (t *Tx) UpdateDelivery(d Delivery) error {
	if len(d.Document) == 0 || len(d.Document) > maxDocument {
		return claviger.Errorf(claviger.TooLarge, "an event is 1 byte to 1 MiB", "shorten it")
	}
	n, err := t.exec("update delivery", `UPDATE deliveries SET state = $2, attempts = $3, next = $4, document = $5, checksum = $6 WHERE id = $1`,
		string(d.ID), string(d.State), d.Attempts, millis(d.Next), d.Document, d.sum())
	if err == nil && n == 0 {
		return errNoDelivery
	}
	return err
}

var errNoDelivery = claviger.Errorf(claviger.NotFound, "there is no such delivery", "list them with 'claviger receiver dead'")

// DueReceivers returns the receivers that have pending deliveries whose time
// has come.
func (t *Tx) DueReceivers(now time.Time) ([]claviger.Receiver, error) {
	return t.receivers(receiverColumns+` WHERE EXISTS
		(SELECT 1 FROM deliveries WHERE receiver = receivers.id AND state = 'pending' AND next <= $1) ORDER BY id`, []any{millis(now)})
}

// DueDeliveries returns pending deliveries of a receiver whose time has come,
// and puts each off until a later time, so that no other server takes it
// meanwhile.
func (t *Tx) DueDeliveries(receiver claviger.ID, now, until time.Time, limit int) ([]Delivery, error) {
	list, err := t.deliveries(deliveryColumns+` WHERE receiver = $1 AND state = 'pending' AND next <= $2 ORDER BY next, id LIMIT $3 `+t.db.dialect.SkipLock,
		[]any{string(receiver), millis(now), pageLimit(limit)})
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i].Next = until
		if _, err := t.exec("lease delivery", `UPDATE deliveries SET next = $2 WHERE id = $1`, string(list[i].ID), millis(until)); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// RetryDeliveries has dead deliveries tried again, with all their attempts:
// one of them, or for "" all of a receiver. It returns how many.
func (t *Tx) RetryDeliveries(receiver, id claviger.ID, now time.Time) (int64, error) {
	return t.exec("retry deliveries", `UPDATE deliveries SET state = 'pending', attempts = 0, since = $3, next = $3
		WHERE receiver = $1 AND state = 'dead' AND ($2 = '' OR id = $2)`, string(receiver), string(id), millis(now))
}

// ExpireDeliveries gives up what is pending since before a time, and returns
// how many deliveries that were.
func (t *Tx) ExpireDeliveries(before time.Time) (int64, error) {
	return t.exec("expire deliveries", `UPDATE deliveries SET state = 'dead' WHERE state = 'pending' AND since < $1`, millis(before))
}

// DropDeadDeliveries removes what was last pending from before a time on, and
// is dead.
func (t *Tx) DropDeadDeliveries(before time.Time) (int64, error) {
	return t.exec("drop dead deliveries", `DELETE FROM deliveries WHERE state = 'dead' AND since < $1`, millis(before))
}

// DeliveryQuery chooses deliveries. Zero fields choose all.
type DeliveryQuery struct {
	Receiver claviger.ID
	State    DeliveryState
	After    claviger.ID // the next of the page before
	Limit    int         // page size: DefaultLimit when 0, at most MaxLimit
}

// Deliveries returns a page of deliveries, oldest first, and what to pass as
// After for the next page, which is empty on the last.
func (t *Tx) Deliveries(q DeliveryQuery) (list []Delivery, next claviger.ID, err error) {
	limit := pageLimit(q.Limit)
	c := &clauses{}
	if q.Receiver != "" {
		c.add("receiver = %s", string(q.Receiver))
	}
	if q.State != "" {
		c.add("state = %s", string(q.State))
	}
	if q.After != "" {
		c.add("id > %s", string(q.After))
	}
	list, err = t.deliveries(deliveryColumns+c.sql()+` ORDER BY id LIMIT `+c.arg(limit+1), c.args)
	if err != nil {
		return nil, "", err
	}
	if len(list) > limit {
		list = list[:limit]
		next = list[limit-1].ID
	}
	return list, next, nil
}

// Waiting is how much one receiver is still to be told, and how much is given
// up.
type Waiting struct{ Pending, Dead uint64 }

// CountDeliveries returns that for each receiver that has any.
func (t *Tx) CountDeliveries() (map[claviger.ID]Waiting, error) {
	counts := map[claviger.ID]Waiting{}
	err := t.all("count deliveries", `SELECT receiver, state, count(*) FROM deliveries GROUP BY receiver, state`, nil, func(scan func(...any) error) error {
		var receiver claviger.ID
		var state DeliveryState
		var n uint64
		if err := scan(&receiver, &state, &n); err != nil {
			return err
		}
		w := counts[receiver]
		if state == DeliveryDead {
			w.Dead = n
		} else {
			w.Pending = n
		}
		counts[receiver] = w
		return nil
	})
	return counts, err
}

func (t *Tx) deliveries(query string, args []any) (list []Delivery, err error) {
	err = t.all("read deliveries", query, args, func(scan func(...any) error) error {
		var d Delivery
		var since, next int64
		var sum []byte
		if err := scan(&d.ID, &d.Receiver, &d.Session, &d.State, &d.Attempts, &since, &next, &d.Document, &sum); err != nil {
			return err
		}
		if d.Since, d.Next = fromMillis(since), fromMillis(next); !slices.Equal(sum, d.sum()) {
			return damaged("delivery", string(d.ID), errors.New("the checksum does not hold"))
		}
		list = append(list, d)
		return nil
	})
	return list, err
}

// DropDelivery removes a delivery: it arrived, or nobody wants it any more.
func (t *Tx) DropDelivery(id claviger.ID) error {
	n, err := t.exec("drop delivery", `DELETE FROM deliveries WHERE id = $1`, string(id))
	if err == nil && n == 0 {
		return errNoDelivery
	}
	return err
}
