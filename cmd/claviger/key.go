package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/pubkey"
)

func (a *app) keyCommand() *cobra.Command {
	return noun("key", "Make, use and look after keys",
		a.keyCreate(), a.keyList(), a.keyShow(), a.keyRotate(), a.keyRetire(), a.keyExposed(), a.keyState(), a.keyUpdate(), a.keyRename(),
		a.keyImport(), a.keyCopies(), a.keyPublic(), a.keyAlgorithms(),
		a.keySign(), a.keyVerify(), a.keyMAC(), a.keyVerifyMAC(), a.keySeal(), a.keyOpen())
}

// settingsFlags are the protective settings, as flags.
type settingsFlags struct {
	originator, recipient, rotate, grace duration
	invocations                          uint64
	processSuspended, processExposed     bool
	suspendExposed                       bool
	minLevel                             string
	keep                                 duration
	drained, record                      bool
}

func (s *settingsFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.Var(&s.originator, "originator-period", "a version protects for this long after its activation, such as 365d")
	f.Var(&s.recipient, "recipient-period", "a version processes for this long after its activation")
	f.Var(&s.rotate, "rotate-every", "make a new version when the newest is this old")
	f.Var(&s.grace, "destroy-grace", "least time between the end of use and destruction")
	f.Uint64Var(&s.invocations, "max-invocations", 0, "most protecting operations of one version")
	f.BoolVar(&s.processSuspended, "process-suspended", false, "a suspended version still verifies and opens")
	f.BoolVar(&s.processExposed, "process-exposed", false, "a compromised version still verifies and opens")
	f.BoolVar(&s.suspendExposed, "suspend-exposed", false, "suspend a version at once that was seen outside custody")
	f.Var(&s.keep, "grace", "a version that was replaced still verifies and opens for this long, and is retired then")
	f.BoolVar(&s.drained, "grace-drained", false, "and not before nothing of it was checked for a day")
	f.BoolVar(&s.record, "record-tokens", false, "keep a keyed digest of each token that is made: after an exposure no others pass")
	f.StringVar(&s.minLevel, "min-level", "", "refuse use below this custody level: exposed, isolated, hardware, attested")
}

// proto returns the settings with every flag that was given laid over old.
func (s *settingsFlags) proto(c *cobra.Command, old *pb.Settings) *pb.Settings {
	out := &pb.Settings{}
	if old != nil {
		out = old
	}
	given := c.Flags().Changed
	if given("originator-period") {
		out.OriginatorPeriod = s.originator.proto()
	}
	if given("recipient-period") {
		out.RecipientPeriod = s.recipient.proto()
	}
	if given("rotate-every") {
		out.RotateEvery = s.rotate.proto()
	}
	if given("destroy-grace") {
		out.DestroyGrace = s.grace.proto()
	}
	if given("max-invocations") {
		out.MaxInvocations = s.invocations
	}
	if given("process-suspended") {
		out.ProcessSuspended = s.processSuspended
	}
	if given("process-exposed") {
		out.ProcessExposed = s.processExposed
	}
	if given("suspend-exposed") {
		out.SuspendExposed = s.suspendExposed
	}
	if given("grace") {
		out.Grace = s.keep.proto()
	}
	if given("grace-drained") {
		out.GraceDrained = s.drained
	}
	if given("record-tokens") {
		out.RecordTokens = s.record
	}
	if given("min-level") {
		out.MinLevel = s.minLevel
	}
	return out
}

