package appsecret

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"

	"claviger.dev"
)

// decodeText returns a file's text as UTF-8 of its own, and what it was: UTF-8
// or UTF-16 in either byte order, with a mark at its start or without.
func decodeText(data []byte) ([]byte, string, error) {
	switch {
	case bytes.HasPrefix(data, []byte("\xef\xbb\xbf")):
		data = data[3:]
	case bytes.HasPrefix(data, []byte("\xff\xfe")):
		return decodeWide(data[2:], binary.LittleEndian, "UTF-16LE")
	case bytes.HasPrefix(data, []byte("\xfe\xff")):
		return decodeWide(data[2:], binary.BigEndian, "UTF-16BE")
	case len(data) >= 4 && data[0] != 0 && data[1] == 0 && data[3] == 0: // ASCII at the start, as in XML
		return decodeWide(data, binary.LittleEndian, "UTF-16LE")
	case len(data) >= 4 && data[0] == 0 && data[1] != 0 && data[2] == 0:
		return decodeWide(data, binary.BigEndian, "UTF-16BE")
	}
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size <= 1 || r == 0 {
			return nil, "", badText("UTF-8", i)
		}
		i += size
	}
	return bytes.Clone(data), "UTF-8", nil
}

func decodeWide(data []byte, order binary.ByteOrder, name string) ([]byte, string, error) {
	if len(data)%2 != 0 {
		return nil, "", badText(name, len(data)-1)
	}
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); i += 2 {
		r := rune(order.Uint16(data[i:]))
		if utf16.IsSurrogate(r) {
			low := rune(0)
			if i+4 <= len(data) {
				low = rune(order.Uint16(data[i+2:]))
			}
			if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
				return nil, "", badText(name, i)
			}
			i += 2
		}
		if r == 0 {
			return nil, "", badText(name, i)
		}
		out = utf8.AppendRune(out, r)
	}
	return out, name, nil
}

func badText(encoding string, offset int) error {
	return claviger.Errorf(claviger.Invalid, fmt.Sprintf("the file is not %s: see byte %d", encoding, offset), "look what the file is; text is read in UTF-8 and UTF-16")
}
