package keeper_test

import (
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// TestDeliveries takes the end of a session to one receiver, which is away, to
// the dead and back, and to another, which is there.
func TestDeliveries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	operator := w.op
	add := func(name string, kind claviger.ReceiverKind) keeper.ReceiverView {
		r, err := w.CreateReceiver(t.Context(), operator, claviger.Receiver{Name: name, Kind: kind, Client: "prod/shop/web", URL: "https://app.example/" + name}, "")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	there, away := add("there", claviger.LogoutReceiver), add("away", claviger.CAEPReceiver)
	if _, err := w.CreateReceiver(t.Context(), by, claviger.Receiver{Name: "mine", Kind: claviger.CAEPReceiver, Audience: "x", URL: "https://x.example/"}, ""); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("a receiver without the right to: %v", err)
	}
	s := w.session(by, keeper.NewSession{Client: "prod/shop/web"})
	if err := w.EndSession(t.Context(), by, s.ID, keeper.End{Reason: keeper.EndLogout}); err != nil {
		t.Fatal(err)
	}
	due, err := w.DueReceivers(t.Context())
	if err != nil || len(due) != 2 {
		t.Fatalf("due: %v, %v", due, err)
	}
	lease := func(r keeper.ReceiverView) keeper.Delivery {
		t.Helper()
		list, err := w.LeaseDeliveries(t.Context(), r.ID, w.now().Add(time.Minute), 10)
		if err != nil || len(list) != 1 || list[0].End.Session != s.ID || list[0].End.Reason != keeper.EndLogout {
			t.Fatalf("leased %+v, %v", list, err)
		}
		if again, err := w.LeaseDeliveries(t.Context(), r.ID, w.now().Add(time.Minute), 10); len(again) > 0 || err != nil {
			t.Errorf("leased twice: %+v, %v", again, err)
		}
		return list[0]
	}
	settle := func(d keeper.Delivery, s keeper.Settlement) {
		t.Helper()
		if err := w.SettleDelivery(t.Context(), d, s); err != nil {
			t.Fatal(err)
		}
	}
	records := w.since(func() { settle(lease(there), keeper.Settlement{Arrived: true}) })
	if len(records) != 1 || records[0].Action != "session.told" || records[0].Detail["receiver"] != string(there.ID) {
		t.Errorf("records of an arrival: %+v", records)
	}
	first := lease(away)
	settle(first, keeper.Settlement{Error: "no route", Next: w.now()})
	second := lease(away)
	if second.ID != first.ID || second.Tries != 1 || second.Error != "no route" {
		t.Errorf("the second try is of %+v", second)
	}
	settle(second, keeper.Settlement{Error: "no route", Dead: true})
	dead, _, err := w.Deliveries(t.Context(), operator, "away", store.DeliveryQuery{State: store.DeliveryDead})
	if err != nil || len(dead) != 1 || dead[0].Tries != 2 {
		t.Fatalf("dead: %+v, %v", dead, err)
	}
	if _, _, err := w.Deliveries(t.Context(), by, "", store.DeliveryQuery{}); claviger.CodeOf(err) != claviger.Denied {
		t.Errorf("the dead, shown to anyone: %v", err)
	}
	if n, err := w.RetryDeliveries(t.Context(), operator, "away", "", "it is up"); n != 1 || err != nil {
		t.Fatalf("retried %d, %v", n, err)
	}
	settle(lease(away), keeper.Settlement{Arrived: true})
	if all, err := w.Receivers(t.Context(), operator); err != nil || len(all) != 2 || all[0].Pending+all[0].Dead+all[1].Pending+all[1].Dead != 0 {
		t.Errorf("left: %+v, %v", all, err)
	}
	// What arrived through another server meanwhile is no error, nor what a
	// removed receiver was to be told.
	settle(second, keeper.Settlement{Arrived: true})
	if err := w.RemoveReceiver(t.Context(), operator, "away", ""); err != nil {
		t.Fatal(err)
	}
	settle(second, keeper.Settlement{Error: "no route", Next: w.now()})
}
