package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

func (a *app) keyExposed() *cobra.Command {
	req := &pb.ExposeKeyRequest{Graces: map[string]*durationpb.Duration{}}
	var since moment
	var wait bool
	var grace duration
	var graces map[string]string
	c := &cobra.Command{
		Use: "exposed KEY --since TIME", Short: "Answer an exposure: somebody else may have had this key since then", Args: cobra.ExactArgs(1),
		Long: "Mark a version compromised, make a new one where it was the active one, tell the owner, and list everything that\n" +
			"was done with it. Of a machine key, tokens by the old version then pass for a grace, by format:\n" +
			"  formats that carry the time of issue     if issued before --since: for --grace, the key's own grace, or a day\n" +
			"  formats that carry none                  not at all, unless --grace is given\n" +
			"  what a framework may make objects of     not at all, unless --grace-for names the format\n" +
			"  what it always makes objects of          never: ViewState, closures of Laravel\n" +
			"Whoever has the old version can date a token back. For a key with --record-tokens only tokens that Claviger\n" +
			"itself has made since then pass, of every format, and no others.",
		Example: "  claviger key exposed prod/shop/secret-key --since 2026-11-20T08:00:00Z --reason 'in a public bucket' --dry-run\n" +
			"  claviger key exposed prod/shop/secret-key --since 48h --grace-for rails.encrypted-cookie=1h,purpose:cookie.login=0",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Key, req.Since = args[0], since.proto()
			if c.Flags().Changed("grace") {
				req.Grace = durationpb.New(time.Duration(grace))
			}
			for name, text := range graces {
				var d duration
				if text != "0" {
					if err := d.Set(text); err != nil {
						return usagef("--grace-for %s: %q is no duration such as 12h", name, text)
					}
				}
				req.Graces[name] = durationpb.New(time.Duration(d))
			}
			resp, err := s.ExposeKey(c.Context(), req)
			if err != nil {
				return err
			}
			if err := a.printExposed(resp, req.DryRun); err != nil {
				return err
			}
			return a.settle(c, s, wait && !req.DryRun)
		}),
	}
	f := c.Flags()
	waitFlag(c, &wait)
	f.Var(pastMoment{&since}, "since", "from when on somebody else may have made tokens: RFC 3339, or a duration ago such as 48h")
	_ = c.MarkFlagRequired("since")
	f.Uint32Var(&req.Version, "version", 0, "the version; the active or only one when left out")
	f.Var(&grace, "grace", "how long tokens from before still pass; 0s for not at all")
	f.StringToStringVar(&graces, "grace-for", nil, "the same by format, and at most by purpose: FORMAT=12h, purpose:NAME=0")
	f.StringVar(&req.Reason, "reason", "", "why, for the record and the owner")
	f.BoolVar(&req.DryRun, "dry-run", false, "say what would be, and change nothing")
	return c
}

// pastMoment is a moment whose durations count back.
type pastMoment struct{ *moment }

// Set implements pflag.Value.
func (m pastMoment) Set(s string) error {
	var d duration
	if d.Set(s) == nil {
		m.at = time.Now().Add(-time.Duration(d))
		return nil
	}
	return m.moment.Set(s)
}

func (a *app) printExposed(resp *pb.ExposeKeyResponse, dry bool) error {
	for _, w := range resp.Warnings {
		a.say("warning: %s", w)
	}
	return a.print(resp, func(w io.Writer) {
		verb := "is compromised"
		if dry {
			verb = "would be compromised; nothing was changed"
		}
		row(w, "key", resp.Key.GetName())
		row(w, "version", fmt.Sprintf("%d %s", resp.Version, verb))
		if resp.Replacement > 0 {
			row(w, "new version", resp.Replacement)
		}
		if len(resp.Formats) > 0 {
			row(w)
			row(w, "FORMAT", "OLD TOKENS PASS UNTIL", "IF", "DESERIALISED")
		}
		for _, f := range resp.Formats {
			rule := "issued before, as it says"
			switch {
			case f.Until == nil:
				rule = "-"
			case resp.Key.GetSettings().GetRecordTokens():
				rule = "in the record"
			case !f.Timed:
				rule = "any"
			}
			row(w, f.Format, when(f.Until), rule, f.Deserialises)
		}
		row(w)
		row(w, "DONE WITH IT", "BY", "AT", "THROUGH", "MADE", "CHECKED", "FIRST", "LAST")
		for _, p := range resp.Protected {
			row(w, p.What, p.PrincipalName, dash(p.Host), p.Node, p.Made, p.Checked, when(p.First), when(p.Last))
		}
		if len(resp.Protected) == 0 {
			row(w, "nothing was seen")
		}
	})
}

func (a *app) keyRetire() *cobra.Command {
	req := &pb.RetireVersionRequest{}
	c := &cobra.Command{
		Use: "retire KEY --version N", Short: "End the grace of a version that was replaced: it processes nothing more", Args: cobra.ExactArgs(1),
		Long: "End the grace of a version that was replaced. It is refused while somebody who was seen with the version within a\n" +
			"day was not seen with the active one: each server that checked tokens of it, and each principal at a host. See\n" +
			"'claviger state watch'. --force ends it all the same; the record says so, and who was left.",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Key = args[0]
			return a.keyResult(s.RetireVersion(c.Context(), req))
		}),
	}
	f := c.Flags()
	f.Uint32Var(&req.Version, "version", 0, "the version")
	_ = c.MarkFlagRequired("version")
	f.StringVar(&req.Reason, "reason", "", "why, for the record")
	f.BoolVar(&req.Force, "force", false, "although not everybody was seen with the active version")
	return c
}

// graceText says how a key's replaced versions end.
func graceText(s *pb.Settings) string {
	parts := []string{span(s.Grace)}
	if s.GraceDrained {
		parts = append(parts, "once drained")
	}
	if s.RecordTokens {
		parts = append(parts, "tokens recorded")
	}
	return strings.Join(parts, ", ")
}
