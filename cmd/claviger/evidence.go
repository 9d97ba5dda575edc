package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/hunt"
	"claviger.dev/pubkey"
)

func (a *app) evidenceCommand() *cobra.Command {
	return noun("evidence", "Show by attempts where keys are and are not", a.evidenceRun(), a.evidenceVerify(), a.evidenceList(), a.evidenceShow(), a.evidenceHunt(), a.evidenceAttempt())
}

func (a *app) evidenceHunt() *cobra.Command {
	var public []string
	var pids []int
	var config hunt.Config
	var report bool
	c := &cobra.Command{
		Use: "hunt --public KEY PATH|pid:N...", Short: "Search files and memory for private halves, knowing only the public ones",
		Long: "Search files, directories, disk images, core dumps, archives and the memory of processes for the private half\n" +
			"of a key, knowing only its public half. KEY is a file (PEM or JWK), the name of a key on the server, all of\n" +
			"whose versions are hunted, or session:ID for the key of a session. What is found is reported by place and offset; its bytes are never shown.\n\n" +
			"The exit status is 0 when nothing was found, 2 when something was, and 1 when the hunt can say nothing: a target\n" +
			"could not be searched, or the key that each run plants for itself was missed. Read 'not searched' before\n" +
			"believing 'nothing found'.",
		Example: "  claviger evidence hunt --public prod/billing/session-cookie /var/backups /srv\n" +
			"  claviger evidence hunt --public tls.pub --public token.jwk core.1234 pid:1234",
		RunE: func(c *cobra.Command, args []string) error {
			targets, err := huntTargets(args, pids)
			if err != nil {
				return err
			}
			for _, name := range public {
				keys, err := a.huntKeys(c, name)
				if err != nil {
					return err
				}
				config.Keys = append(config.Keys, keys...)
			}
			if report && !slices.ContainsFunc(config.Keys, func(k hunt.Key) bool { return strings.Contains(k.Name, versionMark) }) {
				return usagef("--report tells the server of a copy of its own keys: name one with --public")
			}
			if a.interactive() {
				config.Progress = a.huntProgress(c.Context(), targets)
			}
			result, err := hunt.Run(c.Context(), config, targets)
			if a.interactive() {
				fmt.Fprint(a.stderr, "\r\x1b[K")
			}
			if err != nil {
				return err
			}
			if report {
				if err := a.reportCopies(c.Context(), result); err != nil {
					return errors.Join(err, a.huntReport(result))
				}
			}
			return a.huntReport(result)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&public, "public", nil, "public key: a PEM or JWK file, the name of a key on the server, or session:ID; repeatable")
	f.IntSliceVar(&pids, "pid", nil, "process whose memory is searched, like pid:N; repeatable")
	f.BoolVar(&config.EveryByte, "every-byte", false, "test raw windows at every byte: slow on binary data")
	f.BoolVar(&report, "report", false, "tell the server where a key of its own was found: it is exposed at once, and its owner is told")
	f.StringVar(&config.State, "resume", "", "file to save progress in, and to go on from when it is there")
	_ = c.MarkFlagRequired("public")
	return c
}

// huntTargets reads PATH, pid:N, or N where there is no such file.
func huntTargets(args []string, pids []int) ([]hunt.Target, error) {
	var out []hunt.Target
	for _, arg := range args {
		number, isPID := strings.CutPrefix(arg, "pid:")
		pid, err := strconv.Atoi(number)
		if _, missing := os.Lstat(arg); !isPID && err == nil && errors.Is(missing, fs.ErrNotExist) {
			isPID = true
		}
		switch {
		case isPID && (err != nil || pid <= 0):
			return nil, usagef("%q is not pid: and a number", arg)
		case isPID:
			pids = append(pids, pid)
		default:
			out = append(out, hunt.Target{Path: arg})
		}
	}
	for _, pid := range pids {
		if pid <= 0 {
			return nil, usagef("%d is not the number of a process", pid)
		}
		out = append(out, hunt.Target{PID: pid})
	}
	if len(out) == 0 {
		return nil, usagef("name a path or a process to search, such as /var/backups or pid:1234")
	}
	return out, nil
}

// huntKeys reads a public key from a file, or all versions of a key from the
// server.
func (a *app) huntKeys(c *cobra.Command, name string) ([]hunt.Key, error) {
	if _, err := os.Stat(name); err == nil {
		text, err := a.read(name)
		if err != nil {
			return nil, err
		}
		key, err := hunt.ParsePublic(text)
		return []hunt.Key{{Name: name, Public: key}}, err
	}
	session, ofSession := strings.CutPrefix(name, "session:")
	if _, err := claviger.ParseName(name); err != nil && !ofSession {
		return nil, usagef("%q is neither a file, nor the name of a key, nor session: and the id of one", name)
	}
	s, err := a.dial(c.Context())
	if err != nil {
		return nil, err
	}
	if ofSession {
		one, err := s.GetSession(c.Context(), session)
		if err != nil {
			return nil, err
		}
		key, err := hunt.ParsePublic(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: one.Public}))
		return []hunt.Key{{Name: name, Public: key}}, err
	}
	k, err := s.GetKey(c.Context(), name)
	if err != nil {
		return nil, err
	}
	alg := claviger.Algorithm(k.Algorithm)
	if !alg.Asymmetric() {
		return nil, hunt.Symmetric(name)
	}
	var keys []hunt.Key
	for _, v := range k.Versions {
		key, err := pubkey.Parse(alg, v.Public)
		if err != nil {
			return nil, err
		}
		keys = append(keys, hunt.Key{Name: fmt.Sprintf("%s%s%d", k.Name, versionMark, v.Number), Public: key})
	}
	if len(keys) == 0 {
		return nil, usagef("%s has no version yet", name)
	}
	return keys, nil
}

