package server

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"claviger.dev"
)

// The tables of docs/api.md are those of the code.
func TestTablesAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"routes": routesTable(), "codes": codesTable()} {
		_, rest, found := strings.Cut(string(text), "<!-- "+name+" -->\n")
		got, _, ended := strings.Cut(rest, "<!-- end -->")
		if !found || !ended || got != want {
			t.Errorf("docs/api.md has another table of %s than the code; it should be\n%s", name, want)
		}
	}
}

func routesTable() string {
	var b strings.Builder
	b.WriteString("| method | body | deadline | caller | right | rate class |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, r := range routes() {
		deadline := r.deadline.String()
		if r.stream {
			deadline = "stream"
		}
		fmt.Fprintf(&b, "| `%s` | %d KiB | %s | %s | %s | %s |\n", strings.TrimPrefix(r.procedure, "/claviger.v1."),
			r.body>>10, deadline, r.auth, cmp.Or(string(r.operation), "-"), r.class)
	}
	return b.String()
}

func codesTable() string {
	var b strings.Builder
	b.WriteString("| code | HTTP | exit status of the CLI |\n| --- | --- | --- |\n")
	for _, code := range slices.Sorted(maps.Keys(claviger.Mappings)) {
		fmt.Fprintf(&b, "| `%s` | %d | %d |\n", code, claviger.Mappings[code].HTTP, claviger.Mappings[code].Exit)
	}
	return b.String()
}
