package policy_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/policy"
	"github.com/google/go-cmp/cmp"
)

var (
	now   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	alice = claviger.NewID(now)
	bob   = claviger.NewID(now)
)

// request is one that a plain grant allows; tests spoil it.
func request() (policy.Input, *claviger.Grant) {
	key := &claviger.Key{
		ID: claviger.NewID(now), Name: "prod/billing/session", Algorithm: claviger.HMACSHA256,
		Versions: []claviger.Version{
			{Number: 1, State: claviger.Deactivated, Level: claviger.Exposed, Activated: now.Add(-48 * time.Hour)},
			{Number: 2, State: claviger.Active, Level: claviger.Isolated, Activated: now.Add(-time.Hour)},
		},
	}
	in := policy.Input{
		Principal: claviger.Principal{
			ID: alice, Kind: claviger.Workload, Environments: []string{"prod"},
			Facts: claviger.Facts{
				Source: netip.MustParseAddr("10.1.2.3"), Executable: "/usr/bin/web",
				Cgroup: "/system.slice/web.service/sub", Unit: "web.service",
			},
		},
		Grants: []claviger.Grant{{
			ID: claviger.NewID(now), Principal: alice, Selector: "prod/billing/*",
			Operations: []claviger.Operation{claviger.MAC, claviger.VerifyMAC, claviger.ReadKey},
		}},
		Key: key, Operation: claviger.MAC, Count: 1, Now: now,
	}
	return in, &in.Grants[0]
}

