package appsecret

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"claviger.dev"
)

// maxYAML bounds what is read as YAML, in bytes; its tree is much larger.
const maxYAML = 128 << 10

// readYAML finds every text of a YAML file, by its path.
func readYAML(data []byte) ([]candidate, error) {
	if len(data) > maxYAML {
		return nil, claviger.Errorf(claviger.TooLarge, "the file is larger than a configuration in YAML is", "give one of at most 128 KiB, or use standard input")
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil { // its text may have what stands there
		return nil, claviger.Errorf(claviger.Invalid, "the file is no YAML that can be read", "mend the file, or adopt through standard input")
	}
	var out []candidate
	for _, n := range root.Content {
		walkYAML(n, "", 0, &out)
	}
	return out, nil
}

func walkYAML(n *yaml.Node, path string, depth int, out *[]candidate) {
	if depth > 20 || n.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := strings.TrimPrefix(path+"."+key.Value, ".")
		if key.Kind != yaml.ScalarNode || len(name) > 256 {
			continue
		}
		if value.Kind == yaml.MappingNode {
			walkYAML(value, name, depth+1, out)
			continue
		}
		c := candidate{name: name, line: key.Line, lines: value.Line - key.Line + 1, shown: clean(key.Value) + ": " + removed, values: [][]byte{[]byte(value.Value)}}
		switch {
		case value.Kind == yaml.AliasNode:
			c.refuse = refusedAt(c, "refers to another value of the file", "adopt it through standard input")
		case value.Kind != yaml.ScalarNode || value.Tag != "!!str":
			c.refuse = refusedAt(c, "is no text", "write it in quotes, or adopt it through standard input")
		default:
			c.literal()
		}
		*out = append(*out, c)
	}
}

// literal refuses a value that stands for another.
func (c *candidate) literal() {
	value := string(c.values[0])
	for _, mark := range []string{"${", "<%", "%env(", "#{", "ENC(", "{cipher}"} {
		if strings.Contains(value, mark) {
			c.refuse = refusedAt(*c, "stands for a value that is elsewhere, or is encrypted", "adopt from where it stands, or through standard input")
		}
	}
}

// readProperties reads a file of Java properties.
func readProperties(data []byte) ([]candidate, error) {
	var out []candidate
	lines := strings.Split(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		text, first := strings.TrimLeft(lines[i], " \t\f"), i
		if text == "" || text[0] == '#' || text[0] == '!' {
			continue
		}
		var whole strings.Builder
		for whole.WriteString(text); continues(text) && i+1 < len(lines); whole.WriteString(text) {
			i++
			text = strings.TrimLeft(lines[i], " \t\f")
		}
		text = whole.String()
		end := 0
		for end < len(text) && strings.IndexByte(" \t\f=:", text[end]) < 0 {
			if text[end] == '\\' {
				end++
			}
			end++
		}
		end = min(end, len(text))
		name, ok := unescape(text[:end])
		value := strings.TrimLeft(text[end:], " \t\f")
		if len(value) > 0 && (value[0] == '=' || value[0] == ':') {
			value = strings.TrimLeft(value[1:], " \t\f")
		}
		if !ok || len(name) > 256 {
			continue
		}
		c := candidate{name: string(name), line: first + 1, lines: i - first + 1, shown: clean(string(name)) + "=" + removed}
		if plain, ok := unescape(value); ok {
			c.values = [][]byte{plain}
			c.literal()
		} else {
			c.refuse = refusedAt(c, "has an escape that is not complete", "mend the file")
		}
		if out = append(out, c); len(out) > maxSet {
			return nil, errMany
		}
	}
	return out, nil
}

// continues says that a line ends with an odd number of backslashes.
func continues(line string) bool {
	return (len(line)-len(strings.TrimRight(line, `\`)))%2 == 1
}

// unescape reads the escapes of properties; those of UTF-16 pairs are joined.
func unescape(s string) ([]byte, bool) {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out = append(out, s[i])
			continue
		}
		if i++; i == len(s) {
			break // it joined a line that is not there
		}
		if at := strings.IndexByte("tnrf", s[i]); at >= 0 {
			out = append(out, "\t\n\r\f"[at])
			continue
		}
		if s[i] != 'u' {
			out = append(out, s[i])
			continue
		}
		if i+5 > len(s) {
			return nil, false
		}
		n, err := strconv.ParseUint(s[i+1:i+5], 16, 16)
		if err != nil || n >= 0xd800 && n < 0xe000 {
			return nil, false
		}
		out, i = utf8.AppendRune(out, rune(n)), i+4
	}
	return out, true
}

// unmarshalText reads a String of Ruby's Marshal, format 4.8.
func unmarshalText(data []byte) ([]byte, bool) {
	data, ok := bytes.CutPrefix(data, []byte("\x04\x08"))
	if rest, with := bytes.CutPrefix(data, []byte("I")); with {
		data = rest
	}
	if data, ok = cutOf(data, '"', ok); !ok || len(data) == 0 {
		return nil, false
	}
	size := int(int8(data[0]))
	data = data[1:]
	switch {
	case size > 4:
		size -= 5
	case size > 0:
		if len(data) < size {
			return nil, false
		}
		n := 0
		for i := range size {
			n |= int(data[i]) << (8 * i)
		}
		data, size = data[size:], n
	case size < 0:
		return nil, false
	}
	if size > len(data) {
		return nil, false
	}
	return data[:size], true
}

func cutOf(data []byte, b byte, ok bool) ([]byte, bool) {
	if !ok || len(data) == 0 || data[0] != b {
		return nil, false
	}
	return data[1:], true
}
