package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/store"
	"claviger.dev/internal/store/sqlite"
)

// rawRate is what claviger-keyd measures of itself.
type rawRate struct {
	Protected time.Duration `json:"protected_ns"`         // CPU time of one operation with the memory hygiene of the key process, all cores busy
	Plain     time.Duration `json:"plain_ns"`             // the same by the standard library alone
	AllCores  float64       `json:"all_cores_per_second"` // protected operations on all cores
}

// raw asks the key process's own program for the rate of this machine's cores.
func (a *app) raw(ctx context.Context, b benchFlags) (r rawRate, err error) {
	bin, err := binDir()
	if err != nil {
		return r, err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "claviger-keyd"),
		"-measure", b.algorithm, "-size", fmt.Sprint(b.size), "-batch", fmt.Sprint(b.batch)).Output()
	if err != nil {
		return r, fmt.Errorf("measure the raw rate: %w", err)
	}
	return r, json.Unmarshal(out, &r)
}

// suite gathers the table of docs/benchmarks.md.
type suite struct {
	*rig
	out bytes.Buffer
	b   benchFlags
}

func (s *suite) line(format string, args ...any) { fmt.Fprintf(&s.out, format+"\n", args...) }

func (a *app) benchSuite(ctx context.Context, b benchFlags) error {
	s := &suite{b: b}
	s.line("# Benchmarks\n")
	s.line("Written by `make bench` on %s, %d cores, %s/%s. Only ratios within one run mean anything: the machine is noisy,",
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)
	s.line("and the load's own client runs on the same cores. *Raw* is the same primitive with the same memory hygiene in a")
	s.line("tight loop in one process on all cores, which is how busy they are under load, too; *unprotected* is the standard")
	s.line("library alone. Every call is recorded durably.\n")
	err := a.onRig(ctx, "", func(ctx context.Context, r *rig) error {
		s.rig = r
		for _, part := range []func(context.Context) error{s.singles, s.batches, s.halfRate, s.restart} {
			if err := part(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, part := range []func(context.Context, *suite) error{a.benchStore, a.benchEvidence, a.benchForward} {
		if err := part(ctx, s); err != nil {
			return err
		}
	}
	if b.write != "" {
		if err := os.WriteFile(b.write, s.out.Bytes(), 0o644); err != nil {
			return err
		}
	}
	_, err = a.stdout.Write(s.out.Bytes())
	return err
}

// each measures one load and its raw rate, one right after the other.
func (s *suite) each(ctx context.Context, b benchFlags) (measured, rawRate, error) {
	s.a.say("bench: %s %s, batch %d, %s, rate %.0f", b.algorithm, orDefault(b), b.batch, b.transport, b.rate)
	raw, err := s.a.raw(ctx, b)
	if err != nil {
		return measured{}, raw, err
	}
	m, err := s.measure(ctx, b)
	return m, raw, err
}

func micros(d time.Duration) string {
	return fmt.Sprintf("%.1f", float64(d.Nanoseconds())/1000)
}

func (s *suite) singles(ctx context.Context) error {
	s.line("## One operation a call, %d at once\n", s.b.concurrency)
	s.line("CPU per operation in microseconds. The goal is at most 2x raw for ECDSA P-256 and 4x for Ed25519, over TLS.\n")
	s.line("| algorithm | operation | over | operations/s | p50 µs | p99 µs | p99.9 µs | server | key process | raw | unprotected | CPU to raw |")
	s.line("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	type run struct{ algorithm, operation, transport string }
	runs := []run{{"ecdsa-p256-sha256", "sign", "tls"}, {"ed25519", "sign", "tls"}, {"ecdsa-p256-sha256", "sign", "socket"}, {"ed25519", "sign", "socket"}}
	for _, alg := range []string{"ecdsa-p384-sha384", "rsa-2048-pss-sha256", "ml-dsa-65", "hmac-sha256", "aes-256-gcm"} {
		runs = append(runs, run{alg, string(claviger.Algorithm(alg).Protects()), "tls"})
	}
	runs = append(runs, run{"ecdsa-p256-sha256", "verify", "tls"}, run{"hmac-sha256", "verify-mac", "tls"}, run{"aes-256-gcm", "open", "tls"})
	for _, r := range runs {
		b := s.b
		b.algorithm, b.operation, b.transport = r.algorithm, r.operation, r.transport
		m, raw, err := s.each(ctx, b)
		if err != nil {
			return fmt.Errorf("%s %s: %w", r.algorithm, r.operation, err)
		}
		s.line("| %s | %s | %s | %.0f | %s | %s | %s | %s | %s | %s |", r.algorithm, r.operation, r.transport, m.items,
			micros(m.quantile(.5)), micros(m.quantile(.99)), micros(m.quantile(.999)), micros(m.serverCPU), micros(m.keydCPU), compared(b, raw, m))
	}
	s.line("")
	return nil
}

// compared are the columns that set an operation beside the raw rate, which is
// that of protecting.
func compared(b benchFlags, raw rawRate, m measured) string {
	if orDefault(b) != string(claviger.Algorithm(b.algorithm).Protects()) {
		return "- | - | -"
	}
	return fmt.Sprintf("%s | %s | %.2fx", micros(raw.Protected), micros(raw.Plain), float64(m.total)/float64(raw.Protected))
}

func (s *suite) batches(ctx context.Context) error {
	s.line("## Batches of 100 over TLS\n")
	s.line("The goal is at least 85 %% of the raw rate of all cores; the client shares these cores.\n")
	s.line("| algorithm | operations/s | raw, all cores | share |")
	s.line("| --- | --- | --- | --- |")
	for _, alg := range []string{"ecdsa-p256-sha256", "ed25519", "ml-dsa-65"} {
		b := s.b
		b.algorithm, b.batch, b.concurrency = alg, 100, 8
		m, raw, err := s.each(ctx, b)
		if err != nil {
			return err
		}
		s.line("| %s | %.0f | %.0f | %.0f %% |", alg, m.items, raw.AllCores, 100*m.items/raw.AllCores)
	}
	s.line("")
	return nil
}

func (s *suite) halfRate(ctx context.Context) error {
	s.line("## Half of the most, %d at once, open loop\n", s.b.concurrency)
	s.line("The goal is a p99 under 10x p50.\n")
	s.line("| algorithm | calls/s | p50 µs | p99 µs | p99.9 µs | p99 to p50 |")
	s.line("| --- | --- | --- | --- | --- | --- |")
	for _, alg := range []string{"ecdsa-p256-sha256", "ed25519"} {
		b := s.b
		b.algorithm = alg
		most, _, err := s.each(ctx, b)
		if err != nil {
			return err
		}
		b.rate = most.perSecond() / 2
		m, _, err := s.each(ctx, b)
		if err != nil {
			return err
		}
		s.line("| %s | %.0f | %s | %s | %s | %.1fx |", alg, b.rate, micros(m.quantile(.5)), micros(m.quantile(.99)), micros(m.quantile(.999)),
			float64(m.quantile(.99))/float64(m.quantile(.5)))
	}
	s.line("")
	return nil
}

// restart kills the key process under load.
func (s *suite) restart(ctx context.Context) error {
	call, err := s.operation(ctx, benchFlags{algorithm: "ed25519", batch: 1, concurrency: 64, size: 64, transport: "tls"})
	if err != nil {
		return err
	}
	killed := time.AfterFunc(time.Second, func() { _ = syscall.Kill(s.keyd, syscall.SIGKILL) })
	defer killed.Stop()
	out := load{concurrency: 64, rate: 2000, duration: 3 * time.Second, call: call}.run(ctx)
	if out.calls == 0 {
		return fmt.Errorf("no call succeeded: %w", out.firstError)
	}
	s.line("## The key process is killed under load\n")
	s.line("2 000 Ed25519 signatures/s for 3 s, SIGKILL after 1 s: %d calls succeeded, %d failed, the longest wait was %d ms.", out.calls, out.failures,
		out.latencies[len(out.latencies)-1].Milliseconds())
	s.line("The goal is that no acknowledged operation is lost and no caller waits longer than 2 s.\n")
	children, err := childrenOf(os.Getpid())
	s.keyd = children["claviger-keyd"]
	return err
}

// Sizes of the store in the last part of the suite.
const (
	manyKeys  = 10_000
	evenMore  = 100_000
	firstKey  = "dev/bench/key-00000"
	keyFormat = "dev/bench/key-%05d"
)

// benchStore measures a start with many keys, and listings.
func (a *app) benchStore(ctx context.Context, s *suite) error {
	dir, err := os.MkdirTemp("", "claviger-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	a.say("bench: %d keys are made", manyKeys)
	err = a.play(ctx, playground{dir: dir, quiet: true}, func(ctx context.Context) error {
		c, err := a.dial(ctx)
		if err != nil {
			return err
		}
		return fillKeys(ctx, c)
	})
	if err != nil {
		return err
	}
	began := time.Now()
	err = a.play(ctx, playground{dir: dir, quiet: true}, func(ctx context.Context) error {
		c, err := a.dial(ctx)
		if err != nil {
			return err
		}
		if _, err := c.Sign(ctx, &pb.SignRequest{Key: firstKey, Inputs: [][]byte{[]byte("first")}}); err != nil {
			return err
		}
		first := time.Since(began)
		children, err := childrenOf(os.Getpid())
		if err != nil {
			return err
		}
		// Every key is used once, so that both processes hold what they ever hold.
		if err := useKeys(ctx, c); err != nil {
			return err
		}
		server, err := usageOf(children["claviger"])
		if err != nil {
			return err
		}
		keyd, err := usageOf(children["claviger-keyd"])
		s.line("## %d keys\n", manyKeys)
		s.line("From the start of all processes to the first signature: %d ms (the goal is under 500 ms).", first.Milliseconds())
		s.line("Memory after each key was used once: server %d MiB, key process %d MiB (the goal is under 200 MiB for both).\n", server.resident>>20, keyd.resident>>20)
		return err
	})
	if err != nil {
		return err
	}
	a.say("bench: %d rows are written", evenMore)
	if err := copyRows(ctx, filepath.Join(dir, "server", "claviger.db")); err != nil {
		return err
	}
	return a.play(ctx, playground{dir: dir, quiet: true}, func(ctx context.Context) error { return a.listings(ctx, s) })
}

func fillKeys(ctx context.Context, c *client.Client) error {
	return forKeys(ctx, func(ctx context.Context, name string) error {
		_, err := c.CreateKey(ctx, &pb.CreateKeyRequest{Name: name, Algorithm: "ed25519", Owner: "bench", Labels: map[string]string{"tier": name[len(name)-1:]}})
		return err
	})
}

func useKeys(ctx context.Context, c *client.Client) error {
	return forKeys(ctx, func(ctx context.Context, name string) error {
		_, err := c.Sign(ctx, &pb.SignRequest{Key: name, Inputs: [][]byte{[]byte("use")}})
		return err
	})
}

// forKeys calls work with each name, 32 at once.
func forKeys(ctx context.Context, work func(context.Context, string) error) error {
	names := make(chan string)
	failed := make(chan error, 32)
	for range cap(failed) {
		go func() {
			var first error
			for name := range names {
				if err := work(ctx, name); err != nil && first == nil {
					first = err
				}
			}
			failed <- first
		}()
	}
	for i := range manyKeys {
		names <- fmt.Sprintf(keyFormat, i)
	}
	close(names)
	var first error
	for range cap(failed) {
		if err := <-failed; first == nil {
			first = err
		}
	}
	return first
}

// copyRows fills the store, while no server runs on it, with records that are
// like the first key's but for name and id: enough to list and to search.
func copyRows(ctx context.Context, path string) error {
	db, err := sqlite.Open(ctx, path)
	if err != nil {
		return err
	}
	defer db.Close()
	for done := manyKeys; done < evenMore; {
		err := db.Update(ctx, func(tx *store.Tx) error {
			model, err := tx.Key(firstKey)
			if err != nil {
				return err
			}
			for range 2000 {
				k := model
				k.ID, k.Name, k.Revision = claviger.NewID(time.Now()), claviger.Name(fmt.Sprintf(keyFormat, done)), 0
				if err := tx.InsertKey(k); err != nil {
					return err
				}
				done++
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// listings times listing and searching; the best of five, so that it is the
// work that is measured and not its neighbours.
func (a *app) listings(ctx context.Context, s *suite) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	s.line("## %d keys listed and searched\n", evenMore)
	s.line("A page of 100 through the API. The goal is under 100 ms.\n")
	s.line("| listing | ms |\n| --- | --- |")
	for _, q := range []struct {
		what string
		req  *pb.ListKeysRequest
	}{
		{"all", &pb.ListKeysRequest{}},
		{"by selector", &pb.ListKeysRequest{Selector: "dev/bench/*"}},
		{"by part of a name", &pb.ListKeysRequest{Search: "key-99"}},
		{"by a part that no key has", &pb.ListKeysRequest{Search: "nowhere"}},
		{"by label", &pb.ListKeysRequest{Labels: map[string]string{"tier": "0"}}},
		{"by state", &pb.ListKeysRequest{State: "active"}},
	} {
		best := time.Duration(1 << 62)
		for range 5 {
			began := time.Now()
			if _, err := c.ListKeys(ctx, q.req); err != nil {
				return err
			}
			best = min(best, time.Since(began))
		}
		s.line("| %s | %.1f |", q.what, float64(best.Microseconds())/1000)
	}
	return nil
}
