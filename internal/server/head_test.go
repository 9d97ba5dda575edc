package server

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"
)

// TestHead says which heads are read, and which are left to net/http.
func TestHead(t *testing.T) {
	t.Parallel()
	const usual = "Host: claviger\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
	for name, tc := range map[string]struct {
		text      string
		whole, ok bool
	}{
		"usual":                 {"POST /a HTTP/1.1\r\n" + usual + "\r\n{}", true, true},
		"of a general client":   {"POST /a HTTP/1.1\r\nAccept: */*\r\nUser-Agent: Ruby\r\nAccept-Encoding: gzip;q=1.0,deflate;q=0.6\r\nConnection: keep-alive\r\n" + usual + "\r\n", true, true},
		"other case":            {"POST /a HTTP/1.1\r\nhost: [::1]\r\ncontent-type: application/json\r\ncontent-length:0\r\n\r\n", true, false},
		"lower case":            {"POST /a HTTP/1.1\r\nhost: a.b:80\r\ncontent-type: application/json\r\ncontent-length:0\r\n\r\n", true, true},
		"begun":                 {"POST /a HTTP/1.1\r\nHost: cla", false, true},
		"nothing":               {"", false, true},
		"too long":              {string(bytes.Repeat([]byte("x"), maxHead)), false, false},
		"GET":                   {"GET /a HTTP/1.1\r\n" + usual + "\r\n", false, false},
		"HTTP/1.0":              {"POST /a HTTP/1.0\r\n" + usual + "\r\n", false, false},
		"empty line before":     {"\r\nPOST /a HTTP/1.1\r\n" + usual + "\r\n", false, false},
		"bare line feeds":       {"POST /a HTTP/1.1\nHost: x\r\n" + usual + "\r\n", false, false},
		"folded":                {"POST /a HTTP/1.1\r\n" + usual + " x\r\n\r\n", false, false},
		"space before colon":    {"POST /a HTTP/1.1\r\nAccept : x\r\n" + usual + "\r\n", false, false},
		"tab":                   {"POST /a HTTP/1.1\r\nAccept:\tx\r\n" + usual + "\r\n", false, false},
		"no host":               {"POST /a HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n", true, false},
		"no length":             {"POST /a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\r\n", true, false},
		"two lengths":           {"POST /a HTTP/1.1\r\n" + usual + "Content-Length: 2\r\n\r\n", false, false},
		"length with a sign":    {"POST /a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: +2\r\n\r\n", false, false},
		"length that is long":   {"POST /a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 65537\r\n\r\n", false, false},
		"length of many digits": {"POST /a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 000002\r\n\r\n", false, false},
		"chunked":               {"POST /a HTTP/1.1\r\n" + usual + "Transfer-Encoding: chunked\r\n\r\n", false, false},
		"expectation":           {"POST /a HTTP/1.1\r\n" + usual + "Expect: 100-continue\r\n\r\n", false, false},
		"close":                 {"POST /a HTTP/1.1\r\n" + usual + "Connection: close\r\n\r\n", false, false},
		"Connect's own":         {"POST /a HTTP/1.1\r\n" + usual + "Connect-Timeout-Ms: 5\r\n\r\n", false, false},
		"other content":         {"POST /a HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\nContent-Length: 2\r\n\r\n", true, false},
		"control in a value":    {"POST /a HTTP/1.1\r\n" + usual + "Accept: \x00\r\n\r\n", false, false},
	} {
		h, ok := readHead([]byte(tc.text))
		if ok != tc.ok || h.whole != tc.whole {
			t.Errorf("%s: got whole %v, ok %v", name, h.whole, ok)
		}
	}
}

// FuzzHead holds what is read of a head against net/http: the same request,
// that ends at the same byte.
func FuzzHead(f *testing.F) {
	for _, text := range []string{
		"POST /claviger.v1.StateService/Unprotect HTTP/1.1\r\nHost: claviger\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}POST",
		"POST /a HTTP/1.1\r\nAccept: */*\r\nUser-Agent: x\r\nAccept-Encoding: a\r\nConnection: keep-alive\r\nhost: x:1\r\nContent-type: application/json\r\nContent-length: 0\r\n\r\n",
		"POST /a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST /a?b#c HTTP/1.1\r\nHost: x\r\nHost: y\r\nContent-Type: application/json\r\nContent-Length: 2, 2\r\n\r\n{}",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		h, ok := readHead(text)
		if !ok || !h.whole {
			return
		}
		methods := map[string]bool{"/claviger.v1.StateService/Unprotect": true, "/a": true}
		if !methods[string(h.path)] {
			return // goes to net/http
		}
		in := bytes.NewReader(text)
		buffered := bufio.NewReaderSize(in, 16)
		r, err := http.ReadRequest(buffered)
		if err != nil {
			t.Fatalf("net/http does not take %q: %v", text, err)
		}
		if r.Method != "POST" || r.URL.Path != string(h.path) || r.RequestURI != string(h.path) || r.ContentLength != int64(h.body) ||
			len(r.TransferEncoding) > 0 || r.Close || r.Trailer != nil || r.Header.Get("Expect") != "" || !simple(r) {
			t.Fatalf("net/http reads %q as %+v, and here it is %+v", text, r, h)
		}
		body, err := io.ReadAll(r.Body)
		if whole := h.size+h.body <= len(text); (err == nil) != whole {
			t.Fatalf("%q: the body is whole is %v, and net/http says %v", text, whole, err)
		} else if whole && !bytes.Equal(body, text[h.size:h.size+h.body]) {
			t.Fatalf("%q: net/http takes %q for the body", text, body)
		}
	})
}
