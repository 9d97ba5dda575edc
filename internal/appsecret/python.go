package appsecret

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"claviger.dev/internal/recipe"
)

// Limits of what is read of Python.
const (
	maxTokens = 10_000 // of one statement; one with more is passed over
	maxNested = 20     // parentheses around a value
)

// token is a piece of a Python statement.
type token struct {
	kind  byte   // 'n' a name or number, 's' a string, else the character itself
	text  string // of a name; the quoted source of a string
	line  int
	depth int // of brackets around it
}

// flavour tells by its words which framework a Python file is for, "" where
// they do not.
func flavour(data []byte) recipe.Set {
	lower := bytes.ToLower(data)
	django := bytes.Contains(lower, []byte("django")) || bytes.Contains(data, []byte("INSTALLED_APPS"))
	flask := bytes.Contains(lower, []byte("flask"))
	switch {
	case django && !flask:
		return recipe.Django
	case flask && !django:
		return recipe.Flask
	}
	return ""
}

// readPython finds literals that are assigned to the names of secrets, and to
// extra. It reads tokens and runs nothing: what is not a literal is refused.
func readPython(data []byte, extra string) ([]candidate, error) {
	names := []string{"SECRET_KEY", "SECRET_KEY_FALLBACKS"}
	if extra != "" && !slices.Contains(names, extra) {
		names = append(names, extra)
	}
	var out []candidate
	var blocks []block
	s := scanner{src: data, line: 1}
	for {
		statement, indent, ok := s.statement()
		if !ok {
			return out, nil
		}
		if len(statement) == 0 {
			continue
		}
		for len(blocks) > 0 && blocks[len(blocks)-1].indent >= indent {
			blocks = blocks[:len(blocks)-1]
		}
		found := assigned(statement, names)
		for i := range found {
			for _, word := range append(words(blocks), statement[0].text) {
				if slices.Contains([]string{"if", "elif", "else", "try", "except", "finally", "for", "while", "with"}, word) {
					found[i].block = word
				}
			}
		}
		if out = append(out, found...); len(out) > 1000 {
			return out, nil
		}
		if last := statement[len(statement)-1]; last.kind == ':' && len(blocks) < 100 {
			blocks = append(blocks, block{indent, statement[0].text})
		}
	}
}

// block is a compound statement that is open.
type block struct {
	indent int
	word   string
}

func words(blocks []block) []string {
	var out []string
	for _, b := range blocks {
		out = append(out, b.word)
	}
	return out
}

// assigned finds what one statement assigns to the names.
func assigned(tokens []token, names []string) []candidate {
	var out []candidate
	for i, t := range tokens {
		name, from, shown, app := "", 0, "", ""
		next := func(n int) token {
			if i+n < len(tokens) {
				return tokens[i+n]
			}
			return token{}
		}
		switch {
		case t.kind == 'n' && (slices.Contains(names, t.text) || t.text == "secret_key" && i > 0 && tokens[i-1].kind == '.'):
			name, from, shown = t.text, i+1, t.text
			if i == 0 && from < len(tokens) && tokens[from].kind == ':' { // an annotation
				for from < len(tokens) && tokens[from].kind != '=' {
					from++
				}
			}
			if t.text == "secret_key" {
				app = object(tokens[:i-1])
				name, shown = "SECRET_KEY", strings.TrimPrefix(app+".secret_key", ".")
			}
		case t.kind == 's' && next(1).kind == ']':
			if text, ok := unquote(t.text); ok && slices.Contains(names, string(text)) {
				name, from, shown = string(text), i+2, string(text)
				if i > 0 {
					config := object(tokens[:i-1])
					shown = fmt.Sprintf("%s[%q]", config, text)
					app, _ = strings.CutSuffix(config, ".config")
					if app == config {
						app = ""
					}
				}
			}
		}
		if name == "" || from >= len(tokens) {
			continue
		}
		c := candidate{name: name, line: t.line, lines: 1, shown: shown + " = " + removed, app: app}
		switch op := tokens[from].kind; {
		case op == '=' && from+1 < len(tokens) && tokens[from+1].kind != '=':
			c.value(tokens[from+1:], tokens[from].depth)
		case strings.IndexByte("+-*/%|&", op) >= 0 && from+1 < len(tokens) && tokens[from+1].kind == '=':
			c.refuse = refusedAt(c, "is put together from several values", "adopt the whole through standard input")
		default:
			continue
		}
		out = append(out, c)
	}
	return out
}

