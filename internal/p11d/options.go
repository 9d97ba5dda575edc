// Package p11d is the PKCS#11 device process: it loads one module, logs in to
// one token, and uses the keys in it on request.
//
// It owns the sessions, the login, the templates of the keys that it makes and
// the proof that a key in the token is the one that was authorised. It promises
// that no result leaves it before it was checked with the public key (or check
// value) of what was authorised, that a PIN is tried once and never again until
// its file changes, and that a device which disagrees about a protective
// attribute loses the key again. It must never read a key's value but to show
// that it cannot, touch an object that it was not told of, or ask for a PIN by
// any way but a file or a credential.
//
// It is the only package that links C, and builds without it to a program that
// says so.
package p11d

import (
	"errors"
	"path/filepath"
	"strings"
)

// Mode is what the process is for.
type Mode int

// The modes.
const (
	Frames Mode = iota // serves frames on descriptor 3
	Unseal             // serves the talk of package p11 with claviger-unseal on descriptor 3
	Probe              // attacks the keys that standard input names, and reports on standard output
)

// Options are the flags of the process.
type Options struct {
	Mode       Mode
	URI        string // module-path, and what narrows the choice to one token; pin-source
	Credential string // path of the file that holds the PIN, when the URI has no pin-source
	// PINDescriptor is where that file is open already, as when only the
	// supervisor may read a credential of systemd. 0: Credential or pin-source.
	PINDescriptor int
	Environment   []string // NAME=/absolute/path, for the module
	FinalTry      bool     // try the PIN even if the token says that it is the last try

	// Of Probe alone.
	Loud       bool   // also what alarms a device or counts against a lockout, and that on the throw-away token only
	ThrowAway  string // URI with pin-source of a token that may be locked
	OfficerPIN string // path of the file with its security officer's PIN
}

// SetEnvironment adds a variable for the module: a name and the absolute path
// of a file. Whatever else the process inherits is cleared, and a value that
// is no path is refused, so that nothing secret comes this way.
func (o *Options) SetEnvironment(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name == "" || strings.HasPrefix(name, "LD_") || strings.HasPrefix(name, "GO") || !filepath.IsAbs(value) {
		return errors.New("not NAME=/absolute/path, or a name that changes how programs run")
	}
	o.Environment = append(o.Environment, text)
	return nil
}
