package tpm

import (
	"errors"

	"github.com/google/go-tpm/tpm2"
)

// Overwrite puts other into the slot of the device where k is loaded, while
// the device's own table goes on to say that k is there.
func (d *Device) Overwrite(k, other *Key) error {
	return d.do(func(s *session) error {
		h, err := s.use(k)
		if err != nil {
			return err
		}
		if err := s.flush(h.Handle); err != nil {
			return err
		}
		r, err := tpm2.Load{ParentHandle: s.parent(), InPrivate: other.private, InPublic: tpm2.New2B(*other.area)}.Execute(s.link)
		if err == nil && r.ObjectHandle != h.Handle {
			err = errors.New("the TPM took another slot")
		}
		return err
	})
}

// Relabel makes the device take the key that is loaded as k for another, so
// that only the check of the signature is left.
func (d *Device) Relabel(k, as *Key) error {
	return d.do(func(s *session) error {
		if _, err := s.use(k); err != nil {
			return err
		}
		s.loaded[0].key = as
		return nil
	})
}
