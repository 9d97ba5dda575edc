package hunt_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/hunt"
)

// oracle knows symmetric keys, as the key process does.
type oracle struct {
	keys  map[string][]byte
	asked atomic.Int64
}

func newOracle(n int) *oracle {
	o := &oracle{keys: map[string][]byte{}}
	for i := range n {
		key := make([]byte, 32+i%2*32)
		_, _ = rand.Read(key)
		o.keys[fmt.Sprint("key", i)] = key
	}
	return o
}

func (o *oracle) search(_ context.Context, haystack []byte) (hits []hunt.Hit, err error) {
	o.asked.Add(int64(len(haystack)))
	if len(haystack) > hunt.MaxHaystack {
		return nil, errors.New("too large")
	}
	for name, key := range o.keys {
		for from := 0; ; from++ {
			n := bytes.Index(haystack[from:], key)
			if n < 0 {
				break
			}
			from += n
			hits = append(hits, hunt.Hit{Key: name, Offset: from, Encoding: "raw"})
		}
	}
	return hits, nil
}

// TestSymmetric plants symmetric keys among text, zeros and noise, encoded and
// packed, at any offset.
func TestSymmetric(t *testing.T) {
	t.Parallel()
	o := newOracle(6)
	dir := t.TempDir()
	want := map[string]int64{}
	for name, key := range o.keys {
		for around, fill := range map[string]func(n int) []byte{
			"text":  func(n int) []byte { return []byte(strings.Repeat("some words, ", n/12+1)[:n]) },
			"zeros": func(n int) []byte { return make([]byte, n) },
			"noise": func(n int) []byte { return noise(uint64(n), n) },
		} {
			for form, text := range map[string][]byte{
				"raw": key, "hex": []byte(" " + hex.EncodeToString(key) + "\n"), "upper": bytes.ToUpper([]byte("=" + hex.EncodeToString(key) + "\n")),
				"base64": []byte("\"" + base64.StdEncoding.EncodeToString(key) + "\""), "url": []byte(":" + base64.RawURLEncoding.EncodeToString(key) + " "),
			} {
				at := 300<<10 + 7 + len(want)
				data := append(append(fill(at), text...), fill(3001)...)
				file := write(t, dir, fmt.Sprint(name, "-", around, "-", form), data)
				if form != "raw" {
					at++
				}
				want[file] = int64(at)
			}
		}
	}
	packed := write(t, dir, "layer.tar.gz", gzipped(t, tarOf(t, map[string][]byte{"etc/key": append(make([]byte, 33), o.keys["key0"]...)})))
	want[packed] = 33
	r := run(t, hunt.Config{Symmetric: o.search}, hunt.Target{Path: dir})
	got := map[string]int64{}
	for _, f := range r.Findings {
		if f.Form != "symmetric key" || !strings.HasPrefix(filepath.Base(f.File), f.Key) && f.File != packed {
			t.Errorf("%+v", f)
		}
		got[f.File] = f.Offset
	}
	for file, at := range want {
		if offset, ok := got[file]; !ok || offset != at {
			t.Errorf("%s: found %v at %d, want %d", filepath.Base(file), ok, offset, at)
		}
	}
	if len(r.Controls) != 1 || r.Controls[0].Planted != 3 {
		t.Errorf("%+v", r.Controls)
	}
}

// TestSymmetricAsksLittle: what cannot be a key is not asked about, nor what was.
func TestSymmetricAsksLittle(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 10 {
		write(t, dir, fmt.Sprint("text", i), []byte(strings.Repeat("a line of a log, with words and 123 numbers\n", 20000)))
		write(t, dir, fmt.Sprint("page", i), append(make([]byte, 64<<10), noise(1, 4000)...))
	}
	o := newOracle(1)
	if r := run(t, hunt.Config{Symmetric: o.search}, hunt.Target{Path: dir}); r.Verdict != hunt.Nothing {
		t.Errorf("%+v", r)
	}
	if asked := o.asked.Load(); asked > 64<<10 {
		t.Errorf("%d bytes were asked about", asked)
	}
}

// TestSymmetricFails: what could not be asked about was not searched.
func TestSymmetricFails(t *testing.T) {
	t.Parallel()
	path := write(t, t.TempDir(), "noise", noise(1, 3<<20))
	calls := atomic.Int64{}
	r, err := hunt.Run(t.Context(), hunt.Config{Symmetric: func(context.Context, []byte) ([]hunt.Hit, error) {
		if calls.Add(1) > 3 {
			return nil, errors.New("away")
		}
		return nil, nil
	}}, []hunt.Target{{Path: path}})
	if err != nil {
		t.Fatal(err)
	}
	if r.Verdict != hunt.NotSearched || r.GapCount["not searched for symmetric keys: away"] == 0 {
		t.Errorf("%+v", r)
	}
	if _, err := hunt.Run(t.Context(), hunt.Config{}, []hunt.Target{{Path: path}}); !errors.Is(err, claviger.Invalid) {
		t.Errorf("nothing to look for: %v", err)
	}
}
