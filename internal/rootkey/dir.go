package rootkey

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"claviger.dev"
)

// SlotsName is the name of the slots file in its directory.
const SlotsName = "root.json"

const maxFile = 1 << 20 // bytes of a slots file

// Dir is the directory of the slots file. It and all in it belong to the uid
// of claviger-unseal and are closed to everyone else (0700, 0600); a file that
// is not so is refused.
type Dir struct {
	Path string
	Now  func() time.Time // for the time at which a slot was made

	fault func(step string) error // of tests: fails a step of a write
}

func (d *Dir) check() error {
	info, err := os.Lstat(d.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return claviger.Errorf(claviger.NotFound, "there is no directory "+d.Path, "make the root key with: claviger-unseal init --dir "+d.Path+" --kind ...")
	} else if err != nil {
		return fmt.Errorf("look at the slots directory: %w", err)
	}
	return checkOwned(info, fs.ModeDir, d.Path)
}

// checkOwned refuses what is not of the type, not of this uid, or open to others.
func checkOwned(info fs.FileInfo, kind fs.FileMode, path string) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Type() != kind {
		return claviger.Errorf(claviger.Denied, path+" is not of the expected type", "look who replaced it; links are not followed")
	}
	if int(stat.Uid) != os.Geteuid() {
		return claviger.Errorf(claviger.Denied, fmt.Sprintf("%s belongs to uid %d and not to uid %d", path, stat.Uid, os.Geteuid()), fmt.Sprintf("run it as the owner: setpriv --reuid=%d --regid=%d --clear-groups claviger-unseal ...", stat.Uid, stat.Gid))
	}
	if info.Mode().Perm()&0o077 != 0 {
		return claviger.Errorf(claviger.Denied, fmt.Sprintf("%s is open to others (mode %04o)", path, info.Mode().Perm()), "take the right away with chmod go= and find out who could read it")
	}
	return nil
}

// read returns a file of the directory, of at most max bytes.
func (d *Dir) read(name string, max int64) ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	return readOwned(filepath.Join(d.Path, name), max)
}

func readOwned(path string, max int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkOwned(info, 0, path); err != nil {
		return nil, err
	}
	return readAll(f, max)
}

// readAll reads to the end, into one buffer that never grows, so that no copy
// of a secret is left behind.
func readAll(r io.Reader, max int64) ([]byte, error) {
	buf := make([]byte, max+1)
	n, err := io.ReadFull(r, buf)
	switch {
	case err == nil:
		clear(buf)
		return nil, claviger.Errorf(claviger.TooLarge, fmt.Sprintf("a file is longer than %d bytes", max), "name the right file")
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		clear(buf)
		return nil, err
	}
	return buf[:n], nil
}

// write replaces a file of the directory so that after a crash at any moment
// either the old content or the new is there, whole.
func (d *Dir) write(name string, data []byte) (err error) {
	path := filepath.Join(d.Path, name)
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove an unfinished file: %w", err)
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", temp, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(temp)
		}
	}()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"write", func() error { _, err := f.Write(data); return err }},
		{"sync", f.Sync},
		{"close", f.Close},
		{"rename", func() error { return os.Rename(temp, path) }},
		{"sync directory", d.sync},
	} {
		if d.fault != nil {
			if err := d.fault(step.name); err != nil {
				return fmt.Errorf("%s %s: %w", step.name, path, err)
			}
		}
		if err := step.do(); err != nil {
			return fmt.Errorf("%s %s: %w", step.name, path, err)
		}
	}
	return nil
}

func (d *Dir) sync() error {
	f, err := os.Open(d.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// erase overwrites a file and removes it. What the device kept of it besides
// is beyond reach.
func (d *Dir) erase(name string) error {
	path := filepath.Join(d.Path, name)
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Size() <= maxFile {
		if _, err := f.Write(make([]byte, info.Size())); err == nil {
			_ = f.Sync()
		}
	}
	return os.Remove(path)
}

// Lock keeps other writers away until the returned function is called. It
// does not wait: a second writer gets claviger.Conflict.
func (d *Dir) Lock() (unlock func(), err error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return nil, fmt.Errorf("open the slots directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, claviger.Errorf(claviger.Conflict, "another claviger-unseal is changing the slots", "try again when it is done").Wrap(err)
	}
	return func() { _ = f.Close() }, nil
}
