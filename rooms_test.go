package claviger_test

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "claviger.dev"

// rooms says which rooms a room may stand on, within the module. A room that
// is not listed fails the test, so that a new one is a decision. Test files are
// free to import what they test against.
var rooms = map[string][]string{
	".":                                 {},
	"api/claviger/v1":                   {},
	"api/claviger/v1/clavigerv1connect": {"api/claviger/v1"},
	"pubkey":                            {"."},
	"dpop":                              {".", "pubkey"},
	"dbsc":                              {},
	"client":                            {".", "dpop", "pubkey", "internal/recipe", "internal/frames", "internal/onetime", "api/claviger/v1", "api/claviger/v1/clavigerv1connect"},
	"internal/failpoint":                {},
	"internal/hazmat":                   {"."},
	"internal/harden":                   {".", "internal/hazmat"},
	"internal/recipe":                   {"."},
	"internal/frames":                   {".", "internal/recipe"},
	"internal/frames/serve":             {".", "internal/frames"},
	"internal/onetime":                  {".", "internal/frames"},
	"internal/rootkey":                  {"."},
	"internal/keyd":                     {".", "internal/recipe", "internal/frames", "internal/frames/serve", "internal/onetime", "internal/hazmat", "internal/harden", "internal/rootkey", "internal/evidence/probe/within"},
	"internal/p11":                      {"."},
	"internal/p11d":                     {".", "pubkey", "internal/frames", "internal/frames/serve", "internal/harden", "internal/p11"},
	"internal/custody":                  {".", "internal/recipe", "internal/frames", "internal/onetime"},
	"internal/supervise":                {},
	"internal/tpm":                      {".", "pubkey", "internal/frames", "internal/tpm/attest"},
	"internal/tpmd":                     {".", "internal/frames", "internal/frames/serve", "internal/harden", "internal/tpm", "internal/tpm/attest"},
	"internal/tpm/attest":               {".", "pubkey", "internal/frames"},
	"internal/agent":                    {".", "pubkey", "client", "api/claviger/v1", "internal/frames", "internal/custody", "internal/supervise"},
	"internal/proxy":                    {".", "api/claviger/v1", "internal/recipe", "internal/state"},
	"internal/policy":                   {".", "pubkey"},
	"internal/audit":                    {"."},
	"internal/audit/gather":             {".", "internal/audit"},
	"internal/audit/segment":            {".", "internal/audit", "internal/audit/gather", "internal/failpoint"},
	"internal/audit/pglog":              {".", "internal/audit", "internal/audit/gather"},
	"internal/store":                    {".", "internal/failpoint"},
	"internal/store/sqlite":             {".", "internal/store"},
	"internal/store/postgres":           {".", "internal/store"},
	"internal/follow":                   {".", "internal/store"},
	"internal/backup":                   {".", "internal/store", "internal/store/sqlite"},
	"internal/keeper":                   {".", "pubkey", "internal/recipe", "internal/state", "internal/frames", "internal/onetime", "internal/policy", "internal/audit", "internal/store", "internal/follow", "internal/custody", "internal/backup", "internal/failpoint", "internal/tpm/attest"},
	"internal/evidence":                 {".", "internal/frames", "internal/tpm/attest"},
	"internal/proof":                    {"."},
	"internal/state":                    {".", "pubkey", "internal/recipe"},
	"internal/broker":                   {".", "dpop", "internal/keeper", "internal/store", "internal/broker/jwt", "internal/broker/upstream"},
	"internal/broker/oauth":             {".", "dpop", "internal/broker"},
	"internal/broker/statement":         {".", "pubkey", "dpop", "internal/keeper"},
	"internal/broker/jwt":               {".", "pubkey"},
	"internal/broker/upstream":          {".", "internal/broker/jwt"},
	"internal/appaudit":                 {"."},
	"internal/appsecret":                {".", "internal/recipe", "internal/state"},
	"internal/hunt":                     {".", "pubkey"},
	"internal/evidence/probe":           {".", "pubkey", "internal/harden", "internal/hunt", "internal/evidence/probe/within"},
	"internal/evidence/probe/within":    {"internal/harden"},
	"internal/broker/deliver":           {".", "internal/keeper"},
	"internal/broker/guard":             {".", "internal/keeper"},
	"internal/server":                   {".", "dpop", "internal/broker", "internal/broker/deliver", "internal/broker/forward", "internal/broker/oauth", "internal/broker/statement", "internal/broker/status", "internal/broker/upstream", "internal/recipe", "internal/state", "pubkey", "api/claviger/v1", "api/claviger/v1/clavigerv1connect", "internal/keeper", "internal/proof", "internal/audit", "internal/store", "internal/onetime", "internal/p11", "internal/evidence"},
	"internal/broker/forward":           {".", "dpop", "internal/broker/status"},
	"internal/broker/status":            {"."},
}

