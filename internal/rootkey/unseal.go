package rootkey

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"claviger.dev"
)

// Unseal is the program claviger-unseal: it makes and changes the slots file,
// and hands the bundle to the key process on an inherited socket.
type Unseal struct {
	Stdin          *os.File // a terminal, or a pipe whose lines are passphrases
	Stdout, Stderr io.Writer
	Root           Socket // to the key process; nil opens descriptor 3
	CredentialsDir string // of systemd ($CREDENTIALS_DIRECTORY); empty when there is none
	// Vault opens the device of a kind, which a flag names: --tpm, or --token-fd
	// with a descriptor of the process that serves the token. Nil: no devices.
	Vault func(kind SlotKind, tpm string, tokenFD int) (Vault, error)
	Now   func() time.Time
}

// Socket is the end of the root socket.
type Socket interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

const usage = `usage: claviger-unseal COMMAND --dir DIRECTORY [flags]

  init      make the root key            --kind tpm|pkcs11|credential|passphrase|file [--credential NAME] [--pcr N,N]
  open      hand it to the key process on descriptor 3
  list      show the slots               [--format table|json]
  add       add a slot                   --kind ... [--credential NAME] [--pcr N,N]
  remove    remove a slot                SLOT
  rotate    add a generation, which wraps from now on
  retire    drop the generations below   GENERATION
  admit     let these join, and no others [SHA256 ...]
  holders   who gets recovery shares     [--threshold N NAME=age1... ...] or [--none]
  join      take the root key of another key process      --identity SHA256 --kind ...
  restore   take the root key from recovery shares        [--identity SHA256] --kind ...

Every command that opens the root key takes --slot N and --credential-fd N, and
--tpm DEVICE and --token-fd N where a slot needs a device ('claviger root' adds them).
Passphrases are read from the terminal, or from the lines of standard input.
After a change, send the supervisor SIGHUP (systemctl reload claviger).
`

// call is one run of a subcommand with its flags.
type call struct {
	*Unseal
	dir          *Dir
	slot         int
	kind         string
	credential   string
	credentialFD int
	pcrs         []uint
	tpm          string
	tokenFD      int
	format       string
	identity     string
	wait         time.Duration
	threshold    int
	none         bool
	args         []string
}

// Run runs one subcommand and returns the exit status. Data goes to Stdout;
// an error is one line and a hint on Stderr.
func (u *Unseal) Run(ctx context.Context, args []string) int {
	err := u.run(ctx, args)
	if err == nil {
		return 0
	}
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(u.Stderr, usage)
		return 0
	}
	msg, hint := err.Error(), ""
	if e, ok := errors.AsType[*claviger.Error](err); ok {
		msg, hint = e.Msg, e.Hint
	}
	fmt.Fprintf(u.Stderr, "error: %s\n", msg)
	if hint != "" {
		fmt.Fprintf(u.Stderr, "hint: %s\n", hint)
	}
	if _, ok := errors.AsType[*claviger.Error](err); !ok {
		return 1 // of this machine: a file, a descriptor
	}
	return claviger.Mappings[claviger.CodeOf(err)].Exit
}

func (u *Unseal) run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return claviger.Errorf(claviger.Invalid, "no command is given", "see: claviger-unseal help")
	}
	commands := map[string]func(*call, context.Context) error{
		"init": (*call).create, "open": (*call).open, "list": (*call).list, "add": (*call).add,
		"remove": (*call).remove, "rotate": (*call).rotate, "retire": (*call).retire, "admit": (*call).admit,
		"holders": (*call).holders, "join": (*call).join, "restore": (*call).restore,
	}
	command, ok := commands[args[0]]
	if !ok {
		if args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
			return flag.ErrHelp
		}
		return claviger.Errorf(claviger.Invalid, "there is no command of that name", "see: claviger-unseal help")
	}
	c := &call{Unseal: u, dir: &Dir{Now: u.Now}}
	set := flag.NewFlagSet(args[0], flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&c.dir.Path, "dir", "", "directory of the slots file")
	set.IntVar(&c.slot, "slot", 0, "open with this slot")
	set.StringVar(&c.kind, "kind", "", "kind of the new slot")
	set.StringVar(&c.credential, "credential", "", "name or absolute path of the new slot's credential")
	set.IntVar(&c.credentialFD, "credential-fd", -1, "descriptor from which the credential is read")
	set.Func("pcr", "platform registers that the new slot of kind tpm depends on, with commas between", c.setPCRs)
	set.StringVar(&c.tpm, "tpm", "", "TPM of slots of that kind: /dev/tpmrm0, or unix:/path")
	set.IntVar(&c.tokenFD, "token-fd", -1, "descriptor of the process that serves the token")
	set.StringVar(&c.format, "format", "table", "table or json")
	set.StringVar(&c.identity, "identity", "", "pin of the key process whose root key is taken")
	set.DurationVar(&c.wait, "wait", time.Hour, "how long join and restore wait")
	set.IntVar(&c.threshold, "threshold", 0, "shares that restore")
	set.BoolVar(&c.none, "none", false, "no holders")
	if err := set.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return claviger.Errorf(claviger.Invalid, "the flags are wrong: "+err.Error(), "see: claviger-unseal help; flags come before arguments")
	}
	c.args = set.Args()
	if c.dir.Path == "" {
		return claviger.Errorf(claviger.Invalid, "no directory is given", "add --dir, such as --dir /var/lib/claviger/unseal")
	}
	if takes := args[0] == "remove" || args[0] == "retire" || args[0] == "admit" || args[0] == "holders"; !takes && len(c.args) > 0 {
		return claviger.Errorf(claviger.Invalid, "the command takes no arguments", "see: claviger-unseal help")
	}
	return command(c, ctx)
}

// say writes talk for the person.
func (c *call) say(format string, args ...any) { fmt.Fprintf(c.Stderr, format+"\n", args...) }

// insecure names a slot for what it is.
func (c *call) insecure(s Slot) {
	if s.Software {
		c.say("SOFTWARE: the device of slot %d is a program; whoever reads its files has the root key", s.ID)
	}
	if s.Kind == File {
		c.say("INSECURE: the slot is a file beside what it wraps; whoever reads the directory has the root key")
	}
}

// change opens the root key under the writers' lock, does the change and
// saves it.
func (c *call) change(do func(*Root) error) error {
	if err := c.dir.check(); err != nil {
		return err
	}
	unlock, err := c.dir.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	r, err := c.unseal()
	if err != nil {
		return err
	}
	defer r.Bundle.Zero()
	if err := do(r); err != nil {
		return err
	}
	return r.Save()
}

func (c *call) unseal() (*Root, error) {
	sealed, err := c.dir.Load()
	if err != nil {
		return nil, err
	}
	r, err := sealed.Open(c.slot, c.secrets())
	if err != nil {
		return nil, err
	}
	for _, s := range r.doc.Slots {
		c.insecure(s)
	}
	for _, why := range r.Failed {
		c.say("not opened: %s", why)
	}
	return r, nil
}

func (c *call) newSlot() NewSlot {
	return NewSlot{Kind: SlotKind(strings.ToLower(c.kind)), Source: c.credential, PCRs: c.pcrs}
}

func (c *call) setPCRs(text string) error {
	for field := range strings.SplitSeq(text, ",") {
		n, err := strconv.ParseUint(field, 10, 8)
		if err != nil {
			return errors.New("not a number of a platform register")
		}
		c.pcrs = append(c.pcrs, uint(n))
	}
	return nil
}
