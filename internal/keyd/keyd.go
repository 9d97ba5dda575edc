// Package keyd is the key process: it holds the plaintext of software keys and
// uses them on request, and does nothing else.
//
// It owns the unwrapping of blobs, the slots that hold material, and every
// computation with it. It promises that material and the root key live in the
// arena of hazmat and, while they are used, in memory that is erased after
// use; that every answer names the material that was used; and that no answer
// carries private material. It must never open a file or a socket, log an
// input, or wrap the root for anybody whom the root bundle does not name.
package keyd

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
	"claviger.dev/internal/harden"
	"claviger.dev/internal/hazmat"
	"claviger.dev/internal/rootkey"
)

// Process is one key process. Make it with New.
type Process struct {
	arena    *hazmat.Arena
	measures []frames.Measure
	level    claviger.Level
	now      func() time.Time
	exit     func(int) // never returns

	slots   *slots
	onetime onetimes
	root    atomic.Pointer[root]

	// handover is the talk with claviger-unseal, which ends when the process
	// has its root. Guarded by rooting, as is every change of root.
	rooting  sync.Mutex
	handover io.ReadWriter
	asked    rootkey.Message // Join or Restore
	joinKey  *onetimeKey
}

// New returns a process over the arena, with what hardening achieved.
func New(arena *hazmat.Arena, measures []harden.Measure) *Process {
	var epoch [8]byte
	_, _ = rand.Read(epoch[:])
	p := &Process{
		arena: arena, level: harden.Level(measures), now: time.Now, exit: os.Exit,
		slots:   newSlots(arena, binary.BigEndian.Uint64(epoch[:])),
		onetime: onetimes{keys: map[string]*onetimeKey{}},
	}
	for _, m := range measures {
		p.measures = append(p.measures, frames.Measure{Name: m.Name, State: string(m.State), Detail: m.Detail, Gain: m.Gain})
	}
	return p
}

// Unseal takes the root bundle from claviger-unseal at the other end of talk,
// or learns that there is none yet and it is to join or to be restored.
func (p *Process) Unseal(talk io.ReadWriter) error {
	p.rooting.Lock()
	defer p.rooting.Unlock()
	var err error
	hazmat.Do(func() {
		var m rootkey.Message
		if m, err = rootkey.Receive(talk); err != nil {
			return
		}
		defer m.Bundle.Zero()
		switch m.Kind {
		case rootkey.Deliver, rootkey.Exposed:
			p.measures = append(p.measures, slotsMeasure(m))
			if err = p.install(m.Bundle); err == nil {
				err = rootkey.Send(talk, rootkey.Message{Kind: rootkey.Done})
			}
		case rootkey.Join, rootkey.Restore:
			p.handover, p.asked = talk, rootkey.Message{Kind: m.Kind, Pin: m.Pin}
			err = p.introduce()
		default:
			err = fmt.Errorf("message %q at start", byte(m.Kind))
		}
	})
	if err != nil {
		return fmt.Errorf("take the root: %w", err)
	}
	return nil
}

// slotsMeasure says which slots the root key has and whether one lies open.
func slotsMeasure(from rootkey.Message) frames.Measure {
	m := frames.Measure{Name: "root key slots", State: string(harden.On), Detail: "none is a file"}
	if from.Kind == rootkey.Exposed {
		m.State, m.Detail = string(harden.Off), "INSECURE: one is a file beside what it wraps"
		m.Gain = "whoever reads the disk has the root key, and every key whose blob is there too"
	}
	if from.Slots != "" {
		m.Detail += ": " + from.Slots
	}
	return m
}

// guard is deferred by every goroutine: a panic zeroes the arena and ends the
// process. The value may hold material, so only its type is told.
func (p *Process) guard() {
	if v := recover(); v != nil {
		p.arena.Wipe()
		fmt.Fprintf(os.Stderr, "claviger-keyd: stopped by a fault (%T)\n", v)
		p.exit(70)
	}
}