func prefixes(s ...string) (all []netip.Prefix) {
	for _, p := range s {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

var decideTests = []struct {
	name  string
	spoil func(in *policy.Input, g *claviger.Grant, c *claviger.Conditions)
	want  string // reason; "" is allowed
}{
	{"plain", func(*policy.Input, *claviger.Grant, *claviger.Conditions) {}, ""},
	{"no grants", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) { in.Grants = nil }, policy.ReasonNoGrant},
	{"another's grant", func(_ *policy.Input, g *claviger.Grant, _ *claviger.Conditions) { g.Principal = bob }, policy.ReasonNoGrant},
	{"nobody asks with nobody's grant", func(in *policy.Input, g *claviger.Grant, _ *claviger.Conditions) {
		in.Principal.ID, g.Principal = "", ""
	}, policy.ReasonNoGrant},
	{"another operation", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) { in.Operation = claviger.ManageKey }, policy.ReasonNoGrant},
	{"another key", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) { in.Key.Name = "prod/shop/session" }, policy.ReasonNoGrant},
	{"former name", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) {
		in.Key.Name, in.Key.Aliases = "prod/shop/session", []claviger.Name{"prod/billing/session"}
	}, ""},
	{"former name of another environment", func(in *policy.Input, g *claviger.Grant, _ *claviger.Conditions) {
		in.Key.Name, in.Key.Aliases = "prod/shop/session", []claviger.Name{"dev/billing/session"}
		g.Selector = "dev/billing/session"
	}, policy.ReasonNoGrant},
	{"environment", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) {
		in.Principal.Environments = []string{"dev", "pro"}
	}, policy.ReasonEnvironment},
	{"no environment", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) { in.Principal.Environments = nil }, policy.ReasonEnvironment},
	{"any environment", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) {
		in.Principal.Environments = []string{"*"}
	}, ""},
	{"system", func(in *policy.Input, g *claviger.Grant, _ *claviger.Conditions) {
		in.Key.Name, g.Selector, in.Principal.Environments = "system/claviger/ca", "*/*/*", []string{"*", "system"}
	}, policy.ReasonSystem},
	{"revoked", func(_ *policy.Input, g *claviger.Grant, _ *claviger.Conditions) { g.Revoked = now.Add(time.Hour) }, policy.ReasonRevoked},
	{"not yet", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.NotBefore = now.Add(1) }, policy.ReasonNotBefore},
	{"just valid", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.NotBefore = now }, ""},
	{"expired", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.NotAfter = now }, policy.ReasonExpired},
	{"not expired", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.NotAfter = now.Add(1) }, ""},
	{"source", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		c.Sources = prefixes("192.0.2.0/24", "10.0.0.0/8")
	}, ""},
	{"source elsewhere", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.Sources = prefixes("10.2.0.0/16") }, policy.ReasonSource},
	{"source mapped", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Principal.Facts.Source = netip.MustParseAddr("::ffff:10.1.2.3")
		c.Sources = prefixes("10.0.0.0/8")
	}, ""},
	{"source with a zone", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Principal.Facts.Source = netip.MustParseAddr("fe80::1%eth0")
		c.Sources = prefixes("fe80::/10")
	}, ""},
	{"source not observed", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Principal.Facts.Source = netip.Addr{}
		c.Sources = prefixes("0.0.0.0/0", "::/0")
	}, policy.ReasonSource},
	{"executable", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		c.Executables = []string{"/usr/bin/web"}
	}, ""},
	{"executable elsewhere", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		c.Executables = []string{"/usr/bin/we"}
	}, policy.ReasonExecutable},
	{"executable not observed", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Principal.Facts.Executable = ""
		c.Executables = []string{""}
	}, policy.ReasonExecutable},
	{"caller's device", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Principal.Binding, c.MinBinding = &claviger.Binding{Level: claviger.Attested}, claviger.Hardware
	}, ""},
	{"caller's device too low", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Principal.Binding, c.MinBinding = &claviger.Binding{Level: claviger.Exposed}, claviger.Isolated
	}, policy.ReasonBound},
	{"caller without a device", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.MinBinding = claviger.Exposed }, policy.ReasonBound},
	{"unit", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.Units = []string{"web.service"} }, ""},
	{"unit elsewhere", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		c.Units = []string{"db.service"}
	}, policy.ReasonUnit},
	{"unit not observed", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Principal.Facts.Unit = ""
		c.Units = []string{""}
	}, policy.ReasonUnit},
	{"cgroup parent", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		c.Cgroups = []string{"/system.slice/web.service"}
	}, ""},
	{"cgroup prefix that is no parent", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		c.Cgroups = []string{"/system.slice/web"}
	}, policy.ReasonCgroup},
	{"cgroup not observed", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Principal.Facts.Cgroup = ""
		c.Cgroups = []string{"", "/"}
	}, policy.ReasonCgroup},
	{"audience", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Audience, c.Audiences = "b", []string{"a", "b"}
	}, ""},
	{"audience elsewhere", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Audience, c.Audiences = "c", []string{"a", "b"}
	}, policy.ReasonAudience},
	{"audience not named", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.Audiences = []string{"", "a"} }, policy.ReasonAudience},
	{"purpose", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Purpose, c.Purposes = "login", []string{"login"}
	}, ""},
	{"purpose elsewhere", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Purpose, c.Purposes = "Login", []string{"login"}
	}, policy.ReasonPurpose},
	{"format", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Format, c.Formats = "jwt", []string{"iron", "jwt"}
	}, ""},
	{"format elsewhere", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Format, c.Formats = "jwt", []string{"iron"}
	}, policy.ReasonFormat},
	{"another use than of a format", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.Formats = []string{"iron"} }, policy.ReasonFormat},
	{"format at the wrong purpose", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Format, c.Formats = "jwt", []string{"jwt"}
		in.Purpose, c.Purposes = "reset", []string{"login"}
	}, policy.ReasonPurpose},
	{"raw under a template", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.Template = &claviger.Template{} }, policy.ReasonRaw},
	{"structured without a template", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) {
		in.Structured = &policy.Structured{JWT: &policy.JWT{}}
	}, policy.ReasonRaw},
	{"empty batch", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) { in.Count = 0 }, policy.ReasonBatch},
	{"negative batch", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) { in.Count = -1 }, policy.ReasonBatch},
	{"largest batch", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) { in.Count = 1000 }, ""},
	{"too large batch", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) { in.Count = 1001 }, policy.ReasonBatch},
	{"batch over the count", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { in.Count, c.Count = 6, 5 }, policy.ReasonBatch},
	{"batch over the burst", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Count, c.Rate = 6, &claviger.Rate{PerSecond: 100, Burst: 5}
	}, policy.ReasonBatch},
	{"algorithm", func(in *policy.Input, g *claviger.Grant, _ *claviger.Conditions) {
		in.Operation, g.Operations = claviger.Sign, []claviger.Operation{claviger.Sign}
	}, policy.ReasonAlgorithm},
	{"use of no key", func(in *policy.Input, g *claviger.Grant, _ *claviger.Conditions) {
		in.Key, in.Selector = nil, "prod/billing/x"
	}, policy.ReasonAlgorithm},
	{"no active version", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) {
		in.Key.Versions[1].State = claviger.PreActivation
	}, policy.ReasonState},
	{"a version that may not protect", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) {
		in.Version = &in.Key.Versions[0]
	}, policy.ReasonState},
	{"originator period", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) {
		in.Key.Settings.OriginatorPeriod = claviger.Duration(time.Hour)
	}, policy.ReasonOriginator},
	{"recipient period", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) {
		in.Operation, in.Key.Settings.RecipientPeriod = claviger.VerifyMAC, claviger.Duration(time.Hour)
	}, policy.ReasonRecipient},
	{"level of the key", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) {
		in.Key.Settings.MinLevel = claviger.Hardware
	}, policy.ReasonLevel},
	{"level of the grant", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.MinLevel = claviger.Hardware }, policy.ReasonLevel},
	{"level met", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.MinLevel = claviger.Isolated }, ""},
	{"level that lapsed", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Key.Versions[1].Shown, in.MaxAge, c.MinLevel = now.Add(-8*24*time.Hour), 7*24*time.Hour, claviger.Isolated
	}, policy.ReasonLevel},
	{"level that lapsed, of the key", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) {
		in.Key.Versions[1].Shown, in.MaxAge, in.Key.Settings.MinLevel = now.Add(-8*24*time.Hour), 7*24*time.Hour, claviger.Isolated
	}, policy.ReasonLevel},
	{"level shown lately", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Key.Versions[1].Shown, in.MaxAge, c.MinLevel = now.Add(-6*24*time.Hour), 7*24*time.Hour, claviger.Isolated
	}, ""},
	{"unknown least level", func(_ *policy.Input, _ *claviger.Grant, c *claviger.Conditions) { c.MinLevel = "best" }, policy.ReasonLevel},
	{"administration with a condition", func(in *policy.Input, _ *claviger.Grant, c *claviger.Conditions) {
		in.Operation, in.Count, c.Units = claviger.ReadKey, 0, []string{"web.service"}
	}, ""},
	{"administration in every state", func(in *policy.Input, _ *claviger.Grant, _ *claviger.Conditions) {
		in.Operation, in.Key.Versions = claviger.ReadKey, nil
	}, ""},
}

