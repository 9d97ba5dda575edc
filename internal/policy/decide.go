package policy

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"claviger.dev"
)

// closeness orders the reasons by how far a grant came before it failed. Of
// several grants that fail, the one that came furthest is reported.
var closeness = [...]string{
	ReasonNoGrant, ReasonRevoked, ReasonNotBefore, ReasonExpired,
	ReasonSource, ReasonExecutable, ReasonUnit, ReasonCgroup,
	ReasonAudience, ReasonPurpose, ReasonFormat, ReasonRaw, ReasonBatch, ReasonAlgorithm,
	ReasonState, ReasonOriginator, ReasonRecipient, ReasonLevel, ReasonTemplate,
}

// Decide returns the decision on one request.
func (e *Engine) Decide(in Input) Decision {
	target := in.target()
	switch env := target.Environment(); {
	case env == SystemEnvironment:
		return Decision{Code: claviger.Denied, Reason: ReasonSystem}
	case env == "" || !slices.Contains(in.Principal.Environments, env) && !slices.Contains(in.Principal.Environments, "*"):
		return Decision{Code: claviger.Denied, Reason: ReasonEnvironment}
	case in.Principal.Kind == claviger.Operator && slices.Contains(claviger.AdminOperations, in.Operation):
		return Decision{Allowed: true, Allowances: []Allowance{{}}}
	}
	versions, why := in.versions()
	closest := Decision{Code: claviger.Denied, Reason: ReasonNoGrant}
	var free, budgeted []Allowance
	for i := range in.Grants {
		g := &in.Grants[i]
		if !in.selects(g, target) {
			continue
		}
		a, reason, detail := e.consider(&in, g, versions, why)
		switch {
		case reason == "" && (g.Conditions.Rate != nil || g.Conditions.Count > 0):
			budgeted = append(budgeted, a)
		case reason == "":
			free = append(free, a)
		case closest.Grant == nil || slices.Index(closeness[:], reason) > slices.Index(closeness[:], closest.Reason):
			closest = Decision{Code: codeOf(reason), Reason: reason, Detail: detail, Grant: g}
		}
	}
	if allowances := append(free, budgeted...); len(allowances) > 0 {
		return Decision{Allowed: true, Grant: allowances[0].Grant, Allowances: allowances}
	}
	return closest
}

// codeOf returns Invalid for what no grant could ever allow.
func codeOf(reason string) claviger.Code {
	if reason == ReasonAlgorithm || reason == ReasonBatch {
		return claviger.Invalid
	}
	return claviger.Denied
}

// target returns what the operation is on, as a selector. A key's name is one
// of literals.
func (in *Input) target() claviger.Selector {
	switch {
	case in.Key != nil:
		return claviger.Selector(in.Key.Name)
	case in.Selector != "":
		return in.Selector
	}
	return "*/*/*"
}

// selects reports whether the grant names the principal, the operation and the
// target. A former name of the key counts, so that a rename takes nobody's
// right away; its environment does not: see Decide.
func (in *Input) selects(g *claviger.Grant, target claviger.Selector) bool {
	if g.Principal != in.Principal.ID || g.Principal == "" || !slices.Contains(g.Operations, in.Operation) {
		return false
	}
	// For a target that is itself a selector, "*" is matched by "*" alone.
	if g.Selector.Matches(claviger.Name(target)) {
		return true
	}
	return in.Key != nil && slices.ContainsFunc(in.Key.Aliases, func(alias claviger.Name) bool {
		return alias.Environment() == in.Key.Name.Environment() && g.Selector.Matches(alias)
	})
}

// consider returns how the grant allows the request, or the reason why not.
func (e *Engine) consider(in *Input, g *claviger.Grant, versions []*claviger.Version, why string) (a Allowance, reason, detail string) {
	if reason := in.conditions(g); reason != "" {
		return a, reason, ""
	}
	a.Grant = g
	if !in.Operation.Uses() {
		return a, "", ""
	}
	if why != "" {
		return a, why, ""
	}
	a.Versions = versions
	if least := g.Conditions.MinLevel; least != "" {
		a.Versions = slices.DeleteFunc(slices.Clone(versions), func(v *claviger.Version) bool { return !levelMet(v.LevelAt(in.Now, in.MaxAge), least) })
		if len(a.Versions) == 0 {
			return a, ReasonLevel, ""
		}
	}
	if in.Structured != nil {
		var err error
		if a.Structure, err = e.structure(in, g, a.Versions[0]); err != nil {
			return a, ReasonTemplate, err.Error()
		}
	}
	return a, "", ""
}

