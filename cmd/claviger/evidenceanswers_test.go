package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What a run left that was killed is removed by the next one; what a run has
// that goes on, what was just made, and what is another's, is not.
func TestAnswersOfKilledRuns(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	alive, err := newAnswers(parent)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.remove()
	old := time.Now().Add(-time.Hour)
	stays := map[string]bool{filepath.Base(alive.path): true, "claviger-evidence-killed": false, "claviger-evidence-young": true, "claviger-evidence-file": true, "claviger-other": true, "claviger-evidence-link": true}
	for name := range stays {
		path := filepath.Join(parent, name)
		switch name {
		case "claviger-evidence-file":
			err = os.WriteFile(path, nil, 0o600)
		case "claviger-evidence-link":
			err = os.Symlink(filepath.Join(parent, "claviger-other"), path)
		case filepath.Base(alive.path):
			err = nil
		default:
			err = os.Mkdir(path, 0o700)
		}
		if err == nil && name == "claviger-evidence-killed" {
			err = os.WriteFile(filepath.Join(path, "answer"), []byte("x"), 0o600)
		}
		if err == nil && name != "claviger-evidence-young" && name != "claviger-evidence-link" {
			err = os.Chtimes(path, old, old)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	next, err := newAnswers(parent)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range stays {
		if _, err := os.Lstat(filepath.Join(parent, name)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
	next.remove()
	if _, err := os.Stat(next.path); !os.IsNotExist(err) {
		t.Errorf("%s is still there", next.path)
	}
}
