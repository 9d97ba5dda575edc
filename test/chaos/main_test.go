//go:build failpoints

package chaos_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"claviger.dev/internal/custody/custodytest"
)

// The environment of a child.
const (
	roleVariable    = "CLAVIGER_CHAOS_ROLE"    // worker or verifier; unset in the parent
	dirVariable     = "CLAVIGER_CHAOS_DIR"     // directory of the server
	keydVariable    = "CLAVIGER_CHAOS_KEYD"    // path of the key process
	seedVariable    = "CLAVIGER_CHAOS_SEED"    // of the parent's first run, and of a child's choices
	attemptVariable = "CLAVIGER_CHAOS_ATTEMPT" // which child of a run this is, from 0
	runsVariable    = "CLAVIGER_CHAOS_RUNS"    // of the parent: how many runs
)

// The roles of a child.
const (
	worker   = "worker"
	verifier = "verifier"
)

// keyd is the path of the built key process.
var keyd string

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(child(context.Background(), role))
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "chaos")
		if err == nil {
			defer os.RemoveAll(dir)
			keyd, err = custodytest.Build(dir, true)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}