// versionMark stands between the name and the version of a key on the server.
const versionMark = " version "

// reportCopies tells the server of each version that was found, once, with the
// first place.
func (a *app) reportCopies(ctx context.Context, r *hunt.Report) error {
	first := map[string]hunt.Finding{}
	for _, f := range r.Findings {
		if _, seen := first[f.Key]; !seen {
			first[f.Key] = f
		}
	}
	if len(first) == 0 {
		return nil
	}
	s, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	host, _ := os.Hostname() // "" says that it is not known
	for _, key := range slices.Sorted(maps.Keys(first)) {
		name, number, ours := strings.Cut(key, versionMark)
		version, err := strconv.ParseUint(number, 10, 32)
		if !ours || err != nil {
			continue // its public half came from a file
		}
		where := huntPlace(first[key].Place, first[key].Offset)
		if host != "" {
			where += " on " + host
		}
		if _, err := s.ReportCopy(ctx, &pb.ReportCopyRequest{Key: name, Version: uint32(version), Where: bounded(where), Place: copyPlace(host, first[key].Place)}); err != nil {
			return err
		}
		a.say("reported: %s is exposed", key)
	}
	return nil
}

// copyPlace is where a copy was found; nil where the server would not take it,
// which then has it in words alone.
func copyPlace(host string, p hunt.Place) *pb.Place {
	if p.File == "" || p.Member != "" || bounded(p.File) != p.File || bounded(host) != host || strings.ContainsFunc(p.File, unprintable) {
		return nil
	}
	return &pb.Place{Host: host, Path: p.File}
}

// bounded cuts a text to what the server takes as one.
func bounded(s string) string {
	if len(s) > claviger.MaxTextLength {
		s = strings.ToValidUTF8(s[:claviger.MaxTextLength], "")
	}
	return s
}

// huntProgress shows how far a hunt is: a bar where the size of what is
// searched is known. Archives hold more than their size says, so the bar may
// stand at its end for a while.
func (a *app) huntProgress(ctx context.Context, targets []hunt.Target) func(hunt.Progress) {
	total := huntSize(ctx, targets)
	return func(p hunt.Progress) {
		where := p.Place.File
		if where == "" {
			where = fmt.Sprintf("pid %d %s", p.Place.PID, p.Place.Mapping)
		}
		if len(where) > 40 {
			where = "..." + where[len(where)-37:]
		}
		fmt.Fprintf(a.stderr, "\r\x1b[K%s%d MB searched, %d found: %q", progressBar(p.Bytes, total), p.Bytes>>20, p.Findings, where)
	}
}

