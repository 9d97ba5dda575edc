package probe

import (
	"context"

	"claviger.dev/internal/hunt"
)

// Hit says that the material of a symmetric key lies in a haystack.
type Hit = hunt.Hit

// SearchConfig says what to search for and where.
type SearchConfig struct {
	Keys  []hunt.Key // the asymmetric versions
	Names []string   // of other keys, for speed
	// Symmetric asks the key process which symmetric keys a haystack of at most
	// hunt.MaxHaystack bytes contains. It is called by several goroutines, with
	// those parts alone that could be a key, decoded. Nil: there are none.
	Symmetric func(ctx context.Context, haystack []byte) ([]Hit, error)
	Paths     []string
	PIDs      []int
	Progress  func(hunt.Progress) // nil for none
}

// Search looks for copies of all keys in one pass over paths and the memory of
// processes. Its errors are those of hunt.Run; what cannot be read, or asked
// about, is a gap of the report.
func Search(ctx context.Context, c SearchConfig) (*hunt.Report, error) {
	var targets []hunt.Target
	for _, path := range c.Paths {
		targets = append(targets, hunt.Target{Path: path})
	}
	for _, pid := range c.PIDs {
		targets = append(targets, hunt.Target{PID: pid})
	}
	return hunt.Run(ctx, hunt.Config{Keys: c.Keys, Names: c.Names, Symmetric: c.Symmetric, Progress: c.Progress}, targets)
}
