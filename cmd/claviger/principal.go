package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/agent"
)

func (a *app) principalCommand() *cobra.Command {
	return noun("principal", "Say who callers are",
		a.principalCreate(), a.principalList(), a.principalShow(), a.principalRevoke(), a.principalCode(),
		a.principalEnroll(), a.principalRenew(), a.principalCertificates(), a.principalRevokeCertificate(), a.principalWhoami())
}

func (a *app) principalResult(resp *pb.Principal, err error) error {
	if err != nil {
		return err
	}
	return a.print(resp, func(w io.Writer) { principalRows(w, resp) })
}

func principalRows(w io.Writer, p *pb.Principal) {
	row(w, "name", p.Name)
	row(w, "id", p.Id)
	row(w, "kind", p.Kind)
	row(w, "environments", dash(strings.Join(p.Environments, ", ")))
	row(w, "owner", dash(p.Owner))
	row(w, "enrolled key", dash(p.KeyHash))
	bindingRows(w, p.Bound, p.Binding)
	if p.Revoked != nil {
		row(w, "revoked", when(p.Revoked)+" "+p.RevokeReason)
	}
}

// bindingRows say what device a principal is bound to. A software device and a
// root for tests are never left out.
func bindingRows(w io.Writer, required bool, b *pb.PrincipalBinding) {
	if b == nil {
		if required {
			row(w, "bound", "required; not enrolled from a device yet")
		}
		return
	}
	row(w, "bound", deviceText(b.Custodian, b.Device, b.Software))
	level := b.Level
	if b.Root != "" {
		level += " by root " + b.Root
	}
	if b.TestRoot {
		level += " (TEST ROOT: it proves nothing about hardware)"
	}
	row(w, "binding level", level)
	row(w, "last proved", when(b.At))
	if b.Finding != "" {
		row(w, "finding", b.Finding)
	}
}

// boundText is the level of a principal's binding, in one cell.
func boundText(p *pb.Principal) string {
	b := p.Binding
	switch {
	case b == nil && p.Bound:
		return "required"
	case b == nil:
		return "-"
	}
	text := b.Custodian + ":" + b.Level
	if b.TestRoot {
		text += " (TEST ROOT " + b.Root + ")"
	} else if b.Software {
		text += " (SOFTWARE)"
	}
	return text
}

func deviceText(custodian, device string, software bool) string {
	text := custodian
	if device != "" {
		text += ", " + device
	}
	if software {
		text += " (SOFTWARE)"
	}
	return text
}

func (a *app) principalCreate() *cobra.Command {
	req := &pb.CreatePrincipalRequest{}
	c := &cobra.Command{
		Use: "create NAME", Short: "Name a caller; it holds no right until a grant gives one", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Name = args[0]
			return a.principalResult(s.CreatePrincipal(c.Context(), req))
		}),
	}
	c.Flags().StringVar(&req.Kind, "kind", "workload", "workload, service-account, agent, person or operator")
	c.Flags().StringSliceVar(&req.Environments, "environment", nil, "environments whose keys it may use; * for any")
	c.Flags().BoolVar(&req.Bound, "bound", false, "only a key in a device may enrol: see 'claviger agent enroll'")
	c.Flags().StringVar(&req.Owner, "owner", "", "application and team answerable for it")
	return c
}

func (a *app) principalList() *cobra.Command {
	req := &pb.ListPrincipalsRequest{}
	c := &cobra.Command{
		Use: "list", Short: "List principals", Args: cobra.NoArgs,
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.ListPrincipals(c.Context(), req)
			if err != nil {
				return err
			}
			if resp.NextPage != "" {
				a.say("more: --page %s", resp.NextPage)
			}
			return a.print(resp, func(w io.Writer) {
				row(w, "NAME", "KIND", "ENVIRONMENTS", "OWNER", "BOUND", "CREATED", "REVOKED")
				for _, p := range resp.Principals {
					row(w, p.Name, p.Kind, dash(strings.Join(p.Environments, ",")), dash(p.Owner), boundText(p), when(p.Created), when(p.Revoked))
				}
			})
		}),
	}
	c.Flags().BoolVar(&req.IncludeRevoked, "revoked", false, "revoked ones too")
	c.Flags().Uint32Var(&req.PageSize, "page-size", 100, "at most 1000")
	c.Flags().StringVar(&req.Page, "page", "", "continue a listing")
	return c
}

func (a *app) principalShow() *cobra.Command {
	return &cobra.Command{
		Use: "show PRINCIPAL", Short: "Show a principal", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			return a.principalResult(s.GetPrincipal(c.Context(), &pb.GetPrincipalRequest{Principal: args[0]}))
		}),
	}
}

