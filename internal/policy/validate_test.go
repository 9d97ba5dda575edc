package policy_test

import (
	"errors"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"claviger.dev"
	"claviger.dev/internal/policy"
)

func many(n int) (list []string) {
	for i := range n {
		list = append(list, "/x"+strconv.Itoa(i))
	}
	return list
}

type (
	spoil = func(g *claviger.Grant, c *claviger.Conditions)
	G     = claviger.Grant
	C     = claviger.Conditions
)

func jwt(f func(*claviger.JWTTemplate)) spoil {
	return func(g *claviger.Grant, c *claviger.Conditions) {
		g.Operations, c.Template = []claviger.Operation{claviger.Sign}, jwtTemplate()
		f(c.Template.JWT)
	}
}

func x509Of(f func(*claviger.X509Template)) spoil {
	return func(g *claviger.Grant, c *claviger.Conditions) {
		g.Operations, c.Template = []claviger.Operation{claviger.Sign}, x509Template()
		f(c.Template.X509)
	}
}

func sshOf(f func(*claviger.SSHTemplate)) spoil {
	return func(g *claviger.Grant, c *claviger.Conditions) {
		g.Operations, c.Template = []claviger.Operation{claviger.Sign}, sshTemplate()
		f(c.Template.SSH)
	}
}

