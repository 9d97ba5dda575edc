package keeper_test

import (
	"testing"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/policy"
	"claviger.dev/internal/state"
)

// TestFormatGrants has a grant that names one format: it allows that one, and a
// refusal of another leaves the one record that says why.
func TestFormatGrants(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	const name = "prod/shop/secret"
	if _, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: name, Algorithm: "machine-key", Recipe: "django", Owner: "tests"}); err != nil {
		t.Fatal(err)
	}
	protect := func(f state.Format) error {
		_, err := w.Protect(t.Context(), by, keeper.ProtectRequest{Key: name, Format: f, Payloads: [][]byte{[]byte("x")}})
		return err
	}
	unprotect := func(f state.Format) error {
		_, err := w.Unprotect(t.Context(), by, keeper.UnprotectRequest{Key: name, Format: f, Tokens: [][]byte{[]byte("x")}})
		return err
	}
	w.grant(by, name, claviger.Conditions{Formats: []string{"django.session"}}, claviger.Protect, claviger.Unprotect)
	wantCode(t, "protect", protect(state.DjangoSession), "")
	wantCode(t, "unprotect", unprotect(state.DjangoSession), "")
	for what, use := range map[string]func(state.Format) error{"protect": protect, "unprotect": unprotect} {
		records := w.since(func() { wantCode(t, what+" of another", use(state.DjangoDumps), claviger.Denied) })
		if len(records) != 1 || records[0].Outcome != audit.Denied || records[0].Reason != policy.ReasonFormat {
			t.Errorf("%s: %+v", what, records)
		}
	}
	// The control: a second grant opens the other format too.
	w.grant(by, name, claviger.Conditions{Formats: []string{"django.dumps", "django.timestamp"}}, claviger.Protect)
	wantCode(t, "protect under a second grant", protect(state.DjangoDumps), "")
	wantCode(t, "unprotect, which it does not name", unprotect(state.DjangoDumps), claviger.Denied)
	_, err := w.CreateGrant(t.Context(), w.op, keeper.CreateGrant{
		Principal: string(by.ID), Selector: name, Operations: []string{"protect"}, Conditions: claviger.Conditions{Formats: []string{"django.sessions"}},
	})
	wantCode(t, "no such format", err, claviger.Invalid)
}