func TestDecide(t *testing.T) {
	t.Parallel()
	for _, test := range decideTests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			in, g := request()
			test.spoil(&in, g, &g.Conditions)
			var e policy.Engine
			d := e.Decide(in)
			if d.Reason != test.want || d.Allowed != (test.want == "") {
				t.Fatalf("Decide: allowed %v, reason %q; want %q", d.Allowed, d.Reason, test.want)
			}
			if d.Allowed != (len(d.Allowances) > 0) || d.Allowed != (d.Err() == nil) {
				t.Errorf("Decide: allowed %v with allowances %v and error %v", d.Allowed, d.Allowances, d.Err())
			}
			if !d.Allowed {
				want := claviger.Denied
				if test.want == policy.ReasonAlgorithm || test.want == policy.ReasonBatch {
					want = claviger.Invalid
				}
				if !errors.Is(d.Err(), want) {
					t.Errorf("error %v; want code %s", d.Err(), want)
				}
			}
		})
	}
}

func TestDecideOperator(t *testing.T) {
	t.Parallel()
	key := &claviger.Key{Name: "prod/billing/session", Algorithm: claviger.HMACSHA256, Versions: []claviger.Version{{Number: 1, State: claviger.Active, Level: claviger.Isolated}}}
	tests := []struct {
		name         string
		kind         claviger.PrincipalKind
		environments []string
		op           claviger.Operation
		key          *claviger.Key
		selector     claviger.Selector
		want         string
	}{
		{"manages a key", claviger.Operator, []string{"*"}, claviger.ManageKey, key, "", ""},
		{"manages a key of its environment", claviger.Operator, []string{"prod"}, claviger.ManageKey, key, "", ""},
		{"manages a key of another", claviger.Operator, []string{"dev"}, claviger.ManageKey, key, "", policy.ReasonEnvironment},
		{"manages grants of its environment", claviger.Operator, []string{"prod"}, claviger.ManageGrants, nil, "prod/*/*", ""},
		{"manages grants of all", claviger.Operator, []string{"prod"}, claviger.ManageGrants, nil, "*/*/*", policy.ReasonEnvironment},
		{"manages the server", claviger.Operator, []string{"prod"}, claviger.ManageServer, nil, "", policy.ReasonEnvironment},
		{"manages the server for all", claviger.Operator, []string{"*"}, claviger.ManageServer, nil, "", ""},
		{"manages a system key", claviger.Operator, []string{"*"}, claviger.ManageKey, &claviger.Key{Name: "system/claviger/ca"}, "", policy.ReasonSystem},
		{"uses a key", claviger.Operator, []string{"*"}, claviger.MAC, key, "", policy.ReasonNoGrant},
		{"a workload administers", claviger.Workload, []string{"*"}, claviger.ManageKey, key, "", policy.ReasonNoGrant},
		{"an unknown operation", claviger.Operator, []string{"*"}, "export", key, "", policy.ReasonNoGrant},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var e policy.Engine
			d := e.Decide(policy.Input{
				Principal: claviger.Principal{ID: alice, Kind: test.kind, Environments: test.environments},
				Operation: test.op, Key: test.key, Selector: test.selector, Count: 1, Now: now,
			})
			if d.Reason != test.want || d.Allowed != (test.want == "") {
				t.Errorf("allowed %v, reason %q; want %q", d.Allowed, d.Reason, test.want)
			}
		})
	}
}

