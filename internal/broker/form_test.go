package broker_test

import (
	"net/url"
	"strings"
	"testing"

	"claviger.dev/internal/broker"
)

func TestParseForm(t *testing.T) {
	t.Parallel()
	many := make([]string, 65)
	for i := range many {
		many[i] = strings.Repeat("a", i+1) + "=b"
	}
	for _, c := range []struct {
		name, text string
		good       bool
	}{
		{"empty", "", true},
		{"one", "grant_type=client_credentials", true},
		{"resource twice", "resource=https%3A%2F%2Fa&resource=https%3A%2F%2Fb", true},
		{"scope twice", "scope=a&scope=a", false},
		{"resource nine times", strings.Repeat("resource=a&", 9), false},
		{"a bad escape", "a=%g1", false},
		{"a semicolon", "a=b;c=d", false},
		{"a line break", "a=b%0ac", false},
		{"a zero byte", "a=b%00", false},
		{"no UTF-8", "a=%ff", false},
		{"many parameters", strings.Join(many, "&"), false},
		{"too long", "a=" + strings.Repeat("b", broker.MaxForm), false},
	} {
		if _, err := broker.ParseForm(c.text); (err == nil) != c.good {
			t.Errorf("%s: %v, want good %v", c.name, err, c.good)
		}
	}
	form, err := broker.ParseForm("scope=&state=x")
	if err != nil || form.Get("scope") != "" || form.Get("state") != "x" || len(form) != 1 {
		t.Errorf("a parameter without a value is there: %v %v", form, err)
	}
}

// FuzzParseForm checks that what is read says the same when it is written and
// read again, and that nothing stands twice that may not.
func FuzzParseForm(f *testing.F) {
	f.Add("grant_type=authorization_code&code=c&code_verifier=v&redirect_uri=https%3A%2F%2Fa%2Fb")
	f.Add("resource=https%3A%2F%2Fa&resource=https%3A%2F%2Fb&scope=a+b")
	f.Add("a=%00&a=%ff;&=")
	f.Fuzz(func(t *testing.T, text string) {
		form, err := broker.ParseForm(text)
		if err != nil {
			return
		}
		for name, all := range form {
			if len(all) > 1 && name != "resource" && name != "audience" {
				t.Errorf("%q stands %d times", name, len(all))
			}
		}
		again, err := broker.ParseForm(url.Values(form).Encode())
		if err != nil && len(url.Values(form).Encode()) <= broker.MaxForm {
			t.Fatalf("%q is read, and what it says is not: %v", text, err)
		}
		for name := range again {
			if again.Get(name) != form.Get(name) {
				t.Errorf("%q says %q and then %q", name, form.Get(name), again.Get(name))
			}
		}
	})
}
