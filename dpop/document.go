package dpop

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"
)

// maxDepth is how deeply a proof's JSON may nest: the key is one level down.
const maxDepth = 4

var (
	errJSON   = errors.New("not one JSON object with each member once")
	errBase64 = errors.New("not base64url without padding")
)

// decode undoes base64url in its only form (RFC 7515, 2).
func decode(text string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || bytes.ContainsAny([]byte(text), "\r\n") { // which the decoder skips
		return nil, errBase64
	}
	return b, nil
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// object reads a JSON object. Members are told by their exact names, and one
// that comes twice is refused at any level: two readers of the proof must not
// see two proofs.
func object(doc []byte, depth int) (map[string]any, error) {
	if !utf8.Valid(doc) {
		return nil, errJSON
	}
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	v, err := value(d, depth)
	if err != nil {
		return nil, errJSON
	}
	members, ok := v.(map[string]any)
	if _, err := d.Token(); !ok || !errors.Is(err, io.EOF) {
		return nil, errJSON
	}
	return members, nil
}

// value reads one value with everything in it, nested as deeply as is left.
func value(d *json.Decoder, depth int) (any, error) {
	t, err := d.Token()
	delim, opens := t.(json.Delim)
	if err != nil || !opens {
		return t, err
	}
	if depth--; depth < 0 {
		return nil, errJSON
	}
	var out any
	if delim == '{' {
		out, err = members(d, depth)
	} else {
		out, err = elements(d, depth)
	}
	if err == nil {
		_, err = d.Token() // the end that belongs to the beginning: the decoder saw to it
	}
	return out, err
}

func members(d *json.Decoder, depth int) (map[string]any, error) {
	out := make(map[string]any, 8)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if _, twice := out[name]; !ok || twice {
			return nil, errJSON
		}
		if out[name], err = value(d, depth); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func elements(d *json.Decoder, depth int) ([]any, error) {
	var out []any
	for d.More() {
		v, err := value(d, depth)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// text returns a member that is a string, "" where it is not there or is not one.
func text(members map[string]any, name string) string {
	s, _ := members[name].(string)
	return s
}
