package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func (a *app) docsCommand() *cobra.Command {
	var dir, form string
	c := &cobra.Command{
		Use: "docs --dir DIR", Short: "Write the command reference as Markdown or man pages", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			root := c.Root()
			root.DisableAutoGenTag = true
			switch form {
			case "markdown":
				return doc.GenMarkdownTree(root, dir)
			case "man":
				return doc.GenManTree(root, &doc.GenManHeader{Title: "CLAVIGER", Section: "1", Source: "Claviger"}, dir)
			}
			return usagef("--form is markdown or man, not %q", form)
		},
	}
	c.Flags().StringVar(&dir, "dir", "docs/cli", "directory to write to")
	c.Flags().StringVar(&form, "form", "markdown", "markdown or man")
	return c
}
