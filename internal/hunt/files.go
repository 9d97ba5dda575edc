package hunt

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func (h *hunt) target(ctx context.Context, t Target) error {
	if t.Path == "" {
		return h.process(ctx, t)
	}
	return filepath.WalkDir(t.Path, func(name string, d fs.DirEntry, err error) error {
		at := Place{File: name}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			h.gap(at, reason(err))
			return nil
		case d.IsDir():
			return nil
		case h.state.Done != "" && !after(name, h.state.Done):
			return nil // before the state was saved
		case d.Type()&fs.ModeSymlink != 0:
			h.gap(at, "symbolic link, not followed")
			return nil
		case !d.Type().IsRegular():
			h.gap(at, "special file")
			return nil
		}
		if err := h.file(ctx, at); err != nil {
			return err
		}
		h.state.Done, h.state.Offset = name, 0
		return h.checkpoint(ctx, false)
	})
}

// after reports whether a walk comes to a later than to b.
func after(a, b string) bool {
	sep := string(filepath.Separator)
	return slices.Compare(strings.Split(a, sep), strings.Split(b, sep)) > 0
}

// reason says why something could not be read, without its name.
func reason(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "permission denied"
	case errors.Is(err, fs.ErrNotExist):
		return "no such file or process"
	}
	return err.Error()
}

// file searches one regular file. It fails only when the context ends.
func (h *hunt) file(ctx context.Context, at Place) error {
	f, err := os.OpenFile(at.File, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		h.gap(at, reason(err))
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		h.gap(at, "special file")
		return nil
	}
	h.state.Report.Searched.Files++
	head := make([]byte, headSize)
	n, _ := f.ReadAt(head, 0)
	if h.state.Current != at.File {
		h.state.Current, h.state.Offset = at.File, 0
	}
	kind := kindOf(head[:n])
	if isTable(f, info.Size()) {
		kind = "leveldb"
	}
	if kind.opens() && h.state.Offset == 0 {
		u := &unpacker{hunt: h, left: h.config.Unpacked, members: maxMembers}
		whole, err := u.container(ctx, at, kind, io.NewSectionReader(f, 0, info.Size()), 0)
		if whole || err != nil {
			return err
		}
	} else if kind != "" && !kind.opens() {
		h.gap(at, "compressed with "+string(kind)+": searched as it is, not unpacked")
	}
	return h.plain(ctx, at, f)
}

// plain searches a file as it is, from the offset at which an earlier run
// stopped, and saves the state on the way.
func (h *hunt) plain(ctx context.Context, at Place, f *os.File) error {
	const part = 64 << 20 // what is read between two chances to save
	for stride := 0; ; stride = h.strideFor(0, false) {
		start := max(0, h.state.Offset-lead)
		if start > 0 {
			stride = h.strideFor(0, false)
		}
		n, err := h.feed(ctx, at, io.NewSectionReader(f, start, part+lead+tail), start, stride)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			h.gap(at, "read error: "+reason(err))
			return nil
		}
		if n < part+lead+tail {
			return nil
		}
		h.state.Offset = start + part + lead
		if err := h.checkpoint(ctx, false); err != nil {
			return err
		}
	}
}
