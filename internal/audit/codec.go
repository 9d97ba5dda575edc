package audit

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// codec writes the members of a line, or reads them, so that one list of
// members serves both and they cannot disagree. Writing, buf is the line so
// far and nothing that is pointed to changes; reading, buf is what is left.
// After the first error every call does nothing.
type codec struct {
	buf      []byte
	decoding bool
	err      error
}

func (c *codec) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

func (c *codec) require(ok bool, rule string) {
	if !ok {
		c.fail("it does not hold that %s", rule)
	}
}

func (c *codec) literal(s string) {
	if !c.decoding {
		c.buf = append(c.buf, s...)
	} else if !c.skip(s) {
		c.fail("expected %s at %.40q", s, c.buf)
	}
}

// skip takes s from what is left, if it is there.
func (c *codec) skip(s string) bool {
	if c.err != nil || len(c.buf) < len(s) || string(c.buf[:len(s)]) != s {
		return false
	}
	c.buf = c.buf[len(s):]
	return true
}

// name writes `,"name":`, or takes it if it comes next.
func (c *codec) name(name string) bool {
	if !c.decoding {
		c.buf = append(append(append(c.buf, `,"`...), name...), `":`...)
		return true
	}
	n := len(name) + len(`,"":`)
	if c.err != nil || len(c.buf) < n || string(c.buf[2:2+len(name)]) != name ||
		c.buf[0] != ',' || c.buf[1] != '"' || c.buf[n-2] != '"' || c.buf[n-1] != ':' {
		return false
	}
	c.buf = c.buf[n:]
	return true
}

// text is a member that is left out when it is empty.
func text[T ~string](c *codec, name string, p *T, limit int) {
	if !c.decoding && *p == "" || !c.name(name) {
		return
	}
	if !c.decoding {
		c.buf = appendText(c.buf, string(*p), limit)
		return
	}
	*p = T(c.unquote(limit))
	c.require(*p != "" || c.err != nil, "an empty text is left out")
}

// required is a text that must be there.
func required[T ~string](c *codec, name string, p *T, limit int) {
	text(c, name, p, limit)
	if *p == "" || len(*p) > limit {
		c.fail("%s is missing or longer than %d bytes", name, limit)
	}
}

// number is a decimal member; one that is not required is left out when zero.
func number[T ~int | ~uint32 | ~uint64](c *codec, name string, p *T, limit uint64, required bool) {
	if !c.decoding {
		if *p == 0 && !required {
			return
		}
		if *p <= 0 || uint64(*p) > limit {
			c.fail("%s is not in its range", name)
		}
		c.name(name)
		c.buf = strconv.AppendUint(c.buf, uint64(*p), 10)
		return
	}
	if !c.name(name) {
		if required {
			c.fail("%s is missing", name)
		}
		return
	}
	n := c.digits()
	if n == 0 || n > limit {
		c.fail("%s is not in its range", name)
	}
	*p = T(n)
}

func (c *codec) digits() uint64 {
	i := 0
	for i < len(c.buf) && c.buf[i] >= '0' && c.buf[i] <= '9' {
		i++
	}
	n, err := strconv.ParseUint(string(c.buf[:i]), 10, 64)
	if err != nil {
		c.fail("read a number: %w", err)
	}
	c.buf = c.buf[i:]
	return n
}

// uid is a number that may be zero and is left out when negative.
func (c *codec) uid(p *int) {
	if !c.decoding && *p < 0 || !c.name("uid") {
		return
	}
	if !c.decoding {
		c.buf = strconv.AppendInt(c.buf, int64(*p), 10)
		return
	}
	n := c.digits()
	c.require(n <= 1<<32-1, "uid is in its range")
	*p = int(n)
}

// time is a required member: RFC 3339 in UTC with six decimals.
func (c *codec) time(p *time.Time) {
	if !c.name("time") {
		c.fail("the time is missing")
		return
	}
	if !c.decoding {
		t := p.UTC()
		c.require(t.Year() >= 1 && t.Year() <= 9999, "the year has four digits")
		c.buf = appendTime(c.buf, t)
		return
	}
	t, err := time.Parse(timeLayout, c.unquote(len(timeLayout)))
	if err != nil {
		c.fail("read the time: %w", err)
	}
	*p = t
}

// appendTime is AppendFormat with timeLayout, in quotes, at a fifth of its cost.
func appendTime(dst []byte, t time.Time) []byte {
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	dst = appendDigits(append(dst, '"'), year, 4)
	dst = appendDigits(append(dst, '-'), int(month), 2)
	dst = appendDigits(append(dst, '-'), day, 2)
	dst = appendDigits(append(dst, 'T'), hour, 2)
	dst = appendDigits(append(dst, ':'), minute, 2)
	dst = appendDigits(append(dst, ':'), second, 2)
	dst = appendDigits(append(dst, '.'), t.Nanosecond()/1000, 6)
	return append(dst, 'Z', '"')
}

