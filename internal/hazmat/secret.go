package hazmat

import (
	"fmt"
	"io"
	"log/slog"
	"sync"

	"claviger.dev"
)

// Token is what reading secret bytes takes. Writing hazmat.Token{} is the
// mark that reviews watch: the code beside it handles private material.
type Token struct{}

// ErrGone answers the use of a secret that is no longer there. It is a
// claviger.Unavailable.
var ErrGone error = claviger.Errorf(claviger.Unavailable, "the secret was released", "load it again")

const redacted = "[secret]"

// Secret is a handle on secret bytes in an arena. Copies share the bytes. It
// is safe for concurrent use. Its zero value holds nothing. It cannot be
// compared, and whatever prints, encodes or logs it gets "[secret]".
type Secret struct {
	_    [0]func()
	slot *slot
}

// slot is where a secret stands. Users hold mu for reading, so that the bytes
// stay until the last of them is done.
type slot struct {
	mu        sync.RWMutex
	arena     *Arena
	offset, n int
	released  bool
}

// Use calls f with the bytes themselves, not a copy, inside Do. They may be
// read and written while f runs and must not be kept. It returns the error of
// f, or claviger.Unavailable if the secret was released or the arena wiped; an
// arena wiped meanwhile is an error too, since f then saw zeros. f must not
// release the secret.
func (s Secret) Use(_ Token, f func([]byte) error) error {
	if s.slot == nil {
		return ErrGone
	}
	s.slot.mu.RLock()
	defer s.slot.mu.RUnlock()
	a := s.slot.arena
	if s.slot.released || a.wiped.Load() {
		return ErrGone
	}
	var err error
	Do(func() { err = f(a.bytes(s.slot.offset, s.slot.n)) })
	a.touch()
	if a.wiped.Load() {
		return ErrGone
	}
	return err
}

// Release zeroes the bytes and gives the slot back, after every use under way
// has ended. Releasing twice, or the zero Secret, does nothing.
func (s Secret) Release() {
	if s.slot == nil {
		return
	}
	s.slot.mu.Lock()
	defer s.slot.mu.Unlock()
	if !s.slot.released {
		s.slot.released = true
		s.slot.arena.give(s.slot.offset, s.slot.n)
	}
}

// Len returns the number of bytes, zero for the zero Secret.
func (s Secret) Len() int {
	if s.slot == nil {
		return 0
	}
	return s.slot.n
}

// String returns "[secret]".
func (s Secret) String() string { return redacted }

// GoString returns "[secret]".
func (s Secret) GoString() string { return redacted }

// Format prints "[secret]" for every verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// MarshalText returns "[secret]"; so JSON and XML hold that.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalBinary returns "[secret]".
func (s Secret) MarshalBinary() ([]byte, error) { return []byte(redacted), nil }

// GobEncode returns "[secret]".
func (s Secret) GobEncode() ([]byte, error) { return []byte(redacted), nil }

// LogValue returns "[secret]".
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
