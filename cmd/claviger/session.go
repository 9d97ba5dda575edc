package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/audit"
)

func (a *app) sessionCommand() *cobra.Command {
	return noun("session", "Open, use and end sessions that have a key of their own",
		a.sessionOpen(), a.sessionList(), a.sessionShow(), a.sessionSign(), a.sessionClose(), a.sessionSuspend(), a.sessionResume())
}

func (a *app) sessionOpen() *cobra.Command {
	req := &pb.OpenSessionRequest{Subject: &pb.Subject{}}
	var public, rate string
	var idle, lifetime duration
	c := &cobra.Command{
		Use:   "open CLIENT",
		Short: "Open a session of a client",
		Long: "Open a session of a client, with a key that custody makes and never gives out. A key that is in a browser or a\n" +
			"device stays there: its public half is sent with --public. The limits can only be tighter than the client's.",
		Example: "  claviger session open prod/shop/web --audience 'https://api.example/*' --method GET --idle 10m\n" +
			"  claviger session open prod/shop/web --subject-issuer https://login.example --subject ann --max-uses 1000",
		Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Client, req.Idle, req.Lifetime = args[0], idle.proto(), lifetime.proto()
			if rate != "" {
				r, err := parseRate(rate)
				if err != nil {
					return err
				}
				req.Rate = r
			}
			if public != "" {
				text, err := a.read(public)
				if err != nil {
					return err
				}
				if req.Public, err = publicHalf(text); err != nil {
					return usagef("--public %s: %v", public, err)
				}
			}
			return a.sessionResult(s.OpenSession(c.Context(), req))
		}),
	}
	f := c.Flags()
	f.StringVar(&req.KeyKind, "key", "custody", "where the key is: custody, browser or device")
	f.StringVar(&req.Algorithm, "algorithm", "", "ecdsa-p256-sha256 (when empty) or ed25519; of a key elsewhere RSA too")
	f.StringVar(&public, "public", "", "PEM file of the public half of a key in a browser or a device")
	f.StringVar(&req.Subject.Id, "subject", "", "for whom; the caller itself when empty")
	f.StringVar(&req.Subject.Issuer, "subject-issuer", "", "who vouches for the subject")
	f.StringVar(&req.Subject.Name, "subject-name", "", "for people to read")
	f.StringSliceVar(&req.Scopes, "scope", nil, "scopes of its tokens")
	f.StringSliceVar(&req.Audiences, "audience", nil, "what the key may be used for, such as 'https://api.example/*'; all of the client's when empty")
	f.StringSliceVar(&req.Methods, "method", nil, "HTTP methods; any when empty")
	f.Uint64Var(&req.MaxUses, "max-uses", 0, "uses of the key over the life of the session")
	f.StringVar(&rate, "rate", "", "uses a second and burst, such as 10:20")
	f.Var(&idle, "idle", "end when not used for so long")
	f.Var(&lifetime, "lifetime", "end after so long, such as 8h")
	return c
}

func (a *app) sessionResult(s *pb.Session, err error) error {
	if err != nil {
		return err
	}
	return a.print(s, func(w io.Writer) {
		row(w, "id", s.Id)
		row(w, "client", s.Client)
		row(w, "opened by", s.Principal)
		row(w, "subject", whose(s.Subject))
		row(w, "state", sessionState(s))
		row(w, "key", s.KeyKind+", "+s.Algorithm)
		row(w, "binding", s.BindingText)
		row(w, "thumbprint", s.Jkt)
		if s.Dbsc != "" {
			row(w, "cookie", cookieText+": "+s.Dbsc)
		}
		row(w, "audiences", dash(strings.Join(s.Audiences, ", ")))
		row(w, "methods", dash(strings.Join(s.Methods, ", ")))
		row(w, "scopes", dash(strings.Join(s.Scopes, ", ")))
		row(w, "uses", usesText(s)+", last "+when(s.LastUsed))
		if s.Rate != nil {
			row(w, "rate", fmt.Sprintf("%g/s:%d", s.Rate.PerSecond, s.Rate.Burst))
		}
		row(w, "opened", when(s.Created)+" from "+dash(s.Source.GetAddress()))
		if s.Ended == nil {
			row(w, "ends", when(s.Ends)+"; unused at "+when(s.IdleEnd))
		}
	})
}

// cookieText says what it is worth that a session's cookie is bound: who runs the
// browser says so, and no one vouches for where it keeps the key.
const cookieText = "bound to a key of the device (DBSC), software keys possible"

// bindingText says what keeps a session where it is, in a listing.
func bindingText(s *pb.Session) string {
	if s.Dbsc == "" {
		return s.BindingText
	}
	return s.BindingText + "; cookie " + cookieText
}

