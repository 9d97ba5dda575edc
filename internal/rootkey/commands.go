package rootkey

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"claviger.dev"
)

func (c *call) create(context.Context) error {
	if err := makeDir(c.dir.Path); err != nil {
		return err
	}
	unlock, err := c.dir.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	r, err := c.dir.New(nil, c.newSlot(), c.secrets())
	if err != nil {
		return err
	}
	defer r.Bundle.Zero()
	if err := r.Save(); err != nil {
		return err
	}
	c.insecure(r.doc.Slots[0])
	c.say("made the root key in %s, slot 1 (%s)", c.dir.Path, r.doc.Slots[0].Kind)
	c.say("identity of the key process, for clients and joining servers to pin:")
	fmt.Fprintln(c.Stdout, pinText(r.Bundle))
	return nil
}

func pinText(b *Bundle) string {
	pin := b.Pin()
	return hex.EncodeToString(pin[:])
}

// row is what list shows of a slot.
type row struct {
	ID       int       `json:"id"`
	Kind     SlotKind  `json:"kind"`
	Created  time.Time `json:"created"`
	Source   string    `json:"source,omitempty"`
	PCRs     []uint    `json:"pcrs,omitempty"`
	Insecure bool      `json:"insecure"`
	Software bool      `json:"software"`
}

