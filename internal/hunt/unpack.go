package hunt

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"compress/zlib"
	"context"
	"encoding/binary"
	"errors"
	"io"
)

// kind is a container or a compression, as the first bytes tell it.
type kind string

const headSize = 512

// kindOf recognises a container by its first bytes; "" for none.
func kindOf(head []byte) kind {
	for _, k := range []struct {
		magic string
		kind  kind
	}{{"\x1f\x8b\x08", "gzip"}, {"PK\x03\x04", "zip"}, {"PK\x05\x06", "zip"},
		{"\xfd7zXZ\x00", "xz"}, {"\x28\xb5\x2f\xfd", "zstd"}, {"7z\xbc\xaf\x27\x1c", "7z"}, {"\x04\x22\x4d\x18", "lz4"}} {
		if bytes.HasPrefix(head, []byte(k.magic)) {
			return k.kind
		}
	}
	switch {
	case len(head) >= 10 && string(head[:3]) == "BZh" && string(head[4:10]) == "1AY&SY":
		return "bzip2"
	case len(head) >= 262 && string(head[257:262]) == "ustar":
		return "tar"
	case len(head) >= 6 && head[0] == 0x78 && binary.BigEndian.Uint16(head)%31 == 0 && head[1]&0x20 == 0:
		return "zlib" // RFC 1950, 2.2
	}
	return ""
}

// opens reports whether the hunt can unpack the kind.
func (k kind) opens() bool {
	switch k {
	case "gzip", "zip", "bzip2", "tar", "zlib", "leveldb":
		return true
	}
	return false
}

// The bounds of unpacking one file: see also Config.Unpacked.
const (
	maxDepth     = 6
	maxMembers   = 1 << 20
	maxNestedZip = 32 << 20  // a zip within an archive is held in memory, in bytes
	maxDirectory = 128 << 20 // of a zip, held in memory, in bytes
)

// unpacker opens one file and what is packed in it.
type unpacker struct {
	*hunt
	left    int64 // bytes that may still be unpacked
	members int
}

var errBomb = errors.New("over the limit of what is unpacked from one file")

// budget counts what is unpacked.
type budget struct {
	io.Reader
	u *unpacker
}

// Read implements io.Reader.
func (b budget) Read(p []byte) (int, error) {
	if b.u.left <= 0 {
		return 0, errBomb
	}
	n, err := b.Reader.Read(p[:min(int64(len(p)), b.u.left)])
	b.u.left -= int64(n)
	return n, err
}

func (p Place) member(name string) Place {
	if p.Member != "" {
		name = p.Member + "!" + name
	}
	p.Member = name
	return p
}

// container searches what is packed in r. It reports whether all of it could be
// read; where not, it has noted a gap. It fails only when the context ends.
func (u *unpacker) container(ctx context.Context, at Place, k kind, r io.Reader, depth int) (whole bool, err error) {
	if depth == maxDepth {
		u.gap(at, "packed more than 6 deep")
		return false, nil
	}
	var problem error
	switch k {
	case "tar":
		problem = u.tar(ctx, at, r, depth)
	case "zip":
		problem = u.zip(ctx, at, r, depth)
	case "gzip":
		var z *gzip.Reader
		if z, problem = gzip.NewReader(r); problem == nil {
			problem = u.stream(ctx, at.member("gunzip"), budget{z, u}, depth+1)
		}
	case "zlib":
		var z io.ReadCloser
		if z, problem = zlib.NewReader(r); problem == nil {
			problem = u.stream(ctx, at.member("inflate"), budget{z, u}, depth+1)
		}
	case "leveldb":
		var t *table
		if t, problem = newTable(r.(*io.SectionReader)); problem == nil { // it is known by the end of a file
			problem = u.stream(ctx, at.member("leveldb"), budget{t, u}, depth+1)
		}
	case "bzip2":
		problem = u.stream(ctx, at.member("bunzip2"), budget{bzip2.NewReader(r), u}, depth+1)
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if problem != nil {
		u.gap(at, unpackReason(k, problem))
	}
	return problem == nil, nil
}

func unpackReason(k kind, err error) string {
	if errors.Is(err, errBomb) {
		return errBomb.Error()
	}
	if errors.Is(err, errBlock) {
		return string(k) + ": " + errBlock.Error()
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return string(k) + ": truncated"
	}
	return string(k) + ": damaged"
}

// stream searches a member, which may be a container itself. The error is that
// of reading it.
func (u *unpacker) stream(ctx context.Context, at Place, r io.Reader, depth int) error {
	if u.members--; u.members < 0 {
		return errBomb
	}
	u.state.Report.Searched.Members++
	source := &failing{Reader: r}
	br := bufio.NewReaderSize(source, 4096)
	head, _ := br.Peek(headSize)
	k := kindOf(head)
	if !k.opens() || k == "zlib" { // two bytes are too little to tell it by, where there is no second reading
		if k != "" && k != "zlib" {
			u.gap(at, "compressed with "+string(k)+": searched as it is, not unpacked")
		}
		_, err := u.feed(ctx, at, br, 0, 0)
		return errors.Join(err, source.err) // a look at the head may have met the fault
	}
	if depth < maxDepth {
		whole, err := u.container(ctx, at, k, br, depth)
		if err != nil || !whole {
			return errors.Join(err, source.err) // the gap is noted; only a fault below goes on
		}
	} else {
		u.gap(at, "packed more than 6 deep")
	}
	_, err := u.feed(ctx, at, br, 0, 0) // what is left after the container
	return err
}

func (u *unpacker) tar(ctx context.Context, at Place, r io.Reader, depth int) error {
	t := tar.NewReader(r)
	for {
		header, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue // has no content
		}
		if err := u.stream(ctx, at.member(header.Name), budget{t, u}, depth+1); err != nil {
			return err
		}
	}
}

func (u *unpacker) zip(ctx context.Context, at Place, r io.Reader, depth int) error {
	file, ok := r.(*io.SectionReader)
	if !ok {
		data, err := io.ReadAll(io.LimitReader(r, maxNestedZip+1))
		if err != nil {
			return err
		}
		if len(data) > maxNestedZip {
			return errBomb
		}
		file = io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data)))
	}
	if directory(file) > maxDirectory {
		return errBomb
	}
	z, err := zip.NewReader(file, file.Size())
	if err != nil {
		return err
	}
	for _, f := range z.File {
		if f.FileInfo().IsDir() {
			continue
		}
		within := at.member(f.Name)
		if f.Flags&1 != 0 {
			u.gap(within, "zip: encrypted")
			continue
		}
		content, err := f.Open()
		if err != nil {
			u.gap(within, "zip: cannot be opened")
			continue
		}
		err = u.stream(ctx, within, budget{content, u}, depth+1)
		content.Close()
		switch {
		case errors.Is(err, errBomb) || ctx.Err() != nil:
			return err
		case err != nil:
			u.gap(within, unpackReason("zip", err))
		}
	}
	return nil
}

// directory returns the size of the directory of a zip, in bytes, as its end
// record has it (APPNOTE 4.3.16).
func directory(file *io.SectionReader) int64 {
	end := make([]byte, min(file.Size(), 66<<10))
	n, _ := file.ReadAt(end, file.Size()-int64(len(end)))
	i := bytes.LastIndex(end[:n], []byte("PK\x05\x06"))
	if i < 0 || i+16 > n {
		return 0
	}
	return int64(binary.LittleEndian.Uint32(end[i+12:]))
}
