package segment

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"claviger.dev"
	"claviger.dev/internal/audit"
)

// Reader reads segments at rest: a stopped log, a restored backup, a copy. It
// takes no lock, so beside a running server it may see a line half written.
// It implements audit.Source.
type Reader struct{ view view }

// Read opens a directory of segments for reading alone.
func Read(dir string) (*Reader, error) {
	files, err := openDirectory(dir, false)
	if err != nil {
		return nil, unavailable(err)
	}
	all, err := parts(files)
	if err != nil {
		return nil, unavailable(err)
	}
	return &Reader{view{files: files, parts: all}}, nil
}

// Iterate implements audit.Source.
func (r *Reader) Iterate(ctx context.Context, q audit.Query, f func(audit.Line) error) error {
	return r.view.iterate(ctx, q, f)
}

// VerifyFiles verifies a directory without a server: nothing but the files,
// the checkpoints that were kept elsewhere and a check with the public key.
func VerifyFiles(ctx context.Context, dir string, opts audit.VerifyOptions) (audit.Report, error) {
	r, err := Read(dir)
	if err != nil {
		return audit.Report{}, err
	}
	return audit.Verify(ctx, r, opts)
}

// view is what one iteration sees.
type view struct {
	files  Files
	writer string // empty when it is not known
	parts  []part
	live   bool   // the last part is being written; marks and may say what its index would
	marks  []mark // of the last part
	may    bool   // the last part may hold what the query names
}

// block is a run of bytes in a segment; times are zero when they are not known.
type block struct {
	name     string
	at, end  int64
	from, to time.Time
}

func (v *view) iterate(ctx context.Context, q audit.Query, f func(audit.Line) error) error {
	if q.Damaged {
		return v.everything(ctx, f)
	}
	blocks, err := v.blocks(&q)
	if err != nil {
		return unavailable(err)
	}
	if q.Last <= 0 {
		for _, b := range blocks {
			if err := v.block(ctx, b, &q, f); err != nil {
				return err
			}
		}
		return nil
	}
	var lines []audit.Line // newest block first while they are gathered
	for _, b := range slices.Backward(blocks) {
		var some []audit.Line
		err := v.block(ctx, b, &q, func(l audit.Line) error {
			l.Raw = slices.Clone(l.Raw)
			some = append(some, l)
			return nil
		})
		if err != nil {
			return err
		}
		lines = append(some, lines...)
		if len(lines) >= q.Last {
			break
		}
	}
	for _, l := range lines[max(0, len(lines)-q.Last):] {
		if err := f(l); err != nil {
			return err
		}
	}
	return nil
}

// blocks chooses what has to be read.
func (v *view) blocks(q *audit.Query) ([]block, error) {
	var all []block
	floor := uint64(0)
	if v.writer != "" {
		floor = q.Floor(v.writer)
	}
	for i, p := range v.parts {
		last := i == len(v.parts)-1
		if p.size == 0 || !last && v.parts[i+1].first <= floor+1 {
			continue
		}
		marks := v.marks
		if !last || !v.live {
			x, err := readIndex(v.files, p)
			if err != nil {
				return nil, err
			}
			if x == nil {
				all = append(all, block{name: p.name(), end: p.size})
				continue
			}
			if !x.holds(string(q.Key)) || !x.holds(string(q.KeyID)) || !x.holds(string(q.Principal)) {
				continue
			}
			marks = x.Marks
		} else if !v.may {
			continue
		}
		for j, m := range marks {
			b := block{name: p.name(), at: m.At, end: p.size, from: m.From, to: m.To}
			if j+1 < len(marks) {
				b.end = marks[j+1].At
				if marks[j+1].Seq <= floor+1 {
					continue
				}
			}
			if !q.From.IsZero() && b.to.Before(q.From) || !q.To.IsZero() && !b.from.Before(q.To) {
				continue
			}
			all = append(all, b)
		}
	}
	return all, nil
}

// readIndex returns no index and no error when there is no sound index for the whole segment.
func readIndex(files Files, p part) (*index, error) {
	raw, err := indexBytes(files, p)
	if err != nil || raw == nil {
		return nil, err
	}
	x, err := decodeIndex(raw)
	if err != nil || x.Size != p.size {
		return nil, nil
	}
	return x, nil
}

