package probe_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/evidence/probe"
	"claviger.dev/internal/hunt"
	"claviger.dev/pubkey"
)

// planted is a key that a test knows whole.
type planted struct {
	hunt.Key
	raw, der []byte
}

func plantedKeys(t testing.TB) (p256, ed planted) {
	t.Helper()
	key, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, seed, err2 := ed25519.GenerateKey(rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	raw, err1 := key.Bytes()
	der, err2 := x509.MarshalPKCS8PrivateKey(key)
	edDER, err3 := x509.MarshalPKCS8PrivateKey(seed)
	public, err4 := pubkey.FromStd(claviger.ECDSAP256, key.Public())
	edPublic, err5 := pubkey.FromStd(claviger.Ed25519, seed.Public())
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
	return planted{hunt.Key{Name: "test/p256", Public: public}, raw, der}, planted{hunt.Key{Name: "test/ed", Public: edPublic}, seed.Seed(), edDER}
}

// TestCopies plants a copy of a key where copies are found in practice, and
// expects each to be found, and nothing besides.
func TestCopies(t *testing.T) {
	t.Parallel()
	p256, ed := plantedKeys(t)
	symmetric := make([]byte, 32)
	_, _ = rand.Read(symmetric)
	file := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p256.der})
	dir := t.TempDir()
	// A process with a key in its environment.
	sleeper := exec.CommandContext(t.Context(), "cat")
	sleeper.Env = []string{"PATH=/bin:/usr/bin", "SIGNING_KEY=" + base64.StdEncoding.EncodeToString(ed.der)}
	in, err := sleeper.StdinPipe()
	if err = errors.Join(err, sleeper.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = sleeper.Wait() })
	environment := "/proc/" + strconv.Itoa(sleeper.Process.Pid) + "/environ"
	want := map[string]string{environment: "test/ed"}
	place := func(name, key string, data []byte) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
		if key != "" {
			want[path] = key
		}
	}
	logs := func(with string) []byte {
		var out strings.Builder
		for i := range 3000 {
			fmt.Fprintf(&out, "{\"time\":\"2026-01-01T00:00:%02dZ\",\"level\":\"info\",\"msg\":\"request\",\"id\":%d}\n", i%60, i)
			if i == 2000 {
				out.WriteString(with)
			}
		}
		return []byte(out.String())
	}
	place("log/server.log", "test/p256", logs(fmt.Sprintf("{\"msg\":\"bad key\",\"key\":%q}\n", file)))
	place("log/debug.log", "test/hmac", logs("{\"mac\":\""+hex.EncodeToString(symmetric)+"\"}\n"))
	place("log/clean.log", "", logs(""))
	place("backup/backup.tar.gz", "test/ed", layer(t, "db/claviger.db", append(bytes.Repeat([]byte("SQLite format 3\x00"), 300), ed.der...)))
	place("image/blobs/sha256/abc", "test/p256", layer(t, "etc/app/tls.key", file))
	place("core.1234", "test/p256", core(p256.raw))
	place("profile/IndexedDB/https_x_0.indexeddb.leveldb/000003.log", "test/p256", levelDB(p256.der))
	place("metrics.txt", "test/hmac", []byte("claviger_key_info{key=\"a\",value=\""+base64.RawURLEncoding.EncodeToString(symmetric)+"\"} 1\n"))
	place("public.pem", "", p256.Public.PEM())
	oracle := func(_ context.Context, haystack []byte) ([]probe.Hit, error) {
		var hits []probe.Hit
		for at := range len(haystack) {
			if bytes.HasPrefix(haystack[at:], symmetric) {
				hits = append(hits, probe.Hit{Key: "test/hmac", Offset: at, Encoding: "raw"})
			}
		}
		return hits, nil
	}
	r, err := probe.Search(t.Context(), probe.SearchConfig{Keys: []hunt.Key{p256.Key, ed.Key}, Symmetric: oracle, Paths: []string{dir, environment}})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, f := range r.Findings {
		found[f.File] = f.Key
		if want[f.File] != f.Key {
			t.Errorf("false alarm: %+v", f)
		}
	}
	for path, key := range want {
		if found[path] != key {
			t.Errorf("%s: found %q, want %q", path, found[path], key)
		}
	}
	if r.Verdict != hunt.Found || len(r.Gaps) > 0 {
		t.Errorf("%s, %+v", r.Verdict, r.Gaps)
	}
}

// layer is a layer of a container image, or a backup.
func layer(t testing.TB, name string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o600, Typeflag: tar.TypeReg})
	_, err2 := w.Write(data)
	if err := errors.Join(err, err2, w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// core is a core file with a key where an allocator would put it.
func core(key []byte) []byte {
	out := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 512<<10)...)
	for i := 64; i+8 < len(out); i += 8 {
		binary.LittleEndian.PutUint64(out[i:], 0xc000000000+uint64(i*48))
	}
	copy(out[200<<10:], key)
	return out
}

