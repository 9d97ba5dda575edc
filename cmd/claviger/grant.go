package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

func (a *app) grantCommand() *cobra.Command {
	return noun("grant", "Say who may do what with which keys", a.grantCreate(), a.grantList(), a.grantShow(), a.grantRevoke())
}

func (a *app) grantCreate() *cobra.Command {
	req := &pb.CreateGrantRequest{Conditions: &pb.Conditions{}}
	cond := req.Conditions
	var rate, template string
	var notBefore, notAfter moment
	c := &cobra.Command{
		Use:   "create PRINCIPAL SELECTOR OPERATION[,OPERATION...]",
		Short: "Let a principal do operations on keys",
		Long: "Let a principal do operations on the keys that a selector chooses, under conditions that must all be met.\n" +
			"With --template the principal signs nothing but structures like the template, and no raw bytes. It is one of\n" +
			"these; common_name, dns_names, uris, key_id, principals and the values of claims are patterns (RE2) for the\n" +
			"whole value, everything else is fixed:\n" +
			"  {\"jwt\":  {\"type\", \"issuer\", \"subject\", \"audiences\": [], \"max_lifetime\": \"300s\", \"claims\": {}, \"required\": []}}\n" +
			"  {\"x509\": {\"issuer_dn\", \"common_name\", \"dns_names\": [], \"uris\": [], \"ips\": [], \"ext_key_usage\": [], \"max_lifetime\"}}\n" +
			"  {\"ssh\":  {\"host\": false, \"key_id\", \"principals\": [], \"critical_options\": {}, \"extensions\": [], \"max_lifetime\"}}",
		Example: "  claviger grant create billing-web 'prod/billing/*' mac,verify-mac --rate 500:1000\n" +
			"  claviger grant create shop-web prod/shop/secret-key protect,unprotect --as django.session,django.cookie\n" +
			"  claviger grant create token-issuer prod/auth/tokens sign --template jwt.json",
		Args: cobra.ExactArgs(3),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Principal, req.Selector, req.Operations = args[0], args[1], strings.Split(args[2], ",")
			cond.NotBefore, cond.NotAfter = notBefore.proto(), notAfter.proto()
			if rate != "" {
				r, err := parseRate(rate)
				if err != nil {
					return err
				}
				cond.Rate = r
			}
			if template != "" {
				text, err := a.read(template)
				if err != nil {
					return err
				}
				cond.Template = &pb.Template{}
				if err := protojson.Unmarshal(text, cond.Template); err != nil {
					return usagef("template %s: %v", template, err)
				}
			}
			return a.grantResult(s.CreateGrant(c.Context(), req))
		}),
	}
	f := c.Flags()
	f.StringSliceVar(&cond.Sources, "source", nil, "the connection comes from one of these prefixes")
	f.StringSliceVar(&cond.Executables, "executable", nil, "path of the calling program (local socket)")
	f.StringSliceVar(&cond.Units, "unit", nil, "systemd unit of the caller (local socket)")
	f.StringSliceVar(&cond.Cgroups, "cgroup", nil, "cgroup of the caller or a parent of it (local socket)")
	f.StringSliceVar(&cond.Audiences, "audience", nil, "the request names one of these audiences")
	f.StringSliceVar(&cond.Purposes, "purpose", nil, "the request names one of these purposes")
	f.StringSliceVar(&cond.Formats, "as", nil, "only tokens of these formats are made and checked, such as django.session; no other use")
	f.Var(&notBefore, "not-before", "RFC 3339, or a duration from now")
	f.Var(&notAfter, "not-after", "RFC 3339, or a duration from now such as 90d")
	f.StringVar(&rate, "rate", "", "operations a second and burst, such as 100:200")
	f.Uint64Var(&cond.Count, "count", 0, "operations over the life of the grant")
	f.StringVar(&cond.MinLevel, "min-level", "", "least custody level of the version")
	f.StringVar(&cond.MinBinding, "min-binding", "", "least level of the device that the caller's own key is bound to")
	f.StringVar(&template, "template", "", "JSON file: sign only JWTs, X.509 or SSH certificates like this")
	f.StringVar(&req.Reason, "reason", "", "why, for the record")
	return c
}

func parseRate(s string) (*pb.Rate, error) {
	per, burst, ok := strings.Cut(s, ":")
	perSecond, err := strconv.ParseFloat(per, 64)
	if err != nil {
		return nil, usagef("--rate %q: write operations a second and burst, such as 100:200", s)
	}
	if !ok {
		return &pb.Rate{PerSecond: perSecond, Burst: uint64(max(1, perSecond))}, nil
	}
	n, err := strconv.ParseUint(burst, 10, 32)
	if err != nil {
		return nil, usagef("--rate %q: write operations a second and burst, such as 100:200", s)
	}
	return &pb.Rate{PerSecond: perSecond, Burst: n}, nil
}

