package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/evidence"
	"claviger.dev/internal/evidence/probe"
	"claviger.dev/internal/hunt"
	"claviger.dev/internal/p11"
)

// attackSoft makes the attempts on the key process and on the server.
func (r *evidenceRun) attackSoft(ctx context.Context) error {
	soft := r.of(claviger.Soft)
	keyd := r.custodians[claviger.Soft]
	switch {
	case len(soft) == 0:
		return nil
	case !r.local:
		r.notAttempted("the key process", "soft.processes", "attack the key process and the server from outside",
			"the server was reached over the network: run this on its host, with --address unix://...", soft)
		return nil
	case keyd == nil || !keyd.Reachable:
		r.notAttempted("the key process", "soft.processes", "attack the key process and the server from outside", "the key process does not answer", soft)
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	config := probe.Config{KeydPID: int(keyd.Pid), ServerPID: r.serverPID, AsRoot: r.asRoot, Child: []string{exe, "evidence", attemptChild}}
	if twin := filepath.Join(filepath.Dir(exe), "claviger-keyd"); fileExists(twin) {
		config.Keyd = twin
	}
	if config.Keys, err = r.hunted(); err != nil {
		return err
	}
	if r.anySymmetric() {
		config.Symmetric = r.searchSymmetric
	}
	attempts, err := probe.Soft(ctx, config)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		r.notAttempted("the key process", "soft.processes", "attack the key process and the server from outside", err.Error(), soft)
	default:
		r.collect.Add("the key process", attempts, soft...)
	}
	return nil
}

// search looks for every key in what the server answered and in what it wrote,
// in one pass: what stands in several places is tested once.
func (r *evidenceRun) search(ctx context.Context) error {
	paths := slices.Clone(r.backups)
	if r.local && r.dataDir != "" {
		paths = append(paths, r.dataDir)
	}
	if r.config != "" {
		paths = append(paths, r.config)
	}
	why := ""
	switch {
	case r.noSearch:
		why = "--no-store-search"
	case len(paths) == 0:
		why = "no file of the server is known here: give --data-dir, --config or --backup"
	}
	if why != "" {
		r.notAttempted("the store", "store.search", "search the server's files for keys", why, r.of(""))
		paths = nil
	}
	report, err := r.hunt(ctx, append(slices.Clone(paths), r.answers), append(r.made, r.control)...)
	if err != nil {
		return err
	}
	r.answersSearched(report)
	if len(paths) > 0 {
		r.searched("the store", "store.search", "search "+strings.Join(paths, ", "), report)
	}
	return nil
}

// hunt looks for all keys of the run in paths. More keys can be looked for
// besides, as controls.
func (r *evidenceRun) hunt(ctx context.Context, paths []string, more ...hunt.Key) (*hunt.Report, error) {
	keys, err := r.hunted()
	if err != nil {
		return nil, err
	}
	names, err := r.otherNames(ctx)
	if err != nil {
		return nil, err
	}
	config := probe.SearchConfig{Keys: append(keys, more...), Names: names, Paths: paths}
	if r.anySymmetric() {
		config.Symmetric = r.searchSymmetric
	}
	if r.a.interactive() {
		config.Progress = func(p hunt.Progress) { r.say("searching files: %d MB, %d found", p.Bytes>>20, p.Findings) }
	}
	return probe.Search(ctx, config)
}

// anySymmetric reports whether the run is about a symmetric key of the key
// process.
func (r *evidenceRun) anySymmetric() bool {
	return slices.ContainsFunc(r.run.Results, func(res evidence.Result) bool { return res.Custodian == claviger.Soft && !res.Algorithm.Asymmetric() })
}

// otherNames returns the names of keys that the run is not about: what the server
// wrote is full of them.
func (r *evidenceRun) otherNames(ctx context.Context) (names []string, err error) {
	if r.whole {
		return nil, nil
	}
	for req := (&pb.ListKeysRequest{PageSize: 1000}); len(names) < maxNames; {
		page, err := r.s.ListKeys(ctx, req)
		if err != nil {
			return nil, err
		}
		for _, k := range page.Keys {
			names = append(names, k.Name)
		}
		if req.Page = page.NextPage; req.Page == "" {
			break
		}
	}
	return names, nil
}

// maxNames is how many names are asked for: what follows is like them.
const maxNames = 20_000

