package claviger_test

import (
	"go/ast"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestAttemptsAreDocumented checks that docs/evidence.md says of every attempt
// by name what it is.
func TestAttemptsAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/evidence.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		whole := "" // the last name written out; "-rest" after it replaces an end of it
		for _, span := range regexp.MustCompile("`([a-zA-Z0-9_.-]+)`").FindAllStringSubmatch(line, -1) {
			rest, short := strings.CutPrefix(span[1], "-")
			if !short {
				whole = span[1]
				documented[whole] = true
			}
			for i, c := range whole {
				if short && c == '-' {
					documented[whole[:i+1]+rest] = true
				}
			}
		}
	}
	homes := []string{"internal/evidence/probe/", "internal/p11d/", "internal/tpm/", "cmd/claviger/evidence"}
	name := regexp.MustCompile(`^(soft|host|api|store|p11|tpm)\.[a-zA-Z0-9_-]*[a-zA-Z0-9_]$`)
	seen := 0
	eachFile(t, func(file string, tree *ast.File, fset *token.FileSet) {
		if strings.HasSuffix(file, "_test.go") || !slices.ContainsFunc(homes, func(home string) bool { return strings.HasPrefix(file, home) }) {
			return
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			literal, ok := n.(*ast.BasicLit)
			if !ok || literal.Kind != token.STRING {
				return true
			}
			if value, err := strconv.Unquote(literal.Value); err == nil && name.MatchString(value) {
				seen++
				if !documented[value] {
					t.Errorf("%s: docs/evidence.md does not have %s", fset.Position(literal.Pos()), value)
				}
			}
			return true
		})
	})
	if seen < 60 {
		t.Errorf("only %d names were seen", seen)
	}
}
