package proxy

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"claviger.dev/internal/state"
)

// The hidden fields of ASP.NET pages (Framework45). What each is made for names
// its page, so that the page must be known.

// page has the rules of the hidden fields of one page.
type page struct {
	rules map[string]*rule // by the name of the field
	body  int64            // the most bytes of a body that is rewritten
}

const (
	viewState  = "__VIEWSTATE"
	validation = "__EVENTVALIDATION"
)

// hidden finds the inputs in a page. ASP.NET writes attributes in double quotes,
// and what is in these fields is base64.
var (
	hidden      = regexp.MustCompile(`(?i)<input\b[^<>]*\bname="(?:__VIEWSTATE|__EVENTVALIDATION)"[^<>]*>`)
	hiddenName  = regexp.MustCompile(`(?i)\bname="([^"]*)"`)
	hiddenValue = regexp.MustCompile(`(?i)\bvalue="([^"]*)"`)
)

// pageOf returns the page that a path of a URL is, or nil.
func (w *WebForms) pageOf(path string) *page {
	if w == nil {
		return nil
	}
	file, known := w.Pages[path]
	if !known {
		i := strings.Index(strings.ToLower(path), ".aspx")
		if i < 0 || i+5 < len(path) && path[i+5] != '/' {
			return nil
		}
		file = path[:i+5]
	}
	dir := file[:max(1, strings.LastIndexByte(file, '/'))]
	root := strings.TrimRight(w.Application, "/") + "/"
	if len(file) < len(root) || !strings.EqualFold(file[:len(root)], root) {
		return nil
	}
	class := strings.NewReplacer("/", "_", ".", "_", "-", "_", " ", "_").Replace(file[len(root):])
	purposes := []string{"TemplateSourceDirectory: " + strings.ToUpper(dir), "Type: " + strings.ToUpper(class)}
	made := func(format state.Format, purpose string) *rule {
		return &rule{name: viewState, key: w.Key, format: format,
			params: Params{Purpose: purpose, Purposes: purposes, Digest: w.Digest, Cipher: w.Cipher, Encoding: "base64"}}
	}
	return &page{body: w.Body, rules: map[string]*rule{
		viewState:  made(state.ASPNETViewState, ""),
		validation: made(state.ASPNETProtect, "WebForms.ClientScriptManager.EventValidation"),
	}}
}

// document is a text with places in it that are replaced.
type document struct {
	text   []byte
	places []place
}

// place is a hidden field in a text: from start to end stands its value, of
// which count says the length where that is written elsewhere.
type place struct {
	start, end           int
	countStart, countEnd int
	token                *token
	value                *field
	escape               func(string) string
}

// add notes a field at a place. What is empty is no token.
func (d *document) add(p *page, name, value string, at place) {
	r := p.rules[strings.ToUpper(name)]
	if r == nil || value == "" {
		return
	}
	at.value = &field{name: name, value: value}
	at.token = &token{kind: kind{rule: r}, text: []byte(value), fields: []*field{at.value}}
	d.places = append(d.places, at)
}

func (d *document) tokens() []*token { return each(d.places, func(p place) *token { return p.token }) }

// valid reports whether every field is.
func (d *document) valid() bool {
	return !slices.ContainsFunc(d.places, func(p place) bool { return p.value.drop })
}

// bytes is the text with what became of the fields.
func (d *document) bytes() []byte {
	var out bytes.Buffer
	from := 0
	for _, p := range d.places {
		if p.countEnd > 0 {
			out.Write(d.text[from:p.countStart])
			out.WriteString(strconv.Itoa(len(p.value.value)))
			from = p.countEnd
		}
		out.Write(d.text[from:p.start])
		out.WriteString(p.escape(p.value.value))
		from = p.end
	}
	out.Write(d.text[from:])
	return out.Bytes()
}

func plainly(s string) string { return s }

// html finds the hidden fields of a page.
func (p *page) html(text []byte) *document {
	d := &document{text: text}
	for _, tag := range hidden.FindAllIndex(text, -1) {
		in := text[tag[0]:tag[1]]
		name, value := hiddenName.FindSubmatch(in), hiddenValue.FindSubmatchIndex(in)
		if value == nil {
			continue
		}
		start, end := tag[0]+value[2], tag[0]+value[3]
		d.add(p, string(name[1]), string(text[start:end]), place{start: start, end: end, escape: plainly})
	}
	return d
}

