package hunt_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/hunt"
	"claviger.dev/pubkey"
)

// literal and backward are the parts of a block of Snappy.
func literal(b []byte) []byte {
	return append([]byte{61 << 2, byte(len(b) - 1), byte((len(b) - 1) >> 8)}, b...)
}

func backward(offset, length int) []byte {
	return []byte{byte(length-1)<<2 | 2, byte(offset), byte(offset >> 8)}
}

// levelTable writes a LevelDB table of one block, which is compressed.
func levelTable(size int, snappy ...[]byte) []byte {
	block := slices.Concat(binary.AppendUvarint(nil, uint64(size)), slices.Concat(snappy...))
	handle := func(at, n int) []byte { return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(at)), uint64(n)) }
	out := append(bytes.Clone(block), 1, 0, 0, 0, 0) // its form, and a checksum
	value := handle(0, len(block))
	index := slices.Concat([]byte{0, 1, byte(len(value)), 'k'}, value, []byte{0, 0, 0, 0, 1, 0, 0, 0})
	at := len(out)
	out = append(append(out, index...), 0, 0, 0, 0, 0)
	footer := make([]byte, 40)
	copy(footer, append(handle(at, len(index)), handle(at, len(index))...))
	return slices.Concat(out, footer, []byte("\x57\xfb\x80\x8b\x24\x75\x47\xdb"))
}

// TestTable: a key whose announcement is a copy of another's in a compressed
// block is found; and of a table that is damaged anywhere, the file is searched
// as it is.
func TestTable(t *testing.T) {
	t.Parallel()
	var ders [2][]byte
	var keys []hunt.Key
	for i := range ders {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if ders[i], err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			t.Fatal(err)
		}
		public, err := pubkey.FromStd(claviger.ECDSAP256, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, hunt.Key{Name: string(rune('a' + i)), Public: public})
	}
	const head = 36 // bytes of PKCS#8 before the scalar
	first, second := ders[0], ders[1]
	filler := bytes.Repeat([]byte("filler "), 5000)
	file := levelTable(len(first)+len(second)+2*len(filler)+4, literal(first), backward(len(first), head), literal(second[head:]),
		literal(filler), literal(filler), literal([]byte("abc")), backward(1, 1))
	search := func(b []byte) *hunt.Report {
		path := filepath.Join(t.TempDir(), "000005.ldb")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := hunt.Run(t.Context(), hunt.Config{Keys: keys}, []hunt.Target{{Path: path}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := search(file)
	at := map[string]int64{}
	for _, f := range r.Findings {
		if f.Member != "leveldb" {
			t.Errorf("%+v", f)
		}
		at[f.Key] = f.Offset
	}
	if at["a"] != head || at["b"] != int64(len(first)+head) || len(r.GapCount) != 0 {
		t.Errorf("found at %v; not searched: %v", at, r.Gaps)
	}
	damaged := bytes.Clone(file)
	damaged[0] ^= 1 // the length of the block
	if r := search(damaged); len(r.Findings) == 0 || r.Findings[0].Member != "" || r.GapCount["leveldb: damaged"] != 1 {
		t.Errorf("%+v", r)
	}
}

// FuzzTable: whatever stands in a table, it is read within its bounds.
func FuzzTable(f *testing.F) {
	f.Add(levelTable(4, literal([]byte("abc")), backward(1, 1)))
	f.Add(levelTable(9, literal([]byte("abc")), backward(3, 6)))
	f.Add(levelTable(1<<40, backward(9, 9)))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := hunt.ReadTable(append(b, "\x57\xfb\x80\x8b\x24\x75\x47\xdb"...))
		if err == nil && len(out) > 64<<20 {
			t.Error("more than a block came out of what has one")
		}
	})
}
