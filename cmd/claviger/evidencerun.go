package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/evidence"
	"claviger.dev/internal/hunt"
	"claviger.dev/internal/server"
	"claviger.dev/pubkey"
)

// evidenceRun is one run: what was asked for, and what it knows so far.
type evidenceRun struct {
	a *app
	s *client.Client

	selector string
	asRoot   bool
	loud     bool
	noSearch bool
	changes  bool
	dataDir  string
	config   string
	backups  []string
	out      string
	nonce    string

	throwAway, officerPIN string // of --loud

	cfg        *server.Config // nil without --config
	run        *evidence.Run
	keys       []subjectKey // of the results, in their order
	collect    *evidence.Collector
	custodians map[claviger.Custodian]*pb.Custodian
	serverPID  int
	local      bool // the server is on this host
	whole      bool // it is over every key

	answers string         // directory of what the API answered
	calls   map[string]int // how often it did, by method
	control hunt.Key       // planted among the answers
	made    []hunt.Key     // that the run made for itself, with changes
	pace    pace           // of calls
}

// subjectKey is what a result is about.
type subjectKey struct {
	key     *pb.Key
	version *pb.Version
}

const loudText = "loud attempts alarm a device, or count against a PIN or a lockout; they are made only with --loud, and those that\n" +
	"need a token of their own only on that one"

func (a *app) evidenceRun() *cobra.Command {
	r := &evidenceRun{a: a}
	c := &cobra.Command{
		Use: "run [KEY...]", Short: "Attempt to take keys out of custody, and have what was seen signed",
		Long: "Attempt every export path that there is for the custodian of each key, from this process, and report one line\n" +
			"for each: what was attempted, what came back, the verdict, and what the same attempt gave on a deliberately weak\n" +
			"key or process of its own. A probe whose control does not leak is broken, and shows nothing.\n\n" +
			"The server judges the run again, records the custody levels and returns a signed statement. By default every key\n" +
			"is examined. Nothing is attempted with root's authority without --as-root.\n\n" +
			"Loud attempts alarm a device, or count against a PIN or a lockout: they are made only with --loud, and those\n" +
			"that need a token of their own only on that one.\n\n" +
			"The exit status is 0 when all that was attempted held, 2 when a key leaked, and 1 when a probe was broken.",
		Example: "  claviger evidence run --out statement.json\n" +
			"  sudo claviger evidence run --as-root --config /etc/claviger/claviger.toml prod/billing/session-cookie",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			if r.s = s; c.Flags().Changed("nonce") && r.nonce == "" {
				return usagef("--nonce is empty")
			}
			return r.do(c.Context(), args)
		}),
	}
	f := c.Flags()
	f.StringVar(&r.selector, "selector", "", "examine the keys that match, such as 'prod/*/*'")
	f.BoolVar(&r.asRoot, "as-root", false, "also read and dump the memory of key process and server with root's authority; nothing is changed in them")
	f.BoolVar(&r.loud, "loud", false, "also attempt what alarms a device, or counts against a PIN or a lockout")
	f.BoolVar(&r.changes, "changes", false, "also call the methods that change the server, on a key, a grant and a principal that the run makes and does away with; their records stay")
	f.BoolVar(&r.noSearch, "no-store-search", false, "do not search the files of the server for keys")
	f.StringVar(&r.dataDir, "data-dir", "", "the server's directory; of --config, or beside the local socket, when left out")
	f.StringVar(&r.config, "config", "", "the server's configuration file: it is searched too, and says where token and metrics are")
	f.StringArrayVar(&r.backups, "backup", nil, "a backup, log or any other file or directory to search too; repeatable")
	f.StringVar(&r.out, "out", "", "file for the signed statement; '-' for standard output")
	f.StringVar(&r.throwAway, "throw-away", "", "with --loud: RFC 7512 URI of a PKCS#11 token that may be locked and cleared")
	f.StringVar(&r.officerPIN, "so-pin-file", "", "with --throw-away: file with the PIN of its security officer")
	f.StringVar(&r.nonce, "nonce", "", "64 hex digits from who will verify the statement; random when left out")
	return c
}

