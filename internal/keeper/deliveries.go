package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/store"
)

const (
	// deliveryAge is how long a receiver may be away before what it was to be
	// told is given up.
	deliveryAge = 24 * time.Hour
	// keepDead is how long what was given up can be tried again.
	keepDead = 30 * 24 * time.Hour
)

// Delivery is the end of a session as one receiver is to be told of it.
type Delivery struct {
	ID       claviger.ID // also the jti of what is sent, however often that is
	Receiver claviger.ID
	State    store.DeliveryState
	Tries    uint32
	Since    time.Time // when it became pending
	Next     time.Time // of the next try, where it is pending
	End      SessionEnded
	Error    string // of the last try that failed
}

// Settlement is what became of a try. The zero Settlement is one that was not
// made.
type Settlement struct {
	Arrived bool
	Dead    bool      // it is given up
	Error   string    // why it did not arrive; "" where it did, or was not tried
	Next    time.Time // of the next try, where there is one
}

// delivered is a delivery's document.
type delivered struct {
	End   SessionEnded `json:"end"`
	Error string       `json:"error,omitempty"`
}

func deliveriesOf(rows []store.Delivery) ([]Delivery, error) {
	list := make([]Delivery, 0, len(rows))
	for _, d := range rows {
		var doc delivered
		if err := json.Unmarshal(d.Document, &doc); err != nil {
			return nil, fmt.Errorf("read delivery %s: %w", d.ID, err)
		}
		list = append(list, Delivery{ID: d.ID, Receiver: d.Receiver, State: d.State, Tries: d.Attempts, Since: d.Since, Next: d.Next, End: doc.End, Error: doc.Error})
	}
	return list, nil
}

func (d Delivery) row() (store.Delivery, error) {
	document, err := json.Marshal(delivered{End: d.End, Error: d.Error})
	return store.Delivery{
		ID: d.ID, Receiver: d.Receiver, Session: d.End.Session, State: d.State, Attempts: d.Tries, Since: d.Since, Next: d.Next, Document: document,
	}, err
}

// announce has the receivers of a client told of the end of one of its
// sessions, by the transaction that ends it. It returns how many they are.
func announce(tx *store.Tx, end SessionEnded) (uint64, error) {
	receivers, err := tx.ReceiversOf(end.Client)
	if err != nil {
		return 0, err
	}
	for _, r := range receivers {
		row, err := Delivery{ID: claviger.NewID(end.At), Receiver: r.ID, State: store.DeliveryPending, Since: end.At, Next: end.At, End: end}.row()
		if err != nil {
			return 0, fmt.Errorf("encode delivery: %w", err)
		}
		if err := tx.PutDelivery(row); err != nil {
			return 0, err
		}
	}
	return uint64(len(receivers)), nil
}

// DueReceivers returns the receivers that something waits for.
func (k *Keeper) DueReceivers(ctx context.Context) (list []claviger.Receiver, err error) {
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		var err error
		list, err = tx.DueReceivers(k.cfg.Now())
		return err
	})
	return list, outward(err)
}

// LeaseDeliveries returns what waits for a receiver, oldest first, and puts it
// off, so that no other server takes it meanwhile.
func (k *Keeper) LeaseDeliveries(ctx context.Context, receiver claviger.ID, until time.Time, limit int) ([]Delivery, error) {
	var rows []store.Delivery
	err := k.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		var err error
		rows, err = tx.DueDeliveries(receiver, k.cfg.Now(), until, limit)
		return err
	})
	if err != nil {
		return nil, outward(err)
	}
	list, err := deliveriesOf(rows)
	return list, outward(err)
}

// SettleDelivery writes what became of a delivery that was leased. What arrived,
// and what is given up, is recorded.
func (k *Keeper) SettleDelivery(ctx context.Context, d Delivery, s Settlement) error {
	if s.Error != "" {
		d.Tries++
	}
	d.Error, d.Next = s.Error, s.Next
	if s.Dead {
		d.State = store.DeliveryDead
	}
	r := k.deliveryRecord(k.self(), "session.told", d)
	err := k.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		if s.Arrived {
			return tx.DropDelivery(d.ID)
		}
		row, err := d.row()
		if err != nil {
			return err
		}
		return tx.UpdateDelivery(row)
	})
	switch {
	case errors.Is(err, claviger.NotFound): // another server had it too, or its receiver was removed
		return nil
	case err != nil:
		return outward(err)
	case s.Arrived:
		return k.append(ctx, r)
	case s.Dead:
		r.Outcome, r.Code = audit.Failed, claviger.Unavailable
		addDetailText(r, "error", s.Error)
		return k.append(ctx, r)
	}
	return nil
}

func (k *Keeper) deliveryRecord(by claviger.Principal, action string, d Delivery) *audit.Record {
	r := k.newRecord(by, action)
	addDetailText(r, "session", string(d.End.Session))
	addDetailText(r, "receiver", string(d.Receiver))
	addDetailText(r, "jti", string(d.ID))
	return r
}

// expireDeliveries gives up what waits for receivers that were away for too
// long, without another try, and forgets what was given up long ago.
func (k *Keeper) expireDeliveries(ctx context.Context, now time.Time) error {
	var dead, dropped int64
	err := k.cfg.Store.Update(ctx, func(tx *store.Tx) (err error) {
		if dead, err = tx.ExpireDeliveries(now.Add(-deliveryAge)); err != nil {
			return err
		}
		dropped, err = tx.DropDeadDeliveries(now.Add(-keepDead))
		return err
	})
	if err != nil || dead == 0 && dropped == 0 {
		return outward(err)
	}
	r := k.newRecord(k.self(), "session.untold")
	r.Count = int(dead)
	addDetailText(r, "dropped", fmt.Sprint(dropped))
	return k.append(ctx, r)
}