// levelDB is a log of LevelDB (doc/log_format.md): records of a checksum, a
// length and a kind, in blocks of 32 KiB.
func levelDB(value []byte) []byte {
	var out []byte
	record := func(data []byte) {
		if left := 32<<10 - len(out)%(32<<10); left < 7+len(data) {
			out = append(out, make([]byte, left)...)
		}
		out = binary.LittleEndian.AppendUint32(out, 0x9e3779b9*uint32(len(out)))
		out = binary.LittleEndian.AppendUint16(out, uint16(len(data)))
		out = append(append(out, 1), data...)
	}
	for i := range 3000 {
		record(fmt.Appendf(nil, "\x01\x00\x00\x00\x01\x01\x19name%d\x00\x03value of a record, which has some text", i))
		if i == 1500 {
			record(append([]byte("\x01\x00\x00\x00\x01\x01\x08crypto!\xff\x15"), value...))
		}
	}
	return out
}

// TestClean: a store of a thousand keys of every kind gives no alarm.
func TestClean(t *testing.T) {
	t.Parallel()
	keys, dir := store(t, 500, 256<<10)
	other := exec.CommandContext(t.Context(), "cat")
	in, err := other.StdinPipe()
	if err = errors.Join(err, other.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = other.Wait() })
	r, err := probe.Search(t.Context(), probe.SearchConfig{Keys: keys, Paths: []string{dir}, PIDs: []int{other.Process.Pid}, Symmetric: func(context.Context, []byte) ([]probe.Hit, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 1000 || r.Verdict != hunt.Nothing {
		t.Errorf("%d keys, %s, %+v", len(keys), r.Verdict, r.Findings)
	}
}

// store makes what a server writes for n keys of P-256 and n of Ed25519: a
// database with public halves and wrapped blobs, and a record of size bytes.
func store(t testing.TB, n, size int) (keys []hunt.Key, dir string) {
	t.Helper()
	dir = t.TempDir()
	noise := mrand.NewChaCha8([32]byte{2})
	random := func(n int) []byte { b := make([]byte, n); _, _ = noise.Read(b); return b }
	var db []byte
	for i := range n {
		key, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ed, _, err2 := ed25519.GenerateKey(rand.Reader)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		a, err1 := pubkey.FromStd(claviger.ECDSAP256, key.Public())
		b, err2 := pubkey.FromStd(claviger.Ed25519, ed)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		for _, k := range []pubkey.Key{a, b} {
			keys = append(keys, hunt.Key{Name: fmt.Sprint("prod/app/key", len(keys)), Public: k})
			db = fmt.Appendf(db, "{\"id\":\"%026d\",\"name\":\"prod/app/key%d\",\"algorithm\":%q,\"state\":\"active\",\"public\":\"%s\",\"blob\":\"%s\"}\x00\x05\x01\x17",
				i, i, k.Algorithm(), base64.StdEncoding.EncodeToString(k.Raw()), base64.StdEncoding.EncodeToString(random(160)))
		}
	}
	var record []byte
	previous := random(32)
	for i := 0; len(record) < size; i++ {
		next := random(32)
		record = fmt.Appendf(record, "{\"seq\":%d,\"time\":\"2026-01-02T03:04:05.678901234Z\",\"event\":\"key.sign\",\"outcome\":\"ok\",\"principal\":\"workload/shop/api\",\"key\":\"prod/app/key%d\",\"version\":1,\"input\":\"sha256:%x\",\"request\":\"%026d\",\"previous\":\"%x\",\"hash\":\"%x\"}\n",
			i, i%n, random(32), i, previous, next)
		previous = next
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "claviger.db"), db, 0o600), os.WriteFile(filepath.Join(dir, "claviger.db-wal"), db, 0o600),
		os.WriteFile(filepath.Join(dir, "audit.log"), record, 0o600)); err != nil {
		t.Fatal(err)
	}
	return keys, dir
}

// BenchmarkSearch searches what a server wrote for one key and for many.
func BenchmarkSearch(b *testing.B) {
	keys, dir := store(b, 5000, 40<<20)
	for _, n := range []int{1, 2, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				r, err := probe.Search(b.Context(), probe.SearchConfig{Keys: keys[:n], Paths: []string{dir}})
				if err != nil || r.Verdict != hunt.Nothing {
					b.Fatal(r, err)
				}
				b.SetBytes(r.Searched.Bytes)
			}
		})
	}
}