// object returns the names, with dots between them, that tokens end with.
func object(tokens []token) string {
	out := ""
	for n := len(tokens); n > 0 && tokens[n-1].kind == 'n'; n -= 2 {
		out = strings.TrimSuffix(tokens[n-1].text+"."+out, ".")
		if n < 2 || tokens[n-2].kind != '.' || len(out) > 100 {
			return out
		}
	}
	return ""
}

// value reads the value that begins with the first token, up to the end of the
// statement or of the argument.
func (c *candidate) value(tokens []token, depth int) {
	end := slices.IndexFunc(tokens, func(t token) bool {
		return t.depth < depth || t.depth == depth && (t.kind == ';' || depth > 0 && t.kind == ',')
	})
	if end >= 0 {
		tokens = tokens[:end]
	}
	if len(tokens) == 0 {
		c.refuse = refusedAt(*c, "has no value", "mend the file")
		return
	}
	c.lines = tokens[len(tokens)-1].line - c.line + 1
	for range maxNested {
		if n := len(tokens); n < 2 || tokens[0].kind != '(' || tokens[n-1].kind != ')' || slices.ContainsFunc(tokens[1:n-1], func(t token) bool {
			return t.depth <= tokens[0].depth || t.depth == tokens[0].depth+1 && t.kind == ','
		}) {
			break
		}
		tokens = tokens[1 : len(tokens)-1]
	}
	if text, ok := concatenated(tokens); ok {
		c.values = [][]byte{text}
		return
	}
	if n := len(tokens); n >= 2 && (tokens[0].kind == '[' && tokens[n-1].kind == ']' || tokens[0].kind == '(' && tokens[n-1].kind == ')') {
		if c.elements(tokens[1:n-1], tokens[0].depth+1) {
			c.list = true
			return
		}
	}
	c.values = nil
	for _, t := range tokens {
		if t.kind == 'n' && slices.Contains([]string{"environ", "getenv", "env", "config"}, t.text) {
			c.refuse = refusedAt(*c, "is taken from the environment: it does not stand here", "adopt from where the environment is set, such as a .env file, or through standard input")
			return
		}
	}
	c.refuse = refusedAt(*c, "is no literal, and nothing is run to find its value", "adopt it through standard input: python -c 'from the_module import NAME; print(NAME, end=\"\")'")
}

// elements reads the texts of a list.
func (c *candidate) elements(tokens []token, depth int) bool {
	for len(tokens) > 0 {
		end := slices.IndexFunc(tokens, func(t token) bool { return t.depth == depth && t.kind == ',' })
		rest := []token(nil)
		if end < 0 {
			end = len(tokens)
		} else {
			rest = tokens[end+1:]
		}
		text, ok := concatenated(tokens[:end])
		if !ok || len(c.values) == maxListed {
			return false
		}
		c.values, tokens = append(c.values, text), rest
	}
	return true
}

// concatenated reads string literals that stand beside each other, or with plus
// signs between.
func concatenated(tokens []token) ([]byte, bool) {
	var out []byte
	want := true // a string is due
	for _, t := range tokens {
		switch {
		case t.kind == 's':
			text, ok := unquote(t.text)
			if !ok {
				return nil, false
			}
			out, want = append(out, text...), false
		case t.kind == '+' && !want:
			want = true
		default:
			return nil, false
		}
	}
	return out, !want
}

// unquote reads a string literal: str in UTF-8, or bytes. One with values in it,
// or with a character by its name, is not read.
func unquote(text string) ([]byte, bool) {
	open := strings.IndexAny(text, `"'`)
	prefix, body := strings.ToLower(text[:open]), text[open:]
	quotes := 1
	if len(body) >= 6 && body[1] == body[0] && body[2] == body[0] {
		quotes = 3
	}
	body = body[quotes : len(body)-quotes]
	binary := strings.Contains(prefix, "b")
	switch {
	case strings.ContainsAny(prefix, "ft"):
		return nil, false
	case strings.Contains(prefix, "r"):
		return []byte(body), true
	}
	out := make([]byte, 0, len(body))
	for i := 0; i < len(body); i++ {
		if body[i] != '\\' || i+1 == len(body) {
			out = append(out, body[i])
			continue
		}
		i++
		if at := strings.IndexByte(`\'"abfnrtv`, body[i]); at >= 0 {
			out = append(out, "\\'\"\a\b\f\n\r\t\v"[at])
			continue
		}
		digits, base := 0, 16
		switch body[i] {
		case '\n':
			continue
		case 'x':
			digits = 2
		case 'u':
			digits = 4
		case 'U':
			digits = 8
		}
		if binary && digits > 2 {
			digits = 0
		}
		from := i + 1
		if body[i] >= '0' && body[i] <= '7' {
			from, base = i, 8
			for digits < 3 && i+digits < len(body) && body[i+digits] >= '0' && body[i+digits] <= '7' {
				digits++
			}
		}
		switch {
		case digits == 0 && body[i] == 'N' && !binary:
			return nil, false
		case digits == 0: // Python leaves the backslash
			out = append(out, '\\', body[i])
			continue
		case from+digits > len(body):
			return nil, false
		}
		n, err := strconv.ParseUint(body[from:from+digits], base, 32)
		if err != nil || n > utf8.MaxRune || n >= 0xd800 && n < 0xe000 && !binary {
			return nil, false
		}
		if i = from + digits - 1; binary {
			out = append(out, byte(n))
		} else {
			out = utf8.AppendRune(out, rune(n))
		}
	}
	return out, true
}

