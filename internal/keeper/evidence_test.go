package keeper_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

const week = 7 * 24 * time.Hour

// told are the notices that a keeper sent.
type told struct{ list chan keeper.Notice }

func (n told) notify(_ context.Context, notice keeper.Notice) error {
	n.list <- notice
	return nil
}

// hardened is the key process as it is with all of its measures, which a test
// host may not offer.
type hardened struct {
	keeper.Custodian
	level atomic.Pointer[claviger.Level]
}

func (h *hardened) Evidence(ctx context.Context) (custody.Evidence, error) {
	e, err := h.Custodian.Evidence(ctx)
	e.Level = *h.level.Load()
	return e, err
}

func (h *hardened) now(l claviger.Level) { h.level.Store(&l) }

func (h *hardened) Generate(ctx context.Context, b frames.Binding) (custody.Made, error) {
	made, err := h.Custodian.Generate(ctx, b)
	made.Level = *h.level.Load()
	return made, err
}

// isolated is a world whose key process counts as hardened.
func isolated(t testing.TB, change func(*keeper.Config)) (*world, *hardened) {
	t.Helper()
	w := newWorld(t)
	h := &hardened{Custodian: w.keys.Custodian}
	h.now(claviger.Isolated)
	w.keys.Custodian = h
	if change != nil {
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		cfg := w.config()
		change(&cfg)
		w.open(cfg)
	}
	return w, h
}

func (w *world) level(ref string) claviger.Level {
	w.Helper()
	v, err := w.Key(w.Context(), w.op, ref)
	if err != nil {
		w.Fatal(err)
	}
	return v.Level()
}

func (w *world) refresh() {
	w.Helper()
	if err := w.RefreshEvidence(w.Context()); err != nil {
		w.Fatal(err)
	}
}

// A level that was shown too long ago has lapsed, and meets no minimum; a
// refresh brings it back.
func TestLevelsLapse(t *testing.T) {
	t.Parallel()
	w, _ := isolated(t, nil)
	by := w.caller(7)
	w.grant(by, "prod/app/key", claviger.Conditions{MinLevel: claviger.Isolated}, claviger.Sign)
	w.grant(by, "prod/app/any", claviger.Conditions{}, claviger.Sign)
	w.grant(by, "prod/app/strict", claviger.Conditions{}, claviger.Sign)
	w.key("prod/app/key", claviger.Ed25519)
	w.key("prod/app/any", claviger.Ed25519)
	if _, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{Name: "prod/app/strict", Algorithm: "ed25519", Settings: claviger.Settings{MinLevel: claviger.Isolated}}); err != nil {
		t.Fatal(err)
	}
	check := func(when string, level claviger.Level, want claviger.Code) {
		t.Helper()
		if got := w.level("prod/app/key"); got != level {
			t.Errorf("%s the level is %s, want %s", when, got, level)
		}
		for _, name := range []string{"prod/app/key", "prod/app/strict"} {
			if err := sign(w, by, name); (err != nil || want != "") && claviger.CodeOf(err) != want {
				t.Errorf("%s %s: %v, want %q", when, name, err, want)
			}
		}
		if err := sign(w, by, "prod/app/any"); err != nil {
			t.Errorf("%s a key without a minimum: %v", when, err)
		}
	}
	check("at first", claviger.Isolated, "")
	w.later(week - time.Hour)
	check("before a week", claviger.Isolated, "")
	w.later(2 * time.Hour)
	check("after a week", claviger.Lapsed, claviger.Denied)
	records := w.since(w.refresh)
	if len(records) != 1 || records[0].Action != "evidence.refresh" || records[0].Outcome != audit.Allowed || records[0].Count != 7 {
		t.Errorf("a refresh left %+v, want one record of 7 versions", records)
	}
	check("after a refresh", claviger.Isolated, "")
}

// A key process that lost its measures has exposed what it holds, for good.
func TestExposureIsForGood(t *testing.T) {
	t.Parallel()
	w, h := isolated(t, nil)
	w.key("prod/app/key", claviger.Ed25519)
	h.now(claviger.Exposed)
	w.refresh()
	if got := w.level("prod/app/key"); got != claviger.Exposed {
		t.Fatalf("the level is %s, want exposed", got)
	}
	h.now(claviger.Isolated)
	w.refresh()
	w.key("prod/app/later", claviger.Ed25519)
	if got := w.level("prod/app/key"); got != claviger.Exposed {
		t.Errorf("an exposed version came back as %s", got)
	}
	if got := w.level("prod/app/later"); got != claviger.Isolated {
		t.Errorf("a version that was made later is %s", got)
	}
	w.later(10 * week) // nor does it lapse into something that looks repairable
	if got := w.level("prod/app/key"); got != claviger.Exposed {
		t.Errorf("exposure lapsed into %s", got)
	}
	report, err := w.Doctor(t.Context(), w.op)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(report.Measures, func(m keeper.Measure) bool { return m.Name == "no finding is open" })
	if i < 0 || report.Measures[i].State != "off" || !strings.Contains(report.Measures[i].Detail, "is exposed") {
		t.Errorf("doctor does not name the finding: %+v", report.Measures)
	}
}

