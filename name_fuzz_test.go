package claviger_test

import (
	"strings"
	"testing"

	"claviger.dev"
)

// A name that is accepted is three segments of the permitted characters, is
// itself a selector, and is chosen by the selectors made from it alone.
func FuzzName(f *testing.F) {
	for _, s := range []string{
		"prod/billing/session-cookie", "a/b/c", "prod/*/*", "*/*/*", "prod/../x", "a//b", "/a/b", "a/b/c/", "A/b/c",
		"a/b\x00/c", "a/b/c\n", "prod/billing", "-a/b/c", "a/b./c", strings.Repeat("a", 63) + "/b/c", strings.Repeat("a/", 1<<15),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		selector, err := claviger.ParseSelector(s)
		if err == nil && string(selector) != s {
			t.Errorf("the selector %q became %q", s, selector)
		}
		name, err := claviger.ParseName(s)
		if err != nil {
			return
		}
		if selector == "" || !selector.Matches(name) {
			t.Errorf("the name %q does not choose itself", s)
		}
		if got := name.Environment() + "/" + name.Application() + "/" + name.Purpose(); got != s || len(s) > claviger.MaxNameLength {
			t.Errorf("the name %q has the parts %q", s, got)
		}
		if strings.ContainsFunc(s, func(r rune) bool { return r > 'z' || r < '-' }) || strings.Contains(s, "..") {
			t.Errorf("the name %q was accepted", s)
		}
		other := claviger.Name(name.Environment() + "x/" + name.Application() + "/" + name.Purpose())
		if selector.Matches(other) || claviger.Selector(name.Environment()+"/*/*").Matches(other) || !claviger.Selector("*/*/*").Matches(name) {
			t.Errorf("selectors made from %q choose wrongly", s)
		}
	})
}
