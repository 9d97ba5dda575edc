//go:build failpoints

package chaos_test

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

// check holds a server that came back against what had been acknowledged.
type check struct {
	*world
	by    claviger.Principal // may use every key
	told  []line
	found contents
	n     int // requests so far
}

// verify is the role of the verifier: what is wrong becomes a line.
func (w *world) verify(ctx context.Context, acknowledged io.Reader) {
	c := &check{world: w}
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"become ready", c.becomeReady},
		{"read what was acknowledged", func(context.Context) error { return c.read(acknowledged) }},
		{"read the store", c.readStore},
		{"budgets", c.budgets}, // before anything else uses keys
		{"keys", c.keys},
		{"uses that keys must still process", c.uses},
		{"grants and principals", c.withdrawn},
		{"enrolment", c.enrolment},
		{"sessions", c.sessions},
		{"flush", w.Flush},
		{"read the store again", c.readStore},
		{"records of changes", c.records},
		{"records of uses", c.useRecords},
		{"records of sessions", c.sessionRecords},
		{"audit log", c.auditLog},
		{"close", w.Close},
	}
	for _, step := range steps {
		if err := step.do(ctx); err != nil {
			w.fault("%s: %v", step.name, err)
			return
		}
	}
	w.tell(line{What: isDone})
}

// becomeReady makes a first signature.
func (c *check) becomeReady(ctx context.Context) (err error) {
	const name = "verifier"
	if c.by, err = c.caller(ctx, name, 9000+c.attempt); err != nil {
		return err
	}
	if _, err := c.grant(ctx, name, c.by, "prod/*/*", claviger.Conditions{}, claviger.UseOperations...); err != nil {
		return err
	}
	view, err := c.CreateKey(ctx, c.op, keeper.CreateKey{Name: fmt.Sprintf("prod/chaos/verifier-%d", c.attempt), Algorithm: string(claviger.Ed25519)})
	if err != nil {
		return err
	}
	if _, err := c.protect(ctx, c.by, &view.Key, c.request(), []byte("first")); err != nil {
		return err
	}
	c.tell(line{What: isReady})
	return nil
}

func (c *check) request() string {
	c.n++
	return fmt.Sprintf("verifier-%d-%d", c.attempt, c.n)
}

func (c *check) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		raw, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var l line
		if err := json.Unmarshal(raw, &l); err != nil {
			return err
		}
		c.told = append(c.told, l)
	}
}

// contents are the rows of a store.
type contents struct {
	keys         map[claviger.ID]claviger.Key
	blobs        map[string]bool // "key/version"
	grants       map[claviger.ID]claviger.Grant
	principals   map[claviger.ID]claviger.PrincipalRecord
	certificates map[string]store.Certificate // by serial
	sessions     map[claviger.ID]foundSession
	outbox       int
}

func (c *check) readStore(ctx context.Context) error {
	return c.db.View(ctx, func(tx *store.Tx) error {
		f := contents{
			keys: map[claviger.ID]claviger.Key{}, blobs: map[string]bool{}, grants: map[claviger.ID]claviger.Grant{},
			principals: map[claviger.ID]claviger.PrincipalRecord{}, certificates: map[string]store.Certificate{},
		}
		err := errors.Join(
			pages(func(after string) (string, error) {
				keys, next, err := tx.Keys(store.KeyQuery{After: after, Limit: store.MaxLimit})
				for _, key := range keys {
					f.keys[key.ID] = key
				}
				return next, err
			}),
			pages(func(after string) (string, error) {
				grants, next, err := tx.Grants(store.GrantQuery{After: after, Limit: store.MaxLimit})
				for _, g := range grants {
					f.grants[g.ID] = g
				}
				return next, err
			}),
			pages(func(after string) (string, error) {
				principals, next, err := tx.Principals(store.PrincipalQuery{After: after, Limit: store.MaxLimit})
				for _, p := range principals {
					f.principals[p.ID] = p
				}
				return next, err
			}))
		if err != nil {
			return err
		}
		for id, key := range f.keys {
			for _, v := range key.Versions {
				_, _, err := tx.Blob(id, v.Number)
				if err != nil && !errors.Is(err, claviger.NotFound) {
					return err
				}
				f.blobs[versionText(id, v.Number)] = err == nil
			}
		}
		for id := range f.principals {
			certificates, err := tx.Certificates(id)
			if err != nil {
				return err
			}
			for _, cert := range certificates {
				f.certificates[cert.Serial] = cert
			}
		}
		if f.sessions, err = sessionsIn(tx); err != nil {
			return err
		}
		waiting, err := tx.Outbox(1)
		f.outbox, c.found = len(waiting), f
		return err
	})
}