// searchSymmetric has the key process look for its symmetric keys.
func (r *evidenceRun) searchSymmetric(ctx context.Context, haystack []byte) ([]probe.Hit, error) {
	answer, err := r.s.SearchMaterial(ctx, &pb.SearchMaterialRequest{Selector: r.selector, Symmetric: true, Haystack: haystack})
	if err != nil {
		return nil, err
	}
	var hits []probe.Hit
	for _, h := range answer.Hits {
		hit := probe.Hit{Key: fmt.Sprintf("%s#%d", h.Key, h.Version), Offset: int(h.Offset), Encoding: h.Encoding}
		i := slices.IndexFunc(r.run.Results, func(res evidence.Result) bool { return res.String() == hit.Key })
		if i < 0 {
			continue // a key that this run is not about
		}
		if raw, err := hex.DecodeString(r.run.Results[i].Fingerprint); err == nil && len(raw) == len(hit.Fingerprint) {
			copy(hit.Fingerprint[:], raw)
		}
		hits = append(hits, hit)
	}
	return hits, nil
}

// searched turns a search into attempts: held for the versions that were not
// found, leaked for those that were. The answers of the API are not of it.
func (r *evidenceRun) searched(about, name, tried string, report *hunt.Report) {
	found := map[string][]hunt.Finding{}
	for _, f := range report.Findings {
		if filepath.Dir(f.File) != r.answers {
			found[f.Key] = append(found[f.Key], f)
		}
	}
	planted, seen := 0, 0
	for _, c := range report.Controls {
		planted, seen = planted+c.Planted, seen+c.Found
	}
	s := report.Searched
	a := claviger.Attempt{Probe: name, Tried: tried, Control: fmt.Sprintf("%d of %d planted keys were found", seen, planted),
		Result: fmt.Sprintf("nothing found in %d files, %d members, %d bytes, the answers of the API among them", s.Files, s.Members, s.Bytes)}
	a.Settle(false, planted > 0 && seen == planted)
	if report.Verdict == hunt.NotSearched && a.Verdict == claviger.Held {
		a.Verdict, a.Reason = claviger.NotAttempted, "of some target nothing could be searched"
	}
	var rest []int
	for i, res := range r.run.Results {
		places := found[res.String()]
		if len(places) == 0 {
			rest = append(rest, i)
			continue
		}
		leak := a
		leak.Reason, leak.Result = "", "found: "+huntPlace(places[0].Place, places[0].Offset)+" as "+places[0].Encoding+" "+places[0].Form
		if n := len(places) - 1; n > 0 {
			leak.Result += fmt.Sprintf(", and in %d more places", n)
		}
		leak.Settle(true, true)
		r.collect.Add(about, []claviger.Attempt{leak}, i)
	}
	r.collect.Add(about, []claviger.Attempt{a}, rest...)
	r.run.Scope = append(r.run.Scope, fmt.Sprintf("%s: %d files, %d processes, %d bytes searched", about, s.Files, s.Processes, s.Bytes))
	for _, reason := range slices.Sorted(maps.Keys(report.GapCount)) {
		r.run.Scope = append(r.run.Scope, fmt.Sprintf("%s: not searched: %d: %s", about, report.GapCount[reason], reason))
	}
}

// attackTPM has each TPM key certified with this run's nonce, checks that here,
// and has the device process attack the key with all its authority.
func (r *evidenceRun) attackTPM(ctx context.Context) error {
	for _, i := range r.of(claviger.TPM) {
		res := &r.run.Results[i]
		answer, err := r.s.RunAttest(ctx, &pb.RunAttestRequest{Key: string(res.KeyID), Version: res.Version, Nonce: evidence.Challenge(r.run.Nonce, res.KeyID, res.Version)})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			r.notAttempted("TPM keys", "tpm.certify", "have the key certified with the run's nonce", safe(err), []int{i})
			continue
		}
		res.Attestation = &evidence.Attestation{KeyPublic: answer.KeyPublic, Attest: answer.Attest, Signature: answer.Signature}
		report := evidence.Report{AKPublic: answer.AkPublic, EKPublic: answer.EkPublic, EKCertificates: answer.EkCertificates}
		r.collect.Add("TPM keys", []claviger.Attempt{certified(r.run, *res, report)}, i)
		r.probeDevice(ctx, "TPM keys", "tpm.device", i)
	}
	return nil
}

// certified checks an attestation here. Its control is the same attestation
// with another nonce and with its signature damaged: both must be refused.
func certified(run *evidence.Run, res evidence.Result, report evidence.Report) claviger.Attempt {
	a := claviger.Attempt{Probe: "tpm.certify", Tried: "have the key certified by the attestation key with the run's nonce, and check nonce, name, signature and attributes",
		Control: "refused when the nonce is another, and when the signature is damaged"}
	replayed := *run
	replayed.Nonce = slices.Clone(run.Nonce)
	replayed.Nonce[0] ^= 1
	damaged := *res.Attestation
	damaged.Attest = bytes.Clone(damaged.Attest)
	if n := len(damaged.Attest); n > 0 {
		damaged.Attest[n-1] ^= 1
	}
	other := res
	other.Attestation = &damaged
	refuses := !res.Prove(&replayed, &report, nil).Certified && !other.Prove(run, &report, nil).Certified
	proof := res.Prove(run, &report, nil)
	switch {
	case !refuses:
		a.Settle(false, false)
	case proof.Certified:
		a.Result, a.Verdict = "certified: the key was made in this TPM and cannot be duplicated", claviger.Held
	case proof.Exposes:
		a.Result, a.Verdict = proof.Finding, claviger.Leaked
	default:
		a.Result, a.Verdict, a.Reason = proof.Finding, claviger.Broken, "the attestation is refused: "+proof.Finding
	}
	return a
}