// do makes the run.
func (r *evidenceRun) do(ctx context.Context, names []string) error {
	yield()
	if err := r.begin(ctx, names); err != nil {
		return err
	}
	if !r.loud && (r.any(claviger.P11) || r.any(claviger.TPM)) {
		r.a.say(loudText)
	}
	answers, err := newAnswers(os.TempDir())
	if err != nil {
		return err
	}
	defer answers.remove()
	r.answers = answers.path
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"attacking the key process", r.attackSoft},
		{"asking the API for keys", r.askAPI},
		{"searching answers and files", r.search},
		{"attacking TPM keys", r.attackTPM},
		{"attacking PKCS#11 keys", r.attackToken},
	}
	for i, s := range steps {
		r.say("[%d/%d] %s", i+1, len(steps)+1, s.name)
		if err := s.do(ctx); err != nil {
			r.say("")
			return err
		}
	}
	r.run.Finished = time.Now().UTC().Round(0)
	r.say("[%d/%d] having the run judged and signed", len(steps)+1, len(steps)+1)
	file, err := r.submit(ctx)
	r.say("")
	if err != nil {
		return errors.Join(r.a.evidenceReport(r.run), err)
	}
	if r.out != "" {
		if err := r.a.write(r.out, file); err != nil {
			return err
		}
		if r.out == "-" {
			return r.a.evidenceExit(r.run)
		}
	}
	if err := r.a.evidenceReport(r.run); err != nil {
		return err
	}
	return r.a.evidenceExit(r.run)
}

// say shows what goes on, on a terminal.
func (r *evidenceRun) say(format string, args ...any) {
	if r.a.interactive() {
		fmt.Fprintf(r.a.stderr, "\r\x1b[K"+format, args...)
	}
}

// begin finds out what there is to examine.
func (r *evidenceRun) begin(ctx context.Context, names []string) error {
	if r.config != "" {
		cfg, err := server.Load(r.config)
		if err != nil {
			return err
		}
		r.cfg, r.dataDir = &cfg, cmp.Or(r.dataDir, cfg.DataDir)
	}
	socket, local := strings.CutPrefix(r.a.address, "unix://")
	if r.local = local; local && r.dataDir == "" {
		r.dataDir = filepath.Dir(filepath.Dir(socket))
	}
	nonce := make([]byte, evidence.NonceSize)
	_, _ = rand.Read(nonce) // it never fails
	if r.nonce != "" {
		given, err := hex.DecodeString(r.nonce)
		if err != nil || len(given) != evidence.NonceSize {
			return usagef("--nonce is %d hex digits", 2*evidence.NonceSize)
		}
		nonce = given
	}
	now := time.Now().UTC().Round(0)
	r.run = &evidence.Run{ID: claviger.NewID(now), Nonce: nonce, Started: now, Loud: r.loud, Host: hostFacts(r.asRoot)}
	if err := r.list(ctx, names); err != nil {
		return err
	}
	r.collect = r.run.Collect()
	list, err := r.s.ListCustodians(ctx)
	if err != nil {
		return err
	}
	if r.local {
		r.pace.server = int(list.ServerPid)
	}
	r.serverPID, r.custodians = int(list.ServerPid), map[claviger.Custodian]*pb.Custodian{}
	for _, c := range list.Custodians {
		r.custodians[claviger.Custodian(c.Kind)] = c
	}
	return nil
}

// list takes the versions that exist of the chosen keys.
func (r *evidenceRun) list(ctx context.Context, names []string) error {
	var keys []*pb.Key
	r.whole = len(names) == 0 && r.selector == ""
	switch {
	case len(names) > 0 && r.selector != "":
		return usagef("give names or --selector, not both")
	case len(names) > 0:
		for _, name := range names {
			k, err := r.s.GetKey(ctx, name)
			if err != nil {
				return err
			}
			keys = append(keys, k)
		}
	default:
		for req := (&pb.ListKeysRequest{Selector: r.selector, PageSize: 1000}); ; {
			page, err := r.s.ListKeys(ctx, req)
			if err != nil {
				return err
			}
			keys = append(keys, page.Keys...)
			if req.Page = page.NextPage; req.Page == "" {
				break
			}
		}
	}
	slices.SortFunc(keys, func(a, b *pb.Key) int { return strings.Compare(a.Name, b.Name) })
	keys = slices.CompactFunc(keys, func(a, b *pb.Key) bool { return a.Name == b.Name })
	for _, k := range keys {
		for _, v := range k.Versions {
			if claviger.State(v.State) == claviger.Destroyed {
				continue
			}
			r.keys = append(r.keys, subjectKey{k, v})
			r.run.Results = append(r.run.Results, evidence.Result{Groups: []int{}, Subject: evidence.Subject{
				Name: claviger.Name(k.Name), KeyID: claviger.ID(k.Id), Version: v.Number, Algorithm: claviger.Algorithm(k.Algorithm),
				Custodian: claviger.Custodian(k.Custodian), Origin: claviger.Origin(v.Origin), Fingerprint: v.Fingerprint, Reference: v.Reference,
			}})
		}
	}
	if len(r.keys) == 0 {
		return usagef("there is no version of a key to examine")
	}
	return nil
}

