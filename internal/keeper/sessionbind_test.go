package keeper_test

import (
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
)

func TestBindSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by, other, helper := w.caller(7), w.caller(8), w.caller(9)
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	w.grant(helper, "prod/shop/*", claviger.Conditions{}, claviger.ManageSessions)
	s := w.session(by, keeper.NewSession{Client: "prod/shop/web"})
	first, second := strings.Repeat("A", 43), strings.Repeat("B", 42)+"A"

	for _, text := range []string{"", "A", strings.Repeat("A", 42) + "B", strings.Repeat("A", 42) + "=", first + "\n"} {
		wantCode(t, "the thumbprint "+text, w.BindSession(t.Context(), by, s.ID, text), claviger.Invalid)
	}
	for name, who := range map[string]claviger.Principal{"another": other, "an operator": w.op, "who manages sessions": helper} {
		records := w.since(func() { wantCode(t, name, w.BindSession(t.Context(), who, s.ID, first), claviger.NotFound) })
		if len(records) != 1 || records[0].Action != "session.bind" || records[0].Outcome != audit.Denied {
			t.Errorf("%s: records %+v", name, records)
		}
	}
	if got, err := w.Session(t.Context(), by, s.ID); err != nil || got.DBSC != "" {
		t.Errorf("bound to %q after refusals, %v", got.DBSC, err)
	}
	// The same key twice is one change, as after an answer that was lost.
	records := w.since(func() {
		for range 2 {
			if err := w.BindSession(t.Context(), by, s.ID, first); err != nil {
				t.Error(err)
			}
		}
	})
	if len(records) != 1 || records[0].Action != "session.bind" || records[0].Outcome != audit.Allowed ||
		records[0].Detail["session"] != string(s.ID) || records[0].Detail["dbsc"] != first || records[0].Detail["subject"] != string(by.ID) {
		t.Errorf("records of the binding: %+v", records)
	}
	records = w.since(func() { wantCode(t, "a second key", w.BindSession(t.Context(), by, s.ID, second), claviger.Conflict) })
	if len(records) != 1 || records[0].Outcome != audit.Denied || records[0].Reason != "session-bound" || records[0].Detail["dbsc"] != second {
		t.Errorf("records of a second key: %+v", records)
	}
	if got, err := w.Session(t.Context(), by, s.ID); err != nil || got.DBSC != first {
		t.Errorf("bound to %q, %v; want %q", got.DBSC, err, first)
	}
	if err := w.use(by, s.ID); err != nil {
		t.Errorf("use after it was bound: %v", err)
	}
}

// TestBindSessionRefuses has sessions that are not live.
func TestBindSessionRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.client(by, "prod/shop/web", claviger.ClientLimits{})
	for name, before := range map[string]func(claviger.ID) error{
		"suspended": func(id claviger.ID) error { return w.SuspendSession(t.Context(), by, id, "odd") },
		"ended": func(id claviger.ID) error {
			return w.EndSession(t.Context(), by, id, keeper.End{Reason: keeper.EndClosed})
		},
		"idle": func(claviger.ID) error { w.later(2 * time.Hour); return nil },
	} {
		s := w.session(by, keeper.NewSession{Client: "prod/shop/web"})
		if err := before(s.ID); err != nil {
			t.Fatal(err)
		}
		wantCode(t, name, w.BindSession(t.Context(), by, s.ID, strings.Repeat("A", 43)), claviger.Denied)
	}
	wantCode(t, "none", w.BindSession(t.Context(), by, claviger.NewID(time.Now()), strings.Repeat("A", 43)), claviger.NotFound)
}
