package rootkey

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Kind says what a message on the root socket is.
type Kind byte

// The kinds. A talk has one of two courses.
//
//	claviger-unseal        key process
//	Deliver          ->                 here is the bundle
//	                 <-    Done         taken; claviger-unseal exits
//
//	Join or Restore  ->                 there is none: get it from a key
//	                                    process that runs, or from shares
//	                 <-    the same     to be shown to a person, since the
//	                                    server could show a key of its own
//	                 <-    Deliver      this one arrived
//	Done             ->                 it is on disk; serve
const (
	Deliver Kind = 'D' // carries a bundle
	Join    Kind = 'J' // the key process is to join another; carries the other's pin; the answer, the fingerprint of the join key
	Restore Kind = 'R' // the key process is to be restored from recovery shares; carries the pin, or zeroes where it is lost; the answer, the pin of the challenge
	Done    Kind = 'E'
	// Exposed is a Deliver from slots of which one is a file.
	Exposed Kind = 'X'
)

// Message is what passes over the root socket between claviger-unseal and the
// key process. The server has no end of that socket.
type Message struct {
	Kind   Kind
	Bundle *Bundle  // of Deliver and Exposed; the receiver Zeroes it after use
	Slots  string   // of Deliver and Exposed from claviger-unseal: which slots there are, to be shown; at most 900 printable ASCII characters
	Pin    [32]byte // of Join and Restore: what the pin of the arriving bundle has to be; all zero when any is accepted. Of their answers: see Kind
}

const (
	maxDescription = 900 // fits a measure of the key process
	maxMessage     = 1 + 2 + maxDescription + maxBundle
)

var errMessage = errors.New("a message on the root socket has a form that is not allowed")

// Send writes one message: u32 big-endian length, kind, body. It clears what
// it wrote; the bundle stays the caller's.
func Send(w io.Writer, m Message) error {
	var body []byte
	switch {
	case (m.Kind == Deliver || m.Kind == Exposed) && m.Bundle != nil && validDescription(m.Slots):
		bundle, err := m.Bundle.Encode()
		if err != nil {
			return err
		}
		defer clear(bundle)
		body = make([]byte, 0, 2+len(m.Slots)+len(bundle))
		body = binary.BigEndian.AppendUint16(body, uint16(len(m.Slots)))
		body = append(append(body, m.Slots...), bundle...)
	case m.Kind == Join && m.Bundle == nil, m.Kind == Restore && m.Bundle == nil:
		body = m.Pin[:]
	case m.Kind == Done && m.Bundle == nil:
	default:
		return errMessage
	}
	out := make([]byte, 0, 5+len(body))
	out = binary.BigEndian.AppendUint32(out, uint32(1+len(body)))
	out = append(append(out, byte(m.Kind)), body...)
	defer clear(out)
	if m.Bundle != nil {
		defer clear(body)
	}
	if _, err := w.Write(out); err != nil {
		return fmt.Errorf("send on the root socket: %w", err)
	}
	return nil
}

// Receive reads one message of at most about 90 KiB and refuses any that Send
// would not have written. Deadlines are the caller's.
func Receive(r io.Reader) (Message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Message{}, fmt.Errorf("receive on the root socket: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > maxMessage {
		return Message{}, errMessage
	}
	buf := make([]byte, n)
	defer clear(buf)
	if _, err := io.ReadFull(r, buf); err != nil {
		return Message{}, fmt.Errorf("receive on the root socket: %w", err)
	}
	m, body := Message{Kind: Kind(buf[0])}, buf[1:]
	switch m.Kind {
	case Deliver, Exposed:
		return m.decode(body)
	case Join, Restore:
		if copy(m.Pin[:], body) == len(m.Pin) && len(body) == len(m.Pin) {
			return m, nil
		}
	case Done:
		if len(body) == 0 {
			return m, nil
		}
	}
	return Message{}, errMessage
}

// decode reads the body of a message with a bundle: u16 length of the
// description, the description, the bundle.
func (m Message) decode(body []byte) (Message, error) {
	if len(body) < 2 || len(body)-2 < int(binary.BigEndian.Uint16(body)) {
		return Message{}, errMessage
	}
	text, body := body[2:], body[2+int(binary.BigEndian.Uint16(body)):]
	m.Slots = string(text[:len(text)-len(body)])
	if !validDescription(m.Slots) {
		return Message{}, errMessage
	}
	b, err := DecodeBundle(body)
	if err != nil {
		return Message{}, err
	}
	m.Bundle = b
	return m, nil
}

func validDescription(s string) bool {
	return len(s) <= maxDescription && plainText(s) == s
}
