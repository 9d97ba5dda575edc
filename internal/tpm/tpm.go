// Package tpm drives a TPM 2.0: one device, its keys, its attestation key and
// what is sealed to it.
//
// It owns the connection, the sessions and the few slots of the device, and
// flushes what it puts there. It promises that authorisations travel in salted
// sessions only, that a signature is checked before it is returned, that no
// command is repeated which counts against the device's lockout, and that a
// device which went away is taken up again by the next call. It must never
// make a key that may leave the device, nor change what others own in it.
package tpm

import (
	claviger "claviger.dev"
)

// Device is a TPM 2.0. It is safe for concurrent use; the device does one
// thing at a time.
type Device struct {
	path string
}

var errUnfinished = claviger.Errorf(claviger.Unavailable, "the TPM cannot be used yet", "use a newer release")

// Open names a device: /dev/tpmrm0, or unix:/path for the socket of a software
// TPM. Nothing is connected before the first use, so a device that is not
// there is no error here.
func Open(path string) (*Device, error) {
	return &Device{path: path}, nil
}

// Close lets go of the device. What others wait for fails.
func (d *Device) Close() error { return nil }

// Seal encrypts a secret of 32 to 64 bytes so that this TPM alone gives it
// back, and only while the SHA-256 platform registers listed (0 to 23, none
// for no condition) are as they are now.
func (d *Device) Seal(secret []byte, pcrs []uint) ([]byte, error) { return nil, errUnfinished }

// Unseal returns what Seal encrypted. When the platform registers have changed
// it is claviger.Denied; a blob of another TPM is claviger.Invalid.
func (d *Device) Unseal(blob []byte) ([]byte, error) { return nil, errUnfinished }

// Info asks what the device is.
func (d *Device) Info() (claviger.Device, error) { return claviger.Device{}, errUnfinished }
