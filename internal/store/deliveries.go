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

// Receiver returns a receiver by its id or name, disabled or not.
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

// ReceiversOf returns the receivers that are told of the sessions of a client:
// those that are not disabled.
func (t *Tx) ReceiversOf(client claviger.ID) ([]claviger.Receiver, error) {
	return t.receivers(receiverColumns+` WHERE disabled = 0 AND (client = '' OR client = $1) ORDER BY id`, []any{string(client)})
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
	n, err := t.exec("insert receiver", `INSERT INTO receivers (id, name, client, disabled, revision, document, checksum)
		VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`, args...)
	if err == nil && n == 0 {
		return claviger.Errorf(claviger.Conflict, "there is a receiver of this name", "choose another name")
	}
	return err
}

// UpdateReceiver stores a changed receiver with Revision+1 if the stored
// revision is still v.Revision, and answers claviger.Conflict if it is not.
func (t *Tx) UpdateReceiver(v claviger.Receiver) error {
	v.Revision++
	args, err := receiverArgs(v)
	if err != nil {
		return err
	}
	n, err := t.exec("update receiver", `UPDATE receivers SET name = $2, client = $3, disabled = $4, revision = $5,
		document = $6, checksum = $7 WHERE id = $1 AND revision = CAST($5 AS bigint) - 1`, args...)
	if err == nil && n == 0 {
		return t.lost("receivers", string(v.ID), errNoReceiver)
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
	return []any{string(v.ID), v.Name, string(v.Client), flag(!v.Disabled.IsZero()), v.Revision, document, sum}, err
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
	Next     time.Time // of the next attempt, to the millisecond
	Document []byte    // the event, JSON, at most 1 MiB
}

func (d Delivery) sum() []byte {
	return checksum("delivery", string(d.ID)+" "+string(d.Receiver)+" "+string(d.Session), d.Document)
}

// PutDelivery stores a delivery, in place of itself as it was.
func (t *Tx) PutDelivery(d Delivery) error {
	if len(d.Document) == 0 || len(d.Document) > maxDocument {
		return claviger.Errorf(claviger.TooLarge, "an event is 1 byte to 1 MiB", "shorten it")
	}
	_, err := t.exec("write delivery", `INSERT INTO deliveries (id, receiver, session, state, attempts, next, document, checksum)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET state = excluded.state, attempts = excluded.attempts, next = excluded.next`,
		string(d.ID), string(d.Receiver), string(d.Session), string(d.State), d.Attempts, millis(d.Next), d.Document, d.sum())
	return err
}

const deliveryColumns = `SELECT id, receiver, session, state, attempts, next, document, checksum FROM deliveries`

// DueDeliveries returns pending deliveries whose time has come, and puts each
// off until a later time, so that no other server takes it meanwhile.
func (t *Tx) DueDeliveries(now, until time.Time, limit int) ([]Delivery, error) {
	list, err := t.deliveries(deliveryColumns+` WHERE state = 'pending' AND next <= $1 ORDER BY next, id LIMIT $2 `+t.db.dialect.SkipLock,
		[]any{millis(now), pageLimit(limit)})
	for i := range list {
		list[i].Next = until
		if err == nil {
			err = t.PutDelivery(list[i])
		}
	}
	return list, err
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

func (t *Tx) deliveries(query string, args []any) (list []Delivery, err error) {
	err = t.all("read deliveries", query, args, func(scan func(...any) error) error {
		var d Delivery
		var next int64
		var sum []byte
		if err := scan(&d.ID, &d.Receiver, &d.Session, &d.State, &d.Attempts, &next, &d.Document, &sum); err != nil {
			return err
		}
		if d.Next = fromMillis(next); !slices.Equal(sum, d.sum()) {
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
		return claviger.Errorf(claviger.NotFound, "there is no such delivery", "list them with 'claviger receiver deliveries'")
	}
	return err
}
