//go:build failpoints

package chaos_test

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/google/go-cmp/cmp"

	"claviger.dev"
	"claviger.dev/internal/audit"
)

// records checks that the store and the audit log tell the same story: every
// change that the store shows has exactly one record, and no other record
// says that something was changed.
func (c *check) records(ctx context.Context) error {
	recorded, ids := map[string]int{}, map[string]int{}
	err := c.all(ctx, func(r *audit.Record) {
		if r.Outcome != audit.Allowed {
			return
		}
		if id := r.Detail["change"]; id != "" {
			ids[id]++
		}
		if f := fact(r); f != "" {
			recorded[f]++
		}
	})
	if err != nil {
		return err
	}
	for id, n := range ids {
		if n != 1 {
			c.fault("change %s is recorded %d times", id, n)
		}
	}
	if diff := cmp.Diff(c.facts(), recorded); diff != "" {
		c.fault("what the store shows (-) and what is recorded (+):\n%s", diff)
	}
	if c.found.outbox > 0 {
		c.fault("records wait in the outbox")
	}
	return nil
}

// fact is what a record says was changed; empty when it is nothing that the
// store shows.
func fact(r *audit.Record) string {
	switch r.Action {
	case "key.create":
		return "create " + string(r.KeyID)
	case "key.rotate", "key.import":
		return "version " + versionText(r.KeyID, r.Version)
	case "key.state":
		return fmt.Sprintf("move %s from %s to %s", versionText(r.KeyID, r.Version), r.Detail["from"], r.Detail["to"])
	case "key.rename":
		return "rename " + string(r.KeyID)
	case "grant.create", "grant.revoke":
		return r.Action + " " + string(r.Grant)
	case "principal.create", "principal.revoke":
		return r.Action + " " + r.Detail["principal_id"]
	case "principal.enrol", "principal.renew":
		return "certify " + r.Detail["serial"]
	case "certificate.revoke":
		return "revoke " + r.Detail["serial"]
	case "session.end":
		return "end " + r.Detail["session"]
	}
	return ""
}

// facts returns the same of what the store shows.
func (c *check) facts() map[string]int {
	facts := map[string]int{}
	for id, key := range c.found.keys {
		facts["create "+string(id)]++
		if n := len(key.Aliases); n > 0 {
			facts["rename "+string(id)] = n
		}
		for _, v := range key.Versions {
			if v.Number > 1 || v.Origin == claviger.Imported {
				facts["version "+versionText(id, v.Number)]++
			}
			for _, t := range v.History {
				if t.Reason == stateReason {
					facts[fmt.Sprintf("move %s from %s to %s", versionText(id, v.Number), t.From, t.To)]++
				}
			}
		}
	}
	for id, g := range c.found.grants {
		facts["grant.create "+string(id)]++
		if !g.Revoked.IsZero() {
			facts["grant.revoke "+string(id)]++
		}
	}
	for id, p := range c.found.principals {
		facts["principal.create "+string(id)]++
		if !p.Revoked.IsZero() {
			facts["principal.revoke "+string(id)]++
		}
	}
	for id, s := range c.found.sessions {
		if s.State == claviger.SessionEnded {
			facts["end "+string(id)]++
		}
	}
	for serial, cert := range c.found.certificates {
		facts["certify "+serial]++
		if cert.Reason == revokeReason {
			facts["revoke "+serial]++
		}
	}
	return facts
}

// useRecords checks that every use that was released has its record, that
// verifications and counts from before a flush are written, and that no
// budget was overspent.
func (c *check) useRecords(ctx context.Context) error {
	released := map[string]int{}           // by request
	requests := map[string]*audit.Record{} // the last that allowed a request
	spent := map[claviger.ID]uint64{}      // by grant
	verified := map[[2]claviger.ID]int{}   // by principal and key
	err := c.all(ctx, func(r *audit.Record) {
		if !strings.HasPrefix(r.Action, "use.") {
			return
		}
		n := 0
		switch {
		case r.Outcome == audit.Allowed:
			n = 1
			requests[r.RequestID] = r
		case r.Reason == "dropped-before-release":
			n = -1
		}
		released[r.RequestID] += n
		spent[r.Grant] += uint64(max(n, 0) * r.Count)
		if r.Action == "use.verify" || r.Action == "use.verify-mac" {
			verified[[2]claviger.ID{r.Principal, r.KeyID}] += n * r.Count
		}
	})
	if err != nil {
		return err
	}
	for _, l := range c.told {
		if l.What != isUse {
			continue
		}
		u, r := l.Use, requests[l.Use.Request]
		if n := released[u.Request]; n != 1 {
			c.fault("the use %s of %s was released and has %d records", u.Request, u.Name, n)
			continue
		}
		if r.Action != "use."+string(u.Op) || r.KeyID != u.Key || r.Principal != u.By || r.Count != len(u.Inputs) ||
			u.Op.Protects() && r.Version != u.Version || u.Grant != "" && r.Grant != u.Grant {
			c.fault("the use %s of %s is recorded as %+v", u.Request, u.Name, *r)
		}
	}
	for id, g := range c.found.grants {
		if limit := g.Conditions.Count; limit > 0 && spent[id] > limit {
			c.fault("the grant %s allows %d uses and %d are recorded", id, limit, spent[id])
		}
	}
	return c.flushed(ctx, verified)
}

// flushed checks what is gathered in memory, as far as it was flushed.
func (c *check) flushed(ctx context.Context, verified map[[2]claviger.ID]int) error {
	type counter struct {
		verified map[[2]claviger.ID]int
		used     map[claviger.ID]uint64
	}
	gathered, written := map[string]*counter{}, counter{map[[2]claviger.ID]int{}, map[claviger.ID]uint64{}}
	for _, l := range c.told {
		g := gathered[l.Worker]
		if g == nil {
			g = &counter{map[[2]claviger.ID]int{}, map[claviger.ID]uint64{}}
			gathered[l.Worker] = g
		}
		switch l.What {
		case isVerified:
			g.verified[[2]claviger.ID{l.Use.By, l.Use.Key}] += len(l.Use.Inputs)
			g.used[l.Use.Key] += uint64(len(l.Use.Inputs))
		case isUse:
			g.used[l.Use.Key] += uint64(len(l.Use.Inputs))
		case isFlushed: // a key is used by one worker alone
			maps.Copy(written.verified, g.verified)
			maps.Copy(written.used, g.used)
		}
	}
	for pair, n := range written.verified {
		if verified[pair] < n {
			c.fault("%s verified %d items with %s before a flush, and %d are recorded", pair[0], n, pair[1], verified[pair])
		}
	}
	for id, n := range written.used {
		view, err := c.Key(ctx, c.op, string(id))
		if err != nil {
			return err
		}
		if view.Use.Count < n {
			c.fault("%s was used %d times before a flush, and counts %d", view.Name, n, view.Use.Count)
		}
	}
	return nil
}
