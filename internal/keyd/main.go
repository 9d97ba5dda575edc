package keyd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"claviger.dev/internal/harden"
	"claviger.dev/internal/hazmat"
)

// The descriptors that the supervisor passes.
const (
	framesFD = 3
	rootFD   = 4
)

// quiet is how long a process rests before what it left behind is erased.
const quiet = 250 * time.Millisecond

// Options are the flags of the process.
type Options struct {
	Others    []int    // uids of the server and of claviger-unseal; unknown when empty
	Relax     []string // names of harden's steps that may fail
	ArenaSize int      // bytes; 0 is hazmat.DefaultSize
}

// SetOthers parses uids with commas between.
func (o *Options) SetOthers(text string) error {
	for field := range strings.SplitSeq(text, ",") {
		uid, err := strconv.ParseUint(field, 10, 31)
		if err != nil {
			return errors.New("not a uid")
		}
		o.Others = append(o.Others, int(uid))
	}
	return nil
}

// SetRelax parses names of measures with commas between.
func (o *Options) SetRelax(text string) error {
	o.Relax = append(o.Relax, strings.Split(text, ",")...)
	return nil
}

// harden makes the arena and seals this process, with only the standard
// descriptors and keep open. between runs before calls are filtered; nil: nothing.
func (o Options) harden(keep []int, between func(*hazmat.Arena) error) (*hazmat.Arena, []harden.Measure, error) {
	if builtWithC {
		return nil, nil, errors.New("this build links the C runtime, which the system call filter stops: build with CGO_ENABLED=0")
	}
	sealed, err := harden.Before(harden.Options{Keep: keep, Relax: o.Relax})
	if err != nil {
		return nil, nil, err
	}
	arena, err := hazmat.NewArena(hazmat.Config{Size: o.ArenaSize, Relaxed: slices.Contains(o.Relax, harden.SecretPages)})
	if err != nil {
		return nil, nil, err
	}
	for _, fd := range keep {
		// Plain blocking reads: one thread waits, and no poller wakes it.
		if err := unix.SetNonblock(fd, false); err != nil {
			return nil, nil, fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	if between != nil {
		if err := between(arena); err != nil {
			return nil, nil, err
		}
	}
	uid := os.Getuid()
	if len(o.Others) == 0 {
		o.Others = []int{uid} // not known to be our own
	}
	report, err := sealed.Seal(arena, harden.OwnUID(uid, o.Others...))
	return arena, report.Measures, err
}

// Main hardens this process, takes the root and serves until the server has
// gone. It is called once, first thing.
func Main(o Options) error {
	arena, measures, err := o.harden([]int{framesFD, rootFD}, nil)
	if err != nil {
		return err
	}
	defer arena.Wipe()
	socket, talk := os.NewFile(framesFD, "frames"), os.NewFile(rootFD, "root")
	p := New(arena, measures)
	go func() {
		defer p.guard()
		arena.Collect(context.Background(), quiet)
	}()
	if err := p.Unseal(talk); err != nil {
		return err
	}
	if p.handover == nil {
		_ = talk.Close()
	}
	return p.Serve(socket)
}
