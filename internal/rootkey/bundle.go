// Package rootkey owns the root key: its bundle, the slots that wrap it on
// disk, the commands that change them, and the short talk in which it passes
// from claviger-unseal to the key process over an inherited socket.
//
// It promises that who may receive the root key is decided by the uid of
// claviger-unseal alone: slots, admitted joiners and recovery holders stand
// inside what that uid writes, sealed and authenticated. It must never put the
// root key, a passphrase or a slot's secret into an error, a log, a flag or an
// environment variable, and it never speaks to the server.
package rootkey

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of a bundle.
const (
	KeySize         = 32   // bytes of a root key and of the identity seed
	MaxGenerations  = 64   // generations of the root key kept at once
	MaxJoiners      = 16   // join keys admitted at once
	MaxHolders      = 32   // holders of recovery shares
	MaxHolderName   = 64   // bytes of a holder's name
	MaxRecipient    = 2560 // bytes of an age recipient; a hybrid one has about 2000
	maxBundle       = 1 + KeySize + 1 + MaxGenerations*(4+KeySize) + 1 + MaxJoiners*32 + 1 + MaxHolders*(3+MaxHolderName+MaxRecipient) + 1
	bundleVersion   = 1
	leastThreshold  = 2
	recipientPrefix = "age1"
)

// Generation is one root key. New blobs are wrapped under the newest; older
// generations only unwrap, until they are retired.
type Generation struct {
	Number uint32 // from 1
	Key    [KeySize]byte
}

// Holder is a person who keeps one recovery share.
type Holder struct {
	Name      string // 1 to 64 bytes of printable UTF-8
	Recipient string // age recipient, "age1..."
}

// Bundle is all that a key process must know before it serves. It is secret
// as a whole; Zero it after use. Its lists are strictly ascending, so that a
// bundle has one encoding.
type Bundle struct {
	Identity    [KeySize]byte // seed of the key process's Ed25519 identity (RFC 8032)
	Generations []Generation  // by number, at least one
	Joiners     [][32]byte    // SHA-256 of the join keys to which the bundle may be wrapped
	Holders     []Holder      // by name; who gets recovery shares
	Threshold   int           // shares that restore, 2 to len(Holders); 0 without holders
}

var errBundle = errors.New("the root key bundle has a form that is not allowed")

// Newest returns the generation that wraps new blobs.
func (b *Bundle) Newest() *Generation { return &b.Generations[len(b.Generations)-1] }

// Pin returns the fingerprint by which clients and joiners know the key
// process: SHA-256 of its public identity key.
func (b *Bundle) Pin() [32]byte {
	private := ed25519.NewKeyFromSeed(b.Identity[:])
	defer clear(private)
	return sha256.Sum256(private[KeySize:])
}

// Clone returns a copy that shares no memory with b.
func (b *Bundle) Clone() *Bundle {
	c := *b
	c.Generations = append([]Generation(nil), b.Generations...)
	c.Joiners = append([][32]byte(nil), b.Joiners...)
	c.Holders = append([]Holder(nil), b.Holders...)
	return &c
}

// Zero overwrites the secrets of the bundle.
func (b *Bundle) Zero() {
	if b == nil {
		return
	}
	clear(b.Identity[:])
	clear(b.Generations)
}

// Format implements fmt.Formatter: no verb prints a secret.
func (b Bundle) Format(s fmt.State, _ rune) { _, _ = fmt.Fprint(s, "rootkey.Bundle(secret)") }

// MarshalText implements encoding.TextMarshaler and always refuses: a bundle
// leaves the process by Send alone.
func (b Bundle) MarshalText() ([]byte, error) { return nil, errBundle }

// Format implements fmt.Formatter: no verb prints the key.
func (g Generation) Format(s fmt.State, _ rune) {
	_, _ = fmt.Fprintf(s, "rootkey.Generation(%d, secret)", g.Number)
}

// MarshalText implements encoding.TextMarshaler and always refuses.
func (g Generation) MarshalText() ([]byte, error) { return nil, errBundle }

