package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// usageError is an error of usage that has a hint of its own.
type usageError struct{ msg, hint string }

func (e *usageError) Error() string { return e.msg }

// usagef is an error of usage: exit status 1.
func usagef(format string, args ...any) error { return fmt.Errorf(format, args...) }

// noun makes a command that only groups verbs.
func noun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: verbOf, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(verbs...)
	return c
}

// verbOf refuses a verb that a command has not, and says which one is near.
func verbOf(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	e := &usageError{msg: fmt.Sprintf("unknown command %q for %q", args[0], c.CommandPath()), hint: fmt.Sprintf("run '%s --help' for the commands", c.CommandPath())}
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		e.hint = fmt.Sprintf("did you mean '%s %s'?", c.CommandPath(), near[0])
	}
	return e
}

// unknownFlag adds the nearest flag to an error about a flag.
func unknownFlag(c *cobra.Command, err error) error {
	e := &usageError{msg: err.Error(), hint: fmt.Sprintf("run '%s --help' for its flags", c.CommandPath())}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		best := 3
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if d := distance(f.Name, unknown.GetSpecifiedName()); d < best {
				best, e.hint = d, "did you mean --"+f.Name+"?"
			}
		})
	}
	return e
}

// distance is the number of letters to insert, delete or replace that lead
// from one word to the other.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		left := row[0]
		row[0]++
		for j := range len(b) {
			change := left
			if a[i] != b[j] {
				change++
			}
			left = row[j+1]
			row[j+1] = min(change, left+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// usageLine is how a command is written, for a hint.
func usageLine(c *cobra.Command) string {
	return "usage: " + strings.TrimSuffix(c.UseLine(), " [flags]") + " [flags]"
}
