package hunt_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/hunt"
)

// ownMemory is what a Go process holds: the readable private memory of this
// one, after it has parsed and encoded a good deal. 64 MiB at most.
var ownMemory = sync.OnceValues(func() ([]byte, error) {
	type item struct {
		Name  string
		Value float64
		Tags  map[string]string
		Next  *item
	}
	var list *item
	for i := range 150_000 {
		list = &item{fmt.Sprintf("item/%d/of-many", i), float64(i) * 1.7, map[string]string{"n": strconv.Itoa(i)}, list}
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	var out []byte
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); n < 3 || perms[0] != 'r' || strings.Contains(line, "[v") {
			continue
		}
		part, _ := io.ReadAll(io.NewSectionReader(mem, from, min(to-from, 64<<20-int64(len(out)))))
		out = append(out, part...)
	}
	_ = list
	return out, nil
})

// BenchmarkHunt measures whole hunts, with their control, in MB/s of input; and
// in MB for each second of processor time, which is what counts where others
// are at work: times the processors, it is the rate of an idle machine.
func BenchmarkHunt(b *testing.B) {
	memory, err := ownMemory()
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	inputs := []struct {
		name, path string
	}{
		{"memory", write(b, dir, "memory", memory)},
		{"source", filepath.Join(goroot(b), "src", "cmd", "compile", "internal")},
		{"objects", filepath.Join(goroot(b), "src", "runtime")}, // source with object files
		{"random", write(b, dir, "random", noise(3, 256<<10))},
	}
	for _, in := range inputs {
		for _, kind := range []struct {
			name  string
			alg   claviger.Algorithm
			count int
		}{{"p256", claviger.ECDSAP256, 1}, {"p256x16", claviger.ECDSAP256, 16}, {"p256x1000", claviger.ECDSAP256, 1000}, {"p384", claviger.ECDSAP384, 1}, {"ed25519", claviger.Ed25519, 1}, {"ed25519x1000", claviger.Ed25519, 1000}, {"mldsa65", claviger.MLDSA65, 1}, {"rsa2048", rsa2048, 1}} {
			b.Run(in.name+"/"+kind.name, func(b *testing.B) {
				var keys []hunt.Key
				for range kind.count {
					keys = append(keys, newSecret(b, kind.alg).Key)
				}
				var total int64
				before := spent(b)
				for b.Loop() {
					r := run(b, hunt.Config{Keys: keys}, hunt.Target{Path: in.path})
					if r.Verdict != hunt.Nothing {
						b.Fatalf("%+v", r)
					}
					b.SetBytes(r.Searched.Bytes)
					total += r.Searched.Bytes
				}
				b.ReportMetric(float64(total)/1e6/(spent(b)-before).Seconds(), "MB/cpu-s")
			})
		}
	}
}

// spent is the processor time of this process so far.
func spent(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// goroot is where the Go source tree is, as the go command says.
func goroot(b *testing.B) string {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
