package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

// benchFlags say what load to make.
type benchFlags struct {
	algorithm   string
	operation   string
	transport   string
	concurrency int
	batch       int
	size        int
	rate        float64
	duration    time.Duration
	suite       bool
	evidence    bool
	state       string
	forward     bool
	sessions    bool
	tokens      bool
	write       string
}

func (a *app) benchCommand() *cobra.Command {
	var b benchFlags
	c := &cobra.Command{
		Use: "bench", Short: "Measure a server of its own, next to the raw rate of this machine's cores", Args: cobra.NoArgs,
		Long: "Start a server in a temporary directory, load it, and print throughput, latencies and the CPU that server\n" +
			"and key process used per operation. Raw is the same primitive with the same memory hygiene in a tight loop\n" +
			"in one process; unprotected is the standard library alone. Compare ratios within one run.\n" +
			"With --rate calls arrive at that rate whatever happens to the ones before, and latencies count from the\n" +
			"moment at which a call was due; without it as many go as can.",
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case b.suite:
				return a.benchSuite(c.Context(), b)
			case b.evidence:
				s := &suite{b: b}
				err := a.benchEvidence(c.Context(), s)
				return errors.Join(err, a.write("-", s.out.Bytes()))
			case b.forward:
				s := &suite{b: b}
				err := a.benchForward(c.Context(), s)
				return errors.Join(err, a.write("-", s.out.Bytes()))
			case b.state != "":
				return a.benchState(c.Context(), b)
			case b.sessions || b.tokens:
				return a.benchBroker(c.Context(), b)
			}
			return a.benchOne(c.Context(), b)
		},
	}
	f := c.Flags()
	f.StringVar(&b.algorithm, "algorithm", string(claviger.ECDSAP256), "see 'claviger key algorithms'")
	f.StringVar(&b.operation, "operation", "", "sign, verify, mac, verify-mac, seal or open; what the algorithm protects with when left out")
	f.StringVar(&b.transport, "transport", "tls", "tls or socket")
	f.IntVar(&b.concurrency, "concurrency", 64, "calls at once")
	f.IntVar(&b.batch, "batch", 1, "items of one call, at most 1000")
	f.IntVar(&b.size, "size", 64, "bytes of an item")
	f.Float64Var(&b.rate, "rate", 0, "calls a second; 0 for as many as go")
	f.DurationVar(&b.duration, "duration", 3*time.Second, "how long")
	f.BoolVar(&b.suite, "suite", false, "the whole table of docs/benchmarks.md")
	f.BoolVar(&b.evidence, "evidence", false, "evidence runs over one key and over many, and what they cost others")
	f.StringVar(&b.state, "state", "", "make and check tokens of this format, such as django.session, as an adapter does")
	f.BoolVar(&b.forward, "forward-auth", false, "what a proxy and a resource server ask of each request: token, proof and status; --rate for the open loop")
	f.BoolVar(&b.sessions, "sessions", false, "open sessions with a key of their own, of each algorithm")
	f.BoolVar(&b.tokens, "tokens", false, "get tokens of the token endpoint, each with a DPoP proof of its own")
	f.StringVar(&b.write, "write", "", "with --suite: write the table to this file")
	return c
}

// rig is a server of our own and the ways to it.
type rig struct {
	a      *app
	dir    string
	tls    *client.Client // an enrolled workload
	socket *client.Client // the operator
	server int            // pids
	keyd   int
}

