// Package pglog is the home of audit records on PostgreSQL: a table
// partitioned by day.
package pglog

import (
	"context"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Config says where the table is.
type Config struct {
	Pool   *pgxpool.Pool    // Close does not close it
	Writer string           // this server's chain; the same after a restart, no two servers alike
	Now    func() time.Time // nil means time.Now
}

// Open makes or migrates the tables and takes the writer's chain.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	return nil, claviger.Errorf(claviger.Unavailable, "the audit log cannot be opened yet", "try again later")
}

// Log is the open table with this server's chain.
type Log struct{ audit.Log }
