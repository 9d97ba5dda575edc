package rootkey

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"claviger.dev"
	"filippo.io/age"
)

func makeDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make the slots directory: %w", err)
	}
	return nil
}

// Add makes a slot and returns its number.
func (r *Root) Add(slot NewSlot, from Secrets) (int, error) {
	id := 1
	if n := len(r.doc.Slots); n >= maxSlots {
		return 0, claviger.Errorf(claviger.Exhausted, fmt.Sprintf("there are %d slots already", maxSlots), "remove one first")
	} else if n > 0 {
		id = r.doc.Slots[n-1].ID + 1
	}
	made, err := slot.make(r.dir, id, from)
	if err != nil {
		return 0, err
	}
	r.doc.Slots = append(r.doc.Slots, made)
	r.drop = slices.DeleteFunc(r.drop, func(name string) bool { return name == made.Source })
	return id, nil
}

// Remove takes a slot away, but never the last. Older copies of the slots
// file still open with it: rotate, and then retire the generations they hold.
func (r *Root) Remove(id int) error {
	i := slices.IndexFunc(r.doc.Slots, func(s Slot) bool { return s.ID == id })
	if i < 0 {
		return claviger.Errorf(claviger.NotFound, "there is no such slot", "see them with: claviger-unseal list")
	}
	if len(r.doc.Slots) == 1 {
		return claviger.Errorf(claviger.Invalid, "this is the last slot; without it nobody can open the root key", "add another first")
	}
	if r.doc.Slots[i].Kind == File {
		r.drop = append(r.drop, r.doc.Slots[i].Source)
	}
	r.doc.Slots = slices.Delete(r.doc.Slots, i, i+1)
	return nil
}

// Rotate adds a generation, which wraps from now on, and returns its number.
func (r *Root) Rotate() (uint32, error) {
	newest := r.Bundle.Newest().Number
	if len(r.Bundle.Generations) >= MaxGenerations || newest == math.MaxUint32 {
		return 0, claviger.Errorf(claviger.Exhausted, fmt.Sprintf("there are %d generations", len(r.Bundle.Generations)), "rewrap on the server, then retire old generations")
	}
	old := r.Bundle.Generations
	r.Bundle.Generations = make([]Generation, len(old)+1)
	copy(r.Bundle.Generations, old)
	clear(old)
	g := r.Bundle.Newest()
	g.Number = newest + 1
	_, _ = rand.Read(g.Key[:])
	return g.Number, nil
}

// Retire drops the generations below a number and returns how many. Blobs
// still wrapped under them are lost for good: the caller has asked the server
// whether there are any.
func (r *Root) Retire(below uint32) (int, error) {
	if below > r.Bundle.Newest().Number {
		return 0, claviger.Errorf(claviger.Invalid, "the newest generation cannot be retired", "rotate first")
	}
	n := 0
	for r.Bundle.Generations[n].Number < below {
		n++
	}
	old := r.Bundle.Generations
	r.Bundle.Generations = slices.Clone(old[n:])
	clear(old)
	return n, nil
}

// Admit sets the join keys (SHA-256) to which a key process may wrap the
// bundle; none admits nobody. Those admitted before and not named are not
// admitted any more.
func (r *Root) Admit(keys ...[32]byte) error {
	list := slices.Clone(keys)
	slices.SortFunc(list, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	list = slices.Compact(list)
	if len(list) > MaxJoiners {
		return claviger.Errorf(claviger.TooLarge, fmt.Sprintf("at most %d join keys are admitted at once", MaxJoiners), "admit those that join now")
	}
	r.Bundle.Joiners = list
	return nil
}

// SetHolders names who gets recovery shares and how many of them restore.
func (r *Root) SetHolders(threshold int, holders ...Holder) error {
	list := slices.Clone(holders)
	slices.SortFunc(list, func(a, b Holder) int { return strings.Compare(a.Name, b.Name) })
	for i, h := range list {
		if !validHolder(h) || !validRecipient(h.Recipient) {
			return claviger.Errorf(claviger.Invalid, "a holder's name or age recipient has a form that is not allowed", "give NAME=age1...; only native age recipients, no ssh keys")
		}
		if i > 0 && list[i-1].Name == h.Name {
			return claviger.Errorf(claviger.Conflict, "two holders have the same name", "give each another")
		}
		if slices.ContainsFunc(list[:i], func(o Holder) bool { return o.Recipient == h.Recipient }) {
			return claviger.Errorf(claviger.Conflict, "two holders have the same age recipient, and would count as two", "give each another")
		}
	}
	if len(list) > MaxHolders {
		return claviger.Errorf(claviger.TooLarge, fmt.Sprintf("at most %d holders are kept", MaxHolders), "name fewer")
	}
	if len(list) == 0 && threshold != 0 || len(list) > 0 && (threshold < leastThreshold || threshold > len(list)) {
		return claviger.Errorf(claviger.Invalid, "the threshold is 2 to the number of holders, and 0 without holders", "give --threshold")
	}
	r.Bundle.Holders, r.Bundle.Threshold = list, threshold
	return nil
}

func validRecipient(s string) bool {
	if _, err := age.ParseX25519Recipient(s); err == nil {
		return true
	}
	_, err := age.ParseHybridRecipient(s)
	return err == nil
}