func (c *call) list(context.Context) error {
	sealed, err := c.dir.Load()
	if err != nil {
		return err
	}
	var rows []row
	for _, s := range sealed.Slots() {
		rows = append(rows, row{ID: s.ID, Kind: s.Kind, Created: s.Created, Source: s.Source, PCRs: s.PCRs, Insecure: s.Kind == File, Software: s.Software})
	}
	switch c.format {
	case "json":
		enc := json.NewEncoder(c.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(rows)
	case "table":
	default:
		return claviger.Errorf(claviger.Invalid, "there is no such format", "use --format table or json")
	}
	w := tabwriter.NewWriter(c.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "SLOT\tKIND\tMADE\tSOURCE")
	for _, r := range rows {
		kind := string(r.Kind)
		if r.Insecure {
			kind += " (INSECURE)"
		}
		if r.Software {
			kind += " (SOFTWARE)"
		}
		if len(r.PCRs) > 0 {
			r.Source += fmt.Sprintf(", registers %v", r.PCRs)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", r.ID, kind, r.Created.Format(time.RFC3339), strings.ToValidUTF8(r.Source, "?"))
	}
	return w.Flush()
}

func (c *call) add(context.Context) error {
	return c.change(func(r *Root) error {
		id, err := r.Add(c.newSlot(), c.secrets())
		if err == nil {
			slot := r.doc.Slots[len(r.doc.Slots)-1]
			c.insecure(slot)
			c.say("adding slot %d (%s)", id, slot.Kind)
		}
		return err
	})
}

// number reads the one argument of a command.
func (c *call) number(what string) (uint32, error) {
	if len(c.args) == 1 {
		if n, err := strconv.ParseUint(c.args[0], 10, 31); err == nil && n > 0 {
			return uint32(n), nil
		}
	}
	return 0, claviger.Errorf(claviger.Invalid, "the command takes the number of a "+what, "see: claviger-unseal help")
}

func (c *call) remove(context.Context) error {
	id, err := c.number("slot")
	if err != nil {
		return err
	}
	var removed Slot
	err = c.change(func(r *Root) error {
		if i := slices.IndexFunc(r.doc.Slots, func(s Slot) bool { return s.ID == int(id) }); i >= 0 {
			removed = r.doc.Slots[i]
		}
		return r.Remove(int(id))
	})
	if err != nil {
		return err
	}
	if removed.Kind.held() {
		if err := removed.forget(c.secrets()); err != nil {
			c.say("the slot is removed, but the device keeps what opens it: %v", err)
		}
	}
	c.say("older copies of the slots file still open with slot %d: rotate, rewrap on the server, then retire", id)
	return nil
}

func (c *call) rotate(context.Context) error {
	return c.change(func(r *Root) error {
		n, err := r.Rotate()
		if err == nil {
			c.say("generation %d wraps as soon as the key process is replaced (SIGHUP to the supervisor)", n)
		}
		return err
	})
}

func (c *call) retire(context.Context) error {
	below, err := c.number("generation")
	if err != nil {
		return err
	}
	return c.change(func(r *Root) error {
		n, err := r.Retire(below)
		if err == nil {
			c.say("dropping %d generations; whatever is still wrapped under them is lost for good, backups too", n)
		}
		return err
	})
}

func (c *call) admit(context.Context) error {
	keys := make([][32]byte, len(c.args))
	for i, s := range c.args {
		pin, err := parsePin(s)
		if err != nil {
			return err
		}
		keys[i] = pin
	}
	return c.change(func(r *Root) error {
		c.say("admitting %d join keys, and no others, as soon as the key process is replaced (SIGHUP to the supervisor)", len(keys))
		return r.Admit(keys...)
	})
}

func parsePin(s string) (pin [32]byte, err error) {
	if raw, err := hex.DecodeString(s); err == nil && copy(pin[:], raw) == len(raw) && len(raw) == len(pin) {
		return pin, nil
	}
	return pin, claviger.Errorf(claviger.Invalid, "a SHA-256 is 64 hexadecimal digits", "copy it whole")
}

func (c *call) holders(context.Context) error {
	if len(c.args) == 0 && !c.none {
		r, err := c.unseal()
		if err != nil {
			return err
		}
		defer r.Bundle.Zero()
		fmt.Fprintf(c.Stdout, "threshold %d of %d\n", r.Bundle.Threshold, len(r.Bundle.Holders))
		for _, h := range r.Bundle.Holders {
			fmt.Fprintf(c.Stdout, "%s=%s\n", h.Name, h.Recipient)
		}
		return nil
	}
	if c.none && (len(c.args) > 0 || c.threshold != 0) {
		return claviger.Errorf(claviger.Invalid, "--none goes with no holder and no threshold", "name holders, or give --none alone")
	}
	list := make([]Holder, len(c.args))
	for i, s := range c.args {
		name, recipient, ok := strings.Cut(s, "=")
		if !ok {
			return claviger.Errorf(claviger.Invalid, "a holder is NAME=RECIPIENT", "such as ann=age1...")
		}
		list[i] = Holder{Name: name, Recipient: recipient}
	}
	return c.change(func(r *Root) error { return r.SetHolders(c.threshold, list...) })
}

const openWait = 30 * time.Second // for the key process to take the bundle

func (c *call) open(ctx context.Context) error {
	r, err := c.unseal()
	if err != nil {
		return err
	}
	defer r.Bundle.Zero()
	root, done, err := c.socket(ctx, openWait)
	if err != nil {
		return err
	}
	defer done()
	kind := Deliver
	if slices.ContainsFunc(r.doc.Slots, func(s Slot) bool { return s.Kind == File }) {
		kind = Exposed
	}
	if err := Send(root, Message{Kind: kind, Bundle: r.Bundle, Slots: r.doc.describe()}); err != nil {
		return unheard(err)
	}
	if m, err := Receive(root); err != nil || m.Kind != Done {
		m.Bundle.Zero()
		return unheard(err)
	}
	return nil
}

func unheard(err error) error {
	return claviger.Errorf(claviger.Unavailable, "the key process did not take the root key", "its own log says why").Wrap(err)
}

func (c *call) join(ctx context.Context) error {
	if c.identity == "" {
		return claviger.Errorf(claviger.Invalid, "join needs the identity of the key process that is joined",
			"add --identity with what claviger-unseal init or claviger doctor shows on the other server")
	}
	return c.arrive(ctx, Join)
}

func (c *call) restore(ctx context.Context) error { return c.arrive(ctx, Restore) }

// arrive has the key process get the bundle from elsewhere and writes it. A
// slots file that is there already takes a joined bundle of the same identity
// (such as after a rotation on the other server) and keeps its slots.
func (c *call) arrive(ctx context.Context, kind Kind) error {
	var pin [32]byte
	if c.identity != "" {
		var err error
		if pin, err = parsePin(c.identity); err != nil {
			return err
		}
	}
	if err := makeDir(c.dir.Path); err != nil {
		return err
	}
	sealed, err := c.dir.Load()
	switch {
	case err != nil && !errors.Is(err, claviger.NotFound):
		return err
	case err == nil && kind == Restore:
		return c.dir.vacant()
	}
	root, done, err := c.socket(ctx, c.wait)
	if err != nil {
		return err
	}
	defer done()
	if err := Send(root, Message{Kind: kind, Pin: pin}); err != nil {
		return unheard(err)
	}
	var fresh *Root
	if sealed == nil {
		// The person is asked while the key process answers the server already;
		// the placeholder bundle never reaches the disk.
		if fresh, err = c.dir.New(nil, c.newSlot(), c.secrets()); err != nil {
			return err
		}
		c.insecure(fresh.doc.Slots[0])
	}
	if err := c.show(root, kind); err != nil {
		return err
	}
	c.say("waiting for the root key, at most %v", c.wait)
	m, err := Receive(root)
	if err != nil || m.Kind != Deliver {
		return claviger.Errorf(claviger.Unavailable, "no root key arrived", "start again when the other side is ready").Wrap(err)
	}
	defer m.Bundle.Zero()
	if c.identity != "" && m.Bundle.Pin() != pin {
		return claviger.Errorf(claviger.Denied, "the root key that arrived has another identity than was named", "nothing was written; check the identity, and who carries the messages")
	}
	if err := c.keep(m.Bundle, sealed, fresh); err != nil {
		return err
	}
	c.say("the root key is in %s", c.dir.Path)
	// It has arrived, whether or not the key process is still there to hear it:
	// the next one opens it from here.
	_ = Send(root, Message{Kind: Done})
	return nil
}

// show tells what another host or the holders must compare, as the key process
// says it and not the server, which could name a key of its own.
func (c *call) show(root Socket, kind Kind) error {
	m, err := Receive(root)
	if err != nil || m.Kind != kind {
		m.Bundle.Zero()
		return unheard(err)
	}
	if kind == Join {
		c.say("join key of this key process, to be admitted on the other host with 'claviger root admit': %x", m.Pin)
	} else {
		c.say("pin of this key process, for the holders' 'claviger recovery seal --pin': %x", m.Pin)
	}
	return nil
}

// keep writes a bundle that arrived. Whom the other side admitted is its own
// affair: admissions do not travel.
func (c *call) keep(b *Bundle, sealed *Sealed, r *Root) error {
	unlock, err := c.dir.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	b.Joiners = nil
	if sealed != nil {
		if r, err = sealed.Adopt(b); err != nil {
			return err
		}
	} else if err := c.dir.vacant(); err != nil {
		return err
	}
	if r.Bundle != b {
		r.Bundle.Zero()
	}
	r.Bundle = b
	return r.Save()
}

// socket returns the root socket with a deadline, cut short when ctx ends.
func (c *call) socket(ctx context.Context, wait time.Duration) (Socket, func(), error) {
	root := c.Root
	if root == nil {
		var err error
		if root, err = inherited(); err != nil {
			return nil, nil, err
		}
	}
	if wait <= 0 || root.SetDeadline(time.Now().Add(wait)) != nil {
		return nil, nil, claviger.Errorf(claviger.Invalid, "the root socket cannot be waited for", "give a positive --wait; the supervisor passes a socket on descriptor 3")
	}
	stop := context.AfterFunc(ctx, func() { _ = root.SetDeadline(time.Unix(1, 0)) })
	return root, func() { stop(); _ = root.Close() }, nil
}
