package sqlite_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/sqlite"
	"claviger.dev/internal/store/storetest"
)

// files are a database and its write-ahead log at one moment.
type files struct{ db, wal []byte }

func readFiles(t *testing.T, path string) (f files) {
	t.Helper()
	for suffix, to := range map[string]*[]byte{"": &f.db, "-wal": &f.wal} {
		b, err := os.ReadFile(path + suffix)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		*to = b
	}
	return f
}

// torn returns what a crash may leave of a file that was being changed from a
// to b with no sync in between: each sector is old or new, in any mix, and the
// end may be missing.
func torn(rng *rand.Rand, a, b []byte) []byte {
	const sector = 512
	out := make([]byte, max(len(a), len(b)))
	copy(out, a)
	for at := 0; at < len(b); at += sector {
		if end := min(at+sector, len(b)); rng.IntN(2) == 0 {
			copy(out[at:end], b[at:end])
		}
	}
	if len(b) > len(a) { // the size, too, may not have reached the disk
		return out[:len(a)+rng.IntN(len(b)-len(a)+1)]
	}
	return out
}

// step is transaction n of the workload: it changes a row that is there, adds
// rows to several tables, and writes a blob.
func step(t *testing.T, db *store.DB, n int) {
	t.Helper()
	err := db.Update(t.Context(), func(tx *store.Tx) error {
		k := storetest.NewKey(claviger.Name(fmt.Sprintf("prod/app/key-%d", n)))
		_, budget := tx.TakeBudget("grant:a", 1, 1<<20)
		_, outbox := tx.PushOutbox(fmt.Appendf(nil, "%d", n))
		return errors.Join(tx.InsertKey(k), tx.PutBlob(k.ID, 1, 1, bytes.Repeat([]byte{byte(n)}, 700)), budget, outbox,
			tx.PutMeta("n", fmt.Appendf(nil, "%d", n)))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// recovered opens what a crash left and returns how many transactions it has.
// Each must be there whole.
func recovered(t *testing.T, path string, f files) int {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, f.db, 0o600), os.WriteFile(path+"-wal", f.wal, 0o600)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
			_ = os.Remove(path + suffix)
		}
	}()
	db, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatalf("open after a crash: %v", err)
	}
	defer func() { _ = db.Close() }()
	var verdict string
	if err := db.SQL().QueryRowContext(t.Context(), "PRAGMA integrity_check").Scan(&verdict); err != nil || verdict != "ok" {
		t.Fatalf("integrity: %s %v", verdict, err)
	}
	var n int
	err = db.View(t.Context(), func(tx *store.Tx) error {
		meta, err := tx.Meta("n")
		if err != nil && !errors.Is(err, claviger.NotFound) {
			return err
		}
		_, _ = fmt.Sscan(string(meta), &n)
		keys, _, err := tx.Keys(store.KeyQuery{Limit: store.MaxLimit})
		if err != nil {
			return err
		}
		for _, k := range keys {
			if _, _, err := tx.Blob(k.ID, 1); err != nil {
				return err
			}
		}
		lines, err := tx.Outbox(store.MaxLimit)
		if err != nil {
			return err
		}
		sequence, err := tx.Revision()
		if len(keys) != n || len(lines) != n || sequence != uint64(n) {
			t.Fatalf("half a transaction: %d keys, %d records, sequence %d, mark %d", len(keys), len(lines), sequence, n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestCrash loses, reorders and tears writes since the last sync and opens what
// is left: whatever was acknowledged is there, and what was not is there whole
// or not at all.
func TestCrash(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3} {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			crash(t, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

func crash(t *testing.T, rng *rand.Rand) {
	dir := t.TempDir()
	path, left := filepath.Join(dir, "store.db"), filepath.Join(dir, "left.db")
	db := open(t, path)
	defer func() { _ = db.Close() }()
	pragma(t, db, "wal_autocheckpoint = 60") // so that the log begins anew several times
	partial, restarts := 0, 0
	before := readFiles(t, path)
	const steps = 20
	for n := 1; n <= steps; n++ {
		step(t, db, n)
		after := readFiles(t, path)
		image := files{db: after.db}
		if restarted := !bytes.Equal(before.wal[:min(32, len(before.wal))], after.wal[:32]); restarted {
			// The log began anew: the database was synced before, and the
			// log's header before what follows it.
			restarts++
			begun := append(bytes.Clone(after.wal[:32]), before.wal[min(32, len(before.wal)):]...)
			image.wal = torn(rng, begun, after.wal)
			copy(image.wal, after.wal[:32])
		} else {
			// Transactions are in the log. A checkpoint that followed the
			// commit began after the log was synced.
			image.wal = torn(rng, before.wal, after.wal)
			if !bytes.Equal(before.db, after.db) {
				image.db, image.wal = torn(rng, before.db, after.db), after.wal
			}
		}
		got := recovered(t, left, image)
		if got != n && got != n-1 || bytes.Equal(image.wal, after.wal) && got != n {
			t.Fatalf("after a crash in transaction %d the store has %d", n, got)
		}
		if got == n-1 {
			partial++
		}
		if again := recovered(t, left, after); again != n {
			t.Fatalf("after a crash behind transaction %d the store has %d", n, again)
		}
		before = after
	}
	if partial == 0 || restarts < 2 {
		t.Errorf("%d transactions were torn and the log began anew %d times: the test shows nothing", partial, restarts)
	}
	// The control: losing what was synced is seen.
	pragma(t, db, "wal_checkpoint(TRUNCATE)")
	whole := readFiles(t, path)
	step(t, db, steps+1)
	if got := recovered(t, left, whole); got != steps {
		t.Errorf("without the last transaction the store has %d, want %d", got, steps)
	}
}
