package appsecret

import (
	"fmt"
	"slices"
	"strings"

	"claviger.dev/internal/recipe"
)

// hunk is a place to change.
type hunk struct {
	file        string // of a ring, to be deleted; "" for others
	line, lines int
	old         string // without the secret
	older       bool   // it has secrets that are not in use any more
}

// Change returns what to change in the place, as a unified diff of its path. A
// line that holds a secret is shown without it, and without what else stands
// there. key is the name that the application will use.
func (f *Found) Change(path, key string) string {
	var b strings.Builder
	if f.Kind == KeyRing {
		for _, h := range f.hunks {
			fmt.Fprintf(&b, "--- %s/%s\n+++ /dev/null\n@@ -1 +0,0 @@\n-%s\n", path, h.file, removed)
		}
		return b.String()
	}
	fmt.Fprintf(&b, "--- %s\n+++ %s\n", path, path)
	hunks := slices.SortedFunc(slices.Values(f.hunks), func(x, y hunk) int { return x.line - y.line })
	shift := 0
	for _, h := range hunks {
		var added []string
		if !h.older {
			added = f.instead(h, key)
		}
		if h.line == 0 {
			fmt.Fprintf(&b, "-%s\n", h.old)
			continue
		}
		at := h.line + shift
		if len(added) == 0 {
			at--
		}
		fmt.Fprintf(&b, "@@ -%s +%s @@\n-%s\n", extent(h.line, h.lines), extent(at, len(added)), h.old)
		for range h.lines - 1 {
			fmt.Fprintf(&b, "-%s\n", removed)
		}
		for _, line := range added {
			fmt.Fprintf(&b, "+%s\n", line)
		}
		shift += len(added) - h.lines
	}
	return b.String()
}

func extent(line, lines int) string {
	if lines == 1 {
		return fmt.Sprint(line)
	}
	return fmt.Sprintf("%d,%d", line, lines)
}

// instead is what stands in the place afterwards.
func (f *Found) instead(h hunk, key string) []string {
	switch {
	case f.Kind == Python && f.Set == recipe.Django:
		return Lines(f.Set, key)
	case f.Kind == WebConfig && f.Set == recipe.ASPNET:
		line, _, _ := strings.Cut(h.old, " ")
		return []string{line + ` compatibilityMode="Framework45" dataProtectorType="Claviger.AspNet.CustodyDataProtector, Claviger.AspNet" />`}
	}
	return nil
}

// Lines are what an application of a recipe set has in place of its secret.
func Lines(set recipe.Set, key string) []string {
	switch set {
	case recipe.Django:
		return []string{"from claviger.django import random_secret", "SECRET_KEY = random_secret()", fmt.Sprintf("CLAVIGER = {\"KEY\": %q}", key),
			`INSTALLED_APPS = ["claviger.django", *INSTALLED_APPS]  # below the list`}
	}
	return nil
}
