//go:build cgo

package p11d

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/miekg/pkcs11"

	claviger "claviger.dev"
)

// scan looks for a combination of attributes anywhere in the token.
type scan struct {
	probe, tried string
	// each template alone is the combination
	templates [][]*pkcs11.Attribute
}

func on(kinds ...uint) (t []*pkcs11.Attribute) {
	for _, k := range kinds {
		t = append(t, attribute(k, true))
	}
	return t
}

func scanTable() []scan {
	secret, private := attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)
	return []scan{
		{"p11.token-wrap-decrypt", "look through the token for keys that wrap and decrypt, or unwrap and encrypt (Clulow 2003)", [][]*pkcs11.Attribute{
			on(pkcs11.CKA_WRAP, pkcs11.CKA_DECRYPT), on(pkcs11.CKA_UNWRAP, pkcs11.CKA_ENCRYPT),
		}},
		{"p11.token-wrap-untrusted", "look through the token for secret keys that wrap and are not trusted", [][]*pkcs11.Attribute{
			append(on(pkcs11.CKA_WRAP), secret, attribute(pkcs11.CKA_TRUSTED, false)),
		}},
		{"p11.token-private-off", "look through the token for private and secret keys that are seen without a login", [][]*pkcs11.Attribute{
			{private, attribute(pkcs11.CKA_PRIVATE, false)}, {secret, attribute(pkcs11.CKA_PRIVATE, false)},
		}},
	}
}

// mostFound is how many objects of a scan are counted.
const mostFound = 1000

// scans looks through the whole token. The control is a key of the attacker's
// session that has every bad combination.
func (a *attacker) scans() []claviger.Attempt {
	_, err := a.module.GenerateKey(a.s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)},
		append(on(pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT),
			attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_PRIVATE, false), attribute(pkcs11.CKA_VALUE_LEN, 32)))
	if err != nil {
		err = fmt.Errorf("make the scan's control: %w", err)
	}
	var out []claviger.Attempt
	for _, sc := range scanTable() {
		got := claviger.Attempt{Probe: sc.probe, Tried: sc.tried}
		found, seen := 0, 0
		for _, template := range sc.templates {
			for _, inToken := range []bool{true, false} {
				objects, failed := a.search(a.s, mostFound, append([]*pkcs11.Attribute{attribute(pkcs11.CKA_TOKEN, inToken)}, template...)...)
				if failed != nil {
					err = failed
				}
				if inToken {
					found += len(objects)
					got.Result += a.labels(objects)
				} else {
					seen += len(objects)
				}
			}
		}
		got.Control = fmt.Sprintf("%d session keys made so were found", seen)
		if err != nil {
			got.Control += ", " + name(err)
		}
		if found == 0 {
			got.Result = "none"
		}
		got.Settle(found > 0, seen > 0)
		if found == 0 && denied(err).absent {
			got.Verdict, got.Reason = claviger.NotAttempted, "the token makes no AES keys, so there is nothing to show that the search works"
		}
		out = append(out, got)
	}
	return out
}

// labels names the first of some objects.
func (a *attacker) labels(objects []object) string {
	var b strings.Builder
	for i, o := range objects {
		if i == 5 {
			fmt.Fprintf(&b, "and %d more ", len(objects)-i)
			break
		}
		label, _ := a.get(a.s, o, pkcs11.CKA_LABEL)
		fmt.Fprintf(&b, "%q ", trim(string(label[:min(len(label), 64)])))
	}
	return b.String()
}

// forgeries claims a history that a key does not have. Each control is the same
// claim about an attribute that anybody may set.
func (a *attacker) forgeries() []claviger.Attempt {
	imported := []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_SENSITIVE, true), attribute(pkcs11.CKA_EXTRACTABLE, false),
		attribute(pkcs11.CKA_VALUE, []byte("a value that the attacker knows!")),
	}
	create := func(claim ...*pkcs11.Attribute) (object, error) {
		return a.module.CreateObject(a.s, append(imported[:len(imported):len(imported)], claim...))
	}
	generate := func(claim ...*pkcs11.Attribute) (object, error) {
		return a.module.GenerateKey(a.s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)},
			append(claim, attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_VALUE_LEN, 32)))
	}
	label := pkcs11.NewAttribute(pkcs11.CKA_LABEL, []byte{1})
	var out []claviger.Attempt
	for _, f := range []struct {
		probe, tried string
		make         func(...*pkcs11.Attribute) (object, error)
		claims       []uint
	}{
		{"p11.forge-provenance", "C_CreateObject of a known value with CKA_LOCAL, CKA_NEVER_EXTRACTABLE, CKA_ALWAYS_SENSITIVE", create, []uint{pkcs11.CKA_LOCAL, pkcs11.CKA_NEVER_EXTRACTABLE, pkcs11.CKA_ALWAYS_SENSITIVE}},
		{"p11.forge-trusted", "make a wrapping key with CKA_TRUSTED, as the user", generate, []uint{pkcs11.CKA_TRUSTED}},
	} {
		got := claviger.Attempt{Probe: f.probe, Tried: f.tried}
		control := a.claim(f.make, label)
		got.Control = "the same claim of a label, which anybody may set: " + control.result
		var leaked bool
		for _, kind := range f.claims {
			o := a.claim(f.make, attribute(kind, true))
			leaked, got.Result = leaked || o.leaked, o.result
			if leaked {
				break
			}
		}
		got.Settle(leaked, control.leaked)
		if control.absent && !leaked {
			got.Verdict, got.Reason = claviger.NotAttempted, "the token does this for nobody ("+control.result+")"
		}
		out = append(out, got)
	}
	return out
}