// suites are test equipment: only test files may import them.
var suites = []string{"internal/custody/custodytest", "internal/p11d/p11dtest", "internal/store/storetest", "internal/store/postgres/pgtest",
	"internal/audit/audittest", "internal/server/servertest", "internal/tpm/tpmtest", "dpop/dpoptest", "test/chaos", "test/ops", "test/sdk", "test/browser", "test/oauth", "test/edge", "test/logout"}

// sealed lists what the whole import closure of a program must be free of.
var sealed = map[string][]string{
	"./cmd/claviger-keyd":   {"net", "net/http", "os/exec", "database/sql", "encoding/gob", "crypto/x509", "plugin"},
	"./cmd/claviger-unseal": {"net/http", "os/exec", "database/sql", "encoding/gob", "plugin"},
	"./cmd/claviger-tpmd":   {"net/http", "os/exec", "database/sql", "encoding/gob", "plugin", module + "/internal/keyd", module + "/internal/rootkey"},
	"./cmd/claviger-p11d":   {"net/http", "os/exec", "database/sql", "encoding/gob", "plugin", module + "/internal/keyd", module + "/internal/rootkey"},
}

type listed struct {
	ImportPath string
	Imports    []string
}

func goList(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Imports"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p listed
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

func room(importPath string) (string, bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// TestRooms checks every import inside the module against the table above.
func TestRooms(t *testing.T) {
	t.Parallel()
	for _, p := range goList(t, "./...") {
		from, _ := room(p.ImportPath)
		program := strings.HasPrefix(from, "cmd/") || strings.HasPrefix(from, "samples/") || from == "test/demo"
		allowed, known := rooms[from]
		if !known && !program && !slices.Contains(suites, from) {
			t.Errorf("room %s is not in the table", from)
			continue
		}
		for _, imported := range p.Imports {
			to, ours := room(imported)
			switch {
			case !ours || slices.Contains(suites, from):
			case slices.Contains(suites, to):
				t.Errorf("%s imports %s outside a test", from, to)
			case !program && !slices.Contains(allowed, to):
				t.Errorf("%s imports %s, which the table does not allow", from, to)
			}
		}
	}
}

// TestSealedClosures checks that the small processes cannot reach what their
// work does not need, however indirectly.
func TestSealedClosures(t *testing.T) {
	t.Parallel()
	programs := maps.Clone(sealed)
	maps.Copy(programs, keyless)
	for program, forbidden := range programs {
		all := goList(t, "-deps", program)
		if len(all) < 20 {
			t.Fatalf("%s: a closure of %d packages cannot be whole", program, len(all))
		}
		for _, p := range all {
			if slices.Contains(forbidden, p.ImportPath) {
				t.Errorf("%s reaches %s", program, p.ImportPath)
			}
		}
	}
}

// readers are the only rooms that may read secret bytes, and so import hazmat.
var readers = []string{"internal/hazmat", "internal/harden", "internal/keyd", "cmd/claviger-keyd"}

// forbidden lists calls by the rooms that may make them. An empty list means
// nowhere.
var forbidden = map[string][]string{
	"os.Getenv":           {"cmd/claviger", "cmd/claviger-unseal", "cmd/claviger-p11d", "internal/failpoint"},
	"os.LookupEnv":        {"internal/failpoint"},
	"exec.Command":        {"internal/supervise"},
	"exec.CommandContext": {"internal/supervise", "cmd/claviger", "test/demo", "internal/evidence/probe"},
	"context.WithValue":   {"internal/server"},
	"os.Exit":             {"cmd/*", "samples/*", "internal/keyd", "internal/p11d", "test/demo"},
	"log.Printf":          {},
	"log.Println":         {},
	"fmt.Println":         {"test/demo"},
	"fmt.Printf":          {"test/demo"},
	"time.Sleep":          {},
	"http.Get":            {},
	"http.Post":           {},
	"gob.NewEncoder":      {},
}

// forbiddenImports are imports that no room has.
var forbiddenImports = []string{"math/rand", "encoding/gob", "net/http/pprof", "expvar", "crypto/md5", "crypto/des", "crypto/rc4", "plugin"}

// legacyImports are forbidden imports by the one room that may have them: old
// view state is checked with them, and nothing is made.
var legacyImports = map[string]string{"crypto/md5": "internal/recipe", "crypto/des": "internal/recipe"}

// keyless programs never link what holds keys.
var keyless = map[string][]string{
	"./cmd/claviger": {module + "/internal/keyd", module + "/internal/rootkey"},
}

// unsafeRooms may import unsafe; p11d to hand over a PIN that it can clear.
var unsafeRooms = []string{"internal/hazmat", "internal/harden", "internal/p11d", "internal/evidence/probe/within"}

func eachFile(t *testing.T, visit func(name string, file *ast.File, fset *token.FileSet)) {
	t.Helper()
	count := 0
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "node_modules" || len(d.Name()) > 1 && d.Name()[0] == '.') {
			return fs.SkipDir
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		count++
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		visit(filepath.ToSlash(name), file, fset)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if count < 30 {
		t.Fatalf("only %d files were seen", count)
	}
}

// TestForbidden checks calls and imports that the design rules out.
func TestForbidden(t *testing.T) {
	t.Parallel()
	eachFile(t, func(name string, file *ast.File, fset *token.FileSet) {
		dir, test := path.Dir(name), strings.HasSuffix(name, "_test.go") || slices.Contains(suites, path.Dir(name))
		if ast.IsGenerated(file) {
			return
		}
		for _, imp := range file.Imports {
			p := strings.Trim(imp.Path.Value, `"`)
			if r, ours := room(p); ours && r == "internal/hazmat" && !test && !slices.Contains(readers, dir) {
				t.Errorf("%s: %s may not read secret bytes", fset.Position(imp.Pos()), dir)
			}
			if slices.Contains(forbiddenImports, p) && !test && legacyImports[p] != dir {
				t.Errorf("%s: imports %s", fset.Position(imp.Pos()), p)
			}
			if p == "unsafe" && !test && !slices.Contains(unsafeRooms, dir) {
				t.Errorf("%s: imports unsafe", fset.Position(imp.Pos()))
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					t.Errorf("%s: init function", fset.Position(n.Pos()))
				}
			case *ast.SelectorExpr:
				checkCall(t, fset.Position(n.Pos()), dir, test, n)
			}
			return true
		})
	})
}

