package sqlite_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"claviger.dev"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/sqlite"
	"claviger.dev/internal/store/storetest"
)

// holdEnv makes TestHold, run as a process of its own, hold a store open.
const holdEnv = "STORE_TEST_HOLD"

func TestHold(t *testing.T) {
	path := os.Getenv(holdEnv)
	if path == "" {
		return // it is TestSecondProcess that runs this one
	}
	db := open(t, path)
	fmt.Println("open")
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSecondProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.db")
	cmd := exec.Command(os.Args[0], "-test.run=^TestHold$")
	cmd.Env = append(os.Environ(), holdEnv+"="+path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "open\n" {
		t.Fatalf("the first process says %q, %v", line, err)
	}
	_, err = sqlite.Open(t.Context(), path)
	if e, ok := errors.AsType[*claviger.Error](err); !ok || e.Code != claviger.Conflict || !strings.Contains(e.Hint, "stop the other") {
		t.Errorf("second process: %v, want conflict and a hint", err)
	}
	if err := cmd.Process.Kill(); err != nil { // a killed process leaves no lock behind
		t.Fatal(err)
	}
	_, _ = cmd.Process.Wait()
	_ = stdin.Close()
	if err := open(t, path).Close(); err != nil {
		t.Error(err)
	}
}

func TestForeignFilesAreRefusedAndLeftAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	own := filepath.Join(dir, "own.db")
	if err := open(t, own).Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	foreign := bytes.Clone(good)
	copy(foreign[68:], "\x00\x00\x00\x01") // another application_id
	for name, content := range map[string][]byte{
		"garbage":              bytes.Repeat([]byte("garbage "), 4096),
		"text":                 []byte("hello\n"),
		"another application":  foreign,
		"garbage after header": append(bytes.Clone(good[:100]), bytes.Repeat([]byte{0xa5}, len(good)-100)...),
		"cut short":            good[:len(good)/2],
		"one page":             good[:4096],
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := sqlite.Open(t.Context(), path)
		if code := claviger.CodeOf(err); code != claviger.Invalid && code != claviger.Internal {
			t.Errorf("%s: %v, want invalid or internal", name, err)
			if err == nil {
				_ = db.Close()
			}
		}
		if after, err := os.ReadFile(path); !bytes.Equal(after, content) {
			t.Errorf("%s: the file was changed (%v)", name, err)
		}
	}
	if _, err := sqlite.Open(t.Context(), filepath.Join(dir, "no", "dir.db")); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("no directory: %v, want unavailable", err)
	}
	if info, err := os.Stat(own); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v (%v), want 0600", info.Mode(), err)
	}
}

// fill inserts keys until the store is full, and returns how many are in it.
func fill(t *testing.T, db *store.DB) int {
	t.Helper()
	for n := range 100_000 {
		err := db.Update(t.Context(), func(tx *store.Tx) error {
			return tx.InsertKey(storetest.NewKey(claviger.Name(fmt.Sprintf("prod/fill/key-%06d", n))))
		})
		if err != nil {
			if claviger.CodeOf(err) != claviger.Unavailable {
				t.Fatalf("a full disk: %v, want unavailable", err)
			}
			return n
		}
	}
	t.Fatal("the disk never filled")
	return 0
}

// checkFull checks that a full store still answers, holds what was
// acknowledged, and works again once there is space.
func checkFull(t *testing.T, db *store.DB, makeSpace func()) {
	t.Helper()
	n := fill(t, db)
	count := func() (total int) {
		t.Helper()
		after := ""
		for {
			if err := db.View(t.Context(), func(tx *store.Tx) error {
				keys, next, err := tx.Keys(store.KeyQuery{Limit: store.MaxLimit, After: after})
				total, after = total+len(keys), next
				return err
			}); err != nil {
				t.Fatalf("view of a full store: %v", err)
			}
			if after == "" {
				return total
			}
		}
	}
	if got := count(); got != n || n == 0 {
		t.Errorf("%d keys in a full store, %d were acknowledged", got, n)
	}
	if r, err := db.Revision(t.Context()); r != uint64(n) || err != nil {
		t.Errorf("revision %d, %v; want %d", r, err, n)
	}
	makeSpace()
	if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.InsertKey(storetest.NewKey("prod/fill/more")) }); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if got := count(); got != n+1 {
		t.Errorf("%d keys at the end, want %d", got, n+1)
	}
}

func TestFullByPages(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "store.db"))
	pragma(t, db, "max_page_count = 120")
	checkFull(t, db, func() { pragma(t, db, "max_page_count = 100000") })
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

func pragma(t *testing.T, db *store.DB, text string) {
	t.Helper()
	if _, err := db.SQL().ExecContext(t.Context(), "PRAGMA "+text); err != nil {
		t.Fatal(err)
	}
}

