package claviger_test

import (
	"strings"
	"testing"

	"claviger.dev"
)

func TestEnrolmentCode(t *testing.T) {
	t.Parallel()
	code := claviger.NewEnrolmentCode([32]byte{1}, [32]byte{2})
	got, err := claviger.ParseEnrolmentCode(code.String())
	if err != nil || got != code {
		t.Fatalf("ParseEnrolmentCode = %v, %v, want %v", got, err, code)
	}
	for name, bad := range map[string]string{
		"empty":      "",
		"other form": "clv2" + strings.TrimPrefix(code.String(), "clv1"),
		"upper case": strings.ToUpper(code.String()),
		"cut":        code.String()[:len(code.String())-1],
		"longer":     code.String() + "0",
		"long":       strings.Repeat("clv1_", 1<<16),
		"space":      " " + code.String(),
	} {
		if _, err := claviger.ParseEnrolmentCode(bad); claviger.CodeOf(err) != claviger.Invalid {
			t.Errorf("%s: ParseEnrolmentCode = %v, want invalid", name, err)
		}
	}
}

func FuzzEnrolmentCode(f *testing.F) {
	f.Add(claviger.NewEnrolmentCode([32]byte{}, [32]byte{}).String())
	f.Add("clv1___")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := claviger.ParseEnrolmentCode(s); err == nil && c.String() != s {
			t.Errorf("%q was accepted and encodes to %q", s, c.String())
		}
	})
}
