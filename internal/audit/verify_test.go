package audit_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/audittest"
	"github.com/google/go-cmp/cmp"
)

// lines is a Source of bare lines.
type lines [][]byte

func (s lines) Iterate(_ context.Context, q audit.Query, f func(audit.Line) error) error {
	for _, raw := range s {
		line, err := audit.Decode(raw)
		if line.Err = err; err != nil && !q.Damaged {
			return claviger.Errorf(claviger.Internal, "damaged", "")
		}
		if q.Damaged || q.Matches(&line.Record) {
			if err := f(line); err != nil {
				return err
			}
		}
	}
	return nil
}

func body(t testing.TB, r *audit.Record) []byte {
	t.Helper()
	b, err := r.Body(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// chain returns n whole lines of one writer, from seq 1, and the heads after each.
func chain(t testing.TB, writer string, n int) (lines, []audit.Head) {
	t.Helper()
	head := audit.Head{Writer: writer}
	var all lines
	var heads []audit.Head
	for i := range n {
		raw := head.Extend(nil, body(t, audittest.Sample(i)), head.Seq+1)
		all = append(all, bytes.TrimSuffix(raw, []byte("\n")))
		heads = append(heads, head)
	}
	return all, heads
}

// forge returns a line with a right hash and other content in the place of
// the line after heads[seq-2].
func forge(t *testing.T, heads []audit.Head, seq int) []byte {
	t.Helper()
	head := audit.Head{Writer: heads[0].Writer}
	if seq > 1 {
		head = heads[seq-2]
	}
	r := audittest.Sample(seq)
	r.Reason = "forged"
	return bytes.TrimSuffix(head.Extend(nil, body(t, r), uint64(seq)), []byte("\n"))
}

func faults(t *testing.T, s audit.Source, opts audit.VerifyOptions) []audit.Fault {
	t.Helper()
	report, err := audit.Verify(t.Context(), s, opts)
	if err != nil {
		t.Fatal(err)
	}
	for i := range report.Faults {
		if report.Faults[i].Detail == "" {
			t.Errorf("a fault has no detail: %v", report.Faults[i])
		}
		report.Faults[i].Writer, report.Faults[i].Detail = "", ""
	}
	return report.Faults
}

func TestVerifyNamesEachFault(t *testing.T) {
	t.Parallel()
	at := func(kind audit.Kind, first, last uint64) audit.Fault {
		return audit.Fault{Seq: first, Last: last, Kind: kind}
	}
	flip := func(raw []byte, i int) []byte {
		raw = slices.Clone(raw)
		raw[i] ^= 1
		return raw
	}
	good, heads := chain(t, "w", 10)
	for name, test := range map[string]struct {
		tamper func(l lines) lines
		want   []audit.Fault
	}{
		"nothing":           {func(l lines) lines { return l }, nil},
		"one removed":       {func(l lines) lines { return slices.Delete(l, 4, 5) }, []audit.Fault{at(audit.Removed, 5, 5)}},
		"a run removed":     {func(l lines) lines { return slices.Delete(l, 3, 7) }, []audit.Fault{at(audit.Removed, 4, 7)}},
		"two runs removed":  {func(l lines) lines { return slices.Delete(slices.Delete(l, 7, 9), 1, 3) }, []audit.Fault{at(audit.Removed, 2, 3), at(audit.Removed, 8, 9)}},
		"the first removed": {func(l lines) lines { return l[1:] }, []audit.Fault{at(audit.Removed, 1, 1)}},
		"a bit flipped":     {func(l lines) lines { l[4] = flip(l[4], 300); return l }, []audit.Fault{at(audit.Altered, 5, 5)}},
		"a seq flipped":     {func(l lines) lines { l[4] = flip(l[4], 26); return l }, []audit.Fault{at(audit.Altered, 5, 5)}},
		"two in a row":      {func(l lines) lines { l[4], l[5] = flip(l[4], 300), flip(l[5], 0); return l }, []audit.Fault{at(audit.Altered, 5, 5), at(audit.Altered, 6, 6)}},
		"the last flipped":  {func(l lines) lines { l[9] = flip(l[9], 200); return l }, []audit.Fault{at(audit.Altered, 10, 10)}},
		"the first flipped": {func(l lines) lines { l[0] = flip(l[0], 200); return l }, []audit.Fault{at(audit.Altered, 1, 1)}},
		"one flipped by one removed": {func(l lines) lines { l[4] = flip(l[4], 300); return slices.Delete(l, 5, 6) },
			[]audit.Fault{at(audit.Altered, 5, 5), at(audit.Removed, 6, 6)}},
		"a line cut in two":       {func(l lines) lines { return slices.Replace(l, 4, 5, l[4][:50], l[4][50:]) }, []audit.Fault{at(audit.Altered, 5, 5)}},
		"two lines made one":      {func(l lines) lines { return slices.Replace(l, 4, 6, slices.Concat(l[4], l[5])) }, []audit.Fault{at(audit.Altered, 5, 5), at(audit.Removed, 6, 6)}},
		"garbage put between":     {func(l lines) lines { return slices.Insert(l, 4, []byte("{}")) }, []audit.Fault{at(audit.Altered, 5, 5)}},
		"replaced with its hash":  {func(l lines) lines { l[4] = forge(t, heads, 5); return l }, []audit.Fault{at(audit.Altered, 5, 5)}},
		"the first replaced":      {func(l lines) lines { l[0] = forge(t, heads, 1); return l }, []audit.Fault{at(audit.Altered, 1, 1)}},
		"neighbours swapped":      {func(l lines) lines { l[4], l[5] = l[5], l[4]; return l }, []audit.Fault{at(audit.Reordered, 6, 6)}},
		"one moved to the end":    {func(l lines) lines { return append(slices.Delete(slices.Clone(l), 2, 3), l[2]) }, []audit.Fault{at(audit.Reordered, 3, 3)}},
		"one moved to the front":  {func(l lines) lines { return slices.Insert(slices.Delete(slices.Clone(l), 7, 8), 1, l[7]) }, []audit.Fault{at(audit.Reordered, 8, 8)}},
		"the last moved forward":  {func(l lines) lines { return slices.Insert(slices.Clone(l[:9]), 1, l[9]) }, []audit.Fault{at(audit.Reordered, 10, 10)}},
		"one twice":               {func(l lines) lines { return slices.Insert(l, 7, l[2]) }, []audit.Fault{at(audit.Duplicated, 3, 3)}},
		"one twice in a row":      {func(l lines) lines { return slices.Insert(l, 3, l[2]) }, []audit.Fault{at(audit.Duplicated, 3, 3)}},
		"moved and replaced":      {func(l lines) lines { l = append(l, forge(t, heads, 5)); return slices.Delete(l, 4, 5) }, []audit.Fault{at(audit.Reordered, 5, 5), at(audit.Altered, 5, 5)}},
		"everything removed":      {func(lines) lines { return nil }, nil},
		"nothing but garbage":     {func(lines) lines { return lines{[]byte("x")} }, []audit.Fault{at(audit.Altered, 1, 1)}},
		"a tail without evidence": {func(l lines) lines { return l[:8] }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := faults(t, test.tamper(slices.Clone(good)), audit.VerifyOptions{})
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVerifyTwoWriters(t *testing.T) {
	t.Parallel()
	a, _ := chain(t, "a", 5)
	b, _ := chain(t, "b", 5)
	var mixed lines
	for i := range a {
		mixed = append(mixed, a[i], b[i])
	}
	if got := faults(t, mixed, audit.VerifyOptions{}); got != nil {
		t.Errorf("faults of two whole chains: %v", got)
	}
	mixed = slices.Delete(mixed, 4, 5) // a's third
	report, err := audit.Verify(t.Context(), mixed, audit.VerifyOptions{})
	if err != nil || len(report.Faults) != 1 || report.Faults[0].Writer != "a" || report.Faults[0].Seq != 3 {
		t.Errorf("report: %+v, %v", report, err)
	}
}

func checkpoint(t *testing.T, head audit.Head, at time.Time) audit.Checkpoint {
	t.Helper()
	c, err := audit.MakeCheckpoint(head, at, "system/claviger/checkpoint", claviger.Fingerprint{7}, func(b []byte) ([]byte, error) { return slices.Clone(b), nil })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// signed is a signature that anybody can make, for tests.
func signed(c audit.Checkpoint) error {
	if !bytes.Equal(c.Signature, c.Statement()) {
		return errors.New("not signed")
	}
	return nil
}

func TestVerifyAgainstCheckpoint(t *testing.T) {
	t.Parallel()
	good, heads := chain(t, "w", 10)
	soon, before := audittest.Epoch.Add(time.Hour), audittest.Epoch.Add(-time.Hour)
	rewritten := slices.Clone(good[:5])
	head := heads[4]
	for seq := 6; seq <= 10; seq++ {
		r := audittest.Sample(seq + 100)
		rewritten = append(rewritten, bytes.TrimSuffix(head.Extend(nil, body(t, r), uint64(seq)), []byte("\n")))
	}
	forged := checkpoint(t, heads[7], soon)
	forged.Seq--
	for name, test := range map[string]struct {
		log  lines
		kept audit.Checkpoint
		want []audit.Fault
	}{
		"whole":                    {good, checkpoint(t, heads[7], soon), nil},
		"cut before it":            {good[:6], checkpoint(t, heads[7], soon), []audit.Fault{{Seq: 7, Last: 8, Kind: audit.CutTail}}},
		"cut after it":             {good[:9], checkpoint(t, heads[7], soon), nil},
		"empty":                    {nil, checkpoint(t, heads[7], soon), []audit.Fault{{Seq: 1, Last: 8, Kind: audit.CutTail}}},
		"rolled back and gone on":  {good[:6], checkpoint(t, heads[7], before), []audit.Fault{{Seq: 7, Last: 8, Kind: audit.RolledBack}}},
		"rolled back and past it":  {rewritten, checkpoint(t, heads[7], soon), []audit.Fault{{Seq: 8, Last: 8, Kind: audit.RolledBack}}},
		"a checkpoint of the fork": {rewritten, checkpoint(t, heads[4], soon), nil},
		"not signed":               {good, forged, []audit.Fault{{Seq: 7, Last: 7, Kind: audit.BadSignature}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := faults(t, test.log, audit.VerifyOptions{Checkpoints: []audit.Checkpoint{test.kept}, CheckSignature: signed})
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVerifyCheckpointsInside(t *testing.T) {
	t.Parallel()
	good, heads := chain(t, "w", 10)
	head := heads[9]
	add := func(c audit.Checkpoint) {
		good = append(good, bytes.TrimSuffix(head.Extend(nil, body(t, c.Record()), head.Seq+1), []byte("\n")))
	}
	add(checkpoint(t, heads[9], audittest.Epoch))
	unsigned := checkpoint(t, heads[3], audittest.Epoch)
	unsigned.Signature = []byte("no")
	add(unsigned)
	wrong := heads[2]
	wrong.Hash[0] ^= 1
	add(checkpoint(t, wrong, audittest.Epoch))
	for i := range 5000 { // so that what comes next is about a record long gone
		good = append(good, bytes.TrimSuffix(head.Extend(nil, body(t, audittest.Sample(i)), head.Seq+1), []byte("\n")))
	}
	add(checkpoint(t, heads[1], audittest.Epoch))
	report, err := audit.Verify(t.Context(), good, audit.VerifyOptions{CheckSignature: signed})
	if err != nil {
		t.Fatal(err)
	}
	if report.Checkpoints != 2 {
		t.Errorf("%d sound checkpoints, want 2", report.Checkpoints)
	}
	for i := range report.Faults {
		report.Faults[i].Detail = ""
	}
	want := []audit.Fault{{Writer: "w", Seq: 3, Last: 3, Kind: audit.Altered}, {Writer: "w", Seq: 12, Last: 12, Kind: audit.BadSignature}}
	if diff := cmp.Diff(want, report.Faults); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

func TestCheckpointForm(t *testing.T) {
	t.Parallel()
	_, heads := chain(t, "w", 1)
	c := checkpoint(t, heads[0], audittest.Epoch)
	got, err := audit.ParseCheckpoint(append(c.JSON(), '\n'))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, got); diff != "" {
		t.Errorf("checkpoint (-want +got):\n%s", diff)
	}
	for name, line := range map[string][]byte{
		"empty":         nil,
		"no object":     []byte(`[]`),
		"a member more": append(bytes.TrimSuffix(c.JSON(), []byte("}")), `,"x":"y"}`...),
		"a space":       bytes.Replace(c.JSON(), []byte(`":"`), []byte(`": "`), 1),
		"twice":         append(bytes.TrimSuffix(c.JSON(), []byte("}")), `,"writer":"w"}`...),
		"too long":      bytes.Repeat([]byte("x"), audit.MaxCheckpoint+1),
	} {
		if _, err := audit.ParseCheckpoint(line); !errors.Is(err, claviger.Invalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}
