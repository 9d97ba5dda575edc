package segment_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/audittest"
	"claviger.dev/internal/audit/segment"
	"golang.org/x/sys/unix"
)

const sector = 512

// disk is a directory that can fail and lose power. Of what was written since
// the last sync any subset of sectors survives a crash.
type disk struct {
	mu    sync.Mutex
	rand  *rand.Rand
	files map[string]*inode
	fail  func(op, name string) error // asked before each operation
	short bool                        // a failing write writes a part first
	syncs int
}

type inode struct {
	d       *disk
	name    string
	now     []byte // what readers see
	durable []byte
	dirty   map[int64]bool // sectors that a sync has to write
	linked  bool           // its name is durable
}

func newDisk(seed uint64) *disk {
	return &disk{rand: rand.New(rand.NewPCG(seed, 1)), files: make(map[string]*inode), fail: func(string, string) error { return nil }}
}

func (d *disk) Lock() (io.Closer, error) { return io.NopCloser(nil), nil }

func (d *disk) List() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name := range d.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func (d *disk) Open(name string, write bool) (segment.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.files[name]; f != nil {
		return f, nil
	}
	if !write {
		return nil, unix.ENOENT
	}
	if err := d.fail("create", name); err != nil {
		return nil, err
	}
	d.files[name] = &inode{d: d, name: name, dirty: make(map[int64]bool)}
	return d.files[name], nil
}

func (d *disk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fail("syncdir", ""); err != nil {
		return err
	}
	for _, f := range d.files {
		f.linked = true
	}
	return nil
}

// crash returns what the disk holds when power comes back.
func (d *disk) crash() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := newDisk(d.rand.Uint64())
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range d.files {
			if !yield(name) {
				return
			}
		}
	}) {
		f := d.files[name]
		if !f.linked && d.rand.IntN(2) == 0 {
			continue
		}
		f.settle(func() bool { return d.rand.IntN(2) == 0 })
		after.files[name] = &inode{d: after, name: name, now: slices.Clone(f.durable), durable: f.durable, dirty: make(map[int64]bool), linked: true}
	}
	return after
}

// settle moves some dirty sectors, and perhaps the size, to the medium.
func (f *inode) settle(survives func() bool) {
	size := len(f.durable)
	if survives() {
		size = len(f.now)
	}
	f.durable = resize(f.durable, size)
	for s := range f.dirty {
		if from := s * sector; from < int64(size) && survives() {
			clear(f.durable[from:min(from+sector, int64(size))])
			if from < int64(len(f.now)) {
				copy(f.durable[from:min(from+sector, int64(size))], f.now[from:])
			}
		}
	}
}

func resize(b []byte, size int) []byte {
	if size <= len(b) {
		return b[:size:size]
	}
	return append(b, make([]byte, size-len(b))...)
}

func (f *inode) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.now)) {
		return 0, io.EOF
	}
	n := copy(p, f.now[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *inode) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	err := f.d.fail("write", f.name)
	if err != nil {
		if !f.d.short {
			return 0, err
		}
		p = p[:f.d.rand.IntN(len(p))]
	}
	if end := int(off) + len(p); end > len(f.now) {
		f.now = resize(f.now, end)
	}
	copy(f.now[off:], p)
	for s := off / sector; s*sector < off+int64(len(p)); s++ {
		f.dirty[s] = true
	}
	return len(p), err
}

func (f *inode) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.fail("truncate", f.name); err != nil {
		return err
	}
	f.now = resize(f.now, int(size))
	f.dirty[size/sector] = true
	return nil
}

func (f *inode) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.syncs++
	if err := f.d.fail("sync", f.name); err != nil {
		// As Linux does: some pages are written, and all are taken for clean.
		f.settle(func() bool { return f.d.rand.IntN(2) == 0 })
		clear(f.dirty)
		return err
	}
	f.settle(func() bool { return true })
	clear(f.dirty)
	return nil
}

func (f *inode) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.now)), nil
}

func (f *inode) Close() error { return nil }

func openOn(t *testing.T, d *disk) *segment.Log {
	t.Helper()
	log, err := segment.Open(t.Context(), segment.Config{Files: d, SegmentBytes: 20000})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return log
}

// acknowledged checks that every record which was acknowledged is there and
// that the chain is whole.
func acknowledged(t *testing.T, log audit.Log, acked map[uint64]string) {
	t.Helper()
	audittest.Sound(t, log, audit.VerifyOptions{})
	got := make(map[uint64]string)
	for _, r := range audittest.Collect(t, log, audit.Query{}) {
		got[r.Seq] = r.RequestID
	}
	for seq, id := range acked {
		if got[seq] != id {
			t.Fatalf("record %d was acknowledged as %s and is %q", seq, id, got[seq])
		}
	}
}