// onRig starts a server in a temporary directory, with further tables of its
// configuration, and calls work with it.
func (a *app) onRig(ctx context.Context, tables string, work func(context.Context, *rig) error) error {
	dir, err := os.MkdirTemp("", "claviger-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	listen := free.Addr().String()
	free.Close()
	return a.play(ctx, playground{dir: dir, listen: listen, quiet: true, tables: tables}, func(ctx context.Context) error {
		r := &rig{a: a, dir: dir}
		if r.socket, err = a.dial(ctx); err != nil {
			return err
		}
		children, err := childrenOf(os.Getpid())
		if err != nil {
			return err
		}
		r.server, r.keyd = children["claviger"], children["claviger-keyd"]
		if r.server == 0 || r.keyd == 0 {
			return usagef("the server's processes were not found among %v", children)
		}
		if r.tls, err = a.enrolled(ctx, r.socket, "https://"+listen, filepath.Join(dir, "workload")); err != nil {
			return err
		}
		return work(ctx, r)
	})
}

// enrolled makes a workload that may use the benchmark's keys, and enrols it.
func (a *app) enrolled(ctx context.Context, operator *client.Client, address, dir string) (*client.Client, error) {
	p, err := operator.CreatePrincipal(ctx, &pb.CreatePrincipalRequest{Name: "bench", Kind: string(claviger.Workload), Environments: []string{"dev"}, Owner: "bench"})
	if err != nil {
		return nil, err
	}
	req := &pb.CreateGrantRequest{Principal: p.Id, Selector: "dev/bench/*"}
	for _, op := range claviger.UseOperations {
		req.Operations = append(req.Operations, string(op))
	}
	if _, err := operator.CreateGrant(ctx, req); err != nil {
		return nil, err
	}
	code, err := operator.IssueCode(ctx, &pb.IssueCodeRequest{Principal: p.Id})
	if err != nil {
		return nil, err
	}
	if _, err := client.Enroll(ctx, address, code.Code, dir); err != nil {
		return nil, err
	}
	return client.Open(dir)
}

// measured is what one load gave.
type measured struct {
	outcome
	items      float64 // a second
	serverCPU  time.Duration
	keydCPU    time.Duration
	total      time.Duration // both, per item
	serverSize int64
	keydSize   int64
}

// measure makes the load and accounts for the CPU of server and key process.
func (r *rig) measure(ctx context.Context, b benchFlags) (measured, error) {
	call, err := r.operation(ctx, b)
	if err != nil {
		return measured{}, err
	}
	return r.account(ctx, b, func(ctx context.Context, duration time.Duration) outcome {
		return load{concurrency: b.concurrency, rate: b.rate, duration: duration, call: call}.run(ctx)
	})
}

// account makes a load of calls, after a short one to warm up.
func (r *rig) account(ctx context.Context, b benchFlags, run func(context.Context, time.Duration) outcome) (measured, error) {
	if out := run(ctx, 200*time.Millisecond); out.calls == 0 {
		return measured{}, fmt.Errorf("warm up: %w", out.firstError)
	}
	serverBefore, err := usageOf(r.server)
	if err != nil {
		return measured{}, err
	}
	keydBefore, err := usageOf(r.keyd)
	if err != nil {
		return measured{}, err
	}
	m := measured{outcome: run(ctx, b.duration)}
	serverAfter, err := usageOf(r.server)
	if err != nil {
		return m, err
	}
	keydAfter, err := usageOf(r.keyd)
	if err != nil {
		return m, err
	}
	if m.calls == 0 {
		return m, fmt.Errorf("no call succeeded: %w", m.firstError)
	}
	n := time.Duration(m.calls * uint64(b.batch))
	m.items = m.perSecond() * float64(b.batch)
	m.serverCPU, m.keydCPU = (serverAfter.cpu-serverBefore.cpu)/n, (keydAfter.cpu-keydBefore.cpu)/n
	m.total = m.serverCPU + m.keydCPU
	m.serverSize, m.keydSize = serverAfter.resident, keydAfter.resident
	return m, ctx.Err()
}

// operation makes a key for the load and returns the call that uses it.
func (r *rig) operation(ctx context.Context, b benchFlags) (func(context.Context, int) error, error) {
	alg, err := claviger.ParseAlgorithm(b.algorithm)
	if err != nil {
		return nil, err
	}
	name := "dev/bench/" + b.algorithm
	_, err = r.socket.CreateKey(ctx, &pb.CreateKeyRequest{Name: name, Algorithm: b.algorithm, Owner: "bench"})
	if err != nil && claviger.CodeOf(err) != claviger.Conflict {
		return nil, err
	}
	s := r.tls
	if b.transport == "socket" {
		s = r.socket
	}
	if b.batch < 1 || b.concurrency < 1 || b.size < 0 {
		return nil, usagef("--batch and --concurrency are at least 1")
	}
	items := make([][]byte, b.batch)
	for i := range items {
		items[i] = make([]byte, b.size)
		_, _ = rand.Read(items[i])
	}
	op := claviger.Operation(b.operation)
	if op == "" {
		op = alg.Protects()
	}
	return caller(ctx, s, name, op, items)
}

// caller returns a call that does one operation on the items, whose results
// it checks for number only: correctness has its own tests.
func caller(ctx context.Context, s *client.Client, key string, op claviger.Operation, items [][]byte) (func(context.Context, int) error, error) {
	short := func(got int, err error) error {
		if err == nil && got != len(items) {
			err = fmt.Errorf("%d results for %d items", got, len(items))
		}
		return err
	}
	sign := func(ctx context.Context) ([][]byte, error) {
		resp, err := s.Sign(ctx, &pb.SignRequest{Key: key, Inputs: items})
		if err != nil {
			return nil, err
		}
		return resp.Signatures, nil
	}
	mac := func(ctx context.Context) ([][]byte, error) {
		resp, err := s.MAC(ctx, &pb.MacRequest{Key: key, Inputs: items})
		if err != nil {
			return nil, err
		}
		return resp.Macs, nil
	}
	plains := make([]*pb.Plain, len(items))
	for i, item := range items {
		plains[i] = &pb.Plain{Plaintext: item}
	}
	seal := func(ctx context.Context) ([][]byte, error) {
		resp, err := s.Seal(ctx, &pb.SealRequest{Key: key, Items: plains})
		if err != nil {
			return nil, err
		}
		return resp.Sealed, nil
	}
	protect := map[claviger.Operation]func(context.Context) ([][]byte, error){
		claviger.Sign: sign, claviger.Verify: sign, claviger.MAC: mac, claviger.VerifyMAC: mac, claviger.Seal: seal, claviger.Open: seal,
	}[op]
	if protect == nil {
		return nil, usagef("--operation is sign, verify, mac, verify-mac, seal or open, not %q", op)
	}
	if op.Protects() {
		return func(ctx context.Context, _ int) error {
			out, err := protect(ctx)
			return short(len(out), err)
		}, nil
	}
	protected, err := protect(ctx)
	if err != nil {
		return nil, err
	}
	process := processor(s, key, op, items, protected)
	return func(ctx context.Context, _ int) error { return short(process(ctx)) }, nil
}

// processor returns a call that verifies or opens what was protected.
func processor(s *client.Client, key string, op claviger.Operation, items, protected [][]byte) func(context.Context) (int, error) {
	signed, maced, sealed := make([]*pb.Signed, len(items)), make([]*pb.Maced, len(items)), make([]*pb.Sealed, len(items))
	for i, item := range items {
		signed[i] = &pb.Signed{Input: item, Signature: protected[i]}
		maced[i] = &pb.Maced{Input: item, Mac: protected[i]}
		sealed[i] = &pb.Sealed{Sealed: protected[i]}
	}
	switch op {
	case claviger.Verify:
		return func(ctx context.Context) (int, error) {
			resp, err := s.Verify(ctx, &pb.VerifyRequest{Key: key, Items: signed})
			if err != nil {
				return 0, err
			}
			return len(resp.Verdicts), nil
		}
	case claviger.VerifyMAC:
		return func(ctx context.Context) (int, error) {
			resp, err := s.VerifyMAC(ctx, &pb.VerifyMacRequest{Key: key, Items: maced})
			if err != nil {
				return 0, err
			}
			return len(resp.Verdicts), nil
		}
	}
	return func(ctx context.Context) (int, error) {
		resp, err := s.Open(ctx, &pb.OpenRequest{Key: key, Items: sealed})
		if err != nil {
			return 0, err
		}
		return len(resp.Items), nil
	}
}

func (a *app) benchOne(ctx context.Context, b benchFlags) error {
	return a.onRig(ctx, "", func(ctx context.Context, r *rig) error {
		m, err := r.measure(ctx, b)
		if err != nil {
			return err
		}
		raw, err := a.raw(ctx, b)
		if err != nil {
			return err
		}
		w := a.stdout
		fmt.Fprintf(w, "%s, %s, %d at once, batches of %d, over %s\n", b.algorithm, orDefault(b), b.concurrency, b.batch, b.transport)
		fmt.Fprintf(w, "throughput      %.0f operations/s (%d calls failed)\n", m.items, m.failures)
		fmt.Fprintf(w, "latency         p50 %v  p99 %v  p99.9 %v\n", m.quantile(.5), m.quantile(.99), m.quantile(.999))
		fmt.Fprintf(w, "CPU/operation   server %v  key process %v  together %v\n", m.serverCPU, m.keydCPU, m.total)
		fmt.Fprintf(w, "memory          server %d MiB  key process %d MiB\n", m.serverSize>>20, m.keydSize>>20)
		printRaw(w, raw, m)
		return nil
	})
}

func orDefault(b benchFlags) string {
	if b.operation != "" {
		return b.operation
	}
	return string(claviger.Algorithm(b.algorithm).Protects())
}

func printRaw(w io.Writer, raw rawRate, m measured) {
	fmt.Fprintf(w, "raw             %v of CPU, %.0f operations/s on all cores\n", raw.Protected, raw.AllCores)
	fmt.Fprintf(w, "unprotected     %v of CPU\n", raw.Plain)
	fmt.Fprintf(w, "ratio to raw    CPU %.2fx, rate %.0f %%\n", float64(m.total)/float64(raw.Protected), 100*m.items/raw.AllCores)
}
