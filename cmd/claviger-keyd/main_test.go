package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestClosure says what the key process can never do, since it is not in it.
func TestClosure(t *testing.T) {
	t.Parallel()
	for _, experiment := range []string{"runtimesecret", "noruntimesecret"} {
		cmd := exec.Command("go", "list", "-deps", ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOEXPERIMENT="+experiment)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		deps := map[string]bool{}
		for dep := range strings.FieldsSeq(string(out)) {
			deps[dep] = true
		}
		if !deps["claviger.dev/internal/hazmat"] || deps["runtime/secret"] != (experiment == "runtimesecret") {
			t.Errorf("%s: the closure of %d packages is not the key process's", experiment, len(deps))
		}
		for _, name := range []string{
			"net", "net/http", "os/exec", "database/sql", "encoding/gob", "crypto/x509", "crypto/tls", "plugin", "C", "runtime/cgo",
			"net/http/pprof", "runtime/pprof", "runtime/trace", "expvar", "testing",
		} {
			if deps[name] {
				t.Errorf("%s: %s is in the key process", experiment, name)
			}
		}
	}
}

func TestRefusesToStartByHand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", dir+"/keyd", ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, args := range [][]string{nil, {"serve"}, {"-others", "root"}, {"-relax", "no such measure"}} {
		out, err := exec.Command(dir+"/keyd", args...).CombinedOutput()
		if err == nil || len(out) == 0 {
			t.Errorf("%q: started without sockets: %s", args, out)
		}
	}
}
