package main

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

func (a *app) clientCommand() *cobra.Command {
	return noun("client", "Register the applications that get tokens and open sessions",
		a.clientCreate(), a.clientList(), a.clientShow(), a.clientUpdate(), a.clientDisable())
}

// clientFlags are what a client is registered with.
type clientFlags struct {
	c                                        *pb.Client
	jwks, rate                               string
	access, refresh, refreshIdle, idle, life duration
}

func newClientFlags(c *cobra.Command) *clientFlags {
	v := &clientFlags{c: &pb.Client{Limits: &pb.ClientLimits{}}}
	f, l := c.Flags(), v.c.Limits
	f.StringVar(&v.jwks, "jwks", "", "file of the JWK Set of private_key_jwt; without one the client authenticates by mTLS")
	f.StringSliceVar(&v.c.Certificates, "certificate", nil, "SHA-256 of a client certificate from elsewhere, base64url")
	f.StringSliceVar(&v.c.RedirectUris, "redirect-uri", nil, "where a browser returns after the login")
	f.StringSliceVar(&v.c.PostLogoutUris, "post-logout-uri", nil, "where a browser returns after the logout")
	f.StringSliceVar(&v.c.Audiences, "audience", nil, "what its tokens may be for, such as 'https://api.example/*'")
	f.StringSliceVar(&v.c.Scopes, "scope", nil, "what its tokens may carry")
	f.StringSliceVar(&v.c.GrantTypes, "grant-type", nil, "client_credentials, authorization_code, refresh_token, or token exchange by its URN")
	f.StringVar(&v.c.TokenAlgorithm, "token-algorithm", "", "of its access tokens: ecdsa-p256-sha256 (when empty) or rsa-2048-pkcs1-sha256")
	f.Var(&v.access, "access", "lifetime of an access token: 5m when not set")
	f.Var(&v.refresh, "refresh", "from the first refresh token to the last: 24h when not set")
	f.Var(&v.refreshIdle, "refresh-idle", "a refresh token that was not used for so long is dead: 8h when not set")
	f.Var(&v.idle, "session-idle", "a session that was not used for so long ends: 1h when not set")
	f.Var(&v.life, "session", "lifetime of a session: 12h when not set")
	f.Uint64Var(&l.SessionUses, "session-uses", 0, "uses of one session's key")
	f.StringVar(&v.rate, "session-rate", "", "uses a second and burst of one session's key, such as 10:20")
	f.StringVar(&l.SourceChanges, "source-changes", "", "of a session that is used from elsewhere: allow (when empty), refuse or end")
	f.Uint64Var(&l.MaxSessions, "max-sessions", 0, "live sessions of one subject")
	f.StringSliceVar(&l.SuspendOn, "suspend-on", nil, "events that suspend a session, such as volume,stale-nonce; the others are recorded alone")
	f.Uint64Var(&l.SessionVolume, "session-volume", 0, "uses of a session in a minute that are no event: 300 when not set")
	return v
}

// read returns the client as the flags say; those that were not given leave
// what old has, where there is one.
func (v *clientFlags) read(a *app, c *cobra.Command, old *pb.Client) (*pb.Client, error) {
	if old == nil {
		old = v.c
	}
	if old.Limits == nil {
		old.Limits = &pb.ClientLimits{}
	}
	given := c.Flags().Changed
	for name, set := range map[string]func(){
		"certificate": func() { old.Certificates = v.c.Certificates }, "redirect-uri": func() { old.RedirectUris = v.c.RedirectUris },
		"post-logout-uri": func() { old.PostLogoutUris = v.c.PostLogoutUris }, "audience": func() { old.Audiences = v.c.Audiences },
		"scope": func() { old.Scopes = v.c.Scopes }, "grant-type": func() { old.GrantTypes = v.c.GrantTypes },
		"token-algorithm": func() { old.TokenAlgorithm = v.c.TokenAlgorithm }, "session-uses": func() { old.Limits.SessionUses = v.c.Limits.SessionUses },
		"source-changes": func() { old.Limits.SourceChanges = v.c.Limits.SourceChanges }, "max-sessions": func() { old.Limits.MaxSessions = v.c.Limits.MaxSessions },
		"suspend-on": func() { old.Limits.SuspendOn = v.c.Limits.SuspendOn }, "session-volume": func() { old.Limits.SessionVolume = v.c.Limits.SessionVolume },
		"access": func() { old.Limits.Access = v.access.proto() }, "refresh": func() { old.Limits.Refresh = v.refresh.proto() },
		"refresh-idle": func() { old.Limits.RefreshIdle = v.refreshIdle.proto() }, "session-idle": func() { old.Limits.SessionIdle = v.idle.proto() },
		"session": func() { old.Limits.Session = v.life.proto() },
	} {
		if given(name) {
			set()
		}
	}
	var err error
	if v.rate != "" {
		if old.Limits.SessionRate, err = parseRate(v.rate); err != nil {
			return nil, err
		}
	}
	if v.jwks != "" {
		if old.Jwks, err = a.read(v.jwks); err != nil {
			return nil, err
		}
	}
	return old, nil
}

