package keeper

import (
	"fmt"
	"testing"
	"time"

	"claviger.dev"
)

func TestChallengesAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1, 0)
	c := newChallenges(func() time.Time { return now })
	put := func(n int) error {
		p := &pending{action: "principal.enrol", subject: fmt.Sprint("code ", n)}
		p.ID, p.Expires = fmt.Sprint("id ", n), now.Add(challengeLifetime)
		return c.put(p)
	}
	for n := range maxChallenges {
		if err := put(n); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(maxChallenges); claviger.CodeOf(err) != claviger.Exhausted {
		t.Errorf("one more than there may be: %v", err)
	}
	if err := put(7); err != nil || len(c.waiting) != maxChallenges {
		t.Errorf("in place of another of its subject: %v, %d wait", err, len(c.waiting))
	}
	if _, err := c.take("id 7", "principal.renew"); claviger.CodeOf(err) != claviger.Unauthenticated {
		t.Errorf("for something else: %v", err)
	}
	if _, err := c.take("id 7", "principal.enrol"); claviger.CodeOf(err) != claviger.Unauthenticated {
		t.Errorf("after it was taken for something else: %v", err)
	}
	if p, err := c.take("id 8", "principal.enrol"); err != nil || p.ID != "id 8" {
		t.Errorf("%+v, %v", p, err)
	}
	now = now.Add(challengeLifetime)
	if _, err := c.take("id 9", "principal.enrol"); claviger.CodeOf(err) != claviger.Unauthenticated {
		t.Errorf("after it expired: %v", err)
	}
	if err := put(0); err != nil || len(c.waiting) != 1 {
		t.Errorf("expired ones stay: %v, %d wait", err, len(c.waiting))
	}
}
