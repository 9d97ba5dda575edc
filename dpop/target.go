package dpop

import (
	"net/netip"
	"net/url"
	"strings"
)

// Target is the form of a URL in which htu is compared: RFC 3986, 6.2.2 and
// 6.2.3, without query and fragment. The scheme and the host are in lower case,
// the port of the scheme and dot segments are left out, the empty path is "/",
// and what need not be percent-encoded is not. ok is false for what is no http
// or https URL with a host, has a user, has a dot segment beside an encoded
// slash, or is longer than MaxURL.
func Target(raw string) (target string, ok bool) {
	if len(raw) > MaxURL {
		return "", false
	}
	for i := range len(raw) {
		if raw[i] <= ' ' || raw[i] >= 0x7f || raw[i] == '\\' {
			return "", false
		}
	}
	u, err := url.Parse(raw)
	if err != nil || u.User != nil || u.Opaque != "" {
		return "", false
	}
	return targetOf(u)
}

func targetOf(u *url.URL) (string, bool) {
	port := u.Port()
	scheme := strings.ToLower(u.Scheme)
	switch {
	case scheme != "http" && scheme != "https":
		return "", false
	case scheme == "http" && port == "80", scheme == "https" && port == "443":
		port = ""
	}
	host := strings.ToLower(u.Hostname())
	if host == "" || strings.ContainsAny(host, "%/?#@") {
		return "", false
	}
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() {
		host = "[" + addr.String() + "]"
	} else if strings.Contains(host, ":") {
		return "", false
	}
	if port != "" {
		host += ":" + port
	}
	path, ok := normalPath(u.EscapedPath())
	if !ok {
		return "", false
	}
	return scheme + "://" + host + path, true
}

const upperHex = "0123456789ABCDEF"

// normalPath decodes what is unreserved, writes other escapes in upper case and
// then removes dot segments (RFC 3986, 5.2.4).
func normalPath(escaped string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(escaped); i++ {
		c := escaped[i]
		if c != '%' {
			b.WriteByte(c)
			continue
		}
		if i+2 >= len(escaped) {
			return "", false
		}
		high, low := strings.IndexByte(upperHex, upper(escaped[i+1])), strings.IndexByte(upperHex, upper(escaped[i+2]))
		if high < 0 || low < 0 {
			return "", false
		}
		i += 2
		if c = byte(high<<4 | low); unreserved(c) {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', upperHex[high], upperHex[low]})
		}
	}
	path := withoutDots(b.String())
	return path, !hiddenDots(path)
}

// hiddenDots reports dot segments that some servers see and others do not:
// beside an encoded slash, a backslash or a parameter. Two who compare such a
// path do not know which resource it is.
func hiddenDots(path string) bool {
	if !strings.ContainsAny(path, "%;") {
		return false
	}
	for _, p := range strings.Split(hiddenSlashes.Replace(path), "/") {
		if p, _, _ = strings.Cut(p, ";"); p == "." || p == ".." {
			return true
		}
	}
	return false
}

// hiddenSlashes are what some servers take for a slash, and for a semicolon, in
// a path that normalPath wrote.
var hiddenSlashes = strings.NewReplacer("%2F", "/", "%5C", "/", "%3B", ";")

func withoutDots(path string) string {
	if path == "" {
		return "/"
	}
	parts := strings.Split(path, "/")[1:] // it begins with a slash
	out := make([]string, 0, len(parts))
	for i, p := range parts {
		last := i == len(parts)-1
		switch {
		case p == ".." && len(out) > 0:
			out = out[:len(out)-1]
		case p == "." || p == "..":
		default:
			out = append(out, p)
			continue
		}
		if last {
			out = append(out, "")
		}
	}
	return "/" + strings.Join(out, "/")
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'f' {
		return c - 'a' + 'A'
	}
	return c
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}
