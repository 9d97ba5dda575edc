package dpop_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"claviger.dev/dpop"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	now := start
	m := &dpop.Memory{Limit: 32, PerKey: 4, Now: func() time.Time { return now }}
	burn := func(key, jti string, ttl time.Duration) (bool, error) {
		return m.Burn(t.Context(), key, jti, now.Add(ttl))
	}
	for key := range 8 {
		for jti := range 4 {
			if fresh, err := burn(fmt.Sprint(key), fmt.Sprint(jti), time.Minute); !fresh || err != nil {
				t.Fatalf("key %d, jti %d: %t, %v", key, jti, fresh, err)
			}
		}
	}
	if fresh, err := burn("0", "3", time.Minute); fresh || err != nil {
		t.Errorf("one that was used: %t, %v", fresh, err)
	}
	if _, err := burn("9", "0", time.Minute); !errors.Is(err, dpop.ErrFull) {
		t.Errorf("when it is full: %v", err)
	}
	now = now.Add(time.Minute)
	if fresh, err := burn("0", "0", time.Minute); fresh || err != nil && !errors.Is(err, dpop.ErrFull) {
		t.Errorf("in its last second: %t, %v", fresh, err)
	}
	now = now.Add(3 * time.Second)
	for jti := range 4 {
		if fresh, err := burn("0", fmt.Sprint(jti), time.Minute); !fresh || err != nil {
			t.Errorf("after their time: %t, %v", fresh, err)
		}
	}
	if _, err := burn("0", "4", time.Minute); !errors.Is(err, dpop.ErrFull) {
		t.Errorf("one key with more than its share: %v", err)
	}
	if fresh, err := burn("1", "0", time.Minute); !fresh || err != nil {
		t.Errorf("another key meanwhile: %t, %v", fresh, err)
	}
}

// TestMemoryForgets checks that what is kept is bounded by time, also when
// seconds are passed over, or when nothing happens for long.
func TestMemoryForgets(t *testing.T) {
	t.Parallel()
	now := start
	m := &dpop.Memory{Limit: 200, PerKey: 200, Now: func() time.Time { return now }}
	for i := range 2000 {
		step := time.Second
		if i%100 == 99 {
			step = time.Hour
		}
		now = now.Add(step)
		if fresh, err := m.Burn(t.Context(), "key", fmt.Sprint(i), now.Add(time.Minute)); !fresh || err != nil {
			t.Fatalf("proof %d: %t, %v", i, fresh, err)
		}
	}
}
