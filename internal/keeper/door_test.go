package keeper_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/keeper"
	"claviger.dev/internal/store"
)

func TestDenialLeavesOneRecordAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	other := w.caller(8)
	w.key("prod/app/key", claviger.Ed25519)
	w.key("prod/app/box", claviger.AES256GCM)
	w.key("stage/app/elsewhere", claviger.Ed25519)
	revoked := w.grant(by, "prod/app/revoked", claviger.Conditions{}, claviger.Sign)
	if _, err := w.RevokeGrant(t.Context(), w.op, string(revoked.ID), "test"); err != nil {
		t.Fatal(err)
	}
	w.key("prod/app/revoked", claviger.Ed25519)
	w.grant(by, "prod/app/key", claviger.Conditions{}, claviger.Verify)
	w.grant(by, "prod/app/missing", claviger.Conditions{}, claviger.Sign)
	w.grant(by, "prod/app/later", claviger.Conditions{NotBefore: time.Now().Add(time.Hour)}, claviger.Sign)
	w.key("prod/app/later", claviger.Ed25519)
	w.grant(by, "prod/app/aud", claviger.Conditions{Audiences: []string{"a"}}, claviger.Sign)
	w.key("prod/app/aud", claviger.Ed25519)
	w.grant(by, "*/app/elsewhere", claviger.Conditions{}, claviger.Sign)
	stranger := claviger.Principal{ID: claviger.NewID(time.Now()), Name: "nobody", Kind: claviger.Operator, Environments: []string{"*"}}
	ctx := t.Context()
	signAs := func(p claviger.Principal, key string) func() error { return func() error { return sign(w, p, key) } }
	for name, tc := range map[string]struct {
		do   func() error
		code claviger.Code
	}{
		"no grant":            {signAs(other, "prod/app/key"), claviger.Denied},
		"other operation":     {signAs(by, "prod/app/key"), claviger.Denied},
		"operator, no grant":  {signAs(w.op, "prod/app/key"), claviger.Denied},
		"revoked grant":       {signAs(by, "prod/app/revoked"), claviger.Denied},
		"not yet":             {signAs(by, "prod/app/later"), claviger.Denied},
		"audience":            {signAs(by, "prod/app/aud"), claviger.Denied},
		"environment":         {signAs(by, "stage/app/elsewhere"), claviger.Denied},
		"system key":          {signAs(w.op, "system/claviger/ca"), claviger.Denied},
		"unknown principal":   {signAs(stranger, "prod/app/key"), claviger.Denied},
		"missing, no grant":   {signAs(other, "prod/app/missing"), claviger.Denied},
		"missing, with grant": {signAs(by, "prod/app/missing"), claviger.NotFound},
		"no name":             {signAs(by, "../../etc/passwd"), claviger.Denied},
		"NUL":                 {signAs(by, "prod/\x00/key"), claviger.Denied},
		"invalid UTF-8":       {signAs(by, "prod/\xff/key"), claviger.Denied},
		"long name":           {signAs(by, strings.Repeat("a", 64<<10)), claviger.Denied},
		"create": {func() error {
			_, err := w.CreateKey(ctx, by, keeper.CreateKey{Name: "prod/app/new", Algorithm: "ed25519"})
			return err
		}, claviger.Denied},
		"create in system": {func() error {
			_, err := w.CreateKey(ctx, w.op, keeper.CreateKey{Name: "system/app/new", Algorithm: "ed25519"})
			return err
		}, claviger.Denied},
		"rotate":       {func() error { _, err := w.Rotate(ctx, by, "prod/app/key", "", 0); return err }, claviger.Denied},
		"rotate CA":    {func() error { _, err := w.Rotate(ctx, w.op, "system/claviger/ca", "", 0); return err }, claviger.Denied},
		"begin import": {func() error { _, err := w.BeginImport(ctx, by, "prod/app/key"); return err }, claviger.Denied},
		"read key":     {func() error { _, err := w.Key(ctx, by, "prod/app/key"); return err }, claviger.Denied},
		"list keys":    {func() error { _, _, err := w.Keys(ctx, by, store.KeyQuery{}); return err }, claviger.Denied},
		"grant": {func() error {
			_, err := w.CreateGrant(ctx, by, keeper.CreateGrant{Principal: string(by.ID), Selector: "prod/app/key", Operations: []string{"sign"}})
			return err
		}, claviger.Denied},
		"revoke":    {func() error { _, err := w.RevokeGrant(ctx, by, string(revoked.ID), ""); return err }, claviger.Denied},
		"principal": {func() error { _, err := w.RevokePrincipal(ctx, by, other.Name, ""); return err }, claviger.Denied},
		"audit":     {func() error { _, err := w.VerifyAudit(ctx, by, nil); return err }, claviger.Denied},
		"rewrap":    {func() error { _, err := w.Rewrap(ctx, by); return err }, claviger.Denied},
		"shares":    {func() error { _, err := w.RecoveryShares(ctx, by); return err }, claviger.Denied},
	} {
		wantDenial(t, w, name, tc.do, tc.code)
	}
	// The control: with a grant the same call reaches the custodian.
	calls := w.keys.calls.Load()
	w.grant(other, "prod/app/key", claviger.Conditions{}, claviger.Sign)
	if err := sign(w, other, "prod/app/key"); err != nil || w.keys.calls.Load() == calls {
		t.Errorf("allowed use: %v, custodian called: %v", err, w.keys.calls.Load() != calls)
	}
}

