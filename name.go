package claviger

import "strings"

// Limits of names and of the texts that travel with a key.
const (
	MaxNameLength    = 192 // bytes of a whole key name
	MaxSegmentLength = 63  // bytes of one segment of a key name
	MaxLabels        = 32  // labels of one key
	MaxTextLength    = 256 // bytes of an owner, a reason, a label
)

// Name names a key: environment, application and purpose joined by slashes,
// such as "prod/billing/session-cookie". Each segment is 1 to 63 characters of
// a-z, 0-9, '-', '_' and '.', and begins and ends with a letter or a digit.
type Name string

// ParseName checks a name that came from outside.
func ParseName(s string) (Name, error) {
	if len(s) > MaxNameLength {
		return "", Errorf(Invalid, "the key name is longer than 192 bytes", "shorten it")
	}
	segments := strings.Split(s, "/")
	if len(segments) != 3 {
		return "", Errorf(Invalid, "a key name has three segments", "use environment/application/purpose, such as prod/billing/session-cookie")
	}
	for _, seg := range segments {
		if !validSegment(seg) {
			return "", Errorf(Invalid, "a segment of the key name has a form that is not allowed",
				"use 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or digit, without '..'")
		}
	}
	return Name(s), nil
}

func validSegment(s string) bool {
	if len(s) == 0 || len(s) > MaxSegmentLength || strings.Contains(s, "..") {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || i == len(s)-1 || c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return true
}

// Environment returns the first segment.
func (n Name) Environment() string { env, _, _ := strings.Cut(string(n), "/"); return env }

// Application returns the second segment.
func (n Name) Application() string {
	_, rest, _ := strings.Cut(string(n), "/")
	app, _, _ := strings.Cut(rest, "/")
	return app
}

// Purpose returns the third segment.
func (n Name) Purpose() string { return string(n[strings.LastIndexByte(string(n), '/')+1:]) }

// Selector chooses keys by name: three segments, each a literal or "*". It
// never matches across segments, and "*" stands for a whole segment only.
type Selector string

// ParseSelector checks a selector that came from outside.
func ParseSelector(s string) (Selector, error) {
	segments := strings.Split(s, "/")
	if len(s) > MaxNameLength || len(segments) != 3 {
		return "", Errorf(Invalid, "a selector has three segments", "use environment/application/purpose, with * for any")
	}
	for _, seg := range segments {
		if seg != "*" && !validSegment(seg) {
			return "", Errorf(Invalid, "a segment of the selector has a form that is not allowed", "each segment is a literal or *")
		}
	}
	return Selector(s), nil
}

// Matches reports whether the selector chooses the name.
func (s Selector) Matches(n Name) bool {
	sel, name := string(s), string(n)
	for range 3 {
		var a, b string
		a, sel, _ = strings.Cut(sel, "/")
		b, name, _ = strings.Cut(name, "/")
		if a != "*" && a != b {
			return false
		}
	}
	return sel == "" && name == ""
}

// Environment returns the selector's first segment, which may be "*".
func (s Selector) Environment() string { return Name(s).Environment() }
