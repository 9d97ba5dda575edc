package harden

import (
	"claviger.dev"
	"claviger.dev/internal/hazmat"
)

// Options says what the key process needs and what may be missing.
type Options struct {
	// Keep lists the inherited descriptors that stay open, beside 0, 1 and 2.
	Keep []int
	// Relax names steps that may fail. For development only: what they leave
	// open is in the report and lowers the level of every key.
	Relax []string
}

// KeyProcess is a process on its way to being sealed.
type KeyProcess struct {
	options  Options
	measures []Measure
}

// Before is the first phase, to be called first thing in main: it closes
// unknown descriptors and makes the process unreadable by its own uid. Then
// the caller makes its arena, and seals.
func Before(o Options) (*KeyProcess, error) {
	return nil, claviger.Errorf(claviger.Unavailable, "hardening is not available", "")
}

// Seal is the second phase: it clears the environment, and confines the
// process to reading and writing the descriptors that it has. Only then may
// keys come in. The caller's own measures, such as OwnUID, join the report.
func (p *KeyProcess) Seal(arena *hazmat.Arena, own ...Measure) (Report, error) {
	return Report{}, claviger.Errorf(claviger.Unavailable, "hardening is not available", "")
}

// OwnUID is the measure of whether this process has a uid to itself: uid is
// its own, others are those of the server and of the unsealer.
func OwnUID(uid int, others ...int) Measure {
	return Measure{Name: OwnUser, State: Off}
}

// Server hardens a process that holds no keys: not dumpable, no core, no new
// privileges, umask 077.
func Server() (Report, error) {
	return Report{}, claviger.Errorf(claviger.Unavailable, "hardening is not available", "")
}

// Inspect reports the measures of another process, as far as /proc/PID/status
// shows them, and of the host.
func Inspect(pid int) []Measure { return nil }