// wantDenial insists that a call is refused with the code, and leaves one
// record and nothing else.
func wantDenial(t *testing.T, w *world, name string, do func() error, code claviger.Code) {
	t.Helper()
	calls, writes := w.keys.calls.Load(), w.writes()
	var err error
	records := w.since(func() { err = do() })
	wantCode(t, name, err, code)
	if len(records) != 1 || records[0].Outcome != audit.Denied || records[0].Code != code || records[0].Reason == "" {
		t.Errorf("%s: records %+v, want exactly one denial", name, records)
	}
	if n := w.keys.calls.Load() - calls; n != 0 {
		t.Errorf("%s: %d calls of the custodian", name, n)
	}
	if n := w.writes() - writes; n != 0 {
		t.Errorf("%s: %d rows written", name, n)
	}
}

// Whatever withdraws a right between the decision and the release stops the
// release.
func TestFreshness(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		withdraw func(w *world, by claviger.Principal, g keeper.GrantView) error
		want     claviger.Code
	}{
		"grant revoked": {func(w *world, _ claviger.Principal, g keeper.GrantView) error {
			_, err := w.RevokeGrant(w.Context(), w.op, string(g.ID), "test")
			return err
		}, claviger.Denied},
		"principal revoked": {func(w *world, by claviger.Principal, _ keeper.GrantView) error {
			_, err := w.RevokePrincipal(w.Context(), w.op, string(by.ID), "test")
			return err
		}, claviger.Denied},
		"version suspended": {func(w *world, _ claviger.Principal, _ keeper.GrantView) error {
			_, err := w.ChangeState(w.Context(), w.op, "prod/app/key", 1, claviger.Suspended, "test", false)
			return err
		}, claviger.Denied},
		"version destroyed": {func(w *world, _ claviger.Principal, _ keeper.GrantView) error {
			_, err := w.ChangeState(w.Context(), w.op, "prod/app/key", 1, claviger.Destroyed, "test", false)
			return err
		}, claviger.Denied},
		"key rotated": {func(w *world, _ claviger.Principal, _ keeper.GrantView) error {
			_, err := w.Rotate(w.Context(), w.op, "prod/app/key", "test", 0)
			return err
		}, ""},
		"something else": {func(w *world, _ claviger.Principal, _ keeper.GrantView) error {
			_, err := w.Rotate(w.Context(), w.op, "prod/app/other", "test", 0)
			return err
		}, ""},
	} {
		for _, where := range []string{"during the use", "after the record"} {
			t.Run(name+" "+where, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				by := w.caller(7)
				g := w.grant(by, "prod/app/key", claviger.Conditions{}, claviger.Sign)
				w.key("prod/app/key", claviger.Ed25519)
				w.key("prod/app/other", claviger.Ed25519)
				withdraw := func() {
					w.keys.during.Store(nil)
					w.log.after.Store(nil)
					if err := tc.withdraw(w, by, g); err != nil {
						t.Error(err)
					}
				}
				hook := func(r *audit.Record) {
					if r.Action == "use.sign" {
						withdraw()
					}
				}
				if where == "during the use" {
					w.keys.during.Store(&withdraw)
				} else {
					w.log.after.Store(&hook)
				}
				signed, err := w.Sign(t.Context(), by, keeper.SignRequest{Key: "prod/app/key", Inputs: [][]byte{[]byte("m")}})
				wantCode(t, "sign", err, tc.want)
				if (err == nil) != (len(signed.Signatures) == 1) {
					t.Errorf("error %v with %d signatures", err, len(signed.Signatures))
				}
				if name == "key rotated" && signed.Version != 2 {
					t.Errorf("released version %d, want the one that is active: 2", signed.Version)
				}
				if tc.want == "" {
					return
				}
				last := w.records()[len(w.records())-1]
				if last.Outcome != audit.Failed || last.Reason != "dropped-before-release" || last.Code != tc.want {
					t.Errorf("last record is %+v, want that the result was dropped", last)
				}
			})
		}
	}
}

