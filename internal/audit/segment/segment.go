// Package segment is the home of audit records beside the embedded store:
// append-only files of JSON Lines in one directory.
package segment

import (
	"context"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
)

// Config says where the segments are.
type Config struct {
	Dir          string           // made when it is missing, mode 0700
	SegmentBytes int64            // a segment is sealed when it is this long; 0 means 32 MiB
	AcceptBroken bool             // go on after a broken chain; Verify keeps naming the break
	Now          func() time.Time // nil means time.Now
}

// Open opens or starts the log in a directory. One process at a time may have
// it open; a second gets claviger.Conflict.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	return nil, claviger.Errorf(claviger.Unavailable, "the audit log cannot be opened yet", "try again later")
}

// Log is an open directory of segments.
type Log struct{ audit.Log }
