package appsecret

import (
	"bytes"
	"strings"
)

// readDotenv reads a .env file. Its readers (of Node, PHP, Python, Ruby) agree
// on most of it; a value that they read differently is refused.
func readDotenv(data []byte) ([]candidate, error) {
	var out []candidate
	for line := 1; len(data) > 0; line++ {
		text, rest, _ := bytes.Cut(data, []byte("\n"))
		name, value, ok := bytes.Cut(text, []byte("="))
		name = bytes.TrimSpace(bytes.TrimPrefix(bytes.TrimSpace(name), []byte("export ")))
		if !ok || !isName(name) {
			data = rest
			continue
		}
		c := candidate{name: string(name), line: line, lines: 1, shown: string(name) + "=" + removed}
		value = bytes.TrimSpace(value)
		if len(value) > 0 && strings.ContainsRune("\"'`", rune(value[0])) {
			from := bytes.IndexByte(data, '=') + 1
			from += bytes.IndexByte(data[from:], value[0])
			quoted, after, ok := quotedValue(data[from:])
			if !ok {
				c.refuse = refusedAt(c, "has a quote that does not end", "mend the file")
				return append(out, c), nil
			}
			c.lines += bytes.Count(quoted, []byte("\n"))
			line += c.lines - 1
			c.readQuoted(quoted, value[0])
			after, rest, _ = bytes.Cut(after, []byte("\n"))
			if after = bytes.TrimSpace(after); len(after) > 0 && after[0] != '#' {
				c.refuse = refusedAt(c, "goes on after its quotes, which not all readers of such files take alike", "mend the file")
			}
		} else {
			c.readPlain(value)
		}
		if out, data = append(out, c), rest; len(out) > maxSet {
			return nil, errMany
		}
	}
	return out, nil
}

// quotedValue returns what stands between the quote at the start and the next
// one that no backslash precedes, and what follows it.
func quotedValue(data []byte) (quoted, rest []byte, ok bool) {
	for i := 1; i < len(data); i++ {
		switch data[i] {
		case '\\':
			i++
		case data[0]:
			return data[1:i], data[i+1:], true
		}
	}
	return nil, nil, false
}

const askQuotes = "write it in single quotes if it has none, or adopt it through standard input"

func (c *candidate) readQuoted(value []byte, quote byte) {
	switch {
	case bytes.ContainsRune(value, '\\'):
		c.refuse = refusedAt(*c, "has a backslash in quotes, which not all readers of such files take alike", "adopt it through standard input")
	case quote != '\'' && reference(value) || quote == '`':
		c.refuse = refusedAt(*c, "refers to another variable, or some readers of such files would take it so", askQuotes)
	}
	c.values = [][]byte{bytes.Clone(value)}
}

func (c *candidate) readPlain(value []byte) {
	for i, b := range value {
		if b == '#' && (i == 0 || value[i-1] == ' ' || value[i-1] == '\t') {
			value = bytes.TrimSpace(value[:i])
			break
		}
	}
	switch {
	case bytes.ContainsRune(value, '#'):
		c.refuse = refusedAt(*c, "has a number sign, where some readers of such files begin a comment", askQuotes)
	case bytes.ContainsRune(value, '\\'):
		c.refuse = refusedAt(*c, "has a backslash, which not all readers of such files take alike", askQuotes)
	case reference(value):
		c.refuse = refusedAt(*c, "refers to another variable, or some readers of such files would take it so", askQuotes)
	}
	c.values = [][]byte{bytes.Clone(value)}
}

// reference says that a value has a dollar sign before what could be a name.
func reference(value []byte) bool {
	for i, b := range value {
		if b == '$' && i+1 < len(value) && (value[i+1] == '{' || value[i+1] == '(' || isName(value[i+1:i+2])) {
			return true
		}
	}
	return false
}

// isName says that a text can be the name of a variable.
func isName(name []byte) bool {
	for i, b := range name {
		letter := b == '_' || b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z'
		if !letter && (i == 0 || b != '.' && (b < '0' || b > '9')) {
			return false
		}
	}
	return len(name) > 0
}
