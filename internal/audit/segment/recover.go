package segment

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"

	"claviger.dev/internal/audit"
)

// parts lists the segments in a directory, oldest first.
func parts(files Files) ([]part, error) {
	names, err := files.List()
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var all []part
	for _, name := range names {
		base, ok := strings.CutSuffix(name, ".jsonl")
		p := part{}
		if p.first, err = strconv.ParseUint(base, 10, 64); err != nil || !ok || p.name() != name {
			continue // not ours
		}
		f, err := files.Open(name, false)
		if err != nil {
			return nil, fmt.Errorf("open segment: %w", err)
		}
		p.size, err = f.Size()
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("measure segment: %w", err)
		}
		all = append(all, p)
	}
	return all, nil
}

// recover finds the end of the chain and returns the details of the record of
// this start.
func (l *Log) recover(ctx context.Context, accept bool) (map[string]string, error) {
	all, err := parts(l.files)
	if err != nil {
		return nil, err
	}
	found := map[string]string{"chain": "continues"}
	if len(all) == 0 {
		found["chain"] = "begins"
		l.current = part{first: 1, index: new(index)}
		return found, nil
	}
	l.sealed, l.current = all[:len(all)-1], all[len(all)-1]
	for _, p := range l.sealed {
		x, err := readIndex(l.files, p)
		if err == nil && x == nil {
			err = rebuild(ctx, l.files, p)
		}
		if err != nil {
			return nil, err
		}
	}
	why, err := l.readTail(found)
	if err != nil || why == "" {
		return found, err
	}
	found["broken"] = why
	if !accept {
		l.broken = brokenError(why)
		return found, nil
	}
	return found, l.goOn(all)
}

// readTail walks the last segment. It returns why the chain is broken, or "".
func (l *Log) readTail(found map[string]string) (string, error) {
	why, err := l.readBefore()
	if err != nil {
		return "", err
	}
	f, err := l.files.Open(l.current.name(), false)
	if err != nil {
		return "", fmt.Errorf("open segment: %w", err)
	}
	defer f.Close()
	t := tail{head: l.head, anchored: len(l.sealed) > 0 || l.current.first == 1, first: l.current.first, index: new(index)}
	if err := scan(io.NewSectionReader(f, 0, l.current.size), t.line); err != nil {
		return "", fmt.Errorf("read segment: %w", err)
	}
	l.head, l.current.index = t.head, t.index
	if why != "" && !t.accepted {
		return why, nil
	}
	if t.cut == 0 {
		return "", nil
	}
	if !t.torn() {
		return fmt.Sprintf("a damaged record follows record %d", t.head.Seq), nil
	}
	found["torn_bytes"] = strconv.FormatInt(t.cut, 10)
	found["torn_sha256"] = hex.EncodeToString(t.digest.Sum(nil))
	l.current.size = t.index.Size // the rest is cut off before the first write
	return "", nil
}

// readBefore takes the head from the segment before the last one.
func (l *Log) readBefore() (why string, err error) {
	n := len(l.sealed)
	switch {
	case n == 0 && l.current.first != 1 && l.current.size == 0:
		return "the segments before " + l.current.name() + " are missing", nil
	case n == 0:
		return "", nil
	}
	line, why, err := l.lastRecord(l.sealed[n-1])
	if err != nil || why != "" {
		return why, err
	}
	l.head = audit.Head{Writer: line.Writer, Seq: line.Seq, Hash: audit.LineHash(line.Raw)}
	if l.current.first != line.Seq+1 {
		return fmt.Sprintf("segment %s does not follow record %d", l.current.name(), line.Seq), nil
	}
	return "", nil
}

// lastRecord reads the last record of a full segment.
func (l *Log) lastRecord(p part) (line audit.Line, why string, err error) {
	f, err := l.files.Open(p.name(), false)
	if err != nil {
		return line, "", fmt.Errorf("open segment: %w", err)
	}
	defer f.Close()
	raw, err := lastLine(f, p.size)
	if err == nil {
		line, err = audit.Decode(raw)
	}
	if err != nil {
		return line, fmt.Sprintf("the last record of %s is damaged: %v", p.name(), err), nil
	}
	return line, "", nil
}

