package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// load is one run of operations against a server.
type load struct {
	concurrency int
	rate        float64 // calls a second that arrive whatever happens to the ones before (open loop); 0 for as many as go
	duration    time.Duration
	call        func(ctx context.Context, worker int) error
}

// outcome is what a load saw.
type outcome struct {
	calls, failures uint64
	firstError      error
	elapsed         time.Duration
	latencies       []time.Duration // sorted; from the moment at which a call was due
}

// run drives the load to its end.
func (l load) run(ctx context.Context) outcome {
	var (
		next     atomic.Uint64
		mu       sync.Mutex
		out      outcome
		wg       sync.WaitGroup
		began    = time.Now()
		deadline = began.Add(l.duration)
	)
	for worker := range l.concurrency {
		wg.Go(func() {
			var mine []time.Duration
			var failed uint64
			var first error
			for {
				due := time.Now()
				if l.rate > 0 {
					due = began.Add(time.Duration(float64(next.Add(1)-1) / l.rate * float64(time.Second)))
				}
				if !due.Before(deadline) || !until(ctx, due) {
					break
				}
				if err := l.call(ctx, worker); err != nil {
					failed++
					if first == nil {
						first = err
					}
					continue
				}
				mine = append(mine, time.Since(due))
			}
			mu.Lock()
			defer mu.Unlock()
			out.latencies = append(out.latencies, mine...)
			out.failures += failed
			if out.firstError == nil {
				out.firstError = first
			}
		})
	}
	wg.Wait()
	out.elapsed = time.Since(began)
	out.calls = uint64(len(out.latencies))
	slices.Sort(out.latencies)
	return out
}

// until waits for a moment; false when ctx ended first.
func until(ctx context.Context, at time.Time) bool {
	wait := time.Until(at)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// quantile returns the latency below which the share q of the calls lie.
func (o outcome) quantile(q float64) time.Duration {
	if len(o.latencies) == 0 {
		return 0
	}
	return o.latencies[min(len(o.latencies)-1, int(q*float64(len(o.latencies))))]
}

// perSecond is the rate of calls that succeeded.
func (o outcome) perSecond() float64 { return float64(o.calls) / o.elapsed.Seconds() }

// usage is what a process has used so far.
type usage struct {
	cpu      time.Duration
	resident int64 // bytes
}

// usageOf reads a process's CPU time and resident memory.
func usageOf(pid int) (usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	// The second field is the name in parentheses and may hold anything.
	rest := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
	var state string
	var skip int64
	var user, system, pages int64
	fields := []any{&state}
	for n := 4; n <= 24; n++ {
		switch n {
		case 14:
			fields = append(fields, &user)
		case 15:
			fields = append(fields, &system)
		case 24:
			fields = append(fields, &pages)
		default:
			fields = append(fields, &skip)
		}
	}
	if _, err := fmt.Sscan(rest, fields...); err != nil {
		return usage{}, fmt.Errorf("read the usage of process %d: %w", pid, err)
	}
	const ticksPerSecond = 100 // USER_HZ, fixed on Linux
	return usage{cpu: time.Duration(user+system) * time.Second / ticksPerSecond, resident: pages * int64(unix.Getpagesize())}, nil
}

// childrenOf returns the pids of a process's children by program name.
func childrenOf(pid int) (map[string]int, error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	found := map[string]int{}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(text)) {
			exe, err := os.Readlink("/proc/" + field + "/exe")
			if err != nil {
				continue
			}
			var child int
			if _, err := fmt.Sscan(field, &child); err == nil {
				found[filepath.Base(exe)] = child
			}
		}
	}
	return found, nil
}
