package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/audittest"
	"github.com/google/go-cmp/cmp"
)

// Any JSON reader sees what was recorded, and the chain can be checked with
// nothing but SHA-256.
func TestLineIsPlainJSON(t *testing.T) {
	t.Parallel()
	r := audittest.Sample(0)
	r.Reason = `a "quoted" \ text with ünïcode <&>`
	r.Detail = map[string]string{"z": "1", "a": ""}
	head := audit.Head{Writer: "w"}
	first := head.Extend(nil, body(t, r), 1)
	second := bytes.TrimSuffix(head.Extend(nil, body(t, r), 1), []byte("\n"))
	var got map[string]any
	if err := json.Unmarshal(second, &got); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(bytes.TrimSuffix(first, []byte("\n")))
	before, _, _ := bytes.Cut(second, []byte(`,"hash":`))
	own := sha256.Sum256(before)
	want := map[string]any{
		"v": 1.0, "writer": "w", "seq": 2.0, "batch": 1.0, "prev": hex.EncodeToString(sum[:]), "time": "2030-01-02T03:04:05.678901Z",
		"action": "use.sign", "outcome": "allowed", "reason": r.Reason, "principal": string(r.Principal), "principal_name": "billing-web",
		"principal_kind": "workload", "method": "mtls", "source": "192.0.2.7", "request_id": "request-0", "key": "prod/billing/session-cookie",
		"key_id": string(r.KeyID), "version": 3.0, "algorithm": "ecdsa-p256-sha256", "fingerprint": r.Fingerprint.String(), "count": 1.0,
		"digest": r.Digest, "grant": string(r.Grant), "detail": map[string]any{"a": "", "z": "1"}, "hash": hex.EncodeToString(own[:]),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
}

func TestWorstLineFits(t *testing.T) {
	t.Parallel()
	r := audittest.Sample(0)
	long := strings.Repeat(`"`, 5000)
	for _, p := range []*string{&r.Reason, &r.PrincipalName, &r.PrincipalKind, &r.Method, &r.Source, &r.Executable, &r.Unit, &r.RequestID, &r.Digest} {
		*p = long
	}
	r.Detail = make(map[string]string)
	for c := 'a'; c < 'q'; c++ {
		r.Detail[strings.Repeat(string(c), audit.MaxDetailName)] = long
	}
	head := audit.Head{Writer: strings.Repeat("w", audit.MaxWriter)}
	raw := bytes.TrimSuffix(head.Extend(nil, body(t, r), 1), []byte("\n"))
	if len(raw) > audit.MaxLine {
		t.Errorf("the line is %d bytes", len(raw))
	}
	if _, err := audit.Decode(raw); err != nil {
		t.Errorf("decode: %v", err)
	}
}

// FuzzLine holds that what is accepted has exactly one form, means the same to
// encoding/json, and is refused after any change of a byte.
func FuzzLine(f *testing.F) {
	all, _ := chain(f, "w", 2)
	head := audit.Head{Writer: "w"}
	r := audittest.Sample(1)
	r.UID, r.Reason, r.Detail = 0, "a \"b\" \\ …", map[string]string{"x": "y", "z": ""}
	all = append(all, bytes.TrimSuffix(head.Extend(nil, body(f, r), 1), []byte("\n")))
	for _, raw := range all {
		f.Add(raw, 100, byte(1))
	}
	f.Add([]byte(`{"v":1,"writer":"w","seq":1}`), 0, byte(0))
	f.Fuzz(func(t *testing.T, raw []byte, at int, mask byte) {
		check(t, raw)
		// A line whose hash was made right, so that the fuzzer gets past it.
		if cut := bytes.LastIndex(raw, []byte(`,"hash":"`)); cut >= 0 {
			sum := sha256.Sum256(raw[:cut])
			check(t, append(append(bytes.Clone(raw[:cut]), `,"hash":"`...), hex.EncodeToString(sum[:])+`"}`...))
		}
		if _, err := audit.Decode(raw); err == nil && mask != 0 && at >= 0 && at < len(raw) {
			other := bytes.Clone(raw)
			other[at] ^= mask
			if _, err := audit.Decode(other); err == nil {
				t.Errorf("accepted after byte %d was changed: %q", at, other)
			}
		}
	})
}

func check(t *testing.T, raw []byte) {
	t.Helper()
	line, err := audit.Decode(raw)
	if err != nil {
		return
	}
	b, err := line.Record.Body(nil)
	if err != nil {
		t.Fatalf("accepted and cannot be encoded: %v", err)
	}
	head := audit.Head{Writer: line.Writer, Seq: line.Seq - 1, Hash: line.Prev}
	if again := head.Extend(nil, b, line.Batch); !bytes.Equal(bytes.TrimSuffix(again, []byte("\n")), raw) {
		t.Fatalf("accepted %q\nbut encodes to %q", raw, again)
	}
	var plain struct {
		Writer, Action, Reason, Key string
		Seq                         uint64
		Detail                      map[string]string
	}
	if err := json.Unmarshal(raw, &plain); err != nil {
		t.Fatalf("accepted and no JSON: %v", err)
	}
	if plain.Writer != line.Writer || plain.Seq != line.Seq || plain.Action != line.Record.Action || plain.Reason != line.Record.Reason ||
		plain.Key != string(line.Record.Key) || !cmp.Equal(plain.Detail, line.Record.Detail) {
		t.Fatalf("means %+v to encoding/json and %+v here", plain, line.Record)
	}
}
