package server

import (
	"crypto/x509"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/p11"
)

// TPM says which TPM 2.0 this host has. Keys of the custodian tpm need one.
type TPM struct {
	// Device is "/dev/tpmrm0", or "unix:" and the absolute path of the socket
	// of a software TPM. Empty: no TPM.
	Device string `toml:"device"`
	// Roots are the manufacturers whose endorsement keys are believed. Empty:
	// none, and no key is better than hardware.
	Roots []EKRoot `toml:"roots"`
}

// EKRoot pins one manufacturer of TPMs, or a CA for tests.
type EKRoot struct {
	// Name is shown wherever a level rests on this root. Required, unique.
	Name string `toml:"name"`
	// Bundle is a PEM file with the root certificates. Required.
	Bundle string `toml:"bundle"`
	// Test marks a root that certifies software: whatever rests on it names it
	// as a test.
	Test bool `toml:"test"`
}

// PKCS11 says which token this host has. Keys of the custodian p11 need one.
type PKCS11 struct {
	// URI names the token by RFC 7512, with module-path, and pin-source=file:
	// for a file that claviger-p11d's account reads. A PIN in it is refused.
	// Empty: no token.
	URI string `toml:"uri"`
	// PINCredential is the name of the systemd credential with the PIN, instead
	// of pin-source. Empty: pin-source.
	PINCredential string `toml:"pin_credential"`
	// Environment are the variables that the module reads, such as
	// SOFTHSM2_CONF, each the absolute path of a file. Empty: none.
	Environment map[string]string `toml:"environment"`
}

// Evidence says how often custodians are asked to show that keys cannot leave.
type Evidence struct {
	// Every is the time between two runs of the gentle attempts. Zero: 24 h.
	Every claviger.Duration `toml:"every"`
	// MaxAge is how long what was shown counts; then the level is lapsed. It is
	// no shorter than Every. Zero: 7 days.
	MaxAge claviger.Duration `toml:"max_age"`
}

// Notify says who hears of what cannot wait.
type Notify struct {
	// Webhook is an https address, or http on a loopback address, to which a
	// finding is posted as one line of JSON. Redirects are not followed.
	// Empty: none.
	Webhook string `toml:"webhook"`
}

func (t TPM) validate() error {
	socket, software := strings.CutPrefix(t.Device, "unix:")
	switch {
	case t.Device != "" && (!cleanPath(socket) || software && len(socket) > 107): // sockaddr_un, unix(7)
		return invalidConfig("tpm.device is neither a device nor a socket", "set it to /dev/tpmrm0, or to unix:/path/to/socket for a software TPM")
	case t.Device == "/dev/tpm0":
		return invalidConfig("tpm.device is the TPM without its resource manager", "set it to /dev/tpmrm0")
	}
	seen := map[string]bool{}
	for _, root := range t.Roots {
		switch {
		case root.Name == "" || len(root.Name) > 64 || strings.ContainsFunc(root.Name, func(r rune) bool { return r < ' ' || r > '~' }):
			return invalidConfig("tpm.roots.name is not a name of 1 to 64 ASCII characters", "name the manufacturer, such as \"Infineon\"")
		case seen[root.Name]:
			return invalidConfig("tpm.roots has the same name twice", "put all roots of a manufacturer into one bundle")
		case !cleanPath(root.Bundle):
			return invalidConfig("tpm.roots.bundle is not an absolute path", "set it to a PEM file with the manufacturer's roots")
		}
		seen[root.Name] = true
	}
	return nil
}

// Certificates reads the roots of a manufacturer.
func (r EKRoot) Certificates() ([]*x509.Certificate, error) {
	return readRoots("tpm.roots.bundle", r.Bundle)
}

func (p PKCS11) validate() error {
	if p.URI == "" {
		if p.PINCredential != "" || len(p.Environment) > 0 {
			return invalidConfig("pkcs11 says something of a token and names none", "set pkcs11.uri, or remove the rest")
		}
		return nil
	}
	uri, err := p11.ParseURI(p.URI)
	switch {
	case err != nil:
		e, _ := errors.AsType[*claviger.Error](err)
		return invalidConfig("pkcs11.uri: "+e.Msg, e.Hint)
	case uri.ModulePath == "":
		return invalidConfig("pkcs11.uri has no module-path", "add module-path= with the absolute path of the module")
	case (uri.PINFile == "") == (p.PINCredential == ""):
		return invalidConfig("pkcs11 names no source of the PIN, or two", "use pin-source=file:/path in the URI, or pin_credential")
	case p.PINCredential != "" && !validCredential(p.PINCredential):
		return invalidConfig("pkcs11.pin_credential is not the name of a systemd credential", "use its name alone, without a path")
	}
	for name, value := range p.Environment {
		if !validVariable(name) || strings.HasPrefix(name, "LD_") || strings.HasPrefix(name, "GO") || !cleanPath(value) {
			return invalidConfig("pkcs11.environment holds what is no variable for a module", "use names such as SOFTHSM2_CONF, and absolute paths")
		}
	}
	return nil
}

func validVariable(name string) bool {
	return name != "" && len(name) <= 64 && !strings.ContainsFunc(name, func(r rune) bool {
		return r != '_' && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	})
}

// Variables are the environment of claviger-p11d, NAME=VALUE, in order.
func (p PKCS11) Variables() []string {
	var list []string
	for name, value := range p.Environment {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return list
}

func (e Evidence) validate() error {
	switch {
	case e.Every < claviger.Duration(time.Minute) || e.Every > claviger.Duration(30*24*time.Hour):
		return invalidConfig("evidence.every is not between 1m and 720h", "set it such as \"24h\"")
	case e.MaxAge < e.Every || e.MaxAge > claviger.Duration(365*24*time.Hour):
		return invalidConfig("evidence.max_age is shorter than evidence.every, or longer than a year", "set it such as \"168h\"")
	}
	return nil
}

func (n Notify) validate() error {
	u, err := url.Parse(n.Webhook)
	if n.Webhook == "" {
		return nil
	}
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !loopbackAddress(withPort(u))) {
		return invalidConfig("notify.webhook is neither an https address nor http on a loopback address", "write it such as https://alerts.example.org/claviger, without a password")
	}
	return nil
}

func withPort(u *url.URL) string {
	if u.Port() == "" {
		return u.Host + ":80"
	}
	return u.Host
}
