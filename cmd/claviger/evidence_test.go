package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/hunt"
	"claviger.dev/pubkey"
)

// TestEvidenceHunt runs the command over a file that has a key and one that
// has none, and looks for the key in what it prints.
func TestEvidenceHunt(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pubkey.FromStd(claviger.ECDSAP256, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pub, clean := file("pub.pem", public.PEM()), file("clean", []byte("nothing"))
	planted := file("planted", []byte("key="+hex.EncodeToString(raw)+"\n"))
	symmetric := file("symmetric.jwk", []byte(`{"kty":"oct","k":"AAAA"}`))
	for _, test := range []struct {
		name string
		args []string
		exit int
		says string
	}{
		{"clean", []string{"--public", pub, clean}, 0, "nothing found: 1 files"},
		{"planted", []string{"--public", pub, dir}, 2, `/planted" at 4`},
		{"json", []string{"--public", pub, "--format", "json", planted}, 2, `"offset": 4`},
		{"yaml", []string{"--public", pub, "--format", "yaml", planted}, 2, `offset: 4`},
		{"missing", []string{"--public", pub, filepath.Join(dir, "missing")}, 1, "not searched"},
		{"no process", []string{"--public", pub, "pid:1073741824"}, 1, "no such file or process"},
		{"bad pid", []string{"--public", pub, "pid:x"}, 1, "is not pid: and a number"},
		{"no target", []string{"--public", pub}, 1, "name a path or a process"},
		{"no key", []string{clean}, 1, "public"},
		{"symmetric", []string{"--public", symmetric, clean}, claviger.Mappings[claviger.Unsupported].Exit, "'find'"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var out, talk bytes.Buffer
			exit := run(t.Context(), append([]string{"evidence", "hunt"}, test.args...), nil, &out, &talk)
			all := out.String() + talk.String()
			if exit != test.exit || !strings.Contains(all, test.says) {
				t.Errorf("exit %d, want %d; says\n%s", exit, test.exit, all)
			}
			if strings.Contains(all, hex.EncodeToString(raw)) || strings.Contains(all, string(raw)) {
				t.Error("the key was printed")
			}
			if test.name == "json" {
				var r hunt.Report
				if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Verdict != hunt.Found || len(r.Findings) != 1 {
					t.Errorf("%+v: %v", r, err)
				}
			}
		})
	}
}

// TestProgressBar shows that the bar stays within its bounds whatever an
// archive unpacks to.
func TestProgressBar(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		done, total int64
		want        string
	}{
		{0, 0, ""}, {5, 0, ""}, {0, 100, "[....................]  0% "}, {50, 100, "[##########..........] 50% "},
		{100, 100, "[###################.] 99% "}, {1000, 100, "[###################.] 99% "},
	} {
		if got := progressBar(tt.done, tt.total); got != tt.want {
			t.Errorf("progressBar(%d, %d) = %q, want %q", tt.done, tt.total, got, tt.want)
		}
	}
}