// claim makes a key with an attribute of value 1 and reads it back.
func (a *attacker) claim(make func(...*pkcs11.Attribute) (object, error), c *pkcs11.Attribute) outcome {
	o, err := make(c)
	if err != nil {
		return denied(err)
	}
	defer func() { _ = a.module.DestroyObject(a.s, o) }()
	b, err := a.get(a.s, o, c.Type)
	if err == nil && len(b) == 1 && b[0] == 1 {
		return leak("attribute %#x is believed", c.Type)
	}
	return outcome{result: "accepted, and not believed"}
}

// files looks at where a software token keeps its keys. It opens none of them.
func (a *attacker) files() claviger.Attempt {
	got := claviger.Attempt{Probe: "p11.token-files", Tried: "look for files of the token that other users may read"}
	if !strings.Contains(strings.ToLower(a.link.about.Manufacturer), "softhsm") {
		got.Verdict, got.Reason = claviger.NotAttempted, "no files of this token are known"
		return got
	}
	dir, err := softhsmDirectory()
	if err == nil {
		got.Result, err = openFiles(dir)
	}
	if err != nil {
		got.Verdict, got.Reason = claviger.NotAttempted, "its directory cannot be looked at: "+errors.Unwrap(err).Error()
		return got
	}
	leaked := got.Result != ""
	if !leaked {
		got.Result = "none; yet whoever copies the directory and guesses the PIN has every key: about 9 000 guesses a second and core, " + a.strength()
	}
	control, err := controlFile()
	got.Control = "a file of mode 0644: " + control
	got.Settle(leaked, err == nil && control != "")
	return got
}

// strength says how long the PIN is, roughly.
func (a *attacker) strength() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	text, _, err := a.pin.read()
	defer clear(text)
	switch n := len(strings.TrimSpace(string(text))); {
	case err != nil:
		return "and a PIN that cannot be looked at"
	case n < 8:
		return "and the PIN is SHORT, under 8 characters"
	case n < 16:
		return "and the PIN has 8 to 15 characters"
	}
	return "and the PIN has 16 characters or more"
}

// softhsmDirectory finds the token directory as the module does.
func softhsmDirectory() (string, error) {
	config, ok := syscall.Getenv("SOFTHSM2_CONF")
	if !ok {
		config = "/etc/softhsm/softhsm2.conf"
	}
	f, err := os.Open(config)
	if err != nil {
		return "", fmt.Errorf("open configuration: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		if strings.TrimSpace(name) == "directories.tokendir" {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("read configuration: %w", errors.New("it names no directory"))
}

// openFiles names what lies under a directory and can be read by others than
// its owner, "" for nothing.
func openFiles(dir string) (string, error) {
	var first string
	count := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		mode := info.Mode().Perm()
		if e.IsDir() {
			if mode&0o011 == 0 {
				return fs.SkipDir // nobody else comes by here
			}
			return nil
		}
		if mode&0o044 != 0 {
			if count++; count == 1 {
				first = fmt.Sprintf("%s has mode %04o and belongs to uid %d", path, mode, info.Sys().(*syscall.Stat_t).Uid)
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("walk: %w", err)
	}
	if count > 1 {
		first += fmt.Sprintf(", and %d more", count-1)
	}
	return first, nil
}

// controlFile makes a file that others may read and looks for it.
func controlFile() (string, error) {
	dir, err := os.MkdirTemp("", "p11d-control")
	if err != nil {
		return "", fmt.Errorf("make control: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "control")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o644)); err != nil {
		return "", fmt.Errorf("make control: %w", err)
	}
	return openFiles(dir)
}
