package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// benchEvidence measures evidence runs, each a process of its own: one key, all
// of many keys on an idle server, and how much one slows others down.
func (a *app) benchEvidence(ctx context.Context, s *suite) error {
	return a.onRig(ctx, "", func(ctx context.Context, r *rig) error {
		a.say("bench: %d keys are made", manyKeys)
		if err := fillKeys(ctx, r.socket); err != nil {
			return err
		}
		a.say("bench: evidence of one key, then of all")
		one, _, err := r.evidence(ctx, firstKey)
		if err != nil {
			return err
		}
		all, size, err := r.evidence(ctx)
		if err != nil {
			return err
		}
		call, err := r.operation(ctx, benchFlags{algorithm: "ed25519", batch: 1, concurrency: 8, size: 64, transport: "tls"})
		if err != nil {
			return err
		}
		others := load{concurrency: 8, duration: 5 * time.Second, call: call}
		a.say("bench: others alone, and beside a run over all keys")
		before := others.run(ctx)
		during, err := r.beside(ctx, others)
		if err != nil {
			return err
		}
		after := others.run(ctx)
		alone := (before.perSecond() + after.perSecond()) / 2
		s.line("## Evidence\n")
		s.line("`claviger evidence run` over one key of %d: %.1f s (the goal is under 10 s); over all of them, on an idle server: %.1f s", manyKeys, one.Seconds(), all.Seconds())
		s.line("(the goal is under 60 s), with a statement of %.1f MB. Beside such a run, 8 callers that sign as fast as they can get", float64(size)/1e6)
		s.line("%.0f %% of what they get alone (%.0f of %.0f calls/s; the goal is 90 %%).\n", 100*during.perSecond()/alone, during.perSecond(), alone)
		return nil
	})
}

// evidence makes a run and returns how long it took and the size of its
// statement.
func (r *rig) evidence(ctx context.Context, keys ...string) (time.Duration, int64, error) {
	out := filepath.Join(r.dir, "statement.json")
	began := time.Now()
	cmd, err := r.evidenceCommand(ctx, append(keys, "--out", out)...)
	if err != nil {
		return 0, 0, err
	}
	text, err := cmd.CombinedOutput()
	elapsed := time.Since(began)
	// A host may have something that the run reports; what it took is measured.
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, 0, err
	}
	info, err := os.Stat(out)
	if err != nil {
		return 0, 0, fmt.Errorf("evidence run: %.2000s", text)
	}
	return elapsed, info.Size(), os.Remove(out)
}

func (r *rig) evidenceCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, exe, append([]string{"--address", "unix://" + filepath.Join(r.dir, "run", "claviger.sock"), "evidence", "run"}, args...)...), nil
}

// beside makes the load while a run over all keys goes on, again and again if
// one is over too soon.
func (r *rig) beside(ctx context.Context, l load) (outcome, error) {
	running, stop := context.WithCancel(ctx)
	failed := make(chan error, 1)
	go func() {
		for running.Err() == nil {
			if _, _, err := r.evidence(running); err != nil && running.Err() == nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	out := l.run(ctx)
	stop()
	return out, <-failed
}
