package main_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// code is what stands in a block, or between backquotes.
var code = regexp.MustCompile("(?s)```[a-z]*\n(.*?)```|`([^`]+)`")

// others are the guides that move no framework's secret.
var others = []string{"adopt.md", "rotate-and-expose.md", "dbsc.md", "nginx.md", "service.md", "single-page-application.md"}

// Every command line of the guides is one that there is, with flags that it has.
// docs/cli says which, and TestReferenceIsFresh that it is right.
func TestGuideCommands(t *testing.T) {
	t.Parallel()
	guides, err := filepath.Glob("../../docs/guide/*.md")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	reference, seen := pages(t, "../../docs/cli"), 0
	for _, name := range append(append(guides, more...), "../../README.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		before := seen
		for _, found := range code.FindAllStringSubmatch(string(text), -1) {
			inline := strings.ReplaceAll(found[2], "\n", " ")
			for line := range strings.Lines(strings.ReplaceAll(found[1], "\\\n", " ") + inline) {
				for _, words := range commands(line) {
					seen++
					if problem := unknown(reference, words); problem != "" {
						t.Errorf("%s: %s: %s", filepath.Base(name), strings.Join(words, " "), problem)
					}
				}
			}
		}
		if !slices.Contains(guides, name) {
			continue
		}
		if slices.Contains(others, filepath.Base(name)) {
			continue
		}
		if before == seen {
			t.Errorf("%s has no command", filepath.Base(name))
		}
		for _, part := range []string{"Before", "Moving", "After", "Rotating", "What is covered", "What is not", "When custody is away", "Rolling back"} {
			if !strings.Contains(string(text), "\n## "+part+"\n") {
				t.Errorf("%s has no part %q", filepath.Base(name), part)
			}
		}
		if from, pipe := strings.Index(string(text), "--from "), strings.Index(string(text), "| claviger state adopt"); from < 0 || pipe >= 0 && pipe < from {
			t.Errorf("%s does not show first how a secret is adopted from where it stands", filepath.Base(name))
		}
	}
	if len(guides) < 13 || seen < 100 {
		t.Errorf("%d guides have %d commands", len(guides), seen)
	}
	for _, line := range []string{"claviger key rotat K", "claviger state adopt K --form .env", "claviger grants", "x | claviger state adopt K --pipe"} {
		if list := commands(line); len(list) != 1 || unknown(reference, list[0]) == "" {
			t.Errorf("the control %q passes", line)
		}
	}
}

// commands are the words of each claviger that a line runs.
func commands(line string) [][]string {
	var out [][]string
	line, _, _ = strings.Cut(line, " #")
	words := strings.Fields(line)
	for i, word := range words {
		starts := i == 0 || slices.Contains([]string{"|", "&&", ";", "$", "sudo", "exec", "if", "!"}, words[i-1])
		if word != "claviger" || !starts || i+1 == len(words) {
			continue
		}
		end := slices.IndexFunc(words[i:], func(w string) bool { return slices.Contains([]string{"--", "|", "||", "&&", ";", ">"}, w) })
		if end < 0 {
			end = len(words) - i
		}
		out = append(out, words[i:i+end])
	}
	return out
}

// unknown says what of a command line the reference does not have, "" for nothing.
func unknown(reference map[string]string, words []string) string {
	page, rest := "claviger", words[1:]
	for len(rest) > 1 && strings.HasPrefix(rest[0], "--") { // flags of all commands
		rest = rest[2:]
	}
	for len(rest) > 0 && reference[page+"_"+rest[0]+".md"] != "" {
		page, rest = page+"_"+rest[0], rest[1:]
	}
	if page == "claviger_root" { // the rest is for claviger-unseal
		return ""
	}
	children := strings.Contains(reference[page+".md"], "]("+page+"_")
	if children && len(rest) > 0 && !strings.ContainsAny(rest[0][:1], "-<.") {
		return "there is no such command"
	}
	for _, word := range rest {
		flag, _, _ := strings.Cut(strings.Trim(word, "'\"[]().,"), "=")
		if strings.HasPrefix(flag, "--") && !regexp.MustCompile(` `+regexp.QuoteMeta(flag)+`\b`).MatchString(reference[page+".md"]) {
			return "there is no flag " + flag
		}
	}
	return ""
}
