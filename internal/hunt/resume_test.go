package hunt_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/hunt"
)

// TestResume interrupts a hunt and has another go on.
func TestResume(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.ECDSAP256)
	dir, saved := t.TempDir(), filepath.Join(t.TempDir(), "state")
	for i := range 20 {
		write(t, dir, "a/"+strconv.Itoa(i), s.raw)
	}
	config := hunt.Config{Keys: []hunt.Key{s.Key}, State: saved}
	first := run(t, config, hunt.Target{Path: filepath.Join(dir, "a")}, hunt.Target{Path: dir})
	if len(first.Findings) != 20 {
		t.Fatalf("%d findings", len(first.Findings))
	}
	text, err := os.ReadFile(saved)
	if err != nil || bytes.Contains(text, s.raw) || bytes.Contains(text, []byte(hex.EncodeToString(s.raw))) {
		t.Fatalf("the state has the key, or cannot be read: %v", err)
	}
	var state map[string]any
	if err := json.Unmarshal(text, &state); err != nil {
		t.Fatal(err)
	}
	state["target"], state["done"] = 1, filepath.Join(dir, "a", "7") // as if it had been interrupted there
	if text, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(saved), "state", text)
	again := run(t, config, hunt.Target{Path: filepath.Join(dir, "a")}, hunt.Target{Path: dir})
	// 8 and 9 come after 7 in the order of the walk.
	if len(again.Findings) != 20 || again.Searched.Files != first.Searched.Files+2 {
		t.Errorf("%d findings, %d files after %d", len(again.Findings), again.Searched.Files, first.Searched.Files)
	}
	if _, err := hunt.Run(t.Context(), config, []hunt.Target{{Path: dir}}); !errors.Is(err, claviger.Conflict) {
		t.Errorf("with the state of another hunt: %v", err)
	}
}

// TestResumeWithinFile goes on in the middle of one large file: what lies
// across the place is found, what lies well before it is not read again.
func TestResumeWithinFile(t *testing.T) {
	t.Parallel()
	s := newSecret(t, claviger.ECDSAP256)
	const size, stopped = 1 << 20, 1 << 19
	early, across, late := 1<<16, stopped-16, 1<<20-1<<12
	data := make([]byte, size)
	for _, at := range []int{early, across, late} {
		copy(data[at:], s.raw)
	}
	dir, saved := t.TempDir(), filepath.Join(t.TempDir(), "state")
	target := hunt.Target{Path: write(t, dir, "image", data)}
	config := hunt.Config{Keys: []hunt.Key{s.Key}, State: saved}
	first := run(t, config, target)
	if len(first.Findings) != 3 {
		t.Fatalf("%d findings", len(first.Findings))
	}
	text, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]any
	if err := json.Unmarshal(text, &state); err != nil {
		t.Fatal(err)
	}
	state["target"], state["done"], state["current"], state["offset"] = 0, "", target.Path, stopped
	state["report"] = map[string]any{}
	if text, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(saved), "state", text)
	again := run(t, config, target)
	var got []int64
	for _, f := range again.Findings {
		got = append(got, f.Offset)
	}
	if diff := cmp.Diff([]int64{int64(across), int64(late)}, got); diff != "" {
		t.Errorf("offsets found after going on (-want +got):\n%s", diff)
	}
	if b := again.Searched.Bytes; b < size-stopped || b > size-stopped+1<<16 {
		t.Errorf("%d bytes were searched after going on at %d of %d", b, stopped, size)
	}
}
