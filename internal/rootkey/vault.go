package rootkey

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"claviger.dev"
)

// Vault is a device that keeps the secret of a slot. Its errors have codes: of
// a TPM, claviger.Unavailable says that it is not there, and anything else that
// it will not give the secret however often it is asked.
type Vault interface {
	// Info says what the device is. It is asked after Seal.
	Info() (claviger.Device, error)
	// Seal encrypts a secret so that this device alone gives it back, and only
	// while the SHA-256 platform registers listed are as they are now. None is
	// no condition.
	Seal(secret []byte, pcrs []uint) ([]byte, error)
	// Unseal returns what Seal encrypted.
	Unseal(sealed []byte) ([]byte, error)
	// Forget makes the device lose what opens it, where it keeps something for
	// each: copies of the slots file then open with the slot no more.
	Forget(sealed []byte) error
	// Close lets go of the device.
	Close() error
}

const (
	maxSealed = 8 << 10 // bytes of what a device makes of a slot's secret
	mostPCR   = 23
)

// held reports whether a device keeps the secrets of the kind.
func (k SlotKind) held() bool { return k == TPM || k == PKCS11 }

// checkHeld checks the form of a slot whose secret a device keeps.
func (s *Slot) checkHeld() bool {
	return s.Argon == nil && s.Source != "" && len(s.Sealed) > 0 && len(s.Sealed) <= maxSealed && validPCRs(s.Kind, s.PCRs)
}

// validPCRs accepts an ascending list, and for a token an empty one.
func validPCRs(kind SlotKind, pcrs []uint) bool {
	for i, n := range pcrs {
		if kind != TPM || n > mostPCR || i > 0 && pcrs[i-1] >= n {
			return false
		}
	}
	return true
}

// enclose draws a secret and has the device seal it, and checks that it gives
// it back.
func (s *Slot) enclose(from Secrets, pcrs []uint) (secret []byte, err error) {
	s.PCRs = slices.Clone(pcrs)
	slices.Sort(s.PCRs)
	if !validPCRs(s.Kind, s.PCRs) {
		return nil, claviger.Errorf(claviger.Invalid, "the platform registers of the slot are not a TPM's", "name numbers from 0 to 23, each once, and only with --kind tpm")
	}
	v, err := from.vault(s.Kind)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	secret = make([]byte, KeySize)
	_, _ = rand.Read(secret)
	defer func() {
		if err != nil {
			clear(secret)
			secret = nil
		}
	}()
	if s.Sealed, err = v.Seal(secret, s.PCRs); err != nil {
		return nil, err
	}
	device, err := v.Info()
	if err != nil {
		return nil, err
	}
	s.Source, s.Software = deviceName(device), device.Software
	again, err := v.Unseal(s.Sealed)
	defer clear(again)
	if err == nil && !bytes.Equal(again, secret) {
		err = claviger.Errorf(claviger.Internal, "the device does not give back what it was given", "do not use it; take another kind of slot")
	}
	return secret, err
}

// disclose has the device give the slot's secret.
func (s *Slot) disclose(from Secrets) (secret []byte, err error) {
	v, err := from.vault(s.Kind)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	return v.Unseal(s.Sealed)
}

// forget has the device lose what opens a slot that was removed.
func (s *Slot) forget(from Secrets) (err error) {
	v, err := from.vault(s.Kind)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	return v.Forget(s.Sealed)
}

func (from Secrets) vault(kind SlotKind) (Vault, error) {
	if from.Vault == nil {
		return nil, claviger.Errorf(claviger.Unsupported, "there is no device for a slot of kind "+string(kind), "see docs/hardware.md")
	}
	return from.Vault(kind)
}

// deviceName is what is shown of a device: one short line.
func deviceName(d claviger.Device) string {
	var words []string
	for _, word := range []string{d.Manufacturer, d.Model, d.Serial} {
		if word = strings.Join(strings.Fields(plainText(word)), " "); word != "" {
			words = append(words, word)
		}
	}
	name := strings.Join(words, " ")
	if name == "" {
		name = "unnamed"
	}
	return name[:min(len(name), maxSource)]
}

// plainText keeps printable ASCII.
func plainText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, s)
}

// unpinned begins what a TPM sealed before it was noted under which storage root
// key. It opens; who stands before the TPM with a key of his own learns the secret.
const unpinned = "claviger tpm sealed 1\x00"

// describe says in one line which slots there are, for those who cannot read
// the file.
func (doc *document) describe() string {
	var all []string
	for _, s := range doc.Slots {
		text := fmt.Sprintf("%d %s", s.ID, s.Kind)
		if s.Kind.held() {
			text += " (" + s.Source
			if s.Software {
				text += ", SOFTWARE"
			}
			if bytes.HasPrefix(s.Sealed, []byte(unpinned)) {
				text += ", TPM NOT PINNED: add the slot anew"
			}
			text += ")"
		}
		all = append(all, text)
	}
	text := plainText(strings.Join(all, ", "))
	return text[:min(len(text), maxDescription)]
}
