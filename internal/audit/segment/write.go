package segment

import (
	"bytes"
	"cmp"
	"fmt"
	"io"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/gather"
	"claviger.dev/internal/failpoint"
)

// commit makes a batch durable, all of it or nothing, and before it the record
// of this start if that still waits.
func (l *Log) commit(items []gather.Item) error {
	if l.broken != nil {
		return l.broken
	}
	if l.start != nil {
		if err := l.write([]gather.Item{*l.start}); err != nil {
			return unavailable(err)
		}
		l.start = nil
	}
	if len(items) == 0 {
		return nil
	}
	if err := l.write(items); err != nil {
		return unavailable(err)
	}
	return nil
}

func (l *Log) write(items []gather.Item) error {
	if err := l.ready(); err != nil {
		return err
	}
	head, batch := l.head, l.head.Seq+1
	line, ends := l.buf[:0], make([]int, len(items))
	for i := range items {
		line = head.Extend(line, items[i].Body, batch)
		items[i].Head, ends[i] = head, len(line)
	}
	l.buf = line
	failpoint.Hit(failpoint.AuditWrite)
	l.suspect = true
	if n, err := l.tail.WriteAt(line, l.current.size); err != nil || n != len(line) {
		return fmt.Errorf("write %d of %d bytes: %w", n, len(line), cmp.Or(err, io.ErrShortWrite))
	}
	failpoint.Hit(failpoint.AuditWritten)
	if err := l.tail.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	failpoint.Hit(failpoint.AuditSynced)
	l.suspect = false
	l.mu.Lock()
	defer l.mu.Unlock()
	l.head = head
	l.current.size += int64(len(line))
	for i, from := 0, 0; i < len(items); i++ {
		it := &items[i]
		l.current.index.add(it.Head.Seq, it.Time, ends[i]-from, string(it.Key), string(it.KeyID), string(it.Principal))
		from = ends[i]
	}
	return nil
}

// ready makes the tail fit for the next batch.
func (l *Log) ready() error {
	if l.tail != nil && l.suspect {
		if err := l.cutBack(); err != nil {
			return err
		}
	}
	if l.tail != nil && l.current.size >= l.limit {
		if err := l.seal(); err != nil {
			return err
		}
	}
	if l.tail != nil {
		return nil
	}
	f, err := l.files.Open(l.current.name(), true)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	if err := l.files.Sync(); err != nil {
		_ = f.Close()
		return fmt.Errorf("sync audit directory: %w", err)
	}
	l.tail = f
	size, err := f.Size()
	if err != nil || size != l.current.size {
		l.suspect = true // left by a crash: a torn tail, or a segment that never got a record
		if err := l.cutBack(); err != nil {
			return err
		}
	}
	return nil
}

// cutBack takes the tail back to its last durable byte and makes sure of it.
func (l *Log) cutBack() error {
	if err := l.tail.Truncate(l.current.size); err != nil {
		return fmt.Errorf("cut segment back: %w", err)
	}
	if err := l.tail.Sync(); err != nil {
		return fmt.Errorf("sync segment cut back: %w", err)
	}
	if l.current.size > 0 {
		raw, err := lastLine(l.tail, l.current.size)
		if err != nil {
			return fmt.Errorf("read last record again: %w", err)
		}
		if audit.LineHash(raw) != l.head.Hash {
			l.broken = brokenError("the last record reads differently after a failed write")
			return l.broken
		}
	}
	l.suspect = false
	return nil
}

// seal ends the current segment. Its index is derived, so a failure to write
// it only makes queries slower until the next start.
func (l *Log) seal() error {
	failpoint.Hit(failpoint.AuditSeal)
	if err := l.tail.Close(); err != nil {
		return fmt.Errorf("close segment: %w", err)
	}
	l.tail = nil
	_ = writeIndex(l.files, l.current)
	failpoint.Hit(failpoint.AuditSealed)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sealed = append(l.sealed, part{first: l.current.first, size: l.current.size})
	l.current = part{first: l.head.Seq + 1, index: new(index)}
	return nil
}

func writeIndex(files Files, p part) error {
	f, err := files.Open(p.indexName(), true)
	if err != nil {
		return fmt.Errorf("open index: %w", err)
	}
	defer f.Close()
	raw := p.index.encode()
	if err := f.Truncate(int64(len(raw))); err != nil {
		return fmt.Errorf("cut index: %w", err)
	}
	if _, err := f.WriteAt(raw, 0); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return nil
}

// lastLine reads the last line of the first size bytes, without its newline.
func lastLine(f File, size int64) ([]byte, error) {
	buf := make([]byte, min(size, audit.MaxLine+2))
	if _, err := f.ReadAt(buf, size-int64(len(buf))); err != nil && err != io.EOF {
		return nil, err
	}
	body, ok := bytes.CutSuffix(buf, []byte("\n"))
	if !ok {
		return nil, audit.ErrTorn
	}
	return body[bytes.LastIndexByte(body, '\n')+1:], nil
}

func brokenError(why string) error {
	return claviger.Errorf(claviger.Unavailable, "the audit chain is broken: "+why,
		"run 'claviger audit verify', keep a copy of the directory, then start once with the break accepted")
}
