package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"claviger.dev"
)

// maxDocument bounds one document, in bytes.
const maxDocument = 1 << 20

// encode returns a record as a document with its checksum. The checksum
// covers what the record is, so that a document cannot stand in another's row.
func encode(kind, id string, v any) (document string, sum []byte, err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", nil, claviger.Errorf(claviger.Invalid, "the record cannot be stored", "check its values").Wrap(err)
	}
	if len(b) > maxDocument {
		return "", nil, claviger.Errorf(claviger.TooLarge, "the record is larger than 1 MiB", "shorten its lists and texts")
	}
	if badText(b) {
		return "", nil, errText
	}
	return string(b), checksum(kind, id, b), nil
}

// decode reads a document, strictly, after its checksum was found to hold.
func decode(kind, id, document string, sum []byte, v any) error {
	if !bytes.Equal(checksum(kind, id, []byte(document)), sum) {
		return damaged(kind, id, errors.New("the checksum does not hold"))
	}
	d := json.NewDecoder(bytes.NewReader([]byte(document)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return damaged(kind, id, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return damaged(kind, id, errors.New("more than one value"))
	}
	return nil
}

// checksum is the SHA-256 over kind, id and document, set apart by zero bytes,
// which neither kind nor id contains.
func checksum(kind, id string, document []byte) []byte {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s\x00%s\x00", kind, id)
	_, _ = h.Write(document)
	return h.Sum(nil)
}

// damaged is the error for a record that must not be used.
func damaged(kind, id string, err error) error {
	return claviger.Errorf(claviger.Internal, "a record of the store is damaged and is not used",
		"the server's log names it; restore the store from a backup").Wrap(fmt.Errorf("%s %q: %w", kind, id, err))
}

// badText reports whether a document that json.Marshal made holds a NUL, or
// the escape that stands for a byte that was not UTF-8.
func badText(document []byte) bool {
	for i := 0; i < len(document); i++ {
		if document[i] != '\\' {
			continue
		}
		rest := document[i:]
		if bytes.HasPrefix(rest, []byte(`\u0000`)) || bytes.HasPrefix(rest, []byte(`\ufffd`)) {
			return true
		}
		i++ // what is escaped begins no escape
	}
	return false
}
