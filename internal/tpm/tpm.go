// Package tpm drives a TPM 2.0: one device, its keys, its attestation key and
// what is sealed to it.
//
// It owns the connection, the sessions and the few slots of the device, and
// flushes what it puts there. It promises that the authorisation of a key
// travels in salted sessions only, that a signature is checked before it is
// returned, that no command is repeated which counts against the device's
// lockout, and that a device which went away is taken up again by the next
// call. It must never make a key that may leave the device, nor change what
// others own in it.
package tpm

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"

	claviger "claviger.dev"
)

const (
	// quiet is how long an unused connection is kept to a software TPM, which
	// serves one at a time; busy is how long a used one is kept while others
	// may wait.
	quiet = 50 * time.Millisecond
	busy  = time.Second
	// turn is how long one caller has the device before others get theirs.
	turn = 50 * time.Millisecond
)

// Device is a TPM 2.0. It is safe for concurrent use; the device does one
// thing at a time.
type Device struct {
	path string

	mu     sync.Mutex
	closed bool
	at     *session    // nil while not connected
	since  time.Time   // when at was connected
	rest   *time.Timer // lets go of an unused connection; nil where others can connect beside it
}

// Open names a device: /dev/tpmrm0, or unix:/path for the socket of a software
// TPM. Nothing is connected before the first use, so a device that is not
// there is no error here; a name that is neither is claviger.Invalid.
func Open(path string) (*Device, error) {
	d := &Device{path: path}
	file, isSocket := strings.CutPrefix(path, "unix:")
	if !filepath.IsAbs(file) {
		return nil, claviger.Errorf(claviger.Invalid, "a TPM is named by an absolute path", "use /dev/tpmrm0, or unix:/path/to/socket of a software TPM")
	}
	if isSocket {
		d.rest = time.AfterFunc(time.Hour, d.release)
		d.rest.Stop()
	}
	return d, nil
}

// Close lets go of the device. Every later call fails.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.drop(true)
	return nil
}

// release lets go of a connection that nobody has used for a while.
func (d *Device) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drop(true)
}

// drop forgets the connection; with tidy it empties the device's slots first.
func (d *Device) drop(tidy bool) {
	if d.at == nil {
		return
	}
	if tidy {
		d.at.evict(0)
	}
	d.at.link.Close()
	d.at = nil
}

// do runs f on the device. A device that went away, or was reset, is taken up
// again by the next call. f may run twice: when the device turns out to have
// been reset behind an open connection, nothing of the first run was done.
func (d *Device) do(f func(s *session) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.once(f)
	if isReset(err) {
		d.drop(false)
		err = d.once(f)
	}
	if errors.Is(err, errLost) {
		d.drop(false)
	}
	if d.rest != nil && d.at != nil {
		if time.Since(d.since) > busy {
			d.drop(true)
		} else {
			d.rest.Reset(quiet)
		}
	}
	return d.explain(err)
}

func (d *Device) once(f func(s *session) error) error {
	if d.closed {
		return errClosed
	}
	if d.at == nil {
		s, err := connect(d.path)
		if err != nil {
			return err
		}
		d.at, d.since = s, time.Now()
	}
	return f(d.at)
}

// isReset reports whether the device forgot what was loaded, as after a
// restart behind a resource manager.
func isReset(err error) bool {
	for _, rc := range []tpm2.TPMRC{
		tpm2.TPMRCReferenceH0, tpm2.TPMRCReferenceH1, tpm2.TPMRCReferenceH2,
		tpm2.TPMRCReferenceS0, tpm2.TPMRCReferenceS1, tpm2.TPMRCReferenceS2, tpm2.TPMRCInitialize,
	} {
		if errors.Is(err, rc) {
			return true
		}
	}
	return false
}

var errClosed = claviger.Errorf(claviger.Unavailable, "the TPM was let go of", "try again; the process is ending")

// explain turns what the device answered into an error with a code. An error
// that has one keeps it.
func (d *Device) explain(err error) error {
	var known *claviger.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	is := func(codes ...tpm2.TPMRC) bool {
		for _, rc := range codes {
			if errors.Is(err, rc) {
				return true
			}
		}
		return false
	}
	switch {
	case errors.Is(err, errLost):
		return claviger.Errorf(claviger.Unavailable, "the TPM does not answer",
			"check that "+d.path+" is there and that this process may use it; it is taken up again by itself").Wrap(err)
	case is(tpm2.TPMRCLockout):
		return claviger.Errorf(claviger.Unavailable, "the TPM is in lockout after wrong authorisations",
			"find who tried; wait for the TPM's recovery time or run 'tpm2_dictionarylockout --clear-lockout'; nothing was tried again").Wrap(err)
	case is(tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail):
		return claviger.Errorf(claviger.Invalid, "the TPM refuses the authorisation: the key belongs to another binding, or the TPM's owner set a password",
			"name the key that the blob was made for; nothing was tried again").Wrap(err)
	case is(tpm2.TPMRCIntegrity):
		return claviger.Errorf(claviger.Invalid, "the blob is damaged or of another TPM", "use it on the TPM that made it").Wrap(err)
	case is(tpm2.TPMRCPolicyFail, tpm2.TPMRCPCRChanged, tpm2.TPMRCPolicy):
		return claviger.Errorf(claviger.Denied, "the TPM's policy refuses: the platform registers are not as they were",
			"start what it was sealed for, or use another way in").Wrap(err)
	case is(tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate):
		return claviger.Errorf(claviger.Unavailable, "the TPM is busy", "try again in a moment").Wrap(err)
	case is(tpm2.TPMRCFailure, tpm2.TPMRCNVUnavailable):
		return claviger.Errorf(claviger.Unavailable, "the TPM is in failure mode, or cannot write its memory",
			"reset it: restart the machine, or a software TPM whose state directory it may write").Wrap(err)
	case is(tpm2.TPMRCObjectMemory, tpm2.TPMRCObjectHandles, tpm2.TPMRCSessionMemory, tpm2.TPMRCSessionHandles):
		return claviger.Errorf(claviger.Unavailable, "the TPM's slots are taken by others", "use /dev/tpmrm0, which shares them, and try again").Wrap(err)
	}
	return claviger.Errorf(claviger.Internal, "the TPM refused a command", "see the log of claviger-tpmd for its answer").Wrap(err)
}
