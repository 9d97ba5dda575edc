package backup_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/backup"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/postgres"
	"claviger.dev/internal/store/postgres/pgtest"
	"claviger.dev/internal/store/sqlite"
	"claviger.dev/internal/store/storetest"
)

const segment = "00000000000000000001.jsonl"

func newIdentity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// server makes a data directory with n keys and a record, and returns it with
// its store, which is open until the test ends or close is called.
func server(t *testing.T, n int) (dir string, db *store.DB) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "server")
	if err := os.MkdirAll(filepath.Join(dir, backup.AuditDir), 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := sqlite.Open(t.Context(), filepath.Join(dir, backup.StoreFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	for i := range n {
		if err := db.Update(t.Context(), func(tx *store.Tx) error {
			k := storetest.NewKey(claviger.Name(fmt.Sprintf("prod/a/key-%d", i)))
			return errors.Join(tx.InsertKey(k), tx.PutBlob(k.ID, 1, 1, []byte("wrapped blob")))
		}); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{segment: "{\"seq\":1}\n{\"seq\":2}\n{\"se", "lock": "", "00000000000000000001.index": "x"} {
		if err := os.WriteFile(filepath.Join(dir, backup.AuditDir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, db
}

func write(t *testing.T, dir string, db *store.DB, recipients ...string) ([]byte, backup.Manifest) {
	t.Helper()
	var b bytes.Buffer
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	m, err := backup.Write(t.Context(), &b, backup.Source{Store: db, Audit: filepath.Join(dir, backup.AuditDir), Dir: dir,
		Now: func() time.Time { return at }}, recipients)
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	return b.Bytes(), m
}

// listing returns every file below a directory with its content.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		found[rel] = string(b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

func countKeys(t *testing.T, dir string) int {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(dir, backup.StoreFile))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var n int
	if err := db.View(t.Context(), func(tx *store.Tx) error {
		keys, _, err := tx.Keys(store.KeyQuery{})
		for _, k := range keys {
			if _, _, err := tx.Blob(k.ID, 1); err != nil {
				return err
			}
		}
		n = len(keys)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWriteAndRestore(t *testing.T) {
	t.Parallel()
	id, other := newIdentity(t), newIdentity(t)
	dir, db := server(t, 3)
	before := len(listing(t, dir))
	archive, m := write(t, dir, db, id.Recipient().String(), other.Recipient().String())
	if after := len(listing(t, dir)); after != before {
		t.Errorf("%d files in the data directory, before %d", after, before)
	}
	if m.Sequence != 3 || len(m.Files) != 2 || bytes.Contains(archive, []byte("wrapped blob")) {
		t.Errorf("manifest %+v", m)
	}
	for _, who := range []age.Identity{id, other} {
		to := filepath.Join(t.TempDir(), "new")
		done, err := backup.Restore(t.Context(), bytes.NewReader(archive), []age.Identity{who}, to, false)
		if err != nil {
			t.Fatalf("restore: %v", err)
		}
		if d := cmp.Diff(backup.Restored{Manifest: m}, done); d != "" {
			t.Errorf("restored (-want +got):\n%s", d)
		}
		if n := countKeys(t, to); n != 3 {
			t.Errorf("%d keys, want 3", n)
		}
		if got := listing(t, filepath.Join(to, backup.AuditDir)); !cmp.Equal(got, map[string]string{segment: "{\"seq\":1}\n{\"seq\":2}\n"}) {
			t.Errorf("audit log: %q", got)
		}
		if left := listing(t, filepath.Dir(to)); len(left) != 3 { // store, lock, segment
			t.Errorf("files left behind: %d", len(left))
		}
	}
}

func TestRestoreDoesNotUndoRevocations(t *testing.T) {
	t.Parallel()
	id := newIdentity(t)
	ids := []age.Identity{id}
	dir, db := server(t, 2)
	archive, _ := write(t, dir, db, id.Recipient().String())
	restore := func(rollback bool) (backup.Restored, error) {
		return backup.Restore(t.Context(), bytes.NewReader(archive), ids, dir, rollback)
	}
	wantConflict := func(when string) {
		t.Helper()
		before := listing(t, dir)
		_, err := restore(false)
		e, ok := errors.AsType[*claviger.Error](err)
		if !ok || e.Code != claviger.Conflict || e.Hint == "" {
			t.Errorf("%s: %v, want conflict with a hint", when, err)
		}
		after := listing(t, dir)
		delete(before, backup.StoreFile+".lock") // looking takes the lock
		delete(after, backup.StoreFile+".lock")
		if d := cmp.Diff(before, after); d != "" {
			t.Errorf("%s: the directory changed:\n%s", when, d)
		}
	}
	wantConflict("a server has it open")
	if err := db.Update(t.Context(), func(tx *store.Tx) error {
		k := storetest.NewKey("prod/a/more")
		return errors.Join(tx.InsertKey(k), tx.PutBlob(k.ID, 1, 1, []byte("x")))
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	wantConflict("the store is newer")
	done, err := restore(true)
	if err != nil {
		t.Fatalf("roll-back that was allowed: %v", err)
	}
	if n, kept := countKeys(t, dir), countKeys(t, done.Replaced); n != 2 || kept != 3 {
		t.Errorf("%d keys, want 2; %d keys kept aside, want 3", n, kept)
	}
	if _, err := restore(false); err != nil {
		t.Errorf("over a store that is as old: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, backup.StoreFile), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantConflict("the store cannot be read")
	if _, err := restore(true); err != nil {
		t.Errorf("over a damaged store, allowed: %v", err)
	}
}

func TestBadRecipients(t *testing.T) {
	t.Parallel()
	dir, db := server(t, 1)
	good := newIdentity(t).Recipient().String()
	pq, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for name, recipients := range map[string][]string{
		"none": nil, "empty": {""}, "not one": {"age1nothing"}, "two in one": {good + "\n" + good},
		"too many": make([]string, 65), "one bad": {good, "x"}, "mixed": {good, pq.Recipient().String()},
	} {
		var b bytes.Buffer
		_, err := backup.Write(t.Context(), &b, backup.Source{Store: db, Dir: dir}, recipients)
		if claviger.CodeOf(err) != claviger.Invalid || b.Len() > 0 {
			t.Errorf("%s: %v and %d bytes, want invalid and none", name, err, b.Len())
		}
	}
	archive, _ := write(t, dir, db, pq.Recipient().String())
	if _, err := backup.Restore(t.Context(), bytes.NewReader(archive), []age.Identity{pq}, filepath.Join(t.TempDir(), "new"), false); err != nil {
		t.Errorf("post-quantum recipient: %v", err)
	}
}

func TestWriteFails(t *testing.T) {
	t.Parallel()
	dir, db := server(t, 1)
	to := []string{newIdentity(t).Recipient().String()}
	src := backup.Source{Store: db, Audit: filepath.Join(dir, backup.AuditDir), Dir: dir}
	before := listing(t, dir)
	if _, err := backup.Write(t.Context(), &limited{left: 1000}, src, to); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("a writer that fails: %v, want unavailable", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := backup.Write(ctx, io.Discard, src, to); claviger.CodeOf(err) != claviger.Deadline {
		t.Errorf("given up: %v, want deadline", err)
	}
	if got, want := len(listing(t, dir)), len(before); got != want {
		t.Errorf("%d files, before %d", got, want)
	}
	pg, err := postgres.Open(t.Context(), postgres.Config{DSN: pgtest.Start(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pg.Close() }()
	_, err = backup.Write(t.Context(), io.Discard, backup.Source{Store: pg, Dir: dir}, to)
	if e, ok := errors.AsType[*claviger.Error](err); !ok || e.Code != claviger.Unsupported || !strings.Contains(e.Hint, "pg_dump") {
		t.Errorf("PostgreSQL: %v, want unsupported and a hint", err)
	}
}

// limited fails when it has taken so many bytes.
type limited struct{ left int }

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errors.New("no space left")
	}
	return len(p), nil
}

// entry is a file of a hostile archive.
type entry struct {
	header tar.Header
	data   string
}

func regular(name, data string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(data))}, data}
}

func manifest(sequence uint64, files ...entry) entry {
	m := backup.Manifest{Format: "claviger-backup/1", Sequence: sequence}
	for _, f := range files {
		sum := sha256.Sum256([]byte(f.data))
		m.Files = append(m.Files, backup.File{Name: f.header.Name, Size: int64(len(f.data)), SHA256: hex.EncodeToString(sum[:])})
	}
	b, _ := json.Marshal(m)
	return regular("manifest.json", string(b))
}

func pack(t *testing.T, to age.Recipient, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to)
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(w)
	for _, e := range entries {
		if err := archive.WriteHeader(&e.header); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(archive, e.data) // shorter than it says, where that is the attack
	}
	_ = archive.Close()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestHostileArchives(t *testing.T) {
	t.Parallel()
	id := newIdentity(t)
	dir, db := server(t, 1)
	var snapshot bytes.Buffer
	if err := db.Snapshot(t.Context(), &snapshot); err != nil {
		t.Fatal(err)
	}
	good := regular("claviger.db", snapshot.String())
	line := regular("audit/"+segment, "{}\n")
	special := func(typ byte, name, link string) entry {
		return entry{tar.Header{Typeflag: typ, Name: name, Linkname: link, Mode: 0o600}, ""}
	}
	changed := good
	changed.data = strings.Replace(good.data, "SQLite", "SQLITE", 1)
	sparse := line
	sparse.header.PAXRecords = map[string]string{"CLAVIGER.x": "y"}
	huge := entry{tar.Header{Typeflag: tar.TypeReg, Name: "claviger.db", Mode: 0o600, Size: 1 << 50}, "x"}
	hugeManifest := entry{tar.Header{Typeflag: tar.TypeReg, Name: "manifest.json", Mode: 0o600, Size: 1 << 30}, "{"}
	whole, _ := write(t, dir, db, id.Recipient().String())
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	pack := func(entries ...entry) []byte { return pack(t, id.Recipient(), entries...) }

	tests := map[string][]byte{
		"parent path":             pack(good, regular("../outside", "x"), manifest(1, good)),
		"parent path in audit":    pack(good, regular("audit/../../outside", "x"), manifest(1, good)),
		"absolute path":           pack(good, regular("/tmp/outside", "x"), manifest(1, good)),
		"slots of the root key":   pack(good, regular("../unseal/root.json", "x"), manifest(1, good)),
		"unknown file":            pack(good, regular("server.toml", "x"), manifest(1, good)),
		"write-ahead log":         pack(good, regular("claviger.db-wal", "x"), manifest(1, good)),
		"symlink":                 pack(good, special(tar.TypeSymlink, "audit/1.jsonl", "/etc/passwd"), manifest(1, good)),
		"symlinked directory":     pack(special(tar.TypeSymlink, "audit", "/tmp"), good, line, manifest(1, good, line)),
		"hard link":               pack(good, special(tar.TypeLink, "audit/1.jsonl", "/etc/passwd"), manifest(1, good)),
		"device":                  pack(good, special(tar.TypeChar, "audit/1.jsonl", ""), manifest(1, good)),
		"extended header":         pack(good, sparse, manifest(1, good, line)),
		"huge file":               pack(huge),
		"huge manifest":           pack(good, hugeManifest),
		"file twice":              pack(good, good, manifest(1, good, good)),
		"file changed":            pack(changed, manifest(1, good)),
		"file missing":            pack(good, manifest(1, good, line)),
		"file too many":           pack(good, line, manifest(1, good)),
		"no manifest":             pack(good),
		"no store":                pack(line, manifest(1, line)),
		"nothing":                 pack(),
		"after the manifest":      pack(good, manifest(1, good), line),
		"another form":            pack(good, regular("manifest.json", `{"format":"claviger-backup/9","files":[]}`)),
		"unknown field":           pack(good, regular("manifest.json", `{"format":"claviger-backup/1","x":1}`)),
		"sequence that is untrue": pack(good, manifest(7, good)),
		"not a store":             pack(regular("claviger.db", "hello"), manifest(1, regular("claviger.db", "hello"))),
		"not an archive":          []byte("hello"),
		"empty":                   nil,
		"flipped byte":            flipped,
		"wrong identity":          nil,
	}
	for _, cut := range []int{1, 16, 17, 1000, len(whole) / 2, len(whole) - 100} {
		tests[fmt.Sprintf("cut short by %d", cut)] = whole[:len(whole)-cut]
	}
	for name, archive := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			who := id
			if name == "wrong identity" {
				who, archive = newIdentity(t), whole
			}
			parent := t.TempDir()
			_, err := backup.Restore(t.Context(), bytes.NewReader(archive), []age.Identity{who}, filepath.Join(parent, "new"), true)
			if claviger.CodeOf(err) != claviger.Invalid {
				t.Errorf("restore: %v, want invalid", err)
			}
			if left, err := os.ReadDir(parent); len(left) > 0 || err != nil {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
	control := pack(good, line, manifest(1, good, line))
	if _, err := backup.Restore(t.Context(), bytes.NewReader(control), []age.Identity{id}, filepath.Join(t.TempDir(), "new"), false); err != nil {
		t.Errorf("the control: %v", err)
	}
}
