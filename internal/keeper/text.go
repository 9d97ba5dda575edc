package keeper

import (
	"errors"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"claviger.dev"
	"claviger.dev/internal/audit"
)

func asError(err error) (*claviger.Error, bool) { return errors.AsType[*claviger.Error](err) }

func addDetailText(r *audit.Record, name, text string) {
	if text == "" {
		return
	}
	if r.Detail == nil {
		r.Detail = map[string]string{}
	}
	r.Detail[name] = text
}

// addDetail adds to a number among the details.
func addDetail(r *audit.Record, name string, n uint64) {
	if n > 0 {
		setDetail(r, name, number(r.Detail[name], 0)+n)
	}
}

// setDetail sets a number among the details, unless it is 0.
func setDetail(r *audit.Record, name string, n uint64) {
	if n > 0 {
		addDetailText(r, name, strconv.FormatUint(n, 10))
	}
}

func number(text string, otherwise uint64) uint64 {
	if text == "" {
		return otherwise
	}
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return n
	}
	return otherwise
}

// printable makes one line of characters that print of a text of a device.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == '\ufffd' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " "))
}

// checkText refuses texts that are too long or do not print.
func checkText(what, text string) error {
	if len(text) > claviger.MaxTextLength || !utf8.ValidString(text) {
		return claviger.Errorf(claviger.Invalid, "the "+what+" is longer than 256 bytes or not UTF-8", "shorten it")
	}
	for _, r := range text {
		if !unicode.IsPrint(r) {
			return claviger.Errorf(claviger.Invalid, "the "+what+" has a character that does not print", "use plain text on one line")
		}
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if len(labels) > claviger.MaxLabels {
		return claviger.Errorf(claviger.Invalid, "there are more than 32 labels", "use fewer")
	}
	for name, text := range labels {
		if name == "" {
			return claviger.Errorf(claviger.Invalid, "a label has no name", "name it")
		}
		if err := checkText("label's name", name); err != nil {
			return err
		}
		if err := checkText("label", text); err != nil {
			return err
		}
	}
	return nil
}