func whose(s *pb.Subject) string {
	text := dash(s.GetName())
	if text == "-" {
		text = s.GetId()
	}
	if s.GetIssuer() != "" {
		text += " at " + s.GetIssuer()
	}
	return text
}

func sessionState(s *pb.Session) string {
	text := s.State
	if s.Ended != nil {
		text += " at " + when(s.Ended)
	}
	if s.EndReason != "" {
		text += ": " + s.EndReason
	}
	return text
}

func usesText(s *pb.Session) string {
	if s.MaxUses > 0 {
		return fmt.Sprintf("%d of %d", s.Uses, s.MaxUses)
	}
	return fmt.Sprint(s.Uses)
}

func (a *app) sessionList() *cobra.Command {
	req := &pb.ListSessionsRequest{}
	c := &cobra.Command{
		Use: "list", Short: "List sessions: your own, or all to who may manage them", Args: cobra.NoArgs,
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.ListSessions(c.Context(), req)
			if err != nil {
				return err
			}
			if resp.NextPage != "" {
				a.say("more: --page %s", resp.NextPage)
			}
			return a.print(resp, func(w io.Writer) {
				row(w, "ID", "SUBJECT", "STATE", "USES", "LAST USE", "ENDS", "BINDING")
				for _, one := range resp.Sessions {
					row(w, one.Id, whose(one.Subject), one.State, usesText(one), when(one.LastUsed), when(one.Ends), bindingText(one))
				}
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Client, "client", "", "only sessions of this client")
	f.StringVar(&req.Principal, "principal", "", "only sessions that the principal with this id opened")
	f.StringVar(&req.Subject, "subject", "", "only sessions of this subject")
	f.StringVar(&req.Issuer, "subject-issuer", "", "who vouches for the subject")
	f.BoolVar(&req.IncludeEnded, "ended", false, "those that have ended too")
	f.Uint32Var(&req.PageSize, "page-size", 100, "at most 1000")
	f.StringVar(&req.Page, "page", "", "continue a listing")
	return c
}

func (a *app) sessionShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a session, and its events to who may read the record", Args: cobra.ExactArgs(1),
		Long: "Show a session and, to who may read the record, its latest events: what the rules against abuse raised.",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			one, err := s.GetSession(c.Context(), args[0])
			if err != nil {
				return err
			}
			events, err := sessionEvents(c.Context(), s, one)
			if claviger.CodeOf(err) == claviger.Denied {
				a.say("its events are in the record, which you may not read")
			} else if err != nil {
				return err
			}
			return a.sessionShown(one, events)
		}),
	}
}

// shownEvent is an event of a session, of its record.
type shownEvent struct {
	Time     time.Time `json:"time"`
	Event    string    `json:"event"`
	Source   string    `json:"source,omitempty"`
	Audience string    `json:"audience,omitempty"`
	Method   string    `json:"method,omitempty"`
	By       string    `json:"by,omitempty"` // who used the session, or saw its use
}

// sessionEvents reads a session's latest events in the record, the oldest first.
func sessionEvents(ctx context.Context, s *client.Client, of *pb.Session) ([]shownEvent, error) {
	events := []shownEvent{}
	q := &pb.QueryRequest{Session: of.Id, Action: "session.event", Since: of.Created, Last: 20}
	for record, err := range s.Audit(ctx, q) {
		if err != nil {
			return nil, err
		}
		line, err := audit.Decode(record.Line)
		if err != nil {
			return nil, err
		}
		r := line.Record
		events = append(events, shownEvent{r.Time, r.Reason, r.Detail["source"], r.Detail["audience"], r.Detail["method"], r.PrincipalName})
	}
	return events, nil
}

