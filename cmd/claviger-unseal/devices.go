package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"

	"claviger.dev"
	"claviger.dev/internal/p11"
	"claviger.dev/internal/rootkey"
	"claviger.dev/internal/tpm"
)

// tokenWait bounds the talk with the process that serves the token. A module
// may take its time to log in, and a token to make a key.
const tokenWait = time.Minute

// openVault opens the device that keeps the secrets of a kind of slot.
func openVault(kind rootkey.SlotKind, device string, tokenFD int) (rootkey.Vault, error) {
	if kind == rootkey.TPM {
		d, err := tpm.Open(device)
		if err != nil {
			return nil, err
		}
		return sealer{d}, nil
	}
	fd, err := syscall.Dup(tokenFD) // the next slot of the kind needs it again
	if err != nil {
		return nil, claviger.Errorf(claviger.Invalid, "the descriptor of the token's process is not open", "start it with 'claviger root' or 'claviger up'").Wrap(err)
	}
	file := os.NewFile(uintptr(fd), "token")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("talk with the token's process: %w", err)
	}
	return token{conn}, nil
}

// sealer is a TPM, which keeps nothing for a slot.
type sealer struct{ *tpm.Device }

// Unseal implements rootkey.Vault. A TPM in lockout is there, and will not be
// asked again by itself.
func (s sealer) Unseal(sealed []byte) ([]byte, error) {
	secret, err := s.Device.Unseal(sealed)
	if e, ok := errors.AsType[*claviger.Error](err); ok && errors.Is(err, tpm2.TPMRCLockout) {
		err = claviger.Errorf(claviger.Denied, e.Msg, e.Hint).Wrap(err)
	}
	return secret, err
}

// Forget implements rootkey.Vault.
func (sealer) Forget([]byte) error { return nil }

// token is a PKCS #11 token, through `claviger-p11d -unseal`. What it seals is
// u16 length of the reference to its key, the reference, the ciphertext.
type token struct{ conn net.Conn }

// Seal implements rootkey.Vault.
func (t token) Seal(secret []byte, _ []uint) ([]byte, error) {
	if err := t.conn.SetDeadline(time.Now().Add(tokenWait)); err != nil {
		return nil, err
	}
	blob, reference, err := p11.Wrap(t.conn, secret)
	if err != nil {
		return nil, err
	}
	sealed := binary.BigEndian.AppendUint16(nil, uint16(len(reference)))
	return append(append(sealed, reference...), blob...), nil
}

// Unseal implements rootkey.Vault.
func (t token) Unseal(sealed []byte) ([]byte, error) {
	reference, blob, err := split(sealed)
	if err == nil {
		err = t.conn.SetDeadline(time.Now().Add(tokenWait))
	}
	if err != nil {
		return nil, err
	}
	return p11.Unwrap(t.conn, reference, blob)
}

// Forget implements rootkey.Vault: the token destroys its key.
func (t token) Forget(sealed []byte) error {
	reference, _, err := split(sealed)
	if err == nil {
		err = t.conn.SetDeadline(time.Now().Add(tokenWait))
	}
	if err != nil {
		return err
	}
	return p11.Remove(t.conn, reference)
}

func split(sealed []byte) (reference string, blob []byte, err error) {
	if len(sealed) < 2 || len(sealed)-2 < int(binary.BigEndian.Uint16(sealed)) {
		return "", nil, claviger.Errorf(claviger.Invalid, "the slot names no key of a token", "put the last good copy of the slots file back")
	}
	n := 2 + int(binary.BigEndian.Uint16(sealed))
	return string(sealed[2:n]), sealed[n:], nil
}

// Info implements rootkey.Vault.
func (t token) Info() (claviger.Device, error) {
	if err := t.conn.SetDeadline(time.Now().Add(tokenWait)); err != nil {
		return claviger.Device{}, err
	}
	return p11.Device(t.conn)
}

// Close implements rootkey.Vault.
func (t token) Close() error { return t.conn.Close() }
