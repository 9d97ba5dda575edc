// Package audittest is the suite that every home of audit records passes.
package audittest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"github.com/google/go-cmp/cmp"
)

// Home opens one home. Called again after Close it opens the same one.
type Home func(t *testing.T) audit.Log

// Run runs the suite. fresh gives an empty home; every test has its own.
func Run(t *testing.T, fresh func(t *testing.T) Home) {
	tests := map[string]func(t *testing.T, home Home){
		"append and iterate":        appendAndIterate,
		"a denied record":           deniedRecord,
		"texts are cleaned":         cleanedTexts,
		"rules are kept":            rules,
		"queries":                   queries,
		"a restart continues":       restart,
		"64 writers":                concurrent,
		"durable on return":         durableOnReturn,
		"follow":                    follow,
		"wait":                      wait,
		"an ended context":          endedContext,
		"a closed log":              closedLog,
		"checkpoints":               checkpoints,
		"iteration stops on demand": stops,
	}
	for _, name := range slices.Sorted(maps.Keys(tests)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tests[name](t, fresh(t))
		})
	}
}

// Epoch is the time of the first sample record.
var Epoch = time.Date(2030, 1, 2, 3, 4, 5, 678901000, time.UTC)

// Sample returns a full record, n seconds after Epoch.
func Sample(n int) *audit.Record {
	return &audit.Record{
		Time: Epoch.Add(time.Duration(n) * time.Second), Action: "use.sign", Outcome: audit.Allowed,
		Principal: "01jqzzzzzzzzzzzzzzzzzzzzzz", PrincipalName: "billing-web", PrincipalKind: "workload",
		Method: "mtls", Source: "192.0.2.7", UID: -1, RequestID: fmt.Sprintf("request-%d", n),
		Key: "prod/billing/session-cookie", KeyID: "01jqyyyyyyyyyyyyyyyyyyyyyy", Version: 3, Algorithm: claviger.ECDSAP256,
		Fingerprint: claviger.Fingerprint{1, 2, 3}, Count: 1, Digest: strings.Repeat("ab", 32), Grant: "01jqxxxxxxxxxxxxxxxxxxxxxx",
	}
}

// Open opens the home and closes it when the test ends.
func (h Home) Open(t *testing.T) audit.Log {
	t.Helper()
	log := h(t)
	t.Cleanup(func() { _ = log.Close() })
	return log
}

// Append appends or fails the test.
func Append(t *testing.T, log audit.Log, records ...*audit.Record) {
	t.Helper()
	if err := log.Append(t.Context(), records...); err != nil {
		t.Fatalf("append: %v", err)
	}
}

// Collect returns the records that a query chooses.
func Collect(t *testing.T, log audit.Source, q audit.Query) []audit.Record {
	t.Helper()
	var got []audit.Record
	err := log.Iterate(t.Context(), q, func(l audit.Line) error {
		if l.Writer != l.Record.Writer || l.Seq != l.Record.Seq {
			t.Errorf("filed as %s/%d, says %s/%d", l.Writer, l.Seq, l.Record.Writer, l.Record.Seq)
		}
		got = append(got, l.Record)
		return nil
	})
	if err != nil {
		t.Fatalf("iterate: %v", err)
	}
	return got
}

// Sound verifies and fails the test on any fault.
func Sound(t *testing.T, log audit.Source, opts audit.VerifyOptions) audit.Report {
	t.Helper()
	report, err := audit.Verify(t.Context(), log, opts)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	if len(report.Faults) > 0 {
		t.Fatalf("faults: %v", report.Faults)
	}
	return report
}

func plain(records []audit.Record) []audit.Record {
	return slices.DeleteFunc(records, func(r audit.Record) bool { return r.Action == audit.ActionStart })
}

