package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"claviger.dev"
	"claviger.dev/client"
	"claviger.dev/internal/agent"
)

func (a *app) agentCommand() *cobra.Command {
	return noun("agent", "Hold this host's identity in its TPM, its token or a key process of its own; stand in front of an application",
		a.agentEnroll(), a.agentRenew(), a.agentStatus(), a.agentProxy())
}

// agentDir is where the agent's state lies: the profile "agent", unless another
// is named.
func (a *app) agentDir() (string, error) {
	name := a.profile
	if name == "default" {
		name = "agent"
	}
	return client.ProfileDir(name)
}

func (a *app) agentEnroll() *cobra.Command {
	var codeFile, custody string
	var s agent.Settings
	c := &cobra.Command{
		Use: "enroll", Short: "Make the host's identity key in a device, and trade a code for its certificate", Args: cobra.NoArgs,
		Long: "Make the identity key of this host where it cannot be carried away, and trade a one-time code for its first\n" +
			"certificate. The TPM is tried first, then the token of --pkcs11, then a key process of the agent's own, whose\n" +
			"root key lies in a file beside it: a copy of that directory is a copy of the key. It is said which was taken,\n" +
			"and why the others were not. From then on the certificate renews by that key alone. The agent is the profile\n" +
			"'agent', unless --profile names another; 'claviger --profile agent ...' signs in the device.",
		Example: "  claviger agent enroll --address https://keys.example.internal:8443 --code-file - < code",
		RunE: func(c *cobra.Command, _ []string) error {
			if a.address == "" {
				return usagef("--address is needed: the server's https://host:port")
			}
			dir, err := a.agentDir()
			if err != nil {
				return err
			}
			code, err := a.code(codeFile)
			if err != nil {
				return err
			}
			s.Custodian = claviger.Custodian(custody)
			held, passed, err := agent.Make(c.Context(), dir, s)
			for _, p := range passed {
				a.say("%s: not taken: %s", p.Custodian, reason(p.Err))
			}
			if err != nil {
				return err
			}
			a.closers = append(a.closers, held)
			a.say("%s: taken", held.Status().Custodian)
			profile, bound, err := client.EnrollBound(c.Context(), a.address, code, held)
			if err != nil {
				return err
			}
			if err := held.Keep(dir, profile, bound); err != nil {
				return err
			}
			a.say("enrolled; the agent is in %s", dir)
			return a.agentShow(held.Status(), profile.Certificate.Leaf.NotAfter, "")
		},
	}
	f := c.Flags()
	f.StringVar(&codeFile, "code-file", "-", "file of the code, - for the terminal or standard input")
	f.StringVar(&custody, "custody", "", "take this custodian or none: tpm, p11 or soft")
	f.StringVar(&s.TPM, "tpm", agent.DefaultTPM, "TPM, or unix:PATH of a software TPM")
	f.StringVar(&s.PKCS11, "pkcs11", "", "token by RFC 7512 URI, with module-path and pin-source=file:PATH")
	f.StringArrayVar(&s.Variables, "pkcs11-env", nil, "NAME=/absolute/path that the token's module reads, such as SOFTHSM2_CONF; may be repeated")
	f.StringVar(&s.KeyUser, "key-user", "", "account of the agent's own key process, where root enrols; without it the key counts as exposed")
	_ = c.RegisterFlagCompletionFunc("custody", cobra.FixedCompletions([]string{"tpm", "p11", "soft"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// code reads an enrolment code from a file, from standard input, or from the
// terminal without showing it.
func (a *app) code(name string) (string, error) {
	var text []byte
	var err error
	if f, ok := a.stdin.(*os.File); ok && name == "-" && term.IsTerminal(int(f.Fd())) {
		_, _ = io.WriteString(a.stderr, "enrolment code: ")
		text, err = term.ReadPassword(int(f.Fd()))
		a.say("")
	} else {
		text, err = a.readUpTo(name, 4096)
	}
	return strings.TrimSpace(string(text)), err
}

// reason is an error on one line, with its hint.
func reason(err error) string {
	if e, ok := errors.AsType[*claviger.Error](err); ok {
		return e.Msg
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

func (a *app) agentRenew() *cobra.Command {
	var now bool
	c := &cobra.Command{
		Use: "renew", Short: "Renew the agent's certificate when a third of its life or less is left, and after it", Args: cobra.NoArgs,
		Long: "Renew the certificate by the key in the device, before it has expired or after. Run it on a timer, more often\n" +
			"than a third of a certificate's life. On a host whose device does not hold the key it says so, tries with what\n" +
			"the device has, and is refused: the server records that.",
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := a.agentDir()
			if err != nil {
				return err
			}
			if _, err := agent.ReadStatus(dir); err != nil {
				return err
			}
			leaf, err := client.Leaf(agent.ProfileDir(dir))
			if err != nil {
				return err
			}
			if life := leaf.NotAfter.Sub(leaf.NotBefore); !now && time.Until(leaf.NotAfter) > life/3 {
				a.say("certificate valid until %s; nothing to do", leaf.NotAfter.Local().Format(time.DateTime))
				return nil
			}
			held, err := agent.Open(c.Context(), dir, "")
			if err != nil {
				return err
			}
			a.closers = append(a.closers, held)
			if err := held.Check(c.Context()); err != nil {
				return a.renewElsewhere(c.Context(), dir, held.Status(), err)
			}
			if err := held.Renew(c.Context()); err != nil {
				return err
			}
			if leaf, err = client.Leaf(agent.ProfileDir(dir)); err != nil {
				return err
			}
			a.say("certificate valid until %s", leaf.NotAfter.Local().Format(time.DateTime))
			return nil
		},
	}
	c.Flags().BoolVar(&now, "now", false, "whatever is left of its life")
	return c
}

// renewElsewhere tries to renew with a key that this host's device makes, where
// it does not hold the agent's. The server refuses it, and knows.
func (a *app) renewElsewhere(ctx context.Context, dir string, s agent.Status, cause error) error {
	if !errors.Is(cause, agent.ErrForeign) {
		return cause
	}
	a.say("this device does not hold the agent's key; trying with one that it makes")
	settings := agent.Settings{Custodian: s.Custodian, TPM: s.Path}
	if s.Custodian != claviger.TPM { // no litter in a token
		settings = agent.Settings{Custodian: claviger.Soft}
	}
	work, err := os.MkdirTemp("", "claviger-agent-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	other, _, err := agent.Make(ctx, filepath.Join(work, "agent"), settings)
	if err != nil {
		return errors.Join(cause, err)
	}
	a.closers = append(a.closers, other)
	_, err = client.RenewBound(ctx, agent.ProfileDir(dir), other)
	if err == nil {
		return cause
	}
	return err
}

func (a *app) agentStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show where the agent's key lies, and whether it answers", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := a.agentDir()
			if err != nil {
				return err
			}
			status, err := agent.ReadStatus(dir)
			if err != nil {
				return err
			}
			leaf, err := client.Leaf(agent.ProfileDir(dir))
			if err != nil {
				return err
			}
			held, failure := agent.Open(c.Context(), dir, "")
			if failure == nil {
				a.closers = append(a.closers, held)
				failure = held.Check(c.Context())
			}
			answers := "answers"
			if failure != nil {
				answers = reason(failure)
			}
			return errors.Join(a.agentShow(status, leaf.NotAfter, answers), failure)
		},
	}
}

// agentShow prints what is known of an agent. Software and a root for tests
// are never left out.
func (a *app) agentShow(s agent.Status, notAfter time.Time, key string) error {
	if a.format != "table" {
		text, err := json.Marshal(struct {
			agent.Status
			NotAfter time.Time `json:"certificate_not_after"`
			Key      string    `json:"key,omitempty"`
		}{s, notAfter.UTC(), key})
		if err != nil {
			return err
		}
		return a.printJSON(text)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	row(w, "custodian", s.Custodian)
	row(w, "device", deviceText(dash(s.Path), strings.TrimSpace(s.Device.Manufacturer+" "+s.Device.Model), s.Device.Software))
	if key != "" {
		row(w, "key", key)
	}
	if b := s.Bound; b != nil {
		level := string(b.Level)
		if b.Root != "" {
			level += " by root " + b.Root
		}
		if b.TestRoot {
			level += " (TEST ROOT: it proves nothing about hardware)"
		}
		row(w, "level", level)
		row(w, "last proved", b.At.Local().Format(time.DateTime))
	}
	state := ""
	if time.Now().After(notAfter) {
		state = " (expired)"
	}
	row(w, "certificate until", notAfter.Local().Format(time.DateTime)+state)
	return w.Flush()
}