func pages(page func(after string) (string, error)) error {
	for after := ""; ; {
		next, err := page(after)
		if err != nil || next == "" {
			return err
		}
		after = next
	}
}

func versionText(id claviger.ID, number uint32) string { return fmt.Sprintf("%s/%d", id, number) }

// keys checks that no acknowledged change of a key is lost, that every key is
// in a state that it may be in, and that its material is there if and only if
// it is not destroyed.
func (c *check) keys(ctx context.Context) error {
	for _, l := range c.told {
		if l.What == isKey {
			c.notLost(ctx, l.Key)
		}
	}
	for id, key := range c.found.keys {
		active := 0
		for _, v := range key.Versions {
			from := claviger.State("")
			for _, t := range v.History {
				if t.From != from || claviger.TransitionNumber(t.From, t.To) == 0 {
					c.fault("version %d of %s went from %q to %q", v.Number, key.Name, t.From, t.To)
				}
				from = t.To
			}
			if from != v.State {
				c.fault("version %d of %s is %s and its history ends in %s", v.Number, key.Name, v.State, from)
			}
			if has := c.found.blobs[versionText(id, v.Number)]; has == (v.State == claviger.Destroyed) {
				c.fault("version %d of %s is %s; its blob is there: %t", v.Number, key.Name, v.State, has)
			}
			if v.State == claviger.Active {
				active++
			}
		}
		if active > 1 {
			c.fault("%s has %d active versions", key.Name, active)
		}
		if active == 1 && key.Name.Environment() == "prod" {
			if err := c.works(ctx, &key); err != nil {
				return err
			}
		}
	}
	return nil
}

// notLost checks that a key is at least where it was when a change was
// acknowledged.
func (c *check) notLost(_ context.Context, was *claviger.Key) {
	is, ok := c.found.keys[was.ID]
	if !ok {
		c.fault("%s is gone", was.Name)
		return
	}
	if is.Revision < was.Revision {
		c.fault("%s is at revision %d, acknowledged was %d", was.Name, is.Revision, was.Revision)
	}
	if is.Name != was.Name && !slices.Contains(is.Aliases, was.Name) {
		c.fault("%s is now %s, and the old name leads nowhere", was.Name, is.Name)
	}
	for _, v := range was.Versions {
		now := is.Version(v.Number)
		if now == nil || now.Fingerprint != v.Fingerprint || len(now.History) < len(v.History) ||
			!slices.EqualFunc(now.History[:len(v.History)], v.History, func(a, b claviger.Transition) bool {
				return a.From == b.From && a.To == b.To && a.By == b.By && a.Reason == b.Reason && a.At.Equal(b.At)
			}) {
			c.fault("version %d of %s was %s when that was acknowledged, and is not what became of that", v.Number, was.Name, v.State)
		}
	}
}

// works checks that the active version of a key can be used, and that what it
// makes is genuine.
func (c *check) works(ctx context.Context, key *claviger.Key) error {
	u, err := c.protect(ctx, c.by, key, c.request(), []byte("after"))
	if errors.Is(err, claviger.Exhausted) && key.Settings.MaxInvocations == budgetLimit {
		return nil
	}
	if err != nil {
		return fmt.Errorf("use %s: %w", key.Name, err)
	}
	ok, _, err := c.process(ctx, c.by, key, u, c.request())
	if err == nil && !ok {
		c.fault("what %s made is not genuine", key.Name)
	}
	return err
}

// uses checks that what was protected can be processed, in the states that
// permit it, and in no other.
func (c *check) uses(ctx context.Context) error {
	for _, l := range c.told {
		if l.What != isUse || !l.Use.Op.Protects() {
			continue
		}
		key, ok := c.found.keys[l.Use.Key]
		if !ok || key.Version(l.Use.Version) == nil {
			c.fault("version %d of %s was used, and is gone", l.Use.Version, l.Use.Name)
			continue
		}
		state := key.Version(l.Use.Version).State
		want := state == claviger.Active || state == claviger.Deactivated
		got, _, err := c.process(ctx, c.by, &key, l.Use, c.request())
		if err != nil && (want || !errors.Is(err, claviger.Denied)) {
			return fmt.Errorf("process what version %d (%s) of %s made: %w", l.Use.Version, state, key.Name, err)
		}
		if got != want {
			c.fault("version %d of %s is %s; it processed what it made: %t", l.Use.Version, key.Name, state, got)
		}
	}
	return nil
}

