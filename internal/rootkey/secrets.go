package rootkey

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"claviger.dev"
	"golang.org/x/term"
)

// secrets asks the terminal, standard input, the credentials of systemd and
// the devices.
func (c *call) secrets() Secrets {
	return Secrets{Passphrase: c.passphrase, Credential: c.readCredential, Vault: c.vault}
}

func (c *call) vault(kind SlotKind) (Vault, error) {
	switch {
	case kind == TPM && c.tpm == "":
		return nil, claviger.Errorf(claviger.Invalid, "no TPM is named", "set [tpm] device in the server's configuration, or add --tpm")
	case kind == PKCS11 && c.tokenFD < 0:
		return nil, claviger.Errorf(claviger.Invalid, "no token is named", "set [pkcs11] in the server's configuration; 'claviger root' and 'claviger up' then start what serves the token")
	case c.Vault == nil:
		return nil, claviger.Errorf(claviger.Unsupported, "this program was built without devices", "use another slot")
	}
	return c.Vault(kind, c.tpm, c.tokenFD)
}

func (c *call) passphrase(what string) ([]byte, error) {
	if c.Stdin == nil {
		return nil, errNobody
	}
	if !term.IsTerminal(int(c.Stdin.Fd())) {
		return readLine(c.Stdin)
	}
	typed, err := c.prompt(what)
	if err != nil || what != newPassphrase {
		return typed, err
	}
	again, err := c.prompt("The same again: ")
	defer clear(again)
	if err == nil && !bytes.Equal(typed, again) {
		err = claviger.Errorf(claviger.Invalid, "the two passphrases differ", "type it again")
	}
	if err != nil {
		clear(typed)
		return nil, err
	}
	return typed, nil
}

var errNobody = claviger.Errorf(claviger.Denied, "the passphrase of the root key is needed, and nobody is there to type it",
	"run it on a terminal, or put the passphrase on a line of standard input")

func (c *call) prompt(what string) ([]byte, error) {
	fmt.Fprint(c.Stderr, what)
	typed, err := term.ReadPassword(int(c.Stdin.Fd()))
	fmt.Fprintln(c.Stderr)
	if err != nil {
		return nil, errNobody.Wrap(err)
	}
	return typed, nil
}

// readLine reads up to a newline and not a byte more, so that the next line
// is there for the next question.
func readLine(r io.Reader) ([]byte, error) {
	buf := make([]byte, mostPassphrase+1)
	for n := range buf {
		_, err := io.ReadFull(r, buf[n:n+1])
		if errors.Is(err, io.EOF) && n == 0 {
			return nil, errNobody
		}
		if err != nil || buf[n] == '\n' {
			buf[n] = 0
			return buf[:n], nil
		}
	}
	clear(buf)
	return nil, claviger.Errorf(claviger.TooLarge, "the passphrase is longer than 1024 bytes", "use a shorter one")
}

// readCredential reads a credential by its name or absolute path, or from the
// descriptor that was named instead: systemd gives credentials to root alone,
// and the supervisor opens them before it takes another uid.
func (c *call) readCredential(source string) ([]byte, error) {
	var secret []byte
	var err error
	switch {
	case c.credentialFD >= 0:
		f := os.NewFile(uintptr(c.credentialFD), "credential")
		if f == nil {
			return nil, claviger.Errorf(claviger.Invalid, "the descriptor of the credential is not open", "redirect the credential to it")
		}
		defer f.Close()
		secret, err = readAll(f, mostCredential)
	case filepath.IsAbs(source):
		secret, err = readOwned(source, mostCredential)
	case c.CredentialsDir == "" || strings.Contains(source, "/") || source == "." || source == "..":
		return nil, claviger.Errorf(claviger.NotFound, "the credential is not to be had here", "start it from systemd with LoadCredential=, or give --credential-fd")
	default:
		f, openErr := os.OpenFile(filepath.Join(c.CredentialsDir, source), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
		if openErr != nil {
			return nil, claviger.Errorf(claviger.NotFound, "the credential cannot be read", "see LoadCredential= in the unit").Wrap(openErr)
		}
		defer f.Close()
		secret, err = readAll(f, mostCredential)
	}
	if err != nil {
		if _, ok := errors.AsType[*claviger.Error](err); ok {
			return nil, err
		}
		return nil, claviger.Errorf(claviger.NotFound, "the credential cannot be read", "check that it exists and who may read it").Wrap(err)
	}
	return secret, nil
}

// inherited is the root socket that the supervisor passes as descriptor 3.
func inherited() (Socket, error) {
	var stat syscall.Stat_t
	if err := syscall.Fstat(3, &stat); err != nil || stat.Mode&syscall.S_IFMT != syscall.S_IFSOCK {
		return nil, claviger.Errorf(claviger.Invalid, "there is no root socket on descriptor 3", "the supervisor starts this command: claviger up")
	}
	syscall.CloseOnExec(3)
	if err := syscall.SetNonblock(3, true); err != nil {
		return nil, fmt.Errorf("prepare the root socket: %w", err)
	}
	return os.NewFile(3, "root socket"), nil
}
