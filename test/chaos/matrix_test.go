//go:build failpoints

package chaos_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"claviger.dev/internal/failpoint"
)

// readyWithin is how long a server that was killed may take, from the start
// of its process to its first signature.
const readyWithin = 3 * time.Second

// number reads a number from the environment.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text, ok := os.LookupEnv(name)
	if !ok {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// reach counts how often each point killed a process.
type reach struct {
	mu    sync.Mutex
	kills map[failpoint.Name]int
	runs  int
	slow  time.Duration // the slowest start
}

func (r *reach) killed(point failpoint.Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kills[point]++
}

// TestKillMatrix kills a server at every point at least once when there are
// runs enough, and then at random ones.
func TestKillMatrix(t *testing.T) {
	points := failpoint.Names()
	runs := number(t, runsVariable, uint64(len(points)))
	seed := number(t, seedVariable, 1)
	reached := &reach{kills: map[failpoint.Name]int{}}
	t.Run("runs", func(t *testing.T) {
		for i := range runs {
			rng := rand.New(rand.NewPCG(seed, i))
			point := points[int(i)%len(points)]
			if i >= uint64(len(points)) {
				point = points[rng.IntN(len(points))]
			}
			t.Run(fmt.Sprintf("%04d-%s", i, point), func(t *testing.T) {
				t.Parallel()
				r := &run{T: t, rng: rng, dir: t.TempDir(), reached: reached}
				t.Cleanup(func() {
					if t.Failed() {
						t.Logf("to repeat: %s=%d %s=%d go test -tags failpoints -run '%s' ./test/chaos", seedVariable, seed, runsVariable, runs, t.Name())
					}
				})
				r.play(point)
			})
		}
	})
	var table strings.Builder
	missed := 0
	for _, p := range points {
		fmt.Fprintf(&table, "\n%4d  %s", reached.kills[p], p)
		if reached.kills[p] == 0 {
			missed++
		}
	}
	t.Logf("%d runs, %d of %d points killed a server; the slowest came back in %v%s", reached.runs, len(points)-missed, len(points), reached.slow, table.String())
	if reached.runs == int(runs) && reached.runs >= len(points) && missed > 0 {
		t.Errorf("%d points were never reached", missed)
	}
}

// run is one server that is killed, perhaps more than once, and looked at.
type run struct {
	*testing.T
	rng     *rand.Rand
	dir     string
	reached *reach
	attempt int
	told    bytes.Buffer // whole lines of all children that worked
}

// play kills and looks.
func (r *run) play(point failpoint.Name) {
	r.reached.mu.Lock()
	r.reached.runs++
	r.reached.mu.Unlock()
	for _, p := range r.plan(point) {
		hit := fmt.Sprintf("%s=%d", p, 1+r.rng.IntN(hits(p)))
		killed := r.worker(hit)
		r.Logf("%s: killed: %t; %d lines were told until then", hit, killed, bytes.Count(r.told.Bytes(), []byte("\n")))
		if killed {
			r.reached.killed(p)
		}
		r.losePower(killed && p == failpoint.AuditWritten)
	}
	r.verifier()
}

// plan returns the points to kill at, one process after the other.
func (r *run) plan(point failpoint.Name) []failpoint.Name {
	var plan []failpoint.Name
	switch point {
	case failpoint.OutboxReplay, failpoint.OutboxReplayed:
		plan = append(plan, failpoint.ChangeCommitted) // leaves a row
	case failpoint.AuditOpen:
		plan = append(plan, failpoint.AuditWritten) // leaves a tail
	}
	plan = append(plan, point)
	migrating := strings.HasPrefix(string(point), "migrate.")
	switch again := r.rng.IntN(4); {
	case again == 0 && point == failpoint.ChangeCommitted: // once more, while it recovers
		plan = append(plan, failpoint.OutboxReplayed)
	case again == 0:
		plan = append(plan, failpoint.AuditOpen)
	case again == 1 && migrating && point != failpoint.MigrateCommitted:
		plan = append(plan, failpoint.MigrateStatement)
	case again == 1: // once more, when it works again
		plan = append(plan, []failpoint.Name{failpoint.ChangeCommitted, failpoint.UseRecorded, failpoint.AuditWritten}[r.rng.IntN(3)])
	}
	return plan
}

// hits returns how often a worker surely reaches a point.
func hits(p failpoint.Name) int {
	switch p {
	case failpoint.AuditOpen, failpoint.OutboxReplay, failpoint.OutboxReplayed,
		failpoint.MigrateBegin, failpoint.MigrateRecord, failpoint.MigrateCommitted:
		return 1
	case failpoint.ChangeBegin, failpoint.ChangeOutbox, failpoint.ChangeCommitted, failpoint.ChangeRecorded, failpoint.ChangeDropped,
		failpoint.UsePermitted, failpoint.UseDone, failpoint.UseRecorded,
		failpoint.AuditWrite, failpoint.AuditWritten, failpoint.AuditSynced:
		return 100
	case failpoint.MigrateStatement:
		return 20
	case failpoint.BudgetTaken:
		return 30
	}
	return 8
}

// worker lets a server work until it is killed at a point, and reports whether
// it was.
func (r *run) worker(hit string) (killed bool) {
	lines, killed := r.child(worker, hit, nil)
	done := false
	for _, l := range lines {
		switch l.What {
		case isFault:
			r.Error(l.Text)
		case isDone:
			done = true
		}
	}
	if !killed && !done {
		r.Errorf("the worker of attempt %d ended by itself", r.attempt)
	}
	r.attempt++
	return killed
}

// verifier starts the server once more and lets it look at itself.
func (r *run) verifier() {
	lines, killed := r.child(verifier, "", bytes.NewReader(r.told.Bytes()))
	if killed {
		r.Error("the verifier was killed")
	}
	ready, done := false, false
	for _, l := range lines {
		switch l.What {
		case isFault:
			r.Error(l.Text)
		case isReady:
			ready = true
		case isDone:
			done = true
		}
	}
	if !ready || !done && !r.Failed() {
		r.Errorf("the server came back: %t; the verifier came to its end: %t", ready, done)
	}
}

// child runs a child to its end and returns what it told; that of workers is
// kept for the verifier.
func (r *run) child(role, hit string, stdin io.Reader) (lines []line, killed bool) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), childDeadline+10*time.Second)
	defer cancel()
	from, to, err := os.Pipe()
	if err != nil {
		r.Fatal(err)
	}
	defer from.Close()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "CLAVIGER_") }),
		roleVariable+"="+role, dirVariable+"="+r.dir, keydVariable+"="+keyd, "CLAVIGER_FAILPOINT="+hit,
		fmt.Sprintf("%s=%d", seedVariable, r.rng.Uint64()), fmt.Sprintf("%s=%d", attemptVariable, r.attempt))
	cmd.Stdin, cmd.Stderr, cmd.ExtraFiles = stdin, &stderr, []*os.File{to}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its key process dies with it, whatever happens
	began := time.Now()
	if err := errors.Join(cmd.Start(), to.Close()); err != nil {
		r.Fatal(err)
	}
	defer func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }()
	reader := bufio.NewReader(from)
	for {
		raw, err := reader.ReadBytes('\n')
		if err != nil { // a last line that was cut off was told to nobody
			break
		}
		var l line
		if err := json.Unmarshal(raw, &l); err != nil {
			r.Fatal(err)
		}
		if l.What == isReady {
			r.cameBack(time.Since(began))
		}
		lines = append(lines, l)
		if role == worker && l.What != isFault && l.What != isDone {
			r.told.Write(raw)
		}
	}
	err = cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGKILL {
		if ctx.Err() != nil {
			r.Fatalf("the %s did not end in time", role)
		}
		return lines, true
	}
	if err != nil {
		r.Errorf("the %s ended with %v: %s", role, err, stderr.String())
	}
	return lines, false
}

// cameBack checks how long a start took.
func (r *run) cameBack(after time.Duration) {
	if after > readyWithin {
		r.Errorf("the server came back after %v, more than %v", after, readyWithin)
	}
	r.reached.mu.Lock()
	defer r.reached.mu.Unlock()
	r.reached.slow = max(r.reached.slow, after)
}

// database is the path of the store.
func (r *run) database() string { return filepath.Join(r.dir, "claviger.db") }
