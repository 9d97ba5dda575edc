package appsecret

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// hunk is a place to change.
type hunk struct {
	file        string // of a ring, to be deleted; "" for others
	line, lines int
	indent      string // white space before it
	old         string // without the secret
	app         string // the object of a Flask application whose secret it is; "" where it is not said
	older       bool   // it has secrets that are not in use any more
}

// edit is what changes in a file that was not read: what stands there usually,
// and what is to stand there.
type edit struct {
	file, where string
	old, new    []string
}

// Change returns what to change in the application, as a unified diff. Of the
// place a line that holds a secret is shown without it, and without what else
// stands there. A hunk of another file says where it belongs in place of line
// numbers. key is the name that the application will use.
func (f *Found) Change(path, key string) string {
	var b strings.Builder
	if f.Kind == KeyRing {
		for _, h := range f.hunks {
			fmt.Fprintf(&b, "--- %s/%s\n+++ /dev/null\n@@ -1 +0,0 @@\n-%s\n", path, h.file, removed)
		}
	} else if hunks := f.changed(); len(hunks) > 0 {
		fmt.Fprintf(&b, "--- %s\n+++ %s\n", path, path)
		shift := 0
		for _, h := range hunks {
			shift += f.write(&b, h, key, shift)
		}
	}
	last := ""
	for _, e := range f.edits(path, key) {
		if e.file != last && e.file != path {
			fmt.Fprintf(&b, "--- %s\n+++ %s\n", e.file, e.file)
		}
		last = e.file
		fmt.Fprintf(&b, "@@ %s @@\n", e.where)
		for _, line := range e.old {
			fmt.Fprintf(&b, "-%s\n", line)
		}
		for _, line := range e.new {
			fmt.Fprintf(&b, "+%s\n", line)
		}
	}
	return b.String()
}

// changed are the hunks of the place, in their order.
func (f *Found) changed() []hunk {
	if f.Adapter() == NoAdapter {
		return nil
	}
	return slices.SortedFunc(slices.Values(f.hunks), func(x, y hunk) int { return x.line - y.line })
}

// write writes one hunk of the place. It returns by how many lines it makes the
// file longer; shift is by how many those before it did.
func (f *Found) write(b *strings.Builder, h hunk, key string, shift int) int {
	var added []string
	if !h.older {
		added = f.instead(h, key)
	}
	if h.line == 0 {
		fmt.Fprintf(b, "@@ once it is decrypted @@\n-%s\n", h.old)
		return 0
	}
	at := h.line + shift
	if len(added) == 0 {
		at--
	}
	fmt.Fprintf(b, "@@ -%s +%s @@\n-%s%s\n", extent(h.line, h.lines), extent(at, len(added)), h.indent, h.old)
	for range h.lines - 1 {
		fmt.Fprintf(b, "-%s\n", removed)
	}
	for _, line := range added {
		fmt.Fprintf(b, "+%s%s\n", h.indent, line)
	}
	return len(added) - h.lines
}

func extent(line, lines int) string {
	if lines == 1 {
		return fmt.Sprint(line)
	}
	return fmt.Sprintf("%d,%d", line, lines)
}

// maxIndent bounds the white space that is shown before a line.
const maxIndent = 40

// indented notes how far the hunks of a file are indented.
func (f *Found) indented(data []byte) {
	for line := 1; len(data) > 0; line++ {
		text, rest, _ := bytes.Cut(data, []byte("\n"))
		for i := range f.hunks {
			if f.hunks[i].line == line {
				space := len(text) - len(bytes.TrimLeft(text, " \t"))
				f.hunks[i].indent = string(text[:min(space, maxIndent)])
			}
		}
		data = rest
	}
}