// delta finds the hidden fields in the answer to a partial update: parts of
// length|type|id|content|, the length in UTF-16 units. ok is false when it is
// none.
func (p *page) delta(text []byte) (d *document, ok bool) {
	d = &document{text: text}
	for at := 0; at < len(text); {
		head := bytes.SplitN(text[at:], []byte("|"), 4)
		if len(head) < 4 {
			return d, len(bytes.TrimSpace(text[at:])) == 0
		}
		length, err := strconv.Atoi(string(head[0]))
		if err != nil || length < 0 {
			return d, false
		}
		start := at + len(head[0]) + len(head[1]) + len(head[2]) + 3
		end, ok := skip(text, start, length)
		if !ok || end == len(text) || text[end] != '|' {
			return d, false
		}
		if string(head[1]) == "hiddenField" {
			d.add(p, string(head[2]), string(text[start:end]), place{start: start, end: end, countStart: at, countEnd: at + len(head[0]), escape: plainly})
		}
		at = end + 1
	}
	return d, true
}

// skip returns where a text of so many UTF-16 units ends.
func skip(text []byte, start, units int) (end int, ok bool) {
	for i, c := range string(text[start:]) {
		if units <= 0 {
			return start + i, units == 0
		}
		units -= utf16.RuneLen(c)
	}
	return len(text), units == 0
}

// form finds the hidden fields in a form as urlencoded, or in a query. ok is
// false for a name that only ASP.NET understands.
func (p *page) form(text []byte) (d *document, ok bool) {
	d = &document{text: text}
	at := 0
	for pair := range bytes.SplitSeq(text, []byte("&")) {
		end := at + len(pair)
		name, value, _ := strings.Cut(string(pair), "=")
		if strings.Contains(strings.ToLower(name), "%u") {
			return d, false
		}
		name, err := url.QueryUnescape(name)
		decoded, errValue := url.QueryUnescape(value)
		if err == nil && p.rules[strings.ToUpper(name)] != nil {
			if errValue != nil {
				return d, false
			}
			d.add(p, name, decoded, place{start: end - len(value), end: end, escape: url.QueryEscape})
		}
		at = end + 1
	}
	return d, true
}

// multipart finds the hidden fields in a form as multipart/form-data.
func (p *page) multipart(text []byte, boundary string) (d *document, ok bool) {
	d = &document{text: text}
	mark := []byte("--" + boundary)
	if boundary == "" || !bytes.HasPrefix(text, mark) {
		return d, false
	}
	mark = append([]byte("\r\n"), mark...)
	at := len(mark) - 2
	for !bytes.HasPrefix(text[at:], []byte("--")) {
		head, _, ok := bytes.Cut(text[at:], []byte("\r\n\r\n"))
		start := at + len(head) + 4
		if !ok {
			return d, false
		}
		length := bytes.Index(text[start:], mark)
		if length < 0 {
			return d, false
		}
		end := start + length
		for line := range strings.SplitSeq(string(head), "\r\n") {
			header, rest, _ := strings.Cut(line, ":")
			_, params, err := mime.ParseMediaType(rest)
			if strings.EqualFold(strings.TrimSpace(header), "Content-Disposition") && err == nil && params["filename"] == "" {
				d.add(p, params["name"], string(text[start:end]), place{start: start, end: end, escape: plainly})
			}
		}
		at = end + len(mark)
	}
	return d, true
}

// posted finds the hidden fields in the body of a form.
func (p *page) posted(contentType string, text []byte) (d *document, ok bool) {
	kind, params, err := mime.ParseMediaType(contentType)
	switch {
	case err != nil:
		return nil, false
	case kind == "multipart/form-data":
		return p.multipart(text, params["boundary"])
	}
	return p.form(text)
}

// isForm reports whether a body is a form, as its type says.
func isForm(contentType string) bool {
	kind, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	kind = strings.TrimSpace(kind)
	return kind == "application/x-www-form-urlencoded" || kind == "multipart/form-data"
}

// isPage reports whether the body of an answer is a page, or what updates a part
// of one.
func isPage(res *http.Response) (page, delta bool) {
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if res.Body == http.NoBody || res.Request.Method == http.MethodHead {
		return false, false
	}
	delta = kind == "text/plain" && strings.EqualFold(res.Request.Header.Get("X-MicrosoftAjax"), "Delta=true")
	return kind == "text/html" || kind == "application/xhtml+xml", delta
}

// readBody reads a body whole, up to limit bytes.
func readBody(r io.Reader, limit int64) (text []byte, fits bool, err error) {
	text, err = io.ReadAll(io.LimitReader(r, limit+1))
	return text, int64(len(text)) <= limit, err
}