// disk returns a directory on a disk of its own of 2 MiB, and how to remount
// it. Only root may mount; others get ok false.
func disk(t *testing.T) (dir string, remount func(readOnly bool), ok bool) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		return dir, nil, false
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir, func(readOnly bool) {
		flags := uintptr(unix.MS_REMOUNT)
		if readOnly {
			flags |= unix.MS_RDONLY
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", flags, "size=2m"); err != nil {
			t.Fatal(err)
		}
	}, true
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir, _, ok := disk(t)
	if !ok {
		return // TestFullByPages holds for those who may not mount
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	db := open(t, filepath.Join(dir, "store.db"))
	checkFull(t, db, func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	})
	if err := db.Snapshot(t.Context(), io.Discard); err != nil && claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("snapshot on a small disk: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "snapshot-*"))
	if len(left) > 0 || err != nil {
		t.Errorf("snapshots left behind: %v %v", left, err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	dir, remount, ok := disk(t)
	if !ok {
		remount = func(readOnly bool) {
			mode := os.FileMode(0o700)
			if readOnly {
				mode = 0o500
			}
			if err := os.Chmod(dir, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	path := filepath.Join(dir, "store.db")
	remount(true)
	if _, err := sqlite.Open(t.Context(), path); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("open: %v, want unavailable", err)
	}
	remount(false)
	db := open(t, path)
	pragma(t, db, "query_only = 1") // the same answer as from a disk that turned read-only
	insert := func(tx *store.Tx) error { return tx.InsertKey(storetest.NewKey("prod/a/b")) }
	if err := db.Update(t.Context(), insert); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("update: %v, want unavailable", err)
	}
	pragma(t, db, "query_only = 0")
	if err := db.Update(t.Context(), insert); err != nil {
		t.Errorf("writable again: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// contents reads everything that has a checksum.
type contents struct {
	Keys         map[claviger.ID]claviger.Key
	Principals   map[claviger.ID]claviger.PrincipalRecord
	Grants       map[claviger.ID]claviger.Grant
	Certificates map[string]store.Certificate
	Outbox       map[uint64]string
	Meta         string
}

func readAll(t *testing.T, path string) (c contents, err error) {
	c = contents{map[claviger.ID]claviger.Key{}, map[claviger.ID]claviger.PrincipalRecord{}, map[claviger.ID]claviger.Grant{},
		map[string]store.Certificate{}, map[uint64]string{}, ""}
	db, err := sqlite.Open(t.Context(), path)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return c, db.View(t.Context(), func(tx *store.Tx) error {
		keys, _, err := tx.Keys(store.KeyQuery{Limit: store.MaxLimit})
		for _, k := range keys {
			c.Keys[k.ID] = k
			for _, ref := range append([]claviger.Name{k.Name}, k.Aliases...) {
				again, e := tx.Key(string(ref))
				if err = errors.Join(err, e); e == nil && again.ID != k.ID {
					t.Errorf("name %q leads to another key", ref)
				}
			}
		}
		principals, _, e := tx.Principals(store.PrincipalQuery{})
		err = errors.Join(err, e)
		for _, p := range principals {
			c.Principals[p.ID] = p
			grants, e := tx.GrantsOf(p.ID)
			certificates, e2 := tx.Certificates(p.ID)
			err = errors.Join(err, e, e2)
			for _, g := range grants {
				c.Grants[g.ID] = g
			}
			for _, x := range certificates {
				c.Certificates[x.Serial] = x
			}
		}
		lines, e := tx.Outbox(store.MaxLimit)
		meta, e2 := tx.Meta("a")
		err = errors.Join(err, e, e2)
		for _, l := range lines {
			c.Outbox[l.Seq] = string(l.Line)
		}
		c.Meta = string(meta)
		return err
	})
}

// populate writes some of everything.
func populate(t *testing.T, path string) {
	t.Helper()
	db := open(t, path)
	err := db.Update(t.Context(), func(tx *store.Tx) error {
		for i := range 40 {
			k := storetest.NewKey(claviger.Name(fmt.Sprintf("prod/app/key-%d", i)))
			k.Aliases = []claviger.Name{claviger.Name(fmt.Sprintf("prod/app/old-%d", i))}
			k.Labels = map[string]string{"n": fmt.Sprint(i % 3)}
			p := storetest.NewPrincipal(fmt.Sprintf("web-%d", i))
			g, revoked := storetest.NewGrant(p.ID, "prod/*/*"), storetest.NewGrant(p.ID, "*/*/*")
			revoked.Revoked = time.Unix(1, 0).UTC()
			_, outbox := tx.PushOutbox([]byte(fmt.Sprintf(`{"line":%d}`, i)))
			if err := errors.Join(tx.InsertKey(k), tx.InsertPrincipal(p), tx.InsertGrant(g), tx.InsertGrant(revoked), outbox,
				tx.InsertCertificate(store.Certificate{Serial: fmt.Sprintf("%02x", i), Principal: p.ID, NotAfter: time.Unix(9, 0).UTC()})); err != nil {
				return err
			}
		}
		return tx.PutMeta("a", bytes.Repeat([]byte("meta "), 100))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestFlippedByteIsFoundNeverUsed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "store.db")
	populate(t, path)
	want, err := readAll(t, path)
	if err != nil || len(want.Keys) != 40 || len(want.Grants) != 40 {
		t.Fatalf("before: %v, %d keys, %d grants", err, len(want.Keys), len(want.Grants))
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	found := 0
	for i := range 60 {
		bad := bytes.Clone(good)
		at := rng.IntN(len(bad))
		bad[at] ^= byte(1 << rng.IntN(8))
		flipped := filepath.Join(dir, fmt.Sprintf("flipped-%d.db", i))
		if err := os.WriteFile(flipped, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readAll(t, flipped)
		if err != nil {
			found++
		}
		// Whatever was returned is as it was written; less of it only with
		// an error, or where an index lost its way to it, never more.
		subset(t, at, want.Keys, got.Keys)
		subset(t, at, want.Principals, got.Principals)
		subset(t, at, want.Grants, got.Grants)
		subset(t, at, want.Certificates, got.Certificates)
		subset(t, at, want.Outbox, got.Outbox)
		if got.Meta != "" && got.Meta != want.Meta {
			t.Errorf("byte %d: meta changed", at)
		}
	}
	if found < 4 {
		t.Errorf("%d of 60 flipped bytes were found; the test reads too little", found)
	}
}

func subset[K comparable, V any](t *testing.T, at int, want, got map[K]V) {
	t.Helper()
	for id, v := range got {
		if d := cmp.Diff(want[id], v, cmpopts.EquateEmpty(), cmpopts.EquateComparable()); d != "" {
			t.Errorf("byte %d: a changed record was returned (-want +got):\n%s", at, d)
		}
	}
}

// checkErased looks for blobs in the files of a store.
func checkErased(t *testing.T, path, when string, erased [][]byte, live map[claviger.ID][]byte) {
	t.Helper()
	var disk []byte
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		disk = append(disk, b...)
	}
	for _, b := range erased {
		for at := 0; at+16 <= len(b); at += 128 {
			if bytes.Contains(disk, b[at:at+16]) {
				t.Fatalf("%s: bytes %d of an erased blob of %d are still in the files", when, at, len(b))
			}
		}
	}
	for _, b := range live { // the control: what lives is there
		if !bytes.Contains(disk, b[:16]) {
			t.Fatalf("%s: a live blob is not found; the test looks in the wrong place", when)
		}
	}
}

func TestErasedBlobsAreGoneFromTheFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.db")
	db := open(t, path)
	rng := rand.New(rand.NewPCG(3, 4))
	fresh := func() []byte {
		b := make([]byte, 60+rng.IntN(3000))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	live, erased := map[claviger.ID][]byte{}, [][]byte{}
	var ids []claviger.ID
	for round := range 150 {
		err := db.Update(t.Context(), func(tx *store.Tx) error {
			if len(ids) < 60 || round%3 == 0 {
				k := storetest.NewKey(claviger.Name(fmt.Sprintf("prod/app/key-%d", round)))
				ids, live[k.ID] = append(ids, k.ID), fresh()
				return errors.Join(tx.InsertKey(k), tx.PutBlob(k.ID, 1, 1, live[k.ID]))
			}
			i := rng.IntN(len(ids))
			id := ids[i]
			erased = append(erased, live[id])
			if round%3 == 1 { // wrapped anew: the old wrapping goes too
				live[id] = fresh()
				return tx.PutBlob(id, 1, 2, live[id])
			}
			ids = append(ids[:i], ids[i+1:]...)
			delete(live, id)
			return tx.EraseBlob(id, 1)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string) {
		t.Helper()
		checkErased(t, path, when, erased, live)
	}
	erase := func(id claviger.ID) {
		t.Helper()
		erased = append(erased, live[id])
		delete(live, id)
		if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.EraseBlob(id, 1) }); err != nil {
			t.Fatal(err)
		}
	}
	erase(ids[0])
	check("while open, right after an erasure")
	// A view that still reads the log keeps it; the next update empties it.
	if err := db.View(t.Context(), func(tx *store.Tx) error {
		_, _, err := tx.Blob(ids[1], 1)
		erase(ids[1])
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.PutMeta("a", nil) }); err != nil {
		t.Fatal(err)
	}
	check("after a view that was in the way")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	check("closed")
}

func TestSnapshotIsAStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, copied := filepath.Join(dir, "store.db"), filepath.Join(dir, "copy.db")
	populate(t, path)
	db := open(t, path)
	var b bytes.Buffer
	if err := errors.Join(db.Snapshot(t.Context(), &b), db.Close(), os.WriteFile(copied, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	if n, err := sqlite.Sequence(t.Context(), copied); n != 1 || err != nil {
		t.Errorf("sequence is %d, %v; want 1", n, err)
	}
	want, err := readAll(t, path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readAll(t, copied)
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable()); d != "" || err != nil {
		t.Errorf("copy: %v (-want +got):\n%s", err, d)
	}
}
