package p11d_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"claviger.dev/internal/p11d"
)

// TestEnvironment: configuration of the module comes through, and nothing that
// could be a secret or change how programs run.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	var o p11d.Options
	for text, ok := range map[string]bool{
		"SOFTHSM2_CONF=/etc/softhsm2.conf": true,
		"SOFTHSM2_CONF=softhsm2.conf":      false,
		"PIN=1234":                         false,
		"LD_PRELOAD=/tmp/x.so":             false,
		"GODEBUG=/x":                       false,
		"=/x":                              false,
		"SOFTHSM2_CONF":                    false,
	} {
		if err := o.SetEnvironment(text); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
	if diff := cmp.Diff([]string{"SOFTHSM2_CONF=/etc/softhsm2.conf"}, o.Environment); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