var validateTests = []struct {
	name  string
	spoil spoil
	want  string // field; "" is valid
}{
	{"plain", func(*G, *C) {}, ""},
	{"before it has an id", func(g *G, _ *C) { g.ID = "" }, ""},
	{"id", func(g *G, _ *C) { g.ID = "x" }, "id"},
	{"principal", func(g *G, _ *C) { g.Principal = "billing-web" }, "principal"},
	{"no principal", func(g *G, _ *C) { g.Principal = "" }, "principal"},
	{"selector", func(g *G, _ *C) { g.Selector = "prod/*" }, "selector"},
	{"selector with part of a segment", func(g *G, _ *C) { g.Selector = "prod/bill*/x" }, "selector"},
	{"selector of the system", func(g *G, _ *C) { g.Selector = "system/*/*" }, "selector"},
	{"no operations", func(g *G, _ *C) { g.Operations = nil }, "operations"},
	{"unknown operation", func(g *G, _ *C) { g.Operations = []claviger.Operation{"export"} }, "operations"},
	{"operation twice", func(g *G, _ *C) { g.Operations = []claviger.Operation{claviger.Sign, claviger.Sign} }, "operations"},
	{"long reason", func(g *G, _ *C) { g.Reason = strings.Repeat("x", 257) }, "reason"},
	{"reason with a line break", func(g *G, _ *C) { g.Reason = "a\nb" }, "reason"},
	{"long revoke reason", func(g *G, _ *C) { g.RevokeReason = strings.Repeat("x", 257) }, "revoke_reason"},
	{"source of bits below the mask", func(_ *G, c *C) { c.Sources = prefixes("10.0.0.1/8") }, "sources"},
	{"source mapped", func(_ *G, c *C) { c.Sources = prefixes("::ffff:10.0.0.0/104") }, "sources"},
	{"source zero", func(_ *G, c *C) { c.Sources = []netip.Prefix{{}} }, "sources"},
	{"sources", func(_ *G, c *C) { c.Sources = prefixes("10.0.0.0/8", "fe80::/10") }, ""},
	{"executables", func(_ *G, c *C) { c.Executables = many(64) }, ""},
	{"too many executables", func(_ *G, c *C) { c.Executables = many(65) }, "executables"},
	{"relative executable", func(_ *G, c *C) { c.Executables = []string{"bin/web"} }, "executables"},
	{"unclean executable", func(_ *G, c *C) { c.Executables = []string{"/usr/../web"} }, "executables"},
	{"long executable", func(_ *G, c *C) { c.Executables = []string{"/" + strings.Repeat("x", 512)} }, "executables"},
	{"cgroup of all", func(_ *G, c *C) { c.Cgroups = []string{"/"} }, "cgroups"},
	{"cgroup with a trailing slash", func(_ *G, c *C) { c.Cgroups = []string{"/a/"} }, "cgroups"},
	{"no such level of a device", func(_ *G, c *C) { c.MinBinding = "steel" }, "min_binding"},
	{"empty unit", func(_ *G, c *C) { c.Units = []string{""} }, "units"},
	{"unit twice", func(_ *G, c *C) { c.Units = []string{"a", "a"} }, "units"},
	{"audience not UTF-8", func(_ *G, c *C) { c.Audiences = []string{"\xff"} }, "audiences"},
	{"purpose with NUL", func(_ *G, c *C) { c.Purposes = []string{"a\x00"} }, "purposes"},
	{"formats", func(g *G, c *C) {
		g.Operations, c.Formats = []claviger.Operation{claviger.Protect, claviger.Unprotect}, []string{"jwt", "iron"}
	}, ""},
	{"format twice", func(g *G, c *C) {
		g.Operations, c.Formats = []claviger.Operation{claviger.Protect}, []string{"jwt", "jwt"}
	}, "formats"},
	{"formats with another operation", func(g *G, c *C) {
		g.Operations, c.Formats = []claviger.Operation{claviger.Protect, claviger.Sign}, []string{"jwt"}
	}, "formats"},
	{"times", func(_ *G, c *C) { c.NotBefore, c.NotAfter = now, now.Add(1) }, ""},
	{"times that are one", func(_ *G, c *C) { c.NotBefore, c.NotAfter = now, now }, "not_after"},
	{"time out of range", func(_ *G, c *C) { c.NotAfter = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "validity"},
	{"rate", func(_ *G, c *C) { c.Rate = &claviger.Rate{PerSecond: 0.5, Burst: 1} }, ""},
	{"rate zero", func(_ *G, c *C) { c.Rate = &claviger.Rate{Burst: 1} }, "rate"},
	{"rate negative", func(_ *G, c *C) { c.Rate = &claviger.Rate{PerSecond: -1, Burst: 1} }, "rate"},
	{"rate infinite", func(_ *G, c *C) { c.Rate = &claviger.Rate{PerSecond: math.Inf(1), Burst: 1} }, "rate"},
	{"rate not a number", func(_ *G, c *C) { c.Rate = &claviger.Rate{PerSecond: math.NaN(), Burst: 1} }, "rate"},
	{"rate without burst", func(_ *G, c *C) { c.Rate = &claviger.Rate{PerSecond: 1} }, "rate"},
	{"level", func(_ *G, c *C) { c.MinLevel = "best" }, "min_level"},
	{"template with another operation", func(g *G, c *C) {
		g.Operations, c.Template = []claviger.Operation{claviger.Sign, claviger.Verify}, jwtTemplate()
	}, "template"},
	{"empty template", func(g *G, c *C) {
		g.Operations, c.Template = []claviger.Operation{claviger.Sign}, &claviger.Template{}
	}, "template"},
	{"two templates", func(g *G, c *C) {
		g.Operations, c.Template = []claviger.Operation{claviger.Sign}, &claviger.Template{JWT: jwtTemplate().JWT, SSH: sshTemplate().SSH}
	}, "template"},
	{"jwt", jwt(func(*claviger.JWTTemplate) {}), ""},
	{"jwt type", jwt(func(j *claviger.JWTTemplate) { j.Type = strings.Repeat("x", 65) }), "template type"},
	{"jwt issuer", jwt(func(j *claviger.JWTTemplate) { j.Issuer = "" }), "template issuer"},
	{"jwt subject", jwt(func(j *claviger.JWTTemplate) { j.Subject = "" }), "template subject"},
	{"jwt audiences", jwt(func(j *claviger.JWTTemplate) { j.Audiences = nil }), "template audiences"},
	{"jwt lifetime", jwt(func(j *claviger.JWTTemplate) { j.MaxLifetime = 0 }), "template max_lifetime"},
	{"jwt lifetime of part of a second", jwt(func(j *claviger.JWTTemplate) { j.MaxLifetime = 1500000000 }), "template max_lifetime"},
	{"jwt lifetime of ages", jwt(func(j *claviger.JWTTemplate) { j.MaxLifetime = math.MaxInt64 }), "template max_lifetime"},
	{"jwt pattern", jwt(func(j *claviger.JWTTemplate) { j.Claims["role"] = "(" }), "template claims"},
	{"jwt pattern that leaves its anchors", jwt(func(j *claviger.JWTTemplate) { j.Claims["role"] = "a)|(?:b" }), "template claims"},
	{"jwt pattern with a look-ahead", jwt(func(j *claviger.JWTTemplate) { j.Claims["role"] = "(?=a)" }), "template claims"},
	{"jwt long pattern", jwt(func(j *claviger.JWTTemplate) { j.Claims["role"] = strings.Repeat("x", 513) }), "template claims"},
	{"jwt fixed claim in another case", jwt(func(j *claviger.JWTTemplate) { j.Claims["I\u017f\u017f"] = ".*" }), "template claims"},
	{"jwt required claim", jwt(func(j *claviger.JWTTemplate) { j.Required = []string{"other"} }), "template required"},
	{"x509", x509Of(func(*claviger.X509Template) {}), ""},
	{"x509 issuer", x509Of(func(x *claviger.X509Template) { x.IssuerDN = "" }), "template issuer_dn"},
	{"x509 common name", x509Of(func(x *claviger.X509Template) { x.CommonName = "[" }), "template common_name"},
	{"x509 DNS names", x509Of(func(x *claviger.X509Template) { x.DNSNames = []string{"["} }), "template dns_names"},
	{"x509 URIs", x509Of(func(x *claviger.X509Template) { x.URIs = []string{""} }), "template uris"},
	{"x509 IPs", x509Of(func(x *claviger.X509Template) { x.IPs = prefixes("10.0.0.1/8") }), "template ips"},
	{"x509 usage", x509Of(func(x *claviger.X509Template) { x.ExtKeyUsage = []string{"any"} }), "template ext_key_usage"},
	{"x509 lifetime", x509Of(func(x *claviger.X509Template) { x.MaxLifetime = -1 }), "template max_lifetime"},
	{"x509 of nobody", x509Of(func(x *claviger.X509Template) {
		x.CommonName, x.DNSNames, x.URIs, x.IPs = "", nil, nil, nil
	}), "template"},
	{"ssh", sshOf(func(*claviger.SSHTemplate) {}), ""},
	{"ssh key id", sshOf(func(s *claviger.SSHTemplate) { s.KeyID = "[" }), "template key_id"},
	{"ssh no principals", sshOf(func(s *claviger.SSHTemplate) { s.Principals = nil }), "template principals"},
	{"ssh principals", sshOf(func(s *claviger.SSHTemplate) { s.Principals = []string{"["} }), "template principals"},
	{"ssh critical options", sshOf(func(s *claviger.SSHTemplate) { s.CriticalOptions[""] = "" }), "template critical_options"},
	{"ssh extensions", sshOf(func(s *claviger.SSHTemplate) { s.Extensions = []string{""} }), "template extensions"},
	{"ssh lifetime", sshOf(func(s *claviger.SSHTemplate) { s.MaxLifetime = 0 }), "template max_lifetime"},
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for _, test := range validateTests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, g := request()
			test.spoil(g, &g.Conditions)
			err := policy.Validate(*g)
			if test.want == "" {
				if err != nil {
					t.Fatalf("Validate: %v", err)
				}
				return
			}
			if !errors.Is(err, claviger.Invalid) || !strings.Contains(err.Error(), "the grant's "+test.want+" ") {
				t.Errorf("Validate: %v; want invalid %s", err, test.want)
			}
		})
	}
}