func (a *app) clientCreate() *cobra.Command {
	var principal, kind string
	c := &cobra.Command{
		Use:   "create NAME --principal PRINCIPAL",
		Short: "Register a client",
		Long: "Register a client. Every request of it is its principal's, who needs a grant besides:\n" +
			"  claviger grant create PRINCIPAL NAME open-session",
		Example: "  claviger client create prod/shop/web --principal shop-web --audience 'https://api.example/*' --scope orders \\\n" +
			"    --grant-type authorization_code,refresh_token --redirect-uri https://shop.example/callback",
		Args: cobra.ExactArgs(1),
	}
	v := newClientFlags(c)
	c.RunE = a.with(func(c *cobra.Command, s *client.Client, args []string) error {
		reg, err := v.read(a, c, nil)
		if err != nil {
			return err
		}
		reg.Name, reg.Principal, reg.Kind = args[0], principal, kind
		return a.clientResult(s.CreateClient(c.Context(), &pb.CreateClientRequest{Client: reg}))
	})
	c.Flags().StringVar(&principal, "principal", "", "whose requests the client's are")
	c.Flags().StringVar(&kind, "kind", "confidential", "confidential, or public: a page in a browser, an application on a device")
	_ = c.MarkFlagRequired("principal")
	return c
}

func (a *app) clientUpdate() *cobra.Command {
	c := &cobra.Command{Use: "update CLIENT", Short: "Change what a client is registered with", Args: cobra.ExactArgs(1),
		Long: "Change what a client is registered with. A list that is given stands in place of the one before; what is not\n" +
			"given stays. Sessions that are open keep the limits that they were opened with."}
	v := newClientFlags(c)
	c.RunE = a.with(func(c *cobra.Command, s *client.Client, args []string) error {
		old, err := s.GetClient(c.Context(), args[0])
		if err != nil {
			return err
		}
		reg, err := v.read(a, c, old)
		if err != nil {
			return err
		}
		return a.clientResult(s.UpdateClient(c.Context(), &pb.UpdateClientRequest{Client: reg}))
	})
	return c
}

func (a *app) clientResult(c *pb.Client, err error) error {
	if err != nil {
		return err
	}
	return a.print(c, func(w io.Writer) {
		list := func(values []string) string { return dash(strings.Join(values, ", ")) }
		standard := func(d *durationpb.Duration, text string) string {
			if d == nil {
				return text
			}
			return span(d)
		}
		l := c.GetLimits()
		row(w, "id", c.Id)
		row(w, "name", c.Name)
		row(w, "principal", c.Principal)
		row(w, "kind", c.Kind)
		row(w, "authenticates by", authenticates(c))
		row(w, "grant types", list(c.GrantTypes))
		row(w, "audiences", list(c.Audiences))
		row(w, "scopes", list(c.Scopes))
		row(w, "redirect URIs", list(c.RedirectUris))
		row(w, "after logout", list(c.PostLogoutUris))
		row(w, "access tokens", standard(l.GetAccess(), "5m0s")+", "+standardText(c.TokenAlgorithm, "ecdsa-p256-sha256"))
		row(w, "refresh tokens", standard(l.GetRefresh(), "1d")+", unused "+standard(l.GetRefreshIdle(), "8h0m0s"))
		row(w, "sessions", standard(l.GetSession(), "12h0m0s")+", unused "+standard(l.GetSessionIdle(), "1h0m0s")+", from elsewhere: "+standardText(l.GetSourceChanges(), "allow"))
		if l.GetSessionUses() > 0 || l.GetMaxSessions() > 0 || l.GetSessionRate() != nil {
			row(w, "limits", fmt.Sprintf("%d uses, %g/s, %d sessions of a subject (0: none)", l.SessionUses, l.SessionRate.GetPerSecond(), l.MaxSessions))
		}
		row(w, "suspended on", list(l.GetSuspendOn())+"; usual volume "+standardText(strings.TrimPrefix(fmt.Sprint(l.GetSessionVolume()), "0"), "300")+"/min")
		row(w, "created", when(c.Created)+" by "+c.CreatedBy)
		if c.Disabled != nil {
			row(w, "disabled", when(c.Disabled)+" "+c.DisabledReason)
		}
	})
}

func standardText(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func authenticates(c *pb.Client) string {
	switch {
	case c.Kind == "public":
		return "nothing: PKCE and the key of each session"
	case len(c.Jwks) > 0:
		return "private_key_jwt, or mTLS"
	}
	return "mTLS"
}

func (a *app) clientList() *cobra.Command {
	req := &pb.ListClientsRequest{}
	c := &cobra.Command{
		Use: "list", Short: "List clients", Args: cobra.NoArgs,
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.ListClients(c.Context(), req)
			if err != nil {
				return err
			}
			if resp.NextPage != "" {
				a.say("more: --page %s", resp.NextPage)
			}
			return a.print(resp, func(w io.Writer) {
				row(w, "NAME", "ID", "KIND", "AUTHENTICATES BY", "AUDIENCES", "STATE")
				for _, one := range resp.Clients {
					state := "enabled"
					if one.Disabled != nil {
						state = "disabled"
					}
					row(w, one.Name, one.Id, one.Kind, authenticates(one), dash(strings.Join(one.Audiences, ",")), state)
				}
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Principal, "principal", "", "only clients of this principal")
	f.Uint32Var(&req.PageSize, "page-size", 100, "at most 1000")
	f.StringVar(&req.Page, "page", "", "continue a listing")
	return c
}

func (a *app) clientShow() *cobra.Command {
	return &cobra.Command{
		Use: "show CLIENT", Short: "Show a client", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			return a.clientResult(s.GetClient(c.Context(), args[0]))
		}),
	}
}

func (a *app) clientDisable() *cobra.Command {
	req := &pb.DisableClientRequest{}
	c := &cobra.Command{
		Use: "disable CLIENT", Short: "Disable a client for good and end its sessions", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Client = args[0]
			return a.clientResult(s.DisableClient(c.Context(), req))
		}),
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	return c
}

// publicHalf reads a PEM file of one public key.
func publicHalf(text []byte) ([]byte, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("it is not one PEM block of type PUBLIC KEY")
	}
	return block.Bytes, nil
}