func (a *app) keyCreate() *cobra.Command {
	req := &pb.CreateKeyRequest{}
	var settings settingsFlags
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a key: environment/application/purpose", Args: cobra.ExactArgs(1),
		Example: "  claviger key create prod/billing/session-cookie --algorithm hmac-sha256 --owner team-billing --rotate-every 90d\n" +
			"  claviger key create prod/release/signing --algorithm ecdsa-p256-sha256 --custodian tpm --min-level hardware",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Name = args[0]
			req.Settings = settings.proto(c, nil)
			return a.keyResult(s.CreateKey(c.Context(), req))
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Algorithm, "algorithm", string(claviger.Ed25519), "see 'claviger key algorithms'")
	_ = c.RegisterFlagCompletionFunc("algorithm", completeAlgorithm)
	f.StringVar(&req.Recipe, "recipe", "", "with --algorithm machine-key: the recipe set that the key answers, such as django")
	f.StringVar(&req.Owner, "owner", "", "application and team answerable for the key")
	f.StringToStringVar(&req.Labels, "label", nil, "labels, such as tier=web")
	f.BoolVar(&req.PreActivation, "pre-activation", false, "leave the first version in pre-activation")
	f.BoolVar(&req.ForImport, "for-import", false, "make no version: the first one will be imported")
	f.StringVar(&req.Custodian, "custodian", string(claviger.Soft), "what holds the key: soft (the key process), tpm or p11 (a PKCS #11 token)")
	_ = c.RegisterFlagCompletionFunc("custodian", cobra.FixedCompletions([]string{"soft", "tpm", "p11"}, cobra.ShellCompDirectiveNoFileComp))
	f.StringVar(&req.Reference, "reference", "", "with --custodian p11: take the key that this PKCS #11 URI names into custody, instead of making one")
	settings.register(c)
	return c
}

func (a *app) keyList() *cobra.Command {
	req := &pb.ListKeysRequest{}
	c := &cobra.Command{
		Use: "list [SELECTOR]", Short: "List keys, such as 'prod/*/*'", Args: cobra.MaximumNArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			if len(args) == 1 {
				req.Selector = args[0]
			}
			resp, err := s.ListKeys(c.Context(), req)
			if err != nil {
				return err
			}
			if resp.NextPage != "" {
				a.say("more: --page %s", resp.NextPage)
			}
			return a.print(resp, func(w io.Writer) {
				row(w, "NAME", "ALGORITHM", "STATE", "VERSION", "CUSTODIAN", "LEVEL", "SHOWN", "OWNER", "USES", "LAST USE", "FINDING")
				for _, k := range resp.Keys {
					number, state := newest(k)
					row(w, k.Name, k.Algorithm, state, number, k.Custodian, dash(k.Level), when(k.Shown), dash(k.Owner), k.Use.GetCount(), when(k.Use.GetLast()), dash(k.Finding))
				}
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Search, "search", "", "part of a name, owner or label")
	f.StringToStringVar(&req.Labels, "label", nil, "only keys with these labels")
	f.StringVar(&req.State, "state", "", "only keys with a version in this state")
	f.Uint32Var(&req.PageSize, "page-size", 100, "at most 1000")
	f.StringVar(&req.Page, "page", "", "continue a listing")
	return c
}

// newest returns number and state of the active version, or of the newest.
func newest(k *pb.Key) (number uint32, state string) {
	state = "-"
	for _, v := range k.Versions {
		number, state = v.Number, v.State
		if v.State == string(claviger.Active) {
			break
		}
	}
	return number, state
}

// keyResult prints a key that a call returned.
func (a *app) keyResult(resp *pb.Key, err error) error {
	if err != nil {
		return err
	}
	return a.printKey(resp)
}

func (a *app) printKey(k *pb.Key) error {
	return a.print(k, func(w io.Writer) {
		row(w, "name", k.Name)
		row(w, "id", k.Id)
		if len(k.Aliases) > 0 {
			row(w, "aliases", strings.Join(k.Aliases, ", "))
		}
		row(w, "algorithm", k.Algorithm)
		row(w, "custodian", k.Custodian)
		row(w, "level", dash(k.Level)+", shown "+when(k.Shown))
		if k.Finding != "" {
			row(w, "finding", k.Finding)
		}
		row(w, "owner", dash(k.Owner))
		for name, value := range k.Labels {
			row(w, "label", name+"="+value)
		}
		if s := k.Settings; s != nil {
			row(w, "periods", fmt.Sprintf("originator %s, recipient %s, rotate every %s, destroy grace %s",
				span(s.OriginatorPeriod), span(s.RecipientPeriod), span(s.RotateEvery), span(s.DestroyGrace)))
			if s.Grace != nil || s.RecordTokens {
				row(w, "grace", graceText(s))
			}
			if s.MaxInvocations > 0 {
				row(w, "max invocations", s.MaxInvocations)
			}
		}
		row(w, "uses", fmt.Sprintf("%d, last %s", k.Use.GetCount(), when(k.Use.GetLast())))
		if there, gone := countCopies(k); there+gone > 0 {
			row(w, "copies", fmt.Sprintf("%d seen outside, and %d that are gone: 'claviger key copies'", there, gone))
		}
		row(w)
		row(w, "VERSION", "STATE", "SINCE", "ORIGIN", "LEVEL", "SHOWN", "USES", "KID OR FINGERPRINT")
		for _, v := range k.Versions {
			since := v.Created
			if n := len(v.History); n > 0 {
				since = v.History[n-1].At
			}
			id := v.Kid
			if id == "" {
				id = v.Fingerprint
			}
			row(w, v.Number, v.State, when(since), v.Origin, v.Level, when(v.Shown), v.Use.GetCount(), id)
		}
		for _, v := range k.Versions {
			if v.Reference != "" {
				row(w, fmt.Sprintf("device's name of %d", v.Number), v.Reference)
			}
			if v.Retired != nil {
				row(w, fmt.Sprintf("version %d retired", v.Number), when(v.Retired))
			} else if v.Retires != nil {
				row(w, fmt.Sprintf("version %d retires", v.Number), when(v.Retires))
			}
			if v.Finding != "" {
				row(w, fmt.Sprintf("finding of %d", v.Number), v.Finding)
			}
		}
	})
}

func (a *app) keyShow() *cobra.Command {
	return &cobra.Command{
		Use: "show KEY", Short: "Show a key and its versions", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			return a.keyResult(s.GetKey(c.Context(), args[0]))
		}),
	}
}

