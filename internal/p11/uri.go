package p11

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	claviger "claviger.dev"
)

// URI is a PKCS#11 URI (RFC 7512): which module, which token, which object.
// An empty field does not narrow the choice.
type URI struct {
	Token        string // CK_TOKEN_INFO label
	Manufacturer string // CK_TOKEN_INFO manufacturerID
	Model        string
	Serial       string
	Slot         *uint  // slot-id; nil: any
	Object       string // CKA_LABEL
	ID           []byte // CKA_ID
	Type         string // "private", "public", "secret-key" or ""
	ModulePath   string // absolute path of the module
	PINFile      string // absolute path of pin-source
}

const maxURI = 2048

func badURI(msg, hint string) error {
	return claviger.Errorf(claviger.Invalid, "the PKCS#11 URI "+msg, hint)
}

const uriHint = "write it like pkcs11:token=NAME?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/claviger/pin"

// ParseURI parses strictly: attributes that it does not know, given twice or
// empty are refused, and so is pin-value: a PIN in a URI is a PIN in a process
// list. Of pin-source it takes file: with an absolute path, and no commands.
func ParseURI(s string) (*URI, error) {
	rest, ok := strings.CutPrefix(s, "pkcs11:")
	if !ok || len(s) > maxURI {
		return nil, badURI("does not begin with pkcs11: or is too long", uriHint)
	}
	path, query, asked := strings.Cut(rest, "?")
	u, seen := &URI{}, map[string]bool{}
	parts := func(text, separator, marks string, set func(*URI, string, string) error) error {
		for part := range strings.SplitSeq(text, separator) {
			name, value, ok := strings.Cut(part, "=")
			if !ok || value == "" || seen[name] {
				return badURI("has an attribute without a value, or one twice", uriHint)
			}
			seen[name] = true
			plain, err := unescape(value, marks)
			if err != nil {
				return err
			}
			if err := set(u, name, plain); err != nil {
				return err
			}
		}
		return nil
	}
	if path != "" {
		if err := parts(path, ";", pathMarks, (*URI).setPath); err != nil {
			return nil, err
		}
	}
	if asked {
		if err := parts(query, "&", queryMarks, (*URI).setQuery); err != nil {
			return nil, err
		}
	}
	return u, nil
}

func (u *URI) setPath(name, value string) error {
	if name == "id" {
		u.ID = []byte(value)
		return nil
	}
	if !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
		return badURI("has a value that is not text", uriHint)
	}
	switch name {
	case "token":
		u.Token = value
	case "manufacturer":
		u.Manufacturer = value
	case "model":
		u.Model = value
	case "serial":
		u.Serial = value
	case "object":
		u.Object = value
	case "type":
		if value != "private" && value != "public" && value != "secret-key" {
			return badURI("has a type other than private, public and secret-key", uriHint)
		}
		u.Type = value
	case "slot-id":
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || strconv.FormatUint(n, 10) != value {
			return badURI("has a slot-id that is no number", uriHint)
		}
		slot := uint(n)
		u.Slot = &slot
	default:
		return badURI("has an attribute that is not known: "+plainName(name), uriHint)
	}
	return nil
}

func (u *URI) setQuery(name, value string) error {
	if !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
		return badURI("has a value that is not text", uriHint)
	}
	switch name {
	case "module-path":
		if !strings.HasPrefix(value, "/") {
			return badURI("has a module-path that is not absolute", uriHint)
		}
		u.ModulePath = value
	case "pin-source":
		path, ok := strings.CutPrefix(value, "file:")
		path = strings.TrimPrefix(path, "//")
		if !ok || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") {
			return badURI("has a pin-source that is no file: with an absolute path", "put the PIN into a file that only the device process can read")
		}
		u.PINFile = path
	case "pin-value":
		return badURI("carries a PIN", "remove pin-value and change that PIN: others may have read it; use pin-source=file:/path")
	case "module-name":
		return badURI("names its module by module-name", "use module-path with the absolute path of the module")
	default:
		return badURI("has an attribute that is not known: "+plainName(name), uriHint)
	}
	return nil
}

// plainName keeps a name from outside showable.
func plainName(name string) string {
	if len(name) > 40 {
		name = name[:40]
	}
	return strconv.QuoteToASCII(name)
}

// What may stand for itself beside letters, digits and -._~ (RFC 7512, 2.3).
const (
	pathMarks  = ":[]@!$'()*+,=&"
	queryMarks = ":[]@!$'()*+,=/?|"
)

func plain(c byte, marks string) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("-._~", c) >= 0 || strings.IndexByte(marks, c) >= 0
}

func unescape(s, marks string) (string, error) {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '%':
			if i+2 >= len(s) {
				return "", badURI("ends within an escape", uriHint)
			}
			n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", badURI("has an escape that is no two hex digits", uriHint)
			}
			out = append(out, byte(n))
			i += 2
		case plain(s[i], marks):
			out = append(out, s[i])
		default:
			return "", badURI("has a character that must be escaped as %xx", uriHint)
		}
	}
	return string(out), nil
}

func escape(s, marks string) string {
	var b strings.Builder
	for i := range len(s) {
		if plain(s[i], marks) {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}

// String writes the URI so that ParseURI reads the same from it.
func (u *URI) String() string {
	var path, query []string
	add := func(to *[]string, name, value, marks string) {
		if value != "" {
			*to = append(*to, name+"="+escape(value, marks))
		}
	}
	for _, a := range []struct{ name, value string }{
		{"token", u.Token}, {"manufacturer", u.Manufacturer}, {"model", u.Model}, {"serial", u.Serial},
	} {
		add(&path, a.name, a.value, "")
	}
	if u.Slot != nil {
		path = append(path, "slot-id="+strconv.FormatUint(uint64(*u.Slot), 10))
	}
	add(&path, "object", u.Object, "")
	if len(u.ID) > 0 {
		var id strings.Builder
		for _, b := range u.ID {
			fmt.Fprintf(&id, "%%%02X", b)
		}
		path = append(path, "id="+id.String())
	}
	add(&path, "type", u.Type, "")
	add(&query, "module-path", u.ModulePath, "/")
	if u.PINFile != "" {
		query = append(query, "pin-source=file:"+escape(u.PINFile, "/"))
	}
	s := "pkcs11:" + strings.Join(path, ";")
	if len(query) > 0 {
		s += "?" + strings.Join(query, "&")
	}
	return s
}