// any reports whether a custodian has a version in the run.
func (r *evidenceRun) any(c claviger.Custodian) bool { return len(r.of(c)) > 0 }

// of returns the indexes of a custodian's results, of all when it is "".
func (r *evidenceRun) of(c claviger.Custodian) []int {
	var out []int
	for i, res := range r.run.Results {
		if c == "" || res.Custodian == c {
			out = append(out, i)
		}
	}
	return out
}

// hunted returns the versions with a public half, for the hunter.
func (r *evidenceRun) hunted() ([]hunt.Key, error) {
	var out []hunt.Key
	for i, k := range r.keys {
		if alg := claviger.Algorithm(k.key.Algorithm); alg.Asymmetric() {
			public, err := pubkey.Parse(alg, k.version.Public)
			if err != nil {
				return nil, err
			}
			out = append(out, hunt.Key{Name: r.run.Results[i].String(), Public: public})
		}
	}
	return out, nil
}

// notAttempted notes that attempts were not made, and why.
func (r *evidenceRun) notAttempted(about, probe, tried, why string, results []int) {
	r.collect.Add(about, []claviger.Attempt{{Probe: probe, Tried: tried, Verdict: claviger.NotAttempted, Reason: why}}, results...)
}

// submit has the server judge the run and sign what it shows.
func (r *evidenceRun) submit(ctx context.Context) ([]byte, error) {
	text, err := r.run.Encode()
	if err != nil {
		return nil, err
	}
	answer, err := r.s.SubmitEvidence(ctx, &pb.SubmitEvidenceRequest{Run: text})
	if err != nil {
		return nil, err
	}
	judged, _, err := r.a.openStatement(ctx, r.s, answer.Envelope)
	if err != nil {
		return nil, err
	}
	if string(judged.Nonce) != string(r.run.Nonce) {
		return nil, claviger.Errorf(claviger.Internal, "the server signed another run than it was given", "do not use its statement")
	}
	r.run = judged
	return answer.Envelope, nil
}

// openStatement checks a statement's form and signature with the roots of the
// server itself.
func (a *app) openStatement(ctx context.Context, s *client.Client, file []byte) (*evidence.Run, []*x509.Certificate, error) {
	info, err := s.Info(ctx)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	for _, der := range info.Roots {
		if c, err := x509.ParseCertificate(der); err == nil {
			roots.AddCert(c)
		}
	}
	return evidence.Open(file, roots)
}

// yield lets everything else on this host go first: what a run computes can
// wait. Priority is that of a thread (setpriority(2)), and threads inherit it
// from the one that made them.
func yield() {
	for range 2 { // one that a thread made meanwhile is caught the second time
		tasks, _ := os.ReadDir("/proc/self/task") // without it the run is only less polite
		for _, t := range tasks {
			if tid, err := strconv.Atoi(t.Name()); err == nil {
				_ = unix.Setpriority(unix.PRIO_PROCESS, tid, 19)
			}
		}
	}
}

// hostFacts says where this process runs.
func hostFacts(asRoot bool) evidence.Host {
	name, _ := os.Hostname() // "" says that it is not known
	var u unix.Utsname
	_ = unix.Uname(&u) // and so do zeros
	return evidence.Host{Name: name, Kernel: unix.ByteSliceToString(u.Release[:]), Arch: runtime.GOARCH, UID: os.Geteuid(), AsRoot: asRoot}
}
