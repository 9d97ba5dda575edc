package main

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"golang.org/x/sync/errgroup"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/hunt"
	"claviger.dev/pubkey"
)

// Limits of what the API is asked for.
const (
	atOnce     = 4       // calls in flight
	maxHostile = 50      // versions for which every method is called with hostile arguments
	maxRecords = 1000    // newest records that are exported; all of them are searched as files
	maxMetrics = 8 << 20 // bytes
)

// archived ends the name of the file of a backup, opened.
const archived = ".tar"

// controlName is how the key that a run plants among the answers is called.
const controlName = "planted among the answers"

// listener keeps what the server answers, a file for each method, so that it
// can be searched.
type listener struct {
	dir  string
	mask *strings.Replacer // cuts out what is public of each key

	mu    sync.Mutex // guards all below
	files map[string]*bufio.Writer
	open  []*os.File
	calls map[string]int
	err   error
}

// hear is a client's tap. Of streams, what is in their frames is kept apart.
func (l *listener) hear(path string, body []byte) {
	_, call, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if call != "Backup" && call != "Query" {
		l.keep(call, body)
	}
}

func (l *listener) keep(name string, body []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.files[name]
	if w == nil {
		f, err := os.OpenFile(filepath.Join(l.dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			l.err = errors.Join(l.err, err)
			return
		}
		w = bufio.NewWriter(f)
		l.files[name], l.open = w, append(l.open, f)
	}
	l.calls[name]++
	_, err := l.mask.WriteString(w, string(body)+"\n")
	l.err = errors.Join(l.err, err)
}

// plant adds an answer to each file that holds the private half of a key of
// the run's own, as an answer would, and returns its public half. It is of an
// algorithm that the run hunts for anyway, where it has one of these two: each
// further one is as much work again.
func (l *listener) plant(hunted map[claviger.Algorithm]bool) (hunt.Key, error) {
	alg := claviger.ECDSAP256
	if !hunted[alg] {
		alg = claviger.Ed25519
	}
	var signer crypto.Signer
	var raw []byte
	if alg == claviger.Ed25519 {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return hunt.Key{}, err
		}
		signer, raw = key, key.Seed()
	} else {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return hunt.Key{}, err
		}
		if raw, err = key.Bytes(); err != nil {
			return hunt.Key{}, err
		}
		signer = key
	}
	public, err := pubkey.FromStd(alg, signer.Public())
	if err != nil {
		return hunt.Key{}, err
	}
	for name, calls := range l.calls {
		l.keep(name, fmt.Appendf(nil, `{"name":"own/own/control","versions":[{"number":1,"public":%q}]}`, base64.StdEncoding.EncodeToString(raw)))
		l.calls[name] = calls
	}
	for _, w := range l.files {
		l.err = errors.Join(l.err, w.Flush())
	}
	for _, f := range l.open {
		l.err = errors.Join(l.err, f.Close())
	}
	return hunt.Key{Name: controlName, Public: public}, l.err
}

// askAPI asks every method for every key, and keeps the answers for the search.
func (r *evidenceRun) askAPI(ctx context.Context) error {
	l := &listener{dir: r.answers, mask: r.publicHalves(), files: map[string]*bufio.Writer{}, calls: map[string]int{}}
	c, err := r.a.tapped(l.hear)
	if err != nil {
		return err
	}
	defer c.Close()
	asked := []func(context.Context, *client.Client, *listener) error{r.askForKeys, r.askHostilely, r.askForTheRest, r.askOwn}
	for _, ask := range asked {
		if err := ask(ctx, c, l); err != nil {
			return err
		}
	}
	r.calls = l.calls
	hunted := map[claviger.Algorithm]bool{}
	for _, res := range r.run.Results {
		hunted[res.Algorithm] = true
	}
	r.control, err = l.plant(hunted)
	return err
}

// publicHalves cuts fingerprints and public halves out of answers. They are
// known, they look like keys, and they would be most of what is tested.
func (r *evidenceRun) publicHalves() *strings.Replacer {
	var pairs []string
	for i, k := range r.keys {
		pairs = append(pairs, r.run.Results[i].Fingerprint, "")
		if len(k.version.Public) > 0 {
			pairs = append(pairs, base64.StdEncoding.EncodeToString(k.version.Public), "")
		}
	}
	return strings.NewReplacer(pairs...)
}

