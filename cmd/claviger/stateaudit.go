package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"claviger.dev/internal/appaudit"
)

func (a *app) stateAuditApp() *cobra.Command {
	var framework string
	c := &cobra.Command{
		Use: "audit-app DIRECTORY --framework FRAMEWORK", Short: "List what an adapter does not cover in an application's source", Args: cobra.ExactArgs(1),
		Long: "Read the source of an application and list where it signs or encrypts past the adapter, with what that means\n" +
			"and what to do: reads of the secret, keys of its own, JWTs, serialised objects. It reads lines, and runs nothing:\n" +
			"what is put together at run time is not seen, and a line that only looks like it is listed. Packages that the\n" +
			"application uses are worth a look too: name their directory (site-packages, gems, vendor).\n" +
			"  breaks  it fails, or is refused, once the secret is in custody\n" +
			"  look    it may: look where its key comes from\n" +
			"  danger  it is covered, and what it signs is made into objects when it is read\n" +
			"Links are not followed; hidden directories and node_modules are left out. Exit status 2 when something breaks, 1\n" +
			"when something could not be read, else 0.",
		RunE: func(c *cobra.Command, args []string) error {
			root, err := os.OpenRoot(args[0])
			if err != nil {
				return err
			}
			defer root.Close()
			report, err := appaudit.Look(c.Context(), root.FS(), framework)
			if err != nil {
				return err
			}
			if err := a.printAudit(args[0], report); err != nil {
				return err
			}
			switch {
			case slices.ContainsFunc(report.Findings, func(f appaudit.Finding) bool { return f.Severity == appaudit.Breaks }):
				return exitError(2)
			case len(report.NotRead) > 0:
				return exitError(1)
			}
			return nil
		},
	}
	c.Flags().StringVar(&framework, "framework", "", "django, rails or laravel")
	_ = c.MarkFlagRequired("framework")
	_ = c.RegisterFlagCompletionFunc("framework", cobra.FixedCompletions(appaudit.Frameworks(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) printAudit(dir string, r *appaudit.Report) error {
	if a.format != "table" {
		text, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return a.printJSON(text)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	var explained []string
	for _, f := range r.Findings {
		row(w, f.Severity, f.Rule, fmt.Sprintf("%s:%d", shownPath(filepath.Join(dir, f.File)), f.Line))
	}
	for _, g := range r.NotRead {
		row(w, "not read", g.Reason, shownPath(filepath.Join(dir, g.Path)))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, f := range r.Findings {
		if !slices.Contains(explained, f.Rule) {
			explained = append(explained, f.Rule)
			fmt.Fprintf(a.stdout, "\n%s\n  %s.\n  To do: %s.\n", f.Rule, f.Means, f.Do)
		}
	}
	if r.More > 0 {
		a.say("%d more findings are left out", r.More)
	}
	a.say("%d files were read, %d findings", r.Files, len(r.Findings))
	return nil
}

// shownPath quotes a name that does not print: it is not ours.
func shownPath(name string) string {
	if slices.ContainsFunc([]rune(name), unprintable) {
		return fmt.Sprintf("%q", name)
	}
	return name
}