// probeDevice has the server's device process attack a key.
func (r *evidenceRun) probeDevice(ctx context.Context, about, name string, i int) {
	res := r.run.Results[i]
	answer, err := r.s.RunProbe(ctx, &pb.RunProbeRequest{Key: string(res.KeyID), Version: res.Version, Loud: r.loud})
	if err != nil {
		r.notAttempted(about, name, "have the device process attack the key", safe(err), []int{i})
		return
	}
	var attempts []claviger.Attempt
	for _, a := range answer.Attempts {
		attempts = append(attempts, claviger.Attempt{Probe: a.Probe, Tried: a.Tried, Result: a.Result, Verdict: claviger.Verdict(a.Verdict), Control: a.Control, Reason: a.Reason})
	}
	r.collect.Add(about, attempts, i)
}

// attackToken attacks the keys of the token in a session of this run's own,
// where the caller can read the PIN, and through the server otherwise.
func (r *evidenceRun) attackToken(ctx context.Context) error {
	token := r.of(claviger.P11)
	if len(token) == 0 {
		return nil
	}
	results, err := r.ownSession(ctx, token)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		r.notAttempted("PKCS#11 keys", "p11.own-session", "attack the keys in a session of this run's own", safe(err), token)
	}
	for _, i := range token {
		res := r.run.Results[i]
		at := slices.IndexFunc(results, func(x p11.Result) bool { return x.Key == string(res.Name) && x.Version == res.Version })
		if at < 0 {
			r.probeDevice(ctx, "PKCS#11 keys", "p11.device", i)
			continue
		}
		if text := results[at].Error; text != "" {
			r.notAttempted("PKCS#11 keys", "p11.own-session", "attack the key in a session of this run's own", text, []int{i})
		}
		r.collect.Add("PKCS#11 keys", results[at].Attempts, i)
	}
	return nil
}

// probeDeadline bounds the attack on all keys of a token.
const probeDeadline = 30 * time.Minute

// ownSession starts claviger-p11d on the token of the configuration and hands
// it the keys, a line for each.
func (r *evidenceRun) ownSession(ctx context.Context, token []int) ([]p11.Result, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	program := filepath.Join(filepath.Dir(exe), "claviger-p11d")
	switch {
	case r.cfg == nil || r.cfg.PKCS11.URI == "":
		return nil, errors.New("the token is not known: give --config with a [pkcs11] section")
	case r.cfg.PKCS11.PINCredential != "":
		return nil, errors.New("the PIN is a systemd credential, which only the server's own process has")
	case !fileExists(program):
		return nil, errors.New("claviger-p11d is not installed: it is built where a C compiler is")
	}
	args := []string{"-probe", "-uri", r.cfg.PKCS11.URI}
	if r.loud {
		args = append(args, "-loud")
		if r.throwAway != "" {
			args = append(args, "-throw-away", r.throwAway, "-so-pin-file", r.officerPIN)
		}
	}
	for _, v := range r.cfg.PKCS11.Variables() {
		args = append(args, "-env", v)
	}
	var lines bytes.Buffer
	enc := json.NewEncoder(&lines)
	for _, i := range token {
		k, res := r.keys[i], r.run.Results[i]
		if err := enc.Encode(p11.Target{Key: k.key.Name, KeyID: res.KeyID, Version: res.Version, Algorithm: res.Algorithm, Recipe: claviger.PlainRecipe,
			Origin: res.Origin, Reference: res.Reference, Public: k.version.Public, Fingerprint: res.Fingerprint}); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, probeDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var talk bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stderr = []string{}, &lines, &talk
	out, err := cmd.Output()
	if err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(talk.String()), "\n")
		return nil, fmt.Errorf("claviger-p11d: %w: %.200s", err, first)
	}
	var results []p11.Result
	in := bufio.NewScanner(bytes.NewReader(out))
	in.Buffer(nil, maxInput)
	for in.Scan() {
		var result p11.Result
		if err := json.Unmarshal(in.Bytes(), &result); err != nil {
			return nil, fmt.Errorf("claviger-p11d says what is not understood: %w", err)
		}
		results = append(results, result)
	}
	return results, in.Err()
}

// safe returns the text of an error that may be shown.
func safe(err error) string {
	if e, ok := errors.AsType[*claviger.Error](err); ok {
		return e.Msg
	}
	return err.Error()
}