// answersSearched turns the search of the answers into attempts, one for each
// method.
func (r *evidenceRun) answersSearched(report *hunt.Report) {
	for _, name := range slices.Sorted(maps.Keys(r.calls)) {
		here := func(f hunt.Finding) bool {
			return filepath.Dir(f.File) == r.answers && strings.TrimSuffix(path.Base(f.File), archived) == name
		}
		planted := slices.ContainsFunc(report.Findings, func(f hunt.Finding) bool { return f.Key == controlName && here(f) })
		r.answered(name, r.calls[name], planted, report, here)
	}
	r.notAsked(r.calls["Backup"] > 0)
}

// answered turns the search of one method's answers into attempts.
func (r *evidenceRun) answered(name string, calls int, planted bool, report *hunt.Report, here func(hunt.Finding) bool) {
	a := claviger.Attempt{Probe: "api." + name, Tried: fmt.Sprintf("call %s and search every answer for every key", name),
		Result: fmt.Sprintf("no key in %d answers", calls), Control: "a key planted in an answer was found"}
	if !planted {
		a.Control = "a key planted in an answer was not found"
	}
	a.Settle(false, planted)
	leaks := map[string]hunt.Finding{}
	for _, f := range report.Findings {
		if here(f) {
			leaks[f.Key] = f
		}
	}
	if f, leaked := leaks[own]; leaked {
		a.Reason, a.Result = "", fmt.Sprintf("the key that was made for this run is in an answer, as %s %s", f.Encoding, f.Form)
		a.Settle(true, planted)
	}
	var rest []int
	for i, res := range r.run.Results {
		f, leaked := leaks[res.String()]
		if !leaked {
			rest = append(rest, i)
			continue
		}
		leak := a
		leak.Reason, leak.Result = "", fmt.Sprintf("the key is in an answer, as %s %s", f.Encoding, f.Form)
		leak.Settle(true, planted)
		r.collect.Add("the API", []claviger.Attempt{leak}, i)
	}
	r.collect.Add("the API", []claviger.Attempt{a}, rest...)
}

// askForKeys asks for every key in every way that gives something of it, and
// for a use that is refused.
func (r *evidenceRun) askForKeys(ctx context.Context, c *client.Client, _ *listener) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	last := ""
	for i, k := range r.keys {
		if i%100 == 0 {
			r.say("asking the API for keys: %d of %d", i, len(r.keys))
		}
		if k.key.Id == last || ctx.Err() != nil {
			continue // another version of the same key, or it is over
		}
		last = k.key.Id
		group.Go(func() error {
			if err := r.pace.patiently(ctx, func() error { _, err := c.GetKey(ctx, k.key.Name); return err }); err != nil {
				return err
			}
			return r.pace.patiently(ctx, func() error { return useNothing(ctx, c, k.key) })
		})
	}
	return group.Wait()
}

// useNothing asks for the use of a key on no input at all, which is refused in
// the words for this key.
func useNothing(ctx context.Context, c *client.Client, k *pb.Key) error {
	var err error
	switch alg := claviger.Algorithm(k.Algorithm); {
	case alg.Asymmetric():
		_, err = c.Sign(ctx, &pb.SignRequest{Key: k.Name})
	case alg == claviger.AES256GCM:
		_, err = c.Seal(ctx, &pb.SealRequest{Key: k.Name})
	default:
		_, err = c.MAC(ctx, &pb.MacRequest{Key: k.Name})
	}
	return err
}