func (a *app) keyRotate() *cobra.Command {
	req := &pb.RotateKeyRequest{}
	var grace duration
	c := &cobra.Command{
		Use: "rotate KEY", Short: "Make a new active version; the old one only verifies and opens", Args: cobra.ExactArgs(1),
		Long: "Make a new active version. The old one only verifies and opens, for the grace that is given or for the key's own,\n" +
			"and is retired then. While somebody who used it within a day was not seen with the new one, that is put off by an\n" +
			"hour each time and recorded; see 'claviger state watch'.",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Key, req.Grace = args[0], grace.proto()
			return a.keyResult(s.RotateKey(c.Context(), req))
		}),
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	c.Flags().Var(&grace, "grace", "how long the old version still verifies and opens, such as 14d; at most the key's own grace")
	return c
}

func (a *app) keyState() *cobra.Command {
	req := &pb.ChangeStateRequest{}
	var wait bool
	c := &cobra.Command{
		Use: "state KEY STATE", Short: "Move a version: active, suspended, deactivated, compromised, destroyed", Args: cobra.ExactArgs(2),
		Long: "Move a version to another state of SP 800-57 part 1, section 7. What it allows:\n" +
			"  pre-activation  to active, compromised, destroyed\n" +
			"  active          to suspended, deactivated, compromised, destroyed\n" +
			"  suspended       to active, deactivated, compromised, destroyed\n" +
			"  deactivated     to compromised, destroyed\n" +
			"  compromised     to destroyed\n" +
			"Destroying erases the wrapped blob and leaves a tombstone. Copies in write-ahead logs and backups die at the\n" +
			"next root key rotation.",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			req.Key, req.State = args[0], args[1]
			resp, err := s.ChangeState(c.Context(), req)
			if err := a.keyResult(resp, err); err != nil {
				return err
			}
			return a.settle(c, s, wait)
		}),
	}
	waitFlag(c, &wait)
	c.Flags().Uint32Var(&req.Version, "version", 0, "the version; the active or only one when left out")
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	c.Flags().BoolVar(&req.Force, "force", false, "end a version although not everybody was seen with the active one")
	return c
}

