//go:build cgo

package p11d

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
)

// pin is the file that holds the user's PIN, and what became of the last try.
// It is guarded by device.mu.
type pin struct {
	path  string
	fd    int // where it is open already, instead of path; 0: path counts
	tried stamp
	err   error // of the try with the file as it was at tried
}

// stamp changes when a file does.
type stamp struct {
	ino          uint64
	size         int64
	mtime, ctime syscall.Timespec
}

const maxPIN = 255

var (
	errPINFile   = claviger.Errorf(claviger.Unavailable, "the file with the token's PIN cannot be read", "give pin-source=file:/path in the URI, or a systemd credential, readable by the device process alone")
	errPINOpen   = claviger.Errorf(claviger.Unavailable, "the file with the token's PIN is open to others", "chmod 600 it, and let it belong to the device process's user or to root")
	errPINWrong  = claviger.Errorf(claviger.Unavailable, "the token's PIN is wrong (CKR_PIN_INCORRECT)", "it is not tried again until the PIN file changes or the device process is restarted: put the right PIN into it")
	errPINLocked = claviger.Errorf(claviger.Unavailable, "the token's PIN is locked (CKR_PIN_LOCKED)", "the token's security officer must set a new PIN; then change the PIN file or restart the device process")
	errPINFinal  = claviger.Errorf(claviger.Unavailable, "the token allows one more try of its PIN, which was not made (CKF_USER_PIN_FINAL_TRY)", "make sure that the PIN file is right, log in once by the token's own tool, or start claviger-p11d with -final-try")
	errPINNone   = claviger.Errorf(claviger.Unavailable, "the token has no user PIN yet", "initialise it with the token's own tool, such as softhsm2-util --init-token")
	errPINPad    = claviger.Errorf(claviger.Unsupported, "the token takes its PIN on its own keypad", "use a token that takes a PIN from the host")
)

// login logs in with the PIN of the file, unless that same file failed before.
// The PIN is cleared after use; what the C library copies is beyond our reach.
func (p *pin) login(flags uint, final bool, try func(pin string) error) error {
	switch {
	case flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH != 0:
		return errPINPad
	case flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0:
		return errPINNone
	}
	text, now, err := p.read()
	if err != nil {
		return err
	}
	defer clear(text)
	if p.err != nil && p.tried == now {
		return p.err
	}
	switch {
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return errPINLocked
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0 && !final:
		return errPINFinal
	}
	if line(text) == "" || bytes.IndexByte(text, 0) >= 0 {
		return errPINFile.Wrap(errors.New("empty, or with a zero byte"))
	}
	err = try(line(text))
	switch code(err) {
	case pkcs11.CKR_OK, pkcs11.CKR_USER_ALREADY_LOGGED_IN:
		p.err = nil
		return nil
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE:
		err = errPINWrong.Wrap(err)
	case pkcs11.CKR_PIN_LOCKED:
		err = errPINLocked.Wrap(err)
	case pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED:
		return err // it was not compared
	default:
		err = claviger.Errorf(claviger.Unavailable, "the token refused the login ("+name(err)+")",
			"it is not tried again until the PIN file changes or the device process is restarted").Wrap(err)
	}
	p.err, p.tried = err, now
	return err
}

// line is the content of a file without the end of its line. It is not a copy,
// so that clearing the content clears it.
func line(text []byte) string {
	text, _ = bytes.CutSuffix(text, []byte("\n"))
	text, _ = bytes.CutSuffix(text, []byte("\r"))
	return unsafe.String(unsafe.SliceData(text), len(text))
}

// read returns the content of the file. It insists that the file is of this
// user or of root, and that no others may read it.
func (p *pin) read() ([]byte, stamp, error) {
	f, err := p.open()
	if err != nil {
		return nil, stamp{}, errPINFile.Wrap(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, stamp{}, errPINFile.Wrap(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || info.Size() > maxPIN+2 {
		return nil, stamp{}, errPINFile.Wrap(fmt.Errorf("%s, %d bytes", info.Mode(), info.Size()))
	}
	if info.Mode().Perm()&0o027 != 0 || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return nil, stamp{}, errPINOpen.Wrap(fmt.Errorf("%s, uid %d", info.Mode(), st.Uid))
	}
	text := make([]byte, maxPIN+2)
	n, err := f.ReadAt(text, 0)
	if n == 0 || err != nil && !errors.Is(err, io.EOF) {
		return nil, stamp{}, errPINFile.Wrap(err)
	}
	return text[:n], stamp{ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

func (p *pin) open() (*os.File, error) {
	switch {
	case p.fd > 0:
		fd, err := syscall.Dup(p.fd)
		return os.NewFile(uintptr(fd), "PIN"), err
	case p.path == "":
		return nil, errors.New("none is named")
	}
	return os.Open(p.path)
}