// scanner cuts Python source into statements.
type scanner struct {
	src    []byte
	at     int
	line   int
	tokens []token // of the last statement
}

// statement returns the tokens of the next logical line, and how far it is
// indented; none of one that has too many. They are good until the next call.
// It is false at the end.
func (s *scanner) statement() (tokens []token, indent int, ok bool) {
	if s.at >= len(s.src) {
		return nil, 0, false
	}
	for s.at < len(s.src) && (s.src[s.at] == ' ' || s.src[s.at] == '\t') {
		if indent++; s.src[s.at] == '\t' {
			indent = indent/8*8 + 8
		}
		s.at++
	}
	depth, count := 0, 0
	tokens = s.tokens[:0]
	defer func() { s.tokens = tokens }()
	for s.at < len(s.src) {
		b := s.src[s.at]
		switch {
		case b == '\n':
			s.at++
			s.line++
			if depth == 0 {
				return tokens, indent, true
			}
		case b == '#':
			for s.at < len(s.src) && s.src[s.at] != '\n' {
				s.at++
			}
		case b == ' ' || b == '\t' || b == '\r' || b == '\f':
			s.at++
		case b == '\\' && s.continued():
		default:
			t := s.token(b)
			if strings.IndexByte(")]}", t.kind) >= 0 && depth > 0 {
				depth--
			}
			t.depth = depth
			if strings.IndexByte("([{", t.kind) >= 0 {
				depth++
			}
			if count++; count <= maxTokens {
				tokens = append(tokens, t)
			} else {
				tokens = tokens[:0]
			}
		}
	}
	return tokens, indent, true
}

// continued passes over a backslash at the end of a line.
func (s *scanner) continued() bool {
	rest := s.src[s.at+1:]
	if rest = bytes.TrimPrefix(rest, []byte("\r")); len(rest) == 0 || rest[0] != '\n' {
		return false
	}
	s.at = len(s.src) - len(rest) + 1
	s.line++
	return true
}

// token reads one that begins with b.
func (s *scanner) token(b byte) token {
	start, line := s.at, s.line
	for s.at < len(s.src) && (s.src[s.at] == '_' || s.src[s.at] >= 0x80 || isAlnum(s.src[s.at])) {
		s.at++
	}
	name := string(s.src[start:s.at])
	if s.at < len(s.src) && (s.src[s.at] == '"' || s.src[s.at] == '\'') && len(name) <= 2 && strings.Trim(strings.ToLower(name), "rbuft") == "" {
		kind := byte('"') // one that does not end, and is no literal
		if s.quoted() {
			kind = 's'
		}
		return token{kind: kind, text: string(s.src[start:s.at]), line: line}
	}
	if name != "" {
		return token{kind: 'n', text: name, line: line}
	}
	s.at++
	return token{kind: b, line: line}
}

func isAlnum(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

// quoted passes over a string, whose quote is next. It is false when the string
// does not end.
func (s *scanner) quoted() bool {
	quote := s.src[s.at : s.at+1]
	if triple := bytes.Repeat(quote, 3); bytes.HasPrefix(s.src[s.at:], triple) {
		quote = triple
	}
	for s.at += len(quote); s.at < len(s.src); s.at++ {
		switch {
		case bytes.HasPrefix(s.src[s.at:], quote):
			s.at += len(quote)
			return true
		case s.src[s.at] == '\\':
			if s.at++; s.at < len(s.src) && s.src[s.at] == '\n' {
				s.line++
			}
		case s.src[s.at] == '\n':
			if len(quote) == 1 {
				return false
			}
			s.line++
		}
	}
	s.at = min(s.at, len(s.src))
	return false
}
