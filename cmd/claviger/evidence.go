package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"claviger.dev"
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
	c := &cobra.Command{
		Use: "hunt --public KEY PATH|pid:N...", Short: "Search files and memory for private halves, knowing only the public ones",
		Long: "Search files, directories, disk images, core dumps, archives and the memory of processes for the private half\n" +
			"of a key, knowing only its public half. KEY is a file (PEM or JWK) or the name of a key on the server, all of\n" +
			"whose versions are hunted. What is found is reported by place and offset; its bytes are never shown.\n\n" +
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
			if a.interactive() {
				config.Progress = a.huntProgress
			}
			report, err := hunt.Run(c.Context(), config, targets)
			if a.interactive() {
				fmt.Fprint(a.stderr, "\r\x1b[K")
			}
			if err != nil {
				return err
			}
			return a.huntReport(report)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&public, "public", nil, "public key: a PEM or JWK file, or the name of a key on the server; repeatable")
	f.IntSliceVar(&pids, "pid", nil, "process whose memory is searched, like pid:N; repeatable")
	f.BoolVar(&config.EveryByte, "every-byte", false, "test raw windows at every byte: slow on binary data")
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
	if _, err := claviger.ParseName(name); err != nil {
		return nil, usagef("%q is neither a file nor the name of a key", name)
	}
	s, err := a.dial(c.Context())
	if err != nil {
		return nil, err
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
		keys = append(keys, hunt.Key{Name: fmt.Sprintf("%s version %d", k.Name, v.Number), Public: key})
	}
	if len(keys) == 0 {
		return nil, usagef("%s has no version yet", name)
	}
	return keys, nil
}

func (a *app) huntProgress(p hunt.Progress) {
	where := p.Place.File
	if where == "" {
		where = fmt.Sprintf("pid %d %s", p.Place.PID, p.Place.Mapping)
	}
	if len(where) > 50 {
		where = "..." + where[len(where)-47:]
	}
	fmt.Fprintf(a.stderr, "\r\x1b[K%d MB searched, %d found: %q", p.Bytes>>20, p.Findings, where)
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
	s := r.Searched
	_, err := io.WriteString(a.stdout, fmt.Sprintf("%s: %d files, %d members, %d processes, %d mappings, %d bytes searched\n",
		r.Verdict, s.Files, s.Members, s.Processes, s.Mappings, s.Bytes))
	return err
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