// progressBar draws how much of total is done, "" when that is not known.
func progressBar(done, total int64) string {
	const width = 20
	if total <= 0 {
		return ""
	}
	part := min(float64(done)/float64(total), 0.99)
	full := int(part * width)
	return fmt.Sprintf("[%s%s] %2.0f%% ", strings.Repeat("#", full), strings.Repeat(".", width-full), part*100)
}

// maxCounted is how many files are counted before the size is called unknown.
const maxCounted = 200_000

// huntSize returns the bytes of the targets, 0 when that is not known: for the
// memory of processes, and for too many files.
func huntSize(ctx context.Context, targets []hunt.Target) int64 {
	var total int64
	files := 0
	for _, t := range targets {
		if t.Path == "" {
			return 0
		}
		err := filepath.WalkDir(t.Path, func(_ string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil // the hunt itself says what it could not search
			}
			if files++; files > maxCounted {
				return fs.SkipAll
			}
			if info, err := d.Info(); err == nil {
				total += info.Size()
			}
			return ctx.Err()
		})
		if err != nil || files > maxCounted {
			return 0
		}
	}
	return total
}

// huntReport prints a report and turns its verdict into an exit status.
func (a *app) huntReport(r *hunt.Report) error {
	if a.format != "table" {
		text, err := json.Marshal(r)
		if err == nil {
			err = a.printJSON(text)
		}
		if err != nil {
			return err
		}
	} else if err := a.huntTable(r); err != nil {
		return err
	}
	switch r.Verdict {
	case hunt.Nothing:
		return nil
	case hunt.Found:
		return exitError(2)
	case hunt.Broken:
		a.say("error: the hunt missed a key that it had planted itself: its result says nothing")
	default:
		a.say("error: of some target nothing could be searched")
	}
	return exitError(1)
}

func (a *app) huntTable(r *hunt.Report) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, f := range r.Findings {
		row(w, a.mark("off"), "FOUND", f.Key, huntPlace(f.Place, f.Offset), f.Encoding, f.Form)
	}
	if r.More > 0 {
		row(w, a.mark("off"), "FOUND", "", fmt.Sprintf("%d more", r.More))
	}
	for _, c := range r.Controls {
		state := "on"
		if c.Found < c.Planted {
			state = "off"
		}
		row(w, a.mark(state), "control", string(c.Algorithm), fmt.Sprintf("%d of %d planted keys were found", c.Found, c.Planted))
	}
	for _, reason := range slices.Sorted(maps.Keys(r.GapCount)) {
		row(w, a.mark("unavailable"), "not searched", fmt.Sprint(r.GapCount[reason]), reason)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if slices.ContainsFunc(r.Findings, func(f hunt.Finding) bool { return inProfile(f.Place.File) }) {
		a.say("a browser keeps the keys of WebCrypto in its profile in clear: they are script-resistant, and no more")
	}
	s := r.Searched
	_, err := io.WriteString(a.stdout, fmt.Sprintf("%s: %d files, %d members, %d processes, %d mappings, %d bytes searched\n",
		r.Verdict, s.Files, s.Members, s.Processes, s.Mappings, s.Bytes))
	return err
}

// inProfile reports a file of a browser's profile where pages keep their keys.
func inProfile(file string) bool {
	return slices.Contains(strings.Split(filepath.ToSlash(file), "/"), "IndexedDB")
}

// huntPlace writes a place for people. Names are quoted: they are not ours.
func huntPlace(p hunt.Place, offset int64) string {
	switch {
	case p.File == "":
		return fmt.Sprintf("pid %d %q at 0x%x", p.PID, p.Mapping, offset)
	case p.Member != "":
		return fmt.Sprintf("%q in %q at %d", p.Member, p.File, offset)
	}
	return fmt.Sprintf("%q at %d", p.File, offset)
}
