// Package probe attempts to take keys out of the soft custodian, from a process
// of its own, and searches whatever the server wrote for copies of them.
//
// It owns the attempts on the key process and on the server from outside, the
// twin of the key process on which the attempts from within are made, and the
// weak process of its own on which every attempt must succeed. It promises that
// an attempt whose control did not leak is called broken, that the production
// processes are neither stopped nor written to, and that what it reports has
// no byte of a key. It must never attempt as root without being asked to, and
// never what changes another process.
package probe

import (
	"context"
	"io"

	"claviger.dev"
	"claviger.dev/internal/hunt"
)

// Config says what is probed and how.
type Config struct {
	KeydPID   int // the key process
	ServerPID int // the server; 0: it is not probed
	// AsRoot adds what only root can try, passively: reads and dumps of memory.
	// Without it nothing is tried with privileges.
	AsRoot bool
	// Keys are hunted for in the readable memory of both processes, AsRoot alone.
	Keys []hunt.Key
	// Child is the command that calls Child: this program and its arguments. It
	// is started as the attacker and as the weak process.
	Child []string
	// Keyd is the program of the key process, which is started as its twin.
	// Where it is "" the attempts that need one are not attempted.
	Keyd string
}

// Soft makes the attempts on the key process and on the server, as the user of
// each: as its caller where that is the same user, through a child with that
// uid where the caller is root. It fails only where nothing can be attempted at
// all: claviger.NotFound when there is no such process.
func Soft(ctx context.Context, c Config) ([]claviger.Attempt, error) {
	return nil, claviger.Errorf(claviger.Unavailable, "the attempts are not part of this build", "")
}

// Child is the body of the process that Soft starts by Config.Child. It reads
// its order from in and answers on out.
func Child(in io.Reader, out io.Writer) error {
	return claviger.Errorf(claviger.Unavailable, "the attempts are not part of this build", "")
}

// Hit says that the material of a symmetric key lies in a haystack.
type Hit struct {
	Key         string
	Fingerprint claviger.Fingerprint
	Offset      int
	Encoding    string // such as "raw"
}

// SearchConfig says what to search for and where.
type SearchConfig struct {
	Keys []hunt.Key // the asymmetric versions
	// Symmetric asks the key process which symmetric keys a haystack of at most
	// 1 MiB contains. Nil: there are none.
	Symmetric func(ctx context.Context, haystack []byte) ([]Hit, error)
	Paths     []string
	PIDs      []int
	Progress  func(hunt.Progress) // nil for none
}

// Search looks for copies of all keys in one pass over paths and the memory of
// processes.
func Search(ctx context.Context, c SearchConfig) (*hunt.Report, error) {
	return nil, claviger.Errorf(claviger.Unavailable, "the search is not part of this build", "")
}