func checkCall(t *testing.T, at token.Position, dir string, test bool, sel *ast.SelectorExpr) {
	pkg, ok := sel.X.(*ast.Ident)
	if !ok {
		return
	}
	call := pkg.Name + "." + sel.Sel.Name
	if call == "t.Skip" || call == "t.Skipf" || call == "t.SkipNow" || call == "b.Skip" {
		t.Errorf("%s: a test that skips itself", at)
	}
	where, listed := forbidden[call]
	if !listed || test && call != "time.Sleep" {
		return
	}
	for _, w := range where {
		if matched, _ := path.Match(w, dir); matched {
			return
		}
	}
	t.Errorf("%s: %s is not for %s", at, call, dir)
}

// TestNoPrivateField checks that no message of the API has a field whose name
// says that it carries private material.
func TestNoPrivateField(t *testing.T) {
	t.Parallel()
	suspicious := []string{"private", "secret", "seed", "scalar", "d_value", "exponent", "passphrase", "password", "pkcs8", "plain_key", "material"}
	seen := 0
	matches, err := filepath.Glob("api/claviger/v1/*.proto")
	if err != nil || len(matches) == 0 {
		t.Fatalf("no proto files: %v", err)
	}
	for _, name := range matches {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			code, _, _ := strings.Cut(line, "//")
			if !strings.Contains(code, " = ") {
				continue
			}
			seen++
			for _, word := range suspicious {
				if strings.Contains(strings.ToLower(code), word) {
					t.Errorf("%s: field %q could carry private material", name, strings.TrimSpace(code))
				}
			}
		}
	}
	if seen < 100 {
		t.Fatalf("only %d fields were seen", seen)
	}
}