// A grant for some keys never allows what is on more keys.
func TestDecideDelegated(t *testing.T) {
	t.Parallel()
	in, g := request()
	g.Operations = []claviger.Operation{claviger.ManageGrants}
	in.Operation, in.Key, in.Principal.Environments = claviger.ManageGrants, nil, []string{"*"}
	var e policy.Engine
	for selector, want := range map[claviger.Selector]bool{
		"prod/billing/x": true, "prod/billing/*": true, "prod/*/*": false, "*/billing/x": false, "": false, "prod/shop/x": false,
	} {
		in.Selector = selector
		if d := e.Decide(in); d.Allowed != want {
			t.Errorf("on %q: allowed %v, reason %q; want %v", selector, d.Allowed, d.Reason, want)
		}
	}
}

// The grant that came furthest is the one that is reported, and the caller
// learns nothing of any.
func TestDecideClosest(t *testing.T) {
	t.Parallel()
	in, g := request()
	expired, elsewhere, revoked := *g, *g, *g
	expired.Conditions.NotAfter = now.Add(-1)
	elsewhere.ID, elsewhere.Conditions.Audiences = claviger.NewID(now), []string{"https://secret.example"}
	revoked.Revoked = now
	in.Grants = []claviger.Grant{expired, elsewhere, revoked}
	var e policy.Engine
	d := e.Decide(in)
	if d.Reason != policy.ReasonAudience || d.Grant == nil || d.Grant.ID != elsewhere.ID {
		t.Errorf("reason %q of grant %v; want audience of %s", d.Reason, d.Grant, elsewhere.ID)
	}
	in.Grants = nil
	if diff := cmp.Diff(e.Decide(in).Err().Error(), d.Err().Error()); diff != "" {
		t.Errorf("the caller sees a difference (-no grant +closest):\n%s", diff)
	}
}

func TestDecideOrder(t *testing.T) {
	t.Parallel()
	in, g := request()
	counted, rated, free := *g, *g, *g
	counted.Conditions.Count = 5
	rated.Conditions.Rate = &claviger.Rate{PerSecond: 1, Burst: 5}
	free.ID = claviger.NewID(now)
	in.Grants = []claviger.Grant{counted, rated, free}
	var e policy.Engine
	d := e.Decide(in)
	var got []int
	for _, a := range d.Allowances {
		for i := range in.Grants {
			if a.Grant == &in.Grants[i] {
				got = append(got, i)
			}
		}
	}
	if diff := cmp.Diff([]int{2, 0, 1}, got); diff != "" {
		t.Errorf("order of grants (-want +got):\n%s", diff)
	}
}

