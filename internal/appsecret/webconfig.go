package appsecret

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"claviger.dev"
	"claviger.dev/internal/recipe"
)

// decodeXML returns a decoder that takes text as the UTF-8 that it is made to
// be here, whatever it was. It knows no entities but the five of XML.
func decodeXML(data io.ByteReader) *xml.Decoder {
	d := xml.NewDecoder(byteReader{data})
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	return d
}

// byteReader is read by ReadByte alone.
type byteReader struct{ io.ByteReader }

// Read implements io.Reader.
func (byteReader) Read([]byte) (int, error) { return 0, io.ErrNoProgress }

// maxElement is the longest start of an element, comment or text, in bytes:
// what is read of one is much larger.
const maxElement = 128 << 10

// metered ends when one token of a file is too long. left is set before each.
type metered struct {
	*bytes.Reader
	left int
}

// ReadByte implements io.ByteReader.
func (m *metered) ReadByte() (byte, error) {
	if m.left--; m.left < 0 {
		return 0, io.ErrShortBuffer
	}
	return m.Reader.ReadByte()
}

func badXML(err error) error {
	line := 0
	if syntax, ok := errors.AsType[*xml.SyntaxError](err); ok {
		line = syntax.Line
	}
	return claviger.Errorf(claviger.Invalid, fmt.Sprintf("the file is no well-formed XML: see line %d", line), "mend the file; entities other than those of XML are not read")
}

// machineKey is the element of that name, or of an inherited one.
type machineKey struct {
	line, lines int
	in          string // the path of a location that it is in
	attr        map[string]string
	order       []string
	encrypted   bool
}

// readWebConfig finds machineKey in a web.config.
func readWebConfig(f *Found, data []byte, want Choice) error {
	keys, target, err := machineKeys(data)
	if err != nil {
		return err
	}
	if want.Line > 0 {
		for _, k := range keys {
			if want.Line >= k.line && want.Line < k.line+k.lines {
				keys = []machineKey{k}
			}
		}
	}
	switch len(keys) {
	case 0:
		return claviger.Errorf(claviger.NotFound, "there is no machineKey here: this machine makes its own keys, or a file above has it",
			"look in the web.config of the parent application, in the root web.config and in machine.config; keys that the machine made are in its registry: set explicit ones first")
	case 1:
	default:
		var places []string
		for _, k := range keys {
			places = append(places, strings.TrimSuffix(fmt.Sprintf("line %d (location %q)", k.line, k.in), ` (location "")`))
		}
		return claviger.Errorf(claviger.Invalid, "there are several machineKey elements: "+few(places), "say which by --line")
	}
	return f.machineKey(keys[0], target, want)
}

// machineKeys returns every machineKey of the file, and the target framework.
func machineKeys(data []byte) (keys []machineKey, target string, err error) {
	in := &metered{Reader: bytes.NewReader(data)}
	d := decodeXML(in)
	var path []string
	var locations []string
	for {
		from, _ := d.InputPos()
		in.left = maxElement
		t, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			if len(path) > 0 {
				return nil, "", badXML(&xml.SyntaxError{Line: from})
			}
			return keys, target, nil
		}
		if errors.Is(err, io.ErrShortBuffer) {
			return nil, "", claviger.Errorf(claviger.TooLarge, "an element or a comment is longer than 128 KiB", "give a web.config without it")
		}
		if err != nil {
			return nil, "", badXML(err)
		}
		switch t := t.(type) {
		case xml.StartElement:
			if path = append(path, t.Name.Local); len(path) > 100 || len(keys) > 100 {
				return nil, "", claviger.Errorf(claviger.Invalid, "the file is nested deeper than a configuration is", "give a web.config")
			}
			location := ""
			switch t.Name.Local {
			case "location":
				location = attribute(t, "path")
			case "httpRuntime":
				target = cmp.Or(attribute(t, "targetFramework"), target)
			case "machineKey":
				to, _ := d.InputPos()
				keys = append(keys, newMachineKey(t, from, to, strings.Join(locations, "")))
			case "EncryptedData":
				if len(keys) > 0 && len(path) > 1 && path[len(path)-2] == "machineKey" {
					keys[len(keys)-1].encrypted = true
				}
			}
			locations = append(locations, location)
		case xml.EndElement:
			if len(path) == 0 || path[len(path)-1] != t.Name.Local {
				return nil, "", badXML(&xml.SyntaxError{Line: from})
			}
			path, locations = path[:len(path)-1], locations[:len(locations)-1]
		}
	}
}

