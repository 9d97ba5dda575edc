// Package segment is the home of audit records beside the embedded store:
// append-only files of JSON Lines in one directory, each named by the seq of
// its first record, with an index beside each one that is full.
//
// It promises that an acknowledged record survives a crash of the machine,
// that no half record is ever read as a record, and that a chain which is
// broken is neither repaired nor continued unless somebody said so. It must
// never remove a byte that was acknowledged.
//
// A batch is written with one write and made durable with one fdatasync. When
// either fails the whole batch is refused, and before the next one the file is
// cut back to its last durable byte, synced, and its last record read again
// and compared: what a failed sync left in memory is thrown away, never
// trusted and never synced a second time.
package segment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/gather"
	"claviger.dev/internal/failpoint"
)

// DefaultBytes is the length at which a segment is full when Config does not say.
const DefaultBytes = 32 << 20

// Config says where the segments are.
type Config struct {
	Dir          string           // made when it is missing, mode 0700
	SegmentBytes int64            // a segment is full when it is this long; 0 means DefaultBytes
	AcceptBroken bool             // go on after a broken chain; Verify keeps naming the break
	Now          func() time.Time // nil means time.Now
	Files        Files            // nil means the operating system's, in Dir
}

// Log is an open directory of segments. It implements audit.Log.
type Log struct {
	queue *gather.Queue
	files Files
	lock  io.Closer
	limit int64

	// Owned by the goroutine that commits (by Open before it starts).
	tail    File         // nil until the first write
	suspect bool         // tail may hold more than what is durable
	start   *gather.Item // the record of this start, until it is durable
	broken  error        // why nothing may be appended
	buf     []byte       // the batch that is being written

	mu      sync.RWMutex // guards what follows; only the committing goroutine writes it
	head    audit.Head
	sealed  []part
	current part
}

// part is one segment file as far as it may be read.
type part struct {
	first uint64
	size  int64
	index *index // of the current segment; sealed ones have theirs in a file
}

func (p part) name() string      { return fmt.Sprintf("%020d.jsonl", p.first) }
func (p part) indexName() string { return fmt.Sprintf("%020d.index", p.first) }

// Open opens or starts the log in a directory and appends a record of the
// start. One process at a time may have it open; a second gets
// claviger.Conflict. Open succeeds on a full disk and on a broken chain: the
// log can be read and verified then, and Append says why it refuses.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Files == nil {
		dir, err := openDirectory(cfg.Dir, true)
		if err != nil {
			return nil, unavailable(err)
		}
		cfg.Files = dir
	}
	l := &Log{files: cfg.Files, limit: cfg.SegmentBytes}
	if l.limit <= 0 {
		l.limit = DefaultBytes
	}
	lock, err := l.files.Lock()
	if err != nil {
		return nil, unavailable(err)
	}
	l.lock = lock
	failpoint.Hit(failpoint.AuditOpen)
	found, err := l.recover(ctx, cfg.AcceptBroken)
	if err != nil {
		_ = l.lock.Close()
		return nil, unavailable(err)
	}
	if l.head.Writer == "" {
		l.head.Writer = string(claviger.NewID(cfg.Now()))
	}
	start := audit.Record{Time: cfg.Now(), Action: audit.ActionStart, Outcome: audit.Allowed, UID: -1, Detail: found}
	item, err := gather.NewItem(&start)
	if err != nil {
		_ = l.lock.Close()
		return nil, err
	}
	l.start = &item
	_ = l.commit(nil) // if it fails, the next append tries again and says why
	l.queue = gather.New(l.commit)
	return l, nil
}

// unavailable makes an error of the disk one for callers.
func unavailable(err error) error {
	if _, ok := errors.AsType[*claviger.Error](err); ok {
		return err
	}
	return claviger.Errorf(claviger.Unavailable, "the audit log cannot be written or read", "look at the space, the permissions and the health of its disk; it goes on by itself").Wrap(err)
}

// Append implements audit.Log.
func (l *Log) Append(ctx context.Context, records ...*audit.Record) error {
	return l.queue.Append(ctx, records...)
}

// Head implements audit.Log. There is one chain.
func (l *Log) Head(context.Context) ([]audit.Head, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.head.Seq == 0 {
		return nil, nil
	}
	return []audit.Head{l.head}, nil
}

// Wait implements audit.Log.
func (l *Log) Wait(ctx context.Context, after []audit.Head) error {
	return l.queue.Wait(ctx, after, l.Head)
}

// Iterate implements audit.Source.
func (l *Log) Iterate(ctx context.Context, q audit.Query, f func(audit.Line) error) error {
	l.mu.RLock()
	view := view{files: l.files, writer: l.head.Writer, parts: append(l.sealed[:len(l.sealed):len(l.sealed)], l.current)}
	if x := l.current.index; x != nil && x.Size == l.current.size { // of a broken tail it covers the sound part alone
		view.live = true
		view.marks = append(x.Marks[:0:0], x.Marks...)
		view.may = x.holds(string(q.Key)) && x.holds(string(q.KeyID)) && x.holds(string(q.Principal))
	}
	l.mu.RUnlock()
	return view.iterate(ctx, q, f)
}

// Close implements audit.Log.
func (l *Log) Close() error {
	if !l.queue.Close() {
		return nil
	}
	var err error
	if l.tail != nil {
		err = l.tail.Close()
	}
	if e := l.lock.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("close audit log: %w", err)
	}
	return nil
}
