package keeper

import (
	"errors"
	"testing"
	"time"

	"claviger.dev"
)

// TestSubmissions: what one principal has stated in an hour is bounded, for that
// hour, and takes nothing from another.
func TestSubmissions(t *testing.T) {
	t.Parallel()
	var s submissions
	now := time.Date(2030, 1, 1, 10, 59, 59, 0, time.UTC)
	for _, step := range []struct {
		by   claviger.ID
		size int
		at   time.Time
		ok   bool
	}{
		{"a", maxSubmitted, now, true}, {"a", 1, now, false}, {"b", 1, now, true}, {"b", maxSubmitted, now, false}, {"b", maxSubmitted - 1, now, true},
		{"a", 1, now.Add(time.Second), true},
	} {
		if err := s.take(step.by, step.size, step.at); (err == nil) != step.ok || err != nil && !errors.Is(err, claviger.Exhausted) {
			t.Errorf("%+v: %v", step, err)
		}
	}
}