func attribute(e xml.StartElement, name string) string {
	for _, a := range e.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

func newMachineKey(e xml.StartElement, from, to int, in string) machineKey {
	k := machineKey{line: from, lines: to - from + 1, in: in, attr: map[string]string{}}
	for _, a := range e.Attr {
		k.attr[a.Name.Local] = a.Value
		k.order = append(k.order, a.Name.Local)
	}
	return k
}

func (f *Found) machineKey(k machineKey, target string, want Choice) error {
	where := fmt.Sprintf("the machineKey in line %d ", k.line)
	refuse := func(what, hint string) error { return claviger.Errorf(claviger.Invalid, where+what, hint) }
	decryption, validation := k.attr["decryptionKey"], k.attr["validationKey"]
	switch {
	case k.attr["configSource"] != "":
		return refuse("is in another file: "+strconv.Quote(k.attr["configSource"]), "adopt from that file, with --kind web.config")
	case k.encrypted || k.attr["configProtectionProvider"] != "":
		return refuse("is encrypted for this machine", "decrypt the section on it first: aspnet_regiis -pdf system.web/machineKey PATH")
	case decryption == "" && validation == "", strings.Contains(decryption+validation, "AutoGenerate"):
		return refuse("has keys that the machine makes (AutoGenerate): they are in its registry and do not stand here",
			"set explicit keys of random hex in both attributes first, which logs users out once, and adopt those; or create the key without adopting: 'claviger key create'")
	case strings.Contains(decryption+validation, "Isolate"):
		return refuse("has keys with IsolateApps or IsolateByAppId: the framework derives others from them for each application",
			"write the keys without it, which logs users out once, and adopt those")
	}
	dec, err := hex.DecodeString(strings.TrimSpace(decryption))
	if err != nil {
		return refuse("has a decryptionKey that is not hex", "mend the file")
	}
	val, err := hex.DecodeString(strings.TrimSpace(validation))
	if err != nil {
		return refuse("has a validationKey that is not hex", "mend the file")
	}
	defer clear(dec)
	defer clear(val)
	f.Set = want.Set
	if f.Set == "" {
		f.Set = recipe.ASPNETLegacy
		major, _ := strconv.ParseFloat(firstTwo(target), 64)
		switch mode := k.attr["compatibilityMode"]; {
		case mode == "Framework45", mode == "" && major >= 4.5:
			f.Set = recipe.ASPNET
		default:
			f.Notes = append(f.Notes, "the mode is "+cmp.Or(clean(mode), "the one before 4.5, which is the default")+": its view state is checked and opened, never made; "+
				"move to compatibilityMode=\"Framework45\" first, or say --set aspnet45 if the application does so elsewhere")
		}
	}
	m := recipe.Pair(dec, val)
	if err := f.Set.Check(m); err != nil {
		clear(m)
		return refuse("has keys of a size that the framework does not take", "look at the file: a decryptionKey has 8, 16, 24 or 32 bytes, a validationKey 16 to 256")
	}
	f.machineKeyAfter = k.after()
	for _, a := range []struct{ setting, value, usual, known string }{
		{"Validation", k.attr["validation"], "HMACSHA256", "SHA1 HMACSHA256 HMACSHA384 HMACSHA512"},
		{"Decryption", k.attr["decryption"], "AES", "AES 3DES"},
	} {
		switch value := cmp.Or(clean(a.value), a.usual); {
		case value == a.usual || value == "Auto":
		case slices.Contains(strings.Fields(a.known), value):
			f.algorithms = append(f.algorithms, [2]string{a.setting, strings.ToLower(strings.TrimPrefix(value, "HMAC"))})
		default:
			f.Notes = append(f.Notes, strings.ToLower(a.setting)+" is "+value+": the adapter knows "+strings.ReplaceAll(a.known, " ", ", "))
		}
	}
	f.Secrets = []Secret{{Name: "machineKey", Line: k.line, Material: m}}
	f.hunks = []hunk{{line: k.line, lines: k.lines, old: k.shown()}}
	return nil
}

// shown is the element without its keys.
func (k machineKey) shown() string {
	var b strings.Builder
	b.WriteString("<machineKey")
	for _, name := range k.order {
		value := clean(k.attr[name])
		if strings.Contains(strings.ToLower(name), "key") {
			value = removed
		}
		fmt.Fprintf(&b, " %s=%q", clean(name), value)
	}
	b.WriteString(" />")
	return b.String()
}

// after is the element that has the adapter in place of the keys.
func (k machineKey) after() string {
	name := ""
	if text := clean(k.attr["applicationName"]); text != "" {
		name = fmt.Sprintf(" applicationName=%q", text)
	}
	return "<machineKey compatibilityMode=\"Framework45\"" + name + ` dataProtectorType="Claviger.AspNet.CustodyDataProtector, Claviger.AspNet" />`
}

// clean keeps of a text that is not a secret what prints and is short.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), 64)]
}

// firstTwo returns the first two parts of a version.
func firstTwo(version string) string {
	parts := strings.SplitN(version, ".", 3)
	return strings.Join(parts[:min(len(parts), 2)], ".")
}
