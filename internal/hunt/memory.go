package hunt

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// maxMaps is the most of a process's list of mappings that is read, in bytes.
const maxMaps = 64 << 20

// mapping is one line of /proc/PID/maps (proc_pid_maps(5)).
type mapping struct {
	from, to int64
	perms    string
	name     string
}

// process searches the memory of a process that may be read. It is not stopped:
// what moves meanwhile can be missed.
func (h *hunt) process(ctx context.Context, t Target) error {
	at, pid := Place{PID: t.PID}, t.PID
	maps, err := mappings(pid)
	if err != nil {
		h.gap(at, reason(err))
		return nil
	}
	mem, err := os.Open("/proc/" + strconv.Itoa(pid) + "/mem")
	if err != nil {
		h.gap(at, reason(err))
		return nil
	}
	defer mem.Close()
	h.state.Report.Searched.Processes++
	read := false
	for _, m := range maps {
		if t.At != 0 && (t.At < m.from || t.At >= m.to) {
			continue
		}
		n, err := h.mapping(ctx, at, mem, m)
		if err != nil {
			return err
		}
		read = read || n > 0
	}
	if !read {
		h.gap(at, "no memory could be read")
		h.state.Unsearched = true
	}
	return nil
}

// mapping searches one mapping and returns how much could be read.
func (h *hunt) mapping(ctx context.Context, at Place, mem io.ReaderAt, m mapping) (read int64, err error) {
	at.Mapping = m.name
	switch {
	case !strings.HasPrefix(m.perms, "r"):
		return 0, nil // the process itself cannot read it
	case strings.HasPrefix(m.name, "[v"):
		return 0, nil // the kernel's own pages: vvar, vdso, vsyscall
	case strings.HasPrefix(m.name, "/dev/") && !strings.HasPrefix(m.name, "/dev/shm/") && !strings.HasPrefix(m.name, "/dev/zero"):
		h.gap(at, "memory of a device")
		return 0, nil
	}
	h.state.Report.Searched.Mappings++
	stride := h.strideFor(0, false)
	for from := m.from; from < m.to; {
		n, err := h.feed(ctx, at, io.NewSectionReader(mem, from, m.to-from), from, stride)
		if ctx.Err() != nil {
			return read, ctx.Err()
		}
		read += n
		from += n
		switch {
		case errors.Is(err, syscall.ESRCH), err == nil && from < m.to:
			h.gap(at, "the process ended or unmapped it meanwhile")
			return read, nil
		case err != nil: // a page that cannot be read, as of memfd_secret: go on after it
			h.gap(at, "page that cannot be read: "+reason(err))
			from = from&^4095 + 4096
			if from-m.from-read > 16<<20 { // not page by page over gigabytes
				h.gap(at, "the rest of a mapping that cannot be read")
				return read, nil
			}
		}
	}
	return read, nil
}

func mappings(pid int) ([]mapping, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/maps")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []mapping
	for lines := bufio.NewScanner(io.LimitReader(f, maxMaps)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		a, errA := strconv.ParseInt(from, 16, 64)
		b, errB := strconv.ParseInt(to, 16, 64)
		if errA != nil || errB != nil || b < a {
			continue // vsyscall stands above what fits
		}
		all = append(all, mapping{a, b, fields[1], strings.Join(fields[5:], " ")})
	}
	return all, nil
}
