package segment_test

import (
	"testing"

	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/audittest"
	"claviger.dev/internal/audit/segment"
)

func home(t *testing.T, cfg segment.Config) audittest.Home {
	if cfg.Dir == "" && cfg.Files == nil {
		cfg.Dir = t.TempDir()
	}
	return func(t *testing.T) audit.Log {
		t.Helper()
		log, err := segment.Open(t.Context(), cfg)
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		return log
	}
}

func TestSuite(t *testing.T) {
	t.Parallel()
	audittest.Run(t, func(t *testing.T) audittest.Home { return home(t, segment.Config{}) })
}

// With segments of a few records every test of the suite crosses several.
func TestSuiteSmallSegments(t *testing.T) {
	t.Parallel()
	audittest.Run(t, func(t *testing.T) audittest.Home { return home(t, segment.Config{SegmentBytes: 3000}) })
}