// Who finds a copy reports it: the version is exposed and suspended in one
// change, and its owner is told.
func TestReportCopy(t *testing.T) {
	t.Parallel()
	notices := told{make(chan keeper.Notice, 10)}
	w, _ := isolated(t, func(cfg *keeper.Config) { cfg.Notify = notices.notify })
	by := w.caller(7)
	w.grant(by, "prod/app/*", claviger.Conditions{}, claviger.Sign)
	view, err := w.CreateKey(t.Context(), w.op, keeper.CreateKey{
		Name: "prod/app/key", Algorithm: "ed25519", Owner: "ann", Settings: claviger.Settings{SuspendExposed: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.key("prod/app/lax", claviger.Ed25519)
	if err := sign(w, by, "prod/app/key"); err != nil {
		t.Fatal(err)
	}
	records := w.since(func() {
		_, err := w.ReportCopy(t.Context(), by, "prod/app/key", 1, "a log", keeper.Place{}, "")
		wantCode(t, "a report by who may only sign", err, claviger.Denied)
	})
	if len(records) != 1 || records[0].Action != "evidence.copy" || records[0].Outcome != audit.Denied {
		t.Errorf("a refused report left %+v", records)
	}
	records = w.since(func() {
		view, err = w.ReportCopy(t.Context(), w.op, "prod/app/key", 0, "/var/log/app.log at 4711", keeper.Place{}, "")
	})
	if err != nil {
		t.Fatal(err)
	}
	if v := view.Versions[0]; v.Level != claviger.Exposed || v.State != claviger.Suspended || !strings.Contains(v.Finding, "4711") {
		t.Errorf("the version is %+v, want exposed and suspended", v)
	}
	if len(records) != 1 || records[0].Version != 1 || records[0].Key != "prod/app/key" || records[0].Detail["where"] == "" || records[0].Detail["suspended"] != "1" {
		t.Errorf("the report left %+v", records)
	}
	wantCode(t, "sign with a suspended version", sign(w, by, "prod/app/key"), claviger.Denied)
	if view, err = w.ReportCopy(t.Context(), w.op, "prod/app/lax", 1, "a backup", keeper.Place{}, ""); err != nil || view.Versions[0].State != claviger.Active {
		t.Errorf("a key that does not ask for it: %v, %+v", err, view.Versions)
	}
	if _, err := w.ReportCopy(t.Context(), w.op, "system/claviger/tls", 1, "a core dump", keeper.Place{}, ""); err != nil {
		t.Errorf("a copy of a system key: %v", err)
	}
	w.refresh()
	if got := w.level("prod/app/key"); got != claviger.Exposed {
		t.Errorf("after a refresh it is %s", got)
	}
	runUntil(w, func() bool { return len(notices.list) == 3 })
	got := <-notices.list
	want := keeper.Notice{Owner: "ann", Finding: "a copy was found: /var/log/app.log at 4711", At: got.At, Suspended: true, Count: 1, Versions: []string{"prod/app/key#1"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the notice (-want +got):\n%s", diff)
	}
	for name, f := range map[string]func() error{
		"nowhere": func() error {
			_, err := w.ReportCopy(t.Context(), w.op, "prod/app/key", 1, "", keeper.Place{}, "")
			return err
		},
		"unprintable": func() error {
			_, err := w.ReportCopy(t.Context(), w.op, "prod/app/key", 1, "a\x1b[2J", keeper.Place{}, "")
			return err
		},
		"no run": func() error {
			_, err := w.ReportCopy(t.Context(), w.op, "prod/app/key", 1, "x", keeper.Place{}, "not an id")
			return err
		},
	} {
		wantCode(t, name, f(), claviger.Invalid)
	}
	_, err = w.ReportCopy(t.Context(), w.op, "prod/app/key", 9, "x", keeper.Place{}, "")
	wantCode(t, "no such version", err, claviger.NotFound)
}

// shown judges every subject as told.
func shown(level claviger.Level, finding string) func(keeper.Facts, keeper.Signer) ([]keeper.Shown, []byte, error) {
	return func(f keeper.Facts, s keeper.Signer) ([]keeper.Shown, []byte, error) {
		list := slices.Clone(f.Own)
		for i := range list {
			if level != "" {
				list[i].Level = level
			}
			list[i].Finding = finding
		}
		signature, err := s.Sign([]byte("statement"))
		return list, signature, err
	}
}

// A submitted run may say less of a version than its custodian, never more.
func TestRecordEvidence(t *testing.T) {
	t.Parallel()
	w, h := isolated(t, nil)
	ctx := t.Context()
	manager, stranger := w.caller(7), w.caller(8)
	w.grant(manager, "prod/app/*", claviger.Conditions{}, claviger.ManageKey, claviger.ReadKey)
	key, other := w.key("prod/app/key", claviger.Ed25519), w.key("prod/web/key", claviger.Ed25519)
	id := func() claviger.ID { return claviger.NewID(w.now()) }
	of := func(keys ...keeper.KeyView) (list []keeper.Subject) {
		for _, k := range keys {
			list = append(list, keeper.Subject{Key: k.ID, Version: 1})
		}
		return list
	}
	first := id()
	envelope, err := w.RecordEvidence(ctx, manager, keeper.Recording{Run: first, Subjects: of(key), Judge: shown("", "")})
	if err != nil {
		t.Fatal(err)
	}
	kept, err := w.Statement(ctx, w.op, "")
	if err != nil || kept.Run != first || string(kept.Envelope) != string(envelope) {
		t.Errorf("the last statement is of %s, %v, want %s", kept.Run, err, first)
	}
	list, _, err := w.Evidence(ctx, manager, store.KeyQuery{})
	if err != nil || len(list) != 1 || list[0].Run != first || list[0].Level != claviger.Isolated || list[0].Shown.IsZero() {
		t.Errorf("the listing is %+v, %v", list, err)
	}
	for name, test := range map[string]struct {
		by   claviger.Principal
		req  keeper.Recording
		want claviger.Code
	}{
		"the same run twice":        {manager, keeper.Recording{Run: first, Subjects: of(key), Judge: shown("", "")}, claviger.Conflict},
		"better than the custodian": {w.op, keeper.Recording{Run: id(), Subjects: of(key), Judge: shown(claviger.Hardware, "")}, claviger.Internal},
		"a key of another":          {manager, keeper.Recording{Run: id(), Subjects: of(key, other), Judge: shown("", "")}, claviger.Denied},
		"by a stranger":             {stranger, keeper.Recording{Run: id(), Subjects: of(key), Judge: shown("", "")}, claviger.Denied},
		"a version twice":           {w.op, keeper.Recording{Run: id(), Subjects: of(key, key), Judge: shown("", "")}, claviger.Invalid},
		"no subject":                {w.op, keeper.Recording{Run: id(), Judge: shown("", "")}, claviger.Invalid},
		"no id":                     {w.op, keeper.Recording{Run: "run", Subjects: of(key), Judge: shown("", "")}, claviger.Invalid},
		"no such key":               {w.op, keeper.Recording{Run: id(), Subjects: []keeper.Subject{{Key: id(), Version: 1}}, Judge: shown("", "")}, claviger.NotFound},
		"no envelope": {w.op, keeper.Recording{Run: id(), Subjects: of(key), Judge: func(f keeper.Facts, _ keeper.Signer) ([]keeper.Shown, []byte, error) {
			return f.Own, nil, nil
		}}, claviger.TooLarge},
	} {
		_, err := w.RecordEvidence(ctx, test.by, test.req)
		wantCode(t, name, err, test.want)
	}
	if got := w.level("prod/app/key"); got != claviger.Isolated {
		t.Errorf("a refused run left the level at %s", got)
	}
	_, err = w.Statement(ctx, manager, "")
	wantCode(t, "a statement for who may not read the audit log", err, claviger.Denied)
	// The key process is not what it was when it made the key.
	h.now(claviger.Exposed)
	if _, err := w.RecordEvidence(ctx, w.op, keeper.Recording{Run: id(), Subjects: of(other), Judge: shown(claviger.Isolated, "")}); claviger.CodeOf(err) != claviger.Internal {
		t.Errorf("isolated, which the key process does not report any more: %v", err)
	}
	h.now(claviger.Isolated)
	if _, err := w.RecordEvidence(ctx, w.op, keeper.Recording{Run: id(), Subjects: of(key), Judge: shown(claviger.Exposed, "soft.core leaked")}); err != nil {
		t.Fatal(err)
	}
	_, err = w.RecordEvidence(ctx, w.op, keeper.Recording{Run: id(), Subjects: of(key), Judge: shown(claviger.Isolated, "")})
	wantCode(t, "back up from exposed", err, claviger.Internal)
	if got := w.level("prod/app/key"); got != claviger.Exposed {
		t.Errorf("the level is %s, want exposed", got)
	}
}

// The key process says where its own keys lie, and of no other's.
func TestSearchMaterial(t *testing.T) {
	t.Parallel()
	w, _ := isolated(t, nil)
	ctx := t.Context()
	by := w.caller(7)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.ManageKey)
	if _, err := w.CreateKey(ctx, w.op, keeper.CreateKey{Name: "prod/app/mac", Algorithm: "hmac-sha256", ForImport: true}); err != nil {
		t.Fatal(err)
	}
	material := custodytest.Material(t, claviger.HMACSHA256)
	one, err := w.BeginImport(ctx, w.op, "prod/app/mac")
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := one.Seal(material)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Import(ctx, w.op, keeper.Import{Key: "prod/app/mac", OneTime: one.ID, Sealed: sealed}); err != nil {
		t.Fatal(err)
	}
	w.key("prod/app/sign", claviger.Ed25519)
	haystack := []byte(strings.Repeat(".", 1000) + hex.EncodeToString(material) + strings.Repeat(".", 1000))
	for name, test := range map[string]struct {
		req      keeper.Search
		hits     int
		searched int
	}{
		"all":              {keeper.Search{Haystack: haystack}, 1, 6},
		"symmetric":        {keeper.Search{Haystack: haystack, Symmetric: true}, 1, 1},
		"elsewhere":        {keeper.Search{Haystack: haystack, Selector: "stage/*/*"}, 0, 0},
		"without the copy": {keeper.Search{Haystack: haystack[:1000]}, 0, 6},
	} {
		found, searched, err := w.SearchMaterial(ctx, w.op, test.req)
		if err != nil || len(found) != test.hits || searched != test.searched {
			t.Errorf("%s: %+v of %d, %v, want %d of %d", name, found, searched, err, test.hits, test.searched)
		}
		for _, f := range found {
			if f.Name != "prod/app/mac" || f.Version != 1 || f.Offset != 1000 {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
	records := w.since(func() {
		_, _, err := w.SearchMaterial(ctx, by, keeper.Search{Haystack: haystack})
		wantCode(t, "a search by who is no operator", err, claviger.Denied)
	})
	if len(records) != 1 || records[0].Outcome != audit.Denied {
		t.Errorf("a refused search left %+v", records)
	}
	_, _, err = w.SearchMaterial(ctx, w.op, keeper.Search{Haystack: make([]byte, 1<<20+1)})
	wantCode(t, "a haystack of more than 1 MiB", err, claviger.TooLarge)
}

// An owner who cannot be told is on record.
func TestNoticeThatFails(t *testing.T) {
	t.Parallel()
	var tries atomic.Int64
	w, _ := isolated(t, func(cfg *keeper.Config) {
		cfg.Notify = func(context.Context, keeper.Notice) error { tries.Add(1); return errors.New("refused") }
	})
	w.key("prod/app/key", claviger.Ed25519)
	if _, err := w.ReportCopy(t.Context(), w.op, "prod/app/key", 1, "a log", keeper.Place{}, ""); err != nil {
		t.Fatal(err)
	}
	runUntil(w, func() bool { return tries.Load() > 0 || slices.ContainsFunc(w.records(), notified) })
	// A stop ends the pauses: what was tried is on record all the same.
	i := slices.IndexFunc(w.records(), notified)
	if i < 0 || w.records()[i].Outcome != audit.Failed || tries.Load() < 2 {
		t.Errorf("after %d tries the record is %d", tries.Load(), i)
	}
}

func notified(r audit.Record) bool { return r.Action == "evidence.notify" }

// BenchmarkRefresh10000 refreshes the levels of 10 000 keys of the key process.
func BenchmarkRefresh10000(b *testing.B) {
	w, _ := isolated(b, nil)
	if err := w.db.Update(b.Context(), func(tx *store.Tx) error {
		for i := range 10_000 {
			key := w.stub(fmt.Sprintf("prod/app-%d/key-%d", i%100, i))
			if err := tx.InsertKey(key); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		w.refresh()
	}
}

// stub is a key as the store has it, of which nothing is used.
func (w *world) stub(name string) claviger.Key {
	return claviger.Key{
		ID: claviger.NewID(w.now()), Name: claviger.Name(name), Algorithm: claviger.HMACSHA256, Custodian: claviger.Soft,
		Recipe: claviger.PlainRecipe, Owner: "tests", Created: w.now(),
		Versions: []claviger.Version{{Number: 1, State: claviger.Active, Origin: claviger.Generated, Level: claviger.Isolated, Created: w.now(), Activated: w.now()}},
	}
}