// withdrawn checks that what was granted stands, and what was withdrawn stays
// withdrawn.
func (c *check) withdrawn(ctx context.Context) error {
	for _, l := range c.told {
		switch l.What {
		case isPrincipal:
			p, ok := c.found.principals[l.Principal.ID]
			if !ok || p.Revoked.IsZero() && !l.Principal.Revoked.IsZero() {
				c.fault("the principal %s is not there, or not revoked any more", l.Principal.Name)
			}
		case isGrant:
			g, ok := c.found.grants[l.Grant.ID]
			if !ok || g.Revoked.IsZero() && !l.Grant.Revoked.IsZero() {
				c.fault("the grant %s is not there, or not revoked any more", l.Grant.ID)
			}
		}
		if (l.What == isPrincipal || l.What == isGrant) && l.Key != nil {
			by, err := c.ByUID(ctx, claviger.Facts{UID: l.UID, RequestID: c.request()})
			if err == nil {
				_, err = c.protect(ctx, by, l.Key, c.request(), []byte("after"))
			}
			if code := claviger.CodeOf(err); code != claviger.Denied && code != claviger.Unauthenticated {
				c.fault("uid:%d used %s after its right was withdrawn: %v", l.UID, l.Key.Name, err)
			}
		}
	}
	return nil
}

// enrolment checks certificates, and that a code works once: not at all when
// it was traded, and still when it was not.
func (c *check) enrolment(ctx context.Context) error {
	issued := map[claviger.ID]int{}
	for _, cert := range c.found.certificates {
		issued[cert.Principal]++
	}
	for _, l := range c.told {
		switch l.What {
		case isCertificate, isRevokedChain:
			row, ok := c.found.certificates[l.Serial]
			if !ok || l.What == isRevokedChain && row.Revoked.IsZero() {
				c.fault("certificate %s is not there, or not revoked any more", l.Serial)
			}
			leaf, err := x509.ParseCertificate(l.Chain[0])
			if err != nil {
				return err
			}
			_, err = c.ByCertificate(ctx, leaf, claviger.Facts{UID: -1})
			if known := err == nil; known != row.Revoked.IsZero() {
				c.fault("certificate %s, revoked: %t, is known: %v", l.Serial, !row.Revoked.IsZero(), err)
			}
		case isCode:
			csr, err := certificateRequest()
			if err != nil {
				return err
			}
			_, err = c.Enroll(ctx, l.Code, csr, claviger.Facts{UID: -1})
			if err != nil && !errors.Is(err, claviger.Unauthenticated) {
				return err
			}
			if traded := issued[l.Principal.ID] > 0; traded == (err == nil) {
				c.fault("the code of %s, which has %d certificates, was taken: %v", l.Principal.Name, issued[l.Principal.ID], err)
			}
		}
	}
	return nil
}

// budgets checks that what was used before the crash and what can be used
// after it are together no more than the budget, and at most one use less:
// the one that the crash cut off. Blocks of so small a budget are of one.
func (c *check) budgets(ctx context.Context) error {
	for _, l := range c.told {
		if l.What != isBudget {
			continue
		}
		before := 0
		for _, other := range c.told {
			if other.What == isUse && other.Use.Key == l.Key.ID && other.Use.Op.Protects() {
				before++
			}
		}
		by, err := c.ByUID(ctx, claviger.Facts{UID: l.UID})
		if err != nil {
			return err
		}
		after := 0
		for ; after <= budgetLimit; after++ {
			_, err = c.protect(ctx, by, l.Key, c.request(), []byte("one of a few"))
			if err != nil {
				break
			}
		}
		if !errors.Is(err, claviger.Exhausted) {
			c.fault("the budget of uid:%d on %s ended with %v", l.UID, l.Key.Name, err)
		}
		if all := before + after; all > budgetLimit || all < budgetLimit-1 {
			c.fault("of a budget of %d on %s, %d were used before and %d after the crash", budgetLimit, l.Key.Name, before, after)
		}
	}
	return nil
}

// auditLog checks the chain, against every checkpoint that was kept.
func (c *check) auditLog(ctx context.Context) error {
	checkpoints := [][]byte{nil}
	for _, l := range c.told {
		if l.What == isCheckpoint {
			checkpoints = append(checkpoints, l.Checkpoint)
		}
	}
	for _, checkpoint := range checkpoints {
		report, err := c.VerifyAudit(ctx, c.op, checkpoint)
		if err != nil {
			return err
		}
		for _, f := range report.Faults {
			c.fault("%v", f)
		}
	}
	return nil
}

// all calls f for every record of the audit log.
func (c *check) all(ctx context.Context, f func(*audit.Record)) error {
	return c.log.Iterate(ctx, audit.Query{}, func(l audit.Line) error {
		f(&l.Record)
		return nil
	})
}
