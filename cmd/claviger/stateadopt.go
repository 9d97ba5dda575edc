package main

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/appsecret"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// adoptFlags are those of 'state adopt'.
type adoptFlags struct {
	in, encoding, owner, pin, reason string
	set                              string
	from                             place
	plan                             bool
}

func (a *app) stateAdopt() *cobra.Command {
	var flags adoptFlags
	c := &cobra.Command{
		Use: "adopt KEY [--from PATH | --set SET]", Short: "Move a framework's secret into custody, one way", Args: cobra.ExactArgs(1),
		Long: "Seal a framework's secret to the key process and make it the active version of a machine key, which is created\n" +
			"when it is not there. The key answers the formats of its recipe set and nothing else.\n\n" +
			"With --from the secret is read where it stands: web.config (UTF-8 or UTF-16), .env, settings.py and other Python,\n" +
			"application.properties and .yml, Rails credentials with their master.key, or the directory of a Data Protection\n" +
			"key ring. Nothing is run: a value that is put together elsewhere is refused. Older secrets that stand beside it\n" +
			"(fallbacks, previous keys, other entries of a ring) become versions that check and make nothing. The place is\n" +
			"remembered ('claviger key copies'), and the change to make in the application is shown, without the secret.\n" +
			"--plan shows it and does nothing. A secret that another key has is refused.\n\n" +
			"Without --from it is read from standard input, or a file that has nothing else, as:\n" +
			"  text     as it stands (Django, Flask, Rails, Express, Symfony, Phoenix, JWT); one newline at its end is left out\n" +
			"  base64   decoded; a prefix \"base64:\" is left out (Laravel)\n" +
			"  hex      decoded\n" +
			"  pair     decryptionKey:validationKey, each in hex (ASP.NET machineKey)\n" +
			"  entry    id:masterKey, the GUID and the base64 of a Data Protection key\n\n" +
			"The version is called exposed for as long as it lives, because it has been outside: rotate it when the last\n" +
			"token of it has ended.",
		RunE: func(c *cobra.Command, args []string) error {
			if flags.from.path != "" {
				return a.adoptFrom(c, args[0], &flags)
			}
			return a.with(func(c *cobra.Command, s *client.Client, args []string) error {
				return a.adoptText(c, s, args[0], &flags)
			})(c, args)
		},
	}
	f := c.Flags()
	f.StringVar(&flags.set, "set", "", "recipe set, such as django or rails; with --from only where the place does not tell")
	f.StringVar(&flags.in, "in", "-", "file that has the secret alone, - for standard input")
	f.StringVar(&flags.encoding, "encoding", "", "text, base64, hex, pair or entry; text when left out")
	f.StringVar(&flags.owner, "owner", "", "owner of a key that is created")
	f.StringVar(&flags.pin, "pin", "", "SHA-256 of the key process's identity, when it is not known here")
	f.StringVar(&flags.reason, "reason", "", "why, for the record")
	f.BoolVar(&flags.plan, "plan", false, "show what would be done, and do nothing")
	flags.from.register(f)
	c.MarkFlagsMutuallyExclusive("from", "in")
	c.MarkFlagsOneRequired("from", "set")
	return c
}

// adoptText adopts a secret that stands alone.
func (a *app) adoptText(c *cobra.Command, s *client.Client, name string, flags *adoptFlags) error {
	if flags.plan {
		return usagef("--plan shows what is to change in a place: give --from too")
	}
	expected, err := a.pin(flags.pin)
	if err != nil {
		return err
	}
	text, err := a.read(flags.in)
	if err != nil {
		return err
	}
	defer clear(text)
	material, err := decodeSecret(cmp.Or(flags.encoding, "text"), text)
	if err != nil {
		return err
	}
	defer clear(material)
	a.warnShort(material)
	if err := ensureKey(c, s, name, flags.set, flags.owner); err != nil {
		return err
	}
	k, err := s.Adopt(c.Context(), client.Adoption{Key: name, Set: flags.set, Material: material, Pin: expected, Reason: flags.reason})
	if err == nil {
		a.say("what to change in the application: %s", guideOf(recipe.Set(flags.set)))
	}
	return a.keyResult(k, err)
}

