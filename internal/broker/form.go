package broker

import (
	"net/url"
	"slices"
	"strings"

	"claviger.dev"
)

// Limits of a form.
const (
	MaxForm    = 64 << 10 // bytes
	maxFields  = 64
	maxState   = 1024 // bytes of state, which comes back as it is
	maxTargets = 8    // values of resource and of audience
)

// Form holds the parameters of a request. Each stands once, but resource and
// audience (RFC 8707, 2; RFC 8693, 2.1); one without a value is not there
// (RFC 6749, 3.1 and 3.2).
type Form map[string][]string

// ParseForm reads application/x-www-form-urlencoded, as it is in a body or in a
// query. What two readers might read in two ways is refused.
func ParseForm(text string) (Form, error) {
	if len(text) > MaxForm {
		return nil, refuse(InvalidRequest, "the form is longer than 64 KiB")
	}
	values, err := url.ParseQuery(text)
	if err != nil || len(values) > maxFields {
		return nil, refuse(InvalidRequest, "the form cannot be read, or has more than 64 parameters")
	}
	form := make(Form, len(values))
	for name, all := range values {
		several := name == "resource" || name == "audience"
		if len(all) > 1 && !several || len(all) > maxTargets {
			return nil, refuse(InvalidRequest, "the parameter %.32q stands more than once", name)
		}
		for _, value := range all {
			if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) {
				return nil, refuse(InvalidRequest, "the parameter %.32q has characters that no parameter has", name)
			}
			if value != "" {
				form[name] = append(form[name], value)
			}
		}
	}
	return form, nil
}

// Get returns a parameter, "" where it is not there.
func (f Form) Get(name string) string {
	if all := f[name]; len(all) > 0 {
		return all[0]
	}
	return ""
}

// words splits a space-delimited list, each entry once (RFC 6749, 3.3).
func words(list string) []string {
	out := strings.Fields(list)
	slices.Sort(out)
	return slices.Compact(out)
}

// targets are what the tokens are asked to be for: resource, an absolute URL
// without a fragment (RFC 8707, 2), and audience (RFC 8693, 2.1).
func (f Form) targets() ([]string, error) {
	for _, resource := range f["resource"] {
		u, err := url.Parse(resource)
		if err != nil || !u.IsAbs() || strings.Contains(resource, "#") {
			return nil, refuse(InvalidTarget, "resource is no absolute URL without a fragment")
		}
	}
	all := slices.Concat(f["resource"], f["audience"])
	for _, target := range all {
		if strings.HasSuffix(target, "*") || len(target) > claviger.MaxAudienceLength {
			return nil, refuse(InvalidTarget, "a token is for what is named in at most 512 bytes, and not for a pattern")
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}