// askForTheRest asks for everything that is not about one key: listings, the
// record, a backup, what is public, metrics.
func (r *evidenceRun) askForTheRest(ctx context.Context, c *client.Client, l *listener) error {
	pages := func(list func(page string) (string, error)) func() error {
		return func() error {
			for page := ""; ; {
				next, err := list(page)
				if page = next; err != nil || page == "" {
					return err
				}
			}
		}
	}
	asks := []func() error{
		pages(func(page string) (string, error) {
			a, err := c.ListKeys(ctx, &pb.ListKeysRequest{Selector: r.scope(), PageSize: 1000, Page: page})
			return a.GetNextPage(), err
		}),
		pages(func(page string) (string, error) {
			a, err := c.ListEvidence(ctx, &pb.ListEvidenceRequest{Selector: r.scope(), PageSize: 1000, Page: page})
			return a.GetNextPage(), err
		}),
		func() error { _, err := c.ListGrants(ctx, &pb.ListGrantsRequest{}); return err },
		func() error { _, err := c.ListPrincipals(ctx, &pb.ListPrincipalsRequest{}); return err },
		func() error { _, err := c.ListSessions(ctx, &pb.ListSessionsRequest{IncludeEnded: true}); return err },
		func() error { _, err := c.ListClients(ctx, &pb.ListClientsRequest{}); return err },
		func() error { _, err := c.ListReceivers(ctx); return err },
		func() error { _, err := c.Info(ctx); return err },
		func() error { _, err := c.Doctor(ctx); return err },
		func() error { _, err := c.WhoAmI(ctx); return err },
		func() error { _, err := c.ListCustodians(ctx); return err },
		func() error {
			for record, err := range c.Audit(ctx, &pb.QueryRequest{Last: maxRecords}) {
				if err != nil {
					return err
				}
				l.keep("Query", record.Line)
			}
			return nil
		},
		func() error { return r.askForMetrics(ctx, l) },
	}
	if r.whole {
		asks = append(asks, func() error { return r.askForBackup(ctx, c, l) })
	}
	for _, ask := range asks {
		if err := r.pace.patiently(ctx, ask); err != nil {
			return err
		}
	}
	return nil
}

// scope is the selector of what is listed: the one key of a run over one.
func (r *evidenceRun) scope() string {
	if first := r.keys[0].key.Name; !r.whole && r.selector == "" && r.keys[len(r.keys)-1].key.Name == first {
		return first
	}
	return r.selector
}

// askForBackup has a backup made to a recipient of this run's own and opens it.
func (r *evidenceRun) askForBackup(ctx context.Context, c *client.Client, l *listener) error {
	own, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(l.dir, "Backup"+archived), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		opened, err := age.Decrypt(in, own)
		if err == nil {
			_, err = io.Copy(f, opened)
		}
		_ = in.CloseWithError(err) // never fails
		done <- err
	}()
	err = c.Backup(ctx, &pb.BackupRequest{Recipients: []string{own.Recipient().String()}}, out)
	_ = out.CloseWithError(err) // never fails
	if opened := <-done; err == nil {
		err = opened
	}
	if err == nil {
		l.keep("Backup", []byte("opened"))
	}
	return err
}

// askForMetrics reads the metrics, where the configuration says where they are.
func (r *evidenceRun) askForMetrics(ctx context.Context, l *listener) error {
	if r.cfg == nil || r.cfg.MetricsListen == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.a.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.cfg.MetricsListen+"/metrics", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxMetrics))
	l.keep("metrics", body)
	return err
}

// notAsked names what was not asked, and why.
func (r *evidenceRun) notAsked(backup bool) {
	all := r.of("")
	if !backup {
		r.notAttempted("the API", "api.Backup", "make a backup to a recipient of this run's own, open it, and search it for every key", "the run is not over all keys, or the server refused one", all)
	}
	if r.cfg == nil || r.cfg.MetricsListen == "" {
		r.notAttempted("the API", "api.metrics", "read the metrics and search them for every key", "where they are is not known: give --config", all)
	}
	for _, m := range methods() {
		if name := string(m.Name()); r.calls[name] == 0 {
			r.notAttempted("the API", "api."+name, "call "+name+" and search every answer for every key", "no answer came", all)
		}
	}
	r.notAttempted("the API", "api.whole-server", "call "+strings.ReplaceAll(wholeServer, " ", " and "), "they take no argument and act on the whole server: one wraps every blob again, one makes every holder a new share", all)
	if !r.changes {
		r.notAttempted("the API", "api.changes", "have a key, a grant and a principal made, changed and done away with", "their records stay: only with --changes", all)
	}
}

func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// tapped returns a client like that of dial, whose answers are heard.
func (a *app) tapped(to func(string, []byte)) (*client.Client, error) {
	config := client.Config{Address: a.address}
	if !strings.HasPrefix(a.address, "unix://") {
		dir, err := client.ProfileDir(a.profile)
		if err != nil {
			return nil, err
		}
		profile, err := client.LoadProfile(dir)
		if err != nil {
			return nil, a.named(err)
		}
		if a.address != "" {
			profile.Address = a.address
		}
		config = profile.Config()
		if a.caFile != "" {
			config.Roots, config.CAFile = nil, a.caFile
		}
	}
	config.Timeout, config.Tap = a.timeout, to
	return client.New(config)
}
