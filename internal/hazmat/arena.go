// Package hazmat owns secret bytes. They live in one arena of memory that
// nothing but this process can map (memfd_secret(2)), and they are a type,
// Secret, that cannot be compared, printed, encoded or logged.
//
// Taking the bytes out needs a Token. The package promises that a slot is
// zero when it is handed out and zero again once it is released, that a
// released secret can no longer be used, and that Secret.Use runs inside
// runtime/secret where the toolchain has it. It must never write secret bytes
// anywhere, never grow the arena, and never fall back to ordinary memory
// unless it was told to.
package hazmat

import (
	"fmt"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"claviger.dev"
)

// Sizes of the arena, in bytes.
const (
	DefaultSize = 4 << 20 // half of what an unprivileged process may lock
	MaxSecret   = 4 << 10 // one secret; the PKCS#1 DER of an RSA-4096 key is about 2.4 KiB
	minSlot     = 64
	pageSize    = MaxSecret
)

// Config says how the arena is made.
type Config struct {
	// Size is the arena's size in bytes, rounded up to whole pages of 4 KiB;
	// zero means DefaultSize. It is subject to RLIMIT_MEMLOCK, 8 MiB by
	// default for an unprivileged process.
	Size int
	// Relaxed allows locked anonymous memory where memfd_secret(2) is not to
	// be had. Such memory is readable by whoever may trace the process.
	Relaxed bool
}

// Arena is a fixed region of secret pages, divided into slots. It is safe for
// concurrent use.
type Arena struct {
	base   *byte // not a slice: nothing that prints by reflection follows it
	size   int
	secret bool
	why    string // why the pages are not secret

	wiped atomic.Bool
	uses  atomic.Uint64
	wake  chan struct{}

	mu    sync.Mutex
	pages []page // guarded by mu
	inUse int    // guarded by mu; bytes in slots handed out
}

// page is the book-keeping of one page: its slots are of one size, a power of
// two, and used has a bit for each that is handed out.
type page struct {
	slot int // zero while the page is free
	used uint64
}

// NewArena maps the arena. It must be called before system calls are
// filtered. Where secret pages cannot be had it returns claviger.Unavailable,
// unless c.Relaxed.
func NewArena(c Config) (*Arena, error) {
	size := c.Size
	if size == 0 {
		size = DefaultSize
	}
	if size < 0 || size > 1<<30 {
		return nil, claviger.Errorf(claviger.Invalid, "the arena's size is out of range", "choose 4 KiB to 1 GiB")
	}
	size = (size + pageSize - 1) &^ (pageSize - 1)
	system := max(os.Getpagesize(), pageSize)
	mapped := (size + system - 1) &^ (system - 1)
	a := &Arena{size: size, secret: true, wake: make(chan struct{}, 1), pages: make([]page, size/pageSize)}
	mem, err := secretPages(mapped)
	if err != nil && c.Relaxed {
		a.secret, a.why = false, err.Error()
		mem, err = lockedPages(mapped)
	}
	if err != nil {
		return nil, claviger.Errorf(claviger.Unavailable, "no secret memory",
			"allow memfd_secret in the kernel (secretmem.enable=1) and enough locked memory (ulimit -l)").Wrap(err)
	}
	a.base = unsafe.SliceData(mem)
	return a, nil
}

// secretPages maps size bytes of memfd_secret(2) memory, closes the
// descriptor, and proves that the kernel itself refuses to read them.
func secretPages(size int) ([]byte, error) {
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_secret: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, fmt.Errorf("size secret memory: %w", err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map secret memory: %w", err)
	}
	if err := unix.Madvise(mem, unix.MADV_DONTFORK); err != nil {
		return nil, fmt.Errorf("keep secret memory from children: %w", err)
	}
	for i := 0; i < size; i += pageSize {
		mem[i] = 0 // populate now: a later fault could fail where nobody can answer
	}
	if readable(mem) {
		return nil, fmt.Errorf("verify secret memory: the kernel reads it")
	}
	return mem, nil
}

