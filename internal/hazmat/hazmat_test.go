package hazmat_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"claviger.dev"
	"claviger.dev/internal/hazmat"
)

var token hazmat.Token

func newArena(t *testing.T, size int) *hazmat.Arena {
	t.Helper()
	a, err := hazmat.NewArena(hazmat.Config{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	if ok, why := a.SecretPages(); !ok {
		t.Fatal(why)
	}
	return a
}

// put makes a secret of n bytes, all of them c.
func put(t *testing.T, a *hazmat.Arena, n int, c byte) hazmat.Secret {
	t.Helper()
	s, err := a.New(token, n, func(b []byte) error {
		if !bytes.Equal(b, make([]byte, n)) {
			t.Errorf("a new slot is not zero")
		}
		copy(b, bytes.Repeat([]byte{c}, n))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSizes(t *testing.T) {
	t.Parallel()
	a := newArena(t, 64<<10)
	for _, tt := range []struct{ n, slot int }{
		{1, 64}, {32, 64}, {64, 64}, {65, 128}, {128, 128}, {129, 256}, {2400, 4096}, {4096, 4096},
	} {
		s := put(t, a, tt.n, 0xee)
		if _, used := a.Size(); used != tt.slot || s.Len() != tt.n {
			t.Errorf("%d bytes: slot of %d, length %d, want %d", tt.n, used, s.Len(), tt.slot)
		}
		err := s.Use(token, func(b []byte) error {
			if !bytes.Equal(b, bytes.Repeat([]byte{0xee}, tt.n)) || cap(b) != tt.n {
				t.Errorf("%d bytes: got %d of %d", tt.n, len(b), cap(b))
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		s.Release()
		s.Release()
	}
	if total, used := a.Size(); used != 0 || total != 64<<10 {
		t.Errorf("size %d, %d in use after all were released", total, used)
	}
	for _, n := range []int{-1, 0, 4097} {
		if _, err := a.New(token, n, nil); claviger.CodeOf(err) != claviger.TooLarge {
			t.Errorf("%d bytes: %v, want too_large", n, err)
		}
	}
}

// TestExhaustion fills an arena of two pages with each size, empties it and
// goes on: a page serves another size once it is free.
func TestExhaustion(t *testing.T) {
	t.Parallel()
	a := newArena(t, 8<<10)
	for _, n := range []int{32, 64, 100, 1000, 4096, 32} {
		var all []hazmat.Secret
		seen := map[*byte]bool{}
		for range 8 << 10 / max(64, n) {
			s, err := a.New(token, n, func(b []byte) error {
				if seen[&b[0]] || !bytes.Equal(b, make([]byte, n)) {
					t.Errorf("%d bytes: a slot was handed out twice, or is not zero", n)
				}
				seen[&b[0]] = true
				b[0], b[n-1] = 1, 1
				return nil
			})
			if claviger.CodeOf(err) == claviger.Exhausted {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		if _, used := a.Size(); used != 8<<10 {
			t.Errorf("%d bytes: %d in use, want all", n, used)
		}
		if _, err := a.New(token, n, nil); claviger.CodeOf(err) != claviger.Exhausted {
			t.Errorf("%d bytes: %v, want exhausted", n, err)
		}
		for _, s := range all {
			s.Release()
		}
	}
}

func TestFillFails(t *testing.T) {
	t.Parallel()
	a := newArena(t, 4096)
	want := errors.New("no")
	if _, err := a.New(token, 32, func([]byte) error { return want }); err != want {
		t.Errorf("error %v, want fill's own", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a panic of fill was lost")
			}
		}()
		a.New(token, 32, func(b []byte) error { b[0] = 1; panic("fill") })
	}()
	if _, used := a.Size(); used != 0 {
		t.Errorf("%d bytes leaked", used)
	}
	put(t, a, 4096, 1).Release()
}

func TestGone(t *testing.T) {
	t.Parallel()
	a := newArena(t, 4096)
	released := put(t, a, 32, 1)
	released.Release()
	for name, s := range map[string]hazmat.Secret{"zero value": {}, "released": released} {
		err := s.Use(token, func([]byte) error { t.Errorf("%s: used", name); return nil })
		if claviger.CodeOf(err) != claviger.Unavailable {
			t.Errorf("%s: %v, want unavailable", name, err)
		}
	}
	want := errors.New("own")
	if err := put(t, a, 32, 1).Use(token, func([]byte) error { return want }); err != want {
		t.Errorf("error %v, want f's own", err)
	}
}

// TestWipe wipes during a use: the bytes are zero at once, the use fails, and
// nothing works afterwards.
func TestWipe(t *testing.T) {
	t.Parallel()
	a := newArena(t, 16<<10)
	s := put(t, a, 4096, 0xaa)
	err := s.Use(token, func(b []byte) error {
		a.Wipe()
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Error("bytes are left")
		}
		return nil
	})
	if claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("a use that saw zeros: %v", err)
	}
	if err := s.Use(token, func([]byte) error { return nil }); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("use after: %v", err)
	}
	if _, err := a.New(token, 32, nil); claviger.CodeOf(err) != claviger.Unavailable {
		t.Errorf("new after: %v", err)
	}
	s.Release()
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	a := newArena(t, 64<<10)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				n := 1 + (i*911+j*37)%4096
				s, err := a.New(token, n, func(b []byte) error { copy(b, bytes.Repeat([]byte{byte(i + 1)}, n)); return nil })
				if err != nil {
					t.Error(err)
					return
				}
				var uses sync.WaitGroup
				uses.Go(func() {
					err := s.Use(token, func(b []byte) error {
						if b[0] != byte(i+1) || b[n-1] != byte(i+1) {
							t.Error("another's bytes")
						}
						return nil
					})
					if err != nil && claviger.CodeOf(err) != claviger.Unavailable {
						t.Error(err)
					}
				})
				s.Release()
				uses.Wait()
			}
		})
	}
	wg.Wait()
	if _, used := a.Size(); used != 0 {
		t.Errorf("%d bytes leaked", used)
	}
}

// TestSays prints, encodes and logs a secret in every way that comes to mind,
// alone and inside other things.
func TestSays(t *testing.T) {
	t.Parallel()
	const mark = "SECRETSECRETSECRETSECRETSECRET32"
	a := newArena(t, 4096)
	s, err := a.New(token, 32, func(b []byte) error { copy(b, mark); return nil })
	if err != nil {
		t.Fatal(err)
	}
	type outer struct {
		S     hazmat.Secret
		inner hazmat.Secret
	}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d", "%T"} {
		fmt.Fprintf(&out, verb, s)
		fmt.Fprintf(&out, verb, &s)
		fmt.Fprintf(&out, verb, outer{s, s})
		fmt.Fprintf(&out, verb, &outer{s, s})
		fmt.Fprintf(&out, verb, []any{s, map[string]hazmat.Secret{"k": s}})
		fmt.Fprintf(&out, verb, a)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("m", "s", s, "p", &s, "o", outer{s, s})
	}
	if err := json.NewEncoder(&out).Encode([]any{s, &s, outer{s, s}}); err != nil {
		t.Error(err)
	}
	if err := gob.NewEncoder(&out).Encode(s); err != nil {
		t.Error(err)
	}
	if b, err := s.MarshalBinary(); string(b) != "[secret]" || err != nil {
		t.Errorf("MarshalBinary: %q, %v", b, err)
	}
	for _, form := range []string{mark, fmt.Sprintf("%x", mark), fmt.Sprintf("%X", mark), fmt.Sprint([]byte(mark)), fmt.Sprintf("%#v", []byte(mark))} {
		if strings.Contains(out.String(), strings.Trim(form, "[]")) {
			t.Errorf("the bytes came out, as %q", form)
		}
	}
	for _, got := range []string{fmt.Sprint(s), fmt.Sprintf("%#v", s), fmt.Sprintf("%x", s), s.String(), s.GoString(), s.LogValue().String()} {
		if got != "[secret]" {
			t.Errorf("said %q", got)
		}
	}
	if reflect.TypeFor[hazmat.Secret]().Comparable() {
		t.Error("secrets can be compared")
	}
}

// TestKernelDoesNotRead reads the arena as a debugger does; the control is
// memory of another kind.
func TestKernelDoesNotRead(t *testing.T) {
	t.Parallel()
	a := newArena(t, 4096)
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	read := func(b []byte) (string, string) {
		got := [2][]byte{make([]byte, len(b)), make([]byte, len(b))}
		at := uintptr(unsafe.Pointer(&b[0]))
		mem.ReadAt(got[0], int64(at))
		local := []unix.Iovec{{Base: &got[1][0]}}
		local[0].SetLen(len(b))
		unix.ProcessVMReadv(os.Getpid(), local, []unix.RemoteIovec{{Base: at, Len: len(b)}}, 0)
		return string(got[0]), string(got[1])
	}
	const mark = "0123456789abcdef"
	if x, y := read([]byte(mark)); x != mark || y != mark {
		t.Fatalf("control: read %q and %q", x, y)
	}
	s, err := a.New(token, len(mark), func(b []byte) error { copy(b, mark); return nil })
	if err != nil {
		t.Fatal(err)
	}
	err = s.Use(token, func(b []byte) error {
		if x, y := read(b); strings.Trim(x+y, "\x00") != "" {
			t.Errorf("read %q and %q", x, y)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestDescriptor: the descriptor of the arena is not left open.
func TestDescriptor(t *testing.T) {
	newArena(t, 4096)
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, _ := os.Readlink(l); strings.Contains(to, "secret") {
			t.Errorf("%s is %s", l, to)
		}
	}
}

func TestBadSize(t *testing.T) {
	t.Parallel()
	for _, size := range []int{-1, 2 << 30} {
		if _, err := hazmat.NewArena(hazmat.Config{Size: size}); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("size %d: %v, want invalid", size, err)
		}
	}
}

func TestDo(t *testing.T) {
	t.Parallel()
	var got []byte
	var err error
	hazmat.Do(func() { got, err = bytes.Clone([]byte("result")), errors.New("outlives") })
	runtime.GC()
	if string(got) != "result" || err.Error() != "outlives" {
		t.Errorf("got %q, %v", got, err)
	}
	defer func() {
		if r := recover(); r != "passes" {
			t.Errorf("recovered %v", r)
		}
	}()
	hazmat.Do(func() { panic("passes") })
}

// TestCollect counts forced collections: none at rest, one round after a use
// and a quiet period, none while uses go on.
func TestCollect(t *testing.T) {
	forced := func() uint32 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.NumForcedGC
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		const quiet = 100 * time.Millisecond
		b, err := hazmat.NewArena(hazmat.Config{Size: 4096})
		if err != nil {
			t.Fatal(err)
		}
		go b.Collect(ctx, quiet)
		start := forced()
		wait := func(d time.Duration, want uint32) {
			t.Helper()
			<-time.After(d)
			synctest.Wait()
			if got := forced() - start; got != want {
				t.Errorf("%d forced collections, want %d", got, want)
			}
		}
		wait(time.Hour, 0)
		s, err := b.New(token, 32, func([]byte) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		wait(time.Hour, 3)
		for range 20 {
			s.Use(token, func([]byte) error { return nil })
			wait(quiet/2, 3)
		}
		wait(time.Hour, 6)
		stop()
		synctest.Wait()
	})
}

// TestCopies signs with the standard library in a process of its own, and
// counts the copies of the keys that are left in its memory when the
// collector has run: none inside Do. Signing outside of it is the control.
func TestCopies(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Fatalf("runtime/secret does not know %s", runtime.GOARCH)
	}
	binary := filepath.Join(t.TempDir(), "scan")
	build := exec.Command("go", "build", "-o", binary, "./testdata/scan")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOEXPERIMENT=runtimesecret")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	count := func(args ...string) (ed, ec int) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, binary, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if _, err := fmt.Sscan(string(out), &ed, &ec); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return ed, ec
	}
	if ed, ec := count(); ed != 0 || ec != 0 {
		t.Errorf("%d copies of the Ed25519 seed and %d of the P-256 scalar are left", ed, ec)
	}
	if ed, ec := count("plain"); ed == 0 || ec == 0 {
		t.Errorf("control: %d and %d copies; the scan shows nothing", ed, ec)
	}
}

// BenchmarkUse is what a use costs beyond what is done with the bytes.
func BenchmarkUse(b *testing.B) {
	a, err := hazmat.NewArena(hazmat.Config{Size: 4096})
	if err != nil {
		b.Fatal(err)
	}
	s, err := a.New(token, 32, func([]byte) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s.Use(token, func([]byte) error { return nil })
	}
}

// BenchmarkNew hands out a slot and takes it back in an arena of 4 MiB that is
// all but full.
func BenchmarkNew(b *testing.B) {
	a, err := hazmat.NewArena(hazmat.Config{})
	if err != nil {
		b.Fatal(err)
	}
	fill := func([]byte) error { return nil }
	for range hazmat.DefaultSize/hazmat.MaxSecret - 1 {
		if _, err := a.New(token, hazmat.MaxSecret, fill); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		s, err := a.New(token, 32, fill)
		if err != nil {
			b.Fatal(err)
		}
		s.Release()
	}
}
