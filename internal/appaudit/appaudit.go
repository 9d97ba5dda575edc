// Package appaudit looks in the source of an application for ways of signing
// and encrypting that an adapter does not cover.
//
// It owns the rules, by framework. It promises to name the file and the line,
// what that means and what to do, to end, and to say what it did not read. It
// must never run what it reads, follow a link, or repeat the text of a line,
// which may have a secret in it.
package appaudit

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"claviger.dev"
)

// Limits of a walk.
const (
	maxFiles    = 100_000 // files
	maxFile     = 4 << 20 // bytes of one
	maxLine     = 1 << 20 // bytes of one line
	maxFindings = 10_000
	maxDepth    = 64 // directories in each other
)

// Severity says how much a finding matters.
type Severity string

// The severities.
const (
	Breaks Severity = "breaks" // it fails, or is refused, once the secret is in custody
	Unsure Severity = "look"   // it may; a person has to look
	Danger Severity = "danger" // it is covered, and what it signs is an object that is made when it is read
)

// Finding is one place.
type Finding struct {
	File     string   `json:"file"`
	Line     int      `json:"line"`
	Rule     string   `json:"rule"`
	Severity Severity `json:"severity"`
	Means    string   `json:"means"`
	Do       string   `json:"do"`
}

// Report is what was found.
type Report struct {
	Framework string    `json:"framework"`
	Files     int       `json:"files"` // that were read
	Findings  []Finding `json:"findings"`
	NotRead   []Gap     `json:"not_read,omitempty"` // the first hundred
	More      int       `json:"more,omitempty"`     // findings that are left out
}

// Gap is what was not read, and why.
type Gap struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// rule is one thing to look for in a line without its comments.
type rule struct {
	name      string
	severity  Severity
	pattern   *regexp.Regexp
	unless    *regexp.Regexp // nil for none
	means, do string
}

// language is how files of a framework look.
type language struct {
	suffixes []string
	comments []string // that go to the end of the line
	rules    []rule
	own      *regexp.Regexp // files of the framework and of the adapter themselves
}

// Frameworks lists what can be looked for.
func Frameworks() []string { return []string{"django", "laravel", "rails"} }

func languageOf(framework string) (language, error) {
	switch framework {
	case "django":
		return django(), nil
	case "rails":
		return rails(), nil
	case "laravel":
		return laravel(), nil
	}
	return language{}, claviger.Errorf(claviger.Invalid, "there are no rules for that framework", "use "+strings.Join(Frameworks(), ", "))
}

// skipped are directories that hold no source of an application.
func skipped(name string) bool {
	return name == "node_modules" || name == "__pycache__" || len(name) > 1 && name[0] == '.'
}

// Look walks a tree.
func Look(ctx context.Context, tree fs.FS, framework string) (*Report, error) {
	l, err := languageOf(framework)
	if err != nil {
		return nil, err
	}
	r := &Report{Framework: framework, Findings: []Finding{}}
	err = fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if name == "." {
				return err
			}
			r.gap(name, err)
			return fs.SkipDir
		}
		if d.IsDir() {
			if name != "." && skipped(d.Name()) || strings.Count(name, "/") > maxDepth {
				return fs.SkipDir
			}
			return nil
		}
		if !slices.Contains(l.suffixes, path.Ext(name)) || l.own.MatchString(name) {
			return nil
		}
		if !d.Type().IsRegular() {
			r.gap(name, errors.New("no regular file"))
			return nil
		}
		if r.Files++; r.Files > maxFiles {
			return claviger.Errorf(claviger.TooLarge, "there are more than 100000 files", "look at one application at a time")
		}
		if err := r.file(tree, name, l); err != nil {
			r.gap(name, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("walk: %w", err)
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.File, b.File), a.Line-b.Line)
	})
	return r, nil
}

func (r *Report) gap(name string, err error) {
	reason := "it cannot be read"
	if errors.Is(err, fs.ErrPermission) {
		reason = "it may not be read"
	} else if !errors.As(err, new(*fs.PathError)) {
		reason = err.Error()
	}
	if len(r.NotRead) < 100 {
		r.NotRead = append(r.NotRead, Gap{name, reason})
	}
}

func (r *Report) file(tree fs.FS, name string, l language) error {
	f, err := tree.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > maxFile {
		return errors.New("larger than 4 MiB")
	}
	s := bufio.NewScanner(io.LimitReader(f, maxFile))
	s.Buffer(make([]byte, 64<<10), maxLine)
	for line := 1; s.Scan(); line++ {
		text := code(s.Bytes(), l.comments)
		for _, rule := range l.rules {
			if !rule.pattern.Match(text) || rule.unless != nil && rule.unless.Match(text) {
				continue
			}
			if len(r.Findings) == maxFindings {
				r.More++
				continue
			}
			r.Findings = append(r.Findings, Finding{name, line, rule.name, rule.severity, rule.means, rule.do})
		}
	}
	if errors.Is(s.Err(), bufio.ErrTooLong) {
		return errors.New("a line is longer than 1 MiB")
	}
	return s.Err()
}

// code returns a line without the comment at its end. A mark within quotes, or
// one that is part of a word, begins none.
func code(line []byte, marks []string) []byte {
	trimmed := bytes.TrimLeft(line, " \t")
	if bytes.HasPrefix(trimmed, []byte("* ")) || bytes.HasPrefix(trimmed, []byte("/*")) {
		return nil
	}
	var quote byte
	for i := 0; i < len(line); i++ {
		switch b := line[i]; {
		case quote != 0 && b == '\\':
			i++
		case quote != 0:
			if b == quote {
				quote = 0
			}
		case b == '"' || b == '\'':
			quote = b
		default:
			for _, mark := range marks {
				if bytes.HasPrefix(line[i:], []byte(mark)) && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t' || line[i-1] == ';') {
					return line[:i]
				}
			}
		}
	}
	return line
}
