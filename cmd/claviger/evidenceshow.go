package main

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/evidence"
	"claviger.dev/internal/evidence/probe"
)

// attemptChild is the hidden verb under which probe starts this program.
const attemptChild = "attempt"

// evidenceAttempt is what the probe's child processes run. It is for no person.
func (a *app) evidenceAttempt() *cobra.Command {
	return &cobra.Command{
		Use: attemptChild, Short: "Attempt what standard input orders, for 'evidence run'", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return probe.Child(a.stdin, a.stdout) },
	}
}

func (a *app) evidenceVerify() *cobra.Command {
	var roots, devices, tests []string
	var nonce string
	var maxAge duration
	c := &cobra.Command{
		Use: "verify FILE", Short: "Check a signed statement, offline", Args: cobra.ExactArgs(1),
		Long: "Check a statement with nothing but roots: its form, that its signer may sign statements, its subjects, nonce and\n" +
			"age, the attestation of every TPM key, and that each level follows from what the statement itself has. No server is\n" +
			"asked. A statement is refused as a whole.\n\n" +
			"That the run happened rests on the word of the signer. See docs/evidence.md for what else it does.",
		Example: "  claviger evidence verify statement.json --roots ca.pem --tpm-roots manufacturer.pem --nonce \"$NONCE\"",
		RunE: func(c *cobra.Command, args []string) error {
			switch { // a check that was asked for is never left out
			case c.Flags().Changed("nonce") && nonce == "":
				return usagef("--nonce is empty")
			case c.Flags().Changed("max-age") && maxAge <= 0:
				return usagef("--max-age is not longer than nothing")
			}
			o := evidence.Options{Now: time.Now(), MaxAge: time.Duration(maxAge), Roots: x509.NewCertPool()}
			certs, err := a.certificates(roots)
			if err != nil {
				return err
			}
			for _, c := range certs {
				o.Roots.AddCert(c)
			}
			for test, files := range map[bool][]string{false: devices, true: tests} {
				certs, err := a.certificates(files)
				if err != nil {
					return err
				}
				for _, c := range certs {
					o.Devices = append(o.Devices, evidence.Root{Certificate: c, Test: test})
				}
			}
			if nonce != "" {
				if o.Nonce, err = hex.DecodeString(nonce); err != nil {
					return usagef("--nonce is not hex")
				}
			}
			file, err := a.readUpTo(args[0], evidence.MaxStatement)
			if err != nil {
				return err
			}
			v, err := evidence.Verify(file, o)
			if err != nil {
				return err
			}
			return a.evidenceVerified(v)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&roots, "roots", nil, "PEM file with the CA of the server whose word is taken; repeatable")
	f.StringArrayVar(&devices, "tpm-roots", nil, "PEM file with roots of TPM manufacturers; repeatable")
	f.StringArrayVar(&tests, "tpm-test-roots", nil, "PEM file with roots that vouch for test TPMs, and for no hardware; repeatable")
	f.StringVar(&nonce, "nonce", "", "64 hex digits that the run must have been given")
	f.Var(&maxAge, "max-age", "refuse a run that ended longer ago, such as 24h or 30d; 7d when left out")
	_ = c.MarkFlagRequired("roots")
	return c
}

// certificates reads the certificates of PEM files.
func (a *app) certificates(files []string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, name := range files {
		text, err := a.read(name)
		if err != nil {
			return nil, err
		}
		before := len(out)
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" {
				continue
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			out = append(out, c)
		}
		if len(out) == before {
			return nil, usagef("%s holds no certificate: give a PEM file", name)
		}
	}
	return out, nil
}