func (a *app) sessionShown(s *pb.Session, events []shownEvent) error {
	if a.format == "table" {
		if err := a.sessionResult(s, nil); err != nil || len(events) == 0 {
			return err
		}
		w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
		row(w, "\nEVENT", "AT", "FROM", "FOR", "BY")
		for _, e := range events {
			row(w, e.Event, when(timestamppb.New(e.Time)), dash(e.Source), dash(strings.TrimSpace(e.Method+" "+e.Audience)), dash(e.By))
		}
		return w.Flush()
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(s)
	if err != nil {
		return err
	}
	whole := map[string]any{}
	if err := json.Unmarshal(text, &whole); err != nil {
		return err
	}
	if events != nil {
		whole["events"] = events
	}
	if text, err = json.Marshal(whole); err != nil {
		return err
	}
	return a.printJSON(text)
}

func (a *app) sessionSign() *cobra.Command {
	var proof pb.ProofStatement
	var token pb.TokenStatement
	var assertion pb.AssertionStatement
	var ssh pb.SshStatement
	var access, claims, key string
	var lifetime duration
	c := &cobra.Command{
		Use:   "sign ID",
		Short: "Have a session's key sign a proof, an assertion, a token or an SSH certificate",
		Long: "Have a session's key sign one statement, which the server builds: a DPoP proof (--method, --url), a client\n" +
			"assertion (--assertion), a JWT of the session's subject (--token), or an OpenSSH certificate (--ssh, --login).\n" +
			"There is no way to have it sign anything else.",
		Example: "  claviger session sign 01ab... --method GET --url https://api.example/orders --access-token token.jwt\n" +
			"  claviger session sign 01ab... --ssh ~/.ssh/id_ed25519.pub --login deploy > ~/.ssh/id_ed25519-cert.pub",
		Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req := &pb.SignForSessionRequest{Id: args[0]}
			switch {
			case proof.Url != "":
				if access != "" {
					text, err := a.read(access)
					if err != nil {
						return err
					}
					proof.AccessToken = strings.TrimSpace(string(text))
				}
				req.Statement = &pb.SignForSessionRequest_Proof{Proof: &proof}
			case assertion.Audience != "":
				req.Statement = &pb.SignForSessionRequest_Assertion{Assertion: &assertion}
			case token.Audience != "":
				token.Claims, token.Lifetime = []byte(claims), lifetime.proto()
				req.Statement = &pb.SignForSessionRequest_Token{Token: &token}
			case key != "":
				text, err := a.read(key)
				if err != nil {
					return err
				}
				ssh.PublicKey, ssh.Lifetime = string(text), lifetime.proto()
				req.Statement = &pb.SignForSessionRequest_Ssh{Ssh: &ssh}
			default:
				return &usageError{"nothing says what is to be signed", "use --url, --assertion, --token or --ssh"}
			}
			resp, err := s.SignForSession(c.Context(), req)
			if err != nil {
				return err
			}
			return a.print(resp, func(w io.Writer) { row(w, resp.Signed) })
		}),
	}
	f := c.Flags()
	f.StringVar(&proof.Method, "method", "GET", "of the request that a proof is for")
	f.StringVar(&proof.Url, "url", "", "of the request that a proof is for")
	f.StringVar(&access, "access-token", "", "file of the access token that goes with it, - for standard input")
	f.StringVar(&proof.Nonce, "nonce", "", "the newest that the server gave")
	f.StringVar(&assertion.Audience, "assertion", "", "audience of a client assertion: the authorization server's issuer")
	f.StringVar(&token.Audience, "token", "", "audience of a JWT")
	f.StringVar(&claims, "claims", "", "further claims of the JWT, a JSON object")
	f.StringVar(&key, "ssh", "", "public key file that an SSH certificate is for")
	f.StringVar(&ssh.Login, "login", "", "login name of the SSH certificate")
	f.Var(&lifetime, "lifetime", "of the JWT or the certificate: 5m when not set, at most 1h")
	c.MarkFlagsMutuallyExclusive("url", "assertion", "token", "ssh")
	c.MarkFlagsRequiredTogether("ssh", "login")
	return c
}

func (a *app) sessionClose() *cobra.Command {
	req := &pb.CloseSessionRequest{}
	c := &cobra.Command{
		Use: "close ID", Short: "End a session; its key signs nothing from then on", Args: cobra.ExactArgs(1),
		Long: "End a session: its key is destroyed, its refresh tokens are dead, and receivers are told. What was signed before\n" +
			"stands until it expires, unless the resource server asks for the session's status.",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Id = args[0]
			return a.sessionResult(s.CloseSession(c.Context(), req))
		}),
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	c.Flags().BoolVar(&req.Exposed, "exposed", false, "the session's key was found outside: it ends for that reason, and receivers are told")
	return c
}

func (a *app) sessionSuspend() *cobra.Command {
	req := &pb.SuspendSessionRequest{}
	c := &cobra.Command{
		Use: "suspend ID", Short: "Stop the use of a session until it is resumed", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Id = args[0]
			return a.sessionResult(s.SuspendSession(c.Context(), req))
		}),
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	return c
}

func (a *app) sessionResume() *cobra.Command {
	req := &pb.ResumeSessionRequest{}
	c := &cobra.Command{
		Use: "resume ID", Short: "Let a suspended session be used again", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Id = args[0]
			return a.sessionResult(s.ResumeSession(c.Context(), req))
		}),
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	return c
}