// What cannot be recorded is not released, and comes back by itself.
func TestUnrecordedIsUnavailable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/*/*", claviger.Conditions{}, claviger.UseOperations...)
	w.key("prod/app/key", claviger.Ed25519)
	w.key("prod/app/mac", claviger.HMACSHA256)
	w.key("prod/app/box", claviger.AES256GCM)
	ctx := t.Context()
	sealed, err := w.Seal(ctx, by, keeper.SealRequest{Key: "prod/app/box", Items: []keeper.Plain{{Plaintext: []byte("p")}}})
	if err != nil {
		t.Fatal(err)
	}
	uses := map[string]func() (released bool, err error){
		"sign": func() (bool, error) {
			out, err := w.Sign(ctx, by, keeper.SignRequest{Key: "prod/app/key", Inputs: [][]byte{[]byte("m")}})
			return out.Signatures != nil, err
		},
		"mac": func() (bool, error) {
			out, err := w.MAC(ctx, by, keeper.MACRequest{Key: "prod/app/mac", Inputs: [][]byte{[]byte("m")}})
			return out.MACs != nil, err
		},
		"seal": func() (bool, error) {
			out, err := w.Seal(ctx, by, keeper.SealRequest{Key: "prod/app/box", Items: []keeper.Plain{{Plaintext: []byte("p")}}})
			return out.Sealed != nil, err
		},
		"open": func() (bool, error) {
			out, err := w.Keeper.Open(ctx, by, keeper.OpenRequest{Key: "prod/app/box", Items: []keeper.SealedItem{{Sealed: sealed.Sealed[0]}}})
			return out != nil, err
		},
		"denied": func() (bool, error) { return false, sign(w, w.op, "prod/app/key") },
	}
	w.log.broken.Store(true)
	for name, do := range uses {
		released, err := do()
		wantCode(t, name, err, claviger.Unavailable)
		if released {
			t.Errorf("%s: a result was released without a record", name)
		}
	}
	// Verifications are gathered: within the time of gathering they pass, and
	// then not.
	verify := func() error {
		_, err := w.Verify(ctx, by, keeper.VerifyRequest{Key: "prod/app/key", Items: []keeper.Item{{Input: []byte("m"), Signature: []byte("s")}}})
		return err
	}
	if err := verify(); err != nil {
		t.Errorf("first verification: %v", err)
	}
	w.later(3 * time.Second)
	wantCode(t, "verification that cannot be recorded", verify(), claviger.Unavailable)
	w.log.broken.Store(false)
	for name, do := range uses {
		if released, err := do(); (err == nil) != released || name != "denied" && err != nil {
			t.Errorf("%s after the fault: released %v, %v", name, released, err)
		}
	}
	if err := verify(); err != nil {
		t.Errorf("verification after the fault: %v", err)
	}
}

// Verifications are gathered into few records whose counts are exact.
func TestVerificationsAreGatheredExactly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	by := w.caller(7)
	w.grant(by, "prod/app/key", claviger.Conditions{}, claviger.Sign, claviger.Verify)
	w.key("prod/app/key", claviger.Ed25519)
	signed, err := w.Sign(t.Context(), by, keeper.SignRequest{Key: "prod/app/key", Inputs: [][]byte{[]byte("m")}})
	if err != nil {
		t.Fatal(err)
	}
	const calls, rounds = 200, 3
	records := w.since(func() {
		for range rounds {
			done := make(chan error)
			for range calls {
				go func() {
					_, err := w.Verify(t.Context(), by, keeper.VerifyRequest{Key: "prod/app/key", Items: []keeper.Item{
						{Input: []byte("m"), Signature: signed.Signatures[0]}, {Input: []byte("x"), Signature: signed.Signatures[0]},
					}})
					done <- err
				}()
			}
			for range calls {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			if err := w.Flush(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	records = slices.DeleteFunc(records, func(r audit.Record) bool { return r.PrincipalName == "claviger" }) // system keys
	total := 0
	for _, r := range records {
		total += r.Count
		if r.Action != "use.verify" || r.Outcome != audit.Allowed || r.Digest == "" {
			t.Errorf("record %+v", r)
		}
	}
	if total != 2*calls*rounds || len(records) > 2*rounds {
		t.Errorf("%d records count %d verifications, want few that count %d", len(records), total, 2*calls*rounds)
	}
	view, err := w.Key(t.Context(), w.op, "prod/app/key")
	if err != nil {
		t.Fatal(err)
	}
	if view.Use.Count != 2*calls*rounds+1 {
		t.Errorf("the key counts %d uses, want %d", view.Use.Count, 2*calls*rounds+1)
	}
}

// A permit is made in one place, and operations run in one place.
func TestOneDoor(t *testing.T) {
	t.Parallel()
	allowed := map[string]map[string]bool{
		"permit{":    {"permit.go": true, "sessiondoor.go": true},
		"use(":       {"door.go": true},
		".Sign(":     {"use.go": true, "sessions.go": true, "system.go": true, "server.go": true, "trail.go": true},
		".MAC(":      {"use.go": true, "system.go": true},
		".Seal(":     {"use.go": true},
		".Open(":     {"use.go": true},
		".Generate(": {"custodian.go": true, "sessions.go": true, "system.go": true},
		".Attest(":   {"evidence.go": true, "observe.go": true},
		".Probe(":    {"evidence.go": true, "observe.go": true},
		".Search(":   {"search.go": true},
	}
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 10 {
		t.Fatalf("found %d files: %v", len(files), err)
	}
	seen := map[string]int{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			what := ""
			switch n := n.(type) {
			case *ast.CompositeLit:
				if id, ok := n.Type.(*ast.Ident); ok && len(n.Elts) > 0 {
					what = id.Name + "{"
				}
			case *ast.CallExpr:
				switch f := n.Fun.(type) {
				case *ast.Ident:
					what = f.Name + "("
				case *ast.SelectorExpr:
					what = "." + f.Sel.Name + "("
				}
			}
			if where, ok := allowed[what]; ok {
				seen[what]++
				if !where[file] {
					t.Errorf("%s stands in %s", what, file)
				}
			}
			return true
		})
	}
	for what := range allowed {
		if seen[what] == 0 {
			t.Errorf("%s was not found anywhere: the test looks for the wrong thing", what)
		}
	}
}

// A grant that could never allow anything is refused, not kept.
func TestGrantOfAnotherEnvironment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, tc := range map[string]struct {
		environments []string
		selector     string
		want         claviger.Code
	}{
		"its own":          {[]string{"prod"}, "prod/a/*", ""},
		"another":          {[]string{"prod"}, "stage/a/*", claviger.Invalid},
		"any, it has one":  {[]string{"prod"}, "*/a/*", ""},
		"any, it has none": {nil, "*/a/*", claviger.Invalid},
		"it has all":       {[]string{"*"}, "stage/a/*", ""},
		"it has none":      {nil, "prod/a/*", claviger.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := w.CreatePrincipal(t.Context(), w.op, keeper.CreatePrincipal{
				Name: "p-" + strings.NewReplacer(" ", "-", ",", "").Replace(name), Kind: claviger.Workload, Environments: tc.environments,
			})
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.CreateGrant(t.Context(), w.op, keeper.CreateGrant{Principal: string(p.ID), Selector: tc.selector, Operations: []string{"sign"}})
			if (err != nil || tc.want != "") && claviger.CodeOf(err) != tc.want {
				t.Errorf("granted with %v, want code %q", err, tc.want)
			}
		})
	}
}