func appendDigits(dst []byte, n, width int) []byte {
	for unit := [...]int{1, 10, 100, 1000, 10000, 100000}[width-1]; unit > 0; unit /= 10 {
		dst = append(dst, byte('0'+n/unit%10))
	}
	return dst
}

// bytes is a member of fixed size in hex; one that is not required is left
// out when all zero.
func (c *codec) bytes(name string, p []byte, required bool) {
	if !c.decoding {
		if required || !zero(p) {
			c.name(name)
			c.buf = append(c.buf, '"')
			c.buf = hex.AppendEncode(c.buf, p)
			c.buf = append(c.buf, '"')
		}
		return
	}
	if !c.name(name) {
		if required {
			c.fail("%s is missing", name)
		}
		return
	}
	raw, err := hex.DecodeString(c.unquote(2 * len(p)))
	if err != nil || len(raw) != len(p) {
		c.fail("%s is not %d bytes of hex", name, len(p))
	}
	copy(p, raw)
}

// detail is an object of texts, sorted by name.
func (c *codec) detail(p *map[string]string) {
	if !c.decoding {
		c.writeDetail(*p)
		return
	}
	if !c.name("detail") {
		return
	}
	c.literal("{")
	for last, sum := "", 0; c.err == nil; {
		name := c.unquote(MaxDetailName)
		c.literal(":")
		value := c.unquote(MaxDetailText)
		sum += len(value)
		c.require(name > last && isName(name), "details are sorted and well named")
		c.require(sum <= MaxDetailSum && len(*p) < MaxDetails, "details are within their limits")
		if *p == nil {
			*p = make(map[string]string)
		}
		(*p)[name], last = value, name
		if c.skip("}") {
			return
		}
		c.literal(",")
	}
}

func (c *codec) writeDetail(m map[string]string) {
	if len(m) == 0 {
		return
	}
	var room [MaxDetails]string
	names := room[:0]
	c.require(len(m) <= MaxDetails, "there are at most 16 details")
	for name := range m {
		c.require(isName(name) && len(name) <= MaxDetailName, "a detail is named with a-z, 0-9, '_', '-', '.'")
		names = append(names, name)
	}
	slices.Sort(names)
	c.name("detail")
	left := MaxDetailSum
	for i, name := range names {
		c.buf = append(c.buf, "{,"[min(i, 1)])
		value := clean(m[name], min(MaxDetailText, left))
		left -= len(value)
		c.buf = appendText(c.buf, name, MaxDetailName)
		c.buf = append(c.buf, ':')
		c.buf = appendText(c.buf, value, MaxDetailText)
	}
	c.buf = append(c.buf, '}')
}

// unquote takes one string: printable, valid UTF-8, where only '"' and '\'
// are escaped.
func (c *codec) unquote(limit int) string {
	c.literal(`"`)
	if c.err != nil {
		return ""
	}
	end := 0
	for end < len(c.buf) && c.buf[end] != '"' {
		if c.buf[end] == '\\' {
			end++
		}
		end++
	}
	if end >= len(c.buf) {
		c.fail("a string has no end")
		return ""
	}
	s := c.buf[:end]
	c.buf = c.buf[end+1:]
	out := string(s)
	if bytes.IndexByte(s, '\\') >= 0 {
		out = unescape.Replace(out)
	}
	if clean(out, limit) != out {
		c.fail("a text is too long or holds what a text may not: %.40q", out)
	}
	return out
}

// unescape undoes appendText; a wrong escape survives it and is caught when
// the line is encoded again.
var unescape = strings.NewReplacer(`\\`, `\`, `\"`, `"`)

// appendText appends a string in quotes, cleaned.
func appendText(dst []byte, s string, limit int) []byte {
	dst = append(dst, '"')
	if !isPlain(s, limit) {
		s = clean(s, limit)
		for i := strings.IndexAny(s, `"\`); i >= 0; i = strings.IndexAny(s, `"\`) {
			dst = append(append(dst, s[:i]...), '\\', s[i])
			s = s[i+1:]
		}
	}
	return append(append(dst, s...), '"')
}

// isPlain reports whether a text can be stored as it is.
func isPlain(s string, limit int) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return len(s) <= limit
}

// Clean returns a text as a record keeps it: see Record.
func Clean(s string) string { return clean(s, MaxText) }

// clean makes a text fit to be stored: valid, printable, at most limit bytes.
// It changes nothing that is so already.
func clean(s string, limit int) string {
	if isPlain(s, limit) {
		return s
	}
	const mark = "…"
	var out strings.Builder
	keep := 0 // of out, that leaves room for the mark
	for _, r := range s {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			r = utf8.RuneError
		}
		if out.Len() <= limit-len(mark) {
			keep = out.Len()
		}
		if out.Len()+utf8.RuneLen(r) > limit {
			return strings.Clone(out.String()[:keep]) + mark[:min(len(mark), limit-keep)/len(mark)*len(mark)]
		}
		out.WriteRune(r)
	}
	return out.String()
}

func isWord(s string) bool { return isName(s) && !strings.Contains(s, "_") }

// isName reports whether s is made of a-z, 0-9, '_', '-' and '.'.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return s != ""
}

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
