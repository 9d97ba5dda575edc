package main

import (
	"cmp"
	"io"

	"github.com/spf13/cobra"

	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

func (a *app) receiverCommand() *cobra.Command {
	return noun("receiver", "Say who is told when sessions end", a.receiverAdd(), a.receiverList(), a.receiverShow(), a.receiverRemove(),
		a.receiverDead(), a.receiverRetry())
}

func (a *app) receiverAdd() *cobra.Command {
	req := &pb.CreateReceiverRequest{}
	var roots []string
	c := &cobra.Command{
		Use:   "add NAME --url URL",
		Short: "Have an application told when sessions end",
		Long: "Have an application told when sessions end: by a logout token (OpenID Connect Back-Channel Logout 1.0), or by a\n" +
			"security event token (RFC 8417, 8935) of CAEP's session-revoked. It knows the token by its signature: the keys are\n" +
			"at /oauth/jwks of the issuer. It is told at least once, and may be told twice, with one jti.",
		Example: "  claviger receiver add shop --client prod/shop/web --url https://shop.example/backchannel-logout\n" +
			"  claviger receiver add soc --kind caep --audience https://soc.example --url https://soc.example/events",
		Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Name = args[0]
			certificates, err := a.certificates(roots)
			if err != nil {
				return err
			}
			for _, root := range certificates {
				req.Roots = append(req.Roots, root.Raw)
			}
			return a.receiverResult(s.CreateReceiver(c.Context(), req))
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Kind, "kind", "backchannel-logout", "backchannel-logout or caep")
	f.StringVar(&req.Url, "url", "", "https address where it takes them (required)")
	f.StringVar(&req.Client, "client", "", "only sessions of this client, by id or name")
	f.StringVar(&req.Audience, "audience", "", "aud of what it gets (the client's id)")
	f.StringSliceVar(&roots, "roots", nil, "PEM file of the certificates that vouch for it (the system's)")
	f.StringVar(&req.Reason, "reason", "", "why, for the record")
	return c
}

func (a *app) receiverResult(r *pb.Receiver, err error) error {
	if err != nil {
		return err
	}
	return a.print(r, func(w io.Writer) {
		row(w, "id", r.Id)
		row(w, "name", r.Name)
		row(w, "kind", r.Kind)
		row(w, "url", r.Url)
		row(w, "audience", r.Audience)
		row(w, "sessions of", cmp.Or(r.Client, "all clients"))
		row(w, "created", when(r.Created))
		row(w, "pending", r.Pending)
		row(w, "given up", r.Dead)
	})
}

func (a *app) receiverList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List receivers, with what waits for them", Args: cobra.NoArgs,
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.ListReceivers(c.Context())
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				row(w, "NAME", "KIND", "URL", "CLIENT", "PENDING", "GIVEN UP")
				for _, r := range resp.Receivers {
					row(w, r.Name, r.Kind, r.Url, cmp.Or(r.Client, "all"), r.Pending, r.Dead)
				}
			})
		}),
	}
}

func (a *app) receiverShow() *cobra.Command {
	return &cobra.Command{
		Use: "show RECEIVER", Short: "Show a receiver", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			return a.receiverResult(s.GetReceiver(c.Context(), args[0]))
		}),
	}
}

func (a *app) receiverRemove() *cobra.Command {
	req := &pb.RemoveReceiverRequest{}
	c := &cobra.Command{
		Use: "remove RECEIVER", Short: "Tell a receiver nothing any more, nor what waits for it", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Receiver = args[0]
			if err := s.RemoveReceiver(c.Context(), req); err != nil {
				return err
			}
			a.say("removed: %s", args[0])
			return nil
		}),
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	return c
}

func (a *app) receiverDead() *cobra.Command {
	req := &pb.ListDeliveriesRequest{}
	var pending bool
	c := &cobra.Command{
		Use: "dead [RECEIVER]", Short: "List what receivers could not be told", Args: cobra.MaximumNArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			if req.Dead = !pending; len(args) > 0 {
				req.Receiver = args[0]
			}
			resp, err := s.ListDeliveries(c.Context(), req)
			if err != nil {
				return err
			}
			if resp.NextPage != "" {
				a.say("more: --page %s", resp.NextPage)
			}
			return a.print(resp, func(w io.Writer) {
				row(w, "ID", "RECEIVER", "SESSION", "ENDED", "REASON", "TRIES", "NEXT TRY", "ERROR")
				for _, d := range resp.Deliveries {
					row(w, d.Id, d.Receiver, d.Session, when(d.Ended), d.Reason, d.Tries, when(d.Next), dash(d.Error))
				}
			})
		}),
	}
	f := c.Flags()
	f.BoolVar(&pending, "pending", false, "what waits to be told, instead")
	f.Uint32Var(&req.PageSize, "page-size", 100, "at most 1000")
	f.StringVar(&req.Page, "page", "", "continue a listing")
	return c
}

func (a *app) receiverRetry() *cobra.Command {
	req := &pb.RetryDeliveriesRequest{}
	c := &cobra.Command{
		Use: "retry RECEIVER [ID]", Short: "Try what was given up again: one delivery, or all", Args: cobra.RangeArgs(1, 2),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			if req.Receiver = args[0]; len(args) > 1 {
				req.Id = args[1]
			}
			resp, err := s.RetryDeliveries(c.Context(), req)
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { row(w, "tried again", resp.Count) })
		}),
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	return c
}
