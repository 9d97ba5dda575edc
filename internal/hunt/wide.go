package hunt

// leastWide is the number of characters from which on a stretch of UTF-16 is
// read, less than the shortest text of a key has.
const leastWide = 40

// utf16 reads stretches of ASCII in UTF-16, of either byte order, as the text
// that they are. The zeros between characters are the same in both.
func (s *scanner) utf16(l layer) {
	buf := l.buf
	wide := func(c int) bool { return c+2 < len(buf) && buf[c+1] == 0 && printable(buf[c]) && printable(buf[c+2]) }
	// Every stretch has one of the places that are looked at, a step apart.
	const step = 2*leastWide - 8
	for i, end := 0, 0; i+4 < len(buf); {
		from := i
		if !wide(from) {
			from++
		}
		if !wide(from) || !wide(from+2) {
			i += step
			continue
		}
		for from-2 >= end && wide(from-2) {
			from -= 2
		}
		text := append(s.narrow[l.depth][:0], buf[from])
		for end = from; wide(end); end += 2 {
			text = append(text, buf[end+2])
		}
		s.narrow[l.depth] = text
		i = end + 1
		if len(text) < leastWide || l.origin(from) >= s.job.to || l.origin(end) < s.job.from {
			continue
		}
		encoding := "utf-16"
		if l.encoding != "" {
			encoding = l.encoding + " " + encoding
		}
		s.layer(layer{buf: text, encoding: encoding, depth: l.depth + 1, stride: 8, cut: l.cut && from < 2, origin: func(i int) int { return l.origin(from + 2*i) }})
	}
}

// printable says that a byte is a character of text, or ends a line of it.
func printable(b byte) bool { return b >= ' ' && b <= '~' || b == '\n' || b == '\r' || b == '\t' }