// readable reports whether process_vm_readv, the way of a debugger, reads mem
// in this very process.
func readable(mem []byte) bool {
	buf := make([]byte, 1)
	local := []unix.Iovec{{Base: &buf[0], Len: 1}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&mem[0])), Len: 1}}
	_, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0)
	return err == nil
}

// lockedPages maps ordinary memory that is not swapped, dumped or inherited.
func lockedPages(size int) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map memory: %w", err)
	}
	for _, advice := range []int{unix.MADV_DONTDUMP, unix.MADV_DONTFORK} {
		if err := unix.Madvise(mem, advice); err != nil {
			return nil, fmt.Errorf("advise memory: %w", err)
		}
	}
	if err := unix.Mlock(mem); err != nil {
		return nil, fmt.Errorf("lock memory: %w", err)
	}
	return mem, nil
}

// SecretPages reports whether the arena is memfd_secret(2) memory. Where it
// is not, why says what the kernel answered.
func (a *Arena) SecretPages() (ok bool, why string) { return a.secret, a.why }

// Size returns the arena's size and what is handed out of it, in bytes.
func (a *Arena) Size() (total, inUse int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.size, a.inUse
}

// New hands out a zeroed slot for n bytes, 1 to MaxSecret, and has fill write
// them, inside Do. A full arena is claviger.Exhausted: release a secret and
// try again. An error of fill is returned as it is and the slot released.
func (a *Arena) New(_ Token, n int, fill func([]byte) error) (Secret, error) {
	if n < 1 || n > MaxSecret {
		return Secret{}, claviger.Errorf(claviger.TooLarge, "a secret has 1 to 4096 bytes", "")
	}
	if a.wiped.Load() {
		return Secret{}, ErrGone
	}
	offset, ok := a.take(n)
	if !ok {
		return Secret{}, claviger.Errorf(claviger.Exhausted, "no room in secret memory", "release a secret, or make the arena larger")
	}
	s := Secret{slot: &slot{arena: a, offset: offset, n: n}}
	var err error
	filled := false
	defer func() {
		if err != nil || !filled {
			s.Release()
		}
	}()
	Do(func() { err = fill(a.bytes(offset, n)) })
	filled = true
	a.touch()
	if err != nil {
		return Secret{}, err
	}
	return s, nil
}

// take finds a slot of the least power of two that holds n bytes: in a page
// of that size with room, else in a free page.
func (a *Arena) take(n int) (offset int, ok bool) {
	size := max(minSlot, 1<<bits.Len(uint(n-1)))
	full := ^uint64(0) >> (64 - pageSize/size)
	a.mu.Lock()
	defer a.mu.Unlock()
	at := -1
	for i, p := range a.pages {
		if p.slot == size && p.used != full {
			at = i
			break
		}
		if p.slot == 0 && at < 0 {
			at = i
		}
	}
	if at < 0 {
		return 0, false
	}
	p := &a.pages[at]
	p.slot = size
	bit := bits.TrailingZeros64(^p.used)
	p.used |= 1 << bit
	a.inUse += size
	return at*pageSize + bit*size, true
}

// give zeroes a slot and takes it back.
func (a *Arena) give(offset, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.bytes(offset, n))
	p := &a.pages[offset/pageSize]
	p.used &^= 1 << (offset % pageSize / p.slot)
	a.inUse -= p.slot
	if p.used == 0 {
		p.slot = 0
	}
}

// bytes returns a slot's bytes, and not one more.
func (a *Arena) bytes(offset, n int) []byte {
	return unsafe.Slice(a.base, a.size)[offset : offset+n : offset+n]
}

// Wipe zeroes the whole arena at once and ends every secret in it. It takes
// no lock, so that a panicking process can call it: an operation under way
// sees zeros, and its result must not be released.
func (a *Arena) Wipe() {
	a.wiped.Store(true)
	clear(a.bytes(0, a.size))
}
