package segment_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/audittest"
	"claviger.dev/internal/audit/segment"
	"github.com/google/go-cmp/cmp"
)

// written makes a directory with a start and n records and returns its segments.
func written(t *testing.T, n int, segmentBytes int64) (dir string, files []string) {
	t.Helper()
	dir = t.TempDir()
	log := home(t, segment.Config{Dir: dir, SegmentBytes: segmentBytes})(t)
	for i := range n {
		audittest.Append(t, log, audittest.Sample(i))
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("segments: %v, %v", files, err)
	}
	return dir, files
}

func edit(t *testing.T, path string, f func([]byte) []byte) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, f(raw), 0o600); err != nil {
		t.Fatal(err)
	}
}

func kinds(t *testing.T, dir string, opts audit.VerifyOptions) []audit.Fault {
	t.Helper()
	report, err := segment.VerifyFiles(t.Context(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	for i := range report.Faults {
		report.Faults[i].Writer, report.Faults[i].Detail = "", ""
	}
	return report.Faults
}

func TestVerifyFiles(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		tamper func(t *testing.T, files []string)
		want   []audit.Fault
	}{
		"nothing":         {func(*testing.T, []string) {}, nil},
		"a whole segment": {func(t *testing.T, files []string) { _ = os.Remove(files[1]) }, []audit.Fault{{Seq: 4, Last: 6, Kind: audit.Removed}}},
		"the end of a line": {func(t *testing.T, files []string) {
			edit(t, files[len(files)-1], func(b []byte) []byte { return b[:len(b)-5] })
		}, []audit.Fault{{Seq: 10, Last: 10, Kind: audit.Torn}}},
		"a flipped byte": {func(t *testing.T, files []string) {
			edit(t, files[0], func(b []byte) []byte { b[bytes.IndexByte(b, '\n')+200] ^= 2; return b })
		}, []audit.Fault{{Seq: 2, Last: 2, Kind: audit.Altered}}},
		"a segment under another name": {func(t *testing.T, files []string) {
			_ = os.Rename(files[1], strings.Replace(files[1], "04.jsonl", "05.jsonl", 1))
		}, []audit.Fault{{Seq: 5, Last: 5, Kind: audit.Altered}}},
		"an index that hides": {func(t *testing.T, files []string) {
			index := strings.TrimSuffix(files[0], ".jsonl") + ".index"
			other, err := os.ReadFile(strings.TrimSuffix(files[1], ".jsonl") + ".index")
			if err != nil {
				t.Fatal(err)
			}
			edit(t, index, func([]byte) []byte { return other })
		}, []audit.Fault{{Seq: 1, Last: 3, Kind: audit.Altered}}},
		"a line of 1 MiB": {func(t *testing.T, files []string) {
			edit(t, files[0], func(b []byte) []byte {
				at := bytes.IndexByte(b, '\n') + 1
				return append(append(bytes.Clone(b[:at]), append(bytes.Repeat([]byte("x"), 1<<20), '\n')...), b[at:]...)
			})
		}, []audit.Fault{{Seq: 2, Last: 2, Kind: audit.Altered}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, files := written(t, 9, 1700) // 1 start and 9 records in segments of 3
			test.tamper(t, files)
			if diff := cmp.Diff(test.want, kinds(t, dir, audit.VerifyOptions{})); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

// A checkpoint that was kept elsewhere is checked with the public key alone.
func TestVerifyFilesAgainstCheckpoint(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	log := home(t, segment.Config{Dir: dir})(t)
	audittest.Append(t, log, audittest.Sample(0))
	older := filepath.Join(t.TempDir(), "older")
	if err := os.CopyFS(older, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	audittest.Append(t, log, audittest.Sample(1))
	heads, err := log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = log.Close()
	made, err := audit.MakeCheckpoint(heads[0], audittest.Epoch.AddDate(1, 0, 0), "system/claviger/checkpoint", claviger.Fingerprint{1}, func(b []byte) ([]byte, error) { return ed25519.Sign(private, b), nil })
	if err != nil {
		t.Fatal(err)
	}
	kept, err := audit.ParseCheckpoint(made.JSON())
	if err != nil {
		t.Fatal(err)
	}
	opts := audit.VerifyOptions{Checkpoints: []audit.Checkpoint{kept}, CheckSignature: func(c audit.Checkpoint) error {
		if !ed25519.Verify(public, c.Statement(), c.Signature) {
			return errors.New("bad signature")
		}
		return nil
	}}
	if got := kinds(t, dir, opts); got != nil {
		t.Errorf("faults of the whole log: %v", got)
	}
	if diff := cmp.Diff([]audit.Fault{{Seq: 3, Last: 3, Kind: audit.CutTail}}, kinds(t, older, opts)); diff != "" {
		t.Errorf("faults of the older copy (-want +got):\n%s", diff)
	}
	again := home(t, segment.Config{Dir: older})(t)
	audittest.Append(t, again, audittest.Sample(9))
	_ = again.Close()
	if diff := cmp.Diff([]audit.Fault{{Seq: 3, Last: 3, Kind: audit.RolledBack}}, kinds(t, older, opts)); diff != "" {
		t.Errorf("faults of the older copy gone on (-want +got):\n%s", diff)
	}
}

// A tail that a crash cut is cut off, and the record of the start says so.
func TestTornTail(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func([]byte) []byte{
		"half a line": func(b []byte) []byte { return append(b, b[:300]...) },
		"zeros":       func(b []byte) []byte { return append(b, make([]byte, 1000)...) },
		"zeros in lines": func(b []byte) []byte {
			at := bytes.LastIndexByte(b[:len(b)-1], '\n') + 1
			clear(b[at+10 : at+200])
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, files := written(t, 3, 0)
			var before int64
			edit(t, files[0], func(b []byte) []byte { b = cut(b); before = int64(len(b)); return b })
			log := home(t, segment.Config{Dir: dir}).Open(t)
			starts := audittest.Collect(t, log, audit.Query{Action: audit.ActionStart, Last: 1})
			torn, err := strconv.ParseInt(starts[0].Detail["torn_bytes"], 10, 64)
			if err != nil || torn <= 0 || torn >= before || len(starts[0].Detail["torn_sha256"]) != 64 {
				t.Errorf("the start says %v", starts[0].Detail)
			}
			audittest.Append(t, log, audittest.Sample(9))
			audittest.Sound(t, log, audit.VerifyOptions{})
		})
	}
}

// Anything but a torn tail is a broken chain: it can be read and verified, but
// nothing is appended until somebody accepts the break.
func TestBrokenChain(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		tamper func(t *testing.T, files []string)
		want   []audit.Fault // and still after it was accepted
	}{
		"an altered record": {func(t *testing.T, files []string) {
			edit(t, files[len(files)-1], func(b []byte) []byte { b[200] ^= 2; return b })
		}, []audit.Fault{{Seq: 4, Last: 4, Kind: audit.Altered}}},
		"an altered last record": {func(t *testing.T, files []string) {
			edit(t, files[len(files)-1], func(b []byte) []byte { b[len(b)-200] ^= 2; return b })
		}, []audit.Fault{{Seq: 5, Last: 5, Kind: audit.Altered}}},
		"a removed record": {func(t *testing.T, files []string) {
			edit(t, files[len(files)-1], func(b []byte) []byte { return b[bytes.IndexByte(b, '\n')+1:] })
		}, []audit.Fault{{Seq: 4, Last: 4, Kind: audit.Altered}, {Seq: 4, Last: 4, Kind: audit.Removed}}},
		"an altered end of the segment before": {func(t *testing.T, files []string) {
			edit(t, files[0], func(b []byte) []byte { b[len(b)-200] ^= 2; return b })
		}, []audit.Fault{{Seq: 3, Last: 3, Kind: audit.Altered}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, files := written(t, 4, 1700) // 3 lines, then 2
			test.tamper(t, files)
			log := home(t, segment.Config{Dir: dir, SegmentBytes: 1700})(t)
			if err := log.Append(t.Context(), audittest.Sample(9)); !errors.Is(err, claviger.Unavailable) || !strings.Contains(err.Error(), "broken") {
				t.Errorf("append: %v, want unavailable because the chain is broken", err)
			}
			if err := log.Iterate(t.Context(), audit.Query{}, func(audit.Line) error { return nil }); name != "a removed record" && !errors.Is(err, claviger.Internal) {
				t.Errorf("iterate: %v, want internal", err)
			}
			_ = log.Close()
			strip := kinds(t, dir, audit.VerifyOptions{})
			if diff := cmp.Diff(test.want, strip); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
			accepted := home(t, segment.Config{Dir: dir, SegmentBytes: 1700, AcceptBroken: true})(t)
			audittest.Append(t, accepted, audittest.Sample(9))
			_ = accepted.Close()
			later := home(t, segment.Config{Dir: dir, SegmentBytes: 1700}).Open(t)
			audittest.Append(t, later, audittest.Sample(10))
			got := kinds(t, dir, audit.VerifyOptions{})
			if len(got) == 0 || !cmp.Equal(got[0], test.want[0]) {
				t.Errorf("after the break was accepted: %v, want %v to be named still", got, test.want[0])
			}
		})
	}
}

func TestOneProcessAtATime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := home(t, segment.Config{Dir: dir})(t)
	if _, err := segment.Open(t.Context(), segment.Config{Dir: dir}); !errors.Is(err, claviger.Conflict) {
		t.Errorf("open twice: %v, want conflict", err)
	}
	_ = log.Close()
	_ = home(t, segment.Config{Dir: dir})(t).Close()
}

// A lost or torn index is made again at the next start, the same as before.
func TestIndexIsMadeAgain(t *testing.T) {
	t.Parallel()
	dir, files := written(t, 9, 1700)
	path := strings.TrimSuffix(files[0], ".jsonl") + ".index"
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range []func(){func() { _ = os.Remove(path) }, func() { _ = os.WriteFile(path, want[:50], 0o600) }} {
		damage()
		_ = home(t, segment.Config{Dir: dir, SegmentBytes: 1700})(t).Close()
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(want, got) {
			t.Errorf("index: %v, %q", err, got)
		}
	}
}
