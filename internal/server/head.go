package server

import (
	"bytes"
	"strconv"
)

// maxHead bounds the head of a request that the local socket reads by itself.
const maxHead = 2 << 10

// head is the head of a request in the one form in which small clients send it.
type head struct {
	path  []byte
	size  int // of the head, with the empty line
	body  int // bytes that follow
	whole bool
}

// readHead reads the head at the begin of text. It is a strict subset of
// HTTP/1.1 (RFC 9112): POST, a length, JSON, and the few other headers below,
// each once and in no unusual form. whole is false when the head may go on past
// the end of text; ok is false for everything else, which is no judgement:
// net/http serves it.
func readHead(text []byte) (h head, ok bool) {
	end := bytes.Index(text, []byte("\r\n\r\n"))
	if end < 0 {
		return h, len(text) < maxHead
	}
	h.size = end + len("\r\n\r\n")
	if h.size > maxHead {
		return h, false
	}
	line, rest, _ := bytes.Cut(text[:end+2], []byte("\r\n"))
	line, post := bytes.CutPrefix(line, []byte("POST "))
	path, version := bytes.CutSuffix(line, []byte(" HTTP/1.1"))
	if !post || !version {
		return h, false
	}
	h.path, h.body = path, -1
	host, kind, seen := false, false, uint(0)
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, colon := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		if !colon || !plainText(value) {
			return h, false
		}
		n := -1
		switch {
		case bytes.EqualFold(name, []byte("Host")):
			n, host = 0, plainHost(value)
		case bytes.EqualFold(name, []byte("Content-Type")):
			n, kind = 1, string(value) == jsonType
		case bytes.EqualFold(name, []byte("Content-Length")):
			n = 2
			if h.body = plainLength(value); h.body < 0 {
				return h, false
			}
		case bytes.EqualFold(name, []byte("Connection")):
			if n = 3; !bytes.EqualFold(value, []byte("keep-alive")) {
				return h, false
			}
		case bytes.EqualFold(name, []byte("Accept")):
			n = 4
		case bytes.EqualFold(name, []byte("Accept-Encoding")):
			n = 5 // small answers are never compressed
		case bytes.EqualFold(name, []byte("User-Agent")):
			n = 6
		}
		if n < 0 || seen&(1<<n) != 0 {
			return h, false
		}
		seen |= 1 << n
	}
	h.whole = true
	return h, host && kind && h.body >= 0
}

// plainText reports printing ASCII that begins and ends with no space.
func plainText(value []byte) bool {
	for _, c := range value {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return len(value) > 0 && value[0] != ' ' && value[len(value)-1] != ' '
}

func plainHost(value []byte) bool {
	for _, c := range value {
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != ':' {
			return false
		}
	}
	return true
}

// plainLength reads the length of a small body, and is -1 for any other.
func plainLength(value []byte) int {
	if len(value) > 5 || len(value) > 1 && value[0] == '0' {
		return -1
	}
	n, err := strconv.ParseUint(string(value), 10, 32)
	if err != nil || n > small {
		return -1
	}
	return int(n)
}
