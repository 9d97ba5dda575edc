package keeper

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"

	"claviger.dev"
	"claviger.dev/internal/store"
)

// maxRoots is how many certificates may vouch for one receiver.
const maxRoots = 8

// ReceiverView is a receiver with how much it is still to be told, and how much
// is given up.
type ReceiverView struct {
	claviger.Receiver
	Pending, Dead uint64
}

// CreateReceiver registers who is told when sessions end. Its URL has been
// checked by whoever is going to send there.
func (k *Keeper) CreateReceiver(ctx context.Context, by claviger.Principal, r claviger.Receiver, reason string) (ReceiverView, error) {
	if err := checkReceiver(r, reason); err != nil {
		return ReceiverView{}, err
	}
	now := k.cfg.Now().UTC()
	client := string(r.Client)
	r.ID, r.Created, r.Revision = claviger.NewID(now), now, 1
	err := k.change(ctx, by, change{op: claviger.ManageClients, action: "receiver.create", reason: reason, apply: func(tx *store.Tx, e *effect) error {
		if client != "" {
			c, err := tx.Client(client)
			if err != nil {
				return err
			}
			r.Client = c.ID
		}
		r.Audience = cmp.Or(r.Audience, string(r.Client))
		e.detail("receiver", string(r.ID))
		e.detail("name", r.Name)
		e.detail("url", clipText(r.URL))
		return tx.InsertReceiver(r)
	}})
	return ReceiverView{Receiver: r}, err
}

func checkReceiver(r claviger.Receiver, reason string) error {
	bad := func(what, hint string) error { return claviger.Errorf(claviger.Invalid, what, hint) }
	for what, text := range map[string]string{"reason": reason, "audience": r.Audience} {
		if err := checkText(what, text); err != nil {
			return err
		}
	}
	if !isPlainName(r.Name) {
		return bad("the receiver's name has a form that is not allowed", "use 1 to 63 of a-z, 0-9, '-', '_' and '.'")
	}
	if r.Kind != claviger.LogoutReceiver && r.Kind != claviger.CAEPReceiver {
		return bad("there is no such kind of receiver", "use backchannel-logout or caep")
	}
	if r.Audience == "" && r.Client == "" {
		return bad("a receiver of every client's sessions has no audience", "say what the aud of its tokens is to be")
	}
	if len(r.Roots) > maxRoots {
		return bad("more than 8 certificates vouch for a receiver", "send its root alone")
	}
	for _, der := range r.Roots {
		if _, err := x509.ParseCertificate(der); err != nil {
			return bad("a certificate of a receiver cannot be read", "send the root of its certificate, in DER")
		}
	}
	return nil
}

// Receiver returns a receiver by its id or name.
func (k *Keeper) Receiver(ctx context.Context, by claviger.Principal, ref string) (ReceiverView, error) {
	list, err := k.receivers(ctx, by, func(tx *store.Tx) ([]claviger.Receiver, error) {
		r, err := tx.Receiver(ref)
		return []claviger.Receiver{r}, err
	})
	if err != nil {
		return ReceiverView{}, err
	}
	return list[0], nil
}

// Receivers returns all receivers, by name.
func (k *Keeper) Receivers(ctx context.Context, by claviger.Principal) ([]ReceiverView, error) {
	return k.receivers(ctx, by, (*store.Tx).Receivers)
}

func (k *Keeper) receivers(ctx context.Context, by claviger.Principal, pick func(*store.Tx) ([]claviger.Receiver, error)) (list []ReceiverView, err error) {
	if err := k.read(ctx, &by, change{op: claviger.ManageClients, action: "receiver.read"}); err != nil {
		return nil, err
	}
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		receivers, err := pick(tx)
		if err != nil {
			return err
		}
		waiting, err := tx.CountDeliveries()
		for _, r := range receivers {
			list = append(list, ReceiverView{r, waiting[r.ID].Pending, waiting[r.ID].Dead})
		}
		return err
	})
	return list, outward(err)
}

// RemoveReceiver removes a receiver, and what it was still to be told.
func (k *Keeper) RemoveReceiver(ctx context.Context, by claviger.Principal, ref, reason string) error {
	if err := checkText("reason", reason); err != nil {
		return err
	}
	return k.change(ctx, by, change{op: claviger.ManageClients, action: "receiver.remove", reason: reason, apply: func(tx *store.Tx, e *effect) error {
		r, err := tx.Receiver(ref)
		if err != nil {
			return err
		}
		e.detail("receiver", string(r.ID))
		e.detail("name", r.Name)
		return tx.DeleteReceiver(r.ID)
	}})
}

// Deliveries returns a page of what receivers are to be told, or of what is
// given up: of one receiver, by id or name, or of all. Its second value is what
// to pass as q.After for the next page.
func (k *Keeper) Deliveries(ctx context.Context, by claviger.Principal, ref string, q store.DeliveryQuery) (list []Delivery, next claviger.ID, err error) {
	if err := k.read(ctx, &by, change{op: claviger.ManageClients, action: "receiver.read"}); err != nil {
		return nil, "", err
	}
	err = k.cfg.Store.View(ctx, func(tx *store.Tx) error {
		if ref != "" {
			r, err := tx.Receiver(ref)
			if err != nil {
				return err
			}
			q.Receiver = r.ID
		}
		rows, after, err := tx.Deliveries(q)
		if err != nil {
			return err
		}
		next = after
		list, err = deliveriesOf(rows)
		return err
	})
	return list, next, outward(err)
}

// RetryDeliveries has what was given up of a receiver tried again: one, or for
// "" all. It returns how many.
func (k *Keeper) RetryDeliveries(ctx context.Context, by claviger.Principal, ref string, id claviger.ID, reason string) (n uint64, err error) {
	if err := checkText("reason", reason); err != nil {
		return 0, err
	}
	err = k.change(ctx, by, change{op: claviger.ManageClients, action: "receiver.retry", reason: reason, apply: func(tx *store.Tx, e *effect) error {
		r, err := tx.Receiver(ref)
		if err != nil {
			return err
		}
		count, err := tx.RetryDeliveries(r.ID, id, k.cfg.Now())
		if err == nil && count == 0 && id != "" {
			err = claviger.Errorf(claviger.NotFound, "the receiver has no such delivery that is given up", "list them with 'claviger receiver dead'")
		}
		n = uint64(count)
		e.detail("receiver", string(r.ID))
		e.detail("deliveries", fmt.Sprint(count))
		return err
	}})
	return n, err
}