func appendAndIterate(t *testing.T, home Home) {
	log := home.Open(t)
	var want []audit.Record
	for n := range 5 {
		r := Sample(n)
		r.Detail = map[string]string{"b": "two \"quoted\" \\ back", "a": "ünïcode …"}
		Append(t, log, r)
		want = append(want, *r)
	}
	batch := []*audit.Record{Sample(5), Sample(6)}
	Append(t, log, batch...)
	want = append(want, *batch[0], *batch[1])
	got := Collect(t, log, audit.Query{})
	if got[0].Action != audit.ActionStart || got[0].Seq != 1 {
		t.Errorf("the first record is %s, seq %d; want the start", got[0].Action, got[0].Seq)
	}
	if diff := cmp.Diff(want, plain(got)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	heads, err := log.Head(t.Context())
	if err != nil || len(heads) != 1 || heads[0].Seq != batch[1].Seq || heads[0].Writer != batch[1].Writer {
		t.Errorf("head: %v, %v; want seq %d", heads, err, batch[1].Seq)
	}
	if report := Sound(t, log, audit.VerifyOptions{}); report.Records != 8 || !cmp.Equal(report.Heads, heads) {
		t.Errorf("report: %+v; want 8 records and heads %v", report, heads)
	}
}

func deniedRecord(t *testing.T, home Home) {
	log := home.Open(t)
	r := Sample(0)
	r.Outcome, r.Code, r.Reason = audit.Denied, claviger.Denied, "no grant allows it"
	r.Principal, r.UID, r.Grant, r.Version, r.Fingerprint = "", 0, "", 0, claviger.Fingerprint{}
	Append(t, log, r, Sample(1))
	got := Collect(t, log, audit.Query{Outcome: audit.Denied})
	if diff := cmp.Diff([]audit.Record{*r}, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func cleanedTexts(t *testing.T, home Home) {
	log := home.Open(t)
	r := Sample(0)
	r.Reason = "bad \xff\xfe bytes\nand a line"
	r.PrincipalName = strings.Repeat("ä", 4000)
	r.Executable = strings.Repeat("x", 600)
	r.Detail = map[string]string{"long": strings.Repeat("\"", 2000), "nul": "a\x00b", "sum": strings.Repeat("\\", 1000), "tum": strings.Repeat("y", 1024)}
	Append(t, log, r)
	got := plain(Collect(t, log, audit.Query{}))[0]
	if got.Reason != "bad \ufffd\ufffd bytes\ufffdand a line" {
		t.Errorf("reason: %q", got.Reason)
	}
	if len(got.PrincipalName) > audit.MaxText || !strings.HasSuffix(got.PrincipalName, "ä…") {
		t.Errorf("name: %d bytes, %q", len(got.PrincipalName), got.PrincipalName)
	}
	if len(got.Executable) != audit.MaxExecutable || len(got.Detail["long"]) != audit.MaxDetailText || got.Detail["nul"] != "a\ufffdb" {
		t.Errorf("executable %d, long %d, nul %q", len(got.Executable), len(got.Detail["long"]), got.Detail["nul"])
	}
	Sound(t, log, audit.VerifyOptions{})
}

func rules(t *testing.T, home Home) {
	log := home.Open(t)
	for name, breakIt := range map[string]func(*audit.Record){
		"no action":      func(r *audit.Record) { r.Action = "" },
		"odd action":     func(r *audit.Record) { r.Action = "Use Sign" },
		"long action":    func(r *audit.Record) { r.Action = strings.Repeat("a", 65) },
		"no outcome":     func(r *audit.Record) { r.Outcome = "" },
		"odd outcome":    func(r *audit.Record) { r.Outcome = "perhaps" },
		"unknown code":   func(r *audit.Record) { r.Code = "teapot" },
		"negative count": func(r *audit.Record) { r.Count = -1 },
		"odd detail":     func(r *audit.Record) { r.Detail = map[string]string{"A b": ""} },
		"year 10000":     func(r *audit.Record) { r.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"many details": func(r *audit.Record) {
			r.Detail = make(map[string]string)
			for i := range 17 {
				r.Detail[fmt.Sprint(i)] = ""
			}
		},
	} {
		r := Sample(0)
		breakIt(r)
		if err := log.Append(t.Context(), Sample(1), r); !errors.Is(err, claviger.Invalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	if got := plain(Collect(t, log, audit.Query{})); len(got) != 0 {
		t.Errorf("%d records were kept", len(got))
	}
}

func queries(t *testing.T, home Home) {
	log := home.Open(t)
	var writer string
	for n := range 20 {
		r := Sample(n)
		if n%2 == 1 {
			r.Action, r.Key, r.KeyID = "key.rotate", "test/a/b", "01jqwwwwwwwwwwwwwwwwwwwwww"
		}
		if n == 4 || n == 9 {
			r.Detail = map[string]string{"session": "01jqssssssssssssssssssssss"}
		}
		if n%5 == 0 {
			r.Outcome, r.Code, r.Principal = audit.Denied, claviger.Denied, "01jqvvvvvvvvvvvvvvvvvvvvvv"
		}
		Append(t, log, r)
		writer = r.Writer
	}
	at := func(n int) time.Time { return Epoch.Add(time.Duration(n) * time.Second) }
	for name, test := range map[string]struct {
		q    audit.Query
		want []int
	}{
		"time":            {audit.Query{From: at(3), To: at(6)}, []int{3, 4, 5}},
		"key":             {audit.Query{Key: "test/a/b", To: at(6)}, []int{1, 3, 5}},
		"key id":          {audit.Query{KeyID: "01jqwwwwwwwwwwwwwwwwwwwwww", To: at(4)}, []int{1, 3}},
		"no such key":     {audit.Query{Key: "no/such/key"}, nil},
		"principal":       {audit.Query{Principal: "01jqvvvvvvvvvvvvvvvvvvvvvv"}, []int{0, 5, 10, 15}},
		"session":         {audit.Query{Session: "01jqssssssssssssssssssssss"}, []int{4, 9}},
		"last of session": {audit.Query{Last: 1, Session: "01jqssssssssssssssssssssss"}, []int{9}},
		"action prefix":   {audit.Query{Action: "key.", From: at(15)}, []int{15, 17, 19}},
		"outcome":         {audit.Query{Outcome: audit.Denied, Key: "test/a/b"}, []int{5, 15}},
		"last":            {audit.Query{Last: 3}, []int{17, 18, 19}},
		"last of a key":   {audit.Query{Last: 2, Key: "prod/billing/session-cookie"}, []int{16, 18}},
		"last of few":     {audit.Query{Last: 100, Principal: "01jqvvvvvvvvvvvvvvvvvvvvvv"}, []int{0, 5, 10, 15}},
		"after":           {audit.Query{After: []audit.Head{{Writer: writer, Seq: 19}}}, []int{18, 19}},
		"writer":          {audit.Query{Writer: writer, From: at(18)}, []int{18, 19}},
		"another writer":  {audit.Query{Writer: "nobody"}, nil},
		"after of others": {audit.Query{After: []audit.Head{{Writer: "nobody", Seq: 19}}, From: at(19)}, []int{19}},
	} {
		test.q.To = latest(test.q.To, at(20))
		if test.q.From.IsZero() {
			test.q.From = at(0)
		}
		var want []string
		for _, n := range test.want {
			want = append(want, fmt.Sprintf("request-%d", n))
		}
		var got []string
		for _, r := range Collect(t, log, test.q) {
			if r.Action != audit.ActionStart {
				got = append(got, r.RequestID)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func latest(t, otherwise time.Time) time.Time {
	if t.IsZero() {
		return otherwise
	}
	return t
}

func restart(t *testing.T, home Home) {
	var writer string
	for n := range 3 {
		log := home(t)
		r := Sample(n)
		Append(t, log, r)
		if n > 0 && r.Writer != writer {
			t.Errorf("writer is %s after a restart, was %s", r.Writer, writer)
		}
		if want := uint64(2*n + 2); r.Seq != want {
			t.Errorf("seq %d, want %d: a start and a record each time", r.Seq, want)
		}
		writer = r.Writer
		if err := log.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	log := home.Open(t)
	if got := Collect(t, log, audit.Query{Action: audit.ActionStart}); len(got) != 4 || got[0].Detail["chain"] != "begins" || got[3].Detail["chain"] != "continues" {
		t.Errorf("starts: %+v", got)
	}
	Sound(t, log, audit.VerifyOptions{})
}

func concurrent(t *testing.T, home Home) {
	log := home.Open(t)
	const writers, each = 64, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			last := uint64(0)
			for n := range each {
				r := Sample(w*each + n)
				if err := log.Append(t.Context(), r); err != nil {
					t.Errorf("append: %v", err)
					return
				}
				if r.Seq <= last {
					t.Errorf("seq %d after %d", r.Seq, last)
				}
				last = r.Seq
			}
		})
	}
	wg.Wait()
	seen := make(map[string]bool)
	for _, r := range plain(Collect(t, log, audit.Query{})) {
		seen[r.RequestID] = true
	}
	if len(seen) != writers*each {
		t.Errorf("%d different records, want %d", len(seen), writers*each)
	}
	Sound(t, log, audit.VerifyOptions{})
}

func durableOnReturn(t *testing.T, home Home) {
	log := home.Open(t)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := range 5 {
				r := Sample(w*5 + n)
				if err := log.Append(t.Context(), r); err != nil {
					t.Errorf("append: %v", err)
					return
				}
				got := 0
				err := log.Iterate(t.Context(), audit.Query{Writer: r.Writer, After: []audit.Head{{Writer: r.Writer, Seq: r.Seq - 1}}}, func(l audit.Line) error {
					if l.Seq == r.Seq && l.Record.RequestID == r.RequestID {
						got++
					}
					return nil
				})
				if err != nil || got != 1 {
					t.Errorf("record %d was returned and is there %d times: %v", r.Seq, got, err)
				}
			}
		})
	}
	wg.Wait()
}

func follow(t *testing.T, home Home) {
	log := home.Open(t)
	Append(t, log, Sample(0), Sample(1))
	got := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- audit.Follow(ctx, log, audit.Query{Action: "use.", Last: 1}, func(l audit.Line) error {
			got <- l.Record.RequestID
			return nil
		})
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case id := <-got:
			if id != want {
				t.Errorf("followed %s, want %s", id, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no record came, want %s", want)
		}
	}
	expect("request-1")
	for n := 2; n < 10; n++ {
		other := Sample(0)
		other.Action = "key.rotate"
		Append(t, log, other, Sample(n))
		expect(fmt.Sprintf("request-%d", n))
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("follow ended with %v", err)
	}
	if len(got) > 0 {
		t.Errorf("%s came too", <-got)
	}
}

func wait(t *testing.T, home Home) {
	log := home.Open(t)
	Append(t, log, Sample(0))
	if err := log.Wait(t.Context(), nil); err != nil {
		t.Errorf("wait for what is there: %v", err)
	}
	heads, err := log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := log.Wait(ctx, heads); !errors.Is(err, context.Canceled) {
		t.Errorf("wait with an ended context: %v", err)
	}
	woken := make(chan error, 1)
	go func() { woken <- log.Wait(t.Context(), heads) }()
	Append(t, log, Sample(1))
	if err := <-woken; err != nil {
		t.Errorf("wait: %v", err)
	}
}

func endedContext(t *testing.T, home Home) {
	log := home.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := log.Append(ctx, Sample(0)); !errors.Is(err, claviger.Deadline) || !errors.Is(err, context.Canceled) {
		t.Errorf("append: %v, want deadline", err)
	}
	if err := log.Iterate(ctx, audit.Query{}, func(audit.Line) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("iterate: %v, want canceled", err)
	}
}

func closedLog(t *testing.T, home Home) {
	log := home.Open(t)
	for range 2 {
		if err := log.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := log.Append(t.Context(), Sample(0)); !errors.Is(err, claviger.Unavailable) {
		t.Errorf("append: %v, want unavailable", err)
	}
}

func stops(t *testing.T, home Home) {
	log := home.Open(t)
	Append(t, log, Sample(0), Sample(1))
	enough, calls := errors.New("enough"), 0
	for _, q := range []audit.Query{{}, {Last: 2}, {Damaged: true}} {
		calls = 0
		if err := log.Iterate(t.Context(), q, func(audit.Line) error { calls++; return enough }); !errors.Is(err, enough) || calls != 1 {
			t.Errorf("%+v: %v after %d calls, want enough after 1", q, err, calls)
		}
	}
}

func checkpoints(t *testing.T, home Home) {
	log := home.Open(t)
	Append(t, log, Sample(0), Sample(1))
	heads, err := log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sign := func(statement []byte) ([]byte, error) { return append([]byte("signed:"), statement[:16]...), nil }
	kept, err := audit.MakeCheckpoint(heads[0], Epoch, "system/claviger/checkpoint", claviger.Fingerprint{9}, sign)
	if err != nil {
		t.Fatal(err)
	}
	check := func(c audit.Checkpoint) error {
		if !strings.HasPrefix(string(c.Signature), "signed:") {
			return errors.New("not signed")
		}
		return nil
	}
	Append(t, log, kept.Record(), Sample(2))
	report := Sound(t, log, audit.VerifyOptions{Checkpoints: []audit.Checkpoint{kept}, CheckSignature: check})
	if report.Checkpoints != 1 {
		t.Errorf("%d checkpoints in the log, want 1", report.Checkpoints)
	}
	forged := kept
	forged.Signature = []byte("forged")
	later := kept
	later.Seq, later.Time = kept.Seq+100, Epoch.Add(time.Hour)
	other := kept
	other.Hash[0] ^= 1
	report, err = audit.Verify(t.Context(), log, audit.VerifyOptions{Checkpoints: []audit.Checkpoint{forged, later, other}, CheckSignature: check})
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[audit.Kind]uint64)
	for _, f := range report.Faults {
		kinds[f.Kind] = f.Last
	}
	want := map[audit.Kind]uint64{audit.BadSignature: kept.Seq, audit.CutTail: later.Seq, audit.RolledBack: kept.Seq}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}