func (a *app) warnShort(material []byte) {
	if len(material) < 32 {
		a.say("warning: the secret has fewer than 32 bytes; whoever has a token may find it by trial")
	}
}

// ensureKey creates a machine key when it is not there.
func ensureKey(c *cobra.Command, s *client.Client, name, set, owner string) error {
	_, err := s.GetKey(c.Context(), name)
	if errors.Is(err, claviger.NotFound) {
		_, err = s.CreateKey(c.Context(), &pb.CreateKeyRequest{Name: name, Algorithm: string(claviger.MachineKey), Recipe: set, Owner: owner, ForImport: true})
	}
	return err
}

// adoption is what was done about a place, or is to be done.
type adoption struct {
	Kind     appsecret.Kind  `json:"kind"`
	Host     string          `json:"host,omitempty"`
	Path     string          `json:"path"`
	Encoding string          `json:"encoding"`
	Set      recipe.Set      `json:"set"`
	Secrets  []adopted       `json:"secrets"` // the oldest first; the last is the one in use
	Notes    []string        `json:"notes,omitempty"`
	Change   string          `json:"change"` // a unified diff without the secrets
	Next     []string        `json:"next"`
	Key      json.RawMessage `json:"key,omitempty"` // absent in a plan
}

// adopted is one secret of a place.
type adopted struct {
	Name    string `json:"name"`
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Older   bool   `json:"older,omitempty"`
	Version uint32 `json:"version,omitempty"` // that it became; 0 in a plan, and where the key had it already
	Already bool   `json:"already,omitempty"`
}

// String says which secret it is, and what became of it.
func (s adopted) String() string {
	what := "the secret in use"
	if s.Older {
		what = "an older one"
	}
	switch {
	case s.Already:
		what += ", which the key had already"
	case s.Version > 0:
		what += fmt.Sprintf(", now version %d", s.Version)
	}
	where := s.File
	if s.File == "" && s.Line > 0 {
		where = fmt.Sprintf("line %d", s.Line)
	}
	return strings.TrimSpace(s.Name+" "+where) + ": " + what
}

// adoptFrom adopts the secrets of a place.
func (a *app) adoptFrom(c *cobra.Command, name string, flags *adoptFlags) error {
	set, err := recipe.Set(""), error(nil)
	if flags.set != "" {
		if set, err = recipe.ParseSet(flags.set); err != nil {
			return err
		}
	}
	if !strings.Contains(" text base64 hex", " "+flags.encoding) {
		return usagef("--encoding of a place is text, base64 or hex, not %q", flags.encoding)
	}
	found, err := flags.from.read(set, flags.encoding)
	if err != nil {
		return err
	}
	defer found.Clear()
	host, _ := os.Hostname() // "" says that it is not known
	out := adoption{Kind: found.Kind, Host: host, Path: flags.from.path, Encoding: found.Encoding, Set: found.Set, Notes: found.Notes, Change: found.Change(flags.from.path, name)}
	for i, secret := range found.Secrets {
		out.Secrets = append(out.Secrets, adopted{Name: secret.Name, File: secret.File, Line: secret.Line, Older: i < len(found.Secrets)-1})
	}
	if flags.plan {
		out.Next = a.nextSteps(c, nil, name, found, flags.from.path)
		return a.printAdoption(&out, nil)
	}
	expected, err := a.pin(flags.pin)
	if err != nil {
		return err
	}
	s, err := a.dial(c.Context())
	if err != nil {
		return err
	}
	defer s.Close()
	a.warnShort(found.Secrets[len(found.Secrets)-1].Material)
	if err := ensureKey(c, s, name, string(found.Set), flags.owner); err != nil {
		return err
	}
	key, err := s.GetKey(c.Context(), name)
	if err != nil {
		return err
	}
	for i, secret := range found.Secrets {
		had := len(key.Versions)
		at := &out.Secrets[i]
		key, err = s.Adopt(c.Context(), client.Adoption{
			Key: name, Set: string(found.Set), Material: secret.Material, Older: at.Older, Pin: expected, Reason: flags.reason,
			Place: a.placeOf(host, flags.from.path, secret),
		})
		if err != nil {
			a.sayTaken(out.Secrets, i)
			return err
		}
		if at.Already = len(key.Versions) == had; !at.Already {
			at.Version = key.Versions[len(key.Versions)-1].Number
		}
	}
	if out.Secrets[len(out.Secrets)-1].Already {
		a.say("the key has this secret already: no version was made")
	}
	out.Next = a.nextSteps(c, s, name, found, flags.from.path)
	return a.printAdoption(&out, key)
}

