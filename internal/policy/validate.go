package policy

import (
	"math"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"claviger.dev"
)

// Limits of a grant.
const (
	MaxList     = 64                    // entries of one list of a grant
	MaxText     = 512                   // bytes of one entry or pattern
	MaxLifetime = 3660 * 24 * time.Hour // longest lifetime that a template may give
)

// Validate checks everything about a grant that comes from outside: sizes,
// forms and that every pattern compiles. It returns a claviger.Error with code
// Invalid that names the field. What it accepts encodes to JSON and back
// unchanged.
func Validate(g claviger.Grant) error {
	var c checks
	if g.ID != "" {
		_, err := claviger.ParseID(string(g.ID))
		c.that(err == nil, "id", "is not an id")
	}
	_, err := claviger.ParseID(string(g.Principal))
	c.that(err == nil, "principal", "is not the id of a principal")
	_, err = claviger.ParseSelector(string(g.Selector))
	c.that(err == nil, "selector", "is not environment/application/purpose, each a literal or *")
	c.that(g.Selector.Environment() != SystemEnvironment, "selector", "names the reserved environment 'system'")
	c.list("operations", len(g.Operations), func(i int) string { return string(g.Operations[i]) })
	c.that(len(g.Operations) > 0, "operations", "is empty")
	for _, op := range g.Operations {
		_, err := claviger.ParseOperation(string(op))
		c.that(err == nil, "operations", "has an unknown operation")
	}
	c.that(g.Reason == "" || text(g.Reason, claviger.MaxTextLength), "reason", "is not a text of at most 256 bytes")
	c.that(g.RevokeReason == "" || text(g.RevokeReason, claviger.MaxTextLength), "revoke_reason", "is not a text of at most 256 bytes")
	c.conditions(&g.Conditions)
	for _, op := range g.Operations {
		c.that(len(g.Conditions.Formats) == 0 || op == claviger.Protect || op == claviger.Unprotect, "formats", "go with the operations protect and unprotect alone")
	}
	if t := g.Conditions.Template; t != nil {
		c.that(len(g.Operations) == 1 && g.Operations[0] == claviger.Sign, "template", "goes with the operation sign alone")
		c.template(t)
	}
	return c.err
}

// checks keeps the first check that did not hold.
type checks struct{ err error }

func (c *checks) that(ok bool, field, wrong string) {
	if !ok && c.err == nil {
		c.err = claviger.Errorf(claviger.Invalid, "the grant's "+field+" "+wrong, "correct the field, and see 'claviger grant create --help' for the forms")
	}
}

// list checks the size of a list, the form of its entries and that none is
// there twice.
func (c *checks) list(field string, n int, entry func(int) string) {
	c.that(n <= MaxList, field, "has more than 64 entries")
	seen := make(map[string]bool)
	for i := range min(n, MaxList) {
		s := entry(i)
		c.that(text(s, MaxText), field, "has an entry that is not a text of 1 to 512 bytes")
		c.that(!seen[s], field, "has an entry twice")
		seen[s] = true
	}
}

func (c *checks) texts(field string, list []string) {
	c.list(field, len(list), func(i int) string { return list[i] })
}

func (c *checks) paths(field string, list []string) {
	c.texts(field, list)
	for _, p := range list {
		c.that(path.IsAbs(p) && path.Clean(p) == p && p != "/", field, "has a path that is not absolute and clean")
	}
}

func (c *checks) prefixes(field string, list []netip.Prefix) {
	c.list(field, len(list), func(i int) string { return list[i].String() })
	for _, p := range list {
		c.that(p.IsValid() && p == p.Masked() && !p.Addr().Is4In6(), field, "has a prefix with bits below its mask, or an IPv4 one written as IPv6")
	}
}

func (c *checks) patterns(field string, list []string) {
	c.texts(field, list)
	for _, p := range list {
		c.pattern(field, p)
	}
}

func (c *checks) pattern(field, p string) {
	_, err := pattern(p)
	c.that(err == nil && utf8.ValidString(p), field, "has a pattern that is not RE2 of 1 to 512 bytes")
}

func (c *checks) lifetime(field string, d claviger.Duration) {
	v := time.Duration(d)
	c.that(v >= time.Second && v <= MaxLifetime && v%time.Second == 0, field, "is not from one second to ten years, in whole seconds")
}

