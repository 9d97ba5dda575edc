// Command claviger-p11d is the PKCS#11 device process. The supervisor starts
// it with the server's socket as descriptor 3; claviger-unseal's start has
// -unseal, and `claviger evidence run` starts it with -probe.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	claviger "claviger.dev"
	"claviger.dev/internal/p11d"
)

func main() {
	var o p11d.Options
	var unseal, probe bool
	flag.StringVar(&o.URI, "uri", "", "RFC 7512 URI of the token, with module-path and pin-source")
	flag.Func("pin-credential", "name of the systemd credential that holds the PIN", func(name string) error {
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" || filepath.Base(name) != name {
			return errors.New("not the name of a credential, or systemd gave none")
		}
		o.Credential = filepath.Join(dir, name)
		return nil
	})
	flag.IntVar(&o.PINDescriptor, "pin-fd", 0, "descriptor of the file that holds the PIN")
	flag.Func("env", "NAME=/absolute/path for the module, such as SOFTHSM2_CONF=/etc/softhsm2.conf; may be repeated", o.SetEnvironment)
	flag.BoolVar(&o.FinalTry, "final-try", false, "try the PIN even if it is the token's last try")
	flag.BoolVar(&unseal, "unseal", false, "keep the secrets of root slots, for claviger-unseal alone")
	flag.BoolVar(&probe, "probe", false, "attack the keys that standard input names")
	flag.BoolVar(&o.Loud, "loud", false, "with -probe: also what counts against a PIN, on the throw-away token")
	flag.StringVar(&o.ThrowAway, "throw-away", "", "with -loud: URI of a token that may be locked")
	flag.StringVar(&o.OfficerPIN, "so-pin-file", "", "with -loud: file with the PIN of the throw-away token's security officer")
	flag.Parse()
	switch {
	case unseal && probe || flag.NArg() > 0:
		fmt.Fprintln(os.Stderr, "claviger-p11d: it takes flags only, and one of -unseal and -probe")
		os.Exit(1)
	case unseal:
		o.Mode = p11d.Unseal
	case probe:
		o.Mode = p11d.Probe
	}
	if err := p11d.Main(o); err != nil {
		if e, ok := errors.AsType[*claviger.Error](err); ok && e.Hint != "" {
			err = fmt.Errorf("%w\nhint: %s", err, e.Hint)
		}
		fmt.Fprintln(os.Stderr, "claviger-p11d:", err)
		os.Exit(2)
	}
}
