//go:build cgo

package p11d

import (
	"errors"
	"slices"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
	"claviger.dev/internal/frames"
)

// code returns the CKR_ value of an error, CKR_OK when it has none.
func code(err error) uint {
	e, _ := errors.AsType[pkcs11.Error](err)
	return uint(e)
}

// isLost says that the session or the token behind it is gone.
func isLost(err error) bool {
	return slices.Contains([]uint{
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
		pkcs11.CKR_SLOT_ID_INVALID, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_DEVICE_ERROR,
	}, code(err))
}

// isGone says that an object is no longer what a handle named.
func isGone(err error) bool {
	return slices.Contains([]uint{pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID}, code(err))
}

var (
	errNoToken   = claviger.Errorf(claviger.Unavailable, "the PKCS#11 token is not there", "plug it in or start it; the URI of [pkcs11] names it")
	errTokens    = claviger.Errorf(claviger.Invalid, "more than one PKCS#11 token fits the URI", "add token, serial or slot-id to the URI")
	errOther     = claviger.Errorf(claviger.Internal, "the device has another key in this place than was authorised", "nothing was released; find out who replaced the key in the token")
	errBlob      = claviger.Errorf(claviger.Invalid, "the reference to the device's key is damaged or belongs to another version", "nothing was done; check the store")
	errNoKey     = claviger.Errorf(claviger.NotFound, "the token does not have the key", "was it deleted there, or is this another token? 'claviger key show' gives its reference")
	errManyKeys  = claviger.Errorf(claviger.Conflict, "the token has more than one key that fits", "name one by its id")
	errOperation = claviger.Errorf(claviger.Unsupported, "the key's algorithm does not have this operation", "use an operation of the key's algorithm")
	errPrehashed = claviger.Errorf(claviger.Invalid, "a digest has the length of the algorithm's hash, and some algorithms take no digest", "send the message itself, or its digest under the algorithm's own hash")
	errDevice    = claviger.Errorf(claviger.Unsupported, "a PKCS#11 device does not do this", "use a key of the custodian soft for it")
)

// tell makes what a module answered showable: the names of return values are
// safe texts.
func tell(err error) error {
	if err == nil || errors.Is(err, frames.ErrNotLoaded) {
		return err
	}
	if _, ok := errors.AsType[*claviger.Error](err); ok {
		return err
	}
	e, ok := errors.AsType[pkcs11.Error](err)
	switch {
	case !ok:
		return err
	case isLost(err):
		return errNoToken.Wrap(err)
	case uint(e) == pkcs11.CKR_MECHANISM_INVALID || uint(e) == pkcs11.CKR_FUNCTION_NOT_SUPPORTED || uint(e) == pkcs11.CKR_CURVE_NOT_SUPPORTED:
		return claviger.Errorf(claviger.Unsupported, "the token does not do this ("+name(err)+")", "'claviger doctor' lists what it offers").Wrap(err)
	}
	return claviger.Errorf(claviger.Unavailable, "the token refused ("+name(err)+")", "look at the token's own log or tool").Wrap(err)
}

// name returns what PKCS#11 calls a return value.
func name(err error) string {
	e, ok := errors.AsType[pkcs11.Error](err)
	switch {
	case err == nil:
		return "CKR_OK"
	case !ok:
		return "an error"
	}
	text := e.Error() // "pkcs11: 0xA0: CKR_PIN_INCORRECT"
	for i := len(text) - 1; i >= 0; i-- {
		if text[i] == ' ' {
			if text = text[i+1:]; text == "" {
				break
			}
			return text
		}
	}
	return "an unknown value"
}