func (a *app) keyUpdate() *cobra.Command {
	var settings settingsFlags
	var owner string
	var labels map[string]string
	c := &cobra.Command{
		Use: "update KEY", Short: "Change owner or labels, or tighten settings", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			old, err := s.GetKey(c.Context(), args[0])
			if err != nil {
				return err
			}
			req := &pb.UpdateKeyRequest{Key: old.Id, Revision: old.Revision, Settings: settings.proto(c, old.Settings)}
			if c.Flags().Changed("owner") {
				req.Owner = &owner
			}
			if c.Flags().Changed("label") {
				req.SetLabels, req.Labels = true, labels
			}
			return a.keyResult(s.UpdateKey(c.Context(), req))
		}),
	}
	c.Flags().StringVar(&owner, "owner", "", "application and team answerable for the key")
	c.Flags().StringToStringVar(&labels, "label", nil, "replaces all labels")
	settings.register(c)
	return c
}

func (a *app) keyRename() *cobra.Command {
	return &cobra.Command{
		Use: "rename KEY NAME", Short: "Give a key a new name; the old one stays an alias", Args: cobra.ExactArgs(2),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			return a.keyResult(s.RenameKey(c.Context(), &pb.RenameKeyRequest{Key: args[0], Name: args[1]}))
		}),
	}
}

func (a *app) keyAlgorithms() *cobra.Command {
	return &cobra.Command{
		Use: "algorithms", Short: "List the algorithms that a key can have", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			for _, alg := range append(claviger.Algorithms(), claviger.MachineKey) {
				fmt.Fprintf(a.stdout, "%-24s %s, %s\n", alg, alg.Protects(), alg.Processes())
			}
			return nil
		},
	}
}

func (a *app) keyPublic() *cobra.Command {
	var form string
	var number uint32
	c := &cobra.Command{
		Use: "public KEY", Short: "Print the public half: pem, jwk, ssh, der or raw", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			resp, err := s.GetKey(c.Context(), args[0])
			if err != nil {
				return err
			}
			text, err := publicForm(resp, number, form)
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(text)
			return err
		}),
	}
	c.Flags().StringVar(&form, "form", "pem", "pem, jwk, ssh, der or raw")
	c.Flags().Uint32Var(&number, "version", 0, "the version; the active or newest one when left out")
	return c
}

func publicForm(k *pb.Key, number uint32, form string) ([]byte, error) {
	if number == 0 {
		number, _ = newest(k)
	}
	for _, v := range k.Versions {
		if v.Number != number {
			continue
		}
		if len(v.Public) == 0 {
			return nil, usagef("%s is symmetric: it has no public half", k.Name)
		}
		key, err := pubkey.Parse(claviger.Algorithm(k.Algorithm), v.Public)
		if err != nil {
			return nil, err
		}
		return encodePublic(key, v, form)
	}
	return nil, usagef("%s has no version %d", k.Name, number)
}

// encodePublic writes a public key in the chosen form.
func encodePublic(key pubkey.Key, v *pb.Version, form string) ([]byte, error) {
	switch form {
	case "pem":
		return key.PEM(), nil
	case "der":
		return key.SPKI(), nil
	case "jwk":
		return append(key.JWK(), '\n'), nil
	case "ssh":
		line, err := key.SSH()
		return []byte(strings.TrimSpace(line) + "\n"), err
	case "raw":
		return v.Public, nil
	}
	return nil, usagef("--form is pem, jwk, ssh, der or raw, not %q", form)
}

// completeAlgorithm offers the algorithms to the shell.
func completeAlgorithm(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, alg := range append(claviger.Algorithms(), claviger.MachineKey) {
		names = append(names, string(alg))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