func (a *app) evidenceVerified(v *evidence.Verified) error {
	if a.format != "table" {
		return a.runJSON(v.Run)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	row(w, "statement", "holds")
	row(w, "signer", subjectText(v.Signer[0]), "by "+subjectText(v.Signer[len(v.Signer)-1]))
	a.runFacts(w, v.Run)
	for _, t := range v.Tests {
		row(w, "TEST ROOT", t, "vouches for no hardware")
	}
	a.levels(w, v.Run)
	return w.Flush()
}

// subjectText is a certificate's subject, of characters that print alone.
func subjectText(c *x509.Certificate) string {
	return strings.Trim(strconv.Quote(c.Subject.String()), `"`)
}

func (a *app) runFacts(w io.Writer, run *evidence.Run) {
	row(w, "run", run.ID, "by "+run.By)
	row(w, "nonce", hex.EncodeToString(run.Nonce))
	row(w, "ended", run.Finished.Format(time.RFC3339), fmt.Sprintf("on %s (Linux %s, %s, uid %d)", run.Host.Name, run.Host.Kernel, run.Host.Arch, run.Host.UID))
	for _, rep := range run.Reports {
		d := rep.Device
		what := "hardware"
		if d.Software {
			what = "software"
		}
		row(w, "custodian", d.Kind, strings.TrimSpace(d.Manufacturer+" "+d.Model), what)
	}
}

// levels writes a line for each version.
func (a *app) levels(w io.Writer, run *evidence.Run) {
	for _, res := range run.Results {
		state := "on"
		if res.Level == claviger.Exposed || res.Level == claviger.Lapsed || res.Level == "" {
			state = "off"
		}
		row(w, a.mark(state), res.String(), res.Custodian, res.Level, res.Finding)
	}
}

func (a *app) runJSON(run *evidence.Run) error {
	text, err := json.Marshal(run)
	if err != nil {
		return err
	}
	return a.printJSON(text)
}

// evidenceReport writes a line for each attempt, and for each version.
func (a *app) evidenceReport(run *evidence.Run) error {
	if a.format != "table" {
		return a.runJSON(run)
	}
	about := map[int][]string{}
	for _, res := range run.Results {
		for _, g := range res.Groups {
			about[g] = append(about[g], res.String())
		}
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for i, g := range run.Groups {
		who := fmt.Sprintf("%d versions", len(about[i]))
		if len(about[i]) == 1 {
			who = about[i][0]
		}
		for _, at := range g.Attempts {
			state := map[claviger.Verdict]string{claviger.Held: "on", claviger.NotAttempted: "unavailable"}[at.Verdict]
			if state == "" {
				state = "off"
			}
			said := at.Result
			if at.Reason != "" {
				said = strings.TrimPrefix(said+"; "+at.Reason, "; ")
			}
			row(w, a.mark(state), at.Verdict, at.Probe, who, at.Tried, said)
			if at.Control != "" {
				row(w, "", "", "", "", "  control", at.Control)
			}
		}
	}
	for _, line := range run.Scope {
		row(w, "", "scope", "", "", line)
	}
	a.runFacts(w, run)
	a.levels(w, run)
	return w.Flush()
}

// evidenceExit is the exit status of a run.
func (a *app) evidenceExit(run *evidence.Run) error {
	var leaked, broken []string
	for _, g := range run.Groups {
		for _, at := range g.Attempts {
			switch at.Verdict {
			case claviger.Leaked:
				leaked = append(leaked, at.Probe)
			case claviger.Broken:
				broken = append(broken, at.Probe)
			}
		}
	}
	switch {
	case len(leaked) > 0:
		a.say("error: a key leaked: %s", strings.Join(leaked, ", "))
		return exitError(2)
	case len(broken) > 0:
		a.say("error: what these probes say counts for nothing, since their controls did not leak: %s", strings.Join(broken, ", "))
		return exitError(1)
	}
	return nil
}

func (a *app) evidenceList() *cobra.Command {
	return &cobra.Command{
		Use: "list [KEY|SELECTOR]", Short: "List what evidence shows of each version", Args: cobra.MaximumNArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req := &pb.ListEvidenceRequest{PageSize: 1000}
			if len(args) == 1 {
				req.Selector = args[0]
			}
			all := &pb.ListEvidenceResponse{}
			for {
				page, err := s.ListEvidence(c.Context(), req)
				if err != nil {
					return err
				}
				all.Evidence = append(all.Evidence, page.Evidence...)
				if req.Page = page.NextPage; req.Page == "" {
					break
				}
			}
			return a.print(all, func(w io.Writer) {
				row(w, "VERSION", "STATE", "CUSTODIAN", "LEVEL", "SHOWN", "RUN", "FINDING")
				for _, v := range all.Evidence {
					row(w, fmt.Sprintf("%s#%d", v.Key, v.Version), v.State, v.Custodian, v.Level, when(v.Shown), v.Run, v.Finding)
				}
			})
		}),
	}
}

func (a *app) evidenceShow() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "show [RUN]", Short: "Show a run that was submitted, or the last one, and get its statement", Args: cobra.MaximumNArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req := &pb.GetStatementRequest{}
			if len(args) == 1 {
				req.Run = args[0]
			}
			answer, err := s.GetStatement(c.Context(), req)
			if err != nil {
				return err
			}
			run, _, err := a.openStatement(c.Context(), s, answer.Envelope)
			if err != nil {
				return err
			}
			if out != "" {
				return a.write(out, answer.Envelope)
			}
			return a.evidenceReport(run)
		}),
	}
	c.Flags().StringVar(&out, "out", "", "write the signed statement to this file instead; '-' for standard output")
	return c
}
