package keeper_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// Who manages one application's keys must not be able to move one among those
// of another: it would be used under the other's grants and published with the
// other's keys.
func TestRenameIntoWhatIsNotManaged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/mine/*", claviger.Conditions{}, claviger.ManageKey, claviger.Sign)
	w.key("prod/mine/key", claviger.Ed25519)
	var err error
	records := w.since(func() { _, err = w.Rename(t.Context(), by, "prod/mine/key", "prod/theirs/key") })
	wantCode(t, "to a name that is not managed", err, claviger.Denied)
	if len(records) != 1 || records[0].Outcome != audit.Denied || records[0].Action != "key.rename" {
		t.Errorf("records: %+v", records)
	}
	set, err := w.PublicKeys(t.Context(), "prod", "theirs")
	if err != nil || len(set.Versions) != 0 {
		t.Errorf("published with the other's keys: %v, %v", set.Versions, err)
	}
	if _, err := w.Rename(t.Context(), by, "prod/mine/key", "prod/mine/other"); err != nil {
		t.Errorf("within what is managed: %v", err)
	}
}

// A page of a listing must not name what the caller may not see, not even as
// the place where the next page begins.
func TestPagesNameNothingHidden(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/app/*", claviger.Conditions{}, claviger.ReadKey)
	var want []string
	for _, name := range []string{"prod/app/a", "prod/app/b", "prod/app/c", "prod/app/d"} {
		w.key(name, claviger.HMACSHA256)
		w.key(strings.Replace(name, "app", "aaa-hidden", 1), claviger.HMACSHA256)
		w.key(strings.Replace(name, "app", "zzz-hidden", 1), claviger.HMACSHA256)
		want = append(want, name)
	}
	for _, size := range []int{1, 2, 3, 4, 100} {
		var got []string
		q := store.KeyQuery{Limit: size}
		for pages := 0; ; pages++ {
			keys, next, err := w.Keys(t.Context(), by, q)
			if err != nil || pages > 20 || len(keys) > size {
				t.Fatalf("page %d of %d: %d keys, %v", pages, size, len(keys), err)
			}
			for _, k := range keys {
				got = append(got, string(k.Name))
			}
			if strings.Contains(next, "hidden") || strings.HasPrefix(next, "system/") {
				t.Fatalf("the next page is after %q", next)
			}
			if next == "" {
				break
			}
			q.After = next
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d: %v", size, got)
		}
	}
}

// The name of a local user whom the configuration lists as operator is not
// free for anything less: it would lock the operator out.
func TestOperatorsNameIsNotTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := w.config()
	cfg.Operators = append(cfg.Operators, 0)
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.open(cfg)
	_, err := w.CreatePrincipal(t.Context(), w.op, keeper.CreatePrincipal{Name: "uid:0", Kind: claviger.Workload, Environments: []string{"prod"}})
	wantCode(t, "a workload of the operator's name", err, claviger.Invalid)
	by, err := w.ByUID(t.Context(), claviger.Facts{UID: 0})
	if err != nil || by.Kind != claviger.Operator {
		t.Errorf("the operator is %q, %v", by.Kind, err)
	}
}

func TestContextIsLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/app/*", claviger.Conditions{}, claviger.Verify)
	w.key("prod/app/key", claviger.Ed25519)
	for _, c := range []keeper.Context{{Audience: strings.Repeat("a", 513)}, {Purpose: strings.Repeat("p", 1<<20)}} {
		_, err := w.Verify(t.Context(), by, keeper.VerifyRequest{Key: "prod/app/key", Items: []keeper.Item{{Input: []byte("x")}}, Context: c})
		wantCode(t, "a long text", err, claviger.TooLarge)
	}
	_, err := w.Verify(t.Context(), by, keeper.VerifyRequest{
		Key: "prod/app/key", Items: []keeper.Item{{Input: []byte("x")}}, Context: keeper.Context{Audience: strings.Repeat("a", 512)},
	})
	wantCode(t, "a text of the longest size", err, "")
}

// A record of gathered verifications names every version that they met.
func TestGatheredRecordsNameEveryVersion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/app/*", claviger.Conditions{}, claviger.Sign, claviger.Verify)
	w.key("prod/app/key", claviger.Ed25519)
	var items []keeper.Item
	for i := range 3 {
		in := []byte(fmt.Sprint(i))
		signed, err := w.Sign(t.Context(), by, keeper.SignRequest{Key: "prod/app/key", Inputs: [][]byte{in}})
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, keeper.Item{Input: in, Signature: signed.Signatures[0]})
		if _, err := w.Rotate(t.Context(), w.op, "prod/app/key", "", 0); err != nil {
			t.Fatal(err)
		}
	}
	records := w.since(func() {
		for _, some := range [][]keeper.Item{items[:2], items[1:]} {
			if _, err := w.Verify(t.Context(), by, keeper.VerifyRequest{Key: "prod/app/key", Items: some}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	var got []string
	for _, r := range records {
		if r.Action == "use.verify" {
			got = append(got, r.Detail["versions"])
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"1,2", "2,3"}) {
		t.Errorf("versions in the records: %q", got)
	}
}