// text reports whether s has 1 to limit bytes of UTF-8 without control
// characters.
func text(s string, limit int) bool {
	return s != "" && len(s) <= limit && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

func (c *checks) conditions(cond *claviger.Conditions) {
	c.prefixes("sources", cond.Sources)
	c.paths("executables", cond.Executables)
	c.texts("units", cond.Units)
	c.paths("cgroups", cond.Cgroups)
	c.texts("audiences", cond.Audiences)
	c.texts("purposes", cond.Purposes)
	c.texts("formats", cond.Formats)
	for _, at := range []time.Time{cond.NotBefore, cond.NotAfter} {
		c.that(at.IsZero() || at.Year() >= 1970 && at.Year() <= 9999, "validity", "is outside the years 1970 to 9999")
	}
	c.that(cond.NotBefore.IsZero() || cond.NotAfter.IsZero() || cond.NotBefore.Before(cond.NotAfter), "not_after", "is not after not_before")
	if r := cond.Rate; r != nil {
		c.that(r.PerSecond > 0 && !math.IsInf(r.PerSecond, 0) && !math.IsNaN(r.PerSecond), "rate", "is not a finite number above zero")
		c.that(r.Burst > 0, "rate", "has a burst of zero, which allows nothing")
	}
	c.that(cond.MinBinding == "" || knownLevel(cond.MinBinding), "min_binding", "is not one of attested, hardware, isolated and exposed")
	c.that(cond.MinLevel == "" || knownLevel(cond.MinLevel), "min_level", "is not one of attested, hardware, isolated and exposed")
}

func (c *checks) template(t *claviger.Template) {
	kinds := 0
	if t.JWT != nil {
		kinds++
		c.jwt(t.JWT)
	}
	if t.X509 != nil {
		kinds++
		c.x509(t.X509)
	}
	if t.SSH != nil {
		kinds++
		c.ssh(t.SSH)
	}
	c.that(kinds == 1, "template", "does not have exactly one of jwt, x509 and ssh")
}

func (c *checks) jwt(t *claviger.JWTTemplate) {
	c.that(t.Type == "" || text(t.Type, 64), "template type", "is not a text of at most 64 bytes")
	c.that(text(t.Issuer, MaxText), "template issuer", "is not a text of 1 to 512 bytes")
	c.that(text(t.Subject, MaxText), "template subject", "is not a text of 1 to 512 bytes")
	c.texts("template audiences", t.Audiences)
	c.that(len(t.Audiences) > 0, "template audiences", "is empty")
	c.lifetime("template max_lifetime", t.MaxLifetime)
	c.that(len(t.Claims) <= MaxList, "template claims", "has more than 64 entries")
	for name, p := range t.Claims {
		c.that(text(name, MaxText), "template claims", "has a name that is not a text of 1 to 512 bytes")
		// Some readers match names without regard to case.
		c.that(!slices.ContainsFunc(registered[:], func(r string) bool { return strings.EqualFold(r, name) }), "template claims", "has a name that the template fixes by itself")
		c.pattern("template claims", p)
	}
	c.texts("template required", t.Required)
	for _, name := range t.Required {
		_, ok := t.Claims[name]
		c.that(ok, "template required", "has a name that is not among the claims")
	}
}

func (c *checks) x509(t *claviger.X509Template) {
	c.that(text(t.IssuerDN, MaxText), "template issuer_dn", "is not a text of 1 to 512 bytes")
	if t.CommonName != "" {
		c.pattern("template common_name", t.CommonName)
	}
	c.patterns("template dns_names", t.DNSNames)
	c.patterns("template uris", t.URIs)
	c.prefixes("template ips", t.IPs)
	c.that(t.CommonName != "" || len(t.DNSNames)+len(t.URIs)+len(t.IPs) > 0, "template", "lets a certificate name nobody")
	c.texts("template ext_key_usage", t.ExtKeyUsage)
	for _, word := range t.ExtKeyUsage {
		_, ok := extKeyUsages[word]
		c.that(ok, "template ext_key_usage", "has an unknown usage")
	}
	c.lifetime("template max_lifetime", t.MaxLifetime)
}

func (c *checks) ssh(t *claviger.SSHTemplate) {
	if t.KeyID != "" {
		c.pattern("template key_id", t.KeyID)
	}
	c.patterns("template principals", t.Principals)
	c.that(len(t.Principals) > 0, "template principals", "is empty")
	c.that(len(t.CriticalOptions) <= MaxList, "template critical_options", "has more than 64 entries")
	for name, value := range t.CriticalOptions {
		c.that(text(name, MaxText) && (value == "" || text(value, MaxText)), "template critical_options", "has an entry that is not a text of at most 512 bytes")
	}
	c.texts("template extensions", t.Extensions)
	c.lifetime("template max_lifetime", t.MaxLifetime)
}
