package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"claviger.dev"
)

// MaxCheckpoint is the largest checkpoint line in bytes.
const MaxCheckpoint = 4 << 10

// Checkpoint is a signed statement that a chain had this head at this time.
// Kept elsewhere (a file, a webhook, a second server) it shows a cut tail or a
// log that was rolled back; a checkpoint inside the log shows neither.
type Checkpoint struct {
	Head
	Time        time.Time            // in UTC, to the microsecond
	Key         claviger.Name        // the key that signed
	Fingerprint claviger.Fingerprint // of the version that signed
	Signature   []byte               // over Statement; at most 768 bytes
}

// checkpointOrder returns the members of a checkpoint in the order of the
// statement; the signature is not stated.
func checkpointOrder() []string {
	return []string{"writer", "seq", "hash", "time", "key", "fingerprint"}
}

// MakeCheckpoint states a head and signs it. key and fingerprint name the
// version that sign uses.
func MakeCheckpoint(head Head, now time.Time, key claviger.Name, fingerprint claviger.Fingerprint, sign func([]byte) ([]byte, error)) (Checkpoint, error) {
	c := Checkpoint{Head: head, Time: now.UTC().Truncate(time.Microsecond), Key: key, Fingerprint: fingerprint}
	sig, err := sign(c.Statement())
	if err != nil {
		return Checkpoint{}, fmt.Errorf("sign checkpoint: %w", err)
	}
	c.Signature = sig
	return c, nil
}

// Statement returns the bytes that are signed: a line that says what they are
// and one line for each member.
func (c Checkpoint) Statement() []byte {
	members := c.members()
	var b strings.Builder
	b.WriteString("claviger audit checkpoint 1\n")
	for _, name := range checkpointOrder() {
		fmt.Fprintf(&b, "%s %s\n", name, members[name])
	}
	return []byte(b.String())
}

// JSON returns the checkpoint as one line of JSON without a newline, for
// keeping elsewhere.
func (c Checkpoint) JSON() []byte {
	line, _ := json.Marshal(c.members()) // a map of strings always marshals, sorted by name
	return line
}

// Record returns the checkpoint as a record for the log itself.
func (c Checkpoint) Record() *Record {
	return &Record{Time: c.Time, Action: ActionCheckpoint, Outcome: Allowed, UID: -1, Key: c.Key,
		Fingerprint: c.Fingerprint, Detail: c.members()}
}

func (c Checkpoint) members() map[string]string {
	return map[string]string{
		"writer":      clean(c.Writer, MaxWriter),
		"seq":         strconv.FormatUint(c.Seq, 10),
		"hash":        c.Hash.String(),
		"time":        c.Time.UTC().Format(timeLayout),
		"key":         clean(string(c.Key), MaxText),
		"fingerprint": c.Fingerprint.String(),
		"signature":   base64.StdEncoding.EncodeToString(c.Signature),
	}
}

// ParseCheckpoint reads what JSON wrote, and nothing else. The signature is
// not checked here.
func ParseCheckpoint(line []byte) (Checkpoint, error) {
	refuse := claviger.Errorf(claviger.Invalid, "this is not a checkpoint of an audit log", "use a line that 'claviger audit checkpoint' wrote")
	line = bytes.TrimSpace(line)
	if len(line) > MaxCheckpoint {
		return Checkpoint{}, refuse
	}
	var members map[string]string
	if err := json.Unmarshal(line, &members); err != nil {
		return Checkpoint{}, refuse.Wrap(err)
	}
	c, err := checkpointFrom(members)
	if err != nil {
		return Checkpoint{}, refuse.Wrap(err)
	}
	if !bytes.Equal(c.JSON(), line) {
		return Checkpoint{}, refuse
	}
	return c, nil
}

// checkpointFrom reads the members; those of a record's Detail are the same.
func checkpointFrom(m map[string]string) (c Checkpoint, err error) {
	c.Writer, c.Key = m["writer"], claviger.Name(m["key"])
	if c.Seq, err = strconv.ParseUint(m["seq"], 10, 64); err != nil {
		return c, fmt.Errorf("read seq: %w", err)
	}
	if err = c.Hash.UnmarshalText([]byte(m["hash"])); err != nil {
		return c, fmt.Errorf("read hash: %w", err)
	}
	if c.Time, err = time.Parse(timeLayout, m["time"]); err != nil {
		return c, fmt.Errorf("read time: %w", err)
	}
	raw, err := hex.DecodeString(m["fingerprint"])
	if err != nil || len(raw) != len(c.Fingerprint) {
		return c, fmt.Errorf("read fingerprint: %w", claviger.Invalid)
	}
	copy(c.Fingerprint[:], raw)
	if c.Signature, err = base64.StdEncoding.DecodeString(m["signature"]); err != nil {
		return c, fmt.Errorf("read signature: %w", err)
	}
	return c, nil
}