// sayTaken says which secrets of a place were taken before the one that failed.
func (a *app) sayTaken(all []adopted, failed int) {
	for i, s := range all {
		switch {
		case i < failed:
			a.say("%s: taken", s)
		case i == failed:
			a.say("%s: not taken, for the reason below", s)
		default:
			a.say("%s: not taken, because it comes after that", s)
		}
	}
}

// placeOf is what is remembered of where a secret stood; nil where the server
// would not take it.
func (a *app) placeOf(host, path string, secret appsecret.Secret) *pb.Place {
	if secret.File != "" {
		path += "/" + secret.File
	}
	if bounded(path) != path || strings.ContainsFunc(path, unprintable) || bounded(host) != host {
		a.say("warning: the place is not remembered: its path is longer than %d bytes, or does not print", claviger.MaxTextLength)
		return nil
	}
	return &pb.Place{Host: host, Path: path, Line: uint32(secret.Line)}
}

// printAdoption writes what was done; key is nil for a plan.
func (a *app) printAdoption(out *adoption, key *pb.Key) error {
	if a.format != "table" {
		var err error
		if key != nil {
			if out.Key, err = (protojson.MarshalOptions{UseProtoNames: true}).Marshal(key); err != nil {
				return err
			}
		}
		text, err := json.Marshal(out)
		if err != nil {
			return err
		}
		return a.printJSON(text)
	}
	if key != nil {
		if err := a.printKey(key); err != nil {
			return err
		}
		fmt.Fprintln(a.stdout)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, for %s:\n", out.Kind, out.Encoding, out.Set)
	for _, s := range out.Secrets {
		fmt.Fprintf(&b, "  %s\n", s)
	}
	for _, note := range out.Notes {
		fmt.Fprintf(&b, "  note: %s\n", note)
	}
	if out.Change != "" {
		fmt.Fprintf(&b, "\n%s", out.Change)
	}
	b.WriteString("\nNext:\n")
	for i, step := range out.Next {
		fmt.Fprintf(&b, "  %d. %s\n", i+1, strings.ReplaceAll(step, "\n", "\n     "))
	}
	_, err := io.WriteString(a.stdout, b.String())
	return err
}

var errNoGUID = errors.New("no GUID")

// decodeSecret reads a secret as its framework's configuration has it.
func decodeSecret(encoding string, text []byte) ([]byte, error) {
	line := bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	var out []byte
	var err error
	switch encoding {
	case "text":
		return bytes.Clone(line), nil
	case "base64":
		out, err = base64.StdEncoding.AppendDecode(nil, bytes.TrimPrefix(line, []byte("base64:")))
	case "hex":
		out, err = hex.AppendDecode(nil, line)
	case "pair":
		first, second, _ := bytes.Cut(line, []byte(":"))
		var decryption, validation []byte
		if decryption, err = hex.AppendDecode(nil, first); err == nil {
			validation, err = hex.AppendDecode(nil, second)
		}
		out = recipe.Pair(decryption, validation)
	case "entry":
		id, master, _ := bytes.Cut(line, []byte(":"))
		guid, ok := state.ParseGUID(string(id))
		if out, err = base64.StdEncoding.AppendDecode(nil, master); !ok {
			err = errNoGUID
		}
		if err == nil {
			out = recipe.Entry([16]byte(guid), out)
		}
	default:
		return nil, usagef("--encoding is text, base64, hex, pair or entry, not %q", encoding)
	}
	if err != nil { // the text of the error would show a character of the secret
		return nil, usagef("the secret is not %s", encoding)
	}
	return out, nil
}