// goOn continues after a break that was accepted: in a new segment, after the
// last record that is sound.
func (l *Log) goOn(all []part) error {
	for i := len(all) - 1; i >= 0 && l.head.Seq <= all[i].first; i-- {
		f, err := l.files.Open(all[i].name(), false)
		if err != nil {
			return fmt.Errorf("open segment: %w", err)
		}
		err = scan(io.NewSectionReader(f, 0, all[i].size), func(raw []byte, _ int, _ bool) error {
			if line, err := audit.Decode(raw); err == nil && line.Seq >= l.head.Seq {
				l.head = audit.Head{Writer: line.Writer, Seq: line.Seq, Hash: audit.LineHash(raw)}
			}
			return nil
		})
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("read segment: %w", err)
		}
	}
	// A segment without one sound record leaves a gap in the numbers, so that
	// names go on in order.
	l.head.Seq = max(l.head.Seq, all[len(all)-1].first)
	l.sealed, l.current = all, part{first: l.head.Seq + 1, index: new(index)}
	return nil
}

// tail collects what the last segment says.
type tail struct {
	head     audit.Head
	anchored bool // head is known to be what comes before the first line
	accepted bool // the first line is a start after a break that was accepted
	first    uint64
	index    *index
	batch    uint64 // of the last record in the chain

	cut    int64 // bytes after the last record in the chain
	digest interface {
		io.Writer
		Sum([]byte) []byte
	}
	foreign bool // what was cut off is more than one write that a crash cut short
}

func (t *tail) line(raw []byte, size int, whole bool) error {
	line, err := audit.Decode(raw)
	if t.cut == 0 && whole && err == nil && t.follows(line) {
		t.head = audit.Head{Writer: line.Writer, Seq: line.Seq, Hash: audit.LineHash(raw)}
		t.batch = line.Batch
		addLine(t.index, line, size)
		return nil
	}
	if t.digest == nil {
		t.digest = sha256.New()
	}
	t.cut += int64(size)
	_, _ = t.digest.Write(raw)
	if whole {
		_, _ = t.digest.Write([]byte("\n"))
	}
	switch {
	case whole && err == nil:
		// Sound, but after damage: only the batch that was being written can be.
		t.foreign = t.foreign || line.Seq <= t.head.Seq || line.Batch != t.batch && line.Batch != t.head.Seq+1
	case whole && bytes.IndexByte(raw, 0) < 0:
		t.foreign = true // a sector that was never written reads as zeros
	}
	return nil
}

func (t *tail) follows(line audit.Line) bool {
	if t.index.Size == 0 && line.Seq == t.first && line.Record.Action == audit.ActionStart && line.Record.Detail["broken"] != "" {
		t.accepted = true
		return true
	}
	if t.head.Seq == 0 && !t.anchored { // the segments before are not here; Verify says so
		return line.Seq == t.first
	}
	return line.Seq == t.head.Seq+1 && line.Prev == t.head.Hash && (t.head.Writer == "" || line.Writer == t.head.Writer)
}

// torn reports whether what was cut off can be one unacknowledged write.
func (t *tail) torn() bool { return !t.foreign }

func addLine(x *index, line audit.Line, size int) {
	r := &line.Record
	x.add(r.Seq, r.Time, size, string(r.Key), string(r.KeyID), string(r.Principal))
}

// rebuild writes the index of a full segment again. A damaged segment gets
// none and is read whole.
func rebuild(ctx context.Context, files Files, p part) error {
	f, err := files.Open(p.name(), false)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer f.Close()
	x, sound := new(index), true
	err = scan(io.NewSectionReader(f, 0, p.size), func(raw []byte, size int, whole bool) error {
		line, err := audit.Decode(raw)
		sound = sound && err == nil && whole
		if sound {
			addLine(x, line, size)
		}
		return ctx.Err()
	})
	if err != nil {
		return fmt.Errorf("read segment: %w", err)
	}
	if sound {
		_ = writeIndex(files, part{first: p.first, index: x}) // only an accelerator
	}
	return nil
}
