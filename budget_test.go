package claviger_test

import (
	"go/ast"
	"go/token"
	"os"
	"regexp"
	"testing"
)

// The budgets. Generated code is left out.
const (
	maxFileLines     = 600
	maxFunctionLines = 80
	maxMethods       = 6
	maxDirect        = 40
)

// TestBudgets keeps files, functions and interfaces small.
func TestBudgets(t *testing.T) {
	t.Parallel()
	eachFile(t, func(name string, file *ast.File, fset *token.FileSet) {
		if ast.IsGenerated(file) {
			return
		}
		if lines := fset.Position(file.FileEnd).Line; lines > maxFileLines {
			t.Errorf("%s: %d lines, budget %d", name, lines, maxFileLines)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if lines := fset.Position(n.End()).Line - fset.Position(n.Pos()).Line + 1; lines > maxFunctionLines {
					t.Errorf("%s: %s has %d lines, budget %d", fset.Position(n.Pos()), n.Name.Name, lines, maxFunctionLines)
				}
			case *ast.TypeSpec:
				if i, ok := n.Type.(*ast.InterfaceType); ok && i.Methods.NumFields() > maxMethods {
					t.Errorf("%s: interface %s has %d methods, budget %d", fset.Position(n.Pos()), n.Name.Name, i.Methods.NumFields(), maxMethods)
				}
			}
			return true
		})
	})
}

// TestDependencies keeps the number of direct dependencies down.
func TestDependencies(t *testing.T) {
	t.Parallel()
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	direct := regexp.MustCompile(`(?m)^\t\S+ v\S+$`).FindAll(mod, -1)
	if len(direct) == 0 || len(direct) > maxDirect {
		t.Errorf("%d direct dependencies, budget %d", len(direct), maxDirect)
	}
}