// conditions returns why a condition of the grant is not met, or "".
func (in *Input) conditions(g *claviger.Grant) string {
	c, facts := &g.Conditions, &in.Principal.Facts
	switch {
	case !g.Revoked.IsZero():
		return ReasonRevoked
	case !c.NotBefore.IsZero() && in.Now.Before(c.NotBefore):
		return ReasonNotBefore
	case !c.NotAfter.IsZero() && !in.Now.Before(c.NotAfter):
		return ReasonExpired
	case len(c.Sources) > 0 && !within(facts.Source, c.Sources):
		return ReasonSource
	case !named(facts.Executable, c.Executables):
		return ReasonExecutable
	case !named(facts.Unit, c.Units):
		return ReasonUnit
	case len(c.Cgroups) > 0 && !slices.ContainsFunc(c.Cgroups, func(parent string) bool { return below(facts.Cgroup, parent) }):
		return ReasonCgroup
	case c.MinBinding != "" && !in.Principal.Level().AtLeast(c.MinBinding):
		return ReasonBound
	case !named(in.Audience, c.Audiences):
		return ReasonAudience
	case !named(in.Purpose, c.Purposes):
		return ReasonPurpose
	}
	if !in.Operation.Uses() {
		return ""
	}
	if !named(in.Format, c.Formats) {
		return ReasonFormat
	}
	count := uint64(max(in.Count, 0))
	switch {
	case (c.Template != nil) != (in.Structured != nil) || in.Structured != nil && in.Operation != claviger.Sign:
		return ReasonRaw
	case count == 0 || count > MaxBatch || in.Structured != nil && count != 1:
		return ReasonBatch
	case c.Count > 0 && count > c.Count || c.Rate != nil && count > c.Rate.Burst:
		return ReasonBatch
	}
	return ""
}

// named reports whether a list is not set, or has the fact. A fact that was
// not observed is not in any list.
func named(fact string, list []string) bool {
	return len(list) == 0 || fact != "" && slices.Contains(list, fact)
}

func within(source netip.Addr, prefixes []netip.Prefix) bool {
	source = source.Unmap().WithZone("")
	return source.IsValid() && slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(source) })
}

// below reports whether a cgroup is the parent or below it.
func below(cgroup, parent string) bool {
	rest, ok := strings.CutPrefix(cgroup, parent)
	return ok && parent != "" && (rest == "" || rest[0] == '/')
}

// versions returns the versions that the key's own state and settings permit,
// newest first, or the reason why there is none. Protection is by one version.
func (in *Input) versions() (permitted []*claviger.Version, why string) {
	if !in.Operation.Uses() {
		return nil, ""
	}
	if in.Key == nil || in.Operation != in.Key.Algorithm.Protects() && in.Operation != in.Key.Algorithm.Processes() {
		return nil, ReasonAlgorithm
	}
	if in.Version != nil {
		if why := PermitState(in.Key, in.Version, in.Operation, in.Now, in.MaxAge); why != "" {
			return nil, why
		}
		return []*claviger.Version{in.Version}, ""
	}
	why = ReasonState
	for i := len(in.Key.Versions) - 1; i >= 0; i-- {
		v := &in.Key.Versions[i]
		reason := PermitState(in.Key, v, in.Operation, in.Now, in.MaxAge)
		if reason == "" {
			permitted = append(permitted, v)
			if in.Operation.Protects() {
				break
			}
		} else if why == ReasonState {
			why = reason
		}
	}
	if len(permitted) > 0 {
		return permitted, ""
	}
	return nil, why
}

// PermitState returns why the state, age or custody level of a version does not
// permit an operation (SP 800-57 part 1, 5.3 and 7), as one of ReasonState,
// ReasonOriginator, ReasonRecipient and ReasonLevel, or "" when it does.
// A level that evidence showed longer ago than maxAge is met no more.
// Periods count from the version's activation; a version whose activation is
// not known is past every period.
func PermitState(key *claviger.Key, v *claviger.Version, op claviger.Operation, now time.Time, maxAge time.Duration) string {
	permitted := false
	switch v.State {
	case claviger.Active:
		permitted = true
	case claviger.Deactivated:
		permitted = !op.Protects() && v.Retired.IsZero()
	case claviger.Suspended:
		permitted = !op.Protects() && key.Settings.ProcessSuspended
	case claviger.Compromised:
		permitted = !op.Protects() && v.Retired.IsZero() && key.Settings.ProcessExposed
		if v.Exposure != nil { // which tokens pass is for whoever reads them
			permitted = op == claviger.Unprotect && v.Retired.IsZero() && now.Before(v.Exposure.Until())
		}
	}
	past := func(period claviger.Duration) bool {
		return period != 0 && (v.Activated.IsZero() || now.Sub(v.Activated) >= time.Duration(period))
	}
	switch {
	case !permitted || !op.Uses():
		return ReasonState
	case op.Protects() && past(key.Settings.OriginatorPeriod):
		return ReasonOriginator
	case !op.Protects() && past(key.Settings.RecipientPeriod):
		return ReasonRecipient
	case !levelMet(v.LevelAt(now, maxAge), key.Settings.MinLevel):
		return ReasonLevel
	}
	return ""
}

// levelMet is AtLeast that no unknown level meets or sets.
func levelMet(level, least claviger.Level) bool {
	return least == "" || knownLevel(least) && knownLevel(level) && level.AtLeast(least)
}

func knownLevel(l claviger.Level) bool {
	return l == claviger.Attested || l == claviger.Hardware || l == claviger.Isolated || l == claviger.Exposed
}
