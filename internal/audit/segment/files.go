package segment

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"claviger.dev"
	"golang.org/x/sys/unix"
)

// Files is the directory that holds a log, so that tests can break it.
type Files interface {
	Lock() (io.Closer, error)                   // claviger.Conflict when another process holds it
	List() ([]string, error)                    // names, sorted
	Open(name string, write bool) (File, error) // for writing, makes it when it is missing
	Sync() error                                // makes the making of files durable
}

// File is one file in Files.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error // makes bytes and size durable
	Size() (int64, error)
}

// lockName is a file that the process which appends holds locked.
const lockName = "lock"

// directory is Files on the operating system. Nothing outside it can be
// reached through a name.
type directory struct{ root *os.Root }

func openDirectory(path string, create bool) (*directory, error) {
	if create {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, fmt.Errorf("make audit directory: %w", err)
		}
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open audit directory: %w", err)
	}
	return &directory{root}, nil
}

func (d *directory) Lock() (io.Closer, error) {
	f, err := d.root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		f, err = d.root.Open(lockName) // a read-only file system can be locked all the same
	}
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, claviger.Errorf(claviger.Conflict, "another process has the audit log open", "stop the other server, or use another directory")
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

func (d *directory) List() ([]string, error) {
	dir, err := d.root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("open audit directory: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list audit directory: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

func (d *directory) Open(name string, write bool) (File, error) {
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR | os.O_CREATE
	}
	f, err := d.root.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return &file{f}, nil
}

func (d *directory) Sync() error {
	dir, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// file is File on the operating system.
type file struct{ *os.File }

// Sync leaves out times and other facts that no reader needs (fdatasync).
func (f *file) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f *file) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
