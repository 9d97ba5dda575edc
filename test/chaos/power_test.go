//go:build failpoints

package chaos_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"claviger.dev/internal/audit"
)

const sector = 512

// losePower takes from the end of files what a loss of power may take and the
// death of a process does not. Only what no sync can have covered is touched:
// the batch of records that was written when the process died between the
// write and the sync, and what lies behind the end of the write-ahead log.
func (r *run) losePower(unsynced bool) {
	if unsynced && r.rng.IntN(2) == 0 {
		r.tearRecords()
	}
	if r.rng.IntN(3) == 0 {
		r.growLog()
	}
}

// tearRecords cuts the last batch off somewhere, or leaves zeros in it.
func (r *run) tearRecords() {
	names, err := filepath.Glob(filepath.Join(r.dir, "audit", "*.jsonl"))
	if err != nil || len(names) == 0 {
		r.Fatalf("segments: %v %v", names, err)
	}
	name := slices.Max(names)
	raw, err := os.ReadFile(name)
	if err != nil {
		r.Fatal(err)
	}
	start, at, batch := 0, 0, uint64(0)
	for text := range bytes.Lines(raw) {
		l, err := audit.Decode(bytes.TrimSuffix(text, []byte("\n")))
		if err != nil {
			r.Fatalf("a record before the tear: %v", err)
		}
		if l.Batch != batch {
			start, batch = at, l.Batch
		}
		at += len(text)
	}
	if start == len(raw) {
		return
	}
	torn := raw[:start+r.rng.IntN(len(raw)-start+1)]
	if r.rng.IntN(2) == 0 { // the size was written, and not every sector
		torn = slices.Clone(raw)
		for from := start; from < len(torn); {
			to := min((from/sector+1)*sector, len(torn))
			if r.rng.IntN(2) == 0 {
				clear(torn[from:to])
			}
			from = to
		}
	}
	if err := os.WriteFile(name, torn, 0o600); err != nil {
		r.Fatal(err)
	}
	r.Logf("lost power: of a batch of %d bytes in %s", len(raw)-start, filepath.Base(name))
}

// growLog leaves behind the write-ahead log what a transaction that never
// committed may have left there.
func (r *run) growLog() {
	f, err := os.OpenFile(r.database()+"-wal", os.O_WRONLY|os.O_APPEND, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		r.Fatal(err)
	}
	defer f.Close()
	garbage := make([]byte, r.rng.IntN(3*4096))
	for i := range garbage {
		garbage[i] = byte(r.rng.Uint32())
	}
	if _, err := f.Write(garbage); err != nil {
		r.Fatal(err)
	}
}
