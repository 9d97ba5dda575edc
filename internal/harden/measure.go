// Package harden makes a process hard to read and of little use to whoever
// takes it over, and says what it achieved. It owns the order of the steps,
// their verification and the words for them.
//
// Every step is read back, and a step that does not hold is an error unless
// the caller relaxed it by name. The package must never report a measure as on
// without having seen it hold, never log, and never loosen a process.
package harden

import (
	"slices"

	"claviger.dev"
)

// State says whether a measure holds.
type State string

// The states. Unavailable means that the kernel or the build lacks it.
const (
	On          State = "on"
	Off         State = "off"
	Unavailable State = "unavailable"
)

// Measure is one thing that stands between an attacker and the keys.
type Measure struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail,omitempty"` // what was seen
	Gain   string `json:"gain,omitempty"`   // what an attacker gains where it is not on; empty when on
}

// The names of the measures of a key process; a step is relaxed by its name.
const (
	Descriptors   = "descriptors"    // only the named descriptors are open
	NotDumpable   = "not dumpable"   // PR_SET_DUMPABLE 0
	NoCore        = "no core"        // RLIMIT_CORE 0
	ParentDeath   = "parent death"   // PR_SET_PDEATHSIG SIGKILL
	NoEnvironment = "no environment" // empty, and the original block zeroed
	NoTracebacks  = "no tracebacks"  // a crash prints no stack
	SecretPages   = "secret pages"   // the arena is memfd_secret memory
	SecretErasure = "secret erasure" // built with runtime/secret
	NoNewPrivs    = "no new privileges"
	Landlock      = "landlock" // no file, no TCP, no signal to others
	Seccomp       = "seccomp"  // only the system calls of a read and write loop
	OwnUser       = "own uid"  // nothing else runs under the uid, and it is not 0
)

// Report is what hardening achieved, in the order of the steps.
type Report struct {
	Measures []Measure
}

// required are the measures without which a key process is not isolated.
func required() []string {
	return []string{NotDumpable, NoCore, SecretPages, NoNewPrivs, Seccomp, OwnUser}
}

// Level returns Isolated when NotDumpable, NoCore, SecretPages, NoNewPrivs,
// Seccomp and OwnUser are all there and on, and Exposed otherwise.
func Level(measures []Measure) claviger.Level {
	for _, name := range required() {
		if !slices.ContainsFunc(measures, func(m Measure) bool { return m.Name == name && m.State == On }) {
			return claviger.Exposed
		}
	}
	return claviger.Isolated
}