// TestCrash loses power again and again, at any operation, under faults.
func TestCrash(t *testing.T) {
	t.Parallel()
	torn := 0
	for seed := range uint64(60) {
		d := newDisk(seed)
		acked := make(map[uint64]string)
		for life := range 4 {
			torn += live(t, d, seed, life, acked)
			d = d.crash()
		}
		log := openOn(t, d)
		acknowledged(t, log, acked)
		_ = log.Close()
	}
	if torn == 0 {
		t.Error("no crash left a torn tail: the test tests nothing")
	}
}

// live opens the log, appends from several callers while operations fail at
// random, and stops in the middle of one. It returns 1 if a tail was torn.
func live(t *testing.T, d *disk, seed uint64, life int, acked map[uint64]string) (torn int) {
	t.Helper()
	log := openOn(t, d)
	defer log.Close()
	acknowledged(t, log, acked)
	for _, r := range audittest.Collect(t, log, audit.Query{Action: audit.ActionStart, Last: 1}) {
		if r.Detail["torn_bytes"] != "" {
			torn = 1
		}
	}
	chance := rand.New(rand.NewPCG(seed, uint64(life)))
	dead := false
	d.mu.Lock()
	d.short = chance.IntN(2) == 0
	d.fail = func(op, _ string) error {
		switch n := chance.IntN(100); {
		case dead || n < 2:
			dead = true // nothing works any more until the power is back
			return unix.EIO
		case n < 6 && op != "sync":
			return unix.ENOSPC
		case n < 6:
			return unix.EIO
		}
		return nil
	}
	d.mu.Unlock()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for c := range 6 {
		wg.Go(func() {
			for n := range 12 {
				r := audittest.Sample(n)
				r.RequestID = fmt.Sprintf("%d-%d-%d-%d", seed, life, c, n)
				err := log.Append(t.Context(), r)
				if err != nil && !errors.Is(err, claviger.Unavailable) {
					t.Errorf("append: %v, want unavailable", err)
				}
				if err == nil {
					mu.Lock()
					acked[r.Seq] = r.RequestID
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return torn
}

// TestRecovers refuses while the disk is broken and goes on by itself.
func TestRecovers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		op    string
		err   error
		short bool
	}{
		"disk full":              {"write", unix.ENOSPC, false},
		"disk full in a line":    {"write", unix.ENOSPC, true},
		"read-only":              {"write", unix.EROFS, false},
		"sync fails":             {"sync", unix.EIO, false},
		"nothing can be created": {"create", unix.ENOSPC, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDisk(1)
			broken := func(op, _ string) error {
				if op == test.op {
					return test.err
				}
				return nil
			}
			d.fail, d.short = broken, test.short
			log := openOn(t, d) // opens all the same
			defer log.Close()
			set := func(f func(op, name string) error) {
				d.mu.Lock()
				defer d.mu.Unlock()
				d.fail = f
			}
			acked := make(map[uint64]string)
			for n := range 6 {
				refused := audittest.Sample(n)
				refused.RequestID = "refused"
				if err := log.Append(t.Context(), refused); !errors.Is(err, claviger.Unavailable) || !errors.Is(err, test.err) {
					t.Fatalf("append: %v, want unavailable because of %v", err, test.err)
				}
				set(func(string, string) error { return nil })
				r := audittest.Sample(n)
				audittest.Append(t, log, r)
				acked[r.Seq] = r.RequestID
				if test.op == "create" {
					break
				}
				set(broken)
			}
			set(func(string, string) error { return nil })
			acknowledged(t, log, acked)
			for _, r := range audittest.Collect(t, log, audit.Query{}) {
				if r.RequestID == "refused" {
					t.Errorf("record %d was refused and is there", r.Seq)
				}
			}
		})
	}
}

// TestOneSyncForMany shows that appends which wait together share a sync.
func TestOneSyncForMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(1)
		log := openOn(t, d)
		defer log.Close()
		hold := make(chan struct{})
		var once sync.Once
		d.mu.Lock()
		before := d.syncs
		d.fail = func(op, _ string) error {
			if op == "sync" {
				once.Do(func() {
					d.mu.Unlock()
					<-hold
					d.mu.Lock()
				})
			}
			return nil
		}
		d.mu.Unlock()
		var wg sync.WaitGroup
		for n := range 101 {
			wg.Go(func() {
				if err := log.Append(t.Context(), audittest.Sample(n)); err != nil {
					t.Errorf("append: %v", err)
				}
			})
			if n == 0 {
				synctest.Wait() // the first is in its sync
			}
		}
		synctest.Wait() // the others wait for theirs
		close(hold)
		wg.Wait()
		if n := d.syncs - before; n != 2 {
			t.Errorf("%d syncs for one append and 100 that waited together, want 2", n)
		}
	})
}