func (a *app) principalRevoke() *cobra.Command {
	req := &pb.RevokePrincipalRequest{}
	var wait bool
	c := &cobra.Command{
		Use: "revoke PRINCIPAL", Short: "End a principal; its next call is refused", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Principal = args[0]
			resp, err := s.RevokePrincipal(c.Context(), req)
			if err := a.principalResult(resp, err); err != nil {
				return err
			}
			return a.settle(c, s, wait)
		}),
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	waitFlag(c, &wait)
	return c
}

func (a *app) principalCode() *cobra.Command {
	var lifetime duration
	c := &cobra.Command{
		Use: "code PRINCIPAL", Short: "Make a one-time enrolment code, which also pins this server's CA", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			resp, err := s.IssueCode(c.Context(), &pb.IssueCodeRequest{Principal: args[0], Lifetime: lifetime.proto()})
			if err != nil {
				return err
			}
			a.say("valid once, until %s", when(resp.Expires))
			return a.print(resp, func(w io.Writer) { row(w, resp.Code) })
		}),
	}
	c.Flags().Var(&lifetime, "lifetime", "at most 24h; 15m when left out")
	return c
}

func (a *app) principalEnroll() *cobra.Command {
	var codeFile string
	c := &cobra.Command{
		Use: "enroll", Short: "Make a key here, and trade a code for its first certificate", Args: cobra.NoArgs,
		Long: "Make a key on this machine and trade a one-time code, read from --code-file, for a certificate. The key\n" +
			"and the certificate are kept in the profile, readable by the user alone; the key is then as safe as that\n" +
			"file. The code pins the server's CA and its key process.",
		Example: "  claviger principal enroll --address https://keys.example.internal:8443 --code-file - < code",
		RunE: func(c *cobra.Command, _ []string) error {
			code, err := a.readUpTo(codeFile, 4096)
			if err != nil {
				return err
			}
			if a.address == "" {
				return usagef("--address is needed: the server's https://host:port")
			}
			dir, err := client.ProfileDir(a.profile)
			if err != nil {
				return err
			}
			profile, err := client.Enroll(c.Context(), a.address, strings.TrimSpace(string(code)), dir)
			if err != nil {
				return err
			}
			a.say("enrolled; the profile is in %s", dir)
			a.say("certificate valid until %s, renewed by use", profile.Certificate.Leaf.NotAfter.Local().Format("2006-01-02 15:04:05"))
			return nil
		},
	}
	c.Flags().StringVar(&codeFile, "code-file", "-", "file of the code, - for standard input")
	return c
}

func (a *app) principalRenew() *cobra.Command {
	return &cobra.Command{
		Use: "renew", Short: "Renew the profile's certificate now", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := client.ProfileDir(a.profile)
			if err != nil {
				return err
			}
			if agent.Is(dir) {
				return &usageError{"the profile is an agent's, whose device has to answer", "renew it with 'claviger agent renew'"}
			}
			s, err := client.Open(dir)
			if err != nil {
				return err
			}
			defer s.Close()
			if err := s.Renew(c.Context()); err != nil {
				return err
			}
			profile, err := client.LoadProfile(dir)
			if err != nil {
				return err
			}
			a.say("certificate valid until %s", profile.Certificate.Leaf.NotAfter.Local().Format("2006-01-02 15:04:05"))
			return nil
		},
	}
}

func (a *app) principalCertificates() *cobra.Command {
	return &cobra.Command{
		Use: "certificates PRINCIPAL", Short: "List the certificates of a principal", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			resp, err := s.ListCertificates(c.Context(), &pb.ListCertificatesRequest{Principal: args[0]})
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				row(w, "SERIAL", "NOT BEFORE", "NOT AFTER", "REVOKED")
				for _, cert := range resp.Certificates {
					row(w, cert.Serial, when(cert.NotBefore), when(cert.NotAfter), when(cert.Revoked))
				}
			})
		}),
	}
}

func (a *app) principalRevokeCertificate() *cobra.Command {
	req := &pb.RevokeCertificateRequest{}
	var wait bool
	c := &cobra.Command{
		Use: "revoke-certificate SERIAL", Short: "End one certificate at once", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Serial = args[0]
			if err := s.RevokeCertificate(c.Context(), req); err != nil {
				return err
			}
			a.say("revoked")
			return a.settle(c, s, wait)
		}),
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	waitFlag(c, &wait)
	return c
}

func (a *app) principalWhoami() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show who the server takes you for, and the facts it observed", Args: cobra.NoArgs,
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.WhoAmI(c.Context())
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) {
				principalRows(w, resp.Principal)
				row(w, "method", resp.Method)
				row(w, "source", dash(resp.Source))
				if resp.Method == "peer" {
					row(w, "uid", resp.Uid)
				}
				row(w, "executable", dash(resp.Executable))
				row(w, "cgroup", dash(resp.Cgroup))
				row(w, "unit", dash(resp.Unit))
				row(w, "certificate", dash(resp.CertSerial))
			})
		}),
	}
}