func TestDecideVersions(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		op    claviger.Operation
		least claviger.Level
		want  []uint32
	}{
		{"protect", claviger.MAC, "", []uint32{2}},
		{"process", claviger.VerifyMAC, "", []uint32{2, 1}},
		{"process above a level", claviger.VerifyMAC, claviger.Isolated, []uint32{2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			in, g := request()
			in.Operation, g.Conditions.MinLevel = test.op, test.least
			var e policy.Engine
			var got []uint32
			for _, v := range e.Decide(in).Allowances[0].Versions {
				got = append(got, v.Number)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("versions (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPermitState(t *testing.T) {
	t.Parallel()
	yes := claviger.Settings{ProcessSuspended: true, ProcessExposed: true}
	for _, test := range []struct {
		state                      claviger.State
		protect, process, explicit bool // explicit: processes where the key's settings say so
	}{
		{claviger.PreActivation, false, false, false},
		{claviger.Active, true, true, true},
		{claviger.Suspended, false, false, true},
		{claviger.Deactivated, false, true, true},
		{claviger.Compromised, false, false, true},
		{claviger.Destroyed, false, false, false},
		{"", false, false, false},
	} {
		v := &claviger.Version{State: test.state, Level: claviger.Isolated}
		for _, op := range claviger.UseOperations {
			for _, set := range []claviger.Settings{{}, yes} {
				want := test.process
				if op.Protects() {
					want = test.protect
				} else if set == yes {
					want = test.explicit
				}
				if got := policy.PermitState(&claviger.Key{Settings: set}, v, op, now, 0); (got == "") != want {
					t.Errorf("%s in %q with %+v: %q, want permitted %v", op, test.state, set, got, want)
				}
			}
		}
		if policy.PermitState(&claviger.Key{}, v, claviger.ManageKey, now, 0) == "" {
			t.Errorf("an administrative operation is no use")
		}
	}
	// A grace after an exposure lets tokens be checked, and brings nothing back.
	exposed := claviger.Version{State: claviger.Compromised, Level: claviger.Exposed, Exposure: &claviger.Exposure{Formats: map[string]time.Time{"jwt": now.Add(time.Hour)}}}
	retired := exposed
	retired.Retired = now
	for _, op := range claviger.UseOperations {
		if got := policy.PermitState(&claviger.Key{Settings: yes}, &exposed, op, now, 0); (got == "") != (op == claviger.Unprotect) {
			t.Errorf("%s with an exposed version: %q", op, got)
		}
		if policy.PermitState(&claviger.Key{Settings: yes}, &exposed, op, now.Add(time.Hour), 0) == "" {
			t.Errorf("%s with an exposed version after the grace", op)
		}
		if policy.PermitState(&claviger.Key{Settings: yes}, &retired, op, now, 0) == "" {
			t.Errorf("%s with a version that was retired and then exposed", op)
		}
	}
	// A version whose activation is not known is past every period.
	v := &claviger.Version{State: claviger.Active, Level: claviger.Isolated}
	key := &claviger.Key{Settings: claviger.Settings{OriginatorPeriod: claviger.Duration(time.Hour)}}
	if got := policy.PermitState(key, v, claviger.MAC, now, 0); got != policy.ReasonOriginator {
		t.Errorf("unknown activation: %q, want %q", got, policy.ReasonOriginator)
	}
}

func BenchmarkDecide(b *testing.B) {
	in, g := request()
	first := *g
	in.Grants = nil
	for range 9 {
		other := first
		other.Selector = "prod/shop/session"
		in.Grants = append(in.Grants, other)
	}
	first.Conditions.Sources = prefixes("10.0.0.0/8")
	in.Grants = append(in.Grants, first)
	var e policy.Engine
	b.ReportAllocs()
	for b.Loop() {
		if !e.Decide(in).Allowed {
			b.Fatal("denied")
		}
	}
}
