package p11

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	claviger "claviger.dev"
)

// SecretSize is the size of a root slot's secret, in bytes.
const SecretSize = 32

const (
	maxReference = 1024
	maxWrapped   = 4096
	maxFault     = 2048
	maxTalk      = 1 + 2 + maxReference + maxWrapped
)

// The kinds of messages between claviger-unseal and `claviger-p11d -unseal`:
// u32 big-endian length of what follows, kind, body. Texts have a u16 length.
const (
	askWrap   = 'W' // secret -> toldWrapped
	askUnwrap = 'U' // reference, blob -> toldSecret
	askRemove = 'R' // reference -> toldDone
	askDevice = 'I' // -> toldDevice, JSON of claviger.Device
	told      = 'A' // reference, and what was asked for
	refused   = 'F' // code, message, hint
)

var errTalk = errors.New("a message of the talk with claviger-p11d has a form that is not allowed")

// Wrap has the token make a wrapping key of its own and encrypt the slot
// secret, of SecretSize bytes, under it. Errors have the code that the device
// process gave. Deadlines are the caller's.
func Wrap(rw io.ReadWriter, secret []byte) (blob []byte, reference string, err error) {
	if len(secret) != SecretSize {
		return nil, "", errTalk
	}
	reference, blob, err = ask(rw, askWrap, "", secret)
	if err == nil && (reference == "" || len(blob) == 0) {
		err = errTalk
	}
	return blob, reference, err
}

// Unwrap returns the slot secret, which the caller clears after use.
func Unwrap(rw io.ReadWriter, reference string, blob []byte) ([]byte, error) {
	_, secret, err := ask(rw, askUnwrap, reference, blob)
	if err == nil && len(secret) != SecretSize {
		clear(secret)
		return nil, errTalk
	}
	return secret, err
}

// Remove destroys the wrapping key of a slot. Nothing that it wrapped opens
// again.
func Remove(rw io.ReadWriter, reference string) error {
	_, _, err := ask(rw, askRemove, reference, nil)
	return err
}

// Device asks what the token is.
func Device(rw io.ReadWriter) (d claviger.Device, err error) {
	_, text, err := ask(rw, askDevice, "", nil)
	if err == nil && json.Unmarshal(text, &d) != nil {
		err = errTalk
	}
	return d, err
}

func ask(rw io.ReadWriter, kind byte, reference string, body []byte) (string, []byte, error) {
	if err := send(rw, kind, reference, body); err != nil {
		return "", nil, err
	}
	kind, reference, body, err := receive(rw)
	switch {
	case err != nil:
		return "", nil, err
	case kind == told:
		return reference, body, nil
	case kind == refused:
		return "", nil, decodeFault(reference, body)
	}
	return "", nil, errTalk
}

// RootToken is the device's side of the talk.
type RootToken interface {
	// Wrap makes a wrapping key and encrypts the secret under it.
	Wrap(secret []byte) (blob []byte, reference string, err error)
	// Unwrap decrypts what Wrap made.
	Unwrap(reference string, blob []byte) ([]byte, error)
	// Remove destroys the wrapping key.
	Remove(reference string) error
	// Device says what the token is.
	Device() (claviger.Device, error)
}

// ServeRoot answers until the peer closes, which is no error. It clears every
// secret after it is sent.
func ServeRoot(rw io.ReadWriter, t RootToken) error {
	for {
		kind, reference, body, err := receive(rw)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var answer []byte
		switch {
		case kind == askWrap && reference == "" && len(body) == SecretSize:
			answer, reference, err = t.Wrap(body)
		case kind == askUnwrap && reference != "":
			answer, err = t.Unwrap(reference, body)
		case kind == askRemove && len(body) == 0:
			err = t.Remove(reference)
		case kind == askDevice && reference == "" && len(body) == 0:
			var d claviger.Device
			if d, err = t.Device(); err == nil {
				answer, err = json.Marshal(d)
			}
		default:
			return errTalk
		}
		clear(body)
		if err != nil {
			err = sendFault(rw, err)
		} else {
			err = send(rw, told, reference, answer)
		}
		clear(answer)
		if err != nil {
			return err
		}
	}
}

func sendFault(w io.Writer, err error) error {
	e, ok := errors.AsType[*claviger.Error](err)
	if !ok {
		e = claviger.Errorf(claviger.Internal, "the device process failed", "look at its log")
	}
	if len(e.Msg)+len(e.Hint)+1 > maxFault {
		return errTalk
	}
	return send(w, refused, string(e.Code), []byte(e.Msg+"\x00"+e.Hint))
}

func decodeFault(code string, body []byte) error {
	msg, hint, ok := cut(string(body))
	if _, known := claviger.Mappings[claviger.Code(code)]; !known || !ok {
		return errTalk
	}
	return claviger.Errorf(claviger.Code(code), msg, hint)
}

func cut(s string) (before, after string, ok bool) {
	for i := range len(s) {
		if s[i] == 0 {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func send(w io.Writer, kind byte, reference string, body []byte) error {
	if len(reference) > maxReference || len(body) > maxWrapped {
		return errTalk
	}
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+maxTalk), uint32(1+2+len(reference)+len(body)))
	out = append(out, kind)
	out = binary.BigEndian.AppendUint16(out, uint16(len(reference)))
	out = append(append(out, reference...), body...)
	defer clear(out)
	if _, err := w.Write(out); err != nil {
		return fmt.Errorf("send to the device process: %w", err)
	}
	return nil
}

func receive(r io.Reader) (kind byte, reference string, body []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, "", nil, fmt.Errorf("receive from the device process: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 3 || n > maxTalk {
		return 0, "", nil, errTalk
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(r, buf); err != nil {
		clear(buf)
		return 0, "", nil, fmt.Errorf("receive from the device process: %w", err)
	}
	size := int(binary.BigEndian.Uint16(buf[1:]))
	if size > maxReference || 3+size > len(buf) || len(buf)-3-size > maxWrapped {
		clear(buf)
		return 0, "", nil, errTalk
	}
	return buf[0], string(buf[3 : 3+size]), buf[3+size:], nil
}