// check says whether the bundle may be encoded.
func (b *Bundle) check() error {
	if len(b.Generations) < 1 || len(b.Generations) > MaxGenerations || len(b.Joiners) > MaxJoiners || len(b.Holders) > MaxHolders {
		return errBundle
	}
	last := uint32(0)
	for i := range b.Generations {
		if b.Generations[i].Number <= last {
			return errBundle
		}
		last = b.Generations[i].Number
	}
	for i := 1; i < len(b.Joiners); i++ {
		if bytes.Compare(b.Joiners[i-1][:], b.Joiners[i][:]) >= 0 {
			return errBundle
		}
	}
	for i, h := range b.Holders {
		if !validHolder(h) || i > 0 && b.Holders[i-1].Name >= h.Name {
			return errBundle
		}
	}
	if len(b.Holders) == 0 && b.Threshold != 0 ||
		len(b.Holders) > 0 && (b.Threshold < leastThreshold || b.Threshold > len(b.Holders)) {
		return errBundle
	}
	return nil
}

func validHolder(h Holder) bool {
	if len(h.Name) < 1 || len(h.Name) > MaxHolderName || !utf8.ValidString(h.Name) ||
		strings.ContainsFunc(h.Name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return false
	}
	return len(h.Recipient) <= MaxRecipient && strings.HasPrefix(h.Recipient, recipientPrefix) &&
		!strings.ContainsFunc(h.Recipient, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
}

// Encode returns the one encoding of the bundle: a version byte, the identity
// seed, then each list behind a one-byte count, integers big-endian, names
// behind one and recipients behind two bytes of length, and the threshold.
// The caller clears the result after use.
func (b *Bundle) Encode() ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	size := 1 + KeySize + 4 + len(b.Generations)*(4+KeySize) + len(b.Joiners)*32
	for _, h := range b.Holders {
		size += 3 + len(h.Name) + len(h.Recipient)
	}
	out := make([]byte, 0, size) // exact, so that no secret stays behind in an outgrown buffer
	out = append(append(out, bundleVersion), b.Identity[:]...)
	out = append(out, byte(len(b.Generations)))
	for i := range b.Generations {
		out = binary.BigEndian.AppendUint32(out, b.Generations[i].Number)
		out = append(out, b.Generations[i].Key[:]...)
	}
	out = append(out, byte(len(b.Joiners)))
	for i := range b.Joiners {
		out = append(out, b.Joiners[i][:]...)
	}
	out = append(out, byte(len(b.Holders)))
	for _, h := range b.Holders {
		out = append(append(out, byte(len(h.Name))), h.Name...)
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(h.Recipient))), h.Recipient...)
	}
	return append(out, byte(b.Threshold)), nil
}

// DecodeBundle reads what Encode wrote and refuses everything else: whatever
// it accepts encodes to the same bytes. It keeps no reference to data.
func DecodeBundle(data []byte) (*Bundle, error) {
	r := reader{data: data}
	if len(data) > maxBundle || r.byte() != bundleVersion {
		return nil, errBundle
	}
	b := &Bundle{}
	copy(b.Identity[:], r.take(KeySize))
	b.Generations = make([]Generation, min(int(r.byte()), MaxGenerations+1))
	for i := range b.Generations {
		b.Generations[i].Number = uint32(r.uint(4))
		copy(b.Generations[i].Key[:], r.take(KeySize))
	}
	b.Joiners = make([][32]byte, min(int(r.byte()), MaxJoiners+1))
	for i := range b.Joiners {
		copy(b.Joiners[i][:], r.take(32))
	}
	b.Holders = make([]Holder, min(int(r.byte()), MaxHolders+1))
	for i := range b.Holders {
		b.Holders[i].Name = string(r.take(int(r.byte())))
		b.Holders[i].Recipient = string(r.take(int(r.uint(2))))
	}
	b.Threshold = int(r.byte())
	if r.short || len(r.data) != 0 || b.check() != nil {
		b.Zero()
		return nil, errBundle
	}
	return b, nil
}

// reader takes bytes from the front; after it ran short it gives zeroes.
type reader struct {
	data  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.data) {
		r.short, r.data = true, nil
		return nil
	}
	out := r.data[:n]
	r.data = r.data[n:]
	return out
}

func (r *reader) uint(n int) (v uint64) {
	for _, b := range r.take(n) {
		v = v<<8 | uint64(b)
	}
	return v
}

func (r *reader) byte() byte { return byte(r.uint(1)) }