func (a *app) grantResult(resp *pb.Grant, err error) error {
	if err != nil {
		return err
	}
	g := resp
	return a.print(g, func(w io.Writer) {
		row(w, "id", g.Id)
		row(w, "principal", g.PrincipalName)
		row(w, "selector", g.Selector)
		row(w, "operations", strings.Join(g.Operations, ", "))
		row(w, "conditions", describe(g.Conditions))
		row(w, "created", when(g.Created)+" by "+g.CreatedBy)
		if g.Revoked != nil {
			row(w, "revoked", when(g.Revoked)+" "+g.RevokeReason)
		}
		row(w, "uses", fmt.Sprintf("%d, last %s", g.Use.GetCount(), when(g.Use.GetLast())))
	})
}

// describe writes the conditions of a grant in a line, "-" for none.
func describe(c *pb.Conditions) string {
	var parts []string
	list := func(name string, values []string) {
		if len(values) > 0 {
			parts = append(parts, name+"="+strings.Join(values, "|"))
		}
	}
	list("source", c.GetSources())
	list("executable", c.GetExecutables())
	list("unit", c.GetUnits())
	list("cgroup", c.GetCgroups())
	list("audience", c.GetAudiences())
	list("purpose", c.GetPurposes())
	list("format", c.GetFormats())
	if c.GetNotBefore() != nil {
		parts = append(parts, "from "+when(c.NotBefore))
	}
	if c.GetNotAfter() != nil {
		parts = append(parts, "until "+when(c.NotAfter))
	}
	if r := c.GetRate(); r != nil {
		parts = append(parts, fmt.Sprintf("rate=%g/s:%d", r.PerSecond, r.Burst))
	}
	if n := c.GetCount(); n > 0 {
		parts = append(parts, fmt.Sprintf("count=%d", n))
	}
	if l := c.GetMinLevel(); l != "" {
		parts = append(parts, "level>="+l)
	}
	if l := c.GetMinBinding(); l != "" {
		parts = append(parts, "caller's device>="+l)
	}
	switch c.GetTemplate().GetKind().(type) {
	case *pb.Template_Jwt:
		parts = append(parts, "only JWT")
	case *pb.Template_X509:
		parts = append(parts, "only X.509")
	case *pb.Template_Ssh:
		parts = append(parts, "only SSH")
	}
	return dash(strings.Join(parts, ", "))
}

func (a *app) grantList() *cobra.Command {
	req := &pb.ListGrantsRequest{}
	c := &cobra.Command{
		Use: "list", Short: "List grants", Args: cobra.NoArgs,
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.ListGrants(c.Context(), req)
			if err != nil {
				return err
			}
			if resp.NextPage != "" {
				a.say("more: --page %s", resp.NextPage)
			}
			return a.print(resp, func(w io.Writer) {
				row(w, "ID", "PRINCIPAL", "SELECTOR", "OPERATIONS", "CONDITIONS", "USES", "LAST USE")
				for _, g := range resp.Grants {
					row(w, g.Id, g.PrincipalName, g.Selector, strings.Join(g.Operations, ","), describe(g.Conditions), g.Use.GetCount(), when(g.Use.GetLast()))
				}
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Principal, "principal", "", "only grants of this principal")
	f.StringVar(&req.Key, "key", "", "only grants that reach this key")
	f.BoolVar(&req.IncludeRevoked, "revoked", false, "revoked ones too")
	f.Uint32Var(&req.PageSize, "page-size", 100, "at most 1000")
	f.StringVar(&req.Page, "page", "", "continue a listing")
	return c
}

func (a *app) grantShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a grant", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			return a.grantResult(s.GetGrant(c.Context(), &pb.GetGrantRequest{Id: args[0]}))
		}),
	}
}

func (a *app) grantRevoke() *cobra.Command {
	req := &pb.RevokeGrantRequest{}
	var wait bool
	c := &cobra.Command{
		Use: "revoke ID", Short: "Withdraw a grant; the next use is refused", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Id = args[0]
			resp, err := s.RevokeGrant(c.Context(), req)
			if err := a.grantResult(resp, err); err != nil {
				return err
			}
			return a.settle(c, s, wait)
		}),
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	waitFlag(c, &wait)
	return c
}