func indexBytes(files Files, p part) ([]byte, error) {
	f, err := files.Open(p.indexName(), false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.NewSectionReader(f, 0, maxIndex))
	if err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	return raw, nil
}

// block hands over the records of one block that the query chooses.
func (v *view) block(ctx context.Context, b block, q *audit.Query, f func(audit.Line) error) error {
	file, err := v.files.Open(b.name, false)
	if err != nil {
		return unavailable(fmt.Errorf("open segment: %w", err))
	}
	defer file.Close()
	var stop error
	err = scan(io.NewSectionReader(file, b.at, b.end-b.at), func(raw []byte, _ int, whole bool) error {
		if stop = ctx.Err(); stop != nil {
			return stop
		}
		line, err := audit.Decode(raw)
		if err == nil && !whole {
			err = audit.ErrTorn
		}
		if err != nil {
			stop = claviger.Errorf(claviger.Internal, "a record of the audit log is damaged", "run 'claviger audit verify'").Wrap(err)
		} else if q.Matches(&line.Record) {
			stop = f(line)
		}
		return stop
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		return unavailable(fmt.Errorf("read segment: %w", err))
	}
	return nil
}

// everything hands over every line as it lies, and what is wrong with the
// names and indexes of the files.
func (v *view) everything(ctx context.Context, f func(audit.Line) error) error {
	for i, p := range v.parts {
		if err := v.whole(ctx, p, !v.live || i < len(v.parts)-1, f); err != nil {
			return err
		}
	}
	return nil
}

func (v *view) whole(ctx context.Context, p part, sealed bool, f func(audit.Line) error) error {
	file, err := v.files.Open(p.name(), false)
	if err != nil {
		return unavailable(fmt.Errorf("open segment: %w", err))
	}
	defer file.Close()
	var stop error
	x, writer := new(index), v.writer
	sound, first := true, true
	wrong := func(detail string) error {
		return f(audit.Line{Err: audit.Fault{Writer: writer, Seq: p.first, Last: max(x.Last, p.first), Kind: audit.Altered, Detail: detail}})
	}
	err = scan(io.NewSectionReader(file, 0, p.size), func(raw []byte, size int, whole bool) error {
		if stop = ctx.Err(); stop != nil {
			return stop
		}
		line, err := audit.Decode(raw)
		line.Err = err
		if !whole {
			line.Err = audit.ErrTorn
		}
		if line.Err == nil {
			writer = line.Writer
			if first && line.Seq != p.first {
				stop = wrong("the file " + p.name() + " begins with another record")
			}
			addLine(x, line, size)
		}
		sound, first = sound && line.Err == nil, false
		if stop == nil {
			stop = f(line)
		}
		return stop
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		return unavailable(fmt.Errorf("read segment: %w", err))
	}
	if !sealed || !sound {
		return nil
	}
	raw, err := indexBytes(v.files, p)
	if err != nil {
		return unavailable(err)
	}
	if _, err := decodeIndex(raw); err == nil && string(raw) != string(x.encode()) { // one that a crash tore is not looked at by queries either
		return wrong("the index beside the records does not fit them: remove " + p.indexName() + ", it is made again at the next start")
	}
	return nil
}

// scan calls f for each line without its newline; size counts the newline.
// whole is false for a last line that has none. A line that is too long is
// handed over in part.
func scan(r io.Reader, f func(raw []byte, size int, whole bool) error) error {
	in := bufio.NewReaderSize(r, 4*audit.MaxLine)
	for {
		raw, err := in.ReadSlice('\n')
		size := len(raw)
		if errors.Is(err, bufio.ErrBufferFull) {
			raw = slices.Clone(raw)
			for errors.Is(err, bufio.ErrBufferFull) {
				var more []byte
				more, err = in.ReadSlice('\n')
				size += len(more)
			}
		}
		if err != nil && err != io.EOF {
			return err
		}
		if size > 0 {
			whole := err == nil
			if whole && raw[len(raw)-1] == '\n' {
				raw = raw[:len(raw)-1]
			}
			if err := f(raw, size, whole); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}
